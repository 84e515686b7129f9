"""Fine-tuning: which layer learns how fast, what decays, and that equal specs give equal numbers."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from random_weights import random_model

from simmim_lite.data import scenes
from simmim_lite.data.sources import Data, Split
from simmim_lite.errors import UserError
from simmim_lite.model.simmim import create_model
from simmim_lite.model.swin import SwinV2
from simmim_lite.training import finetune as finetune_module
from simmim_lite.training import inputs as inputs_module
from simmim_lite.training.classifier import Classifier, layer_id, parameter_groups
from simmim_lite.training.finetune import FineTune, build_classifier, finetune
from simmim_lite.training.run import Run

BASE = (2, 2, 18, 2)

#: swinv2_base by hand (FACTS 4): patch embedding, then stages of 2, 2, 18, 2 blocks, merges after 2, 4 and 22 blocks.
BASE_IDS = {
    "encoder.patch_embed.proj.weight": 0,
    "encoder.patch_embed.norm.bias": 0,
    "encoder.mask_token": 0,
    "encoder.layers.0.blocks.0.attn.qkv.weight": 1,
    "encoder.layers.0.blocks.1.norm2.weight": 2,
    "encoder.layers.0.downsample.reduction.weight": 2,
    "encoder.layers.0.downsample.norm.bias": 2,
    "encoder.layers.1.blocks.0.mlp.fc1.weight": 3,
    "encoder.layers.1.blocks.1.attn.logit_scale": 4,
    "encoder.layers.1.downsample.reduction.weight": 4,
    "encoder.layers.2.blocks.0.attn.cpb_mlp.0.weight": 5,
    "encoder.layers.2.blocks.9.attn.q_bias": 14,
    "encoder.layers.2.blocks.10.attn.v_bias": 15,
    "encoder.layers.2.blocks.17.mlp.fc2.bias": 22,
    "encoder.layers.2.downsample.norm.weight": 22,
    "encoder.layers.3.blocks.0.attn.proj.weight": 23,
    "encoder.layers.3.blocks.1.attn.proj.bias": 24,
    "encoder.norm.weight": 25,
    "encoder.norm.bias": 25,
    "head.weight": 25,
    "head.bias": 25,
}


@pytest.mark.parametrize("name", BASE_IDS)
def test_layer_ids_of_swinv2_base(name):
    assert layer_id(name, BASE) == BASE_IDS[name]


def test_every_layer_of_swinv2_base_has_its_learning_rate():
    model = Classifier(SwinV2(embed_dim=32, depths=BASE), 1000)  # as deep and named as swinv2_base, and quick to build
    names = [name for name, _ in model.named_parameters()]
    assert set(BASE_IDS) <= set(names)
    groups = parameter_groups(model, 0.75, 0.05)
    assert sorted(n for g in groups for n in g["names"]) == sorted(names)
    assert {layer_id(n, BASE) for n in names} == set(range(26))
    for group in groups:
        (i,) = {layer_id(n, BASE) for n in group["names"]}
        assert group["scale"] == pytest.approx(0.75 ** (25 - i), rel=1e-12)
    scale = {n: g["scale"] for g in groups for n in g["names"]}
    assert scale["head.weight"] == 1 and scale["encoder.patch_embed.proj.weight"] == pytest.approx(7.5254e-4, rel=1e-4)
    assert {g["scale"] for g in parameter_groups(model, 1.0, 0.05)} == {1.0}


def test_no_decay_groups_are_exactly_these():
    model = Classifier(create_model("swinv2_atto").encoder, 10)
    groups = parameter_groups(model, 0.8, 0.05)
    decayed = {n for g in groups if g["weight_decay"] for n in g["names"]}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.05}
    blocks = [f"encoder.layers.{s}.blocks.{b}." for s in range(2) for b in range(2)]
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert decayed == {
        "encoder.patch_embed.proj.weight",
        "encoder.layers.0.downsample.reduction.weight",
        "head.weight",
        *(block + matrix for block in blocks for matrix in matrices),
    }
    free = {n for g in groups if not g["weight_decay"] for n in g["names"]}
    vectors = ("attn.q_bias", "attn.v_bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias", "attn.logit_scale")
    norms = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
    bias_mlp = ("attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight")
    ends = ("patch_embed.proj.bias", "patch_embed.norm", "layers.0.downsample.norm", "norm", "mask_token")
    assert free == {
        "head.bias",
        *(block + name for block in blocks for name in (*vectors, *norms, *bias_mlp)),
        *(f"encoder.{e}{k}" for e in ends for k in ((".weight", ".bias") if e.endswith("norm") else ("",))),
    }


def test_learning_rate_warms_up_and_falls_to_the_floor():
    spec = FineTune(steps=100, warmup_steps=20, lr=1e-3)
    rates = [spec.lr_at(s) for s in range(100)]
    assert rates[0] == pytest.approx(2e-7) and rates[10] == pytest.approx((1e-3 + 2e-7) / 2)
    assert rates[20] == max(rates) == 1e-3 and rates[99] == pytest.approx(2e-7)
    assert all(a < b for a, b in zip(rates[:20], rates[1:21], strict=True))
    assert all(a > b for a, b in zip(rates[20:], rates[21:], strict=False))
    # half way down the cosine, between steps 59 and 60
    assert (rates[59] + rates[60]) / 2 == pytest.approx((1e-3 + 2e-7) / 2)
    assert FineTune(steps=1, warmup_steps=0).lr_at(0) == FineTune().lr


def test_keys_tell_specs_apart_and_survive_a_round_trip():
    run = Run(model="swinv2_femto", images=64, precision="bf16", window_size=8)
    pretrained, scratch = FineTune.of(run, steps=50), FineTune.scratch(run, steps=50, layer_decay=0.5)
    assert (pretrained.init, scratch.init) == ("pretrained", "scratch")
    assert pretrained.model == scratch.model == "swinv2_femto" and scratch.window_size == 8
    assert pretrained.precision == "bf16" and scratch.layer_decay == 1.0
    assert scratch == FineTune.scratch(dataclasses.replace(run, images=512, steps=7), steps=50)
    others = [dataclasses.replace(pretrained, seed=1), FineTune.of(dataclasses.replace(run, images=512), steps=50)]
    assert len({s.key for s in (pretrained, scratch, *others)}) == 4
    assert pretrained.key.startswith("femto-scenes-pretrained-l4000-t50-s0-")
    for spec in (pretrained, scratch):
        assert FineTune.from_dict(spec.to_dict()) == spec and FineTune.from_dict(spec.to_dict()).key == spec.key
    with pytest.raises(UserError, match="did you mean 'layer_decay'"):
        FineTune.from_dict({"layer_deca": 1})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "swinv2_ato"}, "did you mean 'swinv2_atto'"),
        ({"labels": 0}, "labels is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"augment": "flop"}, "did you mean 'flip'"),
        ({"image_size": 30}, "image_size 30"),
        ({"window_size": 9}, "window_size 9"),
        ({"model": "swinv2_femto", "run": Run()}, "swinv2_atto"),
    ],
)
def test_wrong_fields_are_one_line(fields, words):
    with pytest.raises(UserError, match=words) as caught:
        FineTune(**fields)
    assert "\n" not in str(caught.value)


def tiny_data(n=64, size=16, labels=True):
    """Scenes as a source, n a split."""

    def split(name, seed):
        drawn = scenes.render(seed, np.arange(n), size)
        ids = np.arange(n, dtype=np.uint64) + np.uint64(seed << 40)
        return Split(name, drawn.images, ids, drawn.labels if labels else None, drawn.masks)

    train, val, test, probe = (split(name, seed) for seed, name in enumerate(("train", "val", "test", "probe_train")))
    return Data(
        spec="scenes", name="scenes", image_size=size, train=train, val=val, probe_train=probe, test=test,
        classes=scenes.CLASSES, mean=(0.5,) * 3, std=(0.2,) * 3, digest="tiny", skipped=[],
    )  # fmt: skip


def tiny_spec(**fields):
    return FineTune(
        **{
            "image_size": 16,
            "labels": 40,
            "batch_size": 16,
            "steps": 20,
            "warmup_steps": 4,
            "eval_every": 5,
            "test_images": 50,
        }
        | fields
    )


def test_finetune_is_a_function_of_its_spec():
    data = tiny_data()
    spec = tiny_spec(steps=6, eval_every=1, drop_path=0.3)
    torch.manual_seed(1)
    first = finetune(spec, data)
    torch.manual_seed(2)
    second = finetune(spec, data)
    assert len(first["curve"]) == 6 and first["curve"] == second["curve"] and first["final"] == second["final"]
    for change in (
        {"seed": 1},
        {"drop_path": 0.0},
        {"augment": "none"},
        {"label_smoothing": 0.0},
        {"layer_decay": 0.5},
    ):
        other = finetune(dataclasses.replace(spec, **change), data)
        assert other["curve"] != first["curve"], change


def test_points_of_the_curve_are_means_since_the_point_before():
    data = tiny_data()
    fine = finetune(tiny_spec(steps=7, eval_every=1), data)["curve"]
    coarse = finetune(tiny_spec(steps=7, eval_every=3), data)["curve"]
    losses = [point["train_loss"] for point in fine]
    assert [p["step"] for p in coarse] == [3, 6, 7]
    means = [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
    assert [p["train_loss"] for p in coarse] == pytest.approx(means, rel=1e-5)
    assert [p["lr"] for p in coarse] == [fine[i]["lr"] for i in (2, 5, 6)]


def test_drop_path_draws_by_step_sample_and_block(monkeypatch):
    given, forward = [], Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda m, x, noise: given.append(noise) or forward(m, x, noise))
    for _ in range(2):
        finetune(tiny_spec(steps=2, drop_path=0.3), tiny_data())
    assert torch.equal(given[0], given[2]) and torch.equal(given[1], given[3])
    assert given[0].shape == (16, 4, 2)
    draws = torch.stack(given[:2]).flatten()
    assert draws.min() > 0 and draws.max() < 1 and len(draws.unique()) > 250


def test_a_tiny_run_learns_and_leaves_a_whole_record():
    seen = []
    spec = tiny_spec(lr=4e-3, label_smoothing=0.0, drop_path=0.0, augment="none", labels=32, steps=80)
    record = finetune(spec, tiny_data(), progress=lambda *p: seen.append(p))
    losses = [point["train_loss"] for point in record["curve"]]
    assert losses[0] == pytest.approx(math.log(10), abs=0.2) and losses[-1] < 0.5 * losses[0]
    assert [p["step"] for p in record["curve"]] == list(range(5, 81, 5)) and seen[-1] == (80, 80)
    assert record["curve"][-1]["images_seen"] == 80 * 16 == record["cost"]["images_seen"]
    assert record["cost"]["unique_images"] == 32 and record["cost"]["epochs"] == 40
    assert set(record["cost"]) >= {"flops", "seconds", "core_seconds", "peak_memory_bytes"}
    final = record["final"]
    assert set(final) == {"top1", "low", "high", "n_test"} and final["n_test"] == 50
    assert 0 <= final["low"] <= final["top1"] <= final["high"] <= 1
    assert (record["kind"], record["status"], record["reason"], record["run"]) == ("finetune", "done", None, None)
    assert FineTune.from_dict(record["spec"] | {"run": record["run"]}).key == record["key"]
    assert record["where"]["data_digest"] == "tiny"
    json.dumps(record, allow_nan=False)


def test_labels_follow_their_images():
    """A head alone, on a source whose class is its colour, tells the test images apart."""
    data = tiny_data()

    def coloured(split):
        images = np.zeros_like(split.images)
        images[:] = (np.eye(3, dtype=np.uint8)[split.labels % 3] * 200)[:, :, None, None]
        return dataclasses.replace(split, images=images, labels=split.labels % 3)

    data = dataclasses.replace(
        data, probe_train=coloured(data.probe_train), test=coloured(data.test), classes=("red", "green", "blue")
    )
    assert finetune(tiny_spec(lr=1e-2, labels=20), data)["final"]["top1"] == 1.0


def test_bf16_follows_fp32():
    data, spec = tiny_data(), tiny_spec()
    full, half = finetune(spec, data), finetune(dataclasses.replace(spec, precision="bf16"), data)
    assert half["curve"] != full["curve"]
    for a, b in zip(full["curve"], half["curve"], strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=0.05)


def test_a_loss_that_is_not_finite_is_a_failed_record_without_numbers():
    data, run = tiny_data(), Run(image_size=16)
    weights = {k: v.clone() for k, v in create_model("swinv2_atto", 16).state_dict().items()}
    weights["encoder.norm.weight"][0] = math.nan
    record = finetune(FineTune.of(run, labels=40, steps=10, eval_every=5), data, weights)
    assert record["status"] == "failed" and "not finite at step 0" in record["reason"]
    assert not {"cost", "curve", "final", "transfer"} & set(record)
    assert record["run"] == run.to_dict()


def test_a_source_without_labels_or_with_too_few_is_one_line():
    with pytest.raises(UserError, match="no labels"):
        finetune(tiny_spec(), tiny_data(labels=False))
    with pytest.raises(UserError, match="labels 65: scenes has 64"):
        finetune(tiny_spec(labels=65), tiny_data())


def test_pretrained_weights_are_taken_and_the_head_starts_alike():
    run = Run(image_size=16)
    weights = random_model("swinv2_atto", img_size=16).state_dict()
    model = build_classifier(FineTune.of(run), 10, weights)
    state = model.encoder.state_dict()
    assert {f"encoder.{k}" for k in state} == {k for k in weights if k.startswith("encoder.")}
    assert all(torch.equal(v, weights[f"encoder.{k}"]) for k, v in state.items())
    scratch = build_classifier(FineTune.scratch(run), 10)
    assert torch.equal(scratch.head.weight, model.head.weight) and not scratch.head.bias.any()
    assert 0.01 < scratch.head.weight.std() < 0.03
    for spec, given in ((FineTune.of(run), None), (FineTune.scratch(run), weights)):
        with pytest.raises(UserError, match="weights"):
            build_classifier(spec, 10, given)


def test_a_larger_window_keeps_the_offsets_of_pretraining():
    """FACTS 4: window 12 at 192 px means 12, 12, 12, 6; here 4 at 16 px means 4, 2."""
    run = Run(image_size=16, window_size=4)
    weights = random_model("swinv2_atto", img_size=16).state_dict()
    model = build_classifier(FineTune.of(run, image_size=32, window_size=8), 10, weights).eval()
    assert [layer.blocks[0].attn.pretrained_window for layer in model.encoder.layers] == [4, 2]
    same = build_classifier(FineTune.of(run), 10, weights).eval()
    reference = create_model("swinv2_atto", 16, 4).eval()
    reference.load_state_dict(weights)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(same.encode(x), reference.encode(x), atol=1e-5)
        assert model(torch.cat([x, x], 3)).shape == (2, 10)


def test_layer_decay_holds_the_lower_layers_back(monkeypatch):
    """Adam's first steps are as long as the learning rate, so each layer moves by its own."""
    run, data, built = Run(image_size=16), tiny_data(), []
    weights = random_model("swinv2_atto", img_size=16).state_dict()
    keep = lambda *a: built.append(build_classifier(*a)) or built[-1]  # noqa: E731
    monkeypatch.setattr(finetune_module, "build_classifier", keep)
    moved = {}
    for decay in (0.2, 1.0):
        fields = {"layer_decay": decay, "weight_decay": 0.0, "drop_path": 0.0}
        spec = FineTune.of(run, labels=40, steps=1, warmup_steps=0, lr=2e-3, **fields)
        assert finetune(spec, data, weights)["status"] == "done"
        start = dict(build_classifier(spec, 10, weights).named_parameters())
        moved[decay] = {n: float((p - start[n]).detach().abs().mean()) for n, p in built[-1].named_parameters()}
    assert moved[1.0]["encoder.mask_token"] == 0
    ids = {"encoder.patch_embed.proj.weight": 0, "encoder.layers.0.blocks.1.mlp.fc1.weight": 2, "head.weight": 5}
    for name, i in ids.items():
        assert moved[1.0][name] == pytest.approx(2e-3, rel=0.05)
        assert moved[0.2][name] == pytest.approx(2e-3 * 0.2 ** (5 - i), rel=0.05)


def test_a_step_that_ends_in_nan_is_found_too(monkeypatch):
    """The last step's damage shows in no loss."""
    data = tiny_data()
    monkeypatch.setattr(inputs_module, "features", lambda *a, **k: (torch.full((50, 64), math.nan), None))
    record = finetune(tiny_spec(steps=2), data)
    assert record["status"] == "failed" and "outputs were not finite" in record["reason"] and "final" not in record
