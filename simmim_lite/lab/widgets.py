"""Widgets of one JavaScript module each, with static twins that are as live in plain HTML; the two small ones are here.

A widget's module is its files in `js/`, one after another, and `export default { render }`. In a notebook anywidget
hands it a model; in plain HTML a small stand-in holds the same state, and the page itself answers what a kernel would.
"""

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import anywidget
import traitlets

from ..data import scenes
from ..errors import UserError, unknown
from ..model.masking import STRATEGIES
from ..training.run import write_atomic
from .pictures import png_address

FILMS = Path(__file__).with_name("films")
SHIPPED_FILMS = ("scenes", "scenes-grid")  # made by tools/lab_content.py
TOKEN = 4  # pixels of a token
#: name: (pixels a side, tokens a side of a window, blocks a stage, mask patches in pixels); as in js/window_view.js
GEOMETRIES = {
    "192-12": (192, 12, (2, 2, 18, 2), (8, 16, 32, 64)),
    "192-6": (192, 6, (2, 2, 18, 2), (8, 16, 32, 64)),
    "32-4": (32, 4, (2, 2), (4, 8, 16)),
}


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

    def _repr_mimebundle_(self, **kwargs):
        from .live import executed_unseen

        found = super()._repr_mimebundle_(**kwargs)
        data, metadata = found if isinstance(found, tuple) else (found, {})
        return ({**data, "text/html": self.static_html()} if executed_unseen() else data), metadata


def check_patch(side: int, patch: int, patches: Sequence[int] = ()) -> None:
    """`UserError` for a mask patch (pixels) that cannot be: the page says the same. patches: those to choose from, by
    default all that hold whole tokens and divide the side."""
    fit = patches or [p for p in range(TOKEN, side + 1, TOKEN) if side % p == 0]
    if patch not in fit:
        raise UserError(f"patch {patch} does not divide: at {side} px give one of {', '.join(map(str, fit))}")


class WindowView(Widget):
    """Windows, shift and merging over a mask: which windows see nothing, and after how many blocks each hidden token
    has heard of a visible one. The mask is `hash_masks(grid, ratio, seed, [0], 0, strategy)`."""

    _esm = module("core", "parts", "windows", "window_view")
    geometry = traitlets.Enum(list(GEOMETRIES), "192-12").tag(sync=True)
    mask_patch = traitlets.Int(32).tag(sync=True)  # pixels
    ratio = traitlets.Float(0.6, min=0, max=1).tag(sync=True)
    strategy = traitlets.Enum(list(STRATEGIES), "random").tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    picture = traitlets.Unicode("").tag(sync=True)  # an address, `data:` here; stretched over the board

    def __init__(self, geometry: str = "192-12", **settings: object) -> None:
        super().__init__(geometry=geometry, **settings)
        pixels, _, _, patches = GEOMETRIES[geometry]
        self.mask_patch = settings.get("mask_patch", 32 if pixels == 192 else 8)
        check_patch(pixels, self.mask_patch, patches)
        self.picture = png_address(scenes.render(0, [17], 192).images[0].transpose(1, 2, 0))


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


def shipped_film(name: str = "scenes"):
    """A film of the package: `scenes` (a run, frame by frame) or `scenes-grid` (sizes x data levels at their end)."""
    from ..training.callbacks import read_film

    if name not in SHIPPED_FILMS:
        raise unknown("film", name, SHIPPED_FILMS)
    return read_film(FILMS / f"{name}.png")
