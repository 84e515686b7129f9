"""What figures share: template, colours, panels, what axes and legends say, and their twins. No torch here.

A twin is a figure in a copy of a notebook: beside plotly's own, HTML that a page draws by itself, and plotly.js once.
JupyterLab shows plotly's own; what nbconvert makes, and a report, the HTML. No network, no package, no browser."""

import base64
import gzip
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from ..model.sizes import short
from ..processes import in_notebook
from .records import SCORES, millions

#: Whose runs a panel shows.
SOURCES = {"published": "Published runs", "shipped": "Shipped runs", "yours": "Your runs"}
#: Okabe and Ito's colours, told apart with any common colour blindness (their yellow is too pale for a line).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,6px")
INK, FAINT, RULE, PALE = "#1F2430", "#5F6672", "#B9BEC8", "#E7E9EE"
_NAMED = {"clean": COLOURS[0], "overfit": COLOURS[1], "not known": FAINT, "fell": COLOURS[0], "rose": COLOURS[1]}
#: Titles of axes and of legends, by column.
TITLES = {f"{score}_lift": f"lift of {'' if score == 'finetune' else 'the '}{name}" for score, name in SCORES.items()}
TITLES |= {score: f"{name}, {'IoU' if score == 'segment' else 'top-1'}" for score, name in SCORES.items()}
TITLES |= {
    "val_loss": "validation loss", "train_loss": "training loss", "loss_change": "change of the loss",
    "images": "unique training images", "params": "backbone parameters", "steps": "optimiser steps",
    "images_seen": "images seen in training", "model": "model size", "omega": "Omega of the longer run",
    "labels": "labelled images", "gain": "gain over scratch (points)", "name": "score", "start": "start",
    "score": "transfer score",
}  # fmt: skip

_AXIS = {"gridcolor": PALE, "linecolor": RULE, "showline": True, "zeroline": False, "ticks": "outside"}
_AXIS |= {"tickcolor": RULE, "automargin": True, "title": {"standoff": 12, "font": {"size": 13}}}
_LEGEND = {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top", "tracegroupgap": 14}
TEMPLATE = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "font": {"family": "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        **{"paper_bgcolor": "white", "plot_bgcolor": "white", "height": 410, "hovermode": "closest"},
        "margin": {"l": 70, "r": 20, "t": 58, "b": 60},
        **{"xaxis": _AXIS, "yaxis": _AXIS, "legend": _LEGEND},
        "hoverlabel": {"bgcolor": "white", "bordercolor": RULE, "font": {"color": INK}, "align": "left"},
        # plotly 7 would offer to upload the chart
        "modebar": {"remove": ["sendChartToCloud", "lasso2d", "select2d"], "bgcolor": "rgba(255,255,255,0)"},
    }
)
FIGURE_CLASS, PAGE_CLASS = "sl-figure", "sl-page"  # mark the place of a figure, and what is there once a notebook
SCRIPT = files(__package__).joinpath("figures.js").read_text(encoding="utf-8")
PLOTLY = "application/vnd.plotly.v1+json"


def panels(*titles: str, shared_yaxes: bool = False) -> go.Figure:
    """An empty figure of one row of panels, each with its title above."""
    titles, space = [f"<b>{title}</b>" for title in titles], 0.06 if shared_yaxes else 0.12
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=space, shared_yaxes=shared_yaxes)
    size = 14 if len(titles) < 4 else 12
    return figure.update_annotations(font_size=size, yshift=6).update_layout(template=TEMPLATE)


def empty(reason: str = "no finished runs yet") -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = go.Figure(layout={"template": TEMPLATE, "height": 160, "margin": {"t": 20, "b": 20}})
    text = {"text": reason[:1].upper() + reason[1:], "font": {"size": 15, "color": FAINT}}
    return figure.update_xaxes(visible=False).update_yaxes(visible=False).add_annotation(showarrow=False, **text)


def shades(levels: Sequence[int]) -> dict[int, str]:
    """A colour a data level, from warm (little data) to dark: plasma, whose lightness falls evenly for any eye."""
    spots = [0.5] if len(levels) == 1 else np.linspace(0.74, 0.0, len(levels))
    return dict(zip(levels, sample_colorscale("plasma", list(spots)), strict=True))


def looks(frame: pd.DataFrame, by: str) -> dict[object, dict]:
    """A mark (colour and symbol) for each value of a column, in their natural order; numbers go from warm to dark."""
    values = list((frame.sort_values("params") if by == "model" else frame)[by].dropna().drop_duplicates())
    values = [v for v in _NAMED if v in values] or (sorted(values) if frame[by].dtype.kind in "iuf" else values)
    found = shades(values) if by in ("images", "steps") else dict(zip(values, cycle(COLOURS), strict=False)) | _NAMED
    return {v: {"color": found[v], "symbol": s} for v, s in zip(values, cycle(SYMBOLS), strict=False)}


def outline(marker: dict, size: int = 8) -> dict:
    """A mark with a white face and an edge in its colour: somebody else's runs."""
    return marker | {"color": "white", "size": size, "line": {"color": marker["color"], "width": 1.8}}


def marks(chart: go.Figure, column: int, x, y, marker: dict, name: str = "") -> None:
    """A mark a run; with a name, in the legend once."""
    new = bool(name) and name not in {trace.name for trace in chart.data}
    style = {"mode": "markers", "marker": marker, "hoverinfo": "x+y+name", "row": 1, "col": column}
    chart.add_scatter(x=x, y=y, name=name, legendgroup=name, showlegend=new, **style)


def resize(chart: go.Figure, height: int, legend_y: float | None = None, **margin: int) -> go.Figure:
    """Height and margins; where the legend is, below the panels."""
    below = {"orientation": "h", "x": 0, "y": legend_y, "yanchor": "top"}
    return chart.update_layout(height=height, margin=margin, legend=below if legend_y is not None else {})


def end_labels(figure: go.Figure, column: int, ends: list[tuple], low: float, high: float, height: float) -> None:
    """Name lines at their ends (x as log10, y, text, colour), moved apart where they would overlap.

    low, high: the range of the y axis; height: of the panel in pixels.
    """
    gap, scale = 15, height / (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    places = [(end[1] - low) * scale for end in ends]
    for k in range(1, len(ends)):
        places[k] = max(places[k], places[k - 1] + gap)
    top = height + gap
    for k in reversed(range(len(ends))):
        top = places[k] = min(places[k], top - gap)
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        shift = {"xshift": 9, "yshift": round(place - (y - low) * scale, 1), "xanchor": "left", "showarrow": False}
        figure.add_annotation(x=x, y=y, text=text, font={"color": colour, "size": 12}, **shift, row=1, col=column)


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
    if n >= 1e6:
        return f"{n / 1e9:.3g}B" if n >= 1e9 else f"{n / 1e6:.3g}M"
    return f"{n / 1e3:.3g}k" if n >= 100_000 or (n >= 10_000 and n % 1000 == 0) else f"{n:,}"


def label(by: str, value: object) -> str:
    """A value of a column in words: `femto`, `16,384`."""
    return short(value) if by == "model" else count(value) if by in ("images", "steps") else str(value)


def axis_title(part: pd.DataFrame, column: str) -> str:
    """Title of an axis with its unit: pixels are standardised, or normalised in a window around each."""
    title = TITLES.get(column, column)
    if column.endswith("_loss") and "target" in part:
        units = {"unknown": f"as {'published' if part['data'].iloc[0] == 'published' else 'imported'}"}
        units |= {"normalized": "L1, locally normalised pixels", "raw": "L1, standard deviations"}
        return f"{title} ({units[part['target'].iloc[0]]})"
    return " or ".join(part["score_name"].dropna().unique()) or title if column == "score" else title


def heading(part: pd.DataFrame, panel: str, name: object, x: str, by: str) -> str:
    """Title of a panel: whose runs or which size; below it what was run (data, lengths, seeds), and what a line is."""
    first, _, more = SOURCES.get(name, label(panel, name)).partition(", ")
    said = [escape(more)] if more else []
    if panel == "model" and "source" in part:
        first += f", {SOURCES.get(part['source'].iloc[0], part['source'].iloc[0]).lower()}"
    if panel in ("source", "model"):
        said += [data_name(data) for data in part["data"].unique()[:1] if data != "published"]
        if "steps" not in (x, by):
            said.append(" to ".join(f"{t:,}" for t in sorted({part["steps"].min(), part["steps"].max()})) + " steps")
        seeds = part.groupby("model")["seed"].nunique()
        few = f"{seeds.min()} to " if seeds.min() < seeds.max() else ""
        said.append("one seed" if seeds.max() == 1 else f"{few}{seeds.max()} seeds")
    said = [", ".join(said), *([f"a line: {TITLES[by]}"] if by in ("images", "steps") else [])]
    return f"{escape(first)}<br>{small('<br>'.join(filter(None, said)))}"  # lines that fit panels side by side


def small(text: str) -> str:
    """Text in the size of a second line of a title."""
    return f"<span style='font-size:11.5px;font-weight:normal;color:{FAINT}'>{text}</span>"


def value_range(values: np.ndarray, before: float = 0.08, after: float = 0.08, alone: float = 0.0) -> list[float]:
    """A range around values, by shares of their span; alone: the span where all are equal, by default their size."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = (high - low) or alone or abs(high) or 1
    return [low - before * span, high + after * span]


def run_ticks(part: pd.DataFrame, x: str, apart: float) -> dict:
    """The values that were run as ticks of a logarithmic axis, without those that are too close to another."""
    values = sorted(part[x].unique().tolist())
    span = math.log10(values[-1] / values[0]) * 1.34 or 1
    taken = [values[0], values[-1]]
    for value in values[1:-1]:
        if all(abs(math.log10(value / other)) / span > apart for other in taken):
            taken.append(value)
    names = dict(part[["params", "model"]].values) if x == "params" else {}
    texts = [f"{short(names[value])}<br>{count(value)}" if names else count(value) for value in taken]
    return {"tickvals": taken, "ticktext": texts, "tickangle": 0, "tickfont": {"size": 12}}


# --- twins ------------------------------------------------------------------------------------------------------------


def twin(figure: Mapping) -> str:
    """A figure (plotly's JSON) as HTML, which `SCRIPT` draws with the plotly.js that the page has."""
    layout = figure.get("layout", {})
    config = {"responsive": True, "displaylogo": False, **figure.get("config", {})}
    content = json.dumps({"data": figure["data"], "layout": layout, "config": config}, separators=(",", ":"))
    width = f";width:{layout['width']}px" if "width" in layout else ""
    return (
        f'<div class="sl-plot"><div class="{FIGURE_CLASS}" style="height:{layout.get("height", 450)}px{width}">'
        f'A figure: run this cell to see it.</div><script type="text/plain">{packed(content)}</script></div>'
    )


def packed(text: str) -> str:
    """A text as gzip in base64."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def page() -> str:
    """What a notebook has once: plotly.js, packed, and `SCRIPT`, which also serves figures that JupyterLab draws."""
    from plotly.offline import get_plotlyjs

    held = f'<script type="text/plain" class="sl-plotly">{packed(get_plotlyjs())}</script>'
    return f'<div class="{PAGE_CLASS}">{held}<script type="module">{SCRIPT}</script></div>'


def install() -> None:
    """In a kernel: every figure has its twin, and the first cell that shows one the page; again when that cell is run
    again, for then its outputs are gone."""
    if not in_notebook() or {"PLOTLY_RENDERER", "COLAB_NOTEBOOK_ID"} & os.environ.keys():
        return
    shell, shown, holders = sys.modules["IPython"].get_ipython(), [], []

    def show(figure: go.Figure) -> None:
        content = json.loads(figure.to_json())  # plotly's own method takes seconds, for it imports nbformat
        shown[:] = [True]
        shell.display_pub.publish({PLOTLY: content, "text/html": twin(content)})

    def after_cell(result: object) -> None:  # not at once: a cell may clear what it has shown
        cell = result.info.cell_id
        if shown and result.info.store_history and (not holders or cell is not None and cell == holders[-1]):
            holders.append(cell)
            shell.display_pub.publish({"text/html": page()})

    shell.display_formatter.ipython_display_formatter.for_type(go.Figure, show)
    shell.events.register("post_run_cell", after_cell)


install()
