"""Average precision against pycocotools and against a specification written with loops; its interval."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from simmim_lite.training.average_precision import average_precision, judge, resampled

SIDE = 24
IOUS = [0.5 + 0.05 * i for i in range(10)]


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


def overlap(found, known, kind):
    """IoU of a detection and an object; with a crowd, the share of the detection that lies in it."""
    if kind == "segm":
        a, b = coco_mask.decode(found["segmentation"]), coco_mask.decode(known["segmentation"])
        both, one, other = int((a & b).sum()), int(a.sum()), int(b.sum())
    else:
        (x, y, w, h), (p, q, u, v) = found["bbox"], known["bbox"]
        both = max(0, min(x + w, p + u) - max(x, p)) * max(0, min(y + h, q + v) - max(y, q))
        one, other = w * h, u * v
    return both / one if known["iscrowd"] else both / (one + other - both)


def slow_ap(truth, found, kind, thresholds=IOUS):
    """COCO's AP from its definition: greedy matching by falling score, 101 recalls, mean over classes with objects."""
    values = []
    for threshold in thresholds:
        for category in (c["id"] for c in truth["categories"]):
            marks, objects = [], 0  # (score, right or not), detections on crowds left out
            for image in truth["images"]:
                of = [a for a in truth["annotations"] if (a["image_id"], a["category_id"]) == (image["id"], category)]
                mine = [d for d in found if (d["image_id"], d["category_id"]) == (image["id"], category)]
                objects += sum(not a["iscrowd"] for a in of)
                taken = set()
                for d in sorted(mine, key=lambda d: -d["score"]):
                    best, at = min(threshold, 1 - 1e-10), None
                    for i, a in enumerate(of):
                        if not a["iscrowd"] and i not in taken and overlap(d, a, kind) >= best:
                            best, at = overlap(d, a, kind), i
                    if at is not None:
                        taken.add(at)
                        marks.append((d["score"], True))
                    elif not any(a["iscrowd"] and overlap(d, a, kind) >= threshold for a in of):
                        marks.append((d["score"], False))
            if not objects:
                continue
            marks.sort(key=lambda m: -m[0])
            points, right = [], 0
            for i, (_, good) in enumerate(marks, 1):
                right += good
                points.append((right / objects, right / i))
            precisions = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
            values.append(sum(precisions) / 101)
    return sum(values) / len(values)


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


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_random_predictions(seed):
    truth, found = random_case(seed, images=25)
    scores = average_precision(truth, found, n_train=9)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        ap, ap50 = official(truth, found, kind)
        assert scores[f"{name}_ap"]["score"] == pytest.approx(ap, abs=1e-12) and 0.05 < ap < 0.9
        assert scores[f"{name}_ap50"]["score"] == pytest.approx(ap50, abs=1e-12)
    assert scores["box_ap"]["n_train"] == 9 and scores["box_ap"]["n_test"] == 25
    assert scores["box_ap"]["metric"] == "box AP@[.50:.95]"


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_specification_written_with_loops(seed):
    truth, found = random_case(100 + seed, images=6, classes=2)
    scores = average_precision(truth, found, n_train=1)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        assert scores[f"{name}_ap"]["score"] == pytest.approx(slow_ap(truth, found, kind), abs=1e-9)
        assert scores[f"{name}_ap50"]["score"] == pytest.approx(slow_ap(truth, found, kind, [0.5]), abs=1e-9)


def test_an_image_drawn_twice_counts_twice():
    """A resample equals pycocotools on a data set in which the images are really there so often."""
    truth, found = random_case(7, images=10)
    # scores of their own: the order of equal ones is that of the images, which differs between the two
    found = [dict(d, score=s) for d, s in zip(found, np.random.default_rng(1).random(len(found)), strict=True)]
    judged = judge(truth, found, "bbox")
    drawn = resampled(judged, 5)
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
