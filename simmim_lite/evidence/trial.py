"""The laws on trial: errors on runs held out, coverage of intervals, parameters, and regret. No torch here.

Regret (docs/facts.md, 7): each distinct training cost on a data level but the smallest is a budget, the runs that cost
no more are options. A rule is fitted on the other levels and picks one: the best score less its own is the regret.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from .laws import FORMS, TARGETS, Fit, Points, at, fit, level_of, points, score_of
from .records import trained

#: Ways to hold runs out, by what a planner would be asked to predict.
SPLITS = {
    "one": "leave one out",
    "cell": "leave a (size, data) cell out",
    "size": "leave a size out",
    "level": "leave a data level out",
    "length": "train on the shorter runs, predict the longest",
}
NOMINAL = 0.9  # of intervals from held-out errors
#: Rules without a fit, on (model size, length, cost) of the options: the one with the largest key is picked.
SIMPLE = {
    "longest, then largest": lambda row: (row["steps"], row["params"]),
    "largest, then longest": lambda row: (row["params"], row["steps"]),
}
#: Rules by a law fitted on the other data levels: target and form.
LAWS = {
    "accuracy law, exponents fixed": ("accuracy", "fixed"),
    "accuracy law, exponents free": ("accuracy", "free"),
    "loss law, exponents free": ("loss", "free"),
    "Chinchilla law of accuracy": ("accuracy", "chinchilla"),
}
MEASURED, RANDOM = "measured loss of every option", "random"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Errors of a form on held-out runs: prediction less truth, NaN where a run was in every fold's fit."""

    split: str
    error: np.ndarray  # (n,)
    predicted: np.ndarray  # (n,)
    folds: int
    hits: dict[str, int]  # folds in which a bound was hit, by "E at 0"

    @property
    def mean(self) -> float:
        """Mean absolute error over all held-out runs."""
        return float(np.nanmean(np.abs(self.error)))

    @property
    def half_width(self) -> float:
        """Half the width of a 90 % interval."""
        return quantile(self.error)


def folds(x: Points, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(runs to fit, runs to predict) as index arrays. Seeds of one setting are held out together."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    groups = [x.t == x.t.max()]
    if split != "length":
        name = {"one": "unit"}.get(split, split)
        groups = [getattr(x, name) == one for one in dict.fromkeys(getattr(x, name).tolist())]
    if groups[0].all():
        raise UserError(f"all runs share one {split}: to {SPLITS[split]}, two are needed")
    for held in groups:
        yield np.flatnonzero(~held), np.flatnonzero(held)


def held_out(form: str, x: Points, split: str, *, whole: Fit | None = None) -> HeldOut:
    """Fit in every fold anew, all free parameters of the form, and predict what was held out.

    whole: the fit to all runs, where searches may start; its optimum is never used as a prediction.
    """
    whole = whole or fit(form, x)
    predicted, hits, count = np.full(len(x), np.nan), {}, 0
    for train, test in folds(x, split):
        law = fit(form, x[train], near=whole)
        predicted[test], count = law.predict(x[test]), count + 1
        for name in law.hit:
            hits[name] = hits.get(name, 0) + 1
    return HeldOut(split, predicted - x.y, predicted, count, hits)


def quantile(error: np.ndarray) -> float:
    """The half width that covers NOMINAL of errors (n,), NaN left out: the k-th smallest, k = NOMINAL x (n + 1).

    One more than the plain quantile would take, which covers too little in small samples (split conformal)."""
    size = np.sort(np.abs(error[~np.isnan(error)]))
    return float(size[min(len(size), int(np.ceil(NOMINAL * (len(size) + 1)))) - 1])


def coverage(x: Points, found: HeldOut, by: str) -> dict[str, dict]:
    """How often the 90 % interval holds the truth, a line a group (`by` = "size", "level" or "t").

    Of each: `others`, with the half width from the other groups' errors alone, which is what a reader outside the grid
    gets; n runs; `under`, whether it is so low that it would happen by chance less than once in ten.
    """
    from scipy.stats import binom

    known, group, lines = ~np.isnan(found.error), getattr(x, by), {}
    for one in dict.fromkeys(group[known].tolist()):
        inside = known & (group == one)
        size, rest = np.abs(found.error[inside]), found.error[known & ~inside]
        held = size <= (quantile(rest) if len(rest) else found.half_width)
        under = bool(binom.cdf(held.sum(), len(size), NOMINAL) < 0.1)
        lines[str(one)] = {"others": float(held.mean()), "n": len(size), "under": under}
    return lines


def _fits(rows: list[dict], forms: Iterable[str]) -> Iterator[tuple[dict, Points, Fit | str]]:
    """Of each target and form: their names, the runs, and the fit, or why there is none."""
    for target, form in itertools.product(TARGETS if score_of(rows) else TARGETS[:1], forms):
        x = points(rows, target)
        try:
            yield {"target": target, "form": form}, x, fit(form, x)
        except UserError as error:
            yield {"target": target, "form": form}, x, str(error)


def errors(
    rows: list[dict], forms: Iterable[str] = tuple(FORMS), splits: Iterable[str] = tuple(SPLITS)
) -> pd.DataFrame:
    """Held-out errors: a row a target, form and split, in their order; what the rows do not allow is missing.

    mean: mean absolute error (loss, or points of accuracy); half_width: of a 90 % interval; folds; bounds: which were
    hit in how many folds. A form that the rows are too few for has one row, with `why`.
    """
    lines = []
    for head, x, whole in _fits(rows, forms):
        if isinstance(whole, str):
            lines.append(head | {"why": whole})
            continue
        for split in splits:
            try:
                found = held_out(head["form"], x, split, whole=whole)
            except UserError:
                continue
            line = {"split": split, "mean": found.mean, "half_width": found.half_width, "folds": found.folds}
            bounds = ", ".join(f"{name} in {n}" for name, n in found.hits.items())
            lines.append(head | line | {"bounds": bounds, "why": ""})
    return pd.DataFrame(lines, columns=["target", "form", "split", "mean", "half_width", "folds", "bounds", "why"])


def parameters(rows: list[dict], forms: Iterable[str] = ("fixed", "free"), *, resamples: int = 100) -> pd.DataFrame:
    """Parameters of laws fitted to all rows: target, form, parameter, value, and their 95 % interval.

    The interval is by bootstrap over whole (size, data) cells, draws with too few different runs left out; missing
    without resamples. bound: which bound the fit hit.
    """
    lines = []
    for head, x, law in _fits(rows, forms):
        if isinstance(law, str):
            continue
        rng, cells, drawn = np.random.default_rng(0), np.unique(x.cell), []
        for _ in range(resamples):
            index = np.concatenate([np.flatnonzero(x.cell == cell) for cell in rng.choice(cells, len(cells))])
            try:
                again = fit(head["form"], x[index], near=law, most=400)  # parameters trade with one another
            except UserError:
                continue
            drawn.append(again.shapes | again.coefficients)
        for name, value in (law.shapes | law.coefficients).items():
            low, high = np.percentile([one[name] for one in drawn], [2.5, 97.5]) if drawn else (None, None)
            bound = next((hit for hit in law.hit if hit.split(" ")[0] == name), "")
            lines.append(head | {"parameter": name, "value": value, "low": low, "high": high, "bound": bound})
    return pd.DataFrame(lines)


def fitted(rows: Iterable[dict], target: str, form: str, level: str) -> Callable[[dict], float]:
    """A predictor of rows (loss, or error in per cent: lower is better) that was fitted on all other data levels."""
    law = fit(form, points([row for row in rows if level_of(row) != level], target))
    return lambda row: float(law.predict(at(row, target))[0])


def pick(options: Iterable[dict], rule: str, predict: Callable[[dict], float] | None = None) -> dict:
    """The option that a rule picks; predict: of a law in LAWS."""
    if rule in SIMPLE:
        return max(options, key=SIMPLE[rule])
    return min(options, key=predict or (lambda row: row["val_loss"]))


def lost(options: Iterable[dict], row: dict, score: str) -> float:
    """Points of score lost by picking this row and not the best of the options."""
    return 100 * (max(option[score] for option in options) - row[score])


def regret(rows: Iterable[dict], rules: Iterable[str] = (*LAWS, MEASURED, *SIMPLE, RANDOM)) -> pd.DataFrame:
    """Regret in points of every rule, a row each: mean, worst and n over all problems, and the mean by data level.

    A setting (size, data, length) counts once, its loss and score averaged over seeds. `UserError` without a choice.
    """
    rows = trained(rows)
    score, names = score_of(rows) or "linear", ["val_loss", "flops"]
    settings: dict[tuple, list[dict]] = {}
    for row in rows:
        if all(row[name] is not None for name in (*names, score)):
            settings.setdefault((row["model"], level_of(row), row["images"], row["steps"]), []).append(row)
    some = [
        same[0] | {name: float(np.mean([row[name] for row in same])) for name in (*names, score)}
        for same in settings.values()
    ]
    problems = []
    for level in dict.fromkeys(map(level_of, some)):
        here = [row for row in some if level_of(row) == level]
        budgets = sorted({row["flops"] for row in here})[1:]
        problems += [(level, [row for row in here if row["flops"] <= budget * (1 + 1e-9)]) for budget in budgets]
    if not problems:
        raise UserError("no budget problem: no data level has two runs of different cost with a score")
    lines = []
    for rule in rules:
        predict = {level: fitted(rows, *LAWS[rule], level) if rule in LAWS else None for level, _ in problems}
        for level, options in problems:
            picked = options if rule == RANDOM else [pick(options, rule, predict[level])]
            lines.append((rule, level, float(np.mean([lost(options, row, score) for row in picked]))))
    frame = pd.DataFrame(lines, columns=["rule", "level", "regret"])
    by_level = frame.groupby(["rule", "level"], sort=False)["regret"].mean().unstack(sort=False)
    return frame.groupby("rule", sort=False)["regret"].agg(mean="mean", worst="max", n="count").join(by_level)
