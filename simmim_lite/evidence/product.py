"""C9 on trial: is precision a matter of data x size x length (the reading note's sum)? No torch here.

If it were, a doubling of the data would be worth a doubling of the size and of the length. On runs that are not
overfit, where the product has its best chance, the three slopes are fitted side by side and compared.
"""

from collections.abc import Iterable

import numpy as np

from .laws import Points, points, score_of
from .records import trained
from .rules import FAILS, HOLDS, OPEN, RULES, SMOKE_STEPS, UNTESTED, Claim
from .stats import drawn

RULE = RULES["C9"]


def slopes(x: Points) -> dict | None:
    """Slopes of -y on log N, log T, log D, and whether they are equal; None where a factor does not vary.

    Each of n, t, d is [value, low, high], in units of y for a factor of e, 95 % by bootstrap over (size, data) cells;
    `share` is d over the mean of n and t, with its interval; `p` of equal slopes by an F-test of independent runs.
    """
    factors = np.stack([np.log(x.n), np.log(x.t), np.log(x.d)], 1)
    full = np.concatenate([np.ones((len(x), 1)), factors], 1)
    if len(x) < 6 or np.linalg.matrix_rank(full - [0, *factors.mean(0)]) < 4:
        return None
    whole = -np.linalg.lstsq(full, x.y, rcond=None)[0][1:]
    cells, cell = np.unique(x.cell, return_inverse=True)
    weights = drawn(len(cells))[:, cell].astype(float)
    least = np.where(weights[..., None] > 0, factors, np.inf).min(1)  # (resamples, 3)
    weights = weights[(np.where(weights[..., None] > 0, factors, -np.inf).max(1) > least).all(1)]
    gram, cross = np.einsum("rn,ni,nj->rij", weights, full, full), np.einsum("rn,ni,n->ri", weights, full, x.y)
    again = -np.einsum("rij,rj->ri", np.linalg.pinv(gram, hermitian=True), cross)[:, 1:]
    said = {}
    for k, name in enumerate("ntd"):
        said[name] = [float(whole[k]), *map(float, np.percentile(again[:, k], [2.5, 97.5]))]
    share = again[:, 2] / again[:, :2].mean(1)
    said["share"] = [float(whole[2] / whole[:2].mean()), *map(float, np.percentile(share, [2.5, 97.5]))]
    return said | {"p": _equal(full, factors, x.y), "runs": len(x), "cells": len(cells)}


def claim(rows: Iterable[dict], target: str = "accuracy", score: str | None = None) -> Claim:
    """C9: the slope of data as a share of the mean slope of size and length, which the product says is 1.

    *holds* when its interval lies within 1 +- .5, *does not hold* when it lies outside. On runs that are not overfit;
    accuracy where the rows have a score, else loss. Rows must not be empty.
    """
    rows = list(rows)
    score = score or score_of(rows)
    target = "loss" if score is None else target
    name = {"loss": "val_loss", "accuracy": score}[target]
    clean = [row for row in trained(rows) if not row["overfit"] and row[name] is not None]
    found = slopes(points(clean, target, score)) if clean else None
    (effect, low, high), n = (None, None, None), 0
    if max(row["steps"] for row in rows) < SMOKE_STEPS:
        verdict, evidence = OPEN, f"Runs of less than {SMOKE_STEPS} steps say nothing about the question"
    elif found is None:
        evidence = "Size, length and data do not all vary among the runs that are not overfit"
        verdict = UNTESTED
    else:
        (effect, low, high), n, least, most = found["share"], found["cells"], 1 - RULE.margin, 1 + RULE.margin
        unit = {"loss": "loss", "accuracy": "points of accuracy"}[target]
        gains = ", ".join(f"{name} {found[k][0]:+.3g}" for k, name in (("n", "size"), ("t", "length"), ("d", "data")))
        evidence = (
            f"Gain in {unit} for a factor of e, {found['runs']} runs that are not overfit: {gains}; data is worth "
            f"{effect:.2f} of the mean of the other two, 95 % interval {low:+.2f} to {high:+.2f} "
            f"({n} cells; margin 1±{RULE.margin}); equal slopes: p = {found['p']:.1g}"
        )
        verdict = HOLDS if least < low and high < most else FAILS if high < least or most < low else OPEN
    same = {name: rows[0][name] for name in ("data", "target", "image_size", "recipe")}
    numbers = {"effect": effect, "low": low, "high": high, "n": n, "margin": RULE.margin, "verdict": verdict}
    return Claim(id="C9", statement=RULE.statement, evidence=evidence, **numbers, **same)


def _equal(full: np.ndarray, factors: np.ndarray, y: np.ndarray) -> float:
    """p of equal slopes: F-test of the model with one slope for the sum of logs against that with three."""
    from scipy.stats import f

    one = np.stack([np.ones(len(y)), factors.sum(1)], 1)
    rest = [((y - a @ np.linalg.lstsq(a, y, rcond=None)[0]) ** 2).sum() for a in (full, one)]
    free = len(y) - full.shape[1]
    return float(f.sf((rest[1] - rest[0]) / 2 / (rest[0] / free), 2, free))
