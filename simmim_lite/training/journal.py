"""The journal of a run in progress, a file of lines that any reader follows while it trains; TensorBoard and Weights &
Biases, who are told the same. No torch here.

RUNS_DIR/running/KEY.jsonl has a line for every start of the run (a resumed one goes on in the same file) and one for
every point, at most about one a second. It is gone when there is a record, which has it all.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import Everywhere, UserError, first_line, unknown
from .run import Run

JOURNAL_VERSION = 1
#: Seconds between two points of the training loss, at least.
EVERY = 1.0
_STEP = "images_seen"  # Weights & Biases' x axis: runs of different batches compare


def journal_path(runs_dir: str | Path, key: str) -> Path:
    """Where the journal of a run in progress lies."""
    return Path(runs_dir) / "running" / f"{key}.jsonl"


def this_machine() -> str:
    """Eight hexadecimal digits that tell machines apart, and say nothing else about them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


class Journal(contextlib.AbstractContextManager):
    """The callback that tells the writers of a run: the journal, and those named in `log`; the main process alone has
    one. A writer that fails is left out, which is said on stderr: nothing here ends a run."""

    def __init__(self, runs_dir: str | Path, run: Run, *, device: str, processes: int = 1, log: Iterable[str] = ()):
        self.run, self.path, self.record = run, journal_path(runs_dir, run.key), None  # the record, when there is one
        where = {"pid": os.getpid(), "machine": this_machine(), "device": device, "processes": processes}
        self.writers = [Lines(self.path, {"version": JOURNAL_VERSION, "run": run.to_dict(), **where})]
        self.writers += [WRITERS[name](Path(runs_dir), run) for name in dict.fromkeys(log)]
        self.last, self.clock = 0, time.monotonic()  # the last point: its step, and when it was

    def __exit__(self, *error: object) -> None:
        self._tell("close", self.record)

    def on_train_start(self, training) -> None:
        self.start(training.step, training.curve)

    def on_step_end(self, training) -> None:
        if training.at_point() or (training.looks() and time.monotonic() - self.clock >= EVERY):
            self.point(training.step, training.losses[self.last : training.step].mean().item())

    def on_validation_end(self, training, val_loss: float) -> None:
        self.validated(training.step, val_loss)

    def start(self, step: int, curve: list[dict]) -> None:
        """The run begins, or goes on, after `step` steps with the points that its curve has by then."""
        self._tell("start", step, curve)
        self.last, self.clock = step, time.monotonic()

    def point(self, step: int, train_loss: float) -> None:
        """The training loss after `step` steps, the mean since the last point."""
        now = time.monotonic()
        speed = (step - self.last) * self.run.batch_size / max(1e-9, now - self.clock)
        self.last, self.clock = step, now
        self._put(step, {"train_loss": train_loss, "images_per_second": speed})

    def validated(self, step: int, val_loss: float) -> None:
        """The validation loss after `step` steps. The time it took is not the training's."""
        self.clock = time.monotonic()
        self._put(step, {"val_loss": val_loss})

    def _put(self, step: int, numbers: dict) -> None:
        about = {"step": step, "images_seen": step * self.run.batch_size, "lr": self.run.lr_at(step - 1)}
        self._tell("point", about | numbers)

    def _tell(self, what: str, *arguments: object) -> None:
        for writer in list(self.writers):
            try:
                getattr(writer, what)(*arguments)
            except Exception as error:  # whatever another library raises, the run is worth more
                self.writers.remove(writer)
                said = f"{type(writer).__name__} is left out ({first_line(error)}); the run goes on"
                print(f"simmim-lite: {said}", file=sys.stderr)


class Lines:
    """The journal's file; about: what a start says beside its step and curve."""

    def __init__(self, path: Path, about: dict) -> None:
        self.path, self.about = path, about

    def start(self, step: int, curve: list[dict]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # what was there may end in half a line
        self.point({"start": step, "curve": curve, **self.about}, torn=self.path.exists())

    def point(self, point: dict, torn: bool = False) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(b"\n" * torn + json.dumps(point | {"time": time.time()}).encode() + b"\n")

    def close(self, record: dict | None) -> None: ...


@dataclass
class InProgress:
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


def read_journal(path: str | Path) -> InProgress | None:
    """What a journal says; None where there is none, or none that this version can read.

    Points beyond the step that a run went on from are taken again, so the older ones are dropped. Points that a
    branch took over from its trunk are those of its curve. A torn line is passed over.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is torn
    except OSError:
        return None
    found, points = None, []
    for text in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # torn, or of another version
            line = json.loads(text)
            if "start" in line:
                found = None
                if line["version"] == JOURNAL_VERSION:
                    points = [p for p in points if p["step"] <= line["start"]]
                    known = {p["step"] for p in points if p.get("val_loss") is not None}
                    points += [p for p in line["curve"] if p["step"] not in known]
                    points.sort(key=lambda p: p["step"])
                    about = {name: line[name] for name in ("device", "processes", "pid", "machine", "start", "time")}
                    found = InProgress(Run.from_dict(line["run"]), started=line["time"], points=points, **about)
            elif found is not None:
                found.time = line["time"]
                points.append(line)
    return found


def held(lock: str | Path) -> bool | None:
    """Whether a process holds a lock file now; None where that cannot be told."""
    try:
        if Path(lock).exists():
            with FileLock(lock, timeout=0):
                pass
        return False
    except Timeout:
        return True
    except OSError:
        return None


class TensorBoard:
    """Scalars in RUNS_DIR/tensorboard/KEY, by step; a resumed run overwrites what it takes again."""

    def __init__(self, runs_dir: Path, run: Run) -> None:
        self.folder, self.run, self.writer = runs_dir / "tensorboard" / run.key, run, None

    def start(self, step: int, curve: list[dict]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first = not any(self.folder.glob("events*"))
        self.writer = SummaryWriter(str(self.folder), purge_step=None if first else step + 1, flush_secs=10)
        if first:
            self.writer.add_text("run", "\n".join(f"    {name}: {v}" for name, v in self.run.to_dict().items()))
            for point in curve:  # of the trunk that this run branches off
                self.point(point)
            self.writer.flush()

    def point(self, point: dict) -> None:
        for name, value in _numbers(point).items():
            self.writer.add_scalar(name, value, point["step"])

    def close(self, record: dict | None) -> None:
        if self.writer is not None:
            for name, score in _scores(record).items():
                self.writer.add_scalar(name, score, self.run.steps)
            self.writer.close()


class WandB:
    """A run of project `simmim-lite` with the id KEY; WANDB_MODE, WANDB_DIR and the rest are the user's own."""

    def __init__(self, runs_dir: Path, run: Run) -> None:
        self.folder, self.run, self.session = runs_dir, run, None

    def start(self, step: int, curve: list[dict]) -> None:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        how = {"project": os.environ.get("WANDB_PROJECT", "simmim-lite")}
        how |= {} if "WANDB_DIR" in os.environ else {"dir": str(self.folder)}
        how |= {"id": self.run.key, "name": self.run.key, "config": self.run.to_dict(), "resume": "allow"}
        quiet = wandb.Settings(silent=True, console="off", init_timeout=60, login_timeout=10)
        self.session = wandb.init(**how, settings=quiet)
        self.session.define_metric("*", step_metric=_STEP)
        for point in () if self.session.resumed else curve:
            self.point(point)

    def point(self, point: dict) -> None:
        self.session.log({_STEP: point["images_seen"], "step": point["step"], **_numbers(point)})

    def close(self, record: dict | None) -> None:
        """Leave the scores as the summary. A run that was stopped goes on under the same id."""
        if self.session is not None:
            self.session.summary.update(_scores(record))
            self.session.finish(exit_code=0 if record and record["status"] == "done" else 1)


#: Who may be told what the journal is told: start(step, curve), point(point), close(record or None).
WRITERS: dict[str, Callable] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_writers(names: Sequence[str]) -> None:
    """`UserError` for a writer that is unknown or not installed."""
    if isinstance(names, str):
        raise UserError(f"log is '{names}': give a list, as in log=['{names}']")
    for name in names:
        if name not in WRITERS:
            raise unknown("log", name, WRITERS)
        if importlib.util.find_spec(name) is None:
            raise Everywhere(f"log {name}: {name} is not installed; pip install {name} (or 'simmim-lite[log]')")


def _numbers(point: dict) -> dict[str, float]:
    """The numbers of a point, without what says where it lies; none that are missing."""
    return {k: v for k, v in point.items() if k not in ("step", "images_seen", "time") and v is not None}


def _scores(record: dict | None) -> dict[str, float]:
    """The last numbers of a finished run: `probe/linear` and the like."""
    scores = record["transfer"] if record and record["status"] == "done" else {}
    return {f"probe/{name}": score["score"] for name, score in scores.items()}
