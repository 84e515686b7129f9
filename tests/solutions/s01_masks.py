"""Exercises of 01_masks: a solution of each, and a plausible wrong answer."""

import numpy as np

solution_1 = (30, 30 / 49)
wrong_1 = (int(0.6 * 49), int(0.6 * 49) / 49)  # rounded down, as `int` does


def solution_2(mask, factor):
    return mask.repeat(factor, 0).repeat(factor, 1)


def wrong_2(mask, factor):
    """Copies of the whole mask, side by side."""
    return np.tile(mask, (factor, factor))


solution_3 = 0.85
wrong_3 = 0.6  # the same ratio
