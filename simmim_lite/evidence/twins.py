"""Figures in copies of a notebook: beside plotly's own, HTML that a page draws by itself, and plotly.js once for all.

JupyterLab shows plotly's own; what nbconvert makes, and a report, the HTML. No network, no package, no browser."""

import base64
import gzip
import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from ..processes import in_notebook

FIGURE_CLASS, PAGE_CLASS = "sl-figure", "sl-page"  # mark the place of a figure, and what is there once a notebook
SCRIPT = files(__package__).joinpath("figures.js").read_text(encoding="utf-8")
PLOTLY = "application/vnd.plotly.v1+json"
_SHOWN: list[bool] = []  # whether this process has shown a figure


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


def bundle(figure) -> dict:
    """A figure as a cell shows it, by mime type; plotly's own method takes seconds, for it imports nbformat."""
    _SHOWN[:] = [True]
    content = json.loads(figure.to_json())
    return {PLOTLY: content, "text/html": twin(content)}


def install() -> None:
    """In a kernel: every figure has its twin, and the first cell that shows one the page; again when that cell is run
    again, for then its outputs are gone."""
    if not in_notebook() or {"PLOTLY_RENDERER", "COLAB_NOTEBOOK_ID"} & os.environ.keys():
        return
    import plotly.graph_objects as go

    shell, holders = sys.modules["IPython"].get_ipython(), []

    def show(figure: go.Figure) -> None:
        shell.display_pub.publish(bundle(figure))

    def after_cell(result: object) -> None:  # not at once: a cell may clear what it has shown
        cell = result.info.cell_id
        if _SHOWN and result.info.store_history and (not holders or cell is not None and cell == holders[-1]):
            holders.append(cell)
            shell.display_pub.publish({"text/html": page()})

    shell.display_formatter.ipython_display_formatter.for_type(go.Figure, show)
    shell.events.register("post_run_cell", after_cell)
