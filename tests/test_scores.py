"""Average precision against pycocotools, mIoU against a specification with loops; their intervals."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from simmim_lite.data.ade20k import IGNORED
from simmim_lite.training.detect import average_precision, judge, resampled_precision
from simmim_lite.training.segment import areas, miou, pixel_accuracy, run_lengths, segmentation_scores

SIDE = 24


def rectangle(box):
    x, y, w, h = (int(v) for v in box)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def packed(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def random_case(seed, images=12, classes=3, crowds=True):
    """Objects with masks that are not their boxes, and detections near them: (truth, found)."""
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 4)):
            x, y = rng.integers(0, 12, 2)
            w, h = rng.integers(4, 12, 2)
            box = [int(x), int(y), int(w), int(h)]
            mask = rectangle(box)
            mask[y, x] = 0
            category = int(rng.integers(1, classes + 1))
            crowd = int(crowds and rng.random() < 0.2)
            fields = {"image_id": image, "category_id": category, "bbox": box, "area": int(mask.sum())}
            annotations.append(fields | {"iscrowd": crowd, "segmentation": packed(mask)})
            for _ in range(rng.integers(0, 4)):
                near = [max(0, int(v + d)) for v, d in zip(box, rng.integers(-2, 3, 4), strict=True)]
                near = [near[0], near[1], max(2, near[2]), max(2, near[3])]
                right = category if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                one = {"image_id": image, "category_id": right, "bbox": [float(v) for v in near]}
                score = float(np.round(rng.random(), 1))  # equal scores happen
                found.append(one | {"score": score, "segmentation": packed(rectangle(near))})
    names = [{"id": c} for c in range(1, classes + 1)]
    truth = {"images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(images)]}
    return truth | {"annotations": annotations, "categories": names}, found


def official(truth, found, kind):
    """(AP, AP50) by pycocotools as its documentation has it."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth | {"annotations": [dict(a, id=i + 1) for i, a in enumerate(truth["annotations"])]}
        known.createIndex()
        judged = COCOeval(known, known.loadRes([dict(d) for d in found]), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged.stats[:2]


@pytest.mark.parametrize("seed", range(2))
def test_equals_pycocotools_on_random_predictions(seed):
    truth, found = random_case(seed, images=25)
    scores = average_precision(truth, found, n_train=9)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        ap, ap50 = official(truth, found, kind)
        assert scores[f"{name}_ap"]["score"] == pytest.approx(ap, abs=1e-12) and 0.05 < ap < 0.9
        assert scores[f"{name}_ap50"]["score"] == pytest.approx(ap50, abs=1e-12)
    assert scores["box_ap"]["n_train"] == 9 and scores["box_ap"]["n_test"] == 25
    assert scores["box_ap"]["metric"] == "box AP@[.50:.95]"


def test_an_image_drawn_twice_counts_twice():
    """A resample equals pycocotools on a data set in which the images are really there so often."""
    truth, found = random_case(7, images=10)
    # scores of their own: the order of equal ones is that of the images, which differs between the two
    found = [dict(d, score=s) for d, s in zip(found, np.random.default_rng(1).random(len(found)), strict=True)]
    judged = judge(truth, found, "bbox")
    drawn = resampled_precision(judged, 5)
    picks = np.random.default_rng(0).integers(10, size=(5, 10))
    for draw, pick in zip(drawn, picks, strict=True):
        images, annotations, detections = [], [], []
        for place, i in enumerate(pick.tolist()):
            images.append(truth["images"][i] | {"id": place})
            annotations += [a | {"image_id": place} for a in truth["annotations"] if a["image_id"] == i]
            detections += [d | {"image_id": place} for d in found if d["image_id"] == i]
        precision = judge(truth | {"images": images, "annotations": annotations}, detections, "bbox").eval["precision"][
            :, :, :, 0, 0
        ]
        expected = np.where((precision > -1).all(1), precision.mean(1), np.nan)
        assert np.allclose(draw, expected, atol=1e-12, equal_nan=True)


def test_the_interval_holds_the_score_and_narrows_with_images():
    widths = []
    for images in (20, 160):
        score = average_precision(*random_case(3, images=images), n_train=1)["box_ap"]
        assert 0 <= score["low"] <= score["score"] <= score["high"] <= 1
        widths.append(score["high"] - score["low"])
    assert widths[1] < 0.6 * widths[0]


def test_perfect_none_and_nothing():
    truth, _ = random_case(1, crowds=False)
    perfect = [dict(a, score=0.9) for a in truth["annotations"]]
    scores = average_precision(truth, perfect, n_train=1)
    assert {s["score"] for s in scores.values()} == {1.0} and scores["mask_ap"]["low"] == 1.0
    nothing = average_precision(truth, [], n_train=1)
    assert {(s["score"], s["low"], s["high"]) for s in nothing.values()} == {(0.0, 0.0, 0.0)}


# segmentation


def slow_miou(guesses, labels, classes):
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


def draw(seed, n=5):
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


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_slow_specification(seed):
    guesses, labels = draw(seed)
    found = segmentation_scores(per_image(guesses, labels), n_train=9)
    expected = slow_miou(guesses, labels, 7)
    assert found["miou"]["score"] == pytest.approx(expected[0], abs=1e-12)
    assert found["pixel_accuracy"]["score"] == pytest.approx(expected[1], abs=1e-12)
    for score, metric in ((found["miou"], "mIoU"), (found["pixel_accuracy"], "pixel accuracy")):
        assert set(score) == {"score", "low", "high", "metric", "n_train", "n_test"}
        assert 0 <= score["low"] <= score["score"] <= score["high"] <= 1
        assert (score["metric"], score["n_train"], score["n_test"]) == (metric, 9, 5)


def test_perfect_wrong_and_unlabelled():
    labels = [np.zeros((1, 8), np.uint8), np.zeros((1, 2), np.uint8)]
    guesses = [np.zeros((1, 8), np.uint8), np.ones((1, 2), np.uint8)]
    assert float(miou(per_image(guesses, labels).sum(0))) == (8 / 10 + 0) / 2  # not (1 + 0) / 2 nor by image
    labels = [np.array([[0, 1], [IGNORED, 2]], np.uint8)]
    assert float(miou(per_image([np.array([[0, 1], [5, 2]])], labels).sum(0))) == 1.0
    assert float(miou(per_image([np.array([[1, 2], [5, 0]])], labels).sum(0))) == 0.0
    nothing = per_image([np.zeros((2, 2), np.uint8)], [np.full((2, 2), IGNORED, np.uint8)])
    assert nothing.sum() == 0
    score = segmentation_scores(nothing, 1)
    assert score["miou"]["score"] == score["pixel_accuracy"]["score"] == 0.0


def test_intervals_are_a_bootstrap_over_images():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (6, 6)).astype(np.uint8) for _ in range(60)]
    guesses = [np.where(rng.random(t.shape) < rng.random(), t, 0).astype(np.uint8) for t in labels]
    table = per_image(guesses, labels, 3)
    found = segmentation_scores(table, 1)
    assert found == segmentation_scores(table, 1)
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
