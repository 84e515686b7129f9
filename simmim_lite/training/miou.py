"""Mean intersection over union as ADE20K is scored: areas summed over all images, then a mean over classes."""

import numpy as np

RESAMPLES = 500
_BOOTSTRAP_SEED = 20220610


def areas(guess: np.ndarray, labels: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    """Pixels of each class in one image, int64 (3, classes): rightly found, found, there.

    guess and labels (H, W) of 0..classes-1; pixels whose label is `ignored` are left out of all three.
    """
    known = labels != ignored
    guess, labels = guess[known], labels[known]
    count = (np.bincount(x, minlength=classes) for x in (guess[guess == labels], guess, labels))
    return np.stack(list(count))


def miou(total: np.ndarray) -> np.ndarray:
    """Mean IoU (...,) from areas (..., 3, classes) summed over images.

    The mean is over the classes that occur, in truth or in a prediction (one that is only predicted has IoU 0), as the
    field's tools do; 0 where no pixel is labelled.
    """
    both = total[..., 0, :]
    union = total[..., 1, :] + total[..., 2, :] - both
    iou = both / np.maximum(union, 1)
    return iou.sum(-1) / np.maximum((union > 0).sum(-1), 1)


def pixel_accuracy(total: np.ndarray) -> np.ndarray:
    """Share of labelled pixels that are right (...,) from areas (..., 3, classes) summed over images."""
    return total[..., 0, :].sum(-1) / np.maximum(total[..., 2, :].sum(-1), 1)


def scores(per_image: np.ndarray, n_train: int) -> dict[str, dict]:
    """{"miou", "pixel_accuracy"} from areas int64 (n, 3, classes) of n images, as records hold scores.

    low and high: 95 % percentiles of a bootstrap over the images, with a seed of its own: equal areas give equal
    intervals.
    """
    n = len(per_image)
    # how often each resample drew each image; a product with the areas then sums all resamples at once
    draws = np.random.default_rng(_BOOTSTRAP_SEED).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    resampled = (draws.astype(np.float64) @ per_image.reshape(n, -1)).reshape(RESAMPLES, *per_image.shape[1:])
    total = per_image.sum(0)
    found = {}
    for name, metric, score in (("miou", "mIoU", miou), ("pixel_accuracy", "pixel accuracy", pixel_accuracy)):
        value = float(score(total))
        low, high = np.percentile(score(resampled), (2.5, 97.5))
        # rounding, or a class that few images hold, must not leave the score itself outside
        interval = {"low": min(value, float(low)), "high": max(value, float(high))}
        found[name] = {"score": value, **interval, "metric": metric, "n_train": n_train, "n_test": n}
    return found


def run_lengths(classes: np.ndarray) -> list[int]:
    """A map of class numbers (H, W), row by row, as [class, length, class, length, ...]."""
    flat = classes.reshape(-1).astype(np.int64)
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=len(flat))
    return np.stack([flat[starts], lengths], 1).reshape(-1).tolist()
