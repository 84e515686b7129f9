"""Exercises of 10_full_scale: a solution of each, and a plausible wrong answer."""

solution_1 = 100 * (1 - (500_000 + 250_000 / 8 + 125_000 / 8) / 875_000)
wrong_1 = 100 * (1 - 500_000 / 875_000)  # without the branches


def solution_2(batch, gpus, fits):
    share = batch // gpus
    return min(k for k in range(1, share + 1) if share % k == 0 and share / k <= fits)


def wrong_2(batch, gpus, fits):
    """Rounded up, whether it divides or not."""
    return -(-(batch // gpus) // fits)


def solution_3(lengths, batch, images_per_second):
    longest = max(lengths)
    steps = longest + sum(steps - 7 * steps // 8 for steps in lengths if steps < longest)
    return steps * batch / images_per_second / 3600


def wrong_3(lengths, batch, images_per_second):
    """Each run alone."""
    return sum(lengths) * batch / images_per_second / 3600
