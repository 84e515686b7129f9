"""The same study on several kinds of evidence, side by side: published runs, shipped runs, the reader's own.

Their losses are not the same quantity, so each kind has a panel with its own axes (DESIGN 4); `summaries.relative`
joins them as changes against each line's own first point. Rows in, one plotly figure out. No torch here.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go

from .drawing import (
    COLOURS,
    DASHES,
    FAINT,
    INK,
    LABELS,
    SYMBOLS,
    count,
    cycle,
    empty,
    end_labels,
    loss_unit,
    outline,
    panels,
    run_text,
    scaled,
    seed_line,
    shades,
)
from .records import SCORES, core_grid, groups, millions, short, trained

Rows = list[dict]
KINDS = {"published": "Published runs", "shipped": "Shipped runs (laptop)", "yours": "Your runs"}
#: What a study varies: the field on the x axis, and the axis' title with its unit.
STUDIES = {
    "data-scale": ("images", "unique training images"),
    "model-size": ("params", "backbone parameters"),
    "schedule": ("images_seen", "images seen in training"),
    "proxy": ("val_loss", "validation loss"),
}
_TOP, _LEFT, _RIGHT = 78, 74, 16  # margins in pixels


def figure(
    study: str,
    evidence: Mapping[str, Rows],
    measure: str = "val_loss",
    guess: float | None = None,
    level: int | None = None,
) -> go.Figure:
    """A study on every kind of evidence that has rows: a panel a kind, each with its own axes.

    evidence: {"published": rows, "shipped": rows, "yours": rows} of `records.table`; of several recipes in one kind,
    the one with most runs is drawn. measure: "val_loss", or "score": the lift of the linear probe, else of another
    probe (points), else a score itself, as the fine-tuning top-1 of the published runs (%); a score by name ("knn")
    goes first. Study "proxy" draws the score against validation loss. guess: a number in the unit of the y axis, drawn
    as a dashed line in the panel of the reader's runs, or of the shipped ones while there are none. level: only the
    data level that is nearest to this many unique images. Published points are hollow. Study unknown: ValueError.
    """
    field, axis_title = study_axis(study)
    kinds = kinds_of(study, evidence, level, None if measure == "val_loss" and study != "proxy" else measure)
    if not kinds:
        mine = trained(evidence.get("yours") or [])
        return empty(
            _absent(mine, measure if study != "proxy" else "score") if mine else "no finished runs to show yet"
        )
    ends = study in ("data-scale", "model-size")
    plot, bottom = 300, {"data-scale": 76, "model-size": 96}.get(study, 200)  # ticks of a size take two lines
    chart = panels(*(f"{title}<br>{_small(said)}" for title, said in (_titles(study, *item) for item in kinds.items())))
    chart.update_layout(height=_TOP + plot + bottom, margin={"t": _TOP, "b": bottom, "l": _LEFT, "r": _RIGHT})
    own = next((kind for kind in ("yours", "shipped") if kind in kinds), None)
    for column, (kind, rows) in enumerate(kinds.items(), 1):
        what = "val_loss" if study != "proxy" and measure == "val_loss" else score_of(rows, measure)
        rows = [row for row in rows if row[what] is not None]
        xs = [row[field] if study == "proxy" else math.log10(row[field]) for row in rows]
        low, high = padded([scaled(row, what) for row in rows], guess if kind == own else None)
        left, right = min(xs), max(xs)
        span = (right - left) or 1
        spread = [left - 0.07 * span, right + (0.27 if ends else 0.07) * span]
        chart.update_yaxes(title_text=_y_title(rows, what), range=[low, high], row=1, col=column)
        chart.update_xaxes(range=spread, row=1, col=column, tickangle=0, tickfont={"size": 12})
        if study == "proxy":
            chart.update_xaxes(title_text=f"validation loss ({loss_unit(rows)})", nticks=6, row=1, col=column)
        else:
            ticks = _ticks(rows, field, (0.16 if field == "params" else 0.115) if len(kinds) > 2 else 0.09)
            style = {"tickvals": list(ticks), "ticktext": list(ticks.values()), "tickmode": "array"}
            chart.update_xaxes(type="log", title_text=axis_title, **style, row=1, col=column)
        hollow = kind == "published"
        if ends:
            labels = (_by_size if study == "data-scale" else _by_level)(chart, column, rows, what, hollow)
        else:
            (_by_both if study == "schedule" else _points)(chart, column, rows, what, hollow)
            _keys(chart, column, rows, study == "schedule", hollow, plot)
            labels = []
        if guess is not None and kind == own:
            labels += _guess(chart, column, guess, low, high, spread, ends, max(xs))
        end_labels(chart, column, labels, low, high, plot)
    if "yours" in evidence and "yours" not in kinds:
        note = _absent(trained(evidence["yours"] or []), measure if study != "proxy" else "score")
        style = {"x": 0, "xref": "paper", "y": 0, "yref": "container", "yanchor": "bottom", "pad": {"b": 6, "l": -50}}
        chart.update_layout(title={"text": _small(note), **style})
    return chart


def _absent(rows: Rows, measure: str) -> str:
    """Why the reader's runs are not in a figure."""
    if not rows:
        return "Your own runs appear here as a panel of their own, once there are some."
    runs = f"Your {len(rows):,} run{'s have' if len(rows) > 1 else ' has'}"
    if measure != "val_loss" and score_of(rows, measure) is None:
        return f"{runs} no score: their pictures have no labels to probe with, or they were trained without probes."
    return f"{runs} no place here yet: this figure compares runs that differ in their length alone."


def study_axis(study: str) -> tuple[str, str]:
    if study not in STUDIES:
        raise ValueError(f"unknown study {study!r}: one of {', '.join(STUDIES)}")
    return STUDIES[study]


def _small(text: str) -> str:
    return f"<span style='font-size:11.5px;font-weight:normal;color:{FAINT}'>{text}</span>"


def data_name(name: str) -> str:
    """Data by name; of a folder, its own name is enough."""
    return name.split(":")[-1].rstrip("/").split("/")[-1]


def kinds_of(study: str, evidence: Mapping[str, Rows], level: int | None, score: str | None) -> dict[str, Rows]:
    """Rows to draw by kind: of the main recipe, at one length or of cells with several; kinds without any left out."""
    kinds = {}
    for kind, given in evidence.items():
        rows = next(iter(groups([row for row in trained(given or []) if row["val_loss"] is not None]).values()), [])
        if level is not None and rows:
            nearest = min({row["images"] for row in rows}, key=lambda n: abs(n - level))
            rows = [row for row in rows if row["images"] == nearest]
        grid = core_grid(rows)
        if study in ("data-scale", "model-size"):
            rows = [row for row in rows if row["steps"] == grid.steps]
        elif study == "schedule":
            lengths = defaultdict(set)
            for row in rows:
                lengths[row["model"], row["images"]].add(row["steps"])
            rows = [row for row in rows if len(lengths[row["model"], row["images"]]) > 1]
        if rows and (score is None or score_of(rows, score)):
            kinds[kind] = rows
    return kinds


def _titles(study: str, kind: str, rows: Rows) -> tuple[str, str]:
    """A panel's title, and a line that says what was run."""
    seeds, steps = len({row["seed"] for row in rows}), {row["steps"] for row in rows}
    said = [] if kind == "published" else [escape(data_name(rows[0]["data"]))]
    said += [f"{max(steps):,} steps"] if len(steps) == 1 else [f"{min(steps):,} to {max(steps):,} steps"]
    said += ["one seed" if seeds == 1 else f"{seeds} seeds"]
    if study == "data-scale" and any(not row.get("on_axis", True) for row in rows):
        said += ["dotted: to ImageNet-22K"]
    return escape(KINDS.get(kind, kind)), ", ".join(said)


def score_of(rows: Rows, wanted: str) -> str | None:
    """The column that stands for transfer: the lift of the wanted score, or of the first there is; else a score."""
    order = (wanted, *SCORES) if wanted in SCORES else tuple(SCORES)
    lifts = (f"{score}_lift" for score in order)
    return next((name for name in (*lifts, *order) if any(row[name] is not None for row in rows)), None)


def _y_title(rows: Rows, measure: str) -> str:
    if measure == "val_loss":
        return f"validation loss ({loss_unit(rows)})"
    return f"{LABELS[measure]} ({'points' if measure.endswith('_lift') else '%'})"


def padded(values: list[float], guess: float | None = None) -> tuple[float, float]:
    """A range around values; room for a guess, unless it would squeeze the values to less than half."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1
    if guess is not None and low - span < guess < high + span:
        low, high = min(low, guess), max(high, guess)
    return low - 0.08 * span, high + 0.08 * span


def _ticks(rows: Rows, field: str, apart: float) -> dict[float, str]:
    """The values that were run as ticks of a logarithmic axis, without those that are too close to another."""
    names = {row["params"]: f"{short(row['model'])}<br>" for row in rows} if field == "params" else {}
    values = sorted({row[field] for row in rows})
    kept, span = [values[0], values[-1]], math.log10(values[-1] / values[0]) * 1.34 or 1
    for value in values[1:-1]:
        if all(abs(math.log10(value / other)) / span > apart for other in kept):
            kept.append(value)
    label = (lambda n: millions(n).replace(" ", "") if n < 1e9 else count(n)) if field == "params" else count
    return {value: names.get(value, "") + label(value) for value in sorted(kept)}


def sizes_of(rows: Rows) -> list[str]:
    return [model for _, model in sorted({(row["params"], row["model"]) for row in rows})]


def _end(rows: Rows, x: str, measure: str, name: str, colour: str) -> tuple:
    """Where a line ends: the mean over seeds at its largest x, as log10."""
    last = max(row[x] for row in rows)
    values = [scaled(row, measure) for row in rows if row[x] == last]
    return math.log10(last), sum(values) / len(values), escape(name), colour


def _by_size(chart: go.Figure, column: int, rows: Rows, measure: str, hollow: bool) -> list[tuple]:
    models, labels = sizes_of(rows), []
    colours, symbols = cycle(COLOURS, models), cycle(SYMBOLS, models)
    for model in models:
        line = [row for row in rows if row["model"] == model]
        style = {"colour": colours[model], "symbol": symbols[model], "name": short(model), "listed": False}
        on = [row for row in line if row.get("on_axis", True)]
        off = [row for row in line if not row.get("on_axis", True)]
        if on and off:  # other data: led to, not joined
            ends = [max(on, key=lambda row: row["images"]), *off]
            xy = {"x": [row["images"] for row in ends], "y": [scaled(row, measure) for row in ends]}
            dotted = {"color": colours[model], "dash": "dot", "width": 1.2}
            silent = {"hoverinfo": "skip", "showlegend": False}
            chart.add_scatter(**xy, mode="lines", line=dotted, **silent, row=1, col=column)
        for part in (on, off):
            seed_line(chart, part, "images", measure, column, dash="solid", hollow=hollow, **style)
        labels.append(_end(line, "images", measure, short(model), colours[model]))
    return labels


def _by_level(chart: go.Figure, column: int, rows: Rows, measure: str, hollow: bool) -> list[tuple]:
    levels, labels = sorted({row["images"] for row in rows}), []
    colours, symbols = shades(levels), cycle(SYMBOLS, levels)
    for level in levels:
        line = [row for row in rows if row["images"] == level]
        style = {"colour": colours[level], "symbol": symbols[level], "name": f"{count(level)} images", "listed": False}
        seed_line(chart, line, "params", measure, column, dash="solid", hollow=hollow, **style)
        labels.append(_end(line, "params", measure, count(level), colours[level]))
    return labels


def _by_both(chart: go.Figure, column: int, rows: Rows, measure: str, hollow: bool) -> None:
    levels, models = sorted({row["images"] for row in rows}), sizes_of(rows)
    colours, symbols, dashes = shades(levels), cycle(SYMBOLS, models), cycle(DASHES, models)
    for level in levels:
        for model in models:
            line = [row for row in rows if (row["images"], row["model"]) == (level, model)]
            style = {"colour": colours[level], "symbol": symbols[model], "dash": dashes[model], "listed": False}
            name = f"{count(level)} images, {short(model)}"
            seed_line(chart, line, "images_seen", measure, column, name=name, hollow=hollow, **style)


def _points(chart: go.Figure, column: int, rows: Rows, measure: str, hollow: bool) -> None:
    levels, models = sorted({row["images"] for row in rows}), sizes_of(rows)
    colours, symbols = shades(levels), cycle(SYMBOLS, models)
    for level in levels:
        for model in models:
            points = [row for row in rows if (row["images"], row["model"]) == (level, model)]
            marker = {"color": colours[level], "symbol": symbols[model], "size": 9, "opacity": 0.85}
            edge = {"line": {"color": "white", "width": 0.8}}
            chart.add_scatter(
                x=[row["val_loss"] for row in points],
                y=[scaled(row, measure) for row in points],
                mode="markers",
                marker=outline(marker) if hollow else marker | edge,
                text=[run_text(row) for row in points],
                hoverinfo="text",
                showlegend=False,
                row=1,
                col=column,
            )


def _keys(chart: go.Figure, column: int, rows: Rows, lines: bool, hollow: bool, plot: int) -> None:
    """A legend below a panel, in two columns: a colour a data level, a symbol (and dash) a size."""
    levels, models = sorted({row["images"] for row in rows}), sizes_of(rows)
    colours, symbols, dashes = shades(levels), cycle(SYMBOLS, models), cycle(DASHES, models)
    params = {row["model"]: row["params"] for row in rows}
    legend = "legend" if column == 1 else f"legend{column}"
    entries = [("unique images", count(level), {"line": {"color": colours[level], "width": 4}}) for level in levels]
    for model in models:
        marker = {"color": FAINT, "symbol": symbols[model], "size": 9}
        look = {"marker": outline(marker) if hollow else marker}
        look |= {"line": {"color": FAINT, "dash": dashes[model], "width": 1.8}} if lines else {}
        entries.append(("model size", f"{short(model)}, {millions(params[model])}", look))
    for group, name, look in entries:
        title = {"text": f"<b>{group}</b>", "font": {"size": 12}}
        mode = "+".join(name for name in ("lines", "markers") if name[:-1] in look)
        to = {"legend": legend, "legendgroup": group, "legendgrouptitle": title, "name": escape(name)}
        chart.add_scatter(x=[None], y=[None], mode=mode, hoverinfo="skip", **look, **to, row=1, col=column)
    place = {"x": chart.get_subplot(1, column).xaxis.domain[0], "y": -64 / plot, "xanchor": "left", "yanchor": "top"}
    style = {"orientation": "h", "font": {"size": 12}, "tracegroupgap": 2, "itemclick": False, "itemdoubleclick": False}
    chart.update_layout({legend: place | style})


def _guess(chart: go.Figure, column: int, guess: float, low: float, high: float, spread: list, log: bool, end: float):
    """The dashed line of a guess. Its label is returned where lines are labelled at their ends, else drawn."""
    axis = "" if column == 1 else str(column)
    place = {"xref": f"x{axis} domain", "yref": f"y{axis}", "showarrow": False, "font": {"color": INK, "size": 12}}
    if not low < guess < high:
        up = guess >= high
        said = f"your guess, {guess:g}, lies {'above ↑' if up else 'below ↓'}"
        ends = {"y": 0.99 if up else 0.01, "yanchor": "top" if up else "bottom", "yref": f"y{axis} domain"}
        chart.add_annotation(text=said, **place | ends, x=0.98, xanchor="right", bgcolor="rgba(255,255,255,0.85)")
        return []
    to = end if log else spread[1]
    xs = [10**x for x in (spread[0], to)] if log else None
    line = {"color": INK, "dash": "dash", "width": 1.6}
    if log:
        silent = {"hoverinfo": "skip", "showlegend": False, "name": "your guess"}
        chart.add_scatter(x=xs, y=[guess, guess], mode="lines", line=line, **silent, row=1, col=column)
        return [(end, guess, "your guess", INK)]
    chart.add_hline(y=guess, line=line, row=1, col=column)
    chart.add_annotation(text="your guess", **place, x=0.99, y=guess, xanchor="right", yanchor="bottom")
    return []
