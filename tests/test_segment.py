"""Segmentation: UPerNet's shapes and arithmetic, its loss, one code path for all sizes, mIoU against loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ade_folders import ade_folder
from random_weights import close, rand, randomise
from tiny import NARROW, narrow, segmentation, trained  # noqa: F401 (fixtures)

from simmim_lite.data.ade20k import IGNORED
from simmim_lite.errors import UserError
from simmim_lite.model.swin import SwinV2
from simmim_lite.training.parallel import Group
from simmim_lite.training.record import read_record
from simmim_lite.training.run import Run, transfer_path
from simmim_lite.training.segment import (
    Segmentation,
    UPerNet,
    areas,
    enlarge,
    miou,
    pixel_accuracy,
    pixel_loss,
    segmentation_scores,
)
from simmim_lite.training.transfer import once
from simmim_lite.training.tuning import Dense


def network(depths=(1, 1), window=4, **options):
    return randomise(UPerNet(SwinV2(32, depths, window), 5, 8, **options))


def test_shapes_and_every_parameter_learns():
    net, side = network((1, 1, 1, 1), 12).train(), (128, 171)  # 512 x 683, a quarter
    main, auxiliary = net(rand(2, 3, *side))
    assert main.shape == (2, 5, 32, 43) and auxiliary.shape == (2, 5, 8, 11) and main.isfinite().all()
    assert enlarge(main, 4, side).shape[-2:] == enlarge(auxiliary, 16, side).shape[-2:] == side
    (main.square().sum() + auxiliary.square().sum()).backward()
    still = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert still == {"encoder.mask_token"}
    with torch.no_grad():
        assert net.eval()(rand(2, 3, *side))[1] is None


def test_the_pyramid_is_the_papers():
    """Against the same written out, with the four levels' names."""
    net = network((1, 1, 1, 1)).eval()
    c2, c3, c4, c5 = maps = [rand(2, 32 << s, 16 >> s, 16 >> s, seed=s) for s in range(4)]
    with torch.no_grad():
        pools = [F.adaptive_avg_pool2d(c5, b) for b in (1, 2, 3, 6)]
        up = [F.interpolate(net.pools[i](p), (2, 2), mode="bilinear") for i, p in enumerate(pools)]
        p5 = net.pooled(torch.cat([c5, *up], 1))
        twice = torch.nn.Upsample(scale_factor=2, mode="bilinear")
        p4 = net.laterals[2](c4) + twice(p5)
        p3 = net.laterals[1](c3) + twice(p4)
        p2 = net.laterals[0](c2) + twice(p3)
        levels = [net.smooths[0](p2), net.smooths[1](p3), net.smooths[2](p4), p5]
        same = [F.interpolate(x, (16, 16), mode="bilinear") for x in levels]
        assert close(net.pyramid(maps), net.fuse(torch.cat(same, 1)), 1e-5)
    wide = enlarge(torch.arange(7.0).expand(1, 1, 5, 7), 4, (18, 26))[0, 0, 0]
    assert wide.shape == (26,) and wide[13].item() == pytest.approx((13.5 / 4) - 0.5)  # where its pixel is


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ade_folder(tmp_path_factory.mktemp("ade"), 10, 7)


def test_the_loss_is_the_mean_over_labelled_pixels(folder):
    task = segmentation(folder, drop_path=0.0, auxiliary=0.3)
    task.model.train()
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    _, images, labels, noise = task.batch(1)
    loss, expected = task.loss(task.model, 1, images, labels, noise), 0.0
    for logits, weight in zip(task.model(images), (1.0, 0.3), strict=True):
        chances = enlarge(logits, 4, (32, 32)).softmax(1)
        pixels = (labels != IGNORED).nonzero().tolist()  # by hand: pixel by pixel
        expected += weight * torch.stack([-chances[b, int(labels[b, y, x]), y, x].log() for b, y, x in pixels]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    logits, without = torch.randn(4, 11, 8, 8), labels.clone()
    without[0] = IGNORED  # an unlabelled image adds nothing
    rest = pixel_loss(logits[1:], labels[1:], 4).item()
    assert pixel_loss(logits, without, 4).item() == pytest.approx(rest, rel=1e-5)
    nothing = task.loss(task.model, 1, images, torch.full_like(labels, IGNORED), noise)
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() == 0 for p in task.model.parameters() if p.requires_grad)


def test_training_lowers_the_loss_and_the_record_is_whole(folder):
    task = segmentation(folder, steps=30, lr=8e-3, eval_every=10, test_images=5)
    record = trained(task)
    assert (record["kind"], record["status"]) == ("segment", "done")
    losses = [point["train_loss"] for point in record["curve"]]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]
    assert record["cost"]["unique_images"] == 10 and record["cost"]["flops"] is None
    assert {k: s["n_test"] for k, s in record["transfer"].items()} == {"miou": 5, "pixel_accuracy": 5}
    first = record["examples"][0]
    assert [e["file"] for e in record["examples"]] == list(task.data.test.files[:5])
    drawn = np.repeat(first["runs"][::2], first["runs"][1::2]).reshape(first["height"], first["width"])
    # the same by hand, an image at a time
    task.model.eval()
    table, (mean, std) = [], (torch.tensor(v)[:, None, None] for v in task.statistics)
    for place in range(5):
        image, labels = task.data.test.load(place)
        with torch.no_grad():
            logits = task.model(((torch.from_numpy(image) / 255 - mean) / std)[None])[0]
        guess = F.interpolate(logits, (32, 32), mode="bilinear").argmax(1)[0].numpy()
        assert place or np.array_equal(guess, drawn)
        table.append(areas(guess, labels, 11))
    expected = segmentation_scores(np.stack(table), 10)
    assert record["transfer"]["miou"]["score"] == pytest.approx(expected["miou"]["score"], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 11}, "images 11: training of ade20k:.* holds 10 images"),
        ({"batch_size": 1}, "batch_size 1: batch normalisation needs 2 images .* at least 2"),
        ({"batch_size": 2, "group": Group(torch.device("cpu"), 0, 2)}, "batch_size 2: .* at least 4"),
        ({"run": Run()}, "needs the run and its weights"),
    ],
)
def test_what_cannot_be_is_one_line(folder, options, words):
    with pytest.raises(UserError, match=words):
        segmentation(folder, **options)


def test_the_recipe_at_full_size_takes_a_step(tmp_path, narrow, monkeypatch):  # noqa: F811
    """upernet-160k on a folder of ADE20K's layout: 512 px crops, bf16, 512 x 683 at test, 150 classes."""
    folder = ade_folder(tmp_path / "ade", 2, 1, sizes=((96, 128),))
    (folder / "classes.txt").unlink()
    size = {"model": NARROW.name, "steps": 1, "batch_size": 2, "channels": 16}
    spec = Dense.recipe("upernet-160k", 2, data=f"ade20k:{folder}", **size)
    sides, real = [], Segmentation.predict
    monkeypatch.setattr(Segmentation, "predict", lambda s, x, o: sides.append(tuple(x.shape[-2:])) or real(s, x, o))
    record, new = once(spec, runs_dir=tmp_path, device="cpu")
    assert new and record["status"] == "done" and np.isfinite(record["curve"][0]["train_loss"])
    assert sides == [(512, 683)] and record["examples"] == [] and record["transfer"]["miou"]["n_test"] == 1
    assert read_record(transfer_path(tmp_path, spec.key)) == record


# scores


def slow_miou(guesses, labels, classes):
    """mIoU and pixel accuracy by loops over classes, images and pixels."""
    pairs = [p for g, t in zip(guesses, labels, strict=True) for p in zip(g.flat, t.flat, strict=True)]
    pairs = [(g, t) for g, t in pairs if t != IGNORED]
    eithers = {c: [g == t for g, t in pairs if c in (g, t)] for c in range(classes)}
    ious = [sum(right) / len(right) for right in eithers.values() if right]
    return sum(ious) / len(ious), sum(g == t for g, t in pairs) / len(pairs)


def test_scores_equal_the_slow_specification():
    """Maps of different sizes: ignored pixels, a class in neither, one only predicted, one never predicted."""
    rng, guesses, labels = np.random.default_rng(0), [], []
    for _ in range(5):
        shape = rng.integers(4, 9, 2)
        truth = rng.choice([0, 1, 2, 4, IGNORED], shape)
        guess = np.where(rng.random(shape) < 0.5, truth, rng.choice([0, 1, 3], shape))
        guesses.append(np.where(np.isin(guess, (4, IGNORED)), 2, guess).astype(np.uint8))
        labels.append(truth.astype(np.uint8))
    found = segmentation_scores(np.stack([areas(g, t, 7) for g, t in zip(guesses, labels, strict=True)]), n_train=9)
    expected = slow_miou(guesses, labels, 7)
    for score, metric, value in zip(found.values(), ("mIoU", "pixel accuracy"), expected, strict=True):
        assert score["score"] == pytest.approx(value, abs=1e-12)
        assert 0 <= score["low"] <= score["score"] <= score["high"] <= 1
        assert (score["metric"], score["n_train"], score["n_test"]) == (metric, 9, 5)
    nothing = areas(guesses[0], np.full_like(labels[0], IGNORED), 7)
    assert nothing.sum() == 0 and segmentation_scores(nothing[None], 1)["miou"]["score"] == 0.0


def test_intervals_are_a_bootstrap_over_images():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (6, 6)).astype(np.uint8) for _ in range(60)]
    guesses = [np.where(rng.random(t.shape) < rng.random(), t, 0).astype(np.uint8) for t in labels]
    table = np.stack([areas(g, t, 3) for g, t in zip(guesses, labels, strict=True)])
    found, draws = segmentation_scores(table, 1), np.random.default_rng(5).integers(0, 60, (4000, 60))
    for name, score in (("miou", miou), ("pixel_accuracy", pixel_accuracy)):
        low, high = np.percentile([float(score(table[d].sum(0))) for d in draws], (2.5, 97.5))
        assert found[name]["low"] == pytest.approx(low, abs=0.01)
        assert found[name]["high"] == pytest.approx(high, abs=0.01)
