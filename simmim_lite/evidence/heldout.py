"""How well laws predict runs they have not seen: held-out errors, coverage of intervals, parameters, and regret.

Regret (docs/facts.md, 7): each distinct training cost on a data level but the smallest is a budget; what is lost by the
option that a rule picks, which was fitted on the other levels, against the best that cost no more."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from .laws import FORMS, TARGETS, Fit, Points, at, fit, level_of, points
from .records import score_of, trained

#: Ways to hold runs out, by what a planner would be asked to predict.
SPLITS = {
    "one": "leave one out",
    "cell": "leave a (size, data) cell out",
    "size": "leave a size out",
    "level": "leave a data level out",
    "length": "train on the shorter runs, predict the longest",
}
NOMINAL = 0.9  # of intervals from held-out errors
MEASURED, RANDOM = "measured loss of every option", "random"
#: Rules without a fit: the option with the largest key is picked.
SIMPLE = {
    MEASURED: lambda row: -row["val_loss"],
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


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Errors of a form on held-out runs: prediction less truth, NaN where a run was in every fold's fit."""

    split: str
    error: np.ndarray  # (n,)
    mean: float  # absolute error
    half_width: float  # of a 90 % interval


def folds(x: Points, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(runs to fit, runs to predict) as index arrays. Seeds of one setting are held out together."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    group = x.t == x.t.max() if split == "length" else getattr(x, {"one": "unit"}.get(split, split))
    values = [True] if split == "length" else dict.fromkeys(group.tolist())
    for value in values:
        held = group == value
        if held.all():
            raise UserError(f"all runs share one {split}: to {SPLITS[split]}, two are needed")
        yield np.flatnonzero(~held), np.flatnonzero(held)


def held_out(form: str, x: Points, split: str, *, whole: Fit | None = None) -> HeldOut:
    """Fit in every fold anew, all free parameters of the form, and predict what was held out. whole: the fit to all
    runs, where searches may start; its optimum is never used as a prediction."""
    whole, error = whole or fit(form, x), np.full(len(x), np.nan)
    for train, test in folds(x, split):
        error[test] = fit(form, x[train], near=whole).predict(x[test]) - x.y[test]
    return HeldOut(split, error, float(np.nanmean(np.abs(error))), quantile(error))


def quantile(error: np.ndarray) -> float:
    """The half width that covers NOMINAL of errors (n,), NaN left out: the k-th smallest, k = NOMINAL x (n + 1): one
    more than the plain quantile takes, which covers too little in small samples (split conformal)."""
    size = np.sort(np.abs(error[~np.isnan(error)]))
    return float(size[min(len(size), int(np.ceil(NOMINAL * (len(size) + 1)))) - 1])


def coverage(x: Points, found: HeldOut, by: str) -> dict[str, dict]:
    """How often the 90 % interval holds the truth, by group (`by` = "size", "level" or "t"): `others`, with the half
    width from the other groups' errors alone, which is what a reader outside the grid gets; n runs; `under`, whether it
    is so low that it would happen by chance less than once in ten."""
    from scipy.stats import binom

    known, group, lines = ~np.isnan(found.error), getattr(x, by), {}
    for one in dict.fromkeys(group[known].tolist()):
        inside = known & (group == one)
        size, rest = np.abs(found.error[inside]), found.error[known & ~inside]
        held = size <= (quantile(rest) if len(rest) else found.half_width)
        under = bool(binom.cdf(held.sum(), len(size), NOMINAL) < 0.1)
        lines[str(one)] = {"others": float(held.mean()), "n": len(size), "under": under}
    return lines


def _fits(rows: list[dict], forms: Iterable[str]) -> Iterator[tuple[dict, Points, Fit]]:
    """Of each target and form that has runs enough: their names, the runs, and the fit."""
    for target, form in itertools.product(TARGETS if score_of(rows) else TARGETS[:1], forms):
        x = points(rows, target)
        with suppress(UserError):
            yield {"target": target, "form": form}, x, fit(form, x)


def errors(rows: list[dict], forms: Iterable[str] = FORMS, splits: Iterable[str] = SPLITS) -> pd.DataFrame:
    """Mean absolute held-out errors (loss, or points of accuracy): a row a target, form and split that rows allow."""
    lines = []
    for (head, x, whole), split in itertools.product(_fits(rows, forms), splits):
        with suppress(UserError):
            lines.append(head | {"split": split, "mean": held_out(head["form"], x, split, whole=whole).mean})
    return pd.DataFrame(lines, columns=["target", "form", "split", "mean"])


def parameters(rows: list[dict], forms: Iterable[str] = ("fixed", "free"), *, resamples: int = 100) -> pd.DataFrame:
    """Parameters of laws fitted to all rows: target, form, parameter, value, and its 95 % interval by
    bootstrap over whole (size, data) cells, draws with too few different runs left out."""
    lines = []
    for head, x, law in _fits(rows, forms):
        rng, cells, drawn = np.random.default_rng(0), np.unique(x.cell), []
        for _ in range(resamples):
            index = np.concatenate([np.flatnonzero(x.cell == cell) for cell in rng.choice(cells, len(cells))])
            with suppress(UserError):
                again = fit(head["form"], x[index], near=law, most=400)  # parameters trade with one another
                drawn.append(again.shapes | again.coefficients)
        for name, value in (law.shapes | law.coefficients).items():
            low, high = np.percentile([one[name] for one in drawn], [2.5, 97.5])
            lines.append(head | {"parameter": name, "value": value, "low": low, "high": high})
    return pd.DataFrame(lines)


def fitted(rows: list[dict], target: str, form: str, level: str, near: Fit | None = None) -> Callable[[dict], float]:
    """What a law that was fitted on all other data levels says of a row: its loss, or error in per cent, negated.

    near: a fit to all levels, where the search may start."""
    law = fit(form, points([row for row in rows if level_of(row) != level], target), near=near)
    return lambda row: -float(law.predict(at(row, target))[0])


def lost(options: Iterable[dict], row: dict, score: str) -> float:
    """Points of score lost by picking this row and not the best of the options."""
    return 100 * (max(option[score] for option in options) - row[score])


def regret(rows: Iterable[dict], rules: Iterable[str] = (*LAWS, *SIMPLE, RANDOM)) -> pd.DataFrame:
    """Regret in points of every rule, a row each: mean, worst and n over all problems, and the mean by data level.

    rows: one seed a setting (size, data, length). `UserError` without a choice, and for a rule that there is not.
    """
    rules, known = tuple(rules), (*LAWS, *SIMPLE, RANDOM)
    if odd := [rule for rule in rules if rule not in known]:
        raise unknown("rule", odd[0], known)
    rows = trained(rows)
    score = score_of(rows) or "linear"
    some = [row for row in rows if all(row[name] is not None for name in ("val_loss", "flops", score))]
    problems = []
    for level in dict.fromkeys(map(level_of, some)):
        here = [row for row in some if level_of(row) == level]
        budgets = sorted({row["flops"] for row in here})[1:]
        problems += [(level, [row for row in here if row["flops"] <= budget * (1 + 1e-9)]) for budget in budgets]
    if not problems:
        raise UserError("no budget problem: no data level has two runs of different cost with a score")
    lines, levels = [], list(dict(problems))
    for rule in rules:
        keys = dict.fromkeys(levels, SIMPLE.get(rule))
        if rule in LAWS:
            whole = fit(LAWS[rule][1], points(rows, LAWS[rule][0]))
            keys = {level: fitted(rows, *LAWS[rule], level, whole) for level in levels}
        for level, options in problems:
            picked = [max(options, key=keys[level])] if keys[level] else options
            lines.append((rule, level, float(np.mean([lost(options, row, score) for row in picked]))))
    frame = pd.DataFrame(lines, columns=["rule", "level", "regret"])
    by_level = frame.groupby(["rule", "level"], sort=False)["regret"].mean().unstack(sort=False)
    return frame.groupby("rule", sort=False)["regret"].agg(mean="mean", worst="max", n="count").join(by_level)
