"""Average precision of boxes and masks: the value by pycocotools, its interval by a bootstrap over images."""

import contextlib
import io

import numpy as np

RESAMPLES = 200  # of the test images, for an interval
_SEED = 0  # of the resamples


def average_precision(truth: dict, found: list[dict], *, n_train: int) -> dict[str, dict]:
    """`box_ap`, `mask_ap` (over IoU .50 to .95) and `box_ap50`, `mask_ap50`, in 0..1, as records hold scores.

    truth: a COCO data set of the test images (`images`, `annotations`, `categories`); found: detections with
    `image_id`, `category_id`, `bbox` (x, y, width, height), `score` and `segmentation` (RLE). At least one object must
    be there to be found. low, high: 95 % by resampling images.
    """
    scores = {}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        judged = judge(truth, found, kind)
        precision = judged.eval["precision"][:, :, :, 0, 0]
        drawn = resampled(judged, RESAMPLES)
        for suffix, thresholds in (("ap", slice(None)), ("ap50", slice(1))):
            known = precision[thresholds]
            value = float(known[known > -1].mean())  # -1: a class without an object
            values = drawn[:, thresholds]
            values = np.nanmean(values[~np.isnan(values).all((1, 2))], (1, 2))  # a draw may hold no object at all
            low, high = np.quantile(values, (0.025, 0.975)).tolist()
            metric = f"{name} AP{'@[.50:.95]' if suffix == 'ap' else '@.50'}"
            # a bootstrap's interval need not hold the value itself, a record's does
            numbers = {"score": value, "low": min(low, value), "high": max(high, value), "metric": metric}
            scores[f"{name}_{suffix}"] = numbers | {"n_train": n_train, "n_test": len(truth["images"])}
    return scores


def judge(truth: dict, found: list[dict], kind: str):
    """pycocotools' COCOeval, evaluated and accumulated over all areas; kind is `bbox` or `segm`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # numbered anew: pycocotools takes a match with id 0 for none
    objects = [dict(a, id=i, iscrowd=a.get("iscrowd", 0)) for i, a in enumerate(truth["annotations"], 1)]
    detections = [dict(d, id=i, iscrowd=0, area=d["bbox"][2] * d["bbox"][3]) for i, d in enumerate(found, 1)]
    known, guessed = COCO(), COCO()
    known.dataset = dict(truth, annotations=objects)
    guessed.dataset = dict(truth, annotations=detections)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known.createIndex()
        guessed.createIndex()
        judged = COCOeval(known, guessed, kind)
        judged.params.areaRng, judged.params.areaRngLbl = [[0, 1e10]], ["all"]
        judged.params.maxDets = [100]
        judged.evaluate()
        judged.accumulate()
    return judged


def resampled(judged, draws: int) -> np.ndarray:
    """AP of each threshold and class on resampled images: (draws, T, K), NaN where a class has no object.

    An image that is drawn twice counts twice; sorting by score, precision and recall are those of COCOeval.
    """
    images = len(judged.params.imgIds)
    classes, thresholds = len(judged.params.catIds), len(judged.params.iouThrs)
    picks = np.random.default_rng(_SEED).integers(images, size=(draws, images))
    weights = np.stack([np.bincount(row, minlength=images) for row in picks])
    out = np.full((draws, thresholds, classes), np.nan)
    for k in range(classes):
        rows = [(i, r) for i, r in enumerate(judged.evalImgs[k * images : (k + 1) * images]) if r is not None]
        if not rows:
            continue
        objects = np.zeros(images)
        for i, r in rows:
            objects[i] = np.count_nonzero(np.asarray(r["gtIgnore"]) == 0)
        total = weights @ objects
        order = np.argsort(-np.concatenate([r["dtScores"] for _, r in rows]), kind="mergesort")
        of = np.concatenate([np.full(len(r["dtScores"]), i) for i, r in rows]).astype(int)[order]
        matched = np.concatenate([r["dtMatches"] for _, r in rows], 1)[:, order] > 0
        counted = np.concatenate([r["dtIgnore"] for _, r in rows], 1)[:, order] == 0
        times = weights[:, of]
        there = total > 0
        for t in range(thresholds):
            right = np.cumsum(times * (matched[t] & counted[t]), 1)
            wrong = np.cumsum(times * (~matched[t] & counted[t]), 1)
            out[there, t, k] = _interpolated(right[there], wrong[there], total[there], judged.params.recThrs)
    return out


def _interpolated(right: np.ndarray, wrong: np.ndarray, total: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """Mean over the recalls of the best precision at that recall or above: (B,) from running counts (B, D)."""
    precision = right / np.maximum(right + wrong, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    precision = np.concatenate([precision, np.zeros((len(precision), 1))], 1)  # beyond the last recall: none
    recall = right / total[:, None]
    places = np.stack([np.searchsorted(row, recalls, side="left") for row in recall]) if len(recall) else None
    return np.empty(0) if places is None else np.take_along_axis(precision, places, 1).mean(1)
