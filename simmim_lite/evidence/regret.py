"""What a rule for choosing size and length costs: regret over budget problems on unseen data levels. No torch here.

A problem (docs/facts.md, 7): of one data level take the sorted distinct training costs of its runs; each but the
smallest is a budget; the options are the runs that cost no more. A rule is fitted on the other data levels and picks
one. Its regret is the best score among the options less that of the one picked. The published runs give 58 problems.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError
from .laws import Points, fit, level_of, points, score_of
from .records import trained

#: Rules without a fit, on (model size, length, cost) of the options: the one with the largest key is picked.
SIMPLE: dict[str, Callable[[dict], tuple]] = {
    "longest, then largest": lambda row: (row["steps"], row["params"]),
    "largest, then longest": lambda row: (row["params"], row["steps"]),
    "most compute": lambda row: (row["flops"],),
}
#: Rules by a law fitted on the other data levels: target and form.
LAWS = {
    "accuracy law, exponents fixed": ("accuracy", "fixed"),
    "accuracy law, exponents free": ("accuracy", "free"),
    "loss law, exponents fixed": ("loss", "fixed"),
    "loss law, exponents free": ("loss", "free"),
    "data-constrained law of accuracy": ("accuracy", "constrained"),
    "Chinchilla law of accuracy": ("accuracy", "chinchilla"),
    "product law of accuracy": ("accuracy", "product"),
}
MEASURED, RANDOM = "measured loss of every option", "random"


@dataclass(frozen=True)
class Problem:
    """One budget on one data level: rows that may be picked, and the best score among them."""

    level: str
    budget: float  # FLOPs
    options: tuple[dict, ...]
    score: str

    @property
    def best(self) -> float:
        """The highest score of the options, 0 to 1."""
        return max(row[self.score] for row in self.options)

    def regret(self, row: dict) -> float:
        """Points of score lost by picking this row."""
        return 100 * (self.best - row[self.score])


def settings(rows: Iterable[dict], score: str) -> list[dict]:
    """One row a setting (size, data, length), loss and score averaged over seeds; runs without either are left out."""
    found: dict[tuple, list[dict]] = {}
    for row in trained(rows):
        if row["val_loss"] is not None and row[score] is not None and row["flops"] is not None:
            found.setdefault((row["model"], level_of(row), row["images"], row["steps"]), []).append(row)
    names = ("val_loss", score, "flops")
    return [same[0] | {name: float(np.mean([r[name] for r in same])) for name in names} for same in found.values()]


def problems(rows: Iterable[dict], score: str | None = None) -> list[Problem]:
    """Every budget problem of rows with costs and scores. `UserError` where there is no choice to make."""
    rows = list(rows)
    score = score or score_of(rows)
    some = settings(rows, score) if score else []
    found = []
    for level in dict.fromkeys(map(level_of, some)):
        here = [row for row in some if level_of(row) == level]
        for budget in sorted({row["flops"] for row in here})[1:]:
            options = tuple(row for row in here if row["flops"] <= budget * (1 + 1e-9))
            found.append(Problem(level, budget, options, score))
    if not found:
        raise UserError("no budget problem: no data level has two runs of different cost with a score")
    return found


def fitted(
    rows: Iterable[dict], target: str, form: str, level: str, score: str | None = None
) -> Callable[[dict], float]:
    """A predictor of rows (loss, or error in per cent: lower is better) that was fitted on all other data levels."""
    train = [row for row in rows if level_of(row) != level]
    law = fit(form, points(train, target, score))
    return lambda row: float(law.predict(at(row, target))[0])


def at(row: dict, target: str) -> Points:
    """One run that was not made, as a point whose truth is unknown: params, steps, images, images_seen are needed."""
    one = {"n": row["params"], "t": row["steps"], "d": row["images"], "seen": row["images_seen"]}
    one |= {"other": float(not row.get("on_axis", True)), "y": np.nan}
    arrays = {name: np.array([value], float) for name, value in one.items()}
    return Points(**arrays, **{k: np.array([0]) for k in ("size", "level", "cell", "unit")}, target=target)


def table(rows: Iterable[dict], score: str | None = None, rules: Iterable[str] | None = None) -> pd.DataFrame:
    """Regret in points of every rule, a row each: mean, worst and n over all problems, and the mean by data level."""
    rows = list(rows)
    found, score, lines = problems(rows, score), score or score_of(rows), []
    for rule in rules or (*LAWS, MEASURED, *SIMPLE, RANDOM):
        for level in dict.fromkeys(p.level for p in found):
            predict = fitted(rows, *LAWS[rule], level, score) if rule in LAWS else None
            lines += [(rule, level, _regret(p, rule, predict)) for p in found if p.level == level]
    frame = pd.DataFrame(lines, columns=["rule", "level", "regret"])
    by_level = frame.groupby(["rule", "level"], sort=False)["regret"].mean().unstack(sort=False)
    return frame.groupby("rule", sort=False)["regret"].agg(mean="mean", worst="max", n="count").join(by_level)


def _regret(problem: Problem, rule: str, predict: Callable[[dict], float] | None) -> float:
    if rule == RANDOM:  # the mean over all options
        return float(np.mean([problem.regret(row) for row in problem.options]))
    return problem.regret(pick(problem.options, rule, predict))


def pick(options: Iterable[dict], rule: str, predict: Callable[[dict], float] | None = None) -> dict:
    """The option that a rule picks; predict: of a law in LAWS."""
    if rule in SIMPLE:
        return max(options, key=SIMPLE[rule])
    return min(options, key=predict or (lambda row: row["val_loss"]))
