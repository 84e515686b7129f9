"""Figures of the studies: one call on a DataFrame, a panel a source of runs. The look is in `drawing`. No torch here.

Losses of different data or recipes never share an axis. Hollow marks are runs that were not trained here.
"""

import math
from collections.abc import Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go

from . import drawing
from .axes import (
    REGIMES,
    TITLES,
    axis_title,
    heading,
    hover,
    label,
    ordered,
    small,
    ticks_of,
    title_of,
    value_range,
    what_ran,
)
from .drawing import (
    COLOURS,
    FAINT,
    INK,
    RULE,
    SOURCES,
    SYMBOLS,
    TEMPLATE,
    cycle,
    empty,
    outline,
    panels,
    shades,
)
from .figure import Figure
from .records import short
from .stats import spearman

_PLOT, _TOP = 300, 78  # pixels: height of a panel, and of what is above it
_APART = {1: 0.09, 2: 0.115, 3: 0.19}  # of ticks, in shares of a panel, by the number of panels


def lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    *,
    panel: str = "source",
    guess: float | None = None,
    guess_in: str | None = None,
    interval: bool = False,
) -> go.Figure:
    """y against x on a logarithmic axis, a line a value of `by`, a panel a value of `panel` (source, model, score …).

    frame: runs in the columns of `tables.runs`; rows without y are left out. x: images, params, steps, images_seen or
    any other positive number; y: val_loss, score (points) or a column that is its own title; by: model, images, steps
    or a text. guess: a number in the unit of y, a dashed line in the panel guess_in, by default that of the reader's
    runs, else the last one.
    interval: bars are 95 % intervals (Student's t) in place of one standard error.
    """
    frame = frame[frame[y].notna()] if y in frame else frame[:0]
    if not len(frame):
        return empty(f"no finished run has a {title_of(y)} yet")
    names = _panels(frame, panel)
    shared = panel == "model"  # of one source: the same quantity
    chart = panels(*(heading(part, name, panel, x, by) for name, part in names.items()), shared_yaxes=shared)
    own = guess_in or ("yours" if "yours" in names else list(names)[-1])
    for column, (name, part) in enumerate(names.items(), 1):
        values = ordered(part, by)
        all_values = ordered(frame, by) if shared else values  # one colour a value in all panels
        looks = shades(all_values) if by in ("images", "steps") else cycle(COLOURS, all_values)
        reach = [(frame if shared else part)[y], *(_means(some, x, y, interval) for _, some in part.groupby(by))]
        low, high = value_range(reach, guess if name == own else None)
        ends, published = [], part.get("source", pd.Series([""])).iloc[0] == "published"
        for value, symbol in cycle(SYMBOLS, values).items():
            line, text = part[part[by] == value], label(by, value)
            on = line[line["on_axis"]] if x == "images" and "on_axis" in line else line
            _dotted(chart, column, on, line.drop(on.index), x, y, looks[value])
            for some in (on, line.drop(on.index)):
                _line(chart, column, some, x, y, text, looks[value], symbol, published, interval)
            last = line[line[x] == line[x].max()]
            ends.append((math.log10(last[x].iloc[0]), last[y].mean(), escape(text), looks[value]))
        left, right = math.log10(part[x].min()), math.log10(part[x].max())
        span = (right - left) or 1
        spread = [left - 0.07 * span, right + 0.27 * span]
        if guess is not None and name == own:
            ends += _guess(chart, column, guess, (low, high), (spread[0], right))
        ticks = ticks_of(part, x, _APART.get(len(names), 0.4))
        style = {"tickvals": list(ticks), "ticktext": list(ticks.values()), "tickangle": 0, "tickfont": {"size": 12}}
        chart.update_xaxes(type="log", title_text=TITLES.get(x, x), range=spread, **style, row=1, col=column)
        title = "" if panel != "source" and column > 1 else axis_title(part, y)
        chart.update_yaxes(title_text=title, range=[low, high], row=1, col=column)
        drawing.end_labels(chart, column, ends, low, high, _PLOT)
    below = 96 if x == "params" else 76
    return chart.update_layout(height=_TOP + _PLOT + below, margin={"t": _TOP, "b": below, "l": 74, "r": 16})


def scatter(
    frame: pd.DataFrame, x: str | Sequence[str], y: str, colour: str, *, symbol: str = "model", rank: bool = False
) -> go.Figure:
    """y against x, a mark a run, a panel a source and each x that it has: of two losses, side by side.

    colour: a column; images go from warm (few) to dark. rank: each panel's title has Spearman's
    correlation over all runs, and over those that are not overfit.
    """
    xs = [x] if isinstance(x, str) else list(x)
    parts = {
        (name, column): part[part[[column, y]].notna().all(axis=1)]
        for name, part in _panels(frame, "source").items() for column in xs
    }  # fmt: skip
    parts = {place: part for place, part in parts.items() if len(part)}
    if not parts:
        return empty("no finished run has both a loss and a score")
    heads = []
    for (name, column), part in parts.items():
        said = [f"ρ {spearman(part[column], part[y]):+.2f} ({len(part)})"] if rank else []
        if rank and 2 < len(clean := part[part["regime"] == "clean"]) < len(part):
            said += [f"clean {spearman(clean[column], clean[y]):+.2f} ({len(clean)})"]
        first = SOURCES.get(name, name) + (f": {title_of(column)}" if len(xs) > 1 and len(parts) < 3 else "")
        heads.append(f"{escape(first)}<br>{small(', '.join(said).replace('-', '−') or what_ran(part))}")
    chart = panels(*heads)
    values = ordered(frame, colour)
    looks = shades(values) if colour in ("images", "steps") else cycle(COLOURS, values) | REGIMES
    looks, symbols = {value: looks[value] for value in values}, cycle(SYMBOLS, ordered(frame, symbol))
    for panel, ((name, column), part) in enumerate(parts.items(), 1):
        for (value, shape), some in part.groupby([colour, symbol], observed=True):
            marker = {"color": looks[value], "symbol": symbols[shape], "size": 9, "opacity": 0.85}
            hollow = outline(marker) if name == "published" else marker | {"line": {"color": "white", "width": 0.8}}
            chart.add_scatter(
                x=some[column], y=some[y], mode="markers", marker=hollow, text=hover(some), hoverinfo="text",
                showlegend=False, row=1, col=panel,
            )  # fmt: skip
        title = axis_title(part, column) if len(parts) < 3 else title_of(column)
        chart.update_xaxes(title_text=title, nticks=6, row=1, col=panel)
        chart.update_yaxes(title_text=axis_title(part, y), range=value_range([part[y]]), row=1, col=panel)
    _legend(chart, colour, looks, symbol, symbols, frame)
    return chart


def doublings(frame: pd.DataFrame, turns: dict[str, dict[str, float | None]] | None = None) -> go.Figure:
    """Every doubling of the length (`doublings.doublings`, with a source): change of the score against Omega.

    turns: by source, the Omega at which the loss turns up ("loss") and the score down ("score"); both are drawn as
    vertical lines where they lie within the doublings shown.
    """
    if not len(frame):
        return empty("no size and data level was run at a length and twice that length")
    frame = frame.assign(points=100 * frame["score_change"])
    frame["validation loss"] = frame["loss_change"].gt(0).map({True: "rose", False: "fell"})
    parts = _panels(frame, "source")
    heads = [
        f"{SOURCES.get(name, name)}<br>"
        + small(f"Spearman's ρ of Omega and change: {spearman(part['omega'], part['points']):+.2f}".replace("-", "−"))
        for name, part in parts.items()
    ]
    chart, symbols = panels(*heads), cycle(SYMBOLS, ordered(frame, "model"))
    looks = {"fell": COLOURS[0], "rose": COLOURS[1]}
    for column, (name, part) in enumerate(parts.items(), 1):
        for (rose, model), some in part.groupby(["validation loss", "model"]):
            marker = {"color": looks[rose], "symbol": symbols[model], "size": 9, "opacity": 0.8}
            text = [
                f"<b>{short(d.model)}</b>, {d.images:,} images, {d.steps // 2:,} to {d.steps:,} steps<br>"
                f"Omega {d.omega:.2g}<br>validation loss {d.loss_change:+.4f}<br>score {d.points:+.2f} points"
                for d in some.itertuples()
            ]
            chart.add_scatter(
                x=some["omega"], y=some["points"], mode="markers", text=text, hoverinfo="text", showlegend=False,
                marker=outline(marker) if name == "published" else marker, row=1, col=column,
            )  # fmt: skip
        low, high = part["omega"].min(), part["omega"].max()
        for of, at in (turns or {}).get(name, {}).items():
            if at and low <= at <= high:
                line = {"color": looks["rose"] if of == "loss" else INK, "dash": "dash", "width": 1.6}
                chart.add_vline(x=at, line=line, row=1, col=column)
                axis = "" if column == 1 else str(column)
                chart.add_annotation(
                    x=math.log10(at), y=0.99 if of == "loss" else 0.05, yref=f"y{axis} domain", xref=f"x{axis}",
                    text=f"{of} turns", showarrow=False, xanchor="left", xshift=4, font={"size": 12, **_ink(line)},
                )  # fmt: skip
        ticks = {v: f"{v:.0e}".replace("e+0", "e") for v in drawing.decades(low, high)}
        style = {"tickvals": list(ticks), "ticktext": list(ticks.values())}
        chart.update_xaxes(type="log", title_text=TITLES["omega"], **style, row=1, col=column)
        chart.update_yaxes(title_text="change of the score (points)", row=1, col=column)
        chart.add_hline(y=0, line={"color": RULE, "width": 1.4}, row=1, col=column)
    _legend(chart, "validation loss", looks, "model", symbols, frame)
    return chart


def intervals(
    frame: pd.DataFrame, unit: str, *, colour: str = "source", mark: float | None = None, guess: float | None = None
) -> go.Figure:
    """Named numbers with intervals; columns name, value, low, high, and colour where a name has several.

    mark: a value to compare with, a dotted line (a coin flip, zero). guess: a dashed one.
    """
    if not len(frame):
        return empty("nothing to compare yet")
    chart = Figure(layout={"template": TEMPLATE})
    groups = list(frame.groupby(colour, sort=False)) if colour in frame else [("", frame)]
    looks = dict(zip([name for name, _ in groups], (INK, *COLOURS) if colour == "source" else COLOURS, strict=False))
    places = {name: k for k, name in enumerate(dict.fromkeys(frame["name"]))}
    apart = 0 if colour == "source" else 0.26 / max(1, len(groups) - 1)
    for k, (group, rows) in enumerate(groups):
        hollow = "circle-open" if group == "published" else SYMBOLS[k % len(SYMBOLS)] if apart else "circle"
        bars = {"array": rows["high"] - rows["value"], "arrayminus": rows["value"] - rows["low"]}
        text = [f"<b>{r.name}</b> {group}<br>{r.value:.3g} [{r.low:.3g}, {r.high:.3g}]" for r in rows.itertuples()]
        chart.add_scatter(
            x=rows["value"], y=[places[name] + apart * (k - (len(groups) - 1) / 2) for name in rows["name"]],
            mode="markers" if apart else "markers+text", name=group, text=[f"{value:.3g}" for value in rows["value"]],
            marker={"color": looks[group], "size": 11, "symbol": hollow, "line": {"width": 2}},
            error_x=bars | {"thickness": 1.6, "width": 5}, textposition="top center", hovertext=text, hoverinfo="text",
        )  # fmt: skip
    for at, text, dash in ((mark, "", "dot"), (guess, "your guess", "dash")):
        if at is not None:
            chart.add_vline(x=at, line={"dash": dash, "color": FAINT}, annotation_text=text)
    ticks = {"tickvals": list(places.values()), "ticktext": list(places), "range": [len(places) - 0.4, -0.6]}
    chart.update_yaxes(showgrid=False, **ticks).update_xaxes(title_text=unit)
    below = {"orientation": "h", "x": 0, "y": -70 / (46 * len(places)), "yanchor": "top"}
    legend = {"showlegend": bool(apart) and len(groups) > 1, "legend": below}
    return chart.update_layout(height=150 + 46 * len(places), margin={"t": 36, "r": 20, "l": 210, "b": 90}, **legend)


def curves(records: list[dict], chosen: pd.DataFrame) -> go.Figure:
    """Training and validation loss of runs against optimiser steps, in one panel: solid is validation, dotted training.

    records: whole records, which have the curves; chosen: their rows (key, model, images), a colour a data level.
    """
    points = {record["key"]: record["curve"] for record in records if record.get("kind") == "pretrain"}
    chosen = chosen[chosen["key"].isin(points.keys())]
    if not len(chosen):
        return empty("no curves of these runs are here")
    looks = shades(ordered(chosen, "images"))
    chart = Figure(layout={"template": TEMPLATE})
    for row in chosen.itertuples():
        for loss, dash in (("val_loss", "solid"), ("train_loss", "dot")):
            curve = [p for p in points[row.key] if p.get(loss) is not None and p["step"]]
            name = f"{row.images:,} images, {'validation' if loss == 'val_loss' else 'training'}"
            chart.add_scatter(
                x=[p["step"] for p in curve], y=[p[loss] for p in curve], mode="lines", name=name,
                line={"color": looks[row.images], "dash": dash, "width": 2.2},
                hovertemplate=f"{name}<br>step %{{x:,}}: %{{y:.4f}}<extra></extra>",
            )  # fmt: skip
    return chart.update_xaxes(title_text="optimiser step").update_yaxes(
        title_text=f"loss ({drawing.loss_unit([chosen.iloc[0]])})"
    )


def _panels(frame: pd.DataFrame, panel: str) -> dict[str, pd.DataFrame]:
    order = [s for s in SOURCES if s != "yours"] if panel == "source" else []
    names = [*order, *(v for v in ordered(frame, panel) if v not in order)]
    return {name: part for name in names if len(part := frame[frame[panel] == name])}


def _line(
    chart: go.Figure,
    column: int,
    rows: pd.DataFrame,
    x: str,
    y: str,
    name: str,
    colour: str,
    symbol: str,
    hollow: bool,
    interval: bool,
) -> None:
    """Means over seeds, their bars, and the seeds as faint dots."""
    if not len(rows):
        return
    means = _means(rows, x, y, interval)
    marker, bars = {"color": colour, "symbol": symbol}, means["bar"]
    several = rows[rows[x].map(means["count"]) > 1]
    faint = {"mode": "markers", "marker": marker | {"size": 6, "opacity": 0.3}, "showlegend": False}
    chart.add_scatter(x=several[x], y=several[y], text=hover(several), hoverinfo="text", **faint, row=1, col=column)
    text = [
        f"<b>{name}</b>, {TITLES.get(x, x)} {at:,}<br>{title_of(y)} {row['mean']:.4g}"
        + (f" ± {bar:.2g}, {row['count']:.0f} seeds" if row["count"] > 1 else "")
        for (at, row), bar in zip(means.iterrows(), bars, strict=True)
    ]
    chart.add_scatter(
        x=means.index, y=means["mean"], mode="lines+markers", line={"color": colour, "width": 2.2},
        marker=outline(marker) if hollow else marker | {"size": 9}, name=name, showlegend=False, text=text,
        error_y={"array": bars, "thickness": 1.4, "width": 4, "visible": bool(bars.any())},
        hoverinfo="text", row=1, col=column,
    )  # fmt: skip


def _means(rows: pd.DataFrame, x: str, y: str, interval: bool) -> pd.DataFrame:
    """By x: mean, count and bar (a standard error, or half of the 95 % interval), and the ends of the bar."""
    means = rows.groupby(x)[y].agg(["mean", "sem", "count"])
    means["bar"] = means["sem"].fillna(0)
    if interval:
        from scipy import stats

        means["bar"] *= stats.t.ppf(0.975, (means["count"] - 1).clip(lower=1))
    return means.assign(low=means["mean"] - means["bar"], high=means["mean"] + means["bar"])


def _dotted(chart: go.Figure, column: int, on: pd.DataFrame, off: pd.DataFrame, x: str, y: str, colour: str) -> None:
    """Other images (ImageNet-22K) are led to by a dotted line, not joined."""
    if not len(on) or not len(off):
        return
    ends = pd.concat([on[on[x] == on[x].max()], off]).groupby(x)[y].mean()
    line = {"color": colour, "dash": "dot", "width": 1.2}
    silent = {"hoverinfo": "skip", "showlegend": False}
    chart.add_scatter(x=ends.index, y=ends, mode="lines", line=line, **silent, row=1, col=column)


def _guess(
    chart: go.Figure, column: int, guess: float, within: Sequence[float], spread: tuple[float, float]
) -> list[tuple]:
    """The dashed line of a guess, and its label at the end of it; outside of the axis, an arrow that says where."""
    if within[0] < guess < within[1]:
        xs = [10**x for x in spread]
        line = {"color": INK, "dash": "dash", "width": 1.6}
        silent = {"hoverinfo": "skip", "showlegend": False, "name": "your guess"}
        chart.add_scatter(x=xs, y=[guess, guess], mode="lines", line=line, **silent, row=1, col=column)
        return [(spread[1], guess, "your guess", INK)]
    up, axis = guess >= within[1], "" if column == 1 else str(column)
    chart.add_annotation(
        text=f"your guess, {guess:g}, lies {'above ↑' if up else 'below ↓'}", x=0.98, xanchor="right",
        y=0.99 if up else 0.01, yanchor="top" if up else "bottom", xref=f"x{axis} domain", yref=f"y{axis} domain",
        showarrow=False, font=_ink({"color": INK}) | {"size": 12}, bgcolor="rgba(255,255,255,0.85)",
    )  # fmt: skip
    return []


def _ink(style: dict) -> dict:
    return {"color": style["color"]}


def _legend(chart: go.Figure, colour: str, looks: dict, symbol: str, symbols: dict, frame: pd.DataFrame) -> None:
    """A legend below the panels: a colour a value, a symbol a size."""
    marks = [(colour, value, {"color": look, "symbol": "circle", "size": 10}) for value, look in looks.items()]
    marks += [(symbol, v, {"color": FAINT, "symbol": s, "size": 9}) for v, s in symbols.items() if len(symbols) > 1]
    for group, value, marker in marks:
        title = {"text": f"<b>{title_of(group)}</b>", "font": {"size": 12}}
        style = {"legendgroup": group, "legendgrouptitle": title, "name": escape(label(group, value))}
        chart.add_scatter(x=[None], y=[None], mode="markers", marker=marker, hoverinfo="skip", **style, row=1, col=1)
    below = 90 + 20 * max(len(looks), len(symbols))
    place = {"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top", "font": {"size": 12}, "tracegroupgap": 4}
    height = {"height": _TOP + _PLOT + below, "margin": {"t": _TOP, "b": below, "l": 74, "r": 16}}
    chart.update_layout(legend=place | {"itemclick": False, "itemdoubleclick": False}, showlegend=True, **height)
