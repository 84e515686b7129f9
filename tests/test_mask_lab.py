"""The mask lab in Python: its mask and numbers, pictures of every kind, networks, and one line for what is wrong."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import simmim_lite as sl
from simmim_lite.errors import UserError
from simmim_lite.lab import networks, photos
from simmim_lite.lab.mask_lab import MaskLab
from simmim_lite.model.masking import average_distance, hash_masks, upsample
from simmim_lite.model.simmim import normalize_locally


@pytest.fixture(scope="module")
def lab() -> MaskLab:
    return MaskLab(scenes=3)


def test_its_mask_and_numbers_are_the_librarys() -> None:
    lab = MaskLab(network="", patch=32, seed=3, strategy="block", scenes=1)
    mask = hash_masks((6, 6), 0.6, 3, [0], strategy="block")[0]
    assert (lab.mask == mask).all()
    lab.edits = [0, 7]
    mask[0, 0] ^= True
    mask[1, 1] ^= True
    assert (lab.mask == mask).all()
    numbers, tokens = lab.numbers, upsample(mask, 8)
    assert (numbers["hidden"], numbers["share"]) == (mask.sum(), mask.mean())
    assert numbers["distance"] == pytest.approx(average_distance(mask, 32))
    whole = [tokens[y : y + 12, x : x + 12].all() for y in range(0, 48, 12) for x in range(0, 48, 12)]
    assert numbers["blind"][12][0] == sum(whole)


WRONG = [
    ({"patch": 5}, "does not divide"),
    ({"patch": 12, "network": "photos"}, "give one of 4, 8, 16, 32"),
    ({"ratio": 1.5}, "outside 0 to 1"),
    ({"strategy": "blocks"}, "did you mean 'block'"),
    ({"network": "foto"}, "photos"),
    ({"tab": "windoes"}, "did you mean 'windows'"),
    ({"picture": "nowhere.jpg"}, "nowhere.jpg: no picture that can be read .No such file"),
    ({"picture": b"not a picture"}, "no picture that can be read"),
]


def test_what_is_wrong_takes_one_line_at_first_and_later(lab) -> None:
    for wrong, said in WRONG:
        with pytest.raises(UserError, match=said) as found:
            MaskLab(**({"network": ""} | wrong), scenes=1)
        assert "\n" not in str(found.value)
    later = {"strategy": "x", "ratio": 1.2, "patch": 7, "statistics": "x", "tab": "x", "picture": 99, "network": "x"}
    for name, value in later.items():
        before = getattr(lab, name)
        with pytest.raises(UserError):
            setattr(lab, name, value)
        assert getattr(lab, name) == before


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    picture.save(held, kind)
    return held.getvalue()


def test_pictures_of_every_kind() -> None:
    """The centre square at 192 px; transparency is white, 16 bits are scaled, a palette is RGB."""
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, 30:60] = 255
    for picture, low, high in (
        (encoded(Image.new("RGB", (4000, 3000), "red"), "JPEG"), 80, 90),
        (encoded(Image.new("RGBA", (50, 40), (255, 0, 0, 0))), 250, 255),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), 250, 255),
        (encoded(Image.new("L", (64, 64), 90)), 88, 92),
        (encoded(Image.new("CMYK", (64, 80), (0, 255, 255, 0)), "JPEG"), 60, 110),
        (encoded(Image.new("RGB", (3, 3), "blue")), 80, 90),
        (encoded(Image.new("P", (20, 30)), "GIF"), 0, 2),
        (encoded(deep), 100, 155),
        (wide, 250, 255),
        (np.zeros((10, 20), np.uint8), 0, 2),
        (np.full((3, 16, 16), 0.5), 125, 130),
    ):
        entry = photos.own_picture(picture)
        pixels = photos.pixels(entry, 32)
        assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8
        assert low <= pixels.mean() <= high
        assert photos.pixels(entry, 192).shape == (3, 192, 192)


def test_photographs_and_scenes_are_what_they_say() -> None:
    assert all(photo.path.is_file() and photo.licence for photo in photos.PHOTOS)
    assert {entry["kind"] for entry in photos.photographs()} == {"photograph"}
    (entry,) = photos.scene_pictures(0, 1)
    outline = np.unpackbits(np.frombuffer(base64.b64decode(entry["outline"]), np.uint8)).reshape(48, 48)
    assert 0 < outline.mean() < 0.7


def test_shipped_networks_do_their_work() -> None:
    """Each comes with its provenance, and beats the guess that every hidden pixel is the mean colour."""
    assert networks.names() == ["scenes", "photos", "photos-normalised"]
    assert sum(len(networks.shipped(name).weights) for name in networks.names()) < 5e6
    for name in networks.names():
        network = networks.shipped(name)
        about = network.about
        assert about["name"] == name and len(about["where"]["commit"]) == 40 and about["where"]["versions"]["torch"]
        assert f"{about['final']['val_loss']:.3f}" in about["text"]
        ours, lazy = [], []
        for k, entry in enumerate(photos.scene_pictures(7, 24) if name == "scenes" else photos.photographs()):
            pixels, mask = photos.pixels(entry, 32), hash_masks((4, 4), 0.6, 0, [k])[0]
            goal, hidden = networks.target(pixels, about), upsample(mask, 8)
            ours.append(np.abs(network.predict(pixels, upsample(mask, 2)) - goal)[:, hidden].mean())
            lazy.append(np.abs(goal)[:, hidden].mean())
        assert np.mean(ours) < 0.9 * np.mean(lazy)


def test_local_statistics_are_those_of_the_target_and_never_see_the_hidden() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 32, 32))
    mean, variance = networks.local_statistics(x, 7)
    theirs = normalize_locally(torch.tensor(x[None], dtype=torch.float32), 7)[0].numpy()
    assert np.abs((x - mean) / np.sqrt(variance + 1e-6) - theirs).max() < 1e-4
    weight = rng.random((32, 32)) < 0.5
    mean, variance = networks.local_statistics(x, 5, weight)
    assert np.allclose((mean, variance), networks.local_statistics(np.where(weight, x, 99.0), 5, weight))
    y, c = 8, 3
    near = x[:, y - 2 : y + 3, c - 2 : c + 3][:, weight[y - 2 : y + 3, c - 2 : c + 3]]
    assert np.allclose(mean[:, y, c], near.mean(1)) and np.allclose(variance[:, y, c], near.var(1, ddof=1))
    assert np.isfinite(networks.local_statistics(x, 5, np.zeros((32, 32)))).all()


def test_true_statistics_leak_and_visible_ones_do_not() -> None:
    """A prediction of nothing at all, shown with the hidden pixels' own statistics, is a blurred copy of them."""
    about = networks.shipped("photos-normalised").about
    nothing, error = np.zeros((3, 32, 32), np.float32), {"visible": [], "true": []}
    for k, entry in enumerate(photos.photographs()):
        pixels, hidden = photos.pixels(entry, 32), upsample(hash_masks((4, 4), 0.6, 0, [k])[0], 8)
        for statistics, found in error.items():
            shown = networks.to_pixels(nothing, pixels, hidden, about, statistics)
            found.append(np.abs(shown.astype(float) - pixels)[:, hidden].mean())
    assert np.mean(error["true"]) < 0.7 * np.mean(error["visible"])
    with pytest.raises(UserError, match="did you mean 'visible'"):
        networks.to_pixels(nothing, pixels, hidden, about, "visibel")


def test_reconstruction(lab) -> None:
    found = lab.reconstruction()
    hidden = upsample(lab.mask, lab.patch)
    assert (found["filled"][:, ~hidden] == found["picture"][:, ~hidden]).all()
    assert (found["filled"][:, hidden] == found["answer"][:, hidden]).all()
    assert found["losses"].shape == (4, 4)
    with pytest.raises(UserError, match="no network is chosen"):
        MaskLab(network="", scenes=1).reconstruction()


def test_the_kernel_answers_the_page_and_says_what_is_wrong(lab, monkeypatch) -> None:
    sent = []
    monkeypatch.setattr(lab, "send", lambda content, buffers=None: sent.append((content, buffers)))
    pixels = photos.pixels(lab.pictures[0], 32)
    tokens = upsample(lab.mask, 2).astype(np.uint8)
    lab._answer(lab, {"kind": "predict", "id": 4, "network": "photos"}, [pixels.tobytes(), tokens.tobytes()])
    (message, (data,)) = sent.pop()
    assert (message["kind"], message["id"]) == ("predicted", 4)
    expected = networks.shipped("photos").predict(pixels, tokens)
    assert (np.frombuffer(data, np.float32).reshape(3, 32, 32) == expected).all()
    lab._answer(lab, {"kind": "predict", "id": 5, "network": "photos"}, [pixels.tobytes()[:7], tokens.tobytes()])
    (message, _) = sent.pop()
    assert message["kind"] == "problem" and "no reconstruction" in message["text"]


def test_any_checkpoint_and_any_run(tmp_path) -> None:
    model = sl.create_model("swinv2_atto", 32, 4, target="normalized", seed=1)
    path = tmp_path / "mine.safetensors"
    sl.save_weights(model, path, layout="simmim")
    network = networks.of_checkpoint(path, "swinv2_atto", 32, 4, mask_patch=8)
    lab = MaskLab(network=network, scenes=1)
    assert (lab.side, lab.patch, lab.network) == (32, 8, "mine")
    assert lab.reconstruction()["answer"].shape == (3, 32, 32)
    assert "mine" not in [about["name"] for about in lab.twin_state()["networks"]]  # too large for a page, in general
    run = sl.Run(images=16, steps=2, batch_size=4, val_images=8, probe_labels=0, warmup_steps=1)
    sl.pretrain(run, runs_dir=tmp_path / "runs")
    assert networks.of_run(run, tmp_path / "runs").about["target"] == "raw"
    with pytest.raises(UserError, match="no weights of this run"):
        networks.of_run(sl.Run(images=16, steps=3), tmp_path / "runs")


def test_the_twin_holds_all_it_needs(lab, tmp_path) -> None:
    text = lab.write_html(tmp_path / "lab.html", "Mask <lab>").read_text()
    assert "<title>Mask &lt;lab&gt;</title>" in text
    assert "http://" not in text and "https://" not in text
    state = json.loads(base64.b64decode(text.split('bytes("')[1].split('"')[0]))
    assert set(state["weights"]) == set(networks.names()) and len(state["pictures"]) == len(lab.pictures)
