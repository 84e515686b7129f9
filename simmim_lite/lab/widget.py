"""Widgets of one JavaScript module each, and their static twins: as live in plain HTML, with no kernel and no network.

A widget's module is its files in `js/`, one after another, and `export default { render }`. In a notebook anywidget
hands it a model; in plain HTML a small stand-in holds the same state, and the page itself answers what a kernel would.
"""

import base64
import json
import uuid
from functools import cache
from html import escape
from pathlib import Path

import anywidget

from ..training.run import write_atomic

_FOLDER = Path(__file__).with_name("js")
_TWIN = """<style>{css}</style><div class="{look}" id="{id}">{unless}</div><script type="module">
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const state = JSON.parse(new TextDecoder().decode(bytes("{state}"))), heard = {{}};
const model = {{
  kernel: false, get: (name) => state[name], on: (event, f) => (heard[event] ||= []).push(f),
  off() {{}}, save_changes() {{}}, send() {{}},
  set(name, value) {{ state[name] = value; (heard["change:" + name] || []).forEach((f) => f()); }},
}};
const url = URL.createObjectURL(new Blob([bytes("{module}")], {{ type: "text/javascript" }}));
(await import(url)).default.render({{ model, el: document.getElementById("{id}") }});
</script>"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><meta name="color-scheme" content="light dark">
<style>body {{ margin: 0 auto; padding: 16px; max-width: {width}px; background: #fff; color: #1f2430;
font: 16px/1.5 Inter, "Segoe UI", "DejaVu Sans", sans-serif }}
a {{ color: #0072b2 }} h1 {{ font-size: 24px; margin: 0 0 4px }}
@media (prefers-color-scheme: dark) {{ body {{ background: #16181d; color: #e8eaf0 }} a {{ color: #56b4e9 }} }}
</style>{head}</head>
<body><main><h1>{title}</h1>{before}{twin}{after}</main></body></html>
"""


@cache
def source(name: str) -> str:
    """The text of js/NAME."""
    return (_FOLDER / name).read_text("utf-8")


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

    def twin_state(self) -> dict:
        """State of the static twin: names to values that JSON holds; bytes as base64 texts."""
        own = [name for name, trait in self.traits(sync=True).items() if not name.startswith("_")]
        values = {name: getattr(self, name) for name in own if name not in ("layout", "comm", "tabbable", "tooltip")}
        return {name: base64.b64encode(v).decode() if isinstance(v, bytes) else v for name, v in values.items()}

    def static_html(self) -> str:
        """The twin as a fragment of HTML: everything is in it, nothing is asked of a network or a kernel."""
        said = {"state": json.dumps(self.twin_state(), separators=(",", ":")), "module": str(self._esm)}
        packed = {name: base64.b64encode(text.encode()).decode() for name, text in said.items()}
        own = {"css": self._css, "look": self.look, "unless": self.unless, "id": f"sl-{uuid.uuid4().hex}"}
        return _TWIN.format(**own, **packed)

    def write_html(self, path: str | Path, title: str, before: str = "", after: str = "", head: str = "") -> Path:
        """The twin as a page of its own, between pieces of HTML. Returns the path."""
        parts = {"before": before, "after": after, "head": head, "width": self.width}
        write_atomic(path, _PAGE.format(title=escape(title), twin=self.static_html(), **parts))
        return Path(path)

    def _repr_mimebundle_(self, **kwargs):
        from .live import executed_unseen

        found = super()._repr_mimebundle_(**kwargs)
        data, metadata = found if isinstance(found, tuple) else (found, {})
        return ({**data, "text/html": self.static_html()} if executed_unseen() else data), metadata
