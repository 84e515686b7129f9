"""How well a law predicts runs it was not fitted to: splits, errors, intervals and their coverage. No torch here."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, unknown
from .forms import Points
from .laws import Fit, fit

#: Ways to hold runs out, by what a planner would be asked to predict.
SPLITS = {
    "one": "leave one out",
    "cell": "leave a (size, data) cell out",
    "size": "leave a size out",
    "level": "leave a data level out",
    "length": "train on the shorter runs, predict the longest",
}
NOMINAL = 0.9  # of intervals from held-out errors


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Errors of a form on held-out runs: prediction less truth, NaN where a run was in every fold's fit."""

    form: str
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
        """Half the width of a 90 % interval: the quantile of the absolute errors."""
        return quantile(self.error)


def folds(x: Points, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(runs to fit, runs to predict) as index arrays. Seeds of one setting are held out together."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    index = np.arange(len(x))
    if split == "length":
        longest = x.t == x.t.max()
        if longest.all():
            raise UserError(f"all runs have {x.t.max():,.0f} steps: predicting longer runs needs two lengths")
        yield index[~longest], index[longest]
        return
    name = {"one": "unit"}.get(split, split)
    group = getattr(x, name)
    if len(np.unique(group)) < 2:
        raise UserError(f"all runs share one {name}: to {SPLITS[split]}, two are needed")
    for one in dict.fromkeys(group.tolist()):
        yield index[group != one], index[group == one]


def held_out(form: str, x: Points, split: str, *, whole: Fit | None = None) -> HeldOut:
    """Fit in every fold anew, all free parameters of the form, and predict what was held out.

    whole: the fit to all runs, where searches may start; its optimum is never used as a prediction.
    """
    whole = whole or fit(form, x)
    predicted, hits, count = np.full(len(x), np.nan), {}, 0
    for train, test in folds(x, split):
        law = fit(form, x[train], near=whole)
        predicted[test] = law.predict(x[test])
        count += 1
        for name in law.hit:
            hits[name] = hits.get(name, 0) + 1
    return HeldOut(form, split, predicted - x.y, predicted, count, hits)


def quantile(error: np.ndarray, nominal: float = NOMINAL) -> float:
    """The half width that covers this share of errors (n,), NaN left out: the k-th smallest, k = share x (n + 1).

    One more than the plain quantile would take, which covers too little in small samples (split conformal).
    """
    size = np.sort(np.abs(error[~np.isnan(error)]))
    return float(size[min(len(size), int(np.ceil(nominal * (len(size) + 1)))) - 1])


def coverage(x: Points, found: HeldOut, by: str) -> dict[str, dict]:
    """How often the 90 % interval holds the truth, a line a group (`by` = "size", "level" or "t").

    Of each: `own`, with the half width from the errors of all held-out runs, and `others`, with that from the other
    groups' alone, which is what a reader outside the grid gets; n runs; `under`, whether `others` is so low that it
    would happen by chance less than once in ten.
    """
    known = ~np.isnan(found.error)
    group = getattr(x, by)
    said = {}
    for one in dict.fromkeys(group[known].tolist()):
        inside = known & (group == one)
        wide = found.half_width
        rest = quantile(found.error[known & ~inside]) if (known & ~inside).any() else wide
        share = float((np.abs(found.error[inside]) <= wide).mean())
        other = float((np.abs(found.error[inside]) <= rest).mean())
        n = int(inside.sum())
        said[str(one)] = {"own": share, "others": other, "n": n, "under": _chance(round(other * n), n) < 0.1}
    return said


def _chance(hits: int, n: int) -> float:
    """The chance of this many hits or fewer of n at the nominal share."""
    from math import comb

    return sum(comb(n, k) * NOMINAL**k * (1 - NOMINAL) ** (n - k) for k in range(hits + 1))


def better_by_gap(x: Points, found: HeldOut, gaps: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, np.inf)) -> list[dict]:
    """How often, of two held-out runs, the one of the better prediction is the better one, by the gap predicted.

    gaps in the unit of y (points of error, or loss); pairs that tie in truth, and seeds of one setting, do not count.
    """
    i, j = np.triu_indices(len(x), 1)
    use = ~np.isnan(found.predicted[i] + found.predicted[j]) & (x.y[i] != x.y[j]) & (x.unit[i] != x.unit[j])
    gap = found.predicted[i] - found.predicted[j]
    right = gap * (x.y[i] - x.y[j]) > 0
    lines = []
    for low, high in zip(gaps, gaps[1:], strict=False):
        some = use & (np.abs(gap) >= low) & (np.abs(gap) < high)
        if some.any():
            lines.append({"from": low, "to": None if np.isinf(high) else high, "n": int(some.sum())})
            lines[-1]["share"] = float(right[some].mean())
    return lines
