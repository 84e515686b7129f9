"""Running and finished runs in a notebook, live: a table and their curves, drawn again while they train. No torch here.

Nothing but files ties the picture to the runs: they may be trained by this kernel, by a terminal, or by a cluster that
shares the folder, and they are there again after the tab, or the kernel, was closed.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from threading import Event, Thread

import plotly.graph_objects as go

from ..evidence.drawing import COLOURS, FAINT, TEMPLATE, cycle, key, panels
from ..evidence.records import millions, short
from ..model.sizes import SIZES
from ..studies.monitor import STATES, Seen, Watch, counts, rows, text
from ..training.run import Run
from . import live

#: At most: finished runs whose curves are drawn behind those in progress, and lines of the table.
_CURVES, _LINES = 24, 14
_ALONE = 6  # finished runs that are drawn in full where nothing is in progress
_REST = 30.0  # seconds after which even an unchanged picture is drawn again: it says when something was last heard
_UNITS = {"raw": "L1, standard deviations", "normalized": "L1, locally normalised pixels"}


def monitor(
    runs_dir: str | Path = "runs",
    *,
    planned: Iterable[Run] = (),
    seconds: float = 3.0,
    until: Callable[[], bool] | None = None,
) -> "Monitor | None":
    """Show what RUNS_DIR holds and what is trained in it now; planned: runs that are expected.

    In JupyterLab the cell ends at once and the picture goes on by itself, every `seconds` where something is new: other
    cells can be run meanwhile. It ends with `.stop()`, with the next monitor, with the kernel, or when all that was
    planned is finished. With `until` the cell stays, and ends when `until()` is true or it is interrupted. Where nobody
    looks (papermill, a script) it is drawn once.
    """
    watch = Watch(runs_dir, planned)
    if until is not None:
        _stay(watch, seconds, until)
        return None
    if live.in_notebook() and not live.executed_unseen():
        return Monitor(watch, seconds).begin()
    live.Shown().draw_all(bundles(watch.look()))
    return None


class Monitor:
    """A picture that is drawn again by a thread of its own. One at a time: a new one ends the one before."""

    _current: "Monitor | None" = None

    def __init__(self, watch: Watch, seconds: float) -> None:
        self.watch, self.seconds, self.over = watch, seconds, Event()
        self.drawn: tuple[float, object] = (0.0, None)

    def begin(self) -> "Monitor":
        """Show the picture and keep it true."""
        import ipywidgets
        from IPython.display import display

        if Monitor._current is not None:
            Monitor._current.stop()
        Monitor._current = self
        self.output = ipywidgets.Output()
        self._draw(self.watch.look())
        display(self.output)
        self.thread = Thread(target=self._follow, daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        """Leave the picture as it is."""
        self.over.set()

    def _ipython_display_(self) -> None:
        """As the last line of a cell it has shown itself already."""

    def _follow(self) -> None:
        while not self.over.wait(self.seconds):
            try:
                found = self.watch.look()
            except ValueError as error:  # a record that is not whole: named, and looked at again
                self._show([{"text/plain": str(error)}])
                continue
            self._draw(found)
            if self.watch.planned and all(seen.state in ("finished", "failed") for seen in found):
                return

    def _draw(self, found: list[Seen]) -> None:
        now, content = time.monotonic(), [(seen.run.key, seen.state, seen.step, len(seen.points)) for seen in found]
        if content != self.drawn[1] or now - self.drawn[0] > _REST:
            self._show(bundles(found, f"looked at {time.strftime('%H:%M:%S')}"))
            self.drawn = now, content

    def _show(self, pictures: Sequence[dict]) -> None:
        if len(pictures) > 2:  # the page does not jump while the figure is drawn again
            self.output.layout.min_height = "470px"
        self.output.outputs = tuple({"output_type": "display_data", "data": p, "metadata": {}} for p in pictures)


def _stay(watch: Watch, seconds: float, until: Callable[[], bool]) -> None:
    """Draw in the cell itself until it is over; interrupting ends the looking, and nothing else."""
    shown, alone = live.Shown(), not live.in_notebook() or live.executed_unseen()
    try:
        while not until():
            if not alone:
                shown.draw_all(bundles(watch.look()))
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not until():
                time.sleep(0.05)
    except KeyboardInterrupt:
        pass
    shown.draw_all(bundles(watch.look()))


def bundles(found: Sequence[Seen], note: str = "") -> list[dict]:
    """A line of counts, the table, the curves: mime bundles, of those that there is something to show of."""
    said = " · ".join(filter(None, [f"**{counts(found)}**", note]))
    pictures = [{"text/markdown": said, "text/plain": said.replace("**", "")}]
    if found:
        pictures.append({"text/html": table(found), "text/plain": text(found, every=True)})
    if any(seen.points for seen in found):
        pictures.append(curves(found)._repr_mimebundle_())
    return pictures


def table(found: Sequence[Seen]) -> str:
    """Runs as a table, in HTML: all that are in progress, then as many others as there is room for."""
    shown = rows(found)
    busy = sum(seen.state in STATES[:4] for seen in found)
    most = max(busy, _LINES)
    heads = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in shown[0])
    lines = [
        "".join(f'<td style="text-align:left;white-space:nowrap">{escape(cell)}</td>' for cell in row.values())
        for row in shown[:most]
    ]
    if len(shown) > most:
        lines.append(f'<td style="text-align:left" colspan="{len(shown[0])}">and {len(shown) - most} more</td>')
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="sl-scroll"><table class="sl-table"><tr>{heads}</tr>{body}</table></div>'


def curves(found: Sequence[Seen]) -> go.Figure:
    """Losses against images seen, a panel a target: training thin, validation with marks, a colour a size.

    Finished runs lie pale behind those in progress, validation alone; where nothing is in progress, a few of them are
    drawn as those would be.
    """
    told = [seen for seen in found if seen.points]
    busy = [seen for seen in told if seen.state != "finished"]
    past = [seen for seen in told if seen.state == "finished"][-_CURVES:]
    if not busy and len(past) <= _ALONE:
        busy, past = past, []
    told = [*past, *busy]
    targets = sorted({seen.run.target for seen in told})
    sizes = sorted({seen.run.model for seen in told}, key=lambda model: SIZES[model].parameters)
    colours = cycle(COLOURS, sizes)
    chart = panels(*(f"{'raw' if t == 'raw' else 'normalised'} target" if len(targets) > 1 else "" for t in targets))
    for over, seen in [*((True, seen) for seen in past), *((False, seen) for seen in busy)]:
        column, colour = 1 + targets.index(seen.run.target), colours[seen.run.model]
        for name in ("val_loss",) if over else ("train_loss", "val_loss"):
            _curve(chart, seen, name, column, colour, over)
    for model in sizes:
        key(chart, f"{short(model)} ({millions(SIZES[model].parameters)})", "size", line={"color": colours[model]})
    if busy:
        what = "finished" if all(seen.state == "finished" for seen in busy) else "in progress"
        key(chart, "training loss", what, line={"color": FAINT, "width": 1})
        key(chart, "validation loss", what, line={"color": FAINT, "width": 2.2}, marker={"color": FAINT})
    if past:
        key(chart, "validation loss", "finished", line={"color": FAINT, "width": 1.2, "dash": "dot"})
    for column, target in enumerate(targets, 1):
        end = max(s.points[-1]["images_seen"] for s in told if s.run.target == target)
        chart.update_xaxes(title_text="images seen", range=[0, 1.04 * end], tickformat="~s", row=1, col=column)
        chart.update_yaxes(title_text=f"loss on hidden pixels<br>({_UNITS[target]})", row=1, col=column)
    return chart.update_layout(template=TEMPLATE, margin={"t": 40 if len(targets) > 1 else 20})


def _curve(chart: go.Figure, seen: Seen, name: str, column: int, colour: str, over: bool) -> None:
    points = [p for p in seen.points if p.get(name) is not None]
    kind = "validation" if name == "val_loss" else "training"
    hover = [
        f"<b>{short(seen.run.model)}</b>, {seen.run.images or 'all'} images, seed {seen.run.seed} ({seen.state})<br>"
        f"{kind} loss {p[name]:.4f}<br>step {p['step']:,}, {p['images_seen']:,} images seen"
        for p in points
    ]
    line = {"color": colour, "width": 1.2 if over or kind == "training" else 2.2, "dash": "dot" if over else "solid"}
    chart.add_scatter(
        x=[p["images_seen"] for p in points],
        y=[p[name] for p in points],
        mode="lines" if len(points) > 1 and (over or kind == "training") else "lines+markers",
        line=line,
        marker={"color": colour, "size": 8 if kind == "validation" else 4},
        opacity=0.5 if over else 0.75 if kind == "training" else 1,
        text=hover,
        hoverinfo="text",
        showlegend=False,
        row=1,
        col=column,
    )
