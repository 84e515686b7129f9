"""What the figures share: the template, colours, axes, legends, hover texts, and a line over seeds. No torch here."""

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from .records import SCORES, millions, short

#: Okabe and Ito's colours, told apart with any common colour blindness (their yellow is too pale for a line).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,6px")
VERDICTS = {"holds": "#00704F", "does not hold": "#B34700", "too small to say": "#5F6672"}
INK, FAINT, RULE, PALE = "#1F2430", "#5F6672", "#B9BEC8", "#E7E9EE"

_AXIS = {
    "gridcolor": PALE,
    "linecolor": RULE,
    "showline": True,
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": RULE,
    "automargin": True,
    "title": {"standoff": 12, "font": {"size": 13}},
}
TEMPLATE = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"family": "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 70, "r": 20, "t": 58, "b": 60},
        "height": 410,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {
            "x": 1.02,
            "y": 1,
            "xanchor": "left",
            "yanchor": "top",
            "tracegroupgap": 14,
            "title": {"font": {"size": 13}},
        },
        "hoverlabel": {"bgcolor": "white", "bordercolor": RULE, "font": {"color": INK}, "align": "left"},
        "hovermode": "closest",
        # plotly 7 would offer to upload the chart
        "modebar": {"remove": ["sendChartToCloud", "lasso2d", "select2d"], "bgcolor": "rgba(255,255,255,0)"},
    }
)


def panels(*titles: str, shared_yaxes: bool = False) -> go.Figure:
    """An empty figure of one row of panels, each with a title at its left edge."""
    figure = make_subplots(1, len(titles), horizontal_spacing=0.06 if shared_yaxes else 0.12, shared_yaxes=shared_yaxes)
    for column, title in enumerate(titles, 1):
        axis = "" if column == 1 else str(column)
        place = {"xref": f"x{axis} domain", "yref": f"y{axis} domain", "x": 0, "y": 1.03}
        anchor = {"xanchor": "left", "yanchor": "bottom", "showarrow": False, "font": {"size": 14}}
        figure.add_annotation(text=f"<b>{title}</b>", **place, **anchor)
    return figure.update_layout(template=TEMPLATE)


def empty(reason: str = "no finished runs yet") -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = go.Figure(layout={"template": TEMPLATE, "height": 160, "margin": {"t": 20, "b": 20}})
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(
        text=reason[:1].upper() + reason[1:], showarrow=False, font={"size": 15, "color": FAINT}
    )


def log_axis(figure: go.Figure, title: str, ticks: dict[int, str], legend: str = "") -> go.Figure:
    """A logarithmic x axis with the values that were run as ticks, and a title to the legend (none: it has its own)."""
    if len(ticks) > 7:
        ticks = decades(min(ticks), max(ticks))
    low, high = math.log10(min(ticks)), math.log10(max(ticks))
    pad = max(0.06 * (high - low), 0.08)
    shown = sorted(ticks)
    style = {"tickmode": "array", "tickvals": shown, "ticktext": [ticks[v] for v in shown], "tickangle": 0}
    figure.update_xaxes(type="log", title_text=title, range=[low - pad, high + pad], **style)
    if legend:
        figure.update_layout(legend={"title": {"text": f"<b>{legend}</b>"}, "tracegroupgap": 2})
    return figure


def decades(low: float, high: float) -> dict[int, str]:
    """Round numbers from low to high for a logarithmic axis: 1, 2, 5, 10 ... or 1, 10, 100 ... when there are many."""
    exponents = range(math.floor(math.log10(max(1, low))), math.ceil(math.log10(max(1, high))) + 1)
    steps = (1, 2, 5) if len(exponents) <= 3 else (1,)
    return {v: count(v) for v in (k * 10**e for e in exponents for k in steps) if low <= v <= high} or {
        int(low): count(int(low))
    }


def shades(levels: Sequence[int]) -> dict[int, str]:
    """A colour a data level, from warm (little data) to dark: plasma, whose lightness falls evenly for any eye."""
    spots = [0.5] if len(levels) == 1 else np.linspace(0.74, 0.0, len(levels))
    return dict(zip(levels, sample_colorscale("plasma", list(spots)), strict=True))


def cycle(styles: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """A style a name, beginning again when they run out."""
    return {name: styles[k % len(styles)] for k, name in enumerate(names)}


def key(figure: go.Figure, name: str, group: str, *, marker: dict | None = None, line: dict | None = None) -> None:
    """An entry of the legend that stands for no trace, under its group's title."""
    mode = "+".join([*(["lines"] if line else []), *(["markers"] if marker else [])])
    title = {"text": f"<b>{group}</b>", "font": {"size": 13}}
    style = {"marker": marker, "line": line, "name": name, "legendgroup": group, "legendgrouptitle": title}
    figure.add_trace(go.Scatter(x=[None], y=[None], mode=mode, **style))


def seed_lines(figure: go.Figure, rows: list[dict], x: str, measures: Sequence[str], *, name: str, **style) -> None:
    """In each panel a line through the means over seeds, with bars of one standard error and the seeds as faint dots.

    `style` holds colour, symbol and dash; `listed=False` keeps the line out of the legend. Lifts are drawn in points.
    """
    marker = {"color": style["colour"], "symbol": style["symbol"]}
    for column, measure in enumerate(measures, 1):
        points = defaultdict(list)
        for row in rows:
            if row[measure] is not None:
                points[row[x]].append(row)
        if not points:
            continue
        xs = sorted(points)
        values = {k: np.array([scaled(row, measure) for row in points[k]]) for k in xs}
        means = [float(values[k].mean()) for k in xs]
        bars = [float(np.std(values[k], ddof=1) / np.sqrt(len(values[k]))) if len(values[k]) > 1 else 0.0 for k in xs]
        text = []
        for k, mean, bar in zip(xs, means, bars, strict=True):
            text.append(f"{where(points[k][0])}<br>{LABELS[measure]} {shown(measure, mean)}")
            if len(points[k]) > 1:
                text[-1] += (
                    f" ± {shown(measure, bar, signed=False)}<br>mean and standard error of {len(points[k])} seeds"
                )
        dots = {"x": [k for k in xs for _ in points[k]], "y": [v for k in xs for v in values[k]]}
        hover = {"text": [run_text(row) for k in xs for row in points[k]], "hoverinfo": "text"}
        faint = marker | {"size": 6, "opacity": 0.3}
        figure.add_scatter(
            **dots, **hover, mode="markers", marker=faint, legendgroup=name, showlegend=False, row=1, col=column
        )
        figure.add_scatter(
            x=xs,
            y=means,
            mode="lines+markers",
            line={"color": style["colour"], "dash": style["dash"], "width": 2.2},
            marker=marker | {"size": 9},
            error_y={"array": bars, "thickness": 1.4, "width": 4, "color": style["colour"]},
            text=text,
            hoverinfo="text",
            name=name,
            legendgroup=name,
            showlegend=column == 1 and style.get("listed", True),
            row=1,
            col=column,
        )


LABELS = {"val_loss": "validation loss", "train_loss": "training loss"} | {
    f"{score}_lift": f"lift of the {name}" for score, name in SCORES.items()
}


def scaled(row: dict, measure: str) -> float:
    """A measure as it is drawn: lifts in points, losses as they are."""
    return 100 * row[measure] if measure.endswith("_lift") else row[measure]


def shown(measure: str, value: float, *, signed: bool = True) -> str:
    """A drawn value as text: `0.2931`, `+12.3 points`."""
    if not measure.endswith("_lift"):
        return f"{value:.4f}"
    return f"{value:+.1f} points" if signed else f"{value:.1f}"


def where(row: dict) -> str:
    """Which cell a point belongs to, for hover texts."""
    return f"<b>{size_name(row)}</b>, {row['images']:,} images, {row['steps']:,} steps"


def run_text(row: dict) -> str:
    """All of a run's numbers, for hover texts."""
    lines = [f"{where(row)}, seed {row['seed']}"]
    for measure, label in LABELS.items():
        if row[measure] is not None:
            lines.append(f"{label} {shown(measure, scaled(row, measure))}")
    return "<br>".join(lines + (["overfit by its own curve"] if row["overfit"] else []))


def size_name(row: dict) -> str:
    """A model size by name and parameters: `atto (0.14 M)`."""
    return f"{escape(short(row['model']))} ({millions(row['params'])})"


def count(n: int) -> str:
    """A count for an axis: `64`, `16,384`, `64k`, `641k`, `1.28M`."""
    if n >= 1_000_000:
        return f"{n / 1e6:.3g}M"
    return f"{n / 1e3:.3g}k" if n >= 100_000 or (n >= 10_000 and n % 1000 == 0) else f"{n:,}"


def flops_text(flops: float | None) -> str:
    """Floating-point operations to read: `54.5 TFLOP`, `4.12 PFLOP`; a dash when unknown."""
    if flops is None:
        return "–"
    power = max(0, min(5, int(math.log10(max(flops, 1)) // 3) - 1))
    return f"{flops / 1000 ** (power + 1):.3g} {'kMGTPE'[power]}FLOP"


def loss_unit(rows: list[dict]) -> str:
    """The unit of the losses: pixels are standardised, or normalised in a window around each."""
    return "L1, locally normalised pixels" if rows[0]["target"] == "normalized" else "L1, standard deviations"


def lift_unit(score: str) -> str:
    """The unit of a lift."""
    return f"lift in {'IoU' if score == 'segment' else 'top-1'} (points)"


def text_table(columns: dict[str, list[str]], widths: list[int], ink: list | str, lines: list[float]) -> go.Figure:
    """A table as a figure; `lines` says how many lines of text each row needs at most, for the height."""
    header = {"values": [f"<b>{name}</b>" for name in columns], "align": "left", "fill": {"color": "#F4F5F7"}}
    header |= {"line": {"color": PALE}, "font": {"size": 13}, "height": 32}
    cells = {"values": list(columns.values()), "align": "left", "fill": {"color": "white"}, "line": {"color": PALE}}
    cells |= {"font": {"size": 13, "color": ink}, "height": 28}
    figure = go.Figure(go.Table(columnwidth=widths, header=header, cells=cells))
    height = 44 + sum(14 + 17 * math.ceil(n) for n in lines) + 16
    return figure.update_layout(template=TEMPLATE, height=height, margin={"l": 4, "r": 4, "t": 6, "b": 4})
