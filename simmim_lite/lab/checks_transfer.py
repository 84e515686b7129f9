"""The checks of notebook 08."""

import numpy as np

from .checks import Verdict, call, exercise, near, verdict, wrong


@exercise("find the learning rate of the patch embedding")
def patch_embedding_rate(answer: float) -> Verdict:
    """1.25e-3 x .75^25: 24 blocks, the patch embedding has id 0, norm and head id 25."""
    truth = 1.25e-3 * 0.75**25
    if near(answer, 1.25e-3 * 0.75**24):
        return wrong("24 powers bring you to the first block: the patch embedding lies one below it")
    if near(answer, 0.75**25):
        return wrong("that is the share: multiply by the learning rate of the head")
    if near(answer, 1.25e-3 * 0.25**25):
        return wrong("a layer keeps 0.75 of the rate of the layer above it, it does not lose 0.75")
    line = f"{truth:.1e}: the first layers hardly move, what pretraining taught them stays"
    return verdict(near(answer, truth, 0.02), line, "ids run from 0 to 25: how many steps down from the head is id 0?")


@exercise("write mIoU from a confusion matrix")
def mean_iou(answer) -> Verdict:
    """A function (confusion (K, K), rows = truth) -> mean IoU over classes that occur in truth or prediction."""
    easy = float(call(answer, np.array([[3, 0], [0, 5]])))
    if not near(easy, 1):
        return wrong(f"a prediction without a mistake has mIoU 1, yours says {easy:.3g}")
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    truth = (6 / 9 + 3 / 6) / 2
    found = float(call(answer, counts.copy()))
    if near(found, (6 / 9 + 3 / 6) / 3):
        return wrong("the third class is in no picture and in no prediction: it has no IoU, and does not count as 0")
    if near(found, 9 / 12):
        return wrong(
            "that is the share of right pixels: IoU divides each class by its union, then classes are averaged"
        )
    if near(found, (6 / 8 + 3 / 4) / 2):
        return wrong(
            "you divided by the pixels of the truth alone: the union also holds what was wrongly given the class"
        )
    line = "every class counts alike, so a small one that is missed costs as much as the background"
    return verdict(
        near(found, truth), line, f"for [[6, 2, 0], [1, 3, 0], [0, 0, 0]] it is {truth:.3f}, yours {found:.3f}"
    )


@exercise("write average precision")
def average_precision(answer) -> Verdict:
    """A function (scores, hits, truths) -> AP interpolated at recalls 0, .01, ..., 1, as COCO counts it."""
    scores, hits = [0.9, 0.8, 0.7, 0.6], [False, True, True, False]
    found = float(call(answer, list(scores), list(hits), 2))
    truth = _average_precision(scores, hits, 2)
    shuffled = float(call(answer, scores[::-1], hits[::-1], 2))
    if near(found, truth) and not near(shuffled, truth):
        return wrong("the detections came in another order, and the result changed: sort by score, best first")
    if near(found, _average_precision(scores, hits, 2, interpolated=False)) and not near(found, truth):
        return wrong("precision at a recall is the highest one at this recall or a larger one: let it never rise again")
    missed = float(call(answer, [0.9], [True], 4))
    if near(found, truth) and not near(missed, _average_precision([0.9], [True], 4)):
        return wrong("objects that were never found are missing: at recalls that are not reached precision is 0")
    line = f"{truth:.3f}: COCO averages this over ten thresholds of IoU, .50 to .95, and over classes"
    return verdict(near(found, truth), line, f"for hits {hits} of 2 objects it is {truth:.3f}, yours says {found:.3f}")


def _average_precision(scores, hits, truths: int, *, interpolated: bool = True) -> float:
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    found = np.cumsum(np.asarray(hits, bool)[order])
    recall, precision = found / truths, found / np.arange(1, len(order) + 1)
    if interpolated:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[at].mean())
