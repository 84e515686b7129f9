"""Segmentation as a task: its loss, one code path for all sizes, resuming, several processes, what a record holds."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ade_folders import ALONE, ade_folder, save
from child_processes import PATIENCE
from random_weights import close
from segment_processes import gradients
from test_finetune import tiny_data

from simmim_lite.data import scene_layouts
from simmim_lite.data.ade20k import IGNORED, open_ade20k
from simmim_lite.data.annotations import AnnotatedData
from simmim_lite.errors import UserError
from simmim_lite.model.simmim import create_model
from simmim_lite.model.sizes import SIZES, Size
from simmim_lite.model.upernet import enlarge
from simmim_lite.training import loop as loop_module
from simmim_lite.training import pretrain as pretrain_module
from simmim_lite.training.dense import Dense
from simmim_lite.training.distributed import Team
from simmim_lite.training.loop import Loop, work
from simmim_lite.training.miou import areas, scores
from simmim_lite.training.run import Run, read_record, transfer_path
from simmim_lite.training.segment import Segmentation, build_upernet
from simmim_lite.training.transfer import once, transfer

pytestmark = pytest.mark.xdist_group("segmentation")  # its processes are started once

TINY = Size("swinv2_four", 32, (1, 1, 2, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ade_folder(tmp_path_factory.mktemp("ade"), 10, 7)


def tiny(folder, **options):
    defaults = {"task": "segment", "data": f"ade20k:{folder}", "steps": 6, "batch_size": 4, "channels": 8}
    return Dense(**{**defaults, "eval_every": 2, "warmup_steps": 2, "drop_path": 0.2, **options})


def task(spec, us=ALONE, weights=None):
    return Segmentation(spec, open_ade20k(spec.data, spec.image_size), weights, us)


def test_the_loss_is_the_mean_over_labelled_pixels(folder):
    seg = task(tiny(folder, drop_path=0.0, auxiliary=0.3))
    seg.model.train()
    for module in seg.model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    loss = seg.loss(seg.model, 1)
    images, labels = seg.loader.batch(1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (seg.mean, seg.std))
    main, auxiliary = seg.model((images / 255 - mean) / std)
    expected = 0.0
    for logits, stride, weight in ((main, 4, 1.0), (auxiliary, 4, 0.3)):
        probabilities = enlarge(logits, stride, (32, 32)).softmax(1)
        losses = [
            -probabilities[b, int(labels[b, y, x]), y, x].log() for b, y, x in (labels != IGNORED).nonzero().tolist()
        ]  # by hand: pixel by pixel
        expected += weight * torch.stack(losses).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_batch_without_labels_has_loss_0_and_finite_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(AnnotatedData, "name_unseen", lambda *_, **__: None)  # all unlabelled is refused
    folder = ade_folder(tmp_path, 4, 2)
    for path in (folder / "annotations/training").iterdir():
        save(path, np.zeros((32, 32), np.uint8))
    seg = task(tiny(folder))
    loss = seg.loss(seg.model.train(), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() == 0 for p in seg.model.parameters() if p.requires_grad)
    record = work(tiny(folder, steps=1), seg, ALONE, digest="")
    assert record["status"] == "done" and record["curve"][-1]["train_loss"] == 0


def test_an_unlabelled_image_adds_nothing(folder):
    """Two batches, one with an image whose labels are taken away: the loss is that of the rest."""
    seg = task(tiny(folder))
    images, labels = seg.loader.batch(0)
    logits = torch.randn(4, 11, 8, 8)
    without = labels.clone()
    without[0] = IGNORED
    total = seg._sum(logits, without.long(), 4)
    assert total.item() == pytest.approx(seg._sum(logits[1:], labels[1:].long(), 4).item(), rel=1e-5)


def test_training_lowers_the_loss_and_the_record_is_whole(folder):
    spec = tiny(folder, steps=60, lr=4e-3, eval_every=20, test_images=5)
    seg = task(spec)
    record = work(spec, seg, ALONE, digest="d")
    assert record["kind"] == "segment" and record["status"] == "done" and record["where"]["data_digest"] == "d"
    losses = [point["train_loss"] for point in record["curve"]]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]
    assert record["cost"]["unique_images"] == 10 and record["cost"]["flops"] == seg.flops * 60 * 4
    assert {k: s["n_test"] for k, s in record["transfer"].items()} == {"miou": 5, "pixel_accuracy": 5}
    first = record["examples"][0]
    assert [e["file"] for e in record["examples"]] == list(seg.data.test.images[:5])
    drawn = np.repeat(first["runs"][::2], first["runs"][1::2]).reshape(first["height"], first["width"])
    # the same by hand, an image at a time
    seg.model.eval()
    table = []
    for place in range(5):
        image, labels = seg.data.test.load(place)
        mean, std = (torch.tensor(v)[:, None, None] for v in (seg.mean, seg.std))
        with torch.no_grad():
            logits = seg.model(((torch.from_numpy(image) / 255 - mean) / std)[None])[0]
        guess = F.interpolate(logits, (32, 32), mode="bilinear").argmax(1)[0].numpy()
        assert place or np.array_equal(guess, drawn)
        table.append(areas(guess, labels, 11, IGNORED))
    expected = scores(np.stack(table), 10)
    assert record["transfer"]["miou"]["score"] == pytest.approx(expected["miou"]["score"], abs=1e-3)


def test_equal_specs_give_equal_numbers_and_seeds_differ(folder):
    records = [work(spec, task(spec), ALONE, digest="") for spec in [tiny(folder, seed=s) for s in (0, 0, 1)]]
    first, again, other = ([p["train_loss"] for p in r["curve"]] for r in records)
    assert first == again != other and records[0]["transfer"] == records[1]["transfer"]


def test_a_killed_run_goes_on_bit_for_bit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "CHECKPOINT_SECONDS", 0)
    spec, digest = tiny(folder), "d"
    whole = task(spec)
    curve, _ = Loop(spec, whole, ALONE, folder=tmp_path / "whole", data_digest=digest).run()
    killed = task(spec)
    real = killed.loss

    def kill(net, step):
        if step == 3:
            raise KeyboardInterrupt
        return real(net, step)

    killed.loss = kill
    with pytest.raises(KeyboardInterrupt):
        Loop(spec, killed, ALONE, folder=tmp_path / "killed", data_digest=digest).run()
    torch.rand(7)  # what happens in between draws nothing that a step would
    resumed = task(spec)
    loop = Loop(spec, resumed, ALONE, folder=tmp_path / "killed", data_digest=digest)
    assert loop.step == 3
    assert loop.run()[0] == curve
    states = [t.model.state_dict() for t in (whole, resumed)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert whole.evaluate() == resumed.evaluate()


def test_a_subset_is_nested_and_too_many_is_one_line(folder):
    few, more = (task(tiny(folder, images=n)).chosen for n in (3, 6))
    assert few.tolist() == more[:3].tolist() and task(tiny(folder, images=3)).unique == 3
    with pytest.raises(UserError, match="images 11: training of ade20k:.* holds 10 images"):
        task(tiny(folder, images=11))


def test_a_batch_does_not_depend_on_workers(folder):
    spec = tiny(folder, image_size=96, augment="scale+crop+colour", statistics="imagenet")
    ahead, alone = task(spec).loader, task(spec).loader
    assert ahead.workers > 0
    alone.workers = 0
    for step in (0, 1, 5):
        assert all(torch.equal(a, b) for a, b in zip(ahead.batch(step), alone.batch(step), strict=True))


@pytest.mark.parametrize("size", [32, 96])  # without workers, and with
def test_a_bad_annotation_is_one_line_from_any_process(tmp_path, size):
    folder = ade_folder(tmp_path, 4, 2)
    save(folder / "annotations/training/ADE_00000001.png", np.full((32, 32), 99, np.uint8))
    with pytest.raises(UserError, match="ADE_00000001.png: class 99 is out of range") as caught:
        spec = tiny(folder, image_size=size, statistics="imagenet")
        work(spec, task(spec), ALONE, digest="")
    assert "\n" not in str(caught.value)


def test_a_batch_of_one_is_one_line(folder):
    with pytest.raises(UserError, match="batch_size 1: batch normalisation needs 2 images .* at least 2"):
        task(tiny(folder, batch_size=1))
    with pytest.raises(UserError, match="batch_size 2: .* at least 4"):
        task(tiny(folder, batch_size=2), Team(torch.device("cpu"), 0, 2))


def test_augmentations_belong_to_tasks(folder):
    with pytest.raises(UserError, match="unknown augment 'scale'"):
        tiny(folder, augment="scale")
    assert Dense.of("segment", Run()).batch_size == 32 and Dense.of("detect", Run()).batch_size == 16


def test_outputs_that_are_not_finite_fail(folder):
    seg = task(tiny(folder))
    with torch.no_grad():
        seg.model.classifier[1].bias.fill_(torch.nan)
    parts, reason = seg.evaluate()
    assert parts == {} and reason == "the trained network's outputs were not finite; lower lr (0.001)"


def test_the_start_is_the_pretrained_encoder_and_heads_are_the_same(folder):
    pretrained = create_model("swinv2_atto", seed=7)
    run = Run(model="swinv2_atto")
    weights = pretrained.state_dict()
    trained = build_upernet(tiny(folder, run=run), 11, weights).state_dict()
    scratch = build_upernet(tiny(folder), 11).state_dict()
    for name, value in trained.items():
        if name.startswith("encoder."):
            assert torch.equal(value, weights[name])
        else:
            assert torch.equal(value, scratch[name])
    assert not torch.equal(
        scratch["encoder.layers.0.blocks.0.attn.qkv.weight"], weights["encoder.layers.0.blocks.0.attn.qkv.weight"]
    )
    with pytest.raises(UserError, match="needs the run and its weights"):
        build_upernet(tiny(folder, run=run), 11)
    groups = task(tiny(folder, run=run, layer_decay=0.5), weights=weights).groups()
    scale = {n: g["scale"] for g in groups for n in g["names"]}
    assert scale["fuse.0.weight"] == scale["norms.0.weight"] == scale["encoder.norm.weight"] == 1
    assert scale["encoder.patch_embed.proj.weight"] == 0.5**5
    decayed = {n for g in groups if g["weight_decay"] for n in g["names"]}
    assert "fuse.0.weight" in decayed and not any(
        "norm" in n or n.endswith("bias") or n == "fuse.1.weight" for n in decayed
    )


def test_scenes_by_the_verb(tmp_path, monkeypatch):
    """`transfer` on scenes: pretrained beside scratch, both kept."""
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(scene_layouts, "ADE_SPLITS", {"training": (3, 16), "validation": (2, 9)})
    monkeypatch.setattr(pretrain_module, "open_for_training", lambda *a, **k: tiny_data())
    run = Run(image_size=16, images=32, steps=3, batch_size=8, val_images=8, val_masks=1, probe_labels=0)
    options = {"steps": 3, "batch_size": 4, "channels": 8, "images": 8}
    result = transfer(run, "segment", runs_dir=tmp_path, **options)
    trained, baseline = result["trained"], result["baseline"]
    assert trained["status"] == baseline["status"] == "done" and trained["run"] == run.to_dict()
    assert set(result["lift"]) == {"miou", "pixel_accuracy"} and trained["curve"] != baseline["curve"]
    assert trained["spec"]["image_size"] == 16 and trained["cost"]["unique_images"] == 8
    assert transfer(run, "segment", runs_dir=tmp_path, **options) == result


def test_the_recipe_at_full_size_takes_a_step(tmp_path, monkeypatch):
    """upernet-160k on a folder of ADE20K's layout: 512 px crops, bf16, 512 x 683 at test, 150 classes."""
    monkeypatch.setitem(SIZES, TINY.name, TINY)
    folder = ade_folder(tmp_path / "ade", 3, 2, sizes=((96, 128), (100, 96)))
    (folder / "classes.txt").unlink()
    spec = Dense.recipe("upernet-160k", 3, model=TINY.name, data=f"ade20k:{folder}", steps=1, batch_size=2, channels=16)
    assert (spec.image_size, spec.lr, spec.weight_decay, spec.auxiliary) == (512, 6e-5, 0.01, 0.4)
    sides = []
    real = Segmentation._predict
    monkeypatch.setattr(
        Segmentation, "_predict", lambda s, x, size: sides.append(tuple(x.shape[-2:])) or real(s, x, size)
    )
    record, new = once(spec, runs_dir=tmp_path, device="cpu")
    assert new and record["status"] == "done" and np.isfinite(record["curve"][0]["train_loss"])
    assert sorted(sides) == [(512, 683), (533, 512)] and record["examples"] == []
    assert record["transfer"]["miou"]["n_test"] == 2
    assert read_record(transfer_path(tmp_path, spec.key)) == record


def test_the_recipes_learning_rate():
    spec = Dense.recipe("upernet-160k", 20_210)
    assert (spec.steps, spec.batch_size, spec.warmup_steps, spec.clip_grad) == (160_000, 16, 1500, None)
    assert spec.lr_at(0) == pytest.approx(6e-5 * 1e-6)
    assert spec.lr_at(750) == pytest.approx(6e-5 * (1 - 750 / 160_000) * 0.5, rel=1e-5)
    assert spec.lr_at(80_000) == pytest.approx(3e-5) and spec.lr_at(159_999) == pytest.approx(6e-5 / 160_000)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found, on a folder whose images differ in how much of them is labelled."""
    out = tmp_path_factory.mktemp("two")
    folder = ade_folder(out / "ade", 4, 5)
    numbers = np.zeros((32, 32), np.uint8)
    numbers[:4] = 1
    save(folder / "annotations/training/ADE_00000001.png", numbers)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", here / "segment_processes.py"]
    done = subprocess.run(
        [sys.executable, *words, folder, out], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_are_replicas(two):
    _, (first, second) = two
    assert first["reason"] is None and first["curve"] == second["curve"] and first["parts"] == second["parts"]
    assert first["parts"]["transfer"]["miou"]["n_test"] == 5 and len(first["parts"]["examples"]) == 5
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in first["model"])


def test_a_split_batch_has_the_loss_and_gradients_of_the_whole(two):
    folder, (first, second) = two
    whole = gradients(str(folder))
    assert first["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-5) and first["loss"] == second["loss"]
    assert set(first["grads"]) == set(whole["grads"])
    assert all(close(first["grads"][k], whole["grads"][k], 1e-5) for k in whole["grads"])
