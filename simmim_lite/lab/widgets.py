"""Widgets of one JavaScript module each, with static twins that are as live in plain HTML; the small one is here.

A widget's module is its files in `js/`, one after another, and `export default { render }`. In a notebook anywidget
hands it a model; in plain HTML a small stand-in holds the same state, and the page itself answers what a kernel would.
"""

import base64
import json
import os
import uuid
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

import anywidget
import pandas as pd
import plotly.graph_objects as go
import traitlets

from ..errors import UserError
from ..evidence import diagnose, figures
from ..processes import executed_unseen
from ..training.run import write_atomic
from . import pictures

FILMS = Path(__file__).with_name("films")
SHIPPED_FILMS = ("scenes", "scenes-grid")  # made by tools/lab_content.py
TOKEN = 4  # pixels of a token


def source(name: str) -> str:
    """The text of js/NAME."""
    return Path(__file__).with_name("js").joinpath(name).read_text("utf-8")


def module(*names: str) -> str:
    """The files js/NAME.js as one JavaScript module; the last one defines `render`."""
    return "\n".join(source(f"{name}.js") for name in names) + "\nexport default { render };\n"


class Widget(anywidget.AnyWidget):
    """A widget whose static twin goes with it into notebooks that nobody watches (papermill, a site's build).

    A subclass sets `_esm = module(...)`. `twin_state()` is what the page needs beyond the synchronised traits.
    """

    _css = source("lab.css")
    look = "sl-lab"  # class of the twin's element
    unless = ""  # what the twin says where it cannot come alive
    width = 1100  # pixels of a page of its own, at most

    def __init__(self, **state: object) -> None:
        try:
            super().__init__(**state)
        except traitlets.TraitError as error:
            raise UserError(str(error)) from error

    def twin_state(self) -> dict:
        """State of the static twin: names to values that JSON holds."""
        own = [name for name in self.traits(sync=True) if not name.startswith("_")]
        return {name: getattr(self, name) for name in own if name not in ("layout", "comm", "tabbable", "tooltip")}

    def static_html(self) -> str:
        """The twin as a fragment of HTML: everything is in it, nothing is asked of a network or a kernel."""
        said = {"state": json.dumps(self.twin_state(), separators=(",", ":")), "module": str(self._esm)}
        packed = {name: base64.b64encode(text.encode()).decode() for name, text in said.items()}
        own = {"css": self._css, "look": self.look, "unless": self.unless, "id": f"sl-{uuid.uuid4().hex}"}
        return Template(source("twin.html")).substitute(own | packed).rstrip()

    def write_html(self, path: str | Path, title: str, before: str = "", head: str = "") -> Path:
        """The twin as a page of its own, with pieces of HTML before it and in the page's head. Returns the path."""
        parts = {"before": before, "head": head, "width": self.width}
        page = Template(source("page.html")).substitute(parts, title=escape(title), twin=self.static_html())
        write_atomic(path, page)
        return Path(path)

    def still(self) -> go.Figure:
        """What is seen in a saved notebook, where there is no kernel."""
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if executed_unseen():
            return display({"text/html": self.static_html()}, raw=True)
        if "VOILA_REQUEST_URL" not in os.environ:  # which saves nothing
            display(self.still())  # out of sight while the widget lives (evidence/figures.js)
        found = self._repr_mimebundle_()
        found = found[0] if isinstance(found, tuple) else found
        display({name: data for name, data in found.items() if name != "text/plain"}, raw=True)


def check_patch(side: int, patch: int) -> None:
    """`UserError` for a mask patch (pixels) that does not hold whole tokens or divide the side; so says the page."""
    fit = [p for p in range(TOKEN, side + 1, TOKEN) if side % p == 0]
    if patch not in fit:
        raise UserError(f"patch {patch} does not divide: at {side} px give one of {', '.join(map(str, fit))}")


class FilmStrip(Widget):
    """What a network fills in as it trains: films as tabs, those of the package or {"my run": read_film(path)}."""

    _esm = module("core", "parts", "filmstrip")
    films = traitlets.List(traitlets.Dict()).tag(sync=True)  # [{name, sheet: an address of a PNG, **facts}]

    def __init__(self, films: "Mapping | None" = None) -> None:
        films, found = films or {"Through a run": shipped_film(), "Sizes and data": shipped_film("scenes-grid")}, []
        for name, film in films.items():
            sheet = f"data:image/png;base64,{base64.b64encode(film.png()).decode()}"
            found.append({"name": name, "sheet": sheet, **film.facts})
        super().__init__(films=found)
        self._first = next(iter(films.items()))

    def still(self) -> go.Figure:
        """Of the first film the first, a middle and the last frame."""
        name, film = self._first
        chosen = sorted({0, len(film.frames) // 2, len(film.frames) - 1})
        rows = {"picture": film.pictures}
        rows |= {f"step {film.facts['frames'][k]['step']:,}": film.frames[k] for k in chosen}
        return pictures.sheet(rows, title=name)


class LogCheck(Widget):
    """*Is this normal?* asked with a log of one's own, which is read in the page and goes nowhere."""

    _esm = module("parts", "diagnose")
    rules = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        super().__init__(rules={"table": diagnose.TABLE, "known": diagnose.known()})

    def still(self) -> go.Figure:
        """What there is to compare with."""
        rows = [
            {"name": name, "value": (low + high) / 2, "low": low, "high": high} for name, low, high in diagnose.known()
        ]
        return figures.intervals(pd.DataFrame(rows), "validation loss, lowest to highest of a set of runs")


def shipped_film(name: str = "scenes"):
    """A film of the package: `scenes` (a run, frame by frame) or `scenes-grid` (sizes x data levels at their end)."""
    from ..training.callbacks import read_film

    return read_film(FILMS / f"{name}.png")
