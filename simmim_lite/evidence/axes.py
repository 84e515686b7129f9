"""What axes, panels and marks of a figure say: titles, ticks, ranges, hover texts. No torch here."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from . import drawing
from .drawing import COLOURS, FAINT, LABELS, SOURCES, count
from .records import millions, short

#: Titles of axes and of legends, by column.
TITLES = {
    "images": "unique training images", "params": "backbone parameters", "steps": "optimiser steps",
    "images_seen": "images seen in training", "model": "model size", "omega": "Omega of the longer run",
    "labels": "labelled images", "gain": "gain over scratch (points)", "name": "score", "start": "start",
}  # fmt: skip
REGIMES = {"clean": COLOURS[0], "overfit": COLOURS[1], "not known": FAINT}


def title_of(column: str) -> str:
    """A column in words: `validation loss`."""
    known = LABELS | TITLES | {"score": "transfer score"}
    return known.get(column, column)


def label(by: str, value: object) -> str:
    """A value of a column in words: `femto`, `16,384`."""
    return short(value) if by == "model" else count(value) if by in ("images", "steps") else str(value)


def hover(frame: pd.DataFrame) -> list[str]:
    """What a run was, and its numbers, for hover texts."""
    texts = []
    for row in frame.to_dict("records"):
        row = {name: value for name, value in row.items() if pd.notna(value)}
        first = [f"<b>{short(row['model'])}</b>", *(f"{row[n]:,.0f} {n}" for n in ("images", "steps") if n in row)]
        first += [f"seed {row['seed']}"] if row.get("data") != "published" and "seed" in row else []
        numbers = [f"{LABELS[name]} {_value(name, row[name])}" for name in LABELS if name in row]
        texts.append(
            "<br>".join([", ".join(first), *numbers, *(["overfit"] if row.get("regime") == "overfit" else [])])
        )
    return texts


def _value(column: str, value: float) -> str:
    """A number of a run to read: losses as they are, scores in per cent, lifts and gains in points."""
    if column.endswith("_loss"):
        return f"{value:.4f}"
    if column == "gain":
        return f"{value:+.1f} points"
    return f"{100 * value:+.1f} points" if column.endswith("_lift") else f"{100 * value:.1f} %"


def ordered(frame: pd.DataFrame, by: str) -> list:
    """Values of a column in their natural order: sizes by parameters, numbers by size, texts as they come."""
    if by == "model":
        return list(frame.sort_values("params")["model"].drop_duplicates())
    if by == "regime":
        return [name for name in REGIMES if (frame[by] == name).any()]
    values = frame[by].dropna().drop_duplicates()
    return sorted(values) if pd.api.types.is_numeric_dtype(values) else list(values)


def heading(part: pd.DataFrame, name: object, panel: str, x: str, by: str) -> str:
    lines = f"a line: {title_of(by)}" if by in ("images", "steps") else ""
    if panel != "source":
        first, _, more = label(panel, name).partition(", ")
        return f"{escape(first)}<br>{small(lines or escape(more) or what_ran(part))}"
    steps = "steps" not in (x, by)
    return f"{escape(SOURCES.get(name, name))}<br>{small(', '.join(filter(None, (what_ran(part, steps), lines))))}"


def what_ran(part: pd.DataFrame, steps: bool = True) -> str:
    """What was run: data, lengths, seeds."""
    said = [] if part["data"].iloc[0] == "published" else [escape(drawing.data_name(part["data"].iloc[0]))]
    if steps and "steps" in part:
        ends = sorted({part["steps"].min(), part["steps"].max()})
        said += [" to ".join(f"{t:,}" for t in ends) + " steps"]
    seeds = part["seed"].nunique() if "seed" in part else 0
    return ", ".join([*said, "one seed" if seeds == 1 else f"{seeds} seeds"] if seeds else said)


def small(text: str) -> str:
    return f"<span style='font-size:11.5px;font-weight:normal;color:{FAINT}'>{text}</span>"


def axis_title(part: pd.DataFrame, column: str) -> str:
    """Title of an axis with its unit."""
    if column.endswith("_loss") and "target" in part:
        return f"{title_of(column)} ({drawing.loss_unit([part.iloc[0]])})"
    if column == "score":
        names = part["score_name"].dropna().unique()
        return " or ".join(names) if len(names) else "transfer score"
    return title_of(column)


def value_range(values: Sequence[pd.Series | pd.DataFrame], guess: float | None = None) -> list[float]:
    """A range around values and the ends of bars; room for a guess, unless it would squeeze them to less than half."""
    ends = [part[["low", "high"]] if isinstance(part, pd.DataFrame) else part for part in values]
    low, high = (float(of([of(part.to_numpy(float)) for part in ends])) for of in (np.nanmin, np.nanmax))
    span = (high - low) or abs(high) or 1
    if guess is not None and low - span < guess < high + span:
        low, high = min(low, guess), max(high, guess)
    return [low - 0.08 * span, high + 0.08 * span]


def ticks_of(part: pd.DataFrame, x: str, apart: float) -> dict[float, str]:
    """The values that were run as ticks of a logarithmic axis, without those that are too close to another."""
    values = sorted(part[x].unique().tolist())
    span = math.log10(values[-1] / values[0]) * 1.34 or 1
    taken = [values[0], values[-1]]
    for value in values[1:-1]:
        if all(abs(math.log10(value / other)) / span > apart for other in taken):
            taken.append(value)
    if x != "params":
        return {value: count(value) for value in sorted(taken)}
    names = part.drop_duplicates("params").set_index("params")["model"]
    return {v: f"{short(names[v])}<br>{millions(v).replace(' ', '') if v < 1e9 else count(v)}" for v in sorted(taken)}
