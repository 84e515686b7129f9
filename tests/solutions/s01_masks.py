"""Exercises of 01_masks: a solution of each, and a plausible wrong answer."""

import numpy as np


def solution_1():
    return 30, 30 / 49


def wrong_1():
    """Rounded down, as `int` does."""
    return int(0.6 * 49), int(0.6 * 49) / 49


def solution_2():
    def to_tokens(mask, factor):
        return mask.repeat(factor, 0).repeat(factor, 1)

    return to_tokens


def wrong_2():
    """Copies of the whole mask, side by side."""

    def to_tokens(mask, factor):
        return np.tile(mask, (factor, factor))

    return to_tokens


def solution_3():
    return 0.85


def wrong_3():
    """The same ratio."""
    return 0.6
