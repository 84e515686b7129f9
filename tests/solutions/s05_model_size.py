"""Exercises of 05_model_size: a solution of each, and a plausible wrong answer."""

solution_1 = 12 * (2 * 16**2 + 2 * 32**2 + 18 * 64**2 + 2 * 128**2)
wrong_1 = 12 * 24 * 16**2  # one width for all stages


def solution_2(gmac, steps, batch_size):
    return 6 * gmac * 1e9 * steps * batch_size


def wrong_2(gmac, steps, batch_size):
    """The forward pass alone."""
    return 2 * gmac * 1e9 * steps * batch_size


def solution_3(rows, budget):
    some = [r for r in rows if r["dataset"] == "imagenet1k-100" and r["flops"] <= budget]
    return max(some, key=lambda r: r["finetune"])["model"] if some else None


def wrong_3(rows, budget):
    """The largest that is affordable."""
    some = [r for r in rows if r["dataset"] == "imagenet1k-100" and r["flops"] <= budget]
    return max(some, key=lambda r: r["params"])["model"] if some else None
