"""An explorer of the 63 published runs: linked views, filters, the reader's own runs on the Omega axis. No torch here.

`show()` in a notebook, `write_html(path)` for one page that asks the network for nothing. In a live kernel it is a
widget whose `chosen()` gives Python the rows that the reader picked; in an executed copy, HTML for a report's page.
"""

import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..errors import UserError
from ..evidence import published
from ..training.run import write_atomic
from . import explorer_page, live
from .explorer_data import Rows, data


def show(rows: Rows | Mapping[str, Rows] | None = None) -> "Explorer":
    """The explorer, as the last value of a cell.

    rows: the reader's own runs, as `records.table` or `imported.read_csv` give them, or sets of them by name, as
    `sides.rows` does. They appear on the Omega axis and in panels of their own: their losses are another quantity.
    `UserError` for rows of another kind, and where anywidget is not installed.
    """
    return Explorer(data(rows))


def write_html(path: str | Path, rows: Rows | Mapping[str, Rows] | None = None, *, beside: bool = False) -> Path:
    """Write the explorer as a page, plotly.js inside (4.9 MB), or beside it as plotly.min.js; where it is.

    beside: for a folder of pages that share plotly.js, as a report. rows: as in `show`. `UserError` where the folder
    cannot be written.
    """
    from plotly.offline import get_plotlyjs

    path = Path(path)
    if beside:
        write_atomic(path.parent / "plotly.min.js", get_plotlyjs())
    write_atomic(path, explorer_page.page(data(rows), None if beside else get_plotlyjs()))
    return path


class Explorer:
    """What a cell shows: a widget where a browser answers, and the same as HTML for an executed copy."""

    def __init__(self, content: dict) -> None:
        self.data = content
        watched = live.in_notebook() and not live.executed_unseen()
        self.widget = _widget(content) if watched else None

    def chosen(self) -> Rows:
        """The published rows that are selected in the explorer; while none is, those that its filters leave."""
        rows = published.rows()
        if self.widget is None:
            return rows
        return [rows[k] for k in self.widget.selected or self.widget.shown]

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/html": explorer_page.fragment(self.data)}
        if self.widget is None:
            return bundle | {"text/plain": f"<explorer of {len(self.data['runs'])} published runs>"}
        shown, metadata = self.widget._repr_mimebundle_()
        return shown | bundle, metadata


def _widget(content: dict):
    runs = list(range(len(content["runs"])))
    return _widget_class()(data=content, plotly=_plotly(), shown=runs)


@cache
def _plotly() -> bytes:
    """plotly.js of the installed plotly, compressed: 1.5 MB over the wire instead of 4.8."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), 6)


@cache
def _widget_class() -> type:
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise UserError(f"the explorer is a widget and needs anywidget ({error}): pip install anywidget") from error

    class ExplorerWidget(anywidget.AnyWidget):
        """data goes to the browser once; `selected` and `shown` come back as indices of the published runs.

        plotly travels with the message that opens the widget, so that a busy kernel does not delay the picture. The
        browser then empties it, and a notebook that saves its widgets stays small; a page that was loaded anew asks.
        """

        _esm = explorer_page.module()
        _css = explorer_page.CSS
        data = traitlets.Dict().tag(sync=True)
        plotly = traitlets.Bytes().tag(sync=True, from_json=lambda value, _: bytes(value))
        selected = traitlets.List(traitlets.Int()).tag(sync=True)
        shown = traitlets.List(traitlets.Int()).tag(sync=True)

        def __init__(self, **traits: object) -> None:
            super().__init__(**traits)
            self.on_msg(self._answer)

        def _answer(self, _: object, message: object, __: object) -> None:
            if message == "plotly":
                self.send("plotly", buffers=[_plotly()])

    return ExplorerWidget
