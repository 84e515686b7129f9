"""Other people's runs: the 63 published ones, what they say (docs/facts.md, 7), and CSV files of runs, a line each,
whose columns go by the names of COLUMNS, or the usual others. No torch here."""

import csv
import io
import math
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from ..files import entries, write_atomic
from ..model.sizes import PAPER, SIZES
from ..processes import tell_once
from . import proxy
from .records import OVERFIT, SCORES, score_of
from .stats import drawn

SOURCE = "the public model table of the Swin-Transformer repository (SimMIM pretraining of Swin V2, 63 runs)"
SCORE = "finetune"  # top-1 on ImageNet-1K after fine-tuning
WHOLE = "imagenet1k-100"
OTHER = "imagenet22k"  # not a part of ImageNet-1K: its losses have no place on the axis of data levels

_SCORES = "finetune_top1 top1 top1_accuracy accuracy acc finetune linear knn segment linear_probe"
#: Of each column: what it holds, what else it may be called, and of a number whether it is whole, and the smallest.
COLUMNS: dict[str, tuple[str, str, type | None, float]] = {
    "model": ("the network's name", "name size architecture", None, 0),
    "params": ("parameters of the backbone; may be left out for the sizes of this project",
               "parameters backbone_params backbone_parameters n_params", int, 1000),
    "unique_images": ("training images, each once", "images train_images data_size", int, 1),
    "iterations": ("optimiser steps", "steps iters train_steps", int, 1),
    "batch_size": ("images a step", "batch", int, 1),
    "val_loss": ("validation loss", "validation_loss valid_loss loss", float, 0),
    "score": ("what the network is worth afterwards, as a share of 1 or in per cent", _SCORES, float, 0),
    "train_loss": ("training loss", "training_loss", float, 0),
    "seed": ("a whole number; 0 where there is none", "", int, 0),
    "dataset": ("a name, where runs are of several sets of images", "data", None, 0),
    "image_size": ("pixels a side; for plan, where there are no flops", "resolution img_size", int, 1),
    "flops": ("of the whole training; for plan", "training_flops", float, 0),
}  # fmt: skip
NEEDED = ("unique_images", "iterations", "batch_size", "val_loss")
UNITS = ("percent", "share")
_PERCENT = re.compile(r"%|\bper[ _]?cent\b|_percent\b|_pct\b|\bpct\b", re.I)


def rows() -> list[dict]:
    """The 63 runs as `records.run_rows`, of one seed each, with `dataset` and `on_axis` (False for ImageNet-22K).
    `finetune` is ImageNet-1K top-1; lifts, training losses and other scores are unknown. Overfit: `flag_overfit`."""
    return [dict(row) for row in _rows()]


@cache
def _rows() -> tuple[dict, ...]:
    found = read_csv(files(__package__) / "published_runs.csv", "percent")[0]
    for row in found:
        gmac = SIZES[row["model"]].gmac(192, 12, head=True)
        row |= {"image_size": 192, "flops": 6e9 * gmac * row["images_seen"]}
        row |= {"data": "published", "recipe": "published", "on_axis": row["dataset"] != OTHER}
        row["trunk"] = f"published-{row['model']}-{row['dataset']}"
        row["key"] = f"{row['trunk']}-{row['steps']}"
    flag_overfit(found, lambda row: row["dataset"] == WHOLE)
    return tuple(found)


@cache
def facts() -> dict:
    """What the published runs say (docs/facts.md, 7): Pearson correlations of loss and accuracy, the accuracy of
    choices by `proxy.accuracy` (size, length), each with its 95 % interval, and the turning points of Omega."""
    frame = pd.DataFrame(rows())
    sets = {"all": frame, "non_overfit": frame[~frame["overfit"]], "overfit": frame[frame["overfit"]]}
    named = {"whole": WHOLE, "22k": OTHER, "tenth": "imagenet1k-10"}
    sets |= {name: frame[frame["dataset"] == dataset] for name, dataset in named.items()}
    kinds = (("size", "val_loss"), ("size", "params"), ("length", "val_loss"), ("length", "images_seen"))
    choices = {(among, by): proxy.accuracy(frame, SCORE, by, among).loc["all pairs"] for among, by in kinds}
    return {
        "pearson": pd.DataFrame({name: _pearson(some) for name, some in sets.items()}).T,
        "choices": pd.DataFrame(choices).T,
        "omega": proxy.turning_points(proxy.doublings(frame, SCORE)),
    }


def _pearson(chosen: pd.DataFrame) -> dict:
    """Pearson correlation of validation loss and accuracy; its interval by bootstrap over size x data cells."""
    x, y = (chosen[name].to_numpy() for name in ("val_loss", SCORE))
    w = drawn(chosen["trunk"])
    w = w / w.sum(1, keepdims=True)
    a, b = (v - (w * v).sum(1, keepdims=True) for v in (x, y))
    again = (w * a * b).sum(1) / np.sqrt((w * a * a).sum(1) * (w * b * b).sum(1))
    low, high = np.percentile(again, [2.5, 97.5]).tolist()
    return {"value": float(np.corrcoef(x, y)[0, 1]), "low": low, "high": high, "n": len(chosen)}


def help_text() -> str:
    """The columns, for --help."""
    others = {name: f" (or {', '.join(column[1].split())})" if column[1] else "" for name, column in COLUMNS.items()}
    parts = "; ".join(f"{name}{others[name]}: {column[0]}" for name, column in COLUMNS.items())
    return f"Columns, in any order: {parts}. Needed are {', '.join(NEEDED)} and model or params."


def read_csv(file: str | Path, scores: str | None = None) -> tuple[list[dict], list[str]]:
    """The runs of a file as `records.run_rows`, and lines on how they were read. scores: `percent` or `share` of 1,
    where the numbers themselves leave that open. Raises `UserError`, one line with file, line number, column and
    remedy, for what is missing, no number, out of range or in more than one unit, and for two lines that are the same
    run."""
    if scores not in (None, *UNITS):
        raise unknown("unit of scores", scores, UNITS)
    file, found, numbers = Path(file), [], {}
    header, lines = _cells(file)
    where = _columns(file, header)
    title = header[where["score"]].strip() if "score" in where else ""
    for number, line in lines:
        at = f"{file}, line {number}"
        if len(line) < len(header) or any(cell.strip() for cell in line[len(header) :]):
            what = f"{at}: {len(line)} cells under {len(header)} columns"
            raise UserError(f"{what}: write numbers without commas in them, and what is not known as an empty cell")
        row = _row(at, {column: line[k].strip() for column, k in where.items()})
        same = tuple(row[k] for k in ("model", "dataset", "images", "steps", "seed"))
        if numbers.setdefault(same, number) != number:
            raise UserError(f"{at}: the same run as line {numbers[same]}; give each its seed, or leave one out")
        found.append(row)
    if not found:
        raise UserError(f"{file}: has no runs below its first line")
    known = [row["score"] for row in found if row["score"]]  # 0 is 0 in both units
    low, high = min(known, default=0), max(known, default=0)
    if scores is None and (0 < low <= 1 < high or 0 < high <= 1 and _PERCENT.search(title)):
        text = f"{file}: column {title} has scores from {low:g} to {high:g}, and does not tell whether in per cent"
        raise UserError(f"{text}: add --scores percent, or --scores share (of 1)")
    percent = scores == "percent" or scores is None and high > 1
    if high > (100 if percent else 1):
        raise UserError(f"{file}: score is {high:g}: give shares of 1 or per cent")
    name, score = _name(file), next((s for s in ("linear", "knn", "segment") if _plain(title).startswith(s)), SCORE)
    none = ["val_loss_se", "probe_images", "seconds", "core_seconds", *SCORES, *(f"{one}_lift" for one in SCORES)]
    for row in found:
        value = row.pop("score")
        row |= {"data": name, "target": "unknown", "recipe": f"imported {name}", "reference": False}
        row |= dict.fromkeys(none) | {score: value / 100 if percent and value is not None else value}
        row["trunk"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "seed"))
        row["key"] = " ".join(str(row[k]) for k in ("recipe", "model", "dataset", "images", "steps", "seed"))
    # a set of images has several numbers of them; if none has, the names are those of levels of one set
    sets = {name: [row for row in found if row["dataset"] == name] for name in {row["dataset"] for row in found}}
    apart = any(len({row["images"] for row in some}) > 1 for some in sets.values())
    for some in sets.values() if apart else (found,):
        most = max(row["images"] for row in some)
        flag_overfit(some, lambda row, most=most: row["images"] == most)
    spare = [cell.strip() for k, cell in enumerate(header) if k not in where.values() and cell.strip()]
    images = " to ".join(dict.fromkeys(f"{of(row['images'] for row in found):,}" for of in (min, max)))
    told = f"scores read as {'per cent' if percent else 'shares of 1'}" if known else "no scores"
    levels = "; the sets are taken as levels of one" if len(sets) > 1 and not apart else ""
    notes = [f"{len(found)} run{'s' * (len(found) > 1)} on {images} images, {told}{levels}"]
    return found, notes + ([f"not used: {', '.join(spare)}"] if spare else [])


def flag_overfit(found: list[dict], whole: Callable[[dict], bool]) -> None:
    """Give runs without a curve their `overfit`: whether the loss lies above (docs/facts.md, 7) that of a run of the
    same size and length on the whole data (`whole` tells which), or of a shorter one on the same data."""
    for row in found:
        own = [r for r in found if (r["model"], r["seed"]) == (row["model"], row["seed"])]
        others = [r for r in own if whole(r) and r["steps"] == row["steps"]]
        others += [r for r in own if r["trunk"] == row["trunk"] and r["steps"] < row["steps"]]
        # losses have four digits: a difference of .0040 is none of more than .004
        row["overfit"] = any(row["val_loss"] - r["val_loss"] > OVERFIT + 1e-9 for r in others)


def import_csv(file: str | Path, runs_dir: str | Path, scores: str | None = None) -> tuple[list[dict], list[str]]:
    """Check a file and keep its runs as RUNS_DIR/imported/NAME.csv, where studies find them; as `read_csv`.

    Scores are kept as shares of 1. `UserError` as `read_csv`, and where other runs are kept under that name.
    """
    found, notes = read_csv(file, scores)
    target = Path(runs_dir) / "imported" / f"{_name(file)}.csv"
    if target.exists() and read_csv(target)[0] != found:
        raise UserError(f"{target} holds other runs than {file}: delete it, or give {file} another name")
    score = score_of(found) or SCORE
    table = pd.DataFrame(found, dtype=object).rename(columns={"images": "unique_images", "steps": "iterations"})
    columns = [score if column == "score" else column for column in COLUMNS]
    write_atomic(target, table.to_csv(columns=columns, index=False))
    return found, notes


def imported(runs_dir: str | Path) -> dict[str, list[dict]]:
    """The rows of every file that was imported into a runs folder, by name; one that cannot be read is passed over."""
    found = {}
    for path in entries(Path(runs_dir) / "imported", "*.csv"):
        try:
            found[path.stem] = read_csv(path)[0]
        except UserError as error:
            tell_once(f"passed over: {error}")
    return found


def _cells(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a file and its lines, numbered; empty ones are left out."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count))
        lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: cannot be read ({what}): give a CSV file in UTF-8") from error
    if not lines:
        raise UserError(f"{file}: is empty: the first line must name the columns, as in {', '.join(COLUMNS)}")
    return lines[0][1], lines[1:]


def _columns(file: Path, header: list[str]) -> dict[str, int]:
    """Where each column is."""
    names, where = [_plain(cell) for cell in header], {}
    for column, (_, others, *_) in COLUMNS.items():
        found = next((_plain(name) for name in (column, *others.split()) if _plain(name) in names), None)
        if names.count(found) > 1:
            raise UserError(f"{file}: has {names.count(found)} columns {found}: keep one")
        where |= {column: names.index(found)} if found else {}
    missing = [name for name in NEEDED if name not in where]
    missing += [] if {"model", "params"} & where.keys() else ["model or params"]
    if missing:
        raise UserError(f"{file}: no column {', '.join(missing)}; its columns are {', '.join(header)} (see --help)")
    return where


def _plain(name: str) -> str:
    """A column's name without its unit, in small letters and digits alone: `Top-1 (%)` is top1."""
    return re.sub(r"[\W_]+", "", _PERCENT.sub("", name).lower())


def _row(at: str, cells: dict[str, str]) -> dict:
    """The row of a line (`at`), from its cells by column."""
    of = {name: _number(at, name, cells.get(name, "")) for name, (*_, kind, _) in COLUMNS.items() if kind}
    model, steps, seen = cells.get("model", ""), of["iterations"], of["iterations"] * of["batch_size"]
    size = SIZES.get(model) or SIZES.get(f"swinv2_{model}")
    params, flops = of["params"] or (size and size.parameters), of["flops"]
    if params is None:
        raise UserError(f"{at}: model '{model}' has no params: give them, or one of {', '.join(SIZES)}")
    if size and not 0.5 < params / size.parameters < 2:
        raise UserError(f"{at}: params is {params}: give the number itself ({size.name} has {size.parameters:,})")
    if flops is None and of["image_size"] and size:
        flops = 6e9 * size.gmac(of["image_size"], 12 if size.name in PAPER else 4, head=True) * seen
    elif flops is not None and flops < params * seen:
        less = f"less than parameters times images seen, {params * seen:.2g}"
        raise UserError(f"{at}: flops is {flops:g}, {less}: give those of the whole training, in ones")
    found = {"model": size.name if size else model or f"{params / 1e6:.3g} M", "dataset": cells.get("dataset", "")}
    found |= {"params": params, "images": of["unique_images"], "steps": steps, "images_seen": seen, "flops": flops}
    found |= {"epochs": seen / of["unique_images"], "seed": of["seed"] or 0}
    return found | {k: of[k] for k in ("batch_size", "val_loss", "train_loss", "image_size", "score")}


def _number(at: str, name: str, given: str) -> float | None:
    """A cell as the number that its column asks for; None where it is empty and may be."""
    *_, kind, low = COLUMNS[name]
    if not given and name not in NEEDED:
        return None
    try:
        found = float(given.replace("_", ""))
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or found < low or kind(found) != found:
        what = f"{'whole ' if kind is int else ''}number from {low:g}"
        raise UserError(f"{at}: {name} is '{given}': give a {what}, with a point and no unit, or leave the line out")
    return kind(found)


def _name(file: str | Path) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(file).stem) or "runs"
