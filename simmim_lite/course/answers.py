"""What the planner says on the published levels, and what following it would have cost: a table of notebook 09."""

from collections.abc import Iterable

from ..errors import UserError
from ..evidence import heldout, published
from ..studies.planner import RULE, plan


def answers(budgets: Iterable[float] = (1e19, 1e20, 3e20)) -> list[dict]:
    """For four published data levels and each budget: what the planner names, what the simple rule picks, and the
    regret of each.

    `plan` is the `Plan`, or the line that says why there is none. Regret in points is counted on the published runs of
    that level which the budget allows, with the law fitted on the other levels: `picked`, `rule` (rows) and `regret`,
    `rule_regret`; None where no published run is that cheap, or only one.
    """
    rows, found = published.rows(), []
    for level in ("imagenet1k-10", "imagenet1k-20", "imagenet1k-100", "imagenet22k"):
        predict = heldout.fitted(rows, "accuracy", "fixed", level)
        here = [row for row in rows if row["dataset"] == level]
        for budget in budgets:
            line = {"level": level, "budget": budget} | dict.fromkeys(("picked", "rule", "regret", "rule_regret"))
            try:
                line["plan"] = plan(here[0]["images"], budget_flops=budget)
            except UserError as error:
                line["plan"] = str(error)
            options = tuple(row for row in here if row["flops"] <= budget)
            if len(options) > 1:
                line["picked"], line["rule"] = min(options, key=predict), max(options, key=heldout.SIMPLE[RULE])
                picked = (line["picked"], line["rule"])
                line["regret"], line["rule_regret"] = (heldout.lost(options, row, published.SCORE) for row in picked)
            found.append(line)
    return found
