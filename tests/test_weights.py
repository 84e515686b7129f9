"""Weights in and out: every layout, both file kinds, and one clear line for every file that does not fit."""

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import random_model, same_weights

from simmim_lite import cli
from simmim_lite.errors import UserError
from simmim_lite.lab.mask_lab import FOLDER, shipped_network
from simmim_lite.model import weights
from simmim_lite.model.layouts import BUFFERS, to_hf, to_timm
from simmim_lite.model.simmim import create_model
from simmim_lite.model.swin import log_coordinates
from simmim_lite.model.weights import LAYOUTS, load_weights, save_weights

HEAD = ("decoder.0.weight", "decoder.0.bias")
TOKEN = "encoder.mask_token"
SOURCE = random_model()


def state():
    return dict(SOURCE.state_dict())


def refusal(*args, **kwargs) -> str:
    """The one line of the UserError."""
    with pytest.raises(UserError) as caught:
        load_weights(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loads(content, kept=(), unused=()):
    """What is loaded into another network equals the source's, but for what is kept."""
    model = random_model(seed=1)
    report = load_weights(model, content)
    assert (report.kept, set(report.unused)) == (kept, set(unused))
    assert set(report.loaded) == set(state()) - set(kept) and same_weights(model, SOURCE, kept)
    assert same_weights(model, random_model(seed=1), report.loaded)
    return report


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trips_are_bit_exact(tmp_path, layout, suffix):
    path = save_weights(SOURCE, tmp_path / ("hf" if layout == "hf" else f"w{suffix}"), layout)
    report = loads(path, (TOKEN, *HEAD) if layout == "timm" else ())
    assert report.layout == {"official": "simmim"}.get(layout, layout)
    files = {"model.safetensors", "config.json"} if layout == "hf" else {path.name}
    assert {file.name for file in (path if layout == "hf" else tmp_path).iterdir()} == files
    again = path / "model.safetensors" if layout == "hf" else path.rename(tmp_path / "as the hub's cache names it")
    loads(again, report.kept)


def test_the_official_layout_key_by_key(tmp_path):
    """docs/facts.md, 5: under `model`, prefix `encoder.`, head `decoder.0.`; these names and no others."""
    content = torch.load(save_weights(SOURCE, tmp_path / "w.pth", "official"), weights_only=True)
    block = ["attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.logit_scale"]
    block += ["attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight"]
    block += [f"{m}.{p}" for m in ("attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2") for p in ("weight", "bias")]
    keys = [f"layers.{s}.blocks.{b}.{name}" for s in (0, 1) for b in (0, 1) for name in block]
    keys += [f"{m}.{p}" for m in ("patch_embed.proj", "patch_embed.norm", "norm") for p in ("weight", "bias")]
    keys += ["layers.0.downsample." + n for n in ("reduction.weight", "norm.weight", "norm.bias")] + ["mask_token"]
    assert list(content) == ["model"] and set(content["model"]) == {f"encoder.{k}" for k in keys} | set(HEAD)


class CfgNode(dict):
    """As yacs's: a dict that also carries attributes."""


def official_checkpoint(monkeypatch):
    """As the official trainer writes it: buffers, optimiser, progress and yacs's configuration object."""
    tensors = {k.replace("cpb_mlp", "rpe_mlp"): v for k, v in state().items()}
    for s, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        prefix = f"encoder.layers.{s}.blocks.{b}"
        tensors[f"{prefix}.attn.relative_coords_table"] = log_coordinates((4, 4))[None]
        tensors[f"{prefix}.attn.relative_position_index"] = torch.arange(256).view(16, 16)
    tensors["encoder.layers.0.blocks.1.attn_mask"] = torch.randn(4, 16, 16)
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    model = {"DEPTHS": [2, 2], "SWIN": CfgNode({"WINDOW_SIZE": 7}), "SWINV2": CfgNode({"WINDOW_SIZE": 12})}
    model |= {"SIMMIM": CfgNode({"NORM_TARGET": CfgNode({"ENABLE": True})})}
    config = CfgNode({"MODEL": CfgNode(model)})
    config.__dict__["__immutable__"] = True
    return {"model": tensors, "optimizer": {"state": {}}, "max_accuracy": 0.0, "epoch": 3, "config": config}


def test_an_official_checkpoint_with_everything_in_it(tmp_path, monkeypatch, capsys):
    content = official_checkpoint(monkeypatch)
    torch.save(content, tmp_path / "ckpt.pth")
    report = loads(tmp_path / "ckpt.pth", unused=[k for k in content["model"] if k.endswith(BUFFERS)])
    assert len(report.unused) == 9 and str(report).startswith("80 of 80 tensors from the simmim layout; taken off: mod")
    assert capsys.readouterr().err == f"simmim-lite: {tmp_path / 'ckpt.pth'}: {report}\n"


def prefixed(prefix, tensors):
    return {prefix + k: v for k, v in tensors.items()}


LOST = (TOKEN, *HEAD)
BARE = {k.removeprefix("encoder."): v for k, v in SOURCE.state_dict().items() if k not in LOST}
TIMM, HF = to_timm(state()), to_hf(state())
HF_BARE = {k: v for k, v in HF.items() if k not in HEAD and "mask_token" not in k}
CHECKPOINT = "_checkpoint_wrapped_module"
WRAPPINGS = {
    "_orig_mod., module.": lambda s: prefixed("module._orig_mod.", s),
    f"_fsdp_wrapped_module., {CHECKPOINT}.": lambda s: prefixed(
        "_fsdp_wrapped_module.", {k.replace("blocks.0", f"blocks.0.{CHECKPOINT}"): v for k, v in s.items()}
    ),
    "state_dict., model.": lambda s: {"state_dict": prefixed("model.", s), "epoch": 1},
    "model_ema., module.": lambda s: {"model_ema": prefixed("module.", s), "args": argparse.Namespace(lr=1)},
    "teacher.": lambda s: prefixed("teacher.", s) | {"best": np.float64(0.7), "at": Path("x")},
}
READ = [(wrap(state()), (), (), f"simmim layout; taken off: {off}") for off, wrap in WRAPPINGS.items()]
for tensors, beside, layout in (  # backbones in larger networks: no mask token, other heads beside
    (prefixed("model.backbone.", BARE), ("decode_head.conv.weight",), "backbone"),
    (BARE, ("head.weight", "head.bias"), "backbone"),
    (TIMM, ("head.fc.weight",), "timm"),
    ({k.removeprefix("swinv2."): v for k, v in HF_BARE.items()}, (), "hf"),
    (HF_BARE, ("classifier.weight",), "hf"),
):
    READ.append((tensors | {k: torch.randn(3) for k in beside}, LOST, beside, f"from the {layout} layout"))
BOTH = {"model_ema": random_model(seed=2).state_dict(), "model": state()}
READ.append((BOTH, (), (), "passed over: the weights under model_ema.encoder."))


@pytest.mark.parametrize(("content", "kept", "unused", "words"), READ)
def test_weights_are_found_under_any_names_and_it_is_said(tmp_path, content, kept, unused, words):
    torch.save(content, tmp_path / "w.pth")
    assert words in str(loads(tmp_path / "w.pth", kept, unused))


def test_another_window_is_said():
    """Where the file has the buffers: the coordinates are of the window that it was pretrained with."""
    name, grid = "encoder.layers.{}.blocks.0.attn.relative_coords_table", log_coordinates((6, 6), 8)[None]
    table = {name.format(stage): grid for stage in (0, 1)}
    report = loads(state() | table, unused=table)
    assert "pretrained with windows of 8, not 4: give pretrained_window_sizes=(8, 8)" in str(report)


@pytest.mark.parametrize("layout", ["official", "hf"])
def test_what_no_file_filled_is_not_written(tmp_path, capsys, layout):
    """A backbone converted: not with a random mask token and head, which nobody could tell from trained ones."""
    source, target = save_weights(SOURCE, tmp_path / "timm.pth", "timm"), tmp_path / "out.safetensors"
    words = ["weights", "convert", str(source), str(target), "--model", "swinv2_atto", "--layout", layout]
    assert cli.main(words) == 0 and f"kept as they were: {TOKEN}, " in capsys.readouterr().err
    path = target if target.is_file() else next(target.glob("*.safetensors"))
    assert not any("decoder" in k or "mask_token" in k for k in weights.read(path))
    loads(path, (TOKEN, *HEAD))
    assert "holds no encoder.mask_token: to predict pixels needs" in refusal(SOURCE, path, head=True)


def like(key: str, value: object):
    """The source with other numbers in a tensor, or another tensor."""
    return state() | {key: value if isinstance(value, torch.Tensor) else torch.full_like(state()[key], value)}


def meta(name: str):
    with torch.device("meta"):
        return create_model(name).state_dict()


PART = {k: v for k, v in like("encoder.norm.weight", torch.ones(7)).items() if k != HEAD[1]}
PART["encoder.extra"] = torch.ones(3)
REFUSED = [
    (random_model("swinv2_femto").state_dict(), "71 of another shape or kind (first encoder.mask_token); the file has"),
    (meta("swinv2_base"), "depths 2-2: load it into swinv2_base"),
    (PART, "1 missing (first decoder.0.bias), 1 unknown (first encoder.extra), 1 of another shape"),
    (like("encoder.norm.weight", np.nan), "encoder.norm.weight holds NaN or infinity (64 of 64 numbers); its training"),
    ({}, "no Swin V2 in a known layout"),
    ({"cls_token": torch.ones(1), "patch_embed.proj.weight": torch.ones(1)}, "it holds cls_token, patch_embed"),
    ({k: state() for k in ("student", "teacher")}, "2 networks, under 'student.encoder.'"),
]


@pytest.mark.parametrize(("content", "words"), REFUSED)
def test_what_does_not_fit_is_named_and_leaves_the_model_as_it_was(content, words):
    model = random_model(seed=1)
    assert words in refusal(model, content) and same_weights(model, random_model(seed=1))


class Boom:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a file ran')",)


def test_files_that_are_no_weights(tmp_path):
    """Cut short, a text, nothing, or code, which is not run."""
    path = tmp_path / "w.pth"
    assert str(path) in refusal(SOURCE, path) and "no such file" in refusal(SOURCE, path)
    assert "no such file" in refusal(SOURCE, tmp_path)
    torch.save({"extra": Boom(), "model": state()}, path)
    contents = [b"", b"<!DOCTYPE html>\n" * 9, path.read_bytes(), pickle.dumps({"extra": Boom()}, protocol=2)]
    contents += [save_weights(SOURCE, tmp_path / name).read_bytes()[:-100] for name in ("w.pth", "w.safetensors")]
    for content in contents:
        path.write_bytes(content)
        assert refusal(SOURCE, path).startswith(f"{path} cannot be read: cut short or no weights file (")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_weights(SOURCE, tmp_path / "w.pth")
    whole = path.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*w.pth: .*No space left on device; free some space"):
        save_weights(random_model(seed=1), path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_show_says_what_a_file_is(tmp_path, monkeypatch, capsys):
    def shown(path, content=None):
        if content is not None:
            torch.save(content, path)
        assert cli.main(["weights", "show", str(path)]) == 0
        first, *rows = capsys.readouterr().out.splitlines()
        assert first == str(path)
        return {row[:10].strip(): row[11:] for row in rows}

    rows = {"layout": "simmim", "size": "swinv2_atto (embed_dim 32, depths 2-2)"}
    rows |= dict.fromkeys(("window", "target"), "not in the file")
    rows |= dict.fromkeys(("missing", "extra", "wrong"), "none")
    rows |= {"numbers": "156,998 parameters in 80 of 80 tensors, float32; all finite"}
    assert shown(save_weights(SOURCE, tmp_path / "own.pth")) == rows
    rows = shown(tmp_path / "simmim_pretrain__swinv2_base__img192_window12__800ep.pth", to_timm(state()))
    assert rows["window"] == "12" and rows["missing"] == ", ".join((TOKEN, *HEAD)) and rows["layout"] == "timm"
    rows = shown(FOLDER / "photos-normalised.safetensors")
    assert (
        rows["target"] == "normalized" and rows["window"] == f"{shipped_network('photos-normalised').about['window']}"
    )
    content = official_checkpoint(monkeypatch)
    rows = shown(tmp_path / "ckpt.pth", content)
    assert "and 6 more" in rows["extra"] and rows["window"] == "4-4 by stage, coordinates of 4-4"
    content["model"] = {k: v for k, v in content["model"].items() if "coords" not in k}
    content["model"] |= {"encoder.norm.bias": torch.ones(7), "decoder.0.bias": torch.full((192,), torch.inf)}
    rows = shown(tmp_path / "ckpt.pth", content)
    assert rows["window"] == "12" and "decoder.0.bias holds NaN or infinity" in rows["numbers"]
    assert rows["wrong"] == "encoder.norm.bias (of another shape or kind)"
