"""Statistics of the claims: Student's t, rank correlation, jackknife, reliability, power; no bootstrap of few units,
whose percentiles cover 88 % in place of 95 %. No torch here."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

RESAMPLES = 2000
#: Units (seeds or cells) that an interval needs before it may decide anything: two have one degree of freedom.
MIN_UNITS = 3
MOST_UNITS = 1000  # more are never asked for


class Interval(NamedTuple):
    """An estimate with its interval; low and high are None where there is one unit."""

    value: float | None
    low: float | None
    high: float | None


@cache
def t_quantile(p: float, free: int) -> float:
    """Quantile of Student's t with `free` degrees of freedom."""
    from scipy.special import stdtrit  # scipy takes a quarter of a second to import

    return float(stdtrit(free, p))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values (n,) with Student's t interval, at every n; no interval of one value."""
    values = np.asarray(values, float)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, None)
    half = t_quantile(0.5 + confidence / 2, n - 1) * float(np.std(values, ddof=1)) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman correlation of x and y (n,), ties sharing their mean rank; NaN where one of them is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(*(pd.Series(v, dtype=float).rank() for v in (x, y)))[0, 1])


def jackknife(statistic: Callable[[np.ndarray], float], unit: np.ndarray) -> tuple[np.ndarray, Interval]:
    """A statistic of indices by leaving out whole units (numbers from 0) in turn: its pseudo-values (units,), and
    itself with theirs as 95 % interval, which is centred where the estimate is with its bias taken out."""
    n, value = int(unit.max()) + 1, float(statistic(np.arange(len(unit))))
    pseudo = np.array([n * value - (n - 1) * statistic(np.flatnonzero(unit != k)) for k in range(n)])
    return pseudo, Interval(value, *t_interval(pseudo)[1:])


def drawn(units: Sequence) -> np.ndarray:
    """How often each run (n,) of these units is drawn, (RESAMPLES, n), in a bootstrap of whole units: of many runs, for
    no claim."""
    names, unit = np.unique(units, return_inverse=True)
    draws = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    return np.stack([(draws == k).sum(1) for k in range(len(names))], 1)[:, unit].astype(float)


def reliability(frame: pd.DataFrame, score: str) -> float | None:
    """Share of a score's variance within a size that lies between cells (images x steps), and not between their seeds;
    components are averaged over sizes; None where no size has two cells and a cell of two seeds."""
    parts = []
    for _, runs in frame[frame[score].notna()].groupby("model"):
        cells = runs.groupby(["images", "steps"])[score]
        count, n, k = cells.size(), len(runs), cells.ngroups
        if k < 2 or n <= k:
            continue
        within = ((runs[score] - cells.transform("mean")) ** 2).sum() / (n - k)
        between = (count * (cells.mean() - runs[score].mean()) ** 2).sum() / (k - 1)
        seeds = (n - (count**2).sum() / n) / (k - 1)  # of a cell, also where they are not equal
        parts.append((max(0.0, (between - within) / seeds), within))
    between, within = np.mean(parts, 0) if parts else (0.0, 0.0)
    return float(between / (between + within)) if between + within > 0 else None


def power(effect: float, spread: float, units: int, confidence: float = 0.95) -> float:
    """The chance that a t interval over this many units, with this true mean and standard deviation, excludes 0."""
    from scipy.special import chdtri, ndtr

    if units < 2:
        return 0.0
    if spread <= 0:
        return float(effect != 0)
    free = units - 1
    # what a mean must exceed in units of its true standard error, over equal slices of the variance's distribution:
    # scipy's noncentral t, which would spare the slices, is wrong far out
    edges = t_quantile(0.5 + confidence / 2, free) * np.sqrt(chdtri(free, (np.arange(1000) + 0.5) / 1000) / free)
    away = abs(effect) / spread * np.sqrt(units)
    return float((ndtr(away - edges) + ndtr(-away - edges)).mean())


def units_needed(effect: float, spread: float, wanted: float = 0.8, confidence: float = 0.95) -> int | None:
    """The fewest units whose interval excludes 0 this often; None where MOST_UNITS do not."""
    needed = bisect_left(range(MOST_UNITS + 1), wanted, key=lambda n: power(effect, spread, n, confidence))
    return needed if needed <= MOST_UNITS else None
