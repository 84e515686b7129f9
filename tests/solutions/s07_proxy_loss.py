"""Exercises of 07_proxy_loss: a solution of each, and a plausible wrong answer."""

from itertools import combinations


def _rules(comparable):
    def share(rows, rule):
        pairs = [(a, b) for a, b in combinations(rows, 2) if comparable(a, b)]
        values = [(rule(a) - rule(b)) * (a["finetune"] - b["finetune"]) for a, b in pairs]
        return sum(v > 0 for v in values) / sum(v != 0 for v in values)

    def two_rules(rows):
        return share(rows, lambda r: -r["val_loss"]), share(rows, lambda r: r["params"])

    return two_rules


solution_1 = 9
wrong_1 = 3  # neighbours alone


def solution_2(losses, scores):
    pairs = [(a, b) for a, b in combinations(zip(losses, scores, strict=True), 2) if a[0] != b[0] and a[1] != b[1]]
    return sum((a[0] < b[0]) == (a[1] > b[1]) for a, b in pairs) / len(pairs)


def wrong_2(losses, scores):
    """Ties are counted."""
    pairs = list(combinations(zip(losses, scores, strict=True), 2))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs) / len(pairs)


solution_3 = _rules(lambda a, b: a["dataset"] == b["dataset"] and a["steps"] == b["steps"] and a["model"] != b["model"])
wrong_3 = _rules(lambda a, b: True)  # all pairs of runs
