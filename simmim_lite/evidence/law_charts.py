"""Figures of the laws: what overfitting costs against Omega, curves in length, held-out errors, a plan. No torch here.

Every figure of a law's fit says that its shape was chosen looking at all published runs (docs/facts.md, 7).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from . import drawing
from .axes import small
from .drawing import COLOURS, FAINT, INK, RULE, SYMBOLS, TEMPLATE, count, data_name, empty, outline, panels
from .figure import Figure
from .laws import FORMS, Fit, Points
from .records import short
from .trial import SPLITS

if TYPE_CHECKING:
    import pandas as pd

HONEST = "Shapes of the fixed laws were chosen looking at all 63 published runs; 'free' refits them."
_NAMES = {"loss": "validation loss", "accuracy": "error, 100 - top-1 (%)"}
_EXCESS = {"loss": "validation loss", "accuracy": "error (points)"}
LIGHTS = {"green": (COLOURS[2], "circle"), "yellow": ("#E69F00", "square"), "orange": ("#D55E00", "diamond")}
LIGHTS |= {"red": ("#8B1A1A", "x"), "–": (FAINT, "circle")}


def overfitting(fits: Mapping[str, tuple[Points, Fit]]) -> go.Figure:
    """What is left of each run when the law's floor, size and length terms are taken away, against Omega; a panel a
    target, with the law's overfitting term as a line and its half-way point Omega0. fits: {target: (runs, fit)}."""
    half = {target: law.shapes["Omega0"] for target, (_, law) in fits.items()}
    notes = {target: small(f"half-way (dashed) at Omega0 = {at:.1e}") for target, at in half.items()}
    chart = panels(*(f"Overfitting in the {target}<br>{note}" for target, note in notes.items()))
    for column, (target, (x, law)) in enumerate(fits.items(), 1):
        parts = FORMS[law.form].columns(law.shapes, x, law.scale)
        rest = x.y - sum(law.coefficients[n] * part for n, part in parts.items() if n != "C")
        sizes = list(dict.fromkeys(x.size[np.argsort(x.n, kind="stable")].tolist()))
        colours, symbols = drawing.cycle(COLOURS, sizes), drawing.cycle(SYMBOLS, sizes)
        for model in sizes:
            some = x.size == model
            text = [
                f"<b>{short(model)}</b>, {count(int(d))} images, {t:,.0f} iterations<br>Omega {o:.1e}<br>{v:+.4f}"
                for d, t, o, v in zip(x.d[some], x.t[some], x.omega[some], rest[some], strict=True)
            ]
            marker = outline({"color": colours[model], "symbol": symbols[model]})
            _marks(chart, column, x.omega[some], rest[some], text, marker, short(model), model)
        grid = np.geomspace(x.omega.min(), 2 * x.omega.max(), 120)
        h = (grid / half[target]) ** law.shapes["p"]
        chart.add_scatter(
            x=grid, y=law.coefficients["C"] * h / (1 + h), mode="lines", line={"color": INK, "width": 2},
            name="law", legendgroup="law", showlegend=column == 1, hoverinfo="skip", row=1, col=column,
        )  # fmt: skip
        turn = {"line": {"dash": "dash", "color": FAINT}, "annotation_position": "top left"}
        chart.add_vline(x=half[target], annotation_text=f"Omega0 {half[target]:.1e}", **turn, row=1, col=column)
        powers = range(int(np.floor(np.log10(grid[0]))), int(np.ceil(np.log10(grid[-1]))) + 1)
        powers = powers[:: 1 if len(powers) < 6 else 2]
        style = {"tickvals": [10.0**p for p in powers], "ticktext": [f"1e{p}" for p in powers], "type": "log"}
        chart.update_xaxes(title_text="Omega = N × images seen / unique images²", **style, row=1, col=column)
        chart.update_yaxes(title_text=f"{_EXCESS[target]} beyond floor, size and length", row=1, col=column)
    return _below(chart, 470, -0.24, b=130, t=62)


def lengths(fits: Mapping[str, tuple[Points, Fit]], model: str) -> go.Figure:
    """A size's loss and error against iterations, a line a data level: the law, and the runs as hollow marks."""
    chart = panels(*(f"{_NAMES[target]} of {short(model)}" for target in fits))
    for column, (target, (x, law)) in enumerate(fits.items(), 1):
        some = x[x.size == model]
        if not len(some):
            return empty(f"no runs of {short(model)}")
        t, batch = np.geomspace(some.t.min(), some.t.max(), 60), some.seen[0] / some.t[0]
        for level, colour in drawing.shades(sorted(set(some.d.tolist()))).items():
            here = some[some.d == level]
            line = Points(**{**vars(here[np.zeros(len(t), int)]), "t": t, "seen": t * here.seen[0] / here.t[0]})
            name = data_name(str(here.level[0]))
            chart.add_scatter(
                x=t, y=law.predict(line), mode="lines", line={"color": colour, "width": 2}, hoverinfo="skip",
                showlegend=False, legendgroup=name, row=1, col=column,
            )  # fmt: skip
            text = [f"<b>{name}</b>, {a:,.0f} iterations<br>{b:.4g}" for a, b in zip(here.t, here.y, strict=True)]
            _marks(chart, column, here.t, here.y, text, outline({"color": colour}), name, name)
        ticks = sorted(set(some.t.tolist()))
        style = {"type": "log", "tickvals": ticks, "ticktext": [count(int(v)) for v in ticks]}
        title = "iterations (batch 2,048)" if batch == 2048 else "iterations"
        chart.update_xaxes(title_text=title, **style, row=1, col=column)
        chart.update_yaxes(title_text=_NAMES[target], row=1, col=column)
    return _below(chart, 430, -0.22, b=120, t=44)


def errors(found: "pd.DataFrame", guess: float | None = None) -> go.Figure:
    """Mean absolute error on held-out runs (`trial.errors`), a panel a target, a row a form, a mark a split.

    Loss in its own unit, accuracy in points. guess: a dashed line in the last panel, in its unit.
    """
    found = found[found["mean"].notna()]
    targets = list(found["target"].unique())
    chart = panels(*(f"The {target} of runs held out" for target in targets))
    names = {"fixed": "Omega, fixed", "free": "Omega, free", "constrained": "data-constrained"}
    for column, target in enumerate(targets, 1):
        scale, unit = {"loss": (1e4, "× 1e-4"), "accuracy": (1, "points")}[target]
        for k, (split, some) in enumerate(found[found["target"] == target].groupby("split", sort=False)):
            values, forms = scale * some["mean"], some["form"].replace(names)
            text = [f"{FORMS[f].title}<br>{SPLITS[split]}: {v:.3g}" for f, v in zip(some["form"], values, strict=True)]
            marker = {"color": COLOURS[k], "symbol": SYMBOLS[k], "size": 11}
            _marks(chart, column, values, forms, text, marker, SPLITS[split], split)
        chart.update_yaxes(autorange="reversed", row=1, col=column)
        chart.update_xaxes(title_text=f"mean absolute error ({unit})", rangemode="tozero", row=1, col=column)
    if guess is not None:
        mark = {"annotation_text": "your guess", "annotation_position": "bottom right"}
        chart.add_vline(x=guess, line={"dash": "dash", "color": COLOURS[1]}, **mark, row=1, col=len(targets))
    if len(targets) > 1:
        chart.update_yaxes(showticklabels=False, row=1, col=2)
    return _below(chart, 410, -0.26, b=130, t=44, l=130)


def plan(options: Sequence, rule: object, measure: str, note: str = "") -> go.Figure:
    """Options of a `studies.planner.Plan`: prediction and 90 % interval against cost; colour and mark are the light.

    Filled marks cannot be told from the best; a ring is round the simple rule's pick. Options without numbers are not
    drawn. note: a line below, as HONEST for the law of the published runs.
    """
    options = [o for o in options if o.value is not None]
    if not options:
        return empty("no numbers outside the known range: the order alone is given")
    chart = Figure(layout={"template": TEMPLATE, "height": 440, "margin": {"t": 30, "b": 110}})
    for model in dict.fromkeys(o.model for o in options):
        line = sorted((o for o in options if o.model == model), key=lambda o: o.flops)
        chart.add_scatter(
            x=[o.flops for o in line], y=[o.value for o in line], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": RULE, "width": 1.3, "dash": "solid"},
        )  # fmt: skip
        end = {"x": float(np.log10(line[-1].flops)), "y": line[-1].value, "xanchor": "left", "xshift": 15}
        chart.add_annotation(text=short(model), showarrow=False, font={"color": FAINT}, **end)
    for light, (colour, symbol) in LIGHTS.items():
        some = [o for o in options if o.light == light]
        if not some:
            continue
        text = [f"<b>{o.name}</b><br>{o.value:.4g} [{o.low:.4g}, {o.high:.4g}]<br>Omega {o.omega:.1e}" for o in some]
        face = [colour if o.together else "white" for o in some]
        chart.add_scatter(
            x=[o.flops for o in some], y=[o.value for o in some], mode="markers",
            name="no light: too few runs tell" if light == "–" else f"Omega: {light}",
            marker={"color": face, "symbol": symbol, "size": 11, "line": {"color": colour, "width": 2}},
            error_y={"array": [o.high - o.value for o in some], "arrayminus": [o.value - o.low for o in some],
                     "color": colour, "thickness": 1.1, "width": 4},
            text=text, hoverinfo="text",
        )  # fmt: skip
    chart.add_scatter(  # without a number the rule's pick is beyond what is known
        x=[rule.flops] if rule.value is not None else [None], y=[rule.value],
        mode="markers", name="simple rule: longest, then largest", hoverinfo="skip", showlegend=rule.value is not None,
        marker={"symbol": "circle-open", "size": 22, "color": INK, "line": {"width": 2}},
    )  # fmt: skip
    costs = [o.flops for o in options]
    wide = np.log10(max(costs) / min(costs)) or 1
    ticks = [
        m * 10.0**e for e in range(8, 26) for m in (1, 2, 5) if min(costs) * 0.8 <= m * 10.0**e <= max(costs) * 1.25
    ]
    span = [np.log10(min(costs)) - 0.06 * wide, np.log10(max(costs)) + 0.14 * wide]
    style = {"tickvals": ticks, "ticktext": [f"{v:.0e}".replace("e+", "e") for v in ticks], "range": span}
    chart.update_xaxes(type="log", title_text="training cost (FLOPs)", **style).update_yaxes(
        title_text=f"predicted {measure}"
    )
    chart.update_layout(legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"})
    return _honest(chart.update_layout(height=460, margin_b=130), note) if note else chart


def _marks(chart: go.Figure, column: int, x, y, text: list[str], marker: dict, name: str, group: str) -> None:
    """A mark a run, in the legend once."""
    style = {"mode": "markers", "marker": marker, "text": text, "hoverinfo": "text", "row": 1, "col": column}
    chart.add_scatter(x=x, y=y, name=name, legendgroup=group, showlegend=column == 1, **style)


def _below(chart: go.Figure, height: int, y: float, **margin: int) -> go.Figure:
    """The legend below the panels, and below it what the shapes were chosen on."""
    legend = {"orientation": "h", "x": 0, "y": y, "yanchor": "top"}
    return _honest(chart.update_layout(height=height, margin=margin, legend=legend))


def _honest(chart: go.Figure, text: str = HONEST) -> go.Figure:
    """Say below a figure of fits what their shape was chosen on."""
    place = {"xref": "paper", "yref": "container", "x": 0, "y": 0.01, "xanchor": "left", "yanchor": "bottom"}
    font = {"size": 11.5, "color": FAINT}
    return chart.update_layout(title={"text": text, **place, "font": font, "pad": {"l": -50, "b": 4}})
