"""Exercises of 10_full_scale: a solution of each, and a plausible wrong answer."""


def solution_1():
    return 100 * (1 - (500_000 + 250_000 / 8 + 125_000 / 8) / 875_000)


def wrong_1():
    """Without the branches."""
    return 100 * (1 - 500_000 / 875_000)


def solution_2():
    def parts(batch, gpus, fits):
        share = batch // gpus
        return min(k for k in range(1, share + 1) if share % k == 0 and share / k <= fits)

    return parts


def wrong_2():
    """Rounded up, whether it divides or not."""
    return lambda batch, gpus, fits: -(-(batch // gpus) // fits)


def solution_3():
    def hours(lengths, batch, images_per_second):
        longest = max(lengths)
        steps = longest + sum(steps - 7 * steps // 8 for steps in lengths if steps < longest)
        return steps * batch / images_per_second / 3600

    return hours


def wrong_3():
    """Each run alone."""
    return lambda lengths, batch, images_per_second: sum(lengths) * batch / images_per_second / 3600
