"""The laws on trial: errors on runs held out, intervals and their coverage, parameters, regret; `simmim-lite laws`.

No torch here.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from ..processes import waiting
from . import imported, laws, product, published, regret, tables
from .doublings import doublings, turning_point
from .laws import FORMS, TARGETS, Fit, Points, fit, points, score_of

#: Ways to hold runs out, by what a planner would be asked to predict.
SPLITS = {
    "one": "leave one out",
    "cell": "leave a (size, data) cell out",
    "size": "leave a size out",
    "level": "leave a data level out",
    "length": "train on the shorter runs, predict the longest",
}
NOMINAL = 0.9  # of intervals from held-out errors
#: The two forms whose intervals are looked at closer: exponents given, and refitted in every fold.
CLOSER = ("fixed", "free")
_COLUMNS = ["target", "form", "split", "mean", "half_width", "folds", "bounds", "why"]


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
    if split == "length":
        longest = x.t == x.t.max()
        if longest.all():
            raise UserError(f"all runs have {x.t.max():,.0f} steps: predicting longer runs needs two lengths")
        yield np.flatnonzero(~longest), np.flatnonzero(longest)
        return
    name = {"one": "unit"}.get(split, split)
    group = getattr(x, name)
    if len(np.unique(group)) < 2:
        raise UserError(f"all runs share one {name}: to {SPLITS[split]}, two are needed")
    for one in dict.fromkeys(group.tolist()):
        yield np.flatnonzero(group != one), np.flatnonzero(group == one)


def held_out(form: str, x: Points, split: str, *, whole: Fit | None = None) -> HeldOut:
    """Fit in every fold anew, all free parameters of the form, and predict what was held out.

    whole: the fit to all runs, where searches may start; its optimum is never used as a prediction.
    """
    whole = whole or fit(form, x)
    predicted, hits, count = np.full(len(x), np.nan), {}, 0
    for count, (train, test) in enumerate(folds(x, split), 1):  # noqa: B007
        law = fit(form, x[train], near=whole)
        predicted[test] = law.predict(x[test])
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
    from scipy.stats import binom

    known, group, lines = ~np.isnan(found.error), getattr(x, by), {}
    for one in dict.fromkeys(group[known].tolist()):
        inside = known & (group == one)
        size, rest = np.abs(found.error[inside]), found.error[known & ~inside]
        other = size <= (quantile(rest) if len(rest) else found.half_width)
        under = binom.cdf(other.sum(), len(size), NOMINAL) < 0.1
        own = float((size <= found.half_width).mean())
        lines[str(one)] = {"own": own, "others": float(other.mean()), "n": len(size), "under": bool(under)}
    return lines


def better_by_gap(x: Points, found: HeldOut, gaps: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, np.inf)) -> list[dict]:
    """How often, of two held-out runs, the one of the better prediction is the better one, by the gap predicted.

    gaps in the unit of y (points of error, or loss); pairs that tie in truth, and seeds of one setting, do not count.
    """
    i, j = np.triu_indices(len(x), 1)
    use = ~np.isnan(found.predicted[i] + found.predicted[j]) & (x.y[i] != x.y[j]) & (x.unit[i] != x.unit[j])
    gap = found.predicted[i] - found.predicted[j]
    right, lines = gap * (x.y[i] - x.y[j]) > 0, []
    for low, high in zip(gaps, gaps[1:], strict=False):
        some = use & (np.abs(gap) >= low) & (np.abs(gap) < high)
        if some.any():
            line = {"from": low, "to": None if np.isinf(high) else high, "n": int(some.sum())}
            lines.append(line | {"share": float(right[some].mean())})
    return lines


def errors(
    rows: Iterable[dict],
    forms: Iterable[str] = tuple(FORMS),
    splits: Iterable[str] = tuple(SPLITS),
    score: str | None = None,
) -> pd.DataFrame:
    """Held-out errors: a row a target, form and split, in their order; what the rows do not allow is missing.

    mean: mean absolute error (loss, or points of accuracy); half_width: of a 90 % interval; folds; bounds: which were
    hit in how many folds. A form that the rows are too few for has one row, with `why`.
    """
    return pd.DataFrame([line for line, *_ in _trials(list(rows), forms, splits, score)], columns=_COLUMNS)


def _trials(rows: list[dict], forms: Iterable[str], splits: Iterable[str], score: str | None) -> Iterator[tuple]:
    """Of every trial: the row of `errors`, the runs, and what was held out (None where the form cannot be fitted)."""
    score = score or score_of(rows)
    for target in TARGETS if score else ("loss",):
        x = points(rows, target, score)
        for form in forms:
            head = {"target": target, "form": form}
            try:
                whole = fit(form, x)
            except UserError as error:
                yield head | {"why": str(error)}, x, None
                continue
            for split in splits:
                try:
                    found = held_out(form, x, split, whole=whole)
                except UserError:
                    continue
                bounds = ", ".join(f"{name} in {n}" for name, n in found.hits.items())
                line = head | {"split": split, "mean": found.mean, "half_width": found.half_width}
                yield line | {"folds": found.folds, "bounds": bounds, "why": ""}, x, found


def parameters(
    rows: Iterable[dict], forms: Iterable[str] = CLOSER, *, resamples: int = 100, score: str | None = None
) -> pd.DataFrame:
    """Parameters of laws fitted to all rows: target, form, parameter, value, and their 95 % interval.

    The interval is by bootstrap over (size, data) cells; missing with no resamples. bound: which bound the fit hit.
    """
    rows, lines = list(rows), []
    score = score or score_of(rows)
    for target in TARGETS if score else ("loss",):
        x = points(rows, target, score)
        for form in forms:
            try:
                law = fit(form, x)
            except UserError:
                continue
            drawn = laws.bootstrap(form, x, resamples=resamples) if resamples else []
            for name, value in (law.shapes | law.coefficients).items():
                low, high = laws.interval(drawn, name) if drawn else (None, None)
                bound = next((hit for hit in law.hit if hit.split(" ")[0] == name), "")
                lines.append([target, form, name, value, low, high, bound])
    return pd.DataFrame(lines, columns=["target", "form", "parameter", "value", "low", "high", "bound"])


def report(rows: Iterable[dict], *, resamples: int = 100, score: str | None = None) -> dict[str, pd.DataFrame | str]:
    """All there is to say, as tables by their titles, and lines of text. Seeds are fixed."""
    rows = [row for row in rows if not row["reference"]]
    score = score or score_of(rows)
    trials = list(_trials(rows, FORMS, SPLITS, score))
    closer = [(line, x, found) for line, x, found in trials if found and line["form"] in CLOSER]
    covered = [
        {name: line[name] for name in ("target", "form", "split")} | {"group": group} | one
        for line, x, found in closer if line["split"] != "length"
        for by in ("level", "size", "t") for group, one in coverage(x, found, by).items()
    ]  # fmt: skip
    gaps = [
        {"form": line["form"]} | one
        for line, x, found in closer if (line["split"], line["target"]) == ("cell", "accuracy")
        for one in better_by_gap(x, found)
    ]  # fmt: skip
    try:
        regrets = regret.table(rows, score) if score else "no run has a score"
    except UserError as error:
        regrets = str(error)
    said = {
        "runs": str(len(rows)),
        "held-out errors": pd.DataFrame([line for line, *_ in trials], columns=_COLUMNS),
        "note": laws.HONESTY,
        "regret in points, fitted on the other data levels": regrets,
        "coverage of 90 % intervals (under: do not trust the interval there)": pd.DataFrame(covered),
        "how often the better prediction is the better run, by the gap predicted": pd.DataFrame(gaps),
    }
    if resamples:  # a parameter is never quoted without its interval
        said["parameters, 95 % intervals over cells"] = parameters(rows, resamples=resamples, score=score)
    some = doublings(rows if score else [], score)
    turns = {of: turning_point(some, of) for of in ("loss", "score")}
    if any(turns.values()):
        text = ", ".join(f"{of} {at:.1e}" for of, at in turns.items() if at)
        title = "Omega where a doubling of the length turns from gain to harm"
        said[title] = f"{text}; no sharper than a factor of 1.5"
    said["product of data, size and length (C9)"] = product.claim(rows, score=score).evidence if rows else ""
    return said


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--json", action="store_true", help="numbers instead of text")
    parser.add_argument("--resamples", type=int, default=100, help="of the bootstrap over cells (100)")
    parser.add_argument("--runs-dir", help="your own runs, in place of the published ones")
    parser.add_argument("--file", help="runs of a CSV file, as `records import` takes it")
    parser.add_argument("--scores", help="with --file: percent or share, as `records import` takes it")


def show(arguments: argparse.Namespace) -> None:
    """Print the report that the options ask for."""
    if arguments.resamples < 0:
        raise UserError(f"resamples is {arguments.resamples}: give a whole number from 0")
    rows, source = _rows(arguments)
    with waiting(f"fitting the laws, to held-out parts and {arguments.resamples} resamples too: this takes minutes"):
        said = {"source": source} | report(rows, resamples=arguments.resamples)
    frames = {name: value for name, value in said.items() if isinstance(value, pd.DataFrame)}
    if arguments.json:
        print(
            json.dumps(
                said
                | {
                    k: json.loads(
                        v.reset_index(names="rule" if k.startswith("regret") else "row").to_json(orient="records")
                    )
                    for k, v in frames.items()
                },
                indent=1,
            )
        )
        return
    for name, value in said.items():
        text = f"\n{value.to_string(index=name.startswith('regret'))}" if name in frames else f" {value}"
        print(f"\n{name}:{text}" if name in frames else f"{name}:{text}")


def _rows(arguments: argparse.Namespace) -> tuple[list[dict], str]:
    if arguments.runs_dir and arguments.file:
        raise UserError("--runs-dir and --file both given: choose one table of runs")
    if arguments.file:
        return imported.read_csv(arguments.file, arguments.scores), arguments.file
    if arguments.scores:
        raise UserError("--scores is about a CSV file: give one with --file")
    if arguments.runs_dir:
        return tables.of_folder(arguments.runs_dir)
    return published.rows(), "published"
