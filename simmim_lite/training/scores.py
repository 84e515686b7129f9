"""Scores of detection and segmentation, as records hold them: average precision as COCO has it, mIoU as ADE20K.

low and high are 95 % percentiles of a bootstrap over the test images, with a seed of its own: equal predictions give
equal intervals.
"""

import contextlib
import io

import numpy as np

AP_RESAMPLES, MIOU_RESAMPLES = 200, 500
_AP_SEED, _MIOU_SEED = 0, 20220610


def _score(value: float, resampled: np.ndarray, metric: str, n_train: int, n_test: int) -> dict:
    """value: as it is; resampled: as it is on each resample of the test images."""
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
    # rounding, or a class that few images hold, must not leave the score itself outside of a record's interval
    interval = {"low": min(low, value), "high": max(high, value)}
    return {"score": value, **interval, "metric": metric, "n_train": n_train, "n_test": n_test}


def average_precision(truth: dict, found: list[dict], *, n_train: int) -> dict[str, dict]:
    """`box_ap`, `mask_ap` (over IoU .50 to .95) and `box_ap50`, `mask_ap50`, in 0..1, by pycocotools.

    truth: a COCO data set of the test images (`images`, `annotations`, `categories`); found: detections with
    `image_id`, `category_id`, `bbox` (x, y, width, height), `score` and `segmentation` (RLE). At least one object must
    be there to be found.
    """
    scores = {}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        judged = judge(truth, found, kind)
        precision = judged.eval["precision"][:, :, :, 0, 0]
        drawn = resampled_precision(judged, AP_RESAMPLES)
        for suffix, at, thresholds in (("ap", "@[.50:.95]", slice(None)), ("ap50", "@.50", slice(1))):
            known, values = precision[thresholds], drawn[:, thresholds]
            values = np.nanmean(values[~np.isnan(values).all((1, 2))], (1, 2))  # a draw may hold no object at all
            value = float(known[known > -1].mean())  # -1: a class without an object
            scores[f"{name}_{suffix}"] = _score(value, values, f"{name} AP{at}", n_train, len(truth["images"]))
    return scores


def judge(truth: dict, found: list[dict], kind: str):
    """pycocotools' COCOeval, evaluated and accumulated over all areas; kind is `bbox` or `segm`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # numbered anew: pycocotools takes a match with id 0 for none
    objects = [dict(a, id=i, iscrowd=a.get("iscrowd", 0)) for i, a in enumerate(truth["annotations"], 1)]
    detections = [dict(d, id=i, iscrowd=0, area=d["bbox"][2] * d["bbox"][3]) for i, d in enumerate(found, 1)]
    known, guessed = COCO(), COCO()
    known.dataset, guessed.dataset = dict(truth, annotations=objects), dict(truth, annotations=detections)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known.createIndex()
        guessed.createIndex()
        judged = COCOeval(known, guessed, kind)
        judged.params.areaRng, judged.params.areaRngLbl, judged.params.maxDets = [[0, 1e10]], ["all"], [100]
        judged.evaluate()
        judged.accumulate()
    return judged


def resampled_precision(judged, draws: int) -> np.ndarray:
    """AP of each threshold and class on resampled images: (draws, T, K), NaN where a class has no object.

    An image that is drawn twice counts twice; sorting by score, precision and recall are those of COCOeval.
    """
    images, classes = len(judged.params.imgIds), len(judged.params.catIds)
    picks = np.random.default_rng(_AP_SEED).integers(images, size=(draws, images))
    weights = np.stack([np.bincount(row, minlength=images) for row in picks])
    out = np.full((draws, len(judged.params.iouThrs), classes), np.nan)
    for k in range(classes):
        rows = [(i, r) for i, r in enumerate(judged.evalImgs[k * images : (k + 1) * images]) if r is not None]
        if not rows:
            continue
        objects = np.zeros(images)
        for i, r in rows:
            objects[i] = np.count_nonzero(np.asarray(r["gtIgnore"]) == 0)
        total = weights @ objects
        there = total > 0
        order = np.argsort(-np.concatenate([r["dtScores"] for _, r in rows]), kind="mergesort")
        of = np.concatenate([np.full(len(r["dtScores"]), i) for i, r in rows]).astype(int)[order]
        matched = np.concatenate([r["dtMatches"] for _, r in rows], 1)[:, order] > 0
        counted = np.concatenate([r["dtIgnore"] for _, r in rows], 1)[:, order] == 0
        times = weights[:, of]
        for t in range(len(matched)):
            right = np.cumsum(times * (matched[t] & counted[t]), 1)
            wrong = np.cumsum(times * (~matched[t] & counted[t]), 1)
            out[there, t, k] = _interpolated(right[there], wrong[there], total[there], judged.params.recThrs)
    return out


def _interpolated(right: np.ndarray, wrong: np.ndarray, total: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """Mean over the recalls of the best precision at that recall or above: (B,) from running counts (B, D)."""
    precision = right / np.maximum(right + wrong, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    precision = np.concatenate([precision, np.zeros((len(precision), 1))], 1)  # beyond the last recall: none
    places = [np.searchsorted(row, recalls, side="left") for row in right / total[:, None]]
    return np.array([row[place].mean() for row, place in zip(precision, places, strict=True)])


def segmentation_scores(per_image: np.ndarray, n_train: int) -> dict[str, dict]:
    """{"miou", "pixel_accuracy"} from `areas` int64 (n, 3, classes) of n images."""
    n = len(per_image)
    # how often each resample drew each image; a product with the areas then sums all resamples at once
    draws = np.random.default_rng(_MIOU_SEED).multinomial(n, np.full(n, 1 / n), MIOU_RESAMPLES)
    resampled = (draws.astype(np.float64) @ per_image.reshape(n, -1)).reshape(MIOU_RESAMPLES, *per_image.shape[1:])
    metrics = (("miou", "mIoU", miou), ("pixel_accuracy", "pixel accuracy", pixel_accuracy))
    total = per_image.sum(0)
    return {name: _score(float(of(total)), of(resampled), metric, n_train, n) for name, metric, of in metrics}


def areas(guess: np.ndarray, labels: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """Pixels of each class in one image, int64 (3, classes): rightly found, found, there.

    guess and labels (H, W) of 0..classes-1; pixels whose label is `ignored` are left out of all three.
    """
    known = labels != ignored
    guess, labels = guess[known], labels[known]
    return np.stack([np.bincount(x, minlength=classes) for x in (guess[guess == labels], guess, labels)])


def miou(total: np.ndarray) -> np.ndarray:
    """Mean IoU (...,) from areas (..., 3, classes) summed over images.

    The mean is over the classes that occur, in truth or in a prediction (one that is only predicted has IoU 0), as the
    field's tools do; 0 where no pixel is labelled.
    """
    both = total[..., 0, :]
    union = total[..., 1, :] + total[..., 2, :] - both
    return (both / np.maximum(union, 1)).sum(-1) / np.maximum((union > 0).sum(-1), 1)


def pixel_accuracy(total: np.ndarray) -> np.ndarray:
    """Share of labelled pixels that are right (...,) from areas (..., 3, classes) summed over images."""
    return total[..., 0, :].sum(-1) / np.maximum(total[..., 2, :].sum(-1), 1)


def run_lengths(classes: np.ndarray) -> list[int]:
    """A map of class numbers (H, W), row by row, as [class, length, class, length, ...]."""
    flat = classes.reshape(-1).astype(np.int64)
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=len(flat))
    return np.stack([flat[starts], lengths], 1).reshape(-1).tolist()
