"""Exercises of 08_transfer: a solution of each, and a plausible wrong answer."""

import numpy as np


def solution_1():
    return 1.25e-3 * 0.75**25


def wrong_1():
    """One step too few."""
    return 1.25e-3 * 0.75**24


def solution_2():
    def miou(confusion):
        inside = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - inside
        return np.mean(inside[union > 0] / union[union > 0])

    return miou


def wrong_2():
    """A class that never occurs counts as 0."""

    def miou(confusion):
        inside = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - inside
        return np.mean(inside / np.maximum(union, 1))

    return miou


def solution_3():
    return _average_precision(True)


def wrong_3():
    """Precision may rise again."""
    return _average_precision(False)


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
