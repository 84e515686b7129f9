"""Exercises of 11_your_study: a solution of each, and a plausible wrong answer."""

import math

solution_1 = 250_000 * 2048 / 900 / 3600
wrong_1 = 250_000 / 900 / 3600  # a step as one image


def solution_2(effect, spread):
    return max(2, math.ceil((2.8 * spread / effect) ** 2 - 1e-9))


def wrong_2(effect, spread):
    """Without the square."""
    return max(2, math.ceil(2.8 * spread / effect))


def solution_3(options):
    best = max(options, key=lambda o: o[1])
    return [name for name, value, half in options if value + half >= best[1] - best[2]]


def wrong_3(options):
    """Only the best's interval counts."""
    best = max(options, key=lambda o: o[1])
    return [name for name, value, _ in options if value >= best[1] - best[2]]
