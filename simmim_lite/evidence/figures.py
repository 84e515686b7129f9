"""Figures of the studies: one call on a DataFrame, a panel a source of runs; losses of different data never share an
axis, hollow marks are runs that were not trained here. The look is in `drawing`. No torch here."""

import itertools
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from ..model.sizes import short
from . import drawing
from .drawing import COLOURS, FAINT, INK, RULE, SOURCES, SYMBOLS, TEMPLATE, TITLES, empty, outline, panels, small
from .laws import FORMS, Fit, Points
from .stats import spearman, t_interval

HONEST = "Shapes of the fixed laws were chosen looking at all 63 published runs; 'free' refits them."
_PLOT, _TOP = 300, 78  # pixels: height of a panel, and of what is above it
_APART = {1: 0.09, 2: 0.105, 3: 0.19}  # of ticks, in shares of a panel, by the number of panels
_SILENT = {"hoverinfo": "skip", "showlegend": False}
_POWERS = {"type": "log", "exponentformat": "power"}
_LIGHTS = {"green": (COLOURS[2], "circle"), "yellow": ("#E69F00", "square"), "orange": ("#D55E00", "diamond")}
_LIGHTS |= {"red": ("#8B1A1A", "x"), "–": (FAINT, "circle")}


def lines(
    frame: pd.DataFrame, x: str, y: str, by: str, *, panel: str = "source", guess: float | None = None,
    guess_in: str | None = None, interval: bool = False,
) -> go.Figure:  # fmt: skip
    """y against x on a logarithmic axis, a line a value of `by`, a panel a value of `panel` (source, model, score …).

    frame: `tables.runs`, rows without y left out; x: images, params, steps or any other positive number. guess: in the
    unit of y, a dashed line in the panel guess_in, by default that of the reader's runs, else the last one. interval:
    bars are 95 % intervals (Student's t) in place of one standard error.
    """
    frame = frame[frame[y].notna()] if y in frame else frame[:0]
    if not len(frame):
        return empty(f"no finished run has a {TITLES.get(y, y)} yet")
    parts = {name: frame[frame[panel] == name] for name in drawing.looks(frame, panel)}
    shared = panel == "model"  # sizes of one source: the same quantity
    heads = [drawing.heading(part, panel, name, x, by) for name, part in parts.items()]
    chart = panels(*heads, shared_yaxes=shared)
    own = guess_in or ("yours" if "yours" in parts else list(parts)[-1])
    for column, (name, part) in enumerate(parts.items(), 1):
        looks = drawing.looks(frame if shared else part, by)  # one colour a value in all panels
        means = {value: _means(some, x, y, interval) for value in looks if len(some := part[part[by] == value])}
        ends = [some["mean"] + sign * some["bar"] for some in means.values() for sign in (-1, 1)]
        low, high = drawing.value_range(np.concatenate([(frame if shared else part)[y], *ends]))
        labels, place = [], {"row": 1, "col": column}
        hollow = name == "published" or set(part.get("source", ())) == {"published"}
        for value, some in means.items():
            text, marker = drawing.label(by, value), looks[value]
            seeds = part[(part[by] == value) & part[x].isin(some.index[some["count"] > 1])]
            drawing.marks(chart, column, seeds[x], seeds[y], marker | {"size": 6, "opacity": 0.3})
            marker = outline(marker) if hollow else marker | {"size": 9}
            for joined in (some[some["on_axis"]], some[~some["on_axis"]]):  # other images (ImageNet-22K) stand apart
                bars = {"array": joined["bar"], "thickness": 1.4, "width": 4, "visible": bool(some["bar"].any())}
                style = {"line": {"color": looks[value]["color"], "width": 2.2}, "error_y": bars, "showlegend": False}
                style |= {"marker": marker, "hovertemplate": f"<b>{text}</b><br>%{{x:,}}: %{{y:.4g}}<extra></extra>"}
                chart.add_scatter(x=joined.index, y=joined["mean"], mode="lines+markers", **style, **place)
            labels.append((np.log10(some.index[-1]), some["mean"].iloc[-1], escape(text), looks[value]["color"]))
        if guess is not None and name == own:  # at the edge, with its number, where it lies outside
            at, line = min(max(guess, low), high), {"color": INK, "dash": "dash", "width": 1.6}
            chart.add_hline(y=at, line=line, annotation_text=f"your guess: {guess:g}", **place)
        spread = drawing.value_range(np.log10(part[x]), 0.07, 0.27, alone=1)
        ticks = drawing.run_ticks(part, x, _APART.get(len(parts), 0.36))
        chart.update_xaxes(type="log", title_text=TITLES.get(x, x), range=spread, **ticks, **place)
        title = "" if panel != "source" and column > 1 else drawing.axis_title(part, y)
        chart.update_yaxes(title_text=title, range=[low, high], **place)
        drawing.end_labels(chart, column, labels, low, high, _PLOT)
    below = 96 if x == "params" else 76
    return drawing.resize(chart, _TOP + _PLOT + below, t=_TOP, b=below, l=74, r=16)


def _means(rows: pd.DataFrame, x: str, y: str, interval: bool) -> pd.DataFrame:
    """By x: mean, count, bar (a standard error, or half of the 95 % interval), and whether x is on the axis of data."""
    means = rows.groupby(x)[y].agg(["mean", "sem", "count"])
    means["bar"] = means["sem"].fillna(0)
    if interval:
        means["bar"] = rows.groupby(x)[y].apply(lambda v: v.mean() - (t_interval(v).low if len(v) > 1 else v.mean()))
    means["on_axis"] = rows.groupby(x)["on_axis"].all() if x == "images" and "on_axis" in rows else True
    return means


def scatter(
    frame: pd.DataFrame, x: str | Sequence[str], y: str, colour: str, *, rank: bool = False,
    turns: Mapping[str, Mapping[str, float | None]] | None = None,
) -> go.Figure:  # fmt: skip
    """y against x (omega: logarithmic), a mark a run, a panel a source and each x that it has: two losses side by side.

    colour: a column; images go from warm (few) to dark; a symbol is a size. rank: each panel's title has Spearman's
    correlation over all runs, and over those that are not overfit. turns: by source, where loss and score turn: lines.
    """
    xs, parts, heads = [x] if isinstance(x, str) else list(x), [], []
    for (name, part), column in itertools.product(frame.groupby("source", sort=False), xs):
        if len(part := part[part[[column, y]].notna().all(axis=1)]):
            parts.append((name, column, part))
    if not parts:
        return empty("no finished run has both a loss and a score")
    for name, column, part in parts:
        said = [f"ρ {spearman(part[column], part[y]):+.2f} ({len(part)})"] if rank else []
        clean = part[part["regime"] == "clean"] if rank and "regime" in part else part[:0]
        if 2 < len(clean) < len(part):
            said += [f"clean {spearman(clean[column], clean[y]):+.2f} ({len(clean)})"]
        said += [f"{what} turns at {at:.1e}" for what, at in (turns or {}).get(name, {}).items() if at is not None]
        first = SOURCES.get(name, name) + (f": {TITLES[column]}" if len(xs) > 1 and len(parts) < 3 else "")
        heads.append(f"{escape(first)}<br>{small(', '.join(said).replace('-', '−'))}")
    shown = pd.concat([part for *_, part in parts])
    chart, looks, sizes = panels(*heads), drawing.looks(shown, colour), drawing.looks(shown, "model")
    for k, (name, column, part) in enumerate(parts, 1):
        place = {"row": 1, "col": k}
        for value, marker in looks.items():
            if len(some := part[part[colour] == value]):
                marker = marker | {"size": 9, "opacity": 0.85, "line": {"color": "white", "width": 0.8}}
                marker["symbol"] = [sizes[model]["symbol"] for model in some["model"]]
                marker = outline(marker) if name == "published" else marker
                drawing.marks(chart, k, some[column], some[y], marker, drawing.label(colour, value))
        for at in (turns or {}).get(name, {}).values():
            if at is not None:
                chart.add_vline(x=at, line={"color": FAINT, "dash": "dash", "width": 1.6}, **place)
        chart.update_xaxes(title_text=drawing.axis_title(part, column) if len(parts) < 3 else TITLES[column], **place)
        chart.update_xaxes(**{"dtick": 1, **_POWERS} if column == "omega" else {"nticks": 6}, **place)
        spread = drawing.value_range(part[y])
        chart.update_yaxes(title_text=drawing.axis_title(part, y), range=spread, zeroline=True, **place)
    for model, look in sizes.items():
        marker = {"size": 9, "color": FAINT, "symbol": look["symbol"]}
        drawing.marks(chart, 1, [None], [None], marker, drawing.label("model", model))
    title = {"text": f"<b>{TITLES.get(colour, colour)}; model size</b>", "side": "top"}  # beside, it pushes marks out
    chart.update_layout(legend_title=title, showlegend=True)
    return drawing.resize(chart, _TOP + _PLOT + 140, legend_y=-0.22, t=_TOP, b=140, l=74, r=16)


def intervals(
    frame: pd.DataFrame, unit: str, *, colour: str = "source", mark: float | None = None, guess: float | None = None
) -> go.Figure:
    """Named numbers with intervals; columns name, value, and low, high where known; colour: a column that tells several
    numbers of a name apart. mark: a value to compare with, a dotted line. guess: a dashed one.
    """
    if not len(frame):
        return empty("nothing to compare yet")
    low, high = (frame.get(end, frame["value"]) for end in ("low", "high"))
    frame = frame.assign(up=high - frame["value"], down=frame["value"] - low)
    shown, by = list(dict.fromkeys(frame["name"])), colour if colour in frame else None
    text = frame["value"].map("{:.3g}".format) if by in (None, "source") else None
    chart = px.scatter(
        frame, x="value", y="name", color=by, symbol=by, error_x="up", error_x_minus="down", text=text,
        color_discrete_sequence=COLOURS, symbol_sequence=SYMBOLS, template=TEMPLATE,
    )  # fmt: skip
    chart.update_traces(marker_size=11, textposition="top center", error_x={"thickness": 1.6, "width": 5})
    for at, text, dash in ((mark, "", "dot"), (guess, "your guess", "dash")):
        if at is not None:
            chart.add_vline(x=at, line={"dash": dash, "color": FAINT}, annotation_text=text)
    chart.update_yaxes(title_text="", showgrid=False, categoryorder="array", categoryarray=shown[::-1])
    chart.update_xaxes(title_text=unit)
    chart.update_layout(scattermode="group", showlegend=by is not None and by != "source", legend_title_text="")
    return drawing.resize(chart, 150 + 46 * len(shown), legend_y=-70 / (46 * len(shown)), t=36, r=20, l=210, b=90)


def overfitting(fits: Mapping[str, tuple[Points, Fit]]) -> go.Figure:
    """What is left of each run when the law's floor, size and length terms are taken away, against Omega; a panel a
    target, with the law's overfitting term as a line and its half-way point Omega0. fits: {target: (runs, fit)}."""
    half = {target: law.shapes["Omega0"] for target, (_, law) in fits.items()}
    notes = [small(f"half-way (dashed) at Omega0 = {at:.1e}") for at in half.values()]
    chart = panels(*(f"Overfitting in the {target}<br>{note}" for target, note in zip(half, notes, strict=True)))
    for column, (target, (x, law)) in enumerate(fits.items(), 1):
        parts, place = FORMS[law.form].columns(law.shapes, x, law.scale), {"row": 1, "col": column}
        rest = x.y - sum(law.coefficients[n] * part for n, part in parts.items() if n != "C")
        names = dict.fromkeys(x.size[np.argsort(x.n, kind="stable")].tolist())
        for model, colour, symbol in zip(names, itertools.cycle(COLOURS), itertools.cycle(SYMBOLS), strict=False):
            some, marker = x.size == model, outline({"color": colour, "symbol": symbol})
            drawing.marks(chart, column, x.omega[some], rest[some], marker, short(model))
        grid = np.geomspace(x.omega.min(), 2 * x.omega.max(), 120)
        h = (grid / half[target]) ** law.shapes["p"]
        style = {"mode": "lines", "line": {"color": INK, "width": 2}, "name": "law", "hoverinfo": "skip"}
        chart.add_scatter(x=grid, y=law.coefficients["C"] * h / (1 + h), showlegend=column == 1, **style, **place)
        chart.add_vline(x=half[target], line={"dash": "dash", "color": FAINT}, **place)
        chart.update_xaxes(title_text="Omega = N × images seen / unique images²", dtick=1, **_POWERS, **place)
        unit = {"loss": "validation loss", "accuracy": "error (points)"}[target]
        chart.update_yaxes(title_text=f"{unit} beyond floor, size and length", **place)
    place = {"xref": "paper", "yref": "container", "x": 0, "y": 0.01, "xanchor": "left", "yanchor": "bottom"}
    style = {"font": {"size": 11.5, "color": FAINT}, "pad": {"l": -50, "b": 4}}
    chart.update_layout(title={"text": HONEST, **place, **style})
    return drawing.resize(chart, 470, legend_y=-0.24, b=130, t=62)


def plan(options: Sequence, rule: object, measure: str) -> go.Figure:
    """Options of a `studies.planner.Plan`: prediction and 90 % interval against cost; colour and mark are the light,
    filled ones cannot be told from the best; a ring is round the simple rule's pick."""
    frame = pd.DataFrame([vars(o) | {"name": o.name} for o in options if o.value is not None])
    if not len(frame):
        return empty("no numbers outside the known range: the order alone is given")
    chart = go.Figure(layout={"template": TEMPLATE})
    for model, some in frame.sort_values("flops").groupby("model", sort=False):
        text = [""] * (len(some) - 1) + [f"  {short(model)}"]
        style = {"mode": "lines+text", "textposition": "middle right", "line": {"color": RULE, "width": 1.3}}
        chart.add_scatter(x=some["flops"], y=some["value"], text=text, textfont_color=FAINT, **style, **_SILENT)
    for light, (colour, symbol) in _LIGHTS.items():
        some = frame[frame["light"] == light]
        marker = {"color": np.where(some["together"], colour, "white"), "symbol": symbol, "size": 11}
        marker |= {"line": {"color": colour, "width": 2}}
        bars = {"array": some["high"] - some["value"], "arrayminus": some["value"] - some["low"], "color": colour}
        tip = "<b>%{text}</b><br>%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]<br>Omega %{customdata[2]:.1e}"
        if len(some):
            chart.add_scatter(
                x=some["flops"], y=some["value"], mode="markers", marker=marker,
                error_y=bars | {"thickness": 1.1, "width": 4}, text=some["name"], hovertemplate=f"{tip}<extra></extra>",
                customdata=some[["low", "high", "omega"]], name="no light" if light == "–" else f"Omega: {light}",
            )  # fmt: skip
    if rule.value is not None:  # else its pick is beyond what is known
        ring = {"symbol": "circle-open", "size": 22, "color": INK, "line": {"width": 2}}
        name = {"name": "simple rule: longest, then largest", "hoverinfo": "skip"}
        chart.add_scatter(x=[rule.flops], y=[rule.value], mode="markers", marker=ring, **name)
    span = drawing.value_range(np.log10(frame["flops"]), 0.06, 0.14, alone=1)
    chart.update_xaxes(title_text="training cost (FLOPs)", range=span, dtick="D2", **_POWERS)
    chart.update_yaxes(title_text=f"predicted {measure}")
    return drawing.resize(chart, 440, legend_y=-0.2, t=30, b=110)
