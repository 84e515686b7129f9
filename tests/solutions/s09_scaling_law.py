"""Exercises of 09_scaling_law: a solution of each, and a plausible wrong answer."""

solution_1 = 0.07 * 2**2 / (1 + 2**2)
wrong_1 = 0.07 * (5.4e6 / 2.7e6) ** 2  # does not saturate


def solution_2(groups):
    everything = range(len(groups))
    return [
        ([k for k in everything if groups[k] != one], [k for k in everything if groups[k] == one])
        for one in dict.fromkeys(groups)
    ]


def wrong_2(groups):
    """Leaves single runs out."""
    return [([j for j in range(len(groups)) if j != k], [k]) for k in range(len(groups))]


def solution_3(rows, rule):
    lost = []
    for budget in sorted({r["flops"] for r in rows})[1:]:
        options = [r for r in rows if r["flops"] <= budget]
        lost.append(100 * (max(r["finetune"] for r in options) - rule(options)["finetune"]))
    return sum(lost) / len(lost)


def wrong_3(rows, rule):
    """Against the best of all runs."""
    best = max(r["finetune"] for r in rows)
    budgets = sorted({r["flops"] for r in rows})[1:]
    return sum(100 * (best - rule([r for r in rows if r["flops"] <= b])["finetune"]) for b in budgets) / len(budgets)
