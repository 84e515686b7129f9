"""The laws on trial: every form on every split, regret, coverage and parameters, as plain numbers. No torch here."""

import time
from collections.abc import Callable, Iterable

from ..errors import UserError
from . import laws, product, regret
from .doublings import doublings, turning_point
from .forms import FORMS, TARGETS, Points, points, score_of
from .heldout import SPLITS, HeldOut, better_by_gap, coverage, held_out
from .laws import HONESTY

#: Groups in which coverage is counted.
GROUPS = ("level", "size", "t")


def report(
    rows: Iterable[dict],
    source: str = "published",
    *,
    forms: Iterable[str] = tuple(FORMS),
    resamples: int = 100,
    score: str | None = None,
) -> dict:
    """All there is to say, as plain numbers. A form or a split that the rows do not allow is a line of text instead.

    held_out[target][form][split] = {mean, half_width, folds, hits}; parameters[target][form] = {name: [value, low,
    high]} with 95 % intervals by bootstrap over (size, data) cells; coverage[target][form][split][by][group];
    better_by_gap; regret[rule]; turning points of Omega; the test of the product. Seeds are fixed.
    """
    started = time.perf_counter()
    rows = [row for row in rows if not row["reference"]]
    score = score or score_of(rows)
    said: dict = {"source": source, "honesty": HONESTY, "runs": len(rows), "held_out": {}, "parameters": {}}
    said |= {"titles": {name: form.title for name, form in FORMS.items()}, "splits": SPLITS}
    said |= {"bounds": {}, "coverage": {}, "better_by_gap": {}, "resamples": resamples}
    for target in TARGETS if score else ("loss",):
        x = points(rows, target, score)
        for part in ("held_out", "parameters", "bounds", "coverage", "better_by_gap"):
            said[part][target] = {}
        for form in forms:
            try:
                whole = laws.fit(form, x)
            except UserError as error:
                said["held_out"][target][form] = str(error)
                continue
            _one(said, target, form, x, whole, resamples)
    said["regret"] = _try(lambda: regret.table(rows, score)) if score else "no run has a score"
    found = doublings(rows, score) if score else []
    said["turning_points"] = {of: turning_point(found, of) for of in ("loss", "score")}
    said["product"] = product.claim(rows, score=score).evidence if rows else ""
    return said | {"seconds": time.perf_counter() - started}


def table(
    rows: Iterable[dict],
    forms: Iterable[str] = tuple(FORMS),
    splits: Iterable[str] = tuple(SPLITS),
    score: str | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """The held-out errors alone: {target: {form: {split: mean absolute error}}}; what rows do not allow is missing."""
    rows = list(rows)
    score = score or score_of(rows)
    said: dict = {}
    for target in TARGETS if score else ("loss",):
        x = points(rows, target, score)
        said[target] = {}
        for form in forms:
            try:
                whole = laws.fit(form, x)
            except UserError:
                said[target][form] = {}
                continue
            errors = {split: _errors(form, x, split, whole) for split in splits}
            said[target][form] = {split: found.mean for split, found in errors.items() if not isinstance(found, str)}
    return said


def _one(said: dict, target: str, form: str, x: Points, whole: laws.Fit, resamples: int) -> None:
    splits, errors = {}, {}
    for split in SPLITS:
        errors[split] = found = _errors(form, x, split, whole)
        numbers = ("mean", "half_width", "folds", "hits")
        splits[split] = found if isinstance(found, str) else {name: getattr(found, name) for name in numbers}
    said["held_out"][target][form] = splits
    said["bounds"][target][form] = list(whole.hit)
    values = whole.shapes | whole.coefficients
    fits = laws.bootstrap(form, x, resamples=resamples) if resamples else []
    said["parameters"][target][form] = {
        name: [value, *(laws.interval(fits, name) if fits else (None, None))] for name, value in values.items()
    }
    if form in ("fixed", "free"):
        known = {split: found for split, found in errors.items() if not isinstance(found, str)}
        said["coverage"][target][form] = {
            split: {by: coverage(x, found, by) for by in GROUPS} for split, found in known.items() if split != "length"
        }
        if "cell" in known and target == "accuracy":
            said["better_by_gap"][target][form] = better_by_gap(x, known["cell"])


def _errors(form: str, x: Points, split: str, whole: laws.Fit) -> HeldOut | str:
    return _try(lambda: held_out(form, x, split, whole=whole))


def _try(call: Callable):
    """What a call returns, or the line of its `UserError`."""
    try:
        return call()
    except UserError as error:
        return str(error)
