"""Laws of the validation loss, or of the error 100 - top-1 in per cent, and how they are fitted: N are backbone
parameters, T iterations, D unique images, S images seen, Omega = N S / D^2 (docs/facts.md, 7). No torch here."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from .records import SCORES, score_of, trained
from .stats import drawn

TARGETS = ("loss", "accuracy")
#: Exponents of the saturating laws. They, and Omega's own form, were chosen looking at all 63 published runs, after
#: about 35 forms were tried (docs/facts.md, 7): the form `free` refits them, and is the honest one.
SHAPES = {"loss": {"a": 0.2, "b": 0.2, "p": 2.0}, "accuracy": {"a": 0.8, "b": 0.5, "p": 1.25}}
#: Where Huber's loss turns from square to linear, in log residuals: near the noise of the published runs.
DELTA = {"loss": 0.002, "accuracy": 0.005}


@dataclass(frozen=True, eq=False)
class Points:
    """Runs as arrays (n,): what a law is fitted to. `y` is the loss or the error in per cent."""

    n: np.ndarray
    t: np.ndarray
    d: np.ndarray
    seen: np.ndarray
    other: np.ndarray  # 1 where the images are another set than the main one (ImageNet-22K), else 0
    y: np.ndarray
    size: np.ndarray  # model names
    level: np.ndarray  # data levels by name
    cell: np.ndarray  # size x data, a number each
    unit: np.ndarray  # size x data x length: seeds of one setting share it
    target: str  # loss | accuracy

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index) -> "Points":
        return Points(**{f.name: getattr(self, f.name)[index] for f in fields(self)[:-1]}, target=self.target)

    @property
    def omega(self) -> np.ndarray:
        """N S / D^2."""
        return self.n * self.seen / self.d**2


def level_of(row: dict) -> str:
    """The data level of a row by name."""
    return row.get("dataset") or f"{row['images']:,} images"


def points(rows: Iterable[dict], target: str = "loss", score: str | None = None) -> Points:
    """Rows of `records.run_rows` as arrays, those without the quantity left out; `UserError` for one out of range."""
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    rows = trained(rows)
    name = "val_loss" if target == "loss" else score or score_of(rows)
    if name is None:
        raise UserError("no run has a transfer score (it needs labelled images): use target loss")
    rows = [row for row in rows if row[name] is not None]
    if not rows:
        raise UserError(f"no finished run has a {SCORES.get(name, name)}: train some first, or choose the other target")
    for row, what in itertools.product(rows, ("params", "steps", "images", "images_seen", name)):
        value = row[what]
        if not np.isfinite(value) or not (0 <= value < 1 if what in SCORES else value > 0):
            remedy = "give a number above 0 (a score: a fraction below 1), or leave the run out"
            raise UserError(f"{row['key']}: {what} is {value}: {remedy}")
    return _arrays(rows, target, [row[name] if target == "loss" else 100 * (1 - row[name]) for row in rows])


def at(row: dict, target: str) -> Points:
    """One run that was not made, as a point whose truth is unknown: model, params, steps, images, images_seen."""
    return _arrays([row], target, [np.nan])


def _arrays(rows: list[dict], target: str, y: list[float]) -> Points:
    cell = pd.factorize(np.array([f"{row['model']} {row.get('dataset')} {row['images']}" for row in rows]))[0]
    unit = pd.factorize(np.array([f"{k} {row['steps']}" for k, row in zip(cell, rows, strict=True)]))[0]
    numbers = {"n": "params", "t": "steps", "d": "images", "seen": "images_seen"}
    numbers = {name: np.array([row[column] for row in rows], float) for name, column in numbers.items()}
    other = np.array([not row.get("on_axis", True) for row in rows], float)
    texts = {"size": np.array([row["model"] for row in rows]), "level": np.array([level_of(row) for row in rows])}
    return Points(**numbers, other=other, y=np.array(y, float), **texts, cell=cell, unit=unit, target=target)


@dataclass(frozen=True)
class Form:
    """A law's form: shapes (searched, on a log scale but for `log_g`) and columns, whose coefficients are linear."""

    title: str
    columns: Callable[[dict, Points, tuple[float, float]], dict[str, np.ndarray]]
    shapes: dict[str, tuple[float, float, tuple[float, ...]]]  # name: lowest, highest, starts
    fixed: tuple[str, ...] = ()  # shapes taken from SHAPES
    signed: bool = False  # coefficients of any sign; else at least 0


def _chinchilla(s: dict, x: Points, scale: tuple) -> dict[str, np.ndarray]:
    return {"E": np.ones(len(x)), "A": (x.n / scale[0]) ** -s["a"], "B": (x.t / scale[1]) ** -s["b"]}


def _constrained(s: dict, x: Points, _: tuple) -> dict[str, np.ndarray]:
    """Muennighoff et al. 2023, E + A/N'^a + B/D'^b: repeats, and parameters beyond the size optimal for U images, wear
    out. That size follows from g = log(aA / bB), which is searched: E and B stay linear. Units of 1e8."""
    u, n = np.log(x.d / 1e8), np.log(x.n / 1e8)
    best = np.minimum((s["log_g"] + s["b"] * u) / s["a"], n)
    spare = np.expm1(np.minimum(n - best, 50.0))  # N / U_N - 1
    repeats = np.maximum(x.seen, x.d) / x.d - 1
    log_n = best + np.log1p(s["R_N"] * -np.expm1(-spare / s["R_N"]))
    log_d = u + np.log1p(s["R_D"] * -np.expm1(-repeats / s["R_D"]))
    ratio = np.exp(s["log_g"]) * s["b"] / s["a"]
    both = ratio * np.exp(-s["a"] * log_n) + np.exp(-s["b"] * log_d)
    return {"E": np.ones(len(x)), "B": both, "s": x.other}


def _saturating(s: dict, x: Points, scale: tuple) -> dict[str, np.ndarray]:
    """E + A N^-a + B T^-b, and what overfitting costs, C h / (1 + h) with h = (Omega / Omega0)^p, which saturates."""
    u = s["p"] * (np.log(x.omega) - np.log(s["Omega0"]))
    found = _chinchilla(s, x, scale) | {"C": 1 / (1 + np.exp(-np.clip(u, -60, 60)))}
    # the published loss is higher on ImageNet-22K at equal length, why is not known; the error is always ImageNet-1K's
    return found | ({"s": x.other} if x.target == "loss" else {})


_TURN = (1e4, 1e9, (3e5, 1e6, 3e6, 1e7, 3e7))
_A, _B = (0.02, 2.5, (0.2, 0.8)), (0.02, 2.5, (0.2, 0.6))  # lowest, highest, starts
FORMS = {
    "fixed": Form("saturating in Omega, exponents fixed", _saturating, {"Omega0": _TURN}, fixed=("a", "b", "p")),
    "free": Form("saturating in Omega, exponents free", _saturating,
                 {"a": _A, "b": _B, "p": (0.3, 6.0, (1.0, 2.0)), "Omega0": _TURN}),
    "constrained": Form("data-constrained (Muennighoff et al. 2023)", _constrained,
                        {"a": _A, "b": (0.02, 2.5, (0.1, 0.5)), "R_D": (0.05, 1.6e5, (3.0, 50.0, 1e3)),
                         "R_N": (3e-4, 1.6e5, (0.1, 3.0, 50.0)), "log_g": (-20.0, 20.0, (-1.0, 2.0))}),
    "chinchilla": Form("Chinchilla in N, T", _chinchilla, dict.fromkeys("ab", (0.02, 2.5, (0.1, 0.3, 0.8)))),
    "product": Form("product", lambda _, x, scale: {
        "c": np.ones(len(x)), "k": np.log(x.n / scale[0]) + np.log(x.t / scale[1]) + np.log(x.d / 1e6),
    }, {}, signed=True),
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A fitted law: shapes and coefficients by name."""

    form: str
    scale: tuple[float, float]  # N and T count in these
    shapes: dict[str, float]
    coefficients: dict[str, float]

    def predict(self, x: Points) -> np.ndarray:
        """Loss, or error in per cent, of each run (n,); the law's `y` of x is not looked at."""
        columns = FORMS[self.form].columns(self.shapes, x, self.scale)
        return sum(self.coefficients[name] * column for name, column in columns.items())


def fit(form: str, x: Points, *, near: Fit | None = None, most: int | None = None) -> Fit:
    """Fit a form of FORMS by Huber's loss on log residuals: coefficients are projected out on a grid of starts, then
    all parameters polished. near: a fit of almost the same runs, from which to start as well. most: its
    steps (200, near a fit 60). `UserError` for an unknown form and for fewer runs than parameters."""
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    law = FORMS[form]
    delta = max(DELTA[x.target], seed_spread(x))
    scale = near.scale if near else tuple(10.0 ** round(float(np.log10(v).mean())) for v in (x.n, x.t))
    given = {name: SHAPES[x.target][name] for name in law.fixed}
    grid = itertools.product(*(shape[2] for shape in law.shapes.values()))
    starts = [dict(zip(law.shapes, values, strict=True)) for values in grid]
    needed, runs = len(law.shapes) + len(law.columns(given | starts[0], x, scale)), len(np.unique(x.unit))
    if runs < needed:
        few = f"{runs} different runs are too few for the form '{law.title}', which has {needed} parameters"
        raise UserError(f"{few}: train more sizes, lengths or data levels")
    if near:  # the neighbour's optimum, and others in case this fold's is elsewhere
        starts = [{name: near.shapes[name] for name in law.shapes}, *starts[:: max(1, len(starts) // 8)]]
    projected = [(*_project(law, given | start, x, scale, delta), start) for start in starts]
    order = sorted(projected, key=lambda found: found[1])
    chosen = [projected[0], *(found for found in order[:1] if found is not projected[0])] if near else order[:6]
    best = (np.inf, {}, {})
    for coefficients, _, start in chosen:
        found = _polish(law, given, start, coefficients, x, scale, delta, most or (60 if near else 200))
        best = found if found[0] < best[0] - 1e-12 else best
    return Fit(form, scale, given | best[1], best[2])


def seed_spread(x: Points) -> float:
    """Pooled standard deviation of log y between seeds of one setting; 0 where no setting has two."""
    groups = [np.log(x.y[x.unit == unit]) for unit in np.unique(x.unit)]
    free = sum(len(g) - 1 for g in groups)
    return float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / free)) if free else 0.0


def _project(law: Form, shapes: dict, x: Points, scale: tuple, delta: float) -> tuple[np.ndarray, float]:
    """The best coefficients for given shapes, by reweighted least squares, and the objective they reach."""
    from scipy.optimize import nnls
    from scipy.special import huber

    a = np.stack(list(law.columns(shapes, x, scale).values()), 1) / x.y[:, None]
    weight = np.ones(len(x))
    for _ in range(12):
        wa = a * weight[:, None]
        c = np.linalg.lstsq(wa, weight, rcond=None)[0] if law.signed else nnls(wa, weight)[0]
        r = np.log(np.maximum(a @ c, 1e-9))
        weight = np.sqrt(np.minimum(1, delta / np.maximum(np.abs(r), 1e-12)))
    return c, float(huber(delta, r).sum())


def _polish(law: Form, given: dict, start: dict, c: np.ndarray, x: Points, scale: tuple, delta: float, most: int):
    """All parameters together from a start, within bounds: objective, shapes, coefficients."""
    from scipy.optimize import least_squares

    first = law.columns(given | start, x, scale)
    names, columns = list(law.shapes), list(first)
    size = np.array([np.abs(v).max() for v in first.values()])
    unit = np.where(size > 0, x.y.mean() / np.maximum(size, 1e-30), 1.0)  # coefficients in shares of y
    logs = np.array([not name.startswith("log_") for name in names], bool)  # these are searched as logarithms

    def search(values: list[float], rest: list[float] | np.ndarray) -> np.ndarray:
        values = np.array(values, float)
        return np.concatenate([np.where(logs, np.log(np.where(logs, values, 1)), values), rest])

    low = search([law.shapes[n][0] for n in names], [-np.inf if law.signed else 0.0] * len(columns))
    high = search([law.shapes[n][1] for n in names], [np.inf] * len(columns))
    begin = np.clip(search([start[n] for n in names], c / unit), low + 1e-9, high - 1e-9)

    def split(v: np.ndarray) -> tuple[dict, dict]:
        shapes = np.where(logs, np.exp(v[: len(names)]), v[: len(names)])
        return dict(zip(names, shapes.tolist(), strict=True)), dict(zip(columns, v[len(names) :] * unit, strict=True))

    def residuals(v: np.ndarray) -> np.ndarray:
        shapes, coefficients = split(v)
        parts = law.columns(given | shapes, x, scale)
        return np.log(np.maximum(sum(coefficients[n] * p for n, p in parts.items()), 1e-9) / x.y) / delta

    # residuals in units of delta: the tolerances are then tight whatever the unit of y
    options = {"loss": "huber", "f_scale": 1.0, "xtol": 1e-9, "ftol": 1e-9, "gtol": 1e-9, "max_nfev": most}
    found = least_squares(residuals, begin, bounds=(low, high), **options)
    shapes, coefficients = split(found.x)
    return float(found.cost) * delta**2, shapes, {n: float(v) for n, v in coefficients.items()}


def slopes(x: Points) -> dict | None:
    """Slopes of -y on log N, log T, log D (C9), each [value, low, high], 95 % by bootstrap over (size, data) cells.

    None where a factor does not vary. `share` is d over the mean of n and t; `p` of equal slopes by an F-test.
    """
    from scipy.special import fdtrc  # scipy.stats takes a second to import

    factors = np.stack([np.log(x.n), np.log(x.t), np.log(x.d)], 1)
    full, one = (np.concatenate([np.ones((len(x), 1)), v], 1) for v in (factors, factors.sum(1, keepdims=True)))
    if len(x) < 6 or np.linalg.matrix_rank(full - [0, *factors.mean(0)]) < 4:
        return None
    fits = [np.linalg.lstsq(a, x.y, rcond=None)[0] for a in (full, one)]
    rest = [((x.y - a @ fit) ** 2).sum() for a, fit in zip((full, one), fits, strict=True)]
    free, whole = len(x) - 4, -fits[0][1:]
    weights = drawn(x.cell)
    least = np.where(weights[..., None] > 0, factors, np.inf).min(1)  # (resamples, 3)
    weights = weights[(np.where(weights[..., None] > 0, factors, -np.inf).max(1) > least).all(1)]
    gram, cross = np.einsum("rn,ni,nj->rij", weights, full, full), np.einsum("rn,ni,n->ri", weights, full, x.y)
    again = -np.einsum("rij,rj->ri", np.linalg.pinv(gram, hermitian=True), cross)[:, 1:]
    values = {name: (whole[k], again[:, k]) for k, name in enumerate("ntd")}
    values["share"] = (whole[2] / whole[:2].mean(), again[:, 2] / again[:, :2].mean(1))
    said = {name: [float(value), *np.percentile(some, [2.5, 97.5]).tolist()] for name, (value, some) in values.items()}
    p = float(fdtrc(2, free, (rest[1] - rest[0]) / 2 / (rest[0] / free)))
    return said | {"p": p, "runs": len(x), "cells": len(np.unique(x.cell))}
