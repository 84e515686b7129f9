"""Exercises of 03_one_run: a solution of each, and a plausible wrong answer."""

import math


def solution_1():
    return 300 * 64 / 1024


def wrong_1():
    """As if a step were one image."""
    return 300 / 1024


def solution_2():
    def rate(step, steps, peak, warmup):
        warm = peak / 200 + (peak - peak / 200) * min(1, step / warmup)
        return warm / 10 if step >= 7 * steps // 8 else warm

    return rate


def wrong_2():
    """The drop comes a step late."""

    def rate(step, steps, peak, warmup):
        warm = peak / 200 + (peak - peak / 200) * min(1, step / warmup)
        return warm / 10 if step > 7 * steps // 8 else warm

    return rate


def solution_3():
    def difference(a, b):
        each = a - b
        return each.mean(), each.std(ddof=1) / math.sqrt(len(each))

    return difference


def wrong_3():
    """As if the images were different ones."""

    def difference(a, b):
        return (a - b).mean(), math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))

    return difference
