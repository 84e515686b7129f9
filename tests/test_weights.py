"""Weights in and out: every layout, both file kinds, and one clear line for every file that does not fit."""

import pickle
import re
import sys
import types

import pytest
import torch
from random_weights import random_model, randomise, small_model

from simmim_lite.errors import UserError
from simmim_lite.model import weights
from simmim_lite.model.simmim import SimMIM, create_model
from simmim_lite.model.swin import SwinV2
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
    again = save_weights(model, tmp_path / f"again{'' if layout == 'hf' else suffix}", layout)
    again = again / "model.safetensors" if layout == "hf" else again
    first, second = weights._tensors(weights._read(path)), weights._tensors(weights._read(again))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_official_layout_key_by_key(tmp_path):
    """FACTS 5: under `model`, prefix `encoder.`, head `decoder.0.`; these names and no others."""
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
        state[f"{prefix}.attn.relative_coords_table"] = torch.randn(1, 7, 7, 2)
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
    assert len(report.unused) == 9 and all(k.endswith(weights._BUFFERS) for k in report.unused)
    assert str(report).startswith(f"{len(report.loaded)} tensors loaded from the simmim layout; not used: encoder.")


@pytest.mark.parametrize("wrap", ["model", "state_dict", "module."])
def test_an_official_fine_tuned_file(wrap):
    """No prefix, no mask token, a classifier instead of the head."""
    source, model, before = random_model(), random_model(seed=1), random_model(seed=1)
    state = {k.removeprefix("encoder."): v for k, v in source.state_dict().items() if k not in (TOKEN, *HEAD)}
    state |= {"head.weight": torch.randn(10, 64), "head.bias": torch.randn(10)}
    content = {"module." + k: v for k, v in state.items()} if wrap == "module." else {wrap: state, "epoch": 7}
    report = load_weights(model, content)
    assert report.layout == "backbone" and report.kept == (TOKEN, *HEAD)
    assert report.unused == ("head.weight", "head.bias")
    assert same(model, source, but=report.kept) and torch.equal(model.encoder.mask_token, before.encoder.mask_token)


def test_timm_files_with_a_mask_token_a_fused_bias_or_a_classifier():
    source = random_model()
    state = weights._to_timm(source.state_dict()) | {"mask_token": source.encoder.mask_token.detach()}
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


def test_the_merge_moves_between_stages():
    model = small_model(depths=(1, 1, 1), window=4)
    names = weights._to_timm(model.state_dict())
    merges = {k for k in names if "downsample.reduction" in k}
    assert merges == {"layers.1.downsample.reduction.weight", "layers.2.downsample.reduction.weight"}
    assert torch.equal(names["layers.2.downsample.norm.bias"], model.encoder.layers[1].downsample.norm.bias)


def test_query_key_value_are_the_thirds_in_order():
    model = random_model()
    attn = model.encoder.layers[1].blocks[0].attn
    names = weights._to_hf(model.state_dict())
    stem = "swinv2.encoder.layers.1.blocks.0.attention.self."
    for part, rows in zip(("query", "key", "value"), attn.qkv.weight.split(64), strict=True):
        assert torch.equal(names[f"{stem}{part}.weight"], rows)
    assert torch.equal(names[stem + "query.bias"], attn.q_bias) and torch.equal(names[stem + "value.bias"], attn.v_bias)
    assert stem + "key.bias" not in names


def test_a_file_of_two_heads_layout_is_found_without_the_base_prefix():
    """`Swinv2Model` and `Swinv2ForImageClassification`: their `encoder.` is not ours."""
    source, model = random_model(), random_model(seed=1)
    names = weights._to_hf(source.state_dict())
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


def test_weights_carry_over_to_another_window_and_image_size():
    source = random_model(img_size=32, window_size=4)
    model = create_model("swinv2_atto", 48, 6, pretrained_window_sizes=(4, 4))
    assert load_weights(model, source.state_dict()).kept == ()
    assert model.encode(torch.randn(1, 3, 48, 48)).shape == (1, 64, 6, 6)


def test_the_loaded_tensors_are_copies():
    source, model = random_model(), random_model(seed=1)
    load_weights(model, source.state_dict())
    with torch.no_grad():
        source.encoder.mask_token.zero_()
    assert model.encoder.mask_token.abs().min() > 0


def test_another_size_is_named():
    line = refusal(random_model("swinv2_atto"), random_model("swinv2_femto").state_dict())
    assert "load it into swinv2_femto" in line and "embed_dim 64, depths 2-2, the model 32, 2-2" in line
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


def test_an_error_leaves_the_model_as_it_was():
    model, before = random_model(), random_model()
    state = random_model(seed=1).state_dict()
    del state["encoder.norm.bias"]
    line = refusal(model, state)
    assert "1 missing (first encoder.norm.bias)" in line and "strict=False" in line
    assert same(model, before)


def test_half_a_head_is_refused_and_not_strict_takes_what_fits():
    state = random_model(seed=1).state_dict()
    del state["decoder.0.bias"]
    state["encoder.extra"] = torch.ones(3)
    state["encoder.norm.weight"] = torch.ones(7)
    line = refusal(random_model(), state)
    assert "1 missing (first decoder.0.bias), 1 unknown (first encoder.extra), 1 of another shape" in line
    model = random_model()
    report = load_weights(model, state, strict=False)
    assert set(report.kept) == {"decoder.0.bias", "encoder.norm.weight"} and report.unused == ("encoder.extra",)
    assert same(model, random_model(seed=1), but=report.kept)
    quantised = {k: v.to(torch.int8) for k, v in random_model().state_dict().items()}
    assert "int8" in refusal(random_model(), quantised, strict=False)


def test_a_head_for_another_stride_is_refused():
    state = randomise(SimMIM(SwinV2(32, (2, 2), 4, patch_size=4))).state_dict()
    state["decoder.0.weight"], state["decoder.0.bias"] = torch.randn(3072, 64, 1, 1), torch.randn(3072)
    assert "2 of another shape" in refusal(random_model(), state)


def test_swin_v1_is_refused():
    state = {"encoder.layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(49, 3)}
    assert "Swin V1" in refusal(random_model(), {"model": state})


@pytest.mark.parametrize("content", [{}, {"a": 1}, {"fc.weight": torch.ones(2)}, {"model": {"x": torch.ones(1)}}])
def test_no_layout(content):
    assert "no Swin V2 weights in a known layout" in refusal(random_model(), content)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(tmp_path, suffix):
    model = random_model()
    path = tmp_path / f"w{suffix}"
    assert str(path) in refusal(model, path) and "no such file" in refusal(model, path)
    save_weights(model, path)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], whole[:5], b"", b"<!DOCTYPE html>" * 9):
        path.write_bytes(content)
        line = refusal(model, path)
        assert line.startswith(f"{path} cannot be read: cut short or no weights file") and line.endswith("again")
    assert "is a folder" in refusal(model, tmp_path)


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
