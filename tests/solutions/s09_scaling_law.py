"""Exercises of 09_scaling_law: a solution of each, and a plausible wrong answer."""


def solution_1():
    h = (5.4e6 / 2.7e6) ** 2
    return 0.07 * h / (1 + h)


def wrong_1():
    """Does not saturate."""
    return 0.07 * (5.4e6 / 2.7e6) ** 2


def solution_2():
    def folds(groups):
        everything = range(len(groups))
        return [
            ([k for k in everything if groups[k] != one], [k for k in everything if groups[k] == one])
            for one in dict.fromkeys(groups)
        ]

    return folds


def wrong_2():
    """Leaves single runs out."""
    return lambda groups: [([j for j in range(len(groups)) if j != k], [k]) for k in range(len(groups))]


def solution_3():
    def regret(rows, rule):
        lost = []
        for budget in sorted({r["flops"] for r in rows})[1:]:
            options = [r for r in rows if r["flops"] <= budget]
            lost.append(100 * (max(r["finetune"] for r in options) - rule(options)["finetune"]))
        return sum(lost) / len(lost)

    return regret


def wrong_3():
    """Against the best of all runs."""

    def regret(rows, rule):
        best = max(r["finetune"] for r in rows)
        budgets = sorted({r["flops"] for r in rows})[1:]
        return sum(100 * (best - rule([r for r in rows if r["flops"] <= b])["finetune"]) for b in budgets) / len(
            budgets
        )

    return regret
