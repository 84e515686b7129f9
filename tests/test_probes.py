"""The probes against slow, literal versions of themselves, and on data whose score is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from random_weights import random_model
from tiny import tiny_data

from simmim_lite.errors import UserError
from simmim_lite.training import probes
from simmim_lite.training.run import Run

RUN = Run(image_size=16, probe_labels=40, probe_test=30)


def problem(n, width, classes, seed, signal=1.0):
    """Features float32 (n, width) around one centre a class, labels (n,); every class occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    centres = rng.normal(size=(classes, width)) * signal
    scales = 10.0 ** rng.uniform(-2, 2, width)
    x = (centres[labels] + rng.normal(size=(n, width))) * scales + rng.normal(size=width)
    return torch.from_numpy(x).float(), labels


def lstsq_ridge(z, y, penalty):
    """Weights and intercept of min |z w + b - y|^2 + penalty |w|^2, as one least-squares problem with extra rows."""
    width = z.shape[1]
    a = np.block([[z, np.ones((len(z), 1))], [math.sqrt(penalty) * np.eye(width), np.zeros((width, 1))]])
    b = np.concatenate([y, np.zeros((width, y.shape[1]))])
    solution = np.linalg.lstsq(a, b, rcond=None)[0]
    return solution[:-1], solution[-1]


@pytest.mark.parametrize(("n", "width", "classes"), [(4, 1, 2), (24, 9, 4), (12, 30, 3)])
def test_ridge_equals_explicit_leave_one_out_refits(n, width, classes, monkeypatch):
    x, labels = problem(n, width, classes, n)
    targets = torch.from_numpy(np.eye(classes, dtype=bool)[labels])
    ridge, errors_left_out = probes.fit_ridge(x, targets)
    wide = x.double().numpy()
    z, y, press = (wide - wide.mean(0)) / wide.std(0), 2.0 * targets.numpy() - 1, []
    for penalty in probes.PENALTIES:
        errors = []
        for i in range(n):
            keep = np.arange(n) != i
            w, b = lstsq_ridge(z[keep], y[keep], penalty * n)
            errors.append((y[i] - z[i] @ w - b) ** 2)
        press.append(np.mean(errors))
    np.testing.assert_allclose(errors_left_out, press, rtol=1e-5)
    w, b = lstsq_ridge(z, y, probes.PENALTIES[int(np.argmin(press))] * n)
    np.testing.assert_allclose(ridge(x).numpy(), z @ w + b, atol=1e-6)
    monkeypatch.setattr(probes, "_ROWS", 3)  # it does not depend on its chunks
    np.testing.assert_allclose(probes.fit_ridge(x, targets)[0](x), ridge(x), atol=1e-7)


def test_constant_features_say_nothing():
    labels, nothing = problem(60, 5, 3, 1)[1], torch.ones(60, 4)
    assert probes.ridge_probe(nothing, labels, nothing, labels)["score"] == pytest.approx(20 / 60)


def test_knn_equals_a_loop():
    x, y = problem(90, 6, 4, 5, signal=0.5)
    bank, right = x[:60].double().numpy(), 0
    for query, label in zip(x[60:].double().numpy(), y[60:], strict=True):
        cosines = bank @ query / np.linalg.norm(query) / np.linalg.norm(bank, axis=1)
        votes = np.zeros(4)
        for j in np.argsort(-cosines)[: probes.NEIGHBOURS]:
            votes[y[j]] += math.exp(cosines[j] / probes.TEMPERATURE)
        right += int(votes.argmax()) == label
    assert probes.knn_probe(x[:60], y[:60], x[60:], y[60:])["score"] == right / 30 < 1


@pytest.mark.parametrize("correct", [0, 17, 40])
def test_top1_has_wilsons_interval(correct):
    score = probes.top1(np.arange(40) < correct, np.ones(40, bool), 9)
    share, low, high = (score[name] for name in ("score", "low", "high"))
    assert share == correct / 40 and 0 <= low <= share <= high <= 1 and low < high
    for end in {low, high} - {0.0, 1.0}:
        assert (end - share) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 40, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("n", "width", "grid", "stride"), [(2, 1, (1, 2), (4, 4)), (6, 5, (3, 1), (2, 3))])
def test_segmentation_equals_a_loop(n, width, grid, stride):
    rng = np.random.default_rng(n * 100 + width)
    maps = torch.from_numpy(rng.normal(size=(2 * n, width, *grid))).float()
    masks = rng.random((2 * n, grid[0] * stride[0], grid[1] * stride[1])) < 0.4
    masks[-1] = False

    def tokens(rows, cells=True):
        out = []
        for i, y, x in ((i, y, x) for i in rows for y, x in np.ndindex(grid)):
            block = masks[i, y * stride[0] : (y + 1) * stride[0], x * stride[1] : (x + 1) * stride[1]]
            out.append(block.ravel() if cells else maps[i, :, y, x].numpy())
        return torch.from_numpy(np.array(out))

    (ridge, _), ious = probes.fit_ridge(tokens(range(n), cells=False), tokens(range(n))), []
    for i in range(n, 2 * n):
        guess, truth = ridge(tokens([i], cells=False)).numpy() > 0, tokens([i]).numpy()
        union = (guess | truth).sum()
        ious.append((guess & truth).sum() / union if union else 1.0)
    result = probes.segmentation_probe(maps[:n], masks[:n], maps[n:], masks[n:])
    half = 1.96 * np.std(ious, ddof=1) / math.sqrt(n)
    expected = [np.mean(ious), max(0, np.mean(ious) - half), min(1, np.mean(ious) + half)]
    assert [result[name] for name in ("score", "low", "high")] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="do not divide"):
        probes.segmentation_probe(maps[:n], masks[:n], maps[n:], masks[n:, 1:, 1:])


def test_features_are_the_encoder_s_whatever_the_batch_and_mode():
    model, data = random_model("swinv2_atto", img_size=16, drop_path=0.5).train(), tiny_data()
    images = data.test.images[:10]
    pooled, maps = probes.features(model, images, data.mean, data.std, batch=4, maps=True)
    assert model.training and pooled.dtype == maps.dtype == torch.float32
    with torch.no_grad():
        expected = model.eval().encode((torch.from_numpy(images).float() / 255 - 0.5) / 0.2)
    np.testing.assert_allclose(maps, expected, atol=2e-5)
    np.testing.assert_allclose(pooled, expected.mean((2, 3)), atol=2e-5)


def test_probe_all_scores_what_can_be_had_on_the_same_images_for_every_run():
    model, data = random_model("swinv2_atto", img_size=16), tiny_data()
    scores = probes.probe_all(model, data, RUN)
    assert set(scores) == {"linear", "knn", "segment"}
    for score in scores.values():
        assert set(score) == {"score", "low", "high", "metric", "n_train", "n_test"}
        assert (score["n_train"], score["n_test"]) == (40, 30)
    again = probes.probe_all(model, data, dataclasses.replace(RUN, seed=7, subset_seed=3, images=8))
    assert again == scores
    assert set(probes.probe_all(model, tiny_data(labels=False), RUN)) == {"segment"}
    assert probes.probe_all(model, data, dataclasses.replace(RUN, probe_labels=0)) == {}
