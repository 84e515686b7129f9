"""The laws on trial: every form on every split, parameters, coverage and regret as tables; `simmim-lite laws`.

No torch here.
"""

import argparse
import json
from collections.abc import Callable, Iterable

import pandas as pd

from ..errors import UserError
from ..processes import waiting
from . import imported, laws, product, published, regret, tables
from .doublings import doublings, turning_point
from .forms import FORMS, TARGETS, points, score_of
from .heldout import SPLITS, better_by_gap, coverage, held_out

#: The two forms whose intervals are looked at closer: exponents given, and refitted in every fold.
CLOSER = ("fixed", "free")
_GROUPS = ("level", "size", "t")


def errors(
    rows: Iterable[dict],
    forms: Iterable[str] = tuple(FORMS),
    splits: Iterable[str] = tuple(SPLITS),
    score: str | None = None,
    *,
    look: Callable[[str, str, str, object, object], None] = lambda *_: None,
) -> pd.DataFrame:
    """Held-out errors: a row a target, form and split, in their order; what the rows do not allow is missing.

    mean: mean absolute error (loss, or points of accuracy); half_width: of a 90 % interval; folds; bounds: which were
    hit in how many folds. A form that the rows are too few for has one row, with `why`. look: is called with target,
    form, split, the runs and what was held out.
    """
    rows, lines = list(rows), []
    score = score or score_of(rows)
    for target in TARGETS if score else ("loss",):
        x = points(rows, target, score)
        for form in forms:
            try:
                whole = laws.fit(form, x)
            except UserError as error:
                lines.append({"target": target, "form": form, "why": str(error)})
                continue
            for split in splits:
                try:
                    found = held_out(form, x, split, whole=whole)
                except UserError:
                    continue
                look(target, form, split, x, found)
                bounds = ", ".join(f"{name} in {n}" for name, n in found.hits.items())
                line = {"target": target, "form": form, "split": split, "mean": found.mean}
                lines.append(line | {"half_width": found.half_width, "folds": found.folds, "bounds": bounds, "why": ""})
    return pd.DataFrame(lines, columns=["target", "form", "split", "mean", "half_width", "folds", "bounds", "why"])


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
                law = laws.fit(form, x)
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
    covered, gaps = [], []

    def look(target: str, form: str, split: str, x: object, found: object) -> None:
        if form in CLOSER and split != "length":
            for by in _GROUPS:
                head = {"target": target, "form": form, "split": split}
                covered.extend(head | {"group": name} | one for name, one in coverage(x, found, by).items())
        if form in CLOSER and split == "cell" and target == "accuracy":
            gaps.extend({"form": form} | one for one in better_by_gap(x, found))

    said: dict = {"runs": str(len(rows))}
    said["held-out errors"] = errors(rows, score=score, look=look)
    said["note"] = laws.HONESTY
    try:
        found = regret.table(rows, score) if score else "no run has a score"
    except UserError as error:
        found = str(error)
    if not isinstance(found, str):
        found = pd.DataFrame({rule: one | one["by_level"] for rule, one in found.items()}).T.drop(columns="by_level")
    said["regret in points, fitted on the other data levels"] = found
    said["coverage of 90 % intervals (under: do not trust the interval there)"] = pd.DataFrame(covered)
    said["how often the better prediction is the better run, by the gap predicted"] = pd.DataFrame(gaps)
    if resamples:  # a parameter is never quoted without its interval
        said["parameters, 95 % intervals over cells"] = parameters(rows, resamples=resamples, score=score)
    some = doublings(rows if score else [], score)
    turns = {of: turning_point(some, of) for of in ("loss", "score")}
    if any(turns.values()):
        text = ", ".join(f"{of} {at:.1e}" for of, at in turns.items() if at)
        said["Omega where a doubling of the length turns from gain to harm"] = (
            f"{text}; no sharper than a factor of 1.5"
        )
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
    if arguments.json:
        plain = {name: json.loads(v.to_json(orient="records")) if _is_table(v) else v for name, v in said.items()}
        print(json.dumps(plain, indent=1))
        return
    for name, value in said.items():
        print(
            f"\n{name}:\n{value.to_string(index=name.startswith('regret'))}" if _is_table(value) else f"{name}: {value}"
        )


def _is_table(value: object) -> bool:
    return isinstance(value, pd.DataFrame)


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
