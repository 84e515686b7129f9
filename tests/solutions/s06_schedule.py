"""Exercises of 06_schedule: a solution of each, and a plausible wrong answer."""


def _counter(counts):
    def rose_and_gained(rows):
        runs = {(r["model"], r["dataset"], r["steps"]): r for r in rows}
        pairs = [(r, runs.get((m, d, 2 * t))) for (m, d, t), r in runs.items()]
        return sum(counts(b["val_loss"] - a["val_loss"], b["finetune"] - a["finetune"]) for a, b in pairs if b)

    return rose_and_gained


solution_1 = 49e6 * 500_000 * 2048 / 128_117**2
wrong_1 = 49e6 * 500_000 * 2048 / 128_117  # divided once

solution_2 = _counter(lambda loss, score: loss > 0 and score > 0)
wrong_2 = _counter(lambda loss, score: score > 0)  # all that gained accuracy


def solution_3(omega):
    return "green" if omega < 7e5 else "amber" if omega < 4e6 else "red"


def wrong_3(omega):
    """Red as soon as the loss rises."""
    return "green" if omega < 7e5 else "red"
