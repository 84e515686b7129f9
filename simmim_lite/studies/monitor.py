"""What a runs folder is doing now: runs that are trained, that were stopped, finished, or still to do. No torch here.

Read from the files alone, so any process may look at any time, and nothing that trains has to know of it.
"""

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import UserError
from ..evidence.records import short
from ..training.journal import Story, held, read_journal, this_machine
from ..training.run import Run, read_record
from .collecting import clock, preview_text

#: In the order of a table. silent: on another machine, and nothing has come for a while.
STATES = ("running", "silent", "stopped", "failed", "finished", "to do")
#: Seconds without a line after which a run on another machine is called silent: at least these, else so many times
#: the longest wait it had before.
PATIENCE, _TIMES = 120.0, 5.0


@dataclass(frozen=True)
class Seen:
    """A run as it stands."""

    run: Run
    state: str  # of STATES
    step: int = 0  # steps done, as far as is known
    points: list[dict] = field(default_factory=list)  # step, images_seen; train_loss, val_loss where they were taken
    speed: float | None = None  # images a second at the last point
    left: float | None = None  # seconds of training at the pace since it was started
    age: float | None = None  # seconds since its last line
    where: str = ""  # device and processes
    reason: str = ""  # why it failed

    def last(self, name: str) -> float | None:
        """The newest loss of a name, or None."""
        return next((p[name] for p in reversed(self.points) if p.get(name) is not None), None)


class Watch:
    """Looks at a runs folder again and again: a file is read again only when it has changed.

    planned: runs that are expected; those that are not there yet are `to do`, whatever their precision.
    """

    def __init__(self, runs_dir: str | Path = "runs", planned: Iterable[Run] = ()) -> None:
        self.runs_dir, self.planned = Path(runs_dir), list(planned)
        self._known: dict[Path, tuple[tuple[int, int], object]] = {}

    def look(self) -> list[Seen]:
        """All runs now, in the order of `STATES`; within it by size, images, steps and seed.

        `UserError`, naming the file, for a record that is not whole.
        """
        now, found = time.time(), {}
        for path in sorted((self.runs_dir / "records").glob("*.json")):
            record = self._read(path, read_record)
            if record is not None and record.get("kind") == "pretrain":
                found[record["key"]] = _finished(record)
        stories = [(path, self._read(path, read_journal)) for path in (self.runs_dir / "running").glob("*.jsonl")]
        stories = [(path, story) for path, story in stories if story is not None]
        newest = {}  # of the journals of one trunk, only the one that was written last can be in progress
        for path, story in sorted(stories, key=lambda pair: pair[1].time):
            newest[story.run.trunk_key] = path
        for path, story in stories:
            locked = held(self.runs_dir / "locks" / f"{story.run.trunk_key}.lock")
            seen = _in_progress(story, now, locked if newest[story.run.trunk_key] == path else False)
            if path.stem not in found or seen.state == "running":
                found[path.stem] = seen
        there = {_cell(seen.run) for seen in found.values()}
        todo = [Seen(run, "to do") for run in self.planned if _cell(run) not in there]
        return sorted([*found.values(), *todo], key=_place)

    def _read(self, path: Path, read) -> object:
        try:
            status = path.stat()
        except OSError:
            return None  # removed since the folder was listed
        mark = status.st_mtime_ns, status.st_size
        if self._known.get(path, (None,))[0] != mark:
            self._known[path] = mark, read(path)
        return self._known[path][1]


def counts(found: Sequence[Seen]) -> str:
    """`63 runs: 2 running, 12 finished, 49 to do`."""
    number = Counter(seen.state for seen in found)
    said = ", ".join(f"{number[state]} {state}" for state in STATES if number[state])
    return f"{len(found)} run{'s' * (len(found) != 1)}: {said}" if found else "no runs yet"


def rows(found: Sequence[Seen], states: Sequence[str] = STATES) -> list[dict[str, str]]:
    """Runs as text, a line each."""
    return [_line(seen) for seen in found if seen.state in states]


def text(found: Sequence[Seen], *, every: bool = False) -> str:
    """The table for a terminal, and a line with what it counts. every: with what is finished and what is to do."""
    shown = rows(found, STATES if every else STATES[:4])
    failures = [f"{seen.run.key} failed: {seen.reason}" for seen in found if seen.state == "failed"]
    stopped = any(seen.state in ("stopped", "silent") for seen in found)
    go_on = ["what was stopped goes on from its last checkpoint when the same command is run again"] if stopped else []
    return "\n".join([*([preview_text(shown), ""] if shown else []), *failures, *go_on, counts(found)])


def show(arguments: argparse.Namespace) -> None:
    """`simmim-lite watch`: the table, in place on a terminal until Ctrl-C or until all that was planned is finished."""
    if not arguments.every > 0:
        raise UserError(f"--every is {arguments.every:g}: give seconds above 0")
    if not Path(arguments.runs_dir).is_dir():
        raise UserError(f"{arguments.runs_dir}: no such folder; give the --runs-dir that the runs were started with")
    planned = []
    if arguments.study:
        from .transfer_grid import planned as planned_of

        planned = planned_of(arguments.study, arguments.tier, data=arguments.data, seeds=arguments.seeds)[0]
    watch = Watch(arguments.runs_dir, planned)
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
            if planned and all(seen.state in ("finished", "failed") for seen in found):
                return
            time.sleep(arguments.every)
    except KeyboardInterrupt:
        print()  # the runs are somebody else's: leaving is no interruption


def duration(seconds: float) -> str:
    """Seconds to read, as `clock`; from two days on `3.4 days`."""
    return clock(seconds) if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _finished(record: dict) -> Seen:
    run, failed = Run.from_dict(record["run"]), record["status"] == "failed"
    points = [] if failed else record["curve"]
    return Seen(
        run,
        "failed" if failed else "finished",
        0 if failed else run.steps,
        points,
        where=_where(record["where"].get("device", ""), record["where"].get("processes", 1)),
        reason=record["reason"] or "",
    )


def _in_progress(story: Story, now: float, locked: bool | None) -> Seen:
    """locked: whether somebody holds the lock of its trunk; None where that cannot be told."""
    age = max(0.0, now - story.time)
    if locked:
        state = "running"
    elif locked is False and story.machine == this_machine():
        state = "stopped"
    else:  # another machine may not show its locks here
        state = "running" if age < _patience(story) else "silent"
    done, spent = story.step - story.start, story.time - story.started
    left = None
    if state == "running" and done and spent > 0:
        left = max(0.0, (story.run.steps - story.step) * spent / done - age)
    where = _where(story.device, story.processes)
    speed = story.last("images_per_second") if state == "running" else None
    return Seen(story.run, state, story.step, story.points, speed, left, age, where)


def _patience(story: Story) -> float:
    times = [story.started, *(p["time"] for p in story.points if p.get("time", 0) > story.started)]
    return max([PATIENCE, *(_TIMES * (b - a) for a, b in zip(times, times[1:], strict=False))])


def _where(device: str, processes: int) -> str:
    return f"{processes} × {device}" if processes > 1 else device


def _cell(run: Run) -> str:
    """The key of a run, whatever precision the machine was found to be faster in."""
    return replace(run, precision="fp32").key


def _place(seen: Seen) -> tuple:
    from ..model.sizes import SIZES

    run = seen.run
    parameters, images = SIZES[run.model].parameters, run.images or float("inf")
    return STATES.index(seen.state), run.data, parameters, images, run.steps, run.seed, run.key


def _line(seen: Seen) -> dict[str, str]:
    run = seen.run
    images = "all" if run.images is None else f"{run.images:,}"
    scoring = seen.state == "running" and seen.step == run.steps
    return {
        "run": f"{short(run.model)}, {images} images, seed {run.seed}",
        "state": "scoring" if scoring else seen.state,
        "step": _step(seen),
        "images/s": "–" if seen.speed is None else f"{seen.speed:,.0f}",
        "time left": "–" if seen.left is None or scoring else duration(seen.left),
        "training loss": _loss(seen.last("train_loss")),
        "validation loss": _loss(seen.last("val_loss")),
        "last heard": "–" if seen.age is None else f"{duration(seen.age)} ago",
    }


def _step(seen: Seen) -> str:
    if seen.state in ("finished", "failed", "to do"):
        return f"{seen.run.steps:,}"
    return f"{seen.step:,} of {seen.run.steps:,} ({100 * seen.step / max(1, seen.run.steps):.0f} %)"


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
