"""What a runs folder is doing now: runs that are trained, that were stopped, finished, or still to do. No torch here.

Read from the files alone, so any process may look at any time, whoever trains: this machine, or a cluster that shares
the folder. `simmim-lite watch` shows the table in a terminal, `table(look(RUNS_DIR))` in a notebook."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from ..errors import UserError, printable
from ..files import entries, held
from ..model.sizes import SIZES, short
from ..processes import tell
from ..studies.costs import clock
from ..studies.engine import choose
from ..studies.grids import planned as planned_runs
from ..studies.tiers import StudyName, StudyOptions
from ..training.callbacks import read_journal, this_machine
from ..training.record import run_of, usable
from ..training.run import Run
from ..training.specs import value

#: In the order of a table. silent: on another machine, and nothing has come for PATIENCE seconds.
STATES = ("running", "silent", "stopped", "failed", "finished", "to do")
BUSY, PATIENCE = STATES[:4], 600.0
EVERY = 2.0  # seconds between two looks of `watch`
_BLANK = {"step": 0, "points": [], "speed": None, "left": None, "age": None, "reason": ""}


def look(runs_dir: str | Path = "runs", planned: Iterable[Run] = (), say: Callable = tell) -> pd.DataFrame:
    """The runs of a folder now, one a row, by state and then by size, images, steps and seed.

    Columns: key, run, name, state (of STATES), step, points (of the curve), speed (images a second), left and age
    (seconds of training at its pace, and since its last line), reason (why it failed). planned: runs that are expected;
    those that are not there are `to do`, whatever their precision. say: gets a line for a record that is passed over.
    """
    rows = {}
    for record in usable(entries(Path(runs_dir, "records"), "*.json"), say):
        if record["kind"] == "pretrain":
            done, run = record["status"] == "done", run_of(record["run"])
            about = {"step": run.steps, "points": record["curve"]} if done else {"reason": record["reason"]}
            rows[run.key] = {"run": run, "state": "finished" if done else "failed"} | about
    paths = entries(Path(runs_dir, "running"), "*.jsonl")
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
    state = "running" if locked or age < PATIENCE else "silent"
    if locked is False and journal.machine == this_machine():  # another machine may not show its locks here
        state = "stopped"
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
    for name, kind in (("train_loss", "training"), ("val_loss", "validation")):
        shown[f"{kind} loss"] = found["points"].map(partial(last, name=name)).map("{:.4f}".format, "ignore")
    shown["silent for"] = found["age"].map(clock, "ignore")
    return pd.DataFrame(shown).fillna("–")


def text(found: pd.DataFrame, notes: Iterable[str] = ()) -> str:
    """What is in progress or failed as a table for a terminal, notes, and a line that counts all."""
    shown, failed = found[found["state"].isin(BUSY)], found[found["state"] == "failed"]
    notes = [*notes, *(f"{row.key} failed: {row.reason}" for row in failed.itertuples())]
    if found["state"].isin(["stopped", "silent"]).any():
        notes.append("what was stopped goes on from its last checkpoint when the same command is run again")
    shown = [table(shown).to_string(index=False), ""] if len(shown) else []
    return "\n".join([*shown, *map(printable, notes), counts(found)])


def show(runs_dir: str, study: str | None, first_seed: int | None, hours: float | None, **options: object) -> None:
    """`simmim-lite watch`: the table, in place on a terminal until Ctrl-C or until all that was planned is finished.

    With the options of the study that is watched it expects the same runs, by what was measured in the folder."""
    if not Path(runs_dir).is_dir():
        raise UserError(f"{runs_dir}: no such folder; give the --runs-dir that the runs were started with")
    runs, how = (), StudyOptions.of_texts(options | {"runs_dir": runs_dir}, hours=hours)
    usual = vars(StudyOptions(runs_dir=runs_dir)) | {"first_seed": None, "hours": None}
    asked = vars(how) | {"first_seed": first_seed, "hours": hours} | ({} if hours is None else {"minutes": None})
    if not study and (given := [name for name, one in asked.items() if one != usual[name]]):
        raise UserError(f"{', '.join(given)} would be about a study, and none is named: add --study, as in --study all")
    if study:
        how = choose(value("study", StudyName, study), how, first_seed=first_seed, measure=False)[0]
        runs = planned_runs(study, how.axes, data=how.data, seeds=how.seeds)[0]
    if not sys.stdout.isatty():
        return print(text(look(runs_dir, runs)))
    try:
        found = None
        while found is None or not runs or not found["state"].isin(["finished", "failed"]).all():
            time.sleep(0 if found is None else EVERY)
            notes = []
            found = look(runs_dir, runs, notes.append)
            width, height = shutil.get_terminal_size()
            lines = text(found, notes).split("\n")
            lines = lines if len(lines) < height else [*lines[: height - 4], "…", *lines[-2:]]
            print("\x1b[H\x1b[J" + "\n".join(line[:width] for line in lines), flush=True)
    except KeyboardInterrupt:
        print()  # the runs are somebody else's: leaving is no interruption
