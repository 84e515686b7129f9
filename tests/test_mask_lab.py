"""The mask lab in Python: its mask, pictures of every kind, networks, and one line for what is wrong."""

import base64
import io
import json

import numpy as np
import pytest
from lab_walk import pixels, predict
from PIL import Image
from traitlets import TraitError

from simmim_lite.data.batches import normalise
from simmim_lite.errors import UserError
from simmim_lite.lab import pictures
from simmim_lite.lab.mask_lab import NETWORKS, MaskLab, shipped_network
from simmim_lite.model.masking import hash_masks, upsample


@pytest.fixture(scope="module")
def lab() -> MaskLab:
    return MaskLab(scenes=3)


@pytest.mark.parametrize(
    ("wrong", "said", "name", "value"),
    [
        ({"patch": 5}, "patch 5 does not divide: at 192 px", "patch", 7),
        ({"ratio": 1.5}, "'ratio' trait .* 1.5", "ratio", 1.2),
        ({"network": "foto"}, "unknown network 'foto'.*photos", "network", "x"),
        ({"picture": "nowhere.jpg"}, "nowhere.jpg: no picture that can be read .No such file", "picture", 99),
        ({"picture": np.zeros((4, 4), int)}, "no known range", "statistics", "x"),
    ],
)
def test_what_is_wrong_takes_one_line_at_first_and_later(lab, wrong, said, name, value) -> None:
    with pytest.raises(UserError, match=said):
        MaskLab(**({"network": ""} | wrong), scenes=1, offer=("photos",))
    with pytest.raises((UserError, TraitError)):
        setattr(lab, name, value)
    assert getattr(lab, name) != value


def test_pictures_are_squares_and_outlines() -> None:
    """The centre square at 192 px, of files and arrays; what files are read as is test_decode's."""
    held, wide = io.BytesIO(), np.zeros((30, 90, 3), np.uint8)
    wide[:, 30:60] = 255
    Image.new("RGB", (4000, 3000), "red").save(held, "JPEG")
    for picture, low, high in (
        (held.getvalue(), 80, 90),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), 250, 255),
        (wide, 250, 255),
        (np.full((10, 20), True), 255, 256),
        (np.full((3, 16, 16), 0.5), 125, 130),
    ):
        entry = pictures.own_picture(picture)
        assert pixels(entry, 192).shape == (3, 192, 192) and low <= pixels(entry, 32).mean() <= high
    (entry,) = pictures.scene_pictures(0, 1)
    outline = np.unpackbits(np.frombuffer(base64.b64decode(entry["outline"]), np.uint8)).reshape(48, 48)
    assert 0 < outline.mean() < 0.7


def test_shipped_networks_do_their_work() -> None:
    """Each comes with its provenance, and beats the guess that every hidden pixel is the mean colour."""
    assert [*NETWORKS] == ["scenes", "photos", "photos-normalised"]
    for name in NETWORKS:
        network = shipped_network(name)
        about = network.about
        assert about["name"] == name and len(about["where"]["commit"]) == 40 and about["where"]["versions"]["torch"]
        assert f"{about['final']['val_loss']:.3f}" in about["text"]
        ours, lazy = [], []
        for k, entry in enumerate(pictures.scene_pictures(7, 24) if name == "scenes" else pictures.photographs()):
            picture, mask = pixels(entry, about["side"]), hash_masks((about["side"] // 8,) * 2, 0.6, 0, [k])[0]
            x = normalise(picture[None], tuple(about["mean"]), tuple(about["std"]))
            goal, hidden = network.model.make_target(x)[0].numpy(), upsample(mask, 8)
            ours.append(np.abs(predict(network, picture, upsample(mask, 2)) - goal)[:, hidden].mean())
            lazy.append(np.abs(goal)[:, hidden].mean())
        assert np.mean(ours) < 0.9 * np.mean(lazy)


def test_the_kernel_sends_the_weights_that_are_asked_for(lab, monkeypatch) -> None:
    sent = []
    monkeypatch.setattr(lab, "send", lambda content, buffers=None: sent.append((content, buffers)))
    for name in ("photos", "../secret", None):
        lab._handle_custom_msg({"kind": "weights", "name": name}, [])
    assert sent == [({"kind": "weights", "name": "photos"}, [shipped_network("photos").weights])]


def test_a_network_sees_pictures_at_its_own_size_and_at_twice_that() -> None:
    own = shipped_network("photos").about["side"]
    lab = MaskLab(scenes=1, size=2 * own)
    assert (lab.side, lab.mask.shape) == (2 * own, (own // 4,) * 2)
    for wrong in (48, 4 * own):
        with pytest.raises(UserError, match=f"size {wrong}: give {own} or {2 * own} px"):
            lab.size = wrong
    lab.patch = lab.side // 2
    for name in ("scenes", ""):  # what another network cannot show is its own
        lab.network = name
        assert lab.side % lab.patch == 0 and lab.mask.size
    assert (lab.size, lab.side) == (0, pictures.SIDE)


def test_the_twin_holds_all_it_needs(lab, tmp_path) -> None:
    text = lab.write_html(tmp_path / "lab.html", "Mask <lab>").read_text()
    assert "<title>Mask &lt;lab&gt;</title>" in text
    assert len(text) < 12e6, "one file, small enough to send"
    assert "http://" not in text and "https://" not in text
    state = json.loads(base64.b64decode(text.split('bytes("')[1].split('"')[0]))
    assert set(state["weights"]) == set(NETWORKS) and len(state["pictures"]) == len(lab.pictures)
