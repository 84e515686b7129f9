"""What the figures share: the template, colours, axes, legends, hover texts, and a line over seeds. No torch here."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from .figure import Figure
from .records import SCORES, millions, short

#: Whose runs a panel shows.
SOURCES = {"published": "Published runs", "shipped": "Shipped runs", "yours": "Your runs"}
#: Okabe and Ito's colours, told apart with any common colour blindness (their yellow is too pale for a line).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,6px")
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
    apart = 0.06 if shared_yaxes else 0.12
    figure = make_subplots(1, len(titles), horizontal_spacing=apart, shared_yaxes=shared_yaxes, figure=Figure())
    for column, title in enumerate(titles, 1):
        axis = "" if column == 1 else str(column)
        place = {"xref": f"x{axis} domain", "yref": f"y{axis} domain", "x": 0, "y": 1.03}
        anchor = {"xanchor": "left", "yanchor": "bottom", "showarrow": False, "align": "left"}
        anchor["font"] = {"size": 14}
        figure.add_annotation(text=f"<b>{title}</b>", **place, **anchor)
    return figure.update_layout(template=TEMPLATE)


def empty(reason: str = "no finished runs yet") -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = Figure(layout={"template": TEMPLATE, "height": 160, "margin": {"t": 20, "b": 20}})
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(
        text=reason[:1].upper() + reason[1:], showarrow=False, font={"size": 15, "color": FAINT}
    )


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


def outline(marker: dict, size: int = 8) -> dict:
    """A mark with a white face and an edge in its colour: somebody else's runs."""
    return marker | {"color": "white", "size": size, "line": {"color": marker["color"], "width": 1.8}}


def end_labels(figure: go.Figure, column: int, ends: list[tuple], low: float, high: float, height: float) -> None:
    """Name lines at their ends (x, y, text, colour), moved apart where they would overlap.

    low, high: the range of the y axis; height: of the panel in pixels. On a logarithmic axis x is given as log10.
    """
    gap, scale = 15, height / (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    places = [(end[1] - low) * scale for end in ends]
    for _ in range(300):  # push neighbours apart by halves until all fit
        for k in range(len(places) - 1):
            if (lacking := gap - (places[k + 1] - places[k])) > 0:
                places[k], places[k + 1] = places[k] - lacking / 2, places[k + 1] + lacking / 2
        places = [min(max(place, 2), height - 2) for place in places]
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        shift = {"xshift": 9, "yshift": round(place - (y - low) * scale, 1), "xanchor": "left"}
        font = {"color": colour, "size": 12}
        figure.add_annotation(x=x, y=y, text=text, showarrow=False, font=font, **shift, row=1, col=column)


LABELS = {"val_loss": "validation loss", "train_loss": "training loss"}
LABELS |= {f"{score}_lift": f"lift of {'' if score == 'finetune' else 'the '}{name}" for score, name in SCORES.items()}
LABELS |= {score: f"{name}, {'IoU' if score == 'segment' else 'top-1'}" for score, name in SCORES.items()}
LABELS |= {"gain": "gain over scratch"}


def data_name(dataset: str) -> str:
    """A published data set by name: `ImageNet-1K (10 %)`, `ImageNet-22K`."""
    family, _, share = dataset.partition("-")
    name = {"imagenet1k": "ImageNet-1K", "imagenet22k": "ImageNet-22K"}.get(family)
    if name is None:
        return escape(dataset)
    return f"{name} ({share} %)" if share not in ("", "100") else name


def size_name(row: dict) -> str:
    """A model size by name and parameters: `atto (0.14 M)`."""
    return f"{escape(short(row['model']))} ({millions(row['params'])})"


def count(n: int) -> str:
    """A count for an axis: `64`, `16,384`, `64k`, `641k`, `1.28M`, `1.02B`."""
    if n >= 1_000_000_000:
        return f"{n / 1e9:.3g}B"
    if n >= 1_000_000:
        return f"{n / 1e6:.3g}M"
    return f"{n / 1e3:.3g}k" if n >= 100_000 or (n >= 10_000 and n % 1000 == 0) else f"{n:,}"


def loss_unit(rows: list[dict]) -> str:
    """The unit of the losses: pixels are standardised, or normalised in a window around each."""
    units = {"normalized": "L1, locally normalised pixels", "unknown": "as published"}
    if rows[0]["target"] == "unknown" and rows[0]["data"] != "published":
        return "as imported"
    return units.get(rows[0]["target"], "L1, standard deviations")
