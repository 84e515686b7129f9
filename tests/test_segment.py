"""Segmentation as a task: its loss, one code path for all sizes, and what a record holds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ade_folders import ade_folder, save
from tiny import ALONE, NARROW, narrow, segmentation_spec  # noqa: F401 (fixtures)

from simmim_lite.data.ade20k import IGNORED, open_ade20k
from simmim_lite.data.annotations import AnnotatedData
from simmim_lite.errors import UserError
from simmim_lite.model.simmim import create_model
from simmim_lite.training.parallel import Team
from simmim_lite.training.run import Run, read_record, transfer_path
from simmim_lite.training.segment import Segmentation, areas, build_upernet, enlarge, pixel_loss, segmentation_scores
from simmim_lite.training.transfer import once, work
from simmim_lite.training.tuning import Dense


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ade_folder(tmp_path_factory.mktemp("ade"), 10, 7)


def segmentation(folder, team=ALONE, weights=None, **options) -> Segmentation:
    spec = segmentation_spec(folder, **options)
    return Segmentation(spec, open_ade20k(spec.data, spec.image_size), weights, team)


def test_the_loss_is_the_mean_over_labelled_pixels(folder):
    task = segmentation(folder, drop_path=0.0, auxiliary=0.3)
    task.model.train()
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    loss = task.loss(task.model, *task.batch(1))
    images, labels = task.loader.batch(1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (task.mean, task.std))
    expected = 0.0
    for logits, weight in zip(task.model((images / 255 - mean) / std), (1.0, 0.3), strict=True):
        probabilities = enlarge(logits, 4, (32, 32)).softmax(1)
        pixels = (labels != IGNORED).nonzero().tolist()  # by hand: pixel by pixel
        expected += (
            weight * torch.stack([-probabilities[b, int(labels[b, y, x]), y, x].log() for b, y, x in pixels]).mean()
        )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    logits, without = torch.randn(4, 11, 8, 8), labels.clone()
    without[0] = IGNORED  # an unlabelled image adds nothing
    rest = pixel_loss(logits[1:], labels[1:].long(), 4).item()
    assert pixel_loss(logits, without.long(), 4).item() == pytest.approx(rest, rel=1e-5)


def test_a_batch_without_labels_has_loss_0_and_finite_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(AnnotatedData, "name_unseen", lambda *_, **__: None)  # all unlabelled is refused
    folder = ade_folder(tmp_path, 4, 2)
    for path in (folder / "annotations/training").iterdir():
        save(path, np.zeros((32, 32), np.uint8))
    task = segmentation(folder, steps=1)
    loss = task.loss(task.model.train(), *task.batch(0))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() == 0 for p in task.model.parameters() if p.requires_grad)
    record = work(task.spec, task, ALONE, digest="")
    assert record["status"] == "done" and record["curve"][-1]["train_loss"] == 0


def test_training_lowers_the_loss_and_the_record_is_whole(folder):
    task = segmentation(folder, steps=60, lr=4e-3, eval_every=20, test_images=5)
    record = work(task.spec, task, ALONE, digest="d")
    assert record["kind"] == "segment" and record["status"] == "done" and record["where"]["data_digest"] == "d"
    losses = [point["train_loss"] for point in record["curve"]]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]
    assert record["cost"]["unique_images"] == 10 and record["cost"]["flops"] == task.flops * 60 * 4
    assert {k: s["n_test"] for k, s in record["transfer"].items()} == {"miou": 5, "pixel_accuracy": 5}
    first = record["examples"][0]
    assert [e["file"] for e in record["examples"]] == list(task.data.test.images[:5])
    drawn = np.repeat(first["runs"][::2], first["runs"][1::2]).reshape(first["height"], first["width"])
    # the same by hand, an image at a time
    task.model.eval()
    table, (mean, std) = [], (torch.tensor(v)[:, None, None] for v in (task.mean, task.std))
    for place in range(5):
        image, labels = task.data.test.load(place)
        with torch.no_grad():
            logits = task.model(((torch.from_numpy(image) / 255 - mean) / std)[None])[0]
        guess = F.interpolate(logits, (32, 32), mode="bilinear").argmax(1)[0].numpy()
        assert place or np.array_equal(guess, drawn)
        table.append(areas(guess, labels, 11, IGNORED))
    expected = segmentation_scores(np.stack(table), 10)
    assert record["transfer"]["miou"]["score"] == pytest.approx(expected["miou"]["score"], abs=1e-3)


def test_a_batch_depends_on_the_seed_and_not_on_workers(folder):
    options = {"image_size": 96, "augment": "scale+crop+colour", "statistics": "imagenet"}
    ahead, alone, other = (segmentation(folder, **options, seed=s).loader for s in (0, 0, 1))
    assert ahead.workers > 0
    alone.workers = other.workers = 0
    for now in (0, 5):
        assert all(map(torch.equal, ahead.batch(now), alone.batch(now)))
        assert not torch.equal(alone.batch(now)[0], other.batch(now)[0])
    few, more = (segmentation(folder, images=n).chosen for n in (3, 6))
    assert few.tolist() == more[:3].tolist()


@pytest.mark.parametrize("size", [32, 96])  # without workers, and with
def test_a_bad_annotation_is_one_line_from_any_process(tmp_path, size):
    folder = ade_folder(tmp_path, 4, 2)
    save(folder / "annotations/training/ADE_00000001.png", np.full((32, 32), 99, np.uint8))
    with pytest.raises(UserError, match="ADE_00000001.png: class 99 is out of range") as caught:
        task = segmentation(folder, image_size=size, statistics="imagenet")
        work(task.spec, task, ALONE, digest="")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 11}, "images 11: training of ade20k:.* holds 10 images"),
        ({"batch_size": 1}, "batch_size 1: batch normalisation needs 2 images .* at least 2"),
        ({"batch_size": 2, "team": Team(torch.device("cpu"), 0, 2)}, "batch_size 2: .* at least 4"),
        ({"augment": "scale"}, "unknown augment 'scale'"),
        ({"run": Run()}, "needs the run and its weights"),
    ],
)
def test_what_cannot_be_is_one_line(folder, options, words):
    with pytest.raises(UserError, match=words):
        segmentation(folder, **options)


def test_outputs_that_are_not_finite_fail(folder):
    task = segmentation(folder)
    with torch.no_grad():
        task.model.classifier[1].bias.fill_(torch.nan)
    assert task.evaluate() == ({}, "the trained network's outputs were not finite; lower lr (0.001)")


def test_the_start_is_the_pretrained_encoder_and_heads_are_the_same(folder):
    run, weights = Run(model="swinv2_atto"), create_model("swinv2_atto", seed=7).state_dict()
    trained = build_upernet(segmentation_spec(folder, run=run), 11, weights).state_dict()
    scratch = build_upernet(segmentation_spec(folder), 11).state_dict()
    for name, value in trained.items():
        assert torch.equal(value, (weights if name.startswith("encoder.") else scratch)[name])
    name = "encoder.layers.0.blocks.0.attn.qkv.weight"
    assert not torch.equal(scratch[name], weights[name])
    groups = segmentation(folder, run=run, layer_decay=0.5, weights=weights).groups()
    scale = {n: g["scale"] for g in groups for n in g["names"]}
    assert scale["fuse.0.weight"] == scale["norms.0.weight"] == scale["encoder.norm.weight"] == 1
    assert scale["encoder.patch_embed.proj.weight"] == 0.5**5
    decayed = {n for g in groups if g["weight_decay"] for n in g["names"]}
    free = [n for n in decayed if "norm" in n or n.endswith("bias") or n == "fuse.1.weight"]
    assert "fuse.0.weight" in decayed and not free


def test_the_recipe_at_full_size_takes_a_step(tmp_path, narrow, monkeypatch):  # noqa: F811
    """upernet-160k on a folder of ADE20K's layout: 512 px crops, bf16, 512 x 683 at test, 150 classes."""
    folder = ade_folder(tmp_path / "ade", 3, 2, sizes=((96, 128), (100, 96)))
    (folder / "classes.txt").unlink()
    size = {"model": NARROW.name, "steps": 1, "batch_size": 2, "channels": 16}
    spec = Dense.recipe("upernet-160k", 3, data=f"ade20k:{folder}", **size)
    assert (spec.image_size, spec.lr, spec.weight_decay, spec.auxiliary) == (512, 6e-5, 0.01, 0.4)
    sides, real = [], Segmentation._predict
    monkeypatch.setattr(Segmentation, "_predict", lambda s, x, o: sides.append(tuple(x.shape[-2:])) or real(s, x, o))
    record, new = once(spec, runs_dir=tmp_path, device="cpu")
    assert new and record["status"] == "done" and np.isfinite(record["curve"][0]["train_loss"])
    assert sorted(sides) == [(512, 683), (533, 512)] and record["examples"] == []
    assert record["transfer"]["miou"]["n_test"] == 2
    assert read_record(transfer_path(tmp_path, spec.key)) == record
