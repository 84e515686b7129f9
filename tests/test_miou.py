"""mIoU against a slow specification, its interval, and predictions as run lengths."""

import numpy as np
import pytest

from simmim_lite.data.ade20k import IGNORED
from simmim_lite.training.miou import areas, miou, pixel_accuracy, run_lengths, scores


def slow(guesses, labels, classes):
    """mIoU and pixel accuracy by loops over classes, images and pixels."""
    ious, right, known = [], 0, 0
    for c in range(classes):
        both = either = 0
        for guess, label in zip(guesses, labels, strict=True):
            for g, t in zip(guess.flatten().tolist(), label.flatten().tolist(), strict=True):
                if t == IGNORED:
                    continue
                both += g == c and t == c
                either += g == c or t == c
                right += g == t == c
                known += t == c
        if either:
            ious.append(both / either)
    return (sum(ious) / len(ious) if ious else 0.0), (right / known if known else 0.0)


def draw(seed, n=5, classes=7):
    """Random maps of different sizes: ignored pixels, a class in neither, one only predicted, one never predicted."""
    rng = np.random.default_rng(seed)
    guesses, labels = [], []
    for _ in range(n):
        shape = rng.integers(4, 9, 2)
        truth = rng.choice([0, 1, 2, 4, IGNORED], shape)
        guess = np.where(rng.random(shape) < 0.5, truth, rng.choice([0, 1, 3], shape))
        guesses.append(np.where(np.isin(guess, (4, IGNORED)), 2, guess).astype(np.uint8))
        labels.append(truth.astype(np.uint8))
    return guesses, labels


def per_image(guesses, labels, classes=7):
    return np.stack([areas(g, t, classes, IGNORED) for g, t in zip(guesses, labels, strict=True)])


@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_the_slow_specification(seed):
    guesses, labels = draw(seed)
    found = scores(per_image(guesses, labels), n_train=9)
    expected = slow(guesses, labels, 7)
    assert found["miou"]["score"] == pytest.approx(expected[0], abs=1e-12)
    assert found["pixel_accuracy"]["score"] == pytest.approx(expected[1], abs=1e-12)
    for score, metric in ((found["miou"], "mIoU"), (found["pixel_accuracy"], "pixel accuracy")):
        assert set(score) == {"score", "low", "high", "metric", "n_train", "n_test"}
        assert 0 <= score["low"] <= score["score"] <= score["high"] <= 1
        assert (score["metric"], score["n_train"], score["n_test"]) == (metric, 9, 5)


def test_areas_are_summed_over_images_before_they_are_divided():
    labels = [np.zeros((1, 8), np.uint8), np.zeros((1, 2), np.uint8)]
    guesses = [np.zeros((1, 8), np.uint8), np.ones((1, 2), np.uint8)]
    assert float(miou(per_image(guesses, labels).sum(0))) == (8 / 10 + 0) / 2  # not (1 + 0) / 2 nor by image


def test_perfect_wrong_and_unlabelled():
    labels = [np.array([[0, 1], [IGNORED, 2]], np.uint8)]
    assert float(miou(per_image([np.array([[0, 1], [5, 2]])], labels).sum(0))) == 1.0
    assert float(miou(per_image([np.array([[1, 2], [5, 0]])], labels).sum(0))) == 0.0
    nothing = per_image([np.zeros((2, 2), np.uint8)], [np.full((2, 2), IGNORED, np.uint8)])
    assert nothing.sum() == 0
    score = scores(nothing, 1)
    assert score["miou"]["score"] == score["pixel_accuracy"]["score"] == 0.0


def test_intervals_are_a_bootstrap_over_images():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (6, 6)).astype(np.uint8) for _ in range(60)]
    guesses = [np.where(rng.random(t.shape) < rng.random(), t, 0).astype(np.uint8) for t in labels]
    table = per_image(guesses, labels, 3)
    found = scores(table, 1)
    assert found == scores(table, 1)
    draws = np.random.default_rng(5).integers(0, 60, (4000, 60))
    for name, score in (("miou", miou), ("pixel_accuracy", pixel_accuracy)):
        low, high = np.percentile([float(score(table[d].sum(0))) for d in draws], (2.5, 97.5))
        assert found[name]["low"] == pytest.approx(low, abs=0.01)
        assert found[name]["high"] == pytest.approx(high, abs=0.01)


def test_run_lengths_give_the_map_back():
    rng = np.random.default_rng(0)
    for classes in (np.zeros((3, 4), np.uint8), rng.integers(0, 2, (5, 7)).astype(np.uint8)):
        runs = run_lengths(classes)
        assert all(isinstance(v, int) for v in runs) and sum(runs[1::2]) == classes.size
        assert np.array_equal(np.repeat(runs[::2], runs[1::2]).reshape(classes.shape), classes)
