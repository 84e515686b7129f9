"""TensorBoard and Weights & Biases as readers of a run: they are told what the journal is told. No torch until then."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..errors import Everywhere, UserError, unknown
from .run import Run

PROJECT = "simmim-lite"  # of Weights & Biases
_STEP = "images_seen"  # their x axis there: runs of different batches compare
_OFFLINE = ("offline", "dryrun", "disabled", "shared")


class TensorBoard:
    """Scalars in RUNS_DIR/tensorboard/KEY, by step; a resumed run overwrites what it takes again."""

    name = "tensorboard"

    def __init__(self, runs_dir: str | Path, run: Run) -> None:
        self.folder, self.run, self.writer = Path(runs_dir) / "tensorboard" / run.key, run, None

    def start(self, step: int, curve: list[dict]) -> None:
        """Open the file of events; what an earlier part of the run said beyond `step` is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        first = not any(self.folder.glob("events*"))
        self.writer = SummaryWriter(str(self.folder), purge_step=None if first else step + 1, flush_secs=10)
        if first:
            fields = "\n".join(f"    {name}: {value}" for name, value in self.run.to_dict().items())
            self.writer.add_text("run", fields)
            for point in curve:  # of the trunk that this run branches off
                self.point(point)
            self.writer.flush()

    def point(self, point: dict) -> None:
        """A scalar for each number."""
        for name, value in _numbers(point).items():
            self.writer.add_scalar(name, value, point["step"])

    def close(self, record: dict | None) -> None:
        """Write all that was told."""
        if self.writer is not None:
            for name, score in _scores(record).items():
                self.writer.add_scalar(name, score, self.run.steps)
            self.writer.close()


class WandB:
    """A run of project `simmim-lite` with the id KEY; WANDB_MODE, WANDB_DIR and the rest are the user's own."""

    name = "wandb"

    def __init__(self, runs_dir: str | Path, run: Run) -> None:
        self.folder, self.run, self.session = Path(runs_dir), run, None

    def start(self, step: int, curve: list[dict]) -> None:
        """Begin, or go on with, the run of this id."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        place = {"project": os.environ.get("WANDB_PROJECT", PROJECT)}
        if "WANDB_DIR" not in os.environ:
            place["dir"] = str(self.folder)
        quiet = wandb.Settings(silent=True, console="off", init_timeout=60)
        about = {"id": self.run.key, "name": self.run.key, "config": self.run.to_dict()}
        self.session = wandb.init(**place, **about, resume="allow", settings=quiet)
        self.session.define_metric("*", step_metric=_STEP)
        if not self.session.resumed:
            for point in curve:
                self.point(point)

    def point(self, point: dict) -> None:
        """One row."""
        self.session.log({_STEP: point["images_seen"], "step": point["step"], **_numbers(point)})

    def close(self, record: dict | None) -> None:
        """Leave the scores as the summary. A run that was stopped goes on under the same id."""
        if self.session is not None:
            self.session.summary.update(_scores(record))
            self.session.finish(exit_code=0 if record and record["status"] == "done" else 1)


_KINDS: dict[str, Callable] = {"tensorboard": TensorBoard, "wandb": WandB}
WRITERS = tuple(_KINDS)


def check_writers(names: Sequence[str]) -> None:
    """`UserError` for a writer that is unknown, is not installed, or would have to ask who you are."""
    if isinstance(names, str):
        raise UserError(f"log is '{names}': give a list, as in log=['{names}']")
    for name in names:
        if name not in _KINDS:
            raise unknown("log", name, _KINDS)
        if importlib.util.find_spec(name) is None:
            raise Everywhere(f"log {name}: {name} is not installed; pip install {name} (or 'simmim-lite[log]')")
    if "wandb" in names and _would_ask():
        raise Everywhere("log wandb: nobody is logged in here; run `wandb login`, or set WANDB_MODE=offline")


def open_writers(names: Iterable[str], runs_dir: str | Path, run: Run) -> list[TensorBoard | WandB]:
    """The writers of a run, each once; they open nothing before it starts."""
    return [_KINDS[name](runs_dir, run) for name in dict.fromkeys(names)]


def _would_ask() -> bool:
    """Whether Weights & Biases goes online and has no key: it would ask for one, and wait."""
    import wandb

    mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    if mode in _OFFLINE:
        return False
    try:
        return not wandb.Api().api_key
    except wandb.errors.UsageError:  # no key
        return True


def _numbers(point: dict) -> dict[str, float]:
    """The numbers of a point, without what says where it lies; none that are missing."""
    return {k: v for k, v in point.items() if k not in ("step", "images_seen", "time") and v is not None}


def _scores(record: dict | None) -> dict[str, float]:
    """The last numbers of a finished run: `probe/linear` and the like."""
    if record is None or record["status"] != "done":
        return {}
    return {f"probe/{name}": score["score"] for name, score in record["transfer"].items()}
