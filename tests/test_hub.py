"""Weights by hub name, and our validation loss of a checkpoint."""

import sys

import huggingface_hub
import pytest
import torch
from picture_folders import fill, one_line
from random_weights import random_model, same_weights

from simmim_lite import Run, cli, create_model, load_weights, pretrain, save_weights, verbs
from simmim_lite.training.run import weights_path

NAME = "hf://zdaxie/SimMIM/folder/ckpt.pth"


def official(path, model):
    """A checkpoint in the released layout (docs/facts.md, 5)."""
    torch.save({"model": {k.replace("cpb_mlp", "rpe_mlp"): v for k, v in model.state_dict().items()}}, path)
    return path


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The hub, with one file in the released layout in it: what it was asked for."""
    path, asked = official(tmp_path / "cached.pth", random_model()), []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if file != "folder/ckpt.pth":
            raise huggingface_hub.errors.EntryNotFoundError("404 Client Error\nEntry Not Found")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_hub_name_is_a_path(asked) -> None:
    model = random_model(seed=1)
    assert load_weights(model, NAME).kept == () and same_weights(model, random_model())
    load_weights(model, "hf://zdaxie/SimMIM@v1/folder/ckpt.pth")
    assert asked == [("zdaxie/SimMIM", "folder/ckpt.pth", None), ("zdaxie/SimMIM", "folder/ckpt.pth", "v1")]


def test_what_is_missing_is_one_line(asked, monkeypatch) -> None:
    wrong = dict.fromkeys(("hf://zdaxie/SimMIM", "hf:// /a/b"), "names no file of the hub")
    for name, words in (wrong | {NAME.replace("ckpt", "ckp"): "EntryNotFoundError: 404"}).items():
        one_line(words, load_weights, random_model(), name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    one_line(r"pip install 'simmim-lite\[hf\]'", load_weights, random_model(), NAME)


def test_a_score_is_what_the_record_says_and_the_verb_puts_checkpoints_in_order(asked, tmp_path, capsys) -> None:
    """Bit for bit the validation loss of the record, from the weights alone, and the same on every call."""
    photos = tmp_path / "photos"
    for split, count in (("train", 10), ("val", 4)):
        for name in "ab":
            fill(photos / split / name, count, (48, 40))
    small = {"images": 16, "steps": 2, "batch_size": 8, "val_images": 4, "val_masks": 2, "probe_labels": 0}
    run = Run(data=f"imagefolder:{photos}", statistics="imagenet", **small)
    record = pretrain(run, runs_dir=tmp_path, device="cpu")
    once, again = verbs.scores_of([weights_path(tmp_path, run)] * 2, run, "cpu")
    assert once[:2] == (record["final"]["val_loss"], record["final"]["val_loss_se"]) and once == again
    backbone = save_weights(random_model(), tmp_path / "timm.pth", "timm")
    one_line("needs the mask token and the head", verbs.scores_of, [backbone], run, "cpu")
    other, _ = official(tmp_path / "other.pth", create_model("swinv2_atto", seed=3)), capsys.readouterr()
    words = ["--model", "swinv2_atto", "--data", f"imagefolder:{photos}", "--images", "4", "--device", "cpu"]
    assert cli.main(["weights", "score", NAME, str(other), *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "4 images x 4 masks, raw target" in said[0]
    losses = [float(text.split()[0]) for text in said[1:3]]
    assert losses == sorted(losses) and {text.split()[-1] for text in said[1:3]} == {NAME, str(other)}
