"""Exercises of 03_one_run: a solution of each, and a plausible wrong answer."""

import math

solution_1 = 300 * 64 / 1024
wrong_1 = 300 / 1024  # as if a step were one image


def solution_2(step, steps, peak, warmup):
    warm = peak / 200 + (peak - peak / 200) * min(1, step / warmup)
    return warm / 10 if step >= 7 * steps // 8 else warm


def wrong_2(step, steps, peak, warmup):
    """The drop comes a step late."""
    warm = peak / 200 + (peak - peak / 200) * min(1, step / warmup)
    return warm / 10 if step > 7 * steps // 8 else warm


def solution_3(a, b):
    each = a - b
    return each.mean(), each.std(ddof=1) / math.sqrt(len(each))


def wrong_3(a, b):
    """As if the images were different ones."""
    return (a - b).mean(), math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
