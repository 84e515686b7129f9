"""Exercises of 05_model_size: a solution of each, and a plausible wrong answer."""


def solution_1():
    return 12 * (2 * 16**2 + 2 * 32**2 + 18 * 64**2 + 2 * 128**2)


def wrong_1():
    """One width for all stages."""
    return 12 * 24 * 16**2


def solution_2():
    def training_flops(gmac, steps, batch_size):
        return 6 * gmac * 1e9 * steps * batch_size

    return training_flops


def wrong_2():
    """The forward pass alone."""

    def training_flops(gmac, steps, batch_size):
        return 2 * gmac * 1e9 * steps * batch_size

    return training_flops


def solution_3():
    def best_under(rows, budget):
        some = [r for r in rows if r["dataset"] == "imagenet1k-100" and r["flops"] <= budget]
        return max(some, key=lambda r: r["finetune"])["model"] if some else None

    return best_under


def wrong_3():
    """The largest that is affordable."""

    def best_under(rows, budget):
        some = [r for r in rows if r["dataset"] == "imagenet1k-100" and r["flops"] <= budget]
        return max(some, key=lambda r: r["params"])["model"] if some else None

    return best_under
