"""What a runs folder is doing now: runs that are trained, that were stopped, finished, or still to do. No torch here.

Read from the files alone, so any process may look at any time, and nothing that trains has to know of it: runs may be
trained by this kernel, by a terminal, or by a cluster that shares the folder. `simmim-lite watch` shows the table in a
terminal, `monitor()` table and curves in a notebook.
"""

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from threading import Event, Thread

from ..errors import UserError
from ..evidence.records import millions, short
from ..model.sizes import SIZES
from ..studies.collecting import clock, preview_text
from ..training.journal import Story, held, read_journal, this_machine
from ..training.run import Run, read_record

#: In the order of a table. silent: on another machine, and nothing has come for a while.
STATES = ("running", "silent", "stopped", "failed", "finished", "to do")
BUSY = STATES[:4]
#: Seconds without a line after which a run on another machine is called silent: at least these, else so many times
#: the longest wait it had before.
PATIENCE, _TIMES = 120.0, 5.0
#: At most: finished runs whose curves are drawn behind those in progress, and lines of the table.
_CURVES, _LINES = 24, 14
_REST = 30.0  # seconds after which even an unchanged picture is drawn again: it says when something was last heard
_LOSS, _LOSSES = "loss on hidden pixels", (("train_loss", "training"), ("val_loss", "validation"))
_TARGETS = {"raw": "raw target (L1, standard deviations)", "normalized": "normalised target (L1)"}


@dataclass(frozen=True)
class Status:
    """A run as it stands."""

    run: Run
    state: str  # of STATES
    step: int = 0  # steps done, as far as is known
    points: list[dict] = field(default_factory=list)  # step, images_seen; train_loss, val_loss where they were taken
    speed: float | None = None  # images a second at the last point
    left: float | None = None  # seconds of training at the pace since it was started
    age: float | None = None  # seconds since its last line
    reason: str = ""  # why it failed

    def last(self, name: str) -> float | None:
        """The newest loss of a name, or None."""
        return next((p[name] for p in reversed(self.points) if p.get(name) is not None), None)

    def place(self) -> tuple:
        """Sorts runs by state; within it by size, images, steps and seed."""
        run = self.run
        size, images = SIZES[run.model].parameters, run.images or float("inf")
        return STATES.index(self.state), run.data, size, images, run.steps, run.seed, run.key


class Watch:
    """Looks at a runs folder again and again: a file is read again only when it has changed.

    planned: runs that are expected; those that are not there yet are `to do`, whatever their precision.
    """

    def __init__(self, runs_dir: str | Path = "runs", planned: Iterable[Run] = ()) -> None:
        self.runs_dir, self.planned = Path(runs_dir), list(planned)
        self._known: dict[Path, tuple[tuple[int, int], object]] = {}

    def look(self) -> list[Status]:
        """All runs now, in the order of `STATES`. `UserError`, naming the file, for a record that is not whole."""
        now, found = time.time(), {}
        for _, record in self._read_all("records", "*.json", read_record):
            if record.get("kind") == "pretrain":
                found[record["key"]] = _finished(record)
        stories = self._read_all("running", "*.jsonl", read_journal)
        # of the journals of one trunk, only the one that was written last can be in progress
        newest = {s.run.trunk_key: path for path, s in sorted(stories, key=lambda pair: pair[1].time)}
        for path, story in stories:
            locked = held(self.runs_dir / "locks" / f"{story.run.trunk_key}.lock")
            status = _in_progress(story, now, locked if newest[story.run.trunk_key] == path else False)
            if path.stem not in found or status.state == "running":
                found[path.stem] = status
        there = {_cell(status.run) for status in found.values()}
        todo = [Status(run, "to do") for run in self.planned if _cell(run) not in there]
        return sorted([*found.values(), *todo], key=Status.place)

    def all_done(self, found: Sequence[Status]) -> bool:
        """Whether something was planned, and nothing is left to wait for."""
        return bool(self.planned) and all(status.state in ("finished", "failed") for status in found)

    def _read_all(self, folder: str, names: str, read: Callable) -> list[tuple[Path, object]]:
        found = []
        for path in sorted((self.runs_dir / folder).glob(names)):
            try:
                mark = path.stat().st_mtime_ns, path.stat().st_size
            except OSError:
                continue  # removed since the folder was listed
            if self._known.get(path, (None,))[0] != mark:
                self._known[path] = mark, read(path)
            found.append((path, self._known[path][1]))
        return [(path, content) for path, content in found if content is not None]


def _finished(record: dict) -> Status:
    run = Run.from_dict(record["run"])
    if record["status"] == "failed":
        return Status(run, "failed", reason=record["reason"] or "")
    return Status(run, "finished", run.steps, record["curve"])


def _in_progress(story: Story, now: float, locked: bool | None) -> Status:
    """locked: whether somebody holds the lock of its trunk; None where that cannot be told."""
    age = max(0.0, now - story.time)
    times = [story.started, *(p["time"] for p in story.points if p.get("time", 0) > story.started)]
    patience = max([PATIENCE, *(_TIMES * (b - a) for a, b in zip(times, times[1:], strict=False))])
    if locked is False and story.machine == this_machine():
        state = "stopped"
    else:  # another machine may not show its locks here
        state = "running" if locked or age < patience else "silent"
    running, done, spent = state == "running", story.step - story.start, story.time - story.started
    left = max(0.0, (story.run.steps - story.step) * spent / done - age) if running and done and spent > 0 else None
    speed = story.last("images_per_second") if running else None
    return Status(story.run, state, story.step, story.points, speed, left, age)


def _cell(run: Run) -> str:
    """The key of a run, whatever precision the machine was found to be faster in."""
    return replace(run, precision="fp32").key


def counts(found: Sequence[Status]) -> str:
    """`63 runs: 2 running, 12 finished, 49 to do`."""
    number = Counter(status.state for status in found)
    said = ", ".join(f"{number[state]} {state}" for state in STATES if number[state])
    return f"{len(found)} run{'s' * (len(found) != 1)}: {said}" if found else "no runs yet"


def row(status: Status) -> dict[str, str]:
    """A run as a line of the table."""
    run, state = status.run, status.state
    scoring = state == "running" and status.step == run.steps
    share = f"{status.step:,} of {run.steps:,} ({100 * status.step / max(1, run.steps):.0f} %)"
    losses = {f"{kind} loss": status.last(name) for name, kind in _LOSSES}
    return {
        "run": f"{short(run.model)}, {'all' if run.images is None else f'{run.images:,}'} images, seed {run.seed}",
        "state": "scoring" if scoring else state,
        "step": share if state in BUSY[:3] else f"{run.steps:,}",
        "images/s": "–" if status.speed is None else f"{status.speed:,.0f}",
        "time left": "–" if status.left is None or scoring else duration(status.left),
        **{name: "–" if value is None else f"{value:.4f}" for name, value in losses.items()},
        "last heard": "–" if status.age is None else f"{duration(status.age)} ago",
    }


def duration(seconds: float) -> str:
    """Seconds to read, as `clock`; from two days on `3.4 days`."""
    return clock(seconds) if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def text(found: Sequence[Status], *, every: bool = False) -> str:
    """The table for a terminal, and a line with what it counts. every: with what is finished and what is to do."""
    shown = [row(status) for status in found if every or status.state in BUSY]
    notes = [f"{status.run.key} failed: {status.reason}" for status in found if status.state == "failed"]
    if any(status.state in ("stopped", "silent") for status in found):
        notes.append("what was stopped goes on from its last checkpoint when the same command is run again")
    return "\n".join([*([preview_text(shown), ""] if shown else []), *notes, counts(found)])


def options(parser: argparse.ArgumentParser) -> None:
    """The options of `simmim-lite watch`."""
    parser.add_argument("--runs-dir", default="runs", help="the folder to look at (runs)")
    parser.add_argument("--once", action="store_true", help="print the table once; so does a pipe")
    parser.add_argument("--all", action="store_true", help="a line for finished runs too, and for those still to do")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (2)")
    parser.add_argument("--study", metavar="NAME", help="count what is still to do of a study, or of all")
    parser.add_argument("--tier", default="quick", help="of the study (quick)")
    parser.add_argument("--data", default="scenes", help="of the study (scenes)")
    parser.add_argument("--seeds", type=int, help="of the study; the tier's own number by default")


def show(arguments: argparse.Namespace) -> None:
    """`simmim-lite watch`: the table, in place on a terminal until Ctrl-C or until all that was planned is finished."""
    from ..studies.engine import planned

    if not arguments.every > 0:
        raise UserError(f"--every is {arguments.every:g}: give seconds above 0")
    if not Path(arguments.runs_dir).is_dir():
        raise UserError(f"{arguments.runs_dir}: no such folder; give the --runs-dir that the runs were started with")
    of = {"data": arguments.data, "seeds": arguments.seeds}
    watch = Watch(arguments.runs_dir, planned(arguments.study, arguments.tier, **of)[0] if arguments.study else ())
    if arguments.once or not sys.stdout.isatty():
        print(text(watch.look(), every=arguments.all))
        return
    try:
        while True:
            found = watch.look()
            width, height = shutil.get_terminal_size()
            lines = text(found, every=arguments.all).split("\n")
            lines = lines if len(lines) < height else [*lines[: height - 4], "…", *lines[-2:]]
            print("\x1b[H\x1b[J" + "\n".join(line[:width] for line in lines), flush=True)
            if watch.all_done(found):
                return
            time.sleep(arguments.every)
    except KeyboardInterrupt:
        print()  # the runs are somebody else's: leaving is no interruption


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
    from . import live

    watch, shown, watched = Watch(runs_dir, planned), live.Shown(), live.in_notebook() and not live.executed_unseen()
    if until is None and watched:
        return Monitor(watch, seconds).begin()
    try:
        while until is not None and not until():
            if watched:
                shown.draw(*bundles(watch.look()))
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not until():
                time.sleep(0.05)
    except KeyboardInterrupt:
        pass  # it ends the looking, and nothing else
    shown.draw(*bundles(watch.look()))
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
        Thread(target=self._follow, daemon=True).start()
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
            if self.watch.all_done(found):
                return

    def _draw(self, found: list[Status]) -> None:
        now, content = time.monotonic(), [(s.run.key, s.state, s.step, len(s.points)) for s in found]
        if content != self.drawn[1] or now - self.drawn[0] > _REST:
            self._show(bundles(found, f"looked at {time.strftime('%H:%M:%S')}"))
            self.drawn = now, content

    def _show(self, pictures: Sequence[dict]) -> None:
        if len(pictures) > 2:  # the page does not jump while the figure is drawn again
            self.output.layout.min_height = "470px"
        self.output.outputs = tuple({"output_type": "display_data", "data": p, "metadata": {}} for p in pictures)


def bundles(found: Sequence[Status], note: str = "") -> list[dict]:
    """A line of counts, the table, the curves: mime bundles, of those that there is something to show of."""
    said = " · ".join(filter(None, [f"**{counts(found)}**", note]))
    pictures = [{"text/markdown": said, "text/plain": said.replace("**", "")}]
    if found:
        pictures.append({"text/html": table(found), "text/plain": text(found, every=True)})
    if any(status.points for status in found):
        pictures.append(curves(found)._repr_mimebundle_())
    return pictures


def table(found: Sequence[Status]) -> str:
    """Runs as a table, in HTML: all that are in progress, then as many others as there is room for."""
    most = max(_LINES, sum(status.state in BUSY for status in found))
    shown, left = [row(status) for status in found], 'style="text-align:left;white-space:nowrap"'
    lines = ["".join(f"<th {left}>{escape(name)}</th>" for name in shown[0])]
    lines += ["".join(f"<td {left}>{escape(cell)}</td>" for cell in one.values()) for one in shown[:most]]
    if len(shown) > most:
        lines.append(f'<td {left} colspan="{len(shown[0])}">and {len(shown) - most} more</td>')
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="sl-scroll"><table class="sl-table">{body}</table></div>'


def curves(found: Sequence[Status]):
    """Losses against images seen, a panel a target, a colour a size: validation, and training of runs in progress."""
    import pandas as pd
    import plotly.express as px
    from plotly.graph_objects import Figure

    from ..evidence.drawing import COLOURS, TEMPLATE

    told, lines = [status for status in found if status.points], []
    past = [status for status in told if status.state == "finished"][-_CURVES:]
    for status in [*past, *(status for status in told if status.state != "finished")]:
        size = f"{short(status.run.model)} ({millions(SIZES[status.run.model].parameters)})"
        about = {"size": size, "panel": _TARGETS[status.run.target], "run": f"{row(status)['run']} ({status.state})"}
        finished = status.state == "finished"
        for name, kind in _LOSSES[finished:]:
            points = [p for p in status.points if p.get(name) is not None]
            about["curve"] = f"{kind}, {'finished' if finished else 'in progress'}"
            lines += [about | {"images seen": p["images_seen"], _LOSS: p[name], "step": p["step"]} for p in points]
    groups = {"color": "size", "line_dash": "curve", "line_group": "run", "facet_col": "panel"}
    style = {"color_discrete_sequence": COLOURS, "template": TEMPLATE, "markers": True}
    style["line_dash_map"] = {f"{kind}, in progress": "solid" for _, kind in _LOSSES} | {"validation, finished": "dot"}
    hover = {"hover_name": "run", "hover_data": ["step"]}
    chart = px.line(pd.DataFrame(lines), x="images seen", y=_LOSS, facet_col_spacing=0.12, **groups, **style, **hover)
    chart.for_each_trace(lambda t: t.update(line_width=1, marker_size=3) if "training" in t.name else None)
    chart.for_each_annotation(lambda a: a.update(text=a.text.partition("=")[2]))
    chart.update_xaxes(tickformat="~s", rangemode="tozero").update_yaxes(
        matches=None, showticklabels=True, title_text=_LOSS
    )
    return Figure(chart.update_layout(legend_title_text="", margin={"t": 40}))
