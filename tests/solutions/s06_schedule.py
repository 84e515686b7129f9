"""Exercises of 06_schedule: a solution of each, and a plausible wrong answer."""


def solution_1():
    return 49e6 * 500_000 * 2048 / 128_117**2


def wrong_1():
    """Divided once."""
    return 49e6 * 500_000 * 2048 / 128_117


def solution_2():
    return _counter(lambda loss, score: loss > 0 and score > 0)


def wrong_2():
    """All that gained accuracy."""
    return _counter(lambda loss, score: score > 0)


def _counter(counts):
    def rose_and_gained(rows):
        runs = {(r["model"], r["dataset"], r["steps"]): r for r in rows}
        pairs = [(r, runs.get((m, d, 2 * t))) for (m, d, t), r in runs.items()]
        return sum(counts(b["val_loss"] - a["val_loss"], b["finetune"] - a["finetune"]) for a, b in pairs if b)

    return rose_and_gained


def solution_3():
    return lambda omega: "green" if omega < 7e5 else "amber" if omega < 4e6 else "red"


def wrong_3():
    """Red as soon as the loss rises."""
    return lambda omega: "green" if omega < 7e5 else "red"
