"""The report of the laws on trial as text, and the command that prints it: `simmim-lite laws`. No torch here."""

import argparse
import json
from collections.abc import Iterator

from ..errors import UserError
from ..processes import waiting

#: Parameters that are printed, always with their interval.
SHOWN = ("Omega0", "E", "a", "b", "p")
_UNITS = {"loss": (1e4, "loss x 1e-4"), "accuracy": (1, "accuracy, points")}
_GROUPS = {"level": "data", "size": "size", "t": "iterations"}


def lines(said: dict) -> Iterator[str]:
    """A report as text."""
    yield f"The laws on trial: {said['runs']} runs ({said['source']})"
    yield ""
    yield from _errors(said)
    yield ""
    yield f"Note: {said['honesty']}."
    yield from _bounds(said)
    yield ""
    yield from _regrets(said["regret"])
    yield ""
    yield from _coverages(said)
    yield from _gaps(said)
    yield ""
    if said["resamples"]:  # a parameter is never quoted without its interval
        yield from _parameters(said)
    turns = said["turning_points"]
    if any(turns.values()):
        told = {of: f"{value:.1e}" if value else "not found" for of, value in turns.items()}
        line = f"Omega at which a doubling of the length is as likely as not to raise the loss: {told['loss']}"
        yield f"{line}; to lower the score: {told['score']}. No sharper than a factor of 1.5."
    yield f"Product of data, size and length (C9): {said['product']}."
    yield f"{said['seconds']:.0f} s, seeds fixed"


def _errors(said: dict) -> Iterator[str]:
    """The table of held-out errors: loss / accuracy, the free row right below the fixed one."""
    targets = list(said["held_out"])
    yield "Mean absolute error on held-out runs: " + " / ".join(_UNITS[t][1] for t in targets)
    yield _row("", ["one out", "cell out", "size out", "data out", "longest out"])
    for form in said["held_out"][targets[0]]:
        cells, why = [], ""
        for split in said["splits"]:
            parts = []
            for target in targets:
                one = said["held_out"][target][form]
                if isinstance(one, str):
                    why, value = one, None
                else:
                    value = one[split]["mean"] if isinstance(one[split], dict) else None
                parts.append("–" if value is None else _short(value * _UNITS[target][0]))
            cells.append(" / ".join(parts))
        yield _row(said["titles"][form], cells)
        if why:
            yield f"    {why}"


def _bounds(said: dict) -> Iterator[str]:
    for target, forms in said["held_out"].items():
        for form, splits in forms.items():
            if isinstance(splits, str):
                continue
            hit = ", ".join(said["bounds"][target][form])
            folds = sum(s["folds"] for s in splits.values() if isinstance(s, dict))
            total: dict[str, int] = {}
            for one in splits.values():
                for name, n in one["hits"].items() if isinstance(one, dict) else ():
                    total[name] = total.get(name, 0) + n
            if total or hit:
                counted = ", ".join(f"{name} in {n} of {folds} folds" for name, n in total.items())
                line = f"Bounds hit, {target}, {said['titles'][form]}: {counted or 'in no fold'}"
                yield f"{line}; in the fit of all runs: {hit or 'none'}"


def _regrets(table: dict | str) -> Iterator[str]:
    if isinstance(table, str):
        yield f"Regret: {table}"
        return
    n = next(iter(table.values()))["n"]
    yield f"Choosing size and length under a budget, fitted on the other data levels: regret in points, {n} problems"
    levels = list(next(iter(table.values()))["by_level"])
    yield _row("", ["mean", "worst", *levels])
    for rule, found in table.items():
        yield _row(rule, [f"{v:.3f}" for v in (found["mean"], found["worst"], *found["by_level"].values())])


def _coverages(said: dict) -> Iterator[str]:
    """Coverage of 90 % intervals, each group as it would be new, and every split in which it is too low."""
    yield "Coverage of 90 % intervals (half width from all held-out errors / from the other groups' alone)"
    for target, forms in said["coverage"].items():
        for form, splits in forms.items():
            yield f"{target}, {said['titles'][form]}"
            for split, by in (("level", "level"), ("size", "size"), ("one", "t")):
                if split in splits:
                    half = said["held_out"][target][form][split]["half_width"] * _UNITS[target][0]
                    found = splits[split][by].items()
                    told = ", ".join(f"{_named(one)} {c['own']:.2f}/{c['others']:.2f}" for one, c in found)
                    yield f"    {said['splits'][split]}, ±{half:.2g} ({_UNITS[target][1]}): {told}"
            low = [
                f"{_named(one)} ({said['splits'][split]}: {c['others']:.2f})"
                for split, groups in splits.items()
                for found in groups.values()
                for one, c in found.items()
                if c["under"]
            ]
            if low:
                yield f"    UNDER-COVERS, do not trust the interval there: {'; '.join(low)}"


def _gaps(said: dict) -> Iterator[str]:
    for target, forms in said["better_by_gap"].items():
        for form, found in forms.items():
            ends = [f"to {g['to']:g}" if g["to"] else "and more" for g in found]
            told = [
                f"{100 * g['share']:.0f} % ({g['n']} pairs) at {g['from']:g} {end}"
                for g, end in zip(found, ends, strict=True)
            ]
            yield f"The better prediction is the better run ({target}, {said['titles'][form]}), by the gap predicted:"
            yield f"    {', '.join(told)}"


def _parameters(said: dict) -> Iterator[str]:
    from .forms import FORMS

    yield f"Parameters with 95 % intervals, bootstrap over (size, data) cells, {said['resamples']} resamples"
    for target, forms in said["parameters"].items():
        for form, values in forms.items():
            if form not in ("fixed", "free"):
                continue
            told = []
            for name in SHOWN:
                value, low, high = values[name]
                if name in FORMS[form].fixed:
                    told.append(f"{name} {value:.3g} (given)")
                elif low is not None:  # never a number without its interval
                    told.append(f"{name} {value:.3g} [{low:.3g}, {high:.3g}]")
            yield f"{target}, {said['titles'][form]}: {', '.join(told)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _named(group: str) -> str:
    return f"{float(group):,.0f}" if group.replace(".", "").isdigit() else group


def _row(name: str, cells: list[str]) -> str:
    return f"{name:42s}" + "".join(f"{cell:>17s}" for cell in cells)


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
    from .trial import report

    with waiting(f"fitting the laws, to held-out parts and {arguments.resamples} resamples too: this takes minutes"):
        said = report(*_rows(arguments), resamples=arguments.resamples)
    print(json.dumps(said, indent=1) if arguments.json else "\n".join(lines(said)))


def _rows(arguments: argparse.Namespace) -> tuple[list[dict], str]:
    from . import imported, published, tables

    if arguments.runs_dir and arguments.file:
        raise UserError("--runs-dir and --file both given: choose one table of runs")
    if arguments.file:
        return imported.read_csv(arguments.file, arguments.scores), arguments.file
    if arguments.scores:
        raise UserError("--scores is about a CSV file: give one with --file")
    if arguments.runs_dir:
        return tables.of_folder(arguments.runs_dir)
    return published.rows(), "published"


def main(argv: list[str] | None = None) -> None:
    """`python -m simmim_lite.evidence.laws`, the same as `simmim-lite laws`."""
    parser = argparse.ArgumentParser(prog="python -m simmim_lite.evidence.laws", allow_abbrev=False)
    options(parser)
    try:
        show(parser.parse_args(argv))
    except UserError as error:
        parser.exit(2, f"simmim-lite: {error}\n")
