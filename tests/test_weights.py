"""Weights in and out: every layout, both file kinds, and one clear line for every file that does not fit."""

import argparse
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import random_model, small_model

from simmim_lite import cli
from simmim_lite.errors import UserError
from simmim_lite.lab import networks
from simmim_lite.model import inspection, layouts, weights
from simmim_lite.model.simmim import create_model
from simmim_lite.model.swin import log_coordinates
from simmim_lite.model.weights import LAYOUTS, load_weights, save_weights

HEAD = ("decoder.0.weight", "decoder.0.bias")
TOKEN = "encoder.mask_token"


def same(a, b, but=()):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return [k for k in a if k not in but and not torch.equal(a[k], b[k])] == []


def refusal(*args, **kwargs):
    """The one line of the UserError."""
    with pytest.raises(UserError) as caught:
        load_weights(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trips_are_bit_exact(tmp_path, layout, suffix):
    source, model = random_model(), random_model(seed=1)
    before = random_model(seed=1)
    name, more = ("w", {"config.json"}) if layout == "hf" else (f"w{suffix}", set())
    path = save_weights(source, tmp_path / "new" / name, layout)
    path = path / "model.safetensors" if layout == "hf" else path
    report = load_weights(model, path)
    assert {file.name for file in path.parent.iterdir()} == {path.name} | more
    lost = (TOKEN, *HEAD) if layout == "timm" else ()
    assert report.kept == lost and report.unused == () and report.layout == {"official": "simmim"}.get(layout, layout)
    assert set(report.loaded) == set(source.state_dict()) - set(lost)
    assert same(model, source, but=lost)
    assert all(torch.equal(model.state_dict()[k], before.state_dict()[k]) for k in lost)


def test_the_official_layout_key_by_key(tmp_path):
    """docs/facts.md, 5: under `model`, prefix `encoder.`, head `decoder.0.`; these names and no others."""
    model = create_model("swinv2_atto")
    content = torch.load(save_weights(model, tmp_path / "w.pth", "official"), weights_only=True)
    block = ["attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.logit_scale"]
    block += ["attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight"]
    block += [f"{m}.{p}" for m in ("attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2") for p in ("weight", "bias")]
    keys = [f"layers.{s}.blocks.{b}.{name}" for s in (0, 1) for b in (0, 1) for name in block]
    keys += [f"{m}.{p}" for m in ("patch_embed.proj", "patch_embed.norm", "norm") for p in ("weight", "bias")]
    keys += ["layers.0.downsample." + n for n in ("reduction.weight", "norm.weight", "norm.bias")] + ["mask_token"]
    assert list(content) == ["model"]
    assert set(content["model"]) == {f"encoder.{k}" for k in keys} | set(HEAD)


class CfgNode(dict):
    """As yacs's: a dict that also carries attributes."""


def official_checkpoint(model, monkeypatch):
    """As the official trainer writes it: buffers, optimiser, progress and yacs's configuration object."""
    state = {k.replace("cpb_mlp", "rpe_mlp"): v for k, v in model.state_dict().items()}
    for s, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        prefix = f"encoder.layers.{s}.blocks.{b}"
        state[f"{prefix}.attn.relative_coords_table"] = log_coordinates((4, 4))[None]
        state[f"{prefix}.attn.relative_position_index"] = torch.arange(256).view(16, 16)
    state["encoder.layers.0.blocks.1.attn_mask"] = torch.randn(4, 16, 16)
    content = {"model": state, "optimizer": {"state": {}}, "max_accuracy": 0.0, "epoch": 3}
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    content["config"] = CfgNode({"MODEL": CfgNode({"DEPTHS": [2, 2]})})
    content["config"].__dict__["__immutable__"] = True
    return content


def test_an_official_checkpoint_with_everything_in_it(tmp_path, monkeypatch):
    source, model = random_model(), random_model(seed=1)
    torch.save(official_checkpoint(source, monkeypatch), tmp_path / "ckpt.pth")
    assert b"yacs.config" in (tmp_path / "ckpt.pth").read_bytes()
    report = load_weights(model, tmp_path / "ckpt.pth")
    assert same(model, source) and report.kept == ()
    assert len(report.unused) == 9 and all(k.endswith(layouts._BUFFERS) for k in report.unused)
    said = (
        f"{len(report.loaded)} of {len(report.loaded)} tensors from the simmim layout; taken off: model.; not used: e"
    )
    assert str(report).startswith(said) and repr(report) == str(report)


WRAPPINGS = [
    (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, "_orig_mod."),
    (lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, "_orig_mod., module."),
    (lambda s: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in s.items()}, "_orig_mod."),  # each block
    (lambda s: {f"_fsdp_wrapped_module.{k.replace('blocks.0', 'blocks.0._checkpoint_wrapped_module')}": v
                for k, v in s.items()},
     "_fsdp_wrapped_module., _checkpoint_wrapped_module."),
    (lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 1}, "state_dict., model."),
    (lambda s: {"state_dict": {f"model.module._orig_mod.{k}": v for k, v in s.items()}},
     "state_dict., model., _orig_mod., module."),
    (lambda s: {"checkpoint": {"model": {"state_dict": s}}}, "checkpoint., model., state_dict."),
    (lambda s: {"model_ema": {f"module.{k}": v for k, v in s.items()}, "args": argparse.Namespace(lr=1),
                "best": np.float64(0.7)},
     "model_ema., module."),
    (lambda s: {"state_dict_ema": s, "folder": Path("x")}, "state_dict_ema."),
    (lambda s: {f"teacher.{k}": v for k, v in s.items()}, "teacher."),
]  # fmt: skip


@pytest.mark.parametrize(("wrap", "taken_off"), WRAPPINGS)
@pytest.mark.parametrize("layout", ["simmim", "timm", "hf"])
def test_wrappers_are_taken_off_in_any_nesting_and_said(tmp_path, capsys, wrap, taken_off, layout):
    source, model = random_model(), random_model(seed=1)
    names = {"timm": layouts.to_timm, "hf": layouts.to_hf}.get(layout, dict)(source.state_dict())
    torch.save(wrap(names), tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth")
    lost = (TOKEN, *HEAD) if layout == "timm" else ()
    assert same(model, source, but=lost) and report.kept == lost and report.unused == ()
    said = capsys.readouterr().err
    assert said == f"simmim-lite: {tmp_path / 'w.pth'}: {report}\n" and f"taken off: {taken_off}" in said


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "model.backbone.", "net.encoder.backbone.", ""])
def test_a_backbone_in_a_larger_network(prefix):
    """A segmenter's or a classifier's file: no mask token, other heads beside it, which are named."""
    source, model = random_model(), random_model(seed=1)
    state = {k.removeprefix("encoder."): v for k, v in source.state_dict().items() if k not in (TOKEN, *HEAD)}
    heads = ("head.weight", "head.bias") if not prefix else ("decode_head.conv.weight", "neck.weight")
    state = {prefix + k: v for k, v in state.items()} | {k: torch.randn(3) for k in heads}
    report = load_weights(model, {"state_dict": state})
    assert report.kept == (TOKEN, *HEAD) and set(report.unused) == set(heads)
    assert same(model, source, but=report.kept)
    assert report.layout == ("simmim" if prefix == "encoder." else "backbone") or prefix.endswith("encoder.")


def test_of_weights_and_their_average_the_weights_are_taken(capsys):
    source, average, model = random_model(), random_model(seed=2).state_dict(), random_model(seed=1)
    for content in (
        {"state_dict": source.state_dict(), "state_dict_ema": average},
        {"model_ema": average, "model": source.state_dict()},
        {
            f"{m}.{k}": v
            for m, s in (("model_ema.module", average), ("model", source.state_dict()))
            for k, v in s.items()
        },
    ):
        load_weights(model, content)
        assert same(model, source) and re.search(
            r"passed over: the weights under \S*ema\S*\.encoder\.", capsys.readouterr().err
        )


def test_another_window_is_said():
    """Where the file has the buffers: the coordinates are of the window that it was pretrained with."""
    source, state = random_model(), random_model().state_dict()
    table = log_coordinates((6, 6), 8)[None]
    for s in (0, 1):
        state[f"encoder.layers.{s}.blocks.0.attn.relative_coords_table"] = table
    report = load_weights(random_model(), state)
    assert "pretrained with windows of 8, not 4: create the model with pretrained_window_sizes=(8, 8)" in str(report)
    model = create_model("swinv2_atto", 48, 6, pretrained_window_sizes=(8, 8))
    assert "pretrained with" not in str(load_weights(model, state)) and same(model, source)


def test_timm_files_with_a_mask_token_a_fused_bias_or_a_classifier():
    source = random_model()
    state = layouts.to_timm(source.state_dict()) | {"mask_token": source.encoder.mask_token.detach()}
    state |= {"head.fc.weight": torch.randn(10, 64), "head.fc.bias": torch.randn(10)}
    for key in [k for k in state if k.endswith("q_bias")]:
        q, v = state.pop(key), state.pop(key.replace("q_bias", "v_bias"))
        state[key.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
        state[key.replace("q_bias", "k_bias")] = torch.zeros_like(q)
    model = random_model(seed=1)
    report = load_weights(model, state)
    assert report.layout == "timm" and report.kept == HEAD and same(model, source, but=HEAD)
    state["layers.0.blocks.1.attn.qkv.bias"][40] = 1.0  # a bias on the keys: not this model
    assert "encoder.layers.0.blocks.1.attn.qkv.bias" in refusal(random_model(), state)


@pytest.mark.parametrize("layout", ["official", "hf"])
def test_what_no_file_filled_is_not_written(tmp_path, capsys, layout):
    """A backbone converted: not with a random mask token and head, which nobody could tell from trained ones."""
    source = save_weights(random_model(), tmp_path / "timm.pth", "timm")
    target = tmp_path / "out.safetensors"
    words = ["weights", "convert", str(source), str(target), "--model", "swinv2_atto", "--layout", layout]
    assert cli.main(words) == 0 and f"kept as they were: {TOKEN}, " in capsys.readouterr().err
    path = target if target.is_file() else next(target.glob("*.safetensors"))
    assert not any("decoder" in k or "mask_token" in k for k in weights.read(path))
    model = random_model(seed=1)
    assert load_weights(model, path).kept == (TOKEN, *HEAD) and same(model, random_model(), but=(TOKEN, *HEAD))
    with pytest.raises(UserError, match="holds no encoder.mask_token: to predict pixels needs the mask token and"):
        load_weights(model, path, head=True)


def test_a_file_of_two_heads_layout_is_found_without_the_base_prefix():
    """`Swinv2Model` and `Swinv2ForImageClassification`: their `encoder.` is not ours."""
    source, model = random_model(), random_model(seed=1)
    names = layouts.to_hf(source.state_dict())
    bare = {k.removeprefix("swinv2."): v for k, v in names.items() if k not in HEAD and "mask_token" not in k}
    assert load_weights(model, bare).kept == (TOKEN, *HEAD) and same(model, source, but=(TOKEN, *HEAD))
    model = random_model(seed=1)
    named = {f"swinv2.{k}": v for k, v in bare.items()} | {"classifier.weight": torch.randn(10, 64)}
    assert load_weights(model, named).unused == ("classifier.weight",) and same(model, source, but=(TOKEN, *HEAD))


def test_values_are_cast_to_the_models_dtype(tmp_path):
    source = random_model().bfloat16()
    model = random_model(seed=1)
    load_weights(model, save_weights(source, tmp_path / "hf", "hf") / "model.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert same(model, source.float())
    half = random_model(seed=1).bfloat16()
    load_weights(half, random_model().state_dict())
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and same(half.float(), source)


def test_another_size_is_named():
    line = refusal(random_model("swinv2_atto"), random_model("swinv2_femto").state_dict())
    assert (
        "load it into swinv2_femto" in line and "embed_dim 64, depths 2-2, the model embed_dim 32, depths 2-2" in line
    )
    assert "71 of another shape" in line and "(1, 1, 64) float32 in the file, (1, 1, 32) float32 here" in line
    with torch.device("meta"):
        base = create_model("swinv2_base").state_dict()
    assert "load it into swinv2_base" in refusal(random_model("swinv2_atto"), base)
    odd = small_model(depths=(1, 2), window=4)
    line = refusal(random_model("swinv2_atto"), odd.state_dict())
    assert (
        "depths 1-2" in line
        and "no size in swinv2_atto, " in line
        and "missing (first encoder.layers.0.blocks.1." in line
    )


def test_half_a_head_is_refused_and_not_strict_takes_what_fits():
    state = random_model(seed=1).state_dict()
    del state["decoder.0.bias"]
    state["encoder.extra"] = torch.ones(3)
    state["encoder.norm.weight"] = torch.ones(7)
    model = random_model()
    line = refusal(model, state)
    assert same(model, random_model()), "an error leaves the model as it was"
    assert "1 missing (first decoder.0.bias), 1 unknown (first encoder.extra), 1 of another shape" in line
    model = random_model()
    report = load_weights(model, state, strict=False)
    assert set(report.kept) == {"decoder.0.bias", "encoder.norm.weight"} and report.unused == ("encoder.extra",)
    assert same(model, random_model(seed=1), but=report.kept)
    quantised = {k: v.to(torch.int8) for k, v in random_model().state_dict().items()}
    assert "int8" in refusal(random_model(), quantised, strict=False)


def test_numbers_that_are_not_finite_are_named():
    state = random_model(seed=1).state_dict()
    state["encoder.norm.weight"] = state["encoder.norm.weight"].clone()
    state["encoder.norm.weight"][:2] = torch.tensor([float("nan"), float("inf")])
    model = random_model()
    for strict in (True, False):
        line = refusal(model, state, strict)
        assert "tensor encoder.norm.weight holds NaN or infinity (2 of 64 numbers); its training diverged" in line
    assert same(model, random_model())
    large = random_model().state_dict()
    large["decoder.0.bias"] = torch.full_like(large["decoder.0.bias"], 1e9)
    load_weights(random_model(), large)
    assert "decoder.0.bias holds NaN or infinity (192 of 192" in refusal(random_model().half(), large)  # overflows here


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ("no Swin V2 weights in a known layout", "no tensors, but a dict")),
        ({"a": 1}, ("no tensors, but a dict of a",)),
        ([torch.ones(1)], ("but a list",)),
        ({"model": {"x": torch.ones(1)}}, ("no Swin V2 weights in a known layout", "its tensors are model.x")),
        ({"state": {}, "param_groups": [{"lr": 1}]}, ("a dict of state, param_groups",)),
        ({"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, ("an optimiser's", "optimizer.state.0.exp_avg")),
        ({"model": {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(9, 3)}}, ("Swin V1",)),
        ({"cls_token": torch.ones(1), "patch_embed.proj.weight": torch.ones(1)}, ("a ViT or MAE (tensor cls_token)",)),
        ({"model": {"blocks.0.attn.qkv.weight": torch.ones(1)}}, ("a ViT or MAE (tensor model.blocks.0.attn.qkv",)),
        ({f"vit.{k}": torch.ones(1) for k in ("encoder.layer.0.x", "embeddings.cls_token")}, ("(tensor vit.embed",)),
        ({"layer1.0.conv1.weight": torch.ones(1)}, ("a ResNet (tensor layer1.0.conv1.weight)",)),
        ({"features.1.0.attn.cpb_mlp.0.weight": torch.ones(1)}, ("torchvision's layout",)),
        ({"backbone.stages.0.blocks.0.attn.w_msa.x": torch.ones(1)}, ("OpenMMLab",)),
        ({k: random_model().state_dict() for k in ("student", "teacher")}, ("2 networks", "'student.encoder.'")),
        ({w + k: v for k, v in random_model().state_dict().items() for w in ("", "_orig_mod.")}, ("twice",)),
    ],
)  # fmt: skip
def test_what_is_no_swin_v2_is_named_with_its_first_tensor(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    line = refusal(random_model(), tmp_path / "w.pth")
    assert line.startswith(str(tmp_path / "w.pth")) and all(word in line for word in words), line
    with pytest.raises(UserError, match=re.escape(words[-1])):
        inspection.lines(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(tmp_path, suffix):
    model = random_model()
    path = tmp_path / f"w{suffix}"
    assert str(path) in refusal(model, path) and "no such file" in refusal(model, path)
    save_weights(model, path)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], whole[:5]):
        path.write_bytes(content)
        line = refusal(model, path)
        assert line.startswith(f"{path} cannot be read: cut short or no weights file") and line.endswith("again")
    texts = {b"": "is empty: copy or download it again", b"<!DOCTYPE html>\n" * 9: "download the file itself"}
    texts |= {
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        b"Notes": "text and no weights (it begins with",
    }
    for content, words in texts.items():
        path.write_bytes(content)
        assert str(path) in refusal(model, path) and words in refusal(model, path)
    assert "is a folder without model.safetensors" in refusal(model, tmp_path)
    assert "weights from a SimMIM: give a file" in refusal(model, model)


def test_a_file_is_what_its_bytes_are_not_its_name(tmp_path):
    """Files of the hub's cache have no suffix; transformers' come in a folder."""
    source, model = random_model(), random_model(seed=1)
    save_weights(source, tmp_path / "w.pth").rename(tmp_path / "w.safetensors")
    assert load_weights(model, tmp_path / "w.safetensors").kept == () and same(model, source)
    save_weights(source, tmp_path / "model.safetensors", "hf")
    model = random_model(seed=1)
    assert load_weights(model, tmp_path).layout == "hf" and same(model, source)


class Boom:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a file ran')",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path, legacy):
    path = tmp_path / "w.pth"
    content = {"extra": Boom(), "model": random_model().state_dict()}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    line = refusal(random_model(), path)
    assert re.search(r"it holds a Python object \(\S*exec\), and foreign code is never run", line), line


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model = random_model()
    path = save_weights(model, tmp_path / "w.pth")
    whole = path.read_bytes()

    def full(_state, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*w.pth: .*No space left on device; free some space"):
        save_weights(random_model(seed=1), path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"):
        save_weights(model, path / "below" / "w.safetensors")
    with pytest.raises(UserError, match="unknown layout 'simin': did you mean 'simmim'"):
        save_weights(model, path, "simin")


NEW = {"attention.self.query": "attention.q_proj", "attention.self.key": "attention.k_proj"}
NEW |= {"attention.self.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
NEW |= {"attention.self.": "attention.", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}


def renamed(name):
    for old, new in NEW.items():
        name = name.replace(old, new)
    return name


OLD_NAMES = [f"attention.self.{p}" for p in ("query.weight", "query.bias", "key.weight", "value.weight", "value.bias")]
OLD_NAMES += ["attention.self.logit_scale"]
OLD_NAMES += [f"attention.self.continuous_position_bias_mlp.{p}" for p in ("0.weight", "0.bias", "2.weight")]
OLD_NAMES += [
    f"{m}.{p}"
    for m in ("attention.output.dense", "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
    for p in ("weight", "bias")
]


@pytest.fixture
def installed(monkeypatch):
    """Let the installed transformers have these names of a block; None = not installed."""
    yield lambda names: (
        monkeypatch.setattr(layouts, "_installed_names", lambda: names),
        layouts.hf_block_names.cache_clear(),
    )
    layouts.hf_block_names.cache_clear()


@pytest.mark.parametrize(
    ("names", "query"),
    [
        (None, "attention.self.query.weight"),
        (OLD_NAMES, "attention.self.query.weight"),
        ([renamed(n) for n in OLD_NAMES], "attention.q_proj.weight"),
    ],
    ids=["not installed", "5.24", "as its Swin V1"],
)
def test_both_generations_of_transformers_names(tmp_path, installed, names, query):
    """Both are read; the one that is written is that of the installed transformers."""
    installed(names)
    source = random_model()
    path = save_weights(source, tmp_path / "model.safetensors", "hf") / "model.safetensors"
    written = weights.read(path)
    assert f"swinv2.encoder.layers.1.blocks.0.{query}" in written
    for state in (written, {renamed(k): v for k, v in written.items()}):
        model = random_model(seed=1)
        report = load_weights(model, state)
        assert report.layout == "hf" and report.kept == report.unused == () and same(model, source)
    state["swinv2.encoder.layers.1.blocks.0.attention.k_proj.bias"] = torch.ones(64)
    assert "unknown (first encoder.layers.1.blocks.0.attn.key.bias)" in refusal(random_model(), state)


def test_a_third_kind_of_transformers_names_is_said(installed):
    installed([n.replace("layernorm_before", "norm_one") for n in OLD_NAMES])
    with pytest.raises(UserError, match=r"names for Swin V2 that are not known here"):
        layouts.to_hf(random_model().state_dict())


def shown(path):
    """The rows of `weights show`."""
    first, *rows = inspection.lines(str(path))
    assert first == str(path)
    return {row[:10].strip(): row[11:] for row in rows}


def test_show_says_what_a_file_is(tmp_path, monkeypatch, capsys):
    model = random_model()
    rows = shown(save_weights(model, tmp_path / "own.pth"))
    assert rows == {
        "layout": "simmim",
        "size": "swinv2_atto (embed_dim 32, depths 2-2)",
        "window": "not in the file; the tensors are the same for all windows",
        "input": "not in the file",
        "target": "not in the file, raw or normalized",
        "missing": "none",
        "extra": "none",
        "numbers": "156,998 parameters in 80 of 80 tensors, float32; all finite",
    }
    save_weights(model.bfloat16(), tmp_path / "hf" / "model.safetensors", "hf")
    (tmp_path / "hf" / "config.json").write_text('{"window_size": 4, "image_size": 32}')
    rows = shown(tmp_path / "hf")
    assert (rows["layout"], rows["window"], rows["input"]) == ("hf", "4 (config.json)", "32 px (config.json)")
    assert "bfloat16" in rows["numbers"]
    name = "simmim_pretrain__swinv2_base__img192_window12__800ep.pth"
    rows = shown(save_weights(random_model(), tmp_path / name, "timm"))
    assert (rows["window"], rows["input"]) == ("12 (the file's name)", "192 px (the file's name)")
    assert rows["missing"] == ", ".join((TOKEN, *HEAD)) and rows["layout"] == "timm"
    timm = {"arch": "swinv2_base_window12_192", "state_dict": layouts.to_timm(random_model().state_dict())}
    torch.save(timm, tmp_path / "timm.pth")
    assert (shown(tmp_path / "timm.pth")["window"], shown(tmp_path / "timm.pth")["input"]) == (
        "12 (the file)",
        "192 px (the file)",
    )
    rows = shown(networks.FOLDER / "photos-normalised.safetensors")
    assert rows["target"] == "normalized (the file's metadata)" and rows["window"] == "4 (the file's metadata)"
    content = official_checkpoint(random_model(), monkeypatch)
    swin = {"SWIN": CfgNode({"WINDOW_SIZE": 7}), "SWINV2": CfgNode({"WINDOW_SIZE": 12})}
    content["config"]["MODEL"] |= swin | {"SIMMIM": CfgNode({"NORM_TARGET": CfgNode({"ENABLE": True})})}
    torch.save(content, tmp_path / "ckpt.pth")
    rows = shown(tmp_path / "ckpt.pth")
    assert rows["target"] == "normalized (config in the file)" and rows["window"] == "4-4 by stage (its buffers)"
    assert rows["layout"] == "simmim; taken off: model." and "and 6 more" in rows["extra"]
    content["model"] = {k: v for k, v in content["model"].items() if "coords" not in k}
    content["model"]["decoder.0.bias"] = torch.full((192,), torch.inf)
    content["model"]["encoder.norm.bias"] = torch.ones(7)
    torch.save(content, tmp_path / "ckpt.pth")
    rows = shown(tmp_path / "ckpt.pth")
    assert rows["window"] == "12 (config in the file)" and "decoder.0.bias holds NaN or infinity" in rows["numbers"]
    assert rows["wrong"].startswith("tensors 1 of another shape or kind (first encoder.norm.bias: (7,)")
    assert cli.main(["weights", "show", str(tmp_path / "own.pth")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'own.pth'}\n  layout   simmim\n")
