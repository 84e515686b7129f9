"""Somebody else's runs, from a CSV file, into tables, claims and plots. No torch here.

A line a run; its columns by the names of COLUMNS, or the usual others, in any order. What is not used is said.
"""

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, unknown
from ..model.sizes import PAPER, SIZES
from ..training.run import write_atomic
from .claims import claims_of
from .laws import score_of as first_score
from .records import OVERFIT, SCORES
from .rules import Claim


class Column(NamedTuple):
    """What a column holds, and what else it may be called."""

    text: str
    others: tuple[str, ...] = ()
    low: float | None = None  # of a number: the smallest allowed
    whole: bool = False  # whole numbers only
    needed: bool = False


_PARAMS = ("parameters", "backbone_params", "backbone_parameters", "n_params")
_SCORES = ("finetune_top1", "top1", "top1_accuracy", "accuracy", "acc", "finetune", "linear", "knn", "segment")
_SHARE = "what the network is worth afterwards, as a share of 1 or in per cent"
COLUMNS = {
    "model": Column("the network's name", ("name", "size", "architecture")),
    "params": Column("parameters of the backbone; may be left out for the sizes of this project", _PARAMS, 1000, True),
    "unique_images": Column("training images, each once", ("images", "train_images", "data_size"), 1, True, True),
    "iterations": Column("optimiser steps", ("steps", "iters", "train_steps"), 1, True, True),
    "batch_size": Column("images a step", ("batch",), 1, True, True),
    "val_loss": Column("validation loss", ("validation_loss", "valid_loss", "loss"), 0, needed=True),
    "score": Column(_SHARE, (*_SCORES, "linear_probe"), 0),
    "train_loss": Column("training loss", ("training_loss",), 0),
    "seed": Column("a whole number; 0 where there is none", (), 0, True),
    "dataset": Column("a name, where runs are of several sets of images", ("data",)),
    "image_size": Column("pixels a side; for plan, where there are no flops", ("resolution", "img_size"), 1, True),
    "flops": Column("of the whole training; for plan", ("training_flops",), 0),
}
_NEEDED = tuple(name for name, column in COLUMNS.items() if column.needed)
#: Which score of ours a column's name stands for; fine-tuning where it does not say.
_SCORE = {"linear": "linear", "linear_probe": "linear", "knn": "knn", "segment": "segment"}
UNITS = ("percent", "share")
_PERCENT = re.compile(r"%|\bper[ _]?cent\b|_percent\b|_pct\b|\bpct\b", re.I)


def help_text() -> str:
    """The columns, for --help."""
    others = {name: f" (or {', '.join(column.others)})" if column.others else "" for name, column in COLUMNS.items()}
    parts = [f"{name}{others[name]}: {column.text}" for name, column in COLUMNS.items()]
    return f"Columns, in any order: {'; '.join(parts)}. Needed are {', '.join(_NEEDED)} and model or params."


def read_csv(file: str | Path, scores: str | None = None) -> list[dict]:
    """The rows of `read`."""
    return read(file, scores)[0]


def read(file: str | Path, scores: str | None = None) -> tuple[list[dict], list[str]]:
    """The runs of a file as rows in the columns of `records.table`, and lines on how they were read.

    Lifts are None, all have one recipe, `data` is the file's name. scores: `percent` or `share` of 1, where the numbers
    themselves leave that open. Raises `UserError`, one line with file, line number, column and remedy, for what is
    missing, no number, out of range or in more than one unit, and for two lines that are the same run.
    """
    if scores not in (None, *UNITS):
        raise unknown("unit of scores", scores, UNITS)
    file = Path(file)
    header, lines = _cells(file)
    where, notes = _columns(file, header)
    title = header[where["score"]].strip() if "score" in where else ""
    score = next((own for name, own in _SCORE.items() if _plain(title) == _plain(name)), "finetune")
    rows, numbers = [], {}
    for number, line in lines:
        at = f"{file}, line {number}"
        if len(line) < len(header) or any(cell.strip() for cell in line[len(header) :]):
            what = f"{at}: {len(line)} cells under {len(header)} columns"
            raise UserError(f"{what}: write numbers without commas in them, and what is not known as an empty cell")
        row = _row(at, {column: line[k].strip() for column, k in where.items()})
        same = tuple(row[k] for k in ("model", "dataset", "images", "steps", "seed"))
        if same in numbers:
            raise UserError(f"{at}: the same run as line {numbers[same]}; give each its seed, or leave one out")
        numbers[same] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: has no runs below its first line")
    percent = _percent(file, title, [row["_score"] for row in rows if row["_score"]], scores)
    name = _name(file)
    for row in rows:
        row |= {"data": name, "target": "unknown", "recipe": f"imported {name}", "reference": False}
        row |= dict.fromkeys(
            ["val_loss_se", "probe_images", "seconds", "core_seconds", *SCORES, *(f"{one}_lift" for one in SCORES)]
        )
        value = row.pop("_score")
        row[score] = value / 100 if percent and value is not None else value
        row["key"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "steps", "seed"))
        row["trunk"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "seed"))
    most = max(row["images"] for row in rows)
    flag_overfit(rows, lambda row: row["images"] == most)
    # how the numbers were read, with their ranges: a wrong unit shows there
    spans = {"params": "parameters", "images": "images", "steps": "iterations", "batch_size": "images a step"}
    parts = [f"{_span(rows, column, ',')} {unit}" for column, unit in spans.items()]
    read_as = f"(read as {'per cent' if percent else 'shares of 1'})"
    known = any(row[score] is not None for row in rows)
    parts += [f"validation loss {_span(rows, 'val_loss', '.4g')}"]
    parts += [f"scores {_span(rows, score, '.2%')} {read_as}" if known else "no scores"]
    return rows, [f"{len(rows)} run{'s' * (len(rows) > 1)}: {', '.join(parts)}", *notes]


def flag_overfit(rows: list[dict], whole: Callable[[dict], bool]) -> None:
    """Give runs without a curve their `overfit`: whether the loss lies above (docs/facts.md, 7) that of a run of the
    same size and length on the whole data (`whole` tells which), or of a shorter one on the same data."""
    for row in rows:
        own = [r for r in rows if (r["model"], r["seed"]) == (row["model"], row["seed"])]
        others = [r for r in own if whole(r) and r["steps"] == row["steps"]]
        others += [r for r in own if r["trunk"] == row["trunk"] and r["steps"] < row["steps"]]
        # losses have four digits: a difference of .0040 is none of more than .004
        row["overfit"] = any(row["val_loss"] - r["val_loss"] > OVERFIT + 1e-9 for r in others)


def import_csv(file: str | Path, runs_dir: str | Path, scores: str | None = None) -> int:
    """Check a file and keep its runs as RUNS_DIR/imported/NAME.csv, where studies find them; how many. As `read`.

    Scores are kept as shares of 1. `UserError` where other runs are kept under that name.
    """
    rows = read_csv(file, scores)
    target = Path(runs_dir) / "imported" / f"{_name(file)}.csv"
    if target.exists() and read_csv(target) != rows:
        raise UserError(f"{target} holds other runs than {file}: delete it, or give {file} another name")
    score = score_of(rows)
    keys = {"unique_images": "images", "iterations": "steps", "score": score}
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow([score if name == "score" else name for name in COLUMNS])
    writer.writerows([row[keys.get(name, name)] for name in COLUMNS] for row in rows)  # None is an empty cell
    write_atomic(target, held.getvalue())
    return len(rows)


def load(runs_dir: str | Path) -> dict[str, list[dict]]:
    """The rows of every file that was imported, by name."""
    return {path.stem: read_csv(path) for path in sorted((Path(runs_dir) / "imported").glob("*.csv"))}


def score_of(rows: list[dict]) -> str:
    """The score that imported rows have; `finetune` where they have none."""
    return first_score(rows) or "finetune"


def claims(rows: list[dict]) -> list[Claim]:
    """C1 to C9 on imported rows: by seed where there are three or more, else by cell."""
    return claims_of(rows, score=score_of(rows))


def _cells(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a file and its lines, numbered; empty ones are left out."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count))
        lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: cannot be read ({what}): give a CSV file in UTF-8") from error
    lines = [line for line in lines if any(cell.strip() for cell in line[1])]
    if not lines:
        raise UserError(f"{file}: is empty: the first line must name the columns, as in {', '.join(COLUMNS)}")
    return lines[0][1], lines[1:]


def _columns(file: Path, header: list[str]) -> tuple[dict[str, int], list[str]]:
    """Where each column is, and a line on what is not used."""
    names, where = [_plain(cell) for cell in header], {}
    for column, known in COLUMNS.items():
        found = next((_plain(name) for name in (column, *known.others) if _plain(name) in names), None)
        if names.count(found) > 1:
            raise UserError(f"{file}: has {names.count(found)} columns {found}: keep one")
        where |= {column: names.index(found)} if found else {}
    missing = [name for name in _NEEDED if name not in where]
    if missing or not {"model", "params"} & where.keys():
        missing += [] if {"model", "params"} & where.keys() else ["model or params"]
        raise UserError(f"{file}: no column {', '.join(missing)}; its columns are {', '.join(header)}")
    spare = [cell.strip() for k, cell in enumerate(header) if k not in where.values() and cell.strip()]
    return where, [f"not used: {', '.join(spare)}"] if spare else []


def _plain(name: str) -> str:
    """A column's name without its unit, in small letters and digits alone: `Top-1 (%)` is top1."""
    return re.sub(r"[\W_]+", "", _PERCENT.sub("", name).lower())


def _row(at: str, cells: dict[str, str]) -> dict:
    """The row of a line (`at`), from its cells by column."""
    numbers = {name: _number(at, name, cells.get(name, "")) for name, c in COLUMNS.items() if c.low is not None}
    model, params, flops = cells.get("model", ""), numbers["params"], numbers["flops"]
    known = SIZES.get(model) or SIZES.get(f"swinv2_{model}")
    if params is None and known is None:
        remedy = f"give the backbone's parameters, or one of {', '.join(SIZES)}"
        raise UserError(f"{at}: model '{model}' has no params: {remedy}")
    params = params or known.parameters
    if known and not 0.5 < params / known.parameters < 2:
        raise UserError(f"{at}: params is {params}: give the number itself ({known.name} has {known.parameters:,})")
    images, steps, batch, side = (numbers[name] for name in (*_NEEDED[:3], "image_size"))
    seen = steps * batch
    if flops is None and side and known:
        flops = 6e9 * known.gmac(side, 12 if known.name in PAPER else 4, head=True) * seen
    elif flops is not None and flops < params * seen:
        less = f"less than parameters times images seen, {params * seen:.2g}"
        raise UserError(f"{at}: flops is {flops:g}, {less}: give those of the whole training, in ones")
    return {
        "model": known.name if known else model or f"{params / 1e6:.3g} M",
        "params": params,
        "dataset": cells.get("dataset", ""),
        "images": images,
        "steps": steps,
        "images_seen": seen,
        "epochs": seen / images,
        "seed": numbers["seed"] or 0,
        "batch_size": batch,
        "val_loss": numbers["val_loss"],
        "train_loss": numbers["train_loss"],
        "image_size": side,
        "flops": flops,
        "_score": numbers["score"],
    }


def _number(at: str, name: str, given: str) -> float | None:
    """A cell as the number that its column asks for; None where it is empty and may be."""
    column = COLUMNS[name]
    if not given and not column.needed:
        return None
    try:
        found = float(given.replace("_", ""))
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or found < column.low or (column.whole and found != int(found)):
        kind = f"{'whole ' if column.whole else ''}number from {column.low:g}"
        raise UserError(f"{at}: {name} is '{given}': give a {kind}, with a point and no unit, or leave the line out")
    return int(found) if column.whole else found


def _percent(file: Path, title: str, found: list[float], scores: str | None) -> bool:
    """Whether scores other than 0 are in per cent; `UserError` where that cannot be told, or does not fit."""
    low, high = min(found, default=0), max(found, default=0)
    if scores is None and found and (low <= 1 < high or (high <= 1 and _PERCENT.search(title))):
        both = f"{file}: column {title} has scores from {low:g} to {high:g}"
        raise UserError(f"{both}: its unit is not told; add --scores percent, or --scores share (of 1)")
    percent = scores == "percent" or scores is None and high > 1
    if high > (100 if percent else 1):
        raise UserError(f"{file}: score is {high:g}: give a fraction of 1 or per cent")
    return percent


def _span(rows: list[dict], name: str, form: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    return " to ".join(dict.fromkeys(f"{value:{form}}" for value in (min(values), max(values))))


def _name(file: str | Path) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(file).stem) or "runs"
