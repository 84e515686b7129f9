"""Weights by hub name, and our validation loss of a checkpoint."""

import builtins
import json

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from PIL import Image
from random_weights import random_model

from simmim_lite import Run, cli, create_model, load_weights, pretrain, save_weights
from simmim_lite.errors import UserError
from simmim_lite.model import hub
from simmim_lite.studies import scoring
from simmim_lite.training.run import weights_path

NAME = "hf://zdaxie/SimMIM/folder/ckpt.pth"


def official(path, model, names: str = "rpe_mlp"):
    """A checkpoint in the released layout (docs/facts.md, 5), buffers included."""
    state = {k.replace("cpb_mlp", names): v for k, v in model.state_dict().items()}
    for s, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        stem = f"encoder.layers.{s}.blocks.{b}"
        state[f"{stem}.attn.relative_coords_table"] = torch.randn(1, 7, 7, 2)
        state[f"{stem}.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
        state[f"{stem}.attn_mask"] = torch.zeros(4, 16, 16)
    torch.save({"model": state}, path)
    return path


@pytest.fixture
def released(tmp_path, monkeypatch):
    """The hub, with one file in the released layout in it."""
    model = random_model()
    path, asked = official(tmp_path / "cached.pth", model), []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if file != "folder/ckpt.pth":
            raise errors.EntryNotFoundError("404 Client Error\nEntry Not Found")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return model, asked


def test_a_hub_name_is_a_path(released, tmp_path, capsys) -> None:
    source, asked = released
    model = random_model(seed=1)
    assert load_weights(model, NAME).kept == ()
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    load_weights(model, "hf://zdaxie/SimMIM@v1/folder/ckpt.pth")
    assert asked == [("zdaxie/SimMIM", "folder/ckpt.pth", None), ("zdaxie/SimMIM", "folder/ckpt.pth", "v1")]
    out = tmp_path / "out.safetensors"
    assert cli.main(["weights", "convert", NAME, str(out), "--model", "swinv2_atto", "--layout", "timm"]) == 0
    assert "written" in capsys.readouterr().out and out.exists()


def line(name: str) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(random_model(), name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_one_line(released, monkeypatch) -> None:
    assert "holds no such file; its files are listed" in line(NAME.replace("ckpt", "ckp"))
    for name in ("hf://zdaxie", "hf://zdaxie/SimMIM", "hf://zdaxie/SimMIM/", "hf:// /a/b"):
        assert "names no file of the hub" in line(name)

    def failing(error):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    failing(errors.LocalEntryNotFoundError("An error happened while trying to locate the file\nand more"))
    assert "the hub cannot be reached" in line(NAME) and "check the network" in line(NAME)
    failing(ConnectionError("connection reset\nby peer"))
    assert "cannot be fetched (ConnectionError: connection reset)" in line(NAME)
    failing(errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError))
    assert "no repository zdaxie/SimMIM that is open to you" in line(NAME)


def test_without_the_package_it_is_one_line(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.split(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub: pip install 'simmim-lite\[hf\]'"):
        hub.fetch(NAME)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(40):
        place = folder / ("val" if i < 12 else "train") / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(place / f"{i}.png")
    (folder / "val" / "a" / "broken.png").write_bytes(b"no picture")
    return folder


def test_a_score_is_what_the_record_says(photos, tmp_path) -> None:
    """Bit for bit the validation loss of the record, from the weights alone, and the same on every call."""
    run = Run(data=f"imagefolder:{photos}", images=16, steps=3, batch_size=8, val_images=5, val_masks=2)
    run = Run(**run.to_dict() | {"statistics": "imagenet", "probe_labels": 0})
    record = pretrain(run, runs_dir=tmp_path, device="cpu")
    once, again = scoring.score([weights_path(tmp_path, run)] * 2, run=run, device="cpu")
    assert (once.loss, once.error) == (record["final"]["val_loss"], record["final"]["val_loss_se"])
    assert once == again and (once.images, once.masks, once.target) == (5, 2, "raw")


def test_a_score_needs_head_and_images(photos, tmp_path) -> None:
    run = Run(data=f"imagefolder:{photos}", statistics="imagenet", val_images=4)
    backbone = save_weights(random_model(), tmp_path / "timm.pth", "timm")
    with pytest.raises(UserError, match="needs the mask token and the head"):
        scoring.score([backbone], run=run, device="cpu")
    (tmp_path / "few").mkdir()
    for i in range(6):
        (tmp_path / "few" / f"{i}.png").write_bytes(b"no picture")
    bad = Run(data=f"imagefolder:{tmp_path / 'few'}", statistics="imagenet")
    with pytest.raises(UserError, match=r"no image of its val split can be read \(first: "):
        scoring.score([backbone], run=bad, device="cpu")


def test_the_verb_puts_checkpoints_in_order(released, photos, tmp_path, capsys) -> None:
    other = official(tmp_path / "other.pth", create_model("swinv2_atto", seed=3))
    words = ["--model", "swinv2_atto", "--data", f"imagefolder:{photos}", "--images", "4", "--device", "cpu"]
    assert cli.main(["weights", "score", NAME, str(other), *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "4 images x 4 masks, raw target" in said[0]
    losses = [float(text.split()[0]) for text in said[1:3]]
    assert losses == sorted(losses) and {text.split()[-1] for text in said[1:3]} == {NAME, str(other)}
    assert cli.main(["weights", "score", "nowhere.pth", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_published_order_stands_beside_and_what_is_unknown_is_said() -> None:
    found = [scoring.Scored("a.pth", 0.5, 0.01, 8, 4, "normalized"), scoring.Scored("b.pth", 0.4, 0.01, 8, 4, "raw")]
    said = scoring.lines(found, "swinv2_base")
    assert said[1].endswith("b.pth") and said[2].endswith("a.pth")
    assert sum("iterations" in text for text in said) == 15
    assert "protocol of the published losses is unknown" in said[-1] and "never the numbers" in said[-1]
    run = scoring.recipe("swinv2_base", "imagefolder:x")
    assert (run.image_size, run.window_size, run.target, run.statistics) == (192, 12, "normalized", "imagenet")
    assert json.dumps(run.to_dict())
