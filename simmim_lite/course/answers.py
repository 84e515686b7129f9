"""What the planner says on the published levels, and what following it would have cost: a table of notebook 09."""

from collections.abc import Iterable

from ..errors import UserError
from ..evidence import heldout, published
from ..studies.planner import RULE, plan


def answers(budgets: Iterable[float] = (1e19, 1e20, 3e20)) -> list[dict]:
    """For four published data levels and each budget: level, budget, `plan` (a `Plan`, or the line that says why there
    is none), and the points lost on the published runs that the budget allows by following the law fitted on the other
    levels (`regret`) and the simple rule (`rule_regret`); None where there are fewer than two such runs."""
    rows, found = published.rows(), []
    for level in ("imagenet1k-10", "imagenet1k-20", "imagenet1k-100", "imagenet22k"):
        predict = heldout.fitted(rows, "accuracy", "fixed", level)
        here = [row for row in rows if row["dataset"] == level]
        for budget in budgets:
            line = {"level": level, "budget": budget, "regret": None, "rule_regret": None}
            try:
                line["plan"] = plan(here[0]["images"], budget_flops=budget)
            except UserError as error:
                line["plan"] = str(error)
            if len(options := [row for row in here if row["flops"] <= budget]) > 1:
                picked = {"regret": max(options, key=predict), "rule_regret": max(options, key=heldout.SIMPLE[RULE])}
                line |= {name: heldout.lost(options, row, published.SCORE) for name, row in picked.items()}
            found.append(line)
    return found
