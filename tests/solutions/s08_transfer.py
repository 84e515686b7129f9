"""Exercises of 08_transfer: a solution of each, and a plausible wrong answer."""

import numpy as np


def _average_precision(envelope):
    def ap(scores, hits, truths):
        pairs = sorted(zip(scores, hits, strict=True), key=lambda pair: -pair[0])
        points, right = [], 0
        for k, (_, hit) in enumerate(pairs, 1):
            right += hit
            points.append((right / truths, right / k))
        total = 0.0
        for k in range(101):
            reached = [p for r, p in points if r >= k / 100 - 1e-12]
            total += (max(reached) if envelope else reached[0]) if reached else 0.0
        return total / 101

    return ap


solution_1 = 1.25e-3 * 0.75**25
wrong_1 = 1.25e-3 * 0.75**24  # one step too few


def solution_2(confusion):
    inside = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - inside
    return np.mean(inside[union > 0] / union[union > 0])


def wrong_2(confusion):
    """A class that never occurs counts as 0."""
    inside = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - inside
    return np.mean(inside / np.maximum(union, 1))


solution_3 = _average_precision(True)
wrong_3 = _average_precision(False)  # precision may rise again
