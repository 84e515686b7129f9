"""Somebody else's runs, from a CSV file, into tables, claims and plots. No torch here.

A line a run. Columns, by these names or the usual others (`COLUMNS`), in any order; unknown ones are ignored:

model or params        a name, or backbone parameters; one may be left out where the model is a known size
unique_images          training images, each counted once
iterations, batch_size optimiser steps and images a step
val_loss               validation loss, the same quantity in all lines
score                  what the network is worth afterwards: 0 to 1, or per cent; optional
train_loss, seed       optional
dataset                lines of different sets are claimed on apart from each other; optional
"""

import csv
import math
import re
from pathlib import Path

from ..errors import UserError
from ..model.sizes import SIZES
from ..training.run import write_atomic
from .claims import claims_of
from .records import OVERFIT, SCORES
from .rules import Claim

#: Columns and what else they may be called.
COLUMNS = {
    "model": ("name", "size", "architecture"),
    "params": ("parameters", "backbone_params", "backbone_parameters", "n_params"),
    "unique_images": ("images", "train_images", "data_size"),
    "iterations": ("steps", "iters", "train_steps"),
    "batch_size": ("batch",),
    "val_loss": ("validation_loss", "valid_loss", "loss"),
    "score": ("finetune_top1", "top1", "accuracy", "finetune", "linear", "knn", "segment", "linear_probe"),
    "train_loss": ("training_loss",),
    "seed": (),
    "dataset": ("data",),
}
_NEEDED = ("unique_images", "iterations", "batch_size", "val_loss")
#: Which score of ours a column's name stands for; fine-tuning where it does not say.
_SCORE = {"linear": "linear", "linear_probe": "linear", "knn": "knn", "segment": "segment"}


def read_csv(file: str | Path) -> list[dict]:
    """The runs of a file as rows in the columns of `records.table`: lifts None, one recipe, `data` the file's name.

    Raises `UserError`, one line with file, line number, column and remedy, for what is missing, no number or out of
    range, and for two lines that are the same run.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}): give a CSV file"
        ) from error
    lines = list(csv.reader(text.splitlines(), delimiter=";" if text.split("\n")[0].count(";") > 2 else ","))
    if not lines or not any(lines[0]):
        raise UserError(f"{file}: is empty: the first line must name the columns, as in {', '.join(COLUMNS)}")
    where, score = _columns(file, lines[0])
    rows, first = [], {}
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        row = _row(file, number, line, where)
        same = tuple(row[k] for k in ("model", "dataset", "images", "steps", "seed"))
        if same in first:
            raise UserError(
                f"{file}, line {number}: the same run as line {first[same]}; give each its seed, or leave one out"
            )
        first[same] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: has no runs below its first line")
    return _finish(file, rows, score)


def import_csv(file: str | Path, runs_dir: str | Path) -> int:
    """Check a file and keep it as RUNS_DIR/imported/NAME.csv, where studies find it; how many runs. As `read_csv`."""
    rows = read_csv(file)
    write_atomic(Path(runs_dir) / "imported" / f"{_name(file)}.csv", Path(file).read_bytes())
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


def _columns(file: Path, header: list[str]) -> tuple[dict[str, int], str]:
    """Where each column is, and which score of ours the score is."""
    names = [re.sub(r"\W+", "_", cell.strip().lower()).strip("_") for cell in header]
    where, score = {}, "finetune"
    for column, others in COLUMNS.items():
        found = [name for name in (column, *others) if name in names]
        if found:
            where[column] = names.index(found[0])
            score = _SCORE.get(found[0], score) if column == "score" else score
    missing = [name for name in _NEEDED if name not in where]
    if missing or not {"model", "params"} & where.keys():
        name = missing[0] if missing else "model or params"
        more = f", or one of {', '.join(COLUMNS[name])}" if COLUMNS.get(name) else ""
        raise UserError(f"{file}: no column {name}{more}; its columns are {', '.join(names)}")
    return where, score


def _row(file: Path, number: int, line: list[str], where: dict[str, int]) -> dict:
    def text(column: str) -> str:
        k = where.get(column)
        return line[k].strip() if k is not None and k < len(line) else ""

    def value(column: str, low: float = 0, *, whole: bool = False) -> float | None:
        given = text(column)
        if not given:
            if column in _NEEDED:
                raise UserError(f"{file}, line {number}: no {column}; fill it in or leave the line out")
            return None
        try:
            found = float(given.replace("_", ""))
        except ValueError:
            found = math.nan
        if not math.isfinite(found) or found < low or (whole and found != int(found)):
            kind = f"a whole number from {low:g}" if whole else f"a number from {low:g}"
            raise UserError(f"{file}, line {number}: {column} is '{given}': give {kind}")
        return int(found) if whole else found

    model, params = text("model"), value("params", 1, whole=True)
    known = SIZES.get(model) or SIZES.get(f"swinv2_{model}")
    if params is None:
        if known is None:
            raise UserError(
                f"{file}, line {number}: model '{model}' has no params: give the backbone's parameters, "
                f"or one of {', '.join(SIZES)}"
            )
        params = known.parameters
    images, steps, batch = (value(name, 1, whole=True) for name in _NEEDED[:3])
    row = {
        "model": known.name if known else model or f"{params / 1e6:.3g} M",
        "params": params,
        "dataset": text("dataset"),
        "images": images,
        "steps": steps,
        "images_seen": steps * batch,
        "epochs": steps * batch / images,
        "seed": value("seed", 0, whole=True) or 0,
        "batch_size": batch,
        "val_loss": value("val_loss"),
        "train_loss": value("train_loss"),
        "_score": value("score"),
        "_line": number,
    }
    return row


def _finish(file: Path, rows: list[dict], score: str) -> list[dict]:
    """Scores as fractions, overfitting by the rule for published runs, and what all rows share."""
    scores = [row["_score"] for row in rows if row["_score"] is not None]
    percent = bool(scores) and max(scores) > 1
    for row in rows:
        value, number = row.pop("_score"), row.pop("_line")
        if value is not None and value > (100 if percent else 1):
            raise UserError(f"{file}, line {number}: score is {value:g}: give a fraction of 1 or per cent")
        row |= {name: None for s in SCORES for name in (s, f"{s}_lift")}
        row[score] = value / 100 if percent and value is not None else value
        row |= {"data": _name(file), "target": "unknown", "image_size": None, "recipe": f"imported {_name(file)}"}
        row |= {"val_loss_se": None, "flops": None, "seconds": None, "core_seconds": None, "reference": False}
        row["key"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "steps", "seed"))
        row["trunk"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "seed"))
    most = max(row["images"] for row in rows)
    for row in rows:
        own = [r for r in rows if (r["model"], r["seed"]) == (row["model"], row["seed"])]
        whole = [r for r in own if r["images"] == most and r["steps"] == row["steps"]]
        shorter = [r for r in own if r["trunk"] == row["trunk"] and r["steps"] < row["steps"]]
        row["overfit"] = any(row["val_loss"] - r["val_loss"] > OVERFIT for r in (*whole, *shorter))
    return rows


def _name(file: str | Path) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(file).stem) or "runs"
