"""The journal of a run in progress: a file of lines that any reader follows while it trains. No torch here.

RUNS_DIR/running/KEY.jsonl has a line for every start of the run (a resumed one goes on in the same file) and one for
every point, at most about one a second. It is gone when there is a record, which has it all. What a kill leaves is
readable: a torn line is passed over.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from ..errors import first_line
from .run import Run, remove

JOURNAL_VERSION = 1
#: Seconds between two points of the training loss, at least.
EVERY = 1.0


class Writer(Protocol):
    """Who else is told what the journal is told (`writers.py`)."""

    name: str

    def start(self, step: int, curve: list[dict]) -> None:
        """The run begins after `step` steps; curve: the points it had by then, as a record's."""

    def point(self, point: dict) -> None:
        """A point of the training loss, or of the validation loss: step, images_seen and numbers by name."""

    def close(self, record: dict | None) -> None:
        """The run has ended: its record, or None where it was stopped or broke off."""


def journal_path(runs_dir: str | Path, key: str) -> Path:
    """Where the journal of a run in progress lies: RUNS_DIR/running/KEY.jsonl."""
    return Path(runs_dir) / "running" / f"{key}.jsonl"


def this_machine() -> str:
    """Eight hexadecimal digits that tell machines apart, and say nothing else about them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


class Journal:
    """Keeps the journal of a run, and tells the writers. `with Journal(…) as journal:`; the main process alone has one.

    Nothing that goes wrong here ends a run: it is said once on stderr. A full disk is tried again at the next point; a
    writer that fails is left out.
    """

    def __init__(
        self, runs_dir: str | Path, run: Run, *, device: str, processes: int = 1, writers: Iterable[Writer] = ()
    ) -> None:
        self.path, self.run, self.writers = journal_path(runs_dir, run.key), run, list(writers)
        self.where = {"pid": os.getpid(), "machine": this_machine(), "device": device, "processes": processes}
        self.record: dict | None = None  # set when there is one
        self.told, self.clock = 0, time.monotonic()  # the last point: its step, and when it was
        self.complained = False

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self._tell("close", self.record)

    def start(self, step: int, curve: list[dict]) -> None:
        """The run begins, or goes on, after `step` steps with the points that its curve has by then."""
        about = {"version": JOURNAL_VERSION, "run": self.run.to_dict(), "curve": curve}
        self._write({"start": step, **about, **self.where, "time": time.time()})
        self._tell("start", step, curve)
        self.told, self.clock = step, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a point of the training loss."""
        return time.monotonic() - self.clock >= EVERY

    def point(self, step: int, train_loss: float) -> None:
        """train_loss: the mean over the steps since the last point."""
        now = time.monotonic()
        speed = (step - self.told) * self.run.batch_size / max(1e-9, now - self.clock)
        self.told, self.clock = step, now
        self._put(step, {"train_loss": train_loss, "images_per_second": speed})

    def validated(self, step: int, val_loss: float) -> None:
        """The validation loss after `step` steps. The time it took is not the training's."""
        self.clock = time.monotonic()
        self._put(step, {"val_loss": val_loss})

    def _put(self, step: int, numbers: dict) -> None:
        point = {"step": step, "images_seen": step * self.run.batch_size, "lr": self.run.lr_at(step - 1), **numbers}
        self._write(point | {"time": time.time()})
        self._tell("point", point)

    def _write(self, line: dict) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                torn = file.tell() and (self.complained or "start" in line)  # what was there may end in half a line
                file.write(b"\n" * bool(torn) + json.dumps(line).encode() + b"\n")
        except OSError as error:
            if not self.complained:
                self.complained = True
                why = f"{error.strerror or error}; the run goes on, `watch` does not see it"
                print(f"simmim-lite: cannot write {self.path}: {why}", file=sys.stderr)

    def _tell(self, what: str, *said: object) -> None:
        for writer in list(self.writers):
            try:
                getattr(writer, what)(*said)
            except Exception as error:  # whatever another library raises, the run is worth more
                self.writers.remove(writer)
                said = f"{writer.name} is left out ({first_line(error)}); the run goes on"
                print(f"simmim-lite: {said}", file=sys.stderr)


def clear_journal(runs_dir: str | Path, key: str) -> None:
    """Delete the journal of a run that has its record."""
    remove(journal_path(runs_dir, key))


@dataclass
class Story:
    """What a journal says: the run, where it runs, and its points so far, by step."""

    run: Run
    start: int  # step that it last started after
    started: float  # when, seconds since 1970
    time: float  # of the last line
    device: str
    processes: int
    pid: int
    machine: str
    points: list[dict] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps done, as far as it was said."""
        return max([self.start, *(point["step"] for point in self.points)])

    def last(self, name: str) -> float | None:
        """The newest number of a name, or None."""
        return next((p[name] for p in reversed(self.points) if p.get(name) is not None), None)


def read_journal(path: str | Path) -> Story | None:
    """The story of a journal; None where there is none, or none that this version can read.

    Points beyond the step that a run went on from are taken again, so the older ones are dropped. Points that a
    branch took over from its trunk are those of its curve.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is torn
    except OSError:
        return None
    story = None
    for text in lines:
        try:
            line = json.loads(text)
            if "start" in line:
                story = _begin(line, story)
            elif story is not None:
                story.time = line["time"]
                story.points.append(line)
        except (ValueError, KeyError, TypeError):  # torn, or of another version
            continue
    return story


def _begin(line: dict, before: Story | None) -> Story | None:
    if line["version"] != JOURNAL_VERSION:
        return None
    points = [p for p in before.points if p["step"] <= line["start"]] if before else []
    known = {p["step"] for p in points if p.get("val_loss") is not None}
    points += [p for p in line["curve"] if p["step"] not in known]
    points.sort(key=lambda p: p["step"])
    where = {name: line[name] for name in ("device", "processes", "pid", "machine", "start", "time")}
    return Story(Run.from_dict(line["run"]), started=line["time"], points=points, **where)


def held(lock: str | Path) -> bool | None:
    """Whether a process holds a lock file now; None where that cannot be told."""
    try:
        if not Path(lock).exists():
            return False
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return None
