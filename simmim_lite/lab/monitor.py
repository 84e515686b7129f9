"""What a runs folder is doing now: runs that are trained, that were stopped, finished, or still to do. No torch here.

Read from the files alone, so any process may look at any time, whoever trains: this kernel, a terminal, a cluster that
shares the folder. `simmim-lite watch` shows the table in a terminal, `monitor()` table and curves in a notebook."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pandas as pd

from ..errors import UserError
from ..evidence.records import millions, short
from ..model.sizes import SIZES
from ..studies.costs import clock
from ..studies.grids import planned as planned_runs
from ..training.callbacks import held, read_journal, this_machine
from ..training.run import Run, read_record

#: In the order of a table. silent: on another machine, and nothing has come for PATIENCE seconds.
STATES = ("running", "silent", "stopped", "failed", "finished", "to do")
BUSY, PATIENCE = STATES[:4], 600.0
LOSSES = {"train_loss": "training", "val_loss": "validation"}
CURVES = 24  # finished runs whose curves are drawn, at most
EVERY = 2.0  # seconds between two looks of `watch`
_BLANK = {"step": 0, "points": [], "speed": None, "left": None, "age": None, "reason": ""}


def look(runs_dir: str | Path = "runs", planned: Iterable[Run] = ()) -> pd.DataFrame:
    """The runs of a folder now, one a row, by state and then by size, images, steps and seed.

    Columns: key, run, name, state (of STATES), step, points (of the curve), speed (images a second), left and age
    (seconds of training at its pace, and since its last line), reason (why it failed). planned: runs that are expected;
    those that are not there are `to do`, whatever their precision. `UserError`, naming it, for a broken record."""
    rows = {}
    for path in sorted(Path(runs_dir, "records").glob("*.json")):
        record = read_record(path) or {}
        if record.get("kind") == "pretrain":
            done, run = record["status"] == "done", Run.from_dict(record["run"])
            about = {"step": run.steps, "points": record["curve"]} if done else {"reason": record["reason"]}
            rows[run.key] = {"run": run, "state": "finished" if done else "failed"} | about
    paths = sorted(Path(runs_dir, "running").glob("*.jsonl"))
    journals = sorted(filter(None, map(read_journal, paths)), key=lambda journal: journal.time)
    newest = {journal.run.trunk_key: journal for journal in journals}  # of a trunk's runs it alone can be in progress
    for journal in journals:
        trunk = journal.run.trunk_key
        locked = held(Path(runs_dir, "locks", f"{trunk}.lock")) if newest[trunk] is journal else False
        row = _in_progress(journal, locked)
        if journal.run.key not in rows or row["state"] == "running":
            rows[journal.run.key] = row
    there = {replace(row["run"], precision="fp32").key for row in rows.values()}
    rows |= {r.key: {"run": r, "state": "to do"} for r in planned if replace(r, precision="fp32").key not in there}

    def place(row: dict) -> tuple:
        run = row["run"]
        size = SIZES[run.model].parameters, run.images or float("inf")
        return STATES.index(row["state"]), run.data, *size, run.steps, run.seed, run.key

    lines = []
    for row in sorted(rows.values(), key=place):
        run = row["run"]
        images = "all" if run.images is None else f"{run.images:,}"
        lines.append(_BLANK | row | {"key": run.key, "name": f"{short(run.model)}, {images} images, seed {run.seed}"})
    return pd.DataFrame(lines, columns=["key", "run", "name", "state", *_BLANK], dtype=object)


def _in_progress(journal, locked: bool | None) -> dict:
    """A run that has a journal; locked: whether somebody holds the lock of its trunk, None where that is unknown."""
    age = max(0.0, time.time() - journal.time)
    if locked is False and journal.machine == this_machine():
        state = "stopped"
    else:  # another machine may not show its locks here
        state = "running" if locked or age < PATIENCE else "silent"
    row = {"run": journal.run, "state": state, "step": journal.step, "points": journal.points, "age": age}
    done, spent = journal.step - journal.start, journal.time - journal.started
    if state == "running" and done and spent > 0:
        row["speed"] = last(journal.points, "images_per_second")
        row["left"] = max(0.0, (journal.run.steps - journal.step) * spent / done - age)
    return row


def last(points: Sequence[dict], name: str) -> float | None:
    """The newest number of a name on a curve, or None."""
    return next((point[name] for point in reversed(points) if point.get(name) is not None), None)


def counts(found: pd.DataFrame) -> str:
    """`63 runs: 2 running, 12 finished, 49 to do`."""
    said = ", ".join(f"{n} {state}" for state in STATES if (n := int((found["state"] == state).sum())))
    return f"{len(found)} run{'s' * (len(found) != 1)}: {said}" if len(found) else "no runs yet"


def table(found: pd.DataFrame) -> pd.DataFrame:
    """The runs as they are read: texts."""
    steps = [run.steps for run in found["run"]]
    scoring = (found["state"] == "running") & (found["step"] == steps)
    rows = zip(found["step"], steps, found["state"], strict=True)
    share = [f"{n:,} of {t:,} ({100 * n / max(1, t):.0f} %)" if s in BUSY[:3] else f"{t:,}" for n, t, s in rows]
    shown = {"run": found["name"], "state": found["state"].mask(scoring, "scoring"), "step": share}
    shown["images/s"] = found["speed"].map("{:,.0f}".format, "ignore")
    shown["time left"] = found["left"].mask(scoring).map(clock, "ignore")
    for name, kind in LOSSES.items():
        shown[f"{kind} loss"] = found["points"].map(partial(last, name=name)).map("{:.4f}".format, "ignore")
    shown["silent for"] = found["age"].map(clock, "ignore")
    return pd.DataFrame(shown).fillna("–")


def text(found: pd.DataFrame) -> str:
    """What is in progress or failed as a table for a terminal, and a line that counts all."""
    shown, failed = found[found["state"].isin(BUSY)], found[found["state"] == "failed"]
    notes = [f"{row.key} failed: {row.reason}" for row in failed.itertuples()]
    if found["state"].isin(["stopped", "silent"]).any():
        notes.append("what was stopped goes on from its last checkpoint when the same command is run again")
    return "\n".join([*([table(shown).to_string(index=False), ""] if len(shown) else []), *notes, counts(found)])


def all_done(found: pd.DataFrame, planned: Iterable[Run]) -> bool:
    """Whether something was planned, and nothing is left to wait for."""
    return bool(planned) and bool(found["state"].isin(["finished", "failed"]).all())


def show(runs_dir: str, study: str | None, **options: object) -> None:
    """`simmim-lite watch`: the table, in place on a terminal until Ctrl-C or until all that was planned is finished."""
    if not Path(runs_dir).is_dir():
        raise UserError(f"{runs_dir}: no such folder; give the --runs-dir that the runs were started with")
    runs = planned_runs(study, **options)[0] if study else ()
    if not sys.stdout.isatty():
        return print(text(look(runs_dir, runs)))
    try:
        found = None
        while found is None or not all_done(found, runs):
            time.sleep(0 if found is None else EVERY)
            found = look(runs_dir, runs)
            width, height = shutil.get_terminal_size()
            lines = text(found).split("\n")
            lines = lines if len(lines) < height else [*lines[: height - 4], "…", *lines[-2:]]
            print("\x1b[H\x1b[J" + "\n".join(line[:width] for line in lines), flush=True)
    except KeyboardInterrupt:
        print()  # the runs are somebody else's: leaving is no interruption


_over = Event()  # ends the picture that is drawn again and again: there is one in a kernel


def monitor(
    runs_dir: str | Path = "runs",
    *,
    planned: Iterable[Run] = (),
    seconds: float = 3.0,
    until: Callable[[], bool] | None = None,
) -> None:
    """Show what RUNS_DIR holds and what is trained in it now; planned: runs that are expected.

    In JupyterLab the cell ends at once and the picture goes on by itself, every `seconds` where something is new: until
    the next monitor, the end of the kernel, or all that was planned is finished. With `until` the cell stays until that
    is true or it is interrupted. Where nobody looks (papermill, a script) it is drawn once."""
    global _over
    from . import live

    planned, draw = list(planned), lambda *pictures: live.Shown().draw(*pictures)
    _over.set()
    over = _over = Event()
    if live.in_notebook() and not live.executed_unseen():
        draw = _picture()
        Thread(target=_follow, args=(draw, runs_dir, planned, seconds, over), daemon=True).start()
    elif until is None:
        over.set()
    try:
        while until is not None and not until():
            time.sleep(0.05)
    except KeyboardInterrupt:
        pass  # it ends the looking, and nothing else
    if until is not None or over.is_set():
        over.set()
        draw(*bundles(look(runs_dir, planned)))


def _picture() -> Callable:
    """An output of this cell whose content a thread may replace: a function of mime bundles."""
    import ipywidgets
    from IPython.display import display

    output = ipywidgets.Output()
    display(output)

    def draw(*pictures: dict) -> None:
        if len(pictures) > 2:  # the page does not jump while the figure is drawn again
            output.layout.min_height = "470px"
        output.outputs = tuple({"output_type": "display_data", "data": p, "metadata": {}} for p in pictures)

    return draw


def _follow(draw: Callable, runs_dir: str | Path, planned: Sequence[Run], seconds: float, over: Event) -> None:
    """Draw where something is new, until it is over or nothing is left to wait for."""
    drawn, finished = None, False
    while not finished:
        try:
            found = look(runs_dir, planned)
            if (content := [(r.key, r.state, r.step, len(r.points)) for r in found.itertuples()]) != drawn:
                draw(*bundles(found))
                drawn = content
            finished = all_done(found, planned)
        except ValueError as error:  # a record that is not whole: named, and looked at again
            draw({"text/plain": str(error)})
        finished = over.wait(0 if finished else seconds) or finished


def bundles(found: pd.DataFrame) -> list[dict]:
    """A line of counts, the table, the curves: mime bundles, of those that there is something to show of."""
    pictures = [{"text/markdown": f"**{counts(found)}**", "text/plain": counts(found)}]
    if len(found):
        html = table(found).to_html(index=False, border=0, classes="sl-table", justify="left")
        html = html.replace("<td>", '<td style="text-align:left;white-space:nowrap">')
        html = f'<div style="max-height:420px;overflow:auto">{html}</div>'
        pictures.append({"text/html": html, "text/plain": text(found)})
    if found["points"].map(len).any():
        pictures.append(curves(found)._repr_mimebundle_())
    return pictures


def curves(found: pd.DataFrame):
    """Losses against images seen, a panel a target, a colour a size: validation, and training of runs in progress."""
    import plotly.express as px

    from ..evidence.drawing import COLOURS, TEMPLATE

    loss, lines, finished = "loss on hidden pixels", [], found["state"] == "finished"
    for row in pd.concat([found[finished][-CURVES:], found[~finished]]).to_dict("records"):
        model, over = row["run"].model, row["state"] == "finished"
        about = {"size": f"{short(model)} ({millions(SIZES[model].parameters)})"}
        about |= {"panel": f"{row['run'].target} target (L1)", "run": f"{row['name']} ({row['state']})"}
        for point in row["points"]:
            at = about | {"images seen": point["images_seen"], "step": point["step"]}
            for name, kind in list(LOSSES.items())[over:]:
                if point.get(name) is not None:
                    curve = f"{kind}, {'finished' if over else 'in progress'}"
                    lines.append(at | {"curve": curve, loss: point[name]})
    dashes = {"training, in progress": "solid", "validation, in progress": "solid", "validation, finished": "dot"}
    groups = {"color": "size", "line_dash": "curve", "line_group": "run", "facet_col": "panel", "hover_name": "run"}
    style = {"line_dash_map": dashes, "color_discrete_sequence": COLOURS, "template": TEMPLATE, "markers": True}
    data = pd.DataFrame(lines)
    chart = px.line(data, x="images seen", y=loss, facet_col_spacing=0.12, hover_data=["step"], **groups, **style)
    chart.for_each_trace(lambda t: t.update(line_width=1, marker_size=3) if "training" in t.name else None)
    chart.for_each_annotation(lambda a: a.update(text=a.text.partition("=")[2]))
    chart.update_xaxes(tickformat="~s", rangemode="tozero")
    chart.update_yaxes(matches=None, showticklabels=True, title_text=loss)
    return chart.update_layout(legend_title_text="", margin={"t": 40})
