"""Laws of loss and error in model size, length and data: how they are fitted (docs/facts.md, 7). No torch here.

N are backbone parameters, T iterations, D unique images, S images seen, Omega = N S / D^2. A law predicts y: the
validation loss, or the error 100 - top-1 in per cent. It is fitted by least sum of Huber's loss on log residuals: the
linear coefficients are projected out on a grid of starts, then all parameters are polished together, within bounds.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, unknown
from .forms import FORMS, SHAPES, Form, Points

#: Where Huber's loss turns from square to linear, in log residuals: near the noise of the published runs.
DELTA = {"loss": 0.002, "accuracy": 0.005}
HONESTY = (
    "the exponents of the fixed laws, and Omega's own form, were chosen looking at all 63 published runs, after about "
    "35 forms were tried; the row with exponents free in every fold is the honest one"
)


@dataclass(frozen=True)
class Fit:
    """A fitted law: shapes and coefficients by name, the objective, and the bounds that were hit."""

    form: str
    target: str
    scale: tuple[float, float]  # N and T count in these
    shapes: dict[str, float]
    coefficients: dict[str, float]
    objective: float  # sum over runs of Huber's loss on log residuals
    hit: tuple[str, ...]  # "E at 0"

    def predict(self, x: Points) -> np.ndarray:
        """Loss, or error in per cent, of each run (n,); the law's `y` of x is not looked at."""
        columns = FORMS[self.form].columns(self.shapes, x, self.scale)
        return sum(self.coefficients[name] * column for name, column in columns.items())


def fit(form: str, x: Points, *, near: Fit | None = None, delta: float | None = None, most: int | None = None) -> Fit:
    """Fit a form (a name in FORMS) to runs. near: a fit of almost the same runs, from which to start as well.

    most: steps of the last search; by default 200, and 60 near another fit, which settles predictions though not flat
    directions. delta: of Huber's loss; by default DELTA, or the spread between seeds where that is larger. `UserError`
    for an unknown form and for fewer runs than parameters.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    law = FORMS[form]
    delta = delta or max(DELTA[x.target], seed_spread(x))
    scale = near.scale if near else tuple(10.0 ** round(float(np.log10(v).mean())) for v in (x.n, x.t))
    given = {name: SHAPES[x.target][name] for name in law.fixed}
    needed = len(law.shapes) + len(law.columns(given | _start(law), x, scale))
    if len(np.unique(x.unit)) < needed:
        raise UserError(
            f"{len(np.unique(x.unit))} different runs are too few for the form '{law.title}', which has {needed} "
            "parameters: train more sizes, lengths or data levels"
        )
    starts = [dict(zip(law.shapes, values, strict=True)) for values in itertools.product(*_starts(law))]
    if near:  # the neighbour's optimum, and others in case this fold's is elsewhere
        starts = [{name: near.shapes[name] for name in law.shapes}, *starts[:: max(1, len(starts) // 8)]]
    projected = [(_project(law, given | start, x, scale, delta), k) for k, start in enumerate(starts)]
    projected.sort(key=lambda found: found[0][1])
    if near:
        first = next(found for found in projected if found[1] == 0)
        projected = [first, *[found for found in projected[:1] if found[1]]]
    best = None
    for (coefficients, _), k in projected[: 2 if near else 6]:
        found = _polish(law, given, starts[k], coefficients, x, scale, delta, most or (60 if near else 200))
        if best is None or found[0] < best[0] - 1e-12:
            best = found
    objective, shapes, coefficients = best
    hit = [f"{n} at {b:g}" for n, v in shapes.items() for b in law.shapes[n][:2] if abs(v - b) < 1e-3 * max(1, abs(b))]
    if not law.signed:
        used = law.columns(given | shapes, x, scale)
        hit += [f"{n} at 0" for n, v in coefficients.items() if v * abs(used[n]).max() < 1e-6 and used[n].any()]
    return Fit(form, x.target, scale, given | shapes, coefficients, objective, tuple(hit))


def bootstrap(form: str, x: Points, *, resamples: int = 100, seed: int = 0, most: int = 400) -> list[Fit]:
    """Fits to runs drawn again, whole (size, data) cells at a time; draws with too few different runs are left out.

    most: steps of a fit's search; 60 do for predictions, intervals of parameters that trade with one another need more.
    """
    rng, whole, found = np.random.default_rng(seed), fit(form, x), []
    cells = np.unique(x.cell)
    for _ in range(resamples):
        drawn = rng.choice(cells, len(cells))
        index = np.concatenate([np.flatnonzero(x.cell == cell) for cell in drawn])
        try:
            found.append(fit(form, x[index], near=whole, most=most))
        except UserError:
            continue
    return found


def interval(fits: Sequence[Fit], name: str) -> tuple[float, float]:
    """The middle 95 % of a parameter over bootstrap fits."""
    values = [(f.shapes | f.coefficients)[name] for f in fits]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def seed_spread(x: Points) -> float:
    """Pooled standard deviation of log y between seeds of one setting; 0 where no setting has two."""
    logs = np.log(x.y)
    groups = [logs[x.unit == unit] for unit in np.unique(x.unit)] if len(np.unique(x.unit)) < len(x) else []
    free = sum(len(g) - 1 for g in groups)
    return float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / free)) if free else 0.0


def _huber(r: np.ndarray, delta: float) -> float:
    size = np.abs(r)
    return float(np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum())


def _project(law: Form, shapes: dict, x: Points, scale: tuple, delta: float) -> tuple[np.ndarray, float]:
    """The best coefficients for given shapes, by reweighted least squares, and the objective they reach."""
    from scipy.optimize import nnls

    a = np.stack(list(law.columns(shapes, x, scale).values()), 1) / x.y[:, None]
    weight = np.ones(len(x))
    for _ in range(12):
        wa = a * weight[:, None]
        c = np.linalg.lstsq(wa, weight, rcond=None)[0] if law.signed else nnls(wa, weight)[0]
        r = np.log(np.maximum(a @ c, 1e-9))
        weight = np.sqrt(np.minimum(1, delta / np.maximum(np.abs(r), 1e-12)))
    return c, _huber(r, delta)


def _polish(law: Form, given: dict, start: dict, c: np.ndarray, x: Points, scale: tuple, delta: float, most: int):
    """All parameters together from a start, within bounds, in at most so many steps: objective, shapes, coefficients.

    Flat directions (a floor and an exponent that trade) make the last steps endless, and change no prediction.
    """
    from scipy.optimize import least_squares

    names = list(law.shapes)
    columns = list(law.columns(given | start, x, scale))
    size = np.array([np.abs(v).max() for v in law.columns(given | start, x, scale).values()])
    unit = np.where(size > 0, x.y.mean() / np.maximum(size, 1e-30), 1.0)  # coefficients in shares of y
    low = [_to(n, law.shapes[n][0]) for n in names] + [-np.inf if law.signed else 0.0] * len(columns)
    high = [_to(n, law.shapes[n][1]) for n in names] + [np.inf] * len(columns)
    begin = np.array([_to(n, start[n]) for n in names] + list(c / unit))
    begin = np.clip(begin, np.array(low) + 1e-9, np.array(high) - 1e-9)

    def split(v: np.ndarray) -> tuple[dict, dict]:
        shapes = {n: _from(n, value) for n, value in zip(names, v, strict=False)}
        return shapes, dict(zip(columns, v[len(names) :] * unit, strict=True))

    def residuals(v: np.ndarray) -> np.ndarray:
        shapes, coefficients = split(v)
        parts = law.columns(given | shapes, x, scale)
        return np.log(np.maximum(sum(coefficients[n] * p for n, p in parts.items()), 1e-9) / x.y) / delta

    # residuals in units of delta: the tolerances are then tight whatever the unit of y
    options = {"loss": "huber", "f_scale": 1.0, "xtol": 1e-9, "ftol": 1e-9, "gtol": 1e-9, "max_nfev": most}
    found = least_squares(residuals, begin, bounds=(low, high), **options)
    shapes, coefficients = split(found.x)
    return float(found.cost) * delta**2, shapes, {n: float(v) for n, v in coefficients.items()}


def _to(name: str, value: float) -> float:
    return value if name.startswith("log_") else float(np.log(value))


def _from(name: str, value: float) -> float:
    return float(value) if name.startswith("log_") else float(np.exp(value))


def _starts(law: Form) -> list[tuple[float, ...]]:
    return [shape[2] for shape in law.shapes.values()]


def _start(law: Form) -> dict[str, float]:
    return {name: shape[2][0] for name, shape in law.shapes.items()}
