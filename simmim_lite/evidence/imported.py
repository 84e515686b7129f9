"""Somebody else's runs, from a CSV file, into tables, claims and plots. No torch here.

A line a run; its columns by the names of COLUMNS, or the usual others, in any order. What is not used is said.
"""

import csv
import difflib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, unknown
from ..model.sizes import PAPER, SIZES
from ..training.run import write_atomic
from .claims import claims_of
from .records import OVERFIT, SCORES
from .rules import Claim


@dataclass(frozen=True)
class Column:
    """What a column holds, and what else it may be called."""

    text: str
    others: tuple[str, ...] = ()
    low: float | None = None  # of a number: the smallest allowed
    whole: bool = False  # whole numbers only
    needed: bool = False


_PARAMS = ("parameters", "backbone_params", "backbone_parameters", "n_params")
_SCORES = ("finetune_top1", "top1", "top1_accuracy", "accuracy", "acc", "finetune", "linear", "knn", "segment")
COLUMNS = {
    "model": Column("the network's name", ("name", "size", "architecture")),
    "params": Column("parameters of the backbone; may be left out for the sizes of this project", _PARAMS, 1, True),
    "unique_images": Column("training images, each once", ("images", "train_images", "data_size"), 1, True, True),
    "iterations": Column("optimiser steps", ("steps", "iters", "train_steps"), 1, True, True),
    "batch_size": Column("images a step", ("batch",), 1, True, True),
    "val_loss": Column("validation loss", ("validation_loss", "valid_loss", "loss"), 0, needed=True),
    "score": Column(
        "what the network is worth afterwards, as a share of 1 or in per cent", (*_SCORES, "linear_probe"), 0
    ),
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
    parts = []
    for name, column in COLUMNS.items():
        others = f" (or {', '.join(column.others)})" if column.others else ""
        parts.append(f"{name}{others}: {column.text}")
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
    where, score, notes = _columns(file, header)
    rows, first = [], {}
    for number, line in lines:
        at = f"{file}, line {number}"
        if len(line) < len(header) or any(cell.strip() for cell in line[len(header) :]):
            what = f"{at}: {len(line)} cells under {len(header)} columns"
            raise UserError(f"{what}: write numbers without commas in them, and what is not known as an empty cell")
        row = _row(at, {column: line[k].strip() for column, k in where.items()})
        same = tuple(row[k] for k in ("model", "dataset", "images", "steps", "seed"))
        if same in first:
            raise UserError(f"{at}: the same run as line {first[same]}; give each its seed, or leave one out")
        first[same] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: has no runs below its first line")
    title = header[where["score"]] if "score" in where else ""
    percent = _percent(file, title, [(row["_score"], n) for row, n in zip(rows, first.values(), strict=True)], scores)
    name = _name(file)
    for row in rows:
        row |= {"data": name, "target": "unknown", "recipe": f"imported {name}", "reference": False}
        row |= dict.fromkeys(["val_loss_se", "seconds", "core_seconds", *SCORES, *(f"{one}_lift" for one in SCORES)])
        value = row.pop("_score")
        row[score] = value / 100 if percent and value is not None else value
        row["key"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "steps", "seed"))
        row["trunk"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "seed"))
    most = max(row["images"] for row in rows)
    flag_overfit(rows, lambda row: row["images"] == most)
    return rows, [_summary(rows, score, percent), *notes]


def flag_overfit(rows: list[dict], whole: Callable[[dict], bool]) -> None:
    """Give runs without a curve their `overfit`: whether the loss lies above (docs/facts.md, 7) that of a run of the
    same size and length on the whole data (`whole` tells which), or of a shorter one on the same data."""
    for row in rows:
        own = [r for r in rows if (r["model"], r["seed"]) == (row["model"], row["seed"])]
        others = [r for r in own if whole(r) and r["steps"] == row["steps"]]
        others += [r for r in own if r["trunk"] == row["trunk"] and r["steps"] < row["steps"]]
        row["overfit"] = any(row["val_loss"] - r["val_loss"] > OVERFIT + 1e-9 for r in others)  # .0040 is not more


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
    return next((s for s in SCORES if any(row[s] is not None for row in rows)), "finetune")


def claims(rows: list[dict]) -> list[Claim]:
    """C1 to C9 on imported rows: by seed where there are three or more, else by cell."""
    return claims_of(rows, score=score_of(rows))


def _cells(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a file and its lines, numbered; empty ones are left out."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
        lines = [(reader.line_num, line) for line in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is no UTF-8 text: save it as CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise UserError(
            f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}): give a CSV file"
        ) from error
    if not lines or not any(cell.strip() for cell in lines[0][1]):
        raise UserError(f"{file}: is empty: the first line must name the columns, as in {', '.join(COLUMNS)}")
    return lines[0][1], [line for line in lines[1:] if any(cell.strip() for cell in line[1])]


def _columns(file: Path, header: list[str]) -> tuple[dict[str, int], str, list[str]]:
    """Where each column is, which score of ours the score is, and what is not used."""
    names = [_plain(_PERCENT.sub("", cell)) for cell in header]
    where, score = {}, "finetune"
    for column, known in COLUMNS.items():
        found = [name for name in (column, *known.others) if _plain(name) in names]
        if not found:
            continue
        if (count := names.count(_plain(found[0]))) > 1:
            raise UserError(f"{file}: has {count} columns {found[0]}: keep one")
        where[column] = names.index(_plain(found[0]))
        score = _SCORE.get(found[0], score) if column == "score" else score
    missing = [name for name in _NEEDED if name not in where]
    if not {"model", "params"} & where.keys():
        missing.insert(0, "model or params")
    spare = [cell.strip() for k, cell in enumerate(header) if k not in where.values() and cell.strip()]
    if missing:
        texts = [f"{m} (or {', '.join(c.others)})" if (c := COLUMNS.get(m)) and c.others else m for m in missing]
        columns = f"column{'s' * (len(missing) > 1)} {', '.join(texts)}"
        raise UserError(f"{file}: no {columns}; its columns are {', '.join(cell.strip() for cell in header)}")
    notes = [f"not used: {', '.join(spare)}"] if spare else []
    every = [name for column, known in COLUMNS.items() if column not in where for name in (column, *known.others)]
    for cell in spare:
        if near := difflib.get_close_matches(cell.lower(), every, n=1, cutoff=0.75):
            notes.append(f"column {cell}: if it is {near[0]}, call it so")
    return where, score, notes


def _plain(name: str) -> str:
    """A column's name in small letters and digits alone: `Top-1` is top1."""
    return re.sub(r"[\W_]+", "", name.lower())


def _row(at: str, cells: dict[str, str]) -> dict:
    """The row of a line (`at`), from its cells by column."""
    numbers = {
        name: _number(at, name, cells.get(name, "")) for name, column in COLUMNS.items() if column.low is not None
    }
    model, params = cells.get("model", ""), numbers["params"]
    known = SIZES.get(model) or SIZES.get(f"swinv2_{model}")
    if params is None and known is None:
        remedy = f"give the backbone's parameters, or one of {', '.join(SIZES)}"
        raise UserError(f"{at}: model '{model}' has no params: {remedy}")
    if params is None:
        params = known.parameters
    elif params < 1000 or known and not 0.5 < params / known.parameters < 2:
        right = f"{known.name} has {known.parameters:,}" if known else f"{params} million are {params}000000"
        raise UserError(f"{at}: params is {params}: give the number itself ({right})")
    images, steps, batch, side = (numbers[name] for name in (*_NEEDED[:3], "image_size"))
    seen, flops = steps * batch, numbers["flops"]
    if flops is None and side and known:
        flops = 6e9 * known.gmac(side, 12 if known.name in PAPER else 4, head=True) * steps * batch
    elif flops is not None and flops < params * seen:
        less = f"less than parameters times images seen, {params * seen:.2g}"
        raise UserError(
            f"{at}: flops is {cells['flops']}, {less}: give floating-point operations of the whole training, in ones"
        )
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
    if not given and column.needed:
        raise UserError(f"{at}: no {name}; fill it in or leave the line out")
    if not given:
        return None
    try:
        found = float(given.replace("_", ""))
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or found < column.low or (column.whole and found != int(found)):
        kind = f"a {'whole ' if column.whole else ''}number from {column.low:g}"
        more = ", with a point and no unit" if re.search(r"\d\s*[,%kKmM]", given) else ""
        raise UserError(f"{at}: {name} is '{given}': give {kind}{more}")
    return int(found) if column.whole else found


def _percent(file: Path, title: str, found: list[tuple[float | None, int]], scores: str | None) -> bool:
    """Whether scores (with their lines) are in per cent; `UserError` where that cannot be told, or does not fit."""
    found = [pair for pair in found if pair[0]]  # 0 is 0 in both
    if not found:
        return scores == "percent"
    (low, at), (high, top) = min(found), max(found)
    if scores is None and low <= 1 < high:
        raise UserError(
            f"{file}: scores in two units, {low:g} in line {at} and {high:g} in line {top}: write all as shares of 1 "
            f"or all in per cent, or add --scores percent if {low:g} is meant as {low:g} %"
        )
    if scores is None and high <= 1 and _PERCENT.search(title):
        raise UserError(
            f"{file}: column {title.strip()} says per cent, and no score is above {high:g} (line {top}): add --scores "
            f"percent if that is {high:g} %, or --scores share if it is {100 * high:g} %"
        )
    percent = scores == "percent" or scores is None and high > 1
    if high > (100 if percent else 1):
        raise UserError(f"{file}, line {top}: score is {high:g}: give a fraction of 1 or per cent")
    return percent


def _summary(rows: list[dict], score: str, percent: bool) -> str:
    """How the numbers were read, with their ranges: a wrong unit shows there."""

    def span(name: str, unit: str, form: str = ",") -> str:
        values = [row[name] for row in rows if row[name] is not None]
        both = dict.fromkeys(f"{value:{form}}" for value in (min(values), max(values)))
        return f"{' to '.join(both)} {unit}"

    parts = [span("params", "parameters"), span("images", "images"), span("steps", "iterations")]
    parts += [span("batch_size", "images a step"), f"validation loss {span('val_loss', '', '.4g').strip()}"]
    read = f"({'read as per cent' if percent else 'read as shares of 1'})"
    known = any(row[score] is not None for row in rows)
    parts.append(f"scores {span(score, read, '.2%')}" if known else "no scores")
    few = sum(row["images"] < row["batch_size"] for row in rows)
    more = f"; {few} of them with fewer images than a step takes: are they counted in thousands?" if few else ""
    return f"{len(rows)} run{'s' * (len(rows) > 1)}: {', '.join(parts)}{more}"


def _name(file: str | Path) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(file).stem) or "runs"
