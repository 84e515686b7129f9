"""Exercises of 11_your_study: a solution of each, and a plausible wrong answer."""

import math


def solution_1():
    return 250_000 * 2048 / 900 / 3600


def wrong_1():
    """A step as one image."""
    return 250_000 / 900 / 3600


def solution_2():
    return lambda effect, spread: max(2, math.ceil((2.8 * spread / effect) ** 2 - 1e-9))


def wrong_2():
    """Without the square."""
    return lambda effect, spread: max(2, math.ceil(2.8 * spread / effect))


def solution_3():
    def together(options):
        best = max(options, key=lambda o: o[1])
        return [name for name, value, half in options if value + half >= best[1] - best[2]]

    return together


def wrong_3():
    """Only the best's interval counts."""

    def together(options):
        best = max(options, key=lambda o: o[1])
        return [name for name, value, _ in options if value >= best[1] - best[2]]

    return together
