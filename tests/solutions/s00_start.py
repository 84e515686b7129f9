"""Exercises of 00_start: a solution of each, and a plausible wrong answer."""

import numpy as np


def solution_1():
    return 10 * 8 * 8


def wrong_1():
    """Rounded down, as `int` does."""
    return int(16 * 0.6) * 8 * 8


def solution_2():
    def fill(image, hidden):
        filled = image.copy()
        filled[:, hidden] = image[:, ~hidden].mean(axis=1, keepdims=True)
        return filled

    return fill


def wrong_2():
    """The mean of the whole picture: the hidden pixels leak."""

    def fill(image, hidden):
        filled = image.copy()
        filled[:, hidden] = image.mean(axis=(1, 2))[:, None]
        return filled

    return fill


def solution_3():
    def loss(target, guess, hidden):
        return np.abs(target - guess)[:, hidden].mean()

    return loss


def wrong_3():
    """Visible pixels count too."""

    def loss(target, guess, hidden):
        return np.abs(target - guess).mean()

    return loss
