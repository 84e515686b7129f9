"""Widgets of one JavaScript module each, with static twins that are as live in plain HTML. No torch here.

A widget's module is its files in `js/`, one after another, and `export default { render }`. In a notebook anywidget
hands it a model; in plain HTML a small stand-in holds the same state, and the page itself answers what a kernel would.
"""

import base64
import gzip
import json
import os
import uuid
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

import anywidget
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from ..errors import UserError
from ..evidence import diagnose, figures, published, tables
from ..evidence.drawing import SYMBOLS, count, data_name, shades, size_name
from ..evidence.proxy import doublings, omega, turning_points
from ..evidence.records import OVERFIT, millions
from ..model.sizes import short
from ..processes import executed_unseen
from ..training.callbacks import read_film
from ..training.run import write_atomic
from . import pictures

FILMS = Path(__file__).with_name("films")
SHIPPED_FILMS = ("scenes", "scenes-grid")  # made by tools/lab_content.py
TOKEN = 4  # pixels of a token
KNOWN_TO = 1.5  # a turning point of Omega is known to no better than this factor, either way (docs/facts.md, 7)
_DARK = (0.97, 0.42)  # from little data to much on a dark page: the part of plasma with a contrast above 3
_UNIT = ("model", "images", "dataset", "seed")  # cell and seed of a run, as `doublings` names them


def source(name: str) -> str:
    """The text of js/NAME."""
    return Path(__file__).with_name("js").joinpath(name).read_text("utf-8")


def module(*names: str) -> str:
    """The files js/NAME.js as one JavaScript module; the last one defines `render`."""
    return "\n".join(source(f"{name}.js") for name in names) + "\nexport default { render };\n"


class Widget(anywidget.AnyWidget):
    """A widget whose static twin goes with it into notebooks that nobody watches (papermill, a site's build).

    A subclass sets `_esm = module(...)`, and has `still()`: the figure that is seen in a saved notebook, where there is
    no kernel. `twin_state()` is what the page needs beyond the synchronised traits.
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
        known = pd.DataFrame(diagnose.known(), columns=["name", "low", "high"])
        known["value"] = (known["low"] + known["high"]) / 2
        return figures.intervals(known, "validation loss, lowest to highest of a set of runs")


def shipped_film(name: str = "scenes"):
    """A film of the package: `scenes` (a run, frame by frame) or `scenes-grid` (sizes x data levels at their end)."""
    return read_film(FILMS / f"{name}.png")


# --- the explorer -----------------------------------------------------------------------------------------------------


class Explorer(Widget):
    """The 63 published runs: linked views and filters. Everything that is computed is computed here, from `evidence`;
    js/explorer.js filters, draws and correlates. Data goes to the browser once, plotly.js when it asks: notebooks that
    save their widgets stay small."""

    _esm = module("explorer_views", "explorer")
    _css = source("explorer.css")
    look, width = "sl-explorer", 1240
    unless = "The explorer is live where this cell is run, and on the pages of a report or of the site."
    data = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        super().__init__(data=explorer_data())
        self.on_msg(self._answer)

    def _answer(self, _: object, message: object, __: object) -> None:
        if message == "plotly":
            self.send("plotly", buffers=[gzip.compress(get_plotlyjs().encode(), 6)])

    def still(self) -> go.Figure:
        """The first view, as it opens."""
        return figures.scatter(tables.frame({"published": published.rows()}), "val_loss", "score", "regime")


def explorer_data() -> dict:
    """The whole explorer: runs (63), doublings (42), turns, facets (filters), views (panels), measures. Scores in % and
    their changes in points, changes of the loss in % of the shorter run's."""
    runs = published.rows()
    found, pairs = doublings(runs, published.SCORE), []
    place = {(" ".join(str(row[name]) for name in _UNIT), row["steps"]): k for k, row in enumerate(runs)}
    for d in found.to_dict("records"):
        both = [place[d["unit"], n] for n in (d["steps"] // 2, d["steps"])]
        pairs.append(_doubling(d, runs[both[0]]) | {"runs": both})
    loss = {"field": "val_loss", "label": "validation loss", "title": "validation loss (as published)"}
    score = {"field": published.SCORE, "label": "accuracy", "title": "top-1 after fine-tuning (%)"}
    about = {"facets": _facets(runs), "measures": [score, loss], "views": _views(runs, score["title"], loss["title"])}
    about |= {"turns": turning_points(found), "known_to": KNOWN_TO, "overfit": OVERFIT}
    return about | {"runs": [_run(row) for row in runs], "doublings": pairs}


def _run(row: dict) -> dict:
    """A published run: what filters and views need, and its hover text."""
    score, steps = 100 * row[published.SCORE], f"{row['steps']:,} steps"
    lines = [f"<b>{size_name(row)}</b>", data_name(row["dataset"]), f"{row['images']:,} images"]
    lines += [f"{steps}, {row['epochs']:,.0f} epochs", f"validation loss {row['val_loss']:.4f}", f"top-1 {score:.2f} %"]
    lines += [f"Omega {omega(row):.1e}{', overfit' if row['overfit'] else ''}"]
    same = ("model", "dataset", "steps", "overfit", "on_axis", "images", "images_seen", "params", "val_loss")
    name = f"{short(row['model'])}, {data_name(row['dataset'])}, {steps}"
    own = {published.SCORE: score, "omega": omega(row), "name": name, "text": "<br>".join(lines)}
    return {field: row[field] for field in same} | own


def _doubling(d: dict, shorter: dict) -> dict:
    """A doubling of the length: Omega of the longer run, changes of loss (%) and score (points), hover text."""
    loss, score = 100 * d["loss_change"] / shorter["val_loss"], 100 * d["score_change"]
    lines = [f"<b>{size_name(d)}</b>", f"{d['images']:,} images", f"{d['steps'] // 2:,} to {d['steps']:,} steps"]
    lines += [f"validation loss {loss:+.2f} %", f"top-1 {score:+.2f} points", f"Omega {d['omega']:.1e}"]
    return {"omega": d["omega"], "loss_change": loss, "score_change": score, "text": "<br>".join(lines)}


def _facets(runs: list[dict]) -> list[dict]:
    """The filters, which are the legend too: a symbol a size, a colour a data set, a dot for overfit."""
    params, sets = {row["model"]: row["params"] for row in runs}, []
    images = dict(sorted({(row["dataset"], row["images"]) for row in runs}, key=lambda pair: pair[1]))
    seen = dict(sorted({(row["steps"], row["images_seen"]) for row in runs}))
    day = shades(sorted(images.values()))
    night = dict(zip(day, sample_colorscale("plasma", np.linspace(*_DARK, len(day))), strict=True))
    sizes = zip(sorted(params, key=params.get), SYMBOLS, strict=False)
    sizes = [{"value": m, "label": short(m), "more": millions(params[m]), "symbol": symbol} for m, symbol in sizes]
    for d, n in images.items():
        about = {"value": d, "label": data_name(d), "more": f"{count(n)} images"}
        sets.append(about | {"colour": day[n], "dark": night[n]})
    lengths = [{"value": t, "label": f"{count(t)} steps", "more": f"{count(n)} seen"} for t, n in seen.items()]
    overfit = [{"value": False, "label": "not overfit"}, {"value": True, "label": "overfit", "dot": True}]
    options = {"Model size": ("model", sizes), "Data set": ("dataset", sets), "Length": ("steps", lengths)}
    options["Overfitting"] = "overfit", overfit
    return [{"field": field, "title": title, "options": some} for title, (field, some) in options.items()]


def _axis(field: str, title: str, ticks: Mapping[float, str] | None = None) -> dict:
    """An axis of a panel, logarithmic where it has ticks."""
    return {"field": field, "title": title, "log": ticks is not None, "ticks": list((ticks or {}).items())}


def _views(runs: list[dict], score: str, loss: str) -> list[dict]:
    """The panels. `join`: what the runs on one line share; y "measure": the one that the reader chose."""
    params = {r["params"]: f"{short(r['model'])}<br>{count(round(r['params'], -6))}" for r in runs}
    images, seen = ({r[name]: count(r[name]) for r in runs} for name in ("images", "images_seen"))
    losses, scores, chosen = _axis("val_loss", loss), _axis(published.SCORE, score), _axis("measure", "")
    length, size = _axis("images_seen", "images seen in training", seen), _axis("params", "backbone parameters", params)
    data, gain = _axis("images", "unique training images", images), _axis("score_change", "change of top-1 (points)")
    parts, twice = "a line: one size at one length, on parts of ImageNet-1K", "a mark: a run, against one half as long"
    omega_axis = _axis("omega", "Omega of the longer run", {10.0**k: f"1e{k}" for k in range(-3, 15)})
    loss_change = _axis("loss_change", "change of validation loss (%)")
    views = (
        ("proxy", "Accuracy against validation loss", "a mark: a run", losses, scores, {}),
        ("length", "Length", "a line: one size on one data set", length, chosen, {"join": ["model", "dataset"]}),
        ("data", "Data", parts, data, chosen, {"join": ["model", "steps"]}),
        ("size", "Model size", "a line: one data set at one length", size, chosen, {"join": ["dataset", "steps"]}),
        ("omega-loss", "Twice as long: does the loss rise?", twice, omega_axis, loss_change, {"of": "doublings"}),
        ("omega-score", "Twice as long: does accuracy fall?", twice, omega_axis, gain, {"of": "doublings"}),
    )
    names = ("id", "title", "note", "x", "y")
    return [dict(zip(names, view, strict=True)) | more for *view, more in views]
