"""Exercises of 00_start: a solution of each, and a plausible wrong answer."""

import numpy as np

solution_1 = 10 * 8 * 8
wrong_1 = int(16 * 0.6) * 8 * 8  # rounded down, as `int` does


def solution_2(image, hidden):
    filled = image.copy()
    filled[:, hidden] = image[:, ~hidden].mean(axis=1, keepdims=True)
    return filled


def wrong_2(image, hidden):
    """The mean of the whole picture: the hidden pixels leak."""
    filled = image.copy()
    filled[:, hidden] = image.mean(axis=(1, 2))[:, None]
    return filled


def solution_3(target, guess, hidden):
    return np.abs(target - guess)[:, hidden].mean()


def wrong_3(target, guess, hidden):
    """Visible pixels count too."""
    return np.abs(target - guess).mean()
