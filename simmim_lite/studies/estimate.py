"""How long a study takes: steps measured on this machine, and one line of progress with the time left."""

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from ..processes import waiting
from ..training.run import PRECISIONS, Run, write_atomic
from ..training.tuning import Dense, FineTune, Probe

#: Validation and probes of one run, in optimiser steps of its model: only the estimate of time left depends on it.
EVALUATION_STEPS = 60
#: Seconds of a core an image, trained or tested, of a small network: most of it does not depend on the network.
_DENSE_SECONDS = {"detect": 0.004, "segment": 0.0015}
_PROBE_SECONDS = 4.0  # the attentive probe and two passes over its images
#: bf16 is taken where it is at least this much faster than fp32.
_FASTER = 1.1


def step_speeds(runs_dir: Path, models: Sequence[str], recipe: Run, device: str) -> dict[str, float]:
    """Seconds of an optimiser step by "MODEL PRECISION", measured once and kept in RUNS_DIR/machine.json.

    Under a lock, so that two studies started together go by the same numbers.
    """
    path = runs_dir / "machine.json"
    name = f"{device} {_setting(recipe)}"
    runs_dir.mkdir(parents=True, exist_ok=True)
    lock = runs_dir / "machine.json.lock"
    with waiting(f"measuring this machine, or waiting for the process that does (lock {lock})"), FileLock(lock):
        known = machine(path)
        speeds = known.setdefault(name, {})
        missing = [(m, p) for m in models for p in PRECISIONS if f"{m} {p}" not in speeds]
        if missing:
            from ..training.pretrain import step_seconds

            for model, precision in missing:
                run = replace(recipe, model=model, precision=precision)
                speeds[f"{model} {precision}"] = step_seconds(run, device)
            write_atomic(path, json.dumps(known, indent=1) + "\n")
    return speeds


def known_speeds(runs_dir: Path, recipe: Run) -> dict[str, float]:
    """The speeds that `step_speeds` has measured here, of the fastest device; {} where nothing was measured."""
    found = [v for k, v in machine(runs_dir / "machine.json").items() if k.endswith(f" {_setting(recipe)}")]
    return min(found, key=lambda speeds: sum(speeds.values()), default={})


def _setting(recipe: Run) -> str:
    return f"batch {recipe.batch_size} size {recipe.image_size}"


def machine(path: Path) -> dict:
    """What a machine.json holds: seconds of a step by device, batch and size, then model and precision; {} = none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def faster_precision(speeds: dict[str, float], model: str) -> str:
    """bf16 where it was measured clearly faster for a model, else fp32."""
    return "bf16" if speeds[f"{model} fp32"] > _FASTER * speeds[f"{model} bf16"] else "fp32"


def job_seconds(job: list[Run], speeds: dict[str, float]) -> float:
    """Estimated core seconds of a job: the longest run, the branches' tails, and an evaluation for each."""
    longest = max(run.steps for run in job)
    tails = sum(run.steps - run.drop_step for run in job if run.steps < longest)
    points = longest // job[0].eval_every * 0.5
    step = speeds.get(f"{job[0].model} {job[0].precision}", 0.1)
    return step * (longest + tails + EVALUATION_STEPS * (len(job) + points))


def tuning_seconds(spec: FineTune | Dense | Probe, speeds: dict[str, float]) -> float:
    """Estimated core seconds of a fine-tuning, or of another transfer, and its test."""
    if isinstance(spec, Dense):
        return _DENSE_SECONDS[spec.task] * (spec.steps * spec.batch_size + (spec.test_images or 0))
    probe = _PROBE_SECONDS if isinstance(spec, Probe) else 0
    return probe + speeds.get(f"{spec.model} {spec.precision}", 0.1) * (spec.steps + EVALUATION_STEPS)


class Progress:
    """One line with runs done and time left: rewritten in a terminal, every ten seconds elsewhere."""

    def __init__(self, jobs: dict[str, tuple[list[Path], float]], workers: int, what: str) -> None:
        # a record's share of its job, and its age now: a record of other images does not count as done
        self.costs = {path: seconds / len(paths) for paths, seconds in jobs.values() for path in paths}
        self.before = {path: _changed(path) for path in self.costs}
        self.what = what
        self.workers = min(workers, len(jobs))
        self.live = sys.stderr.isatty()
        self.started, self.over = time.monotonic(), threading.Event()
        self.done, self.due = 0, self.started + sum(self.costs.values()) / self.workers
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        unit = "process" if self.workers == 1 else "processes"
        about = _clock(self.due - self.started)
        print(f"{len(self.costs)} {self.what} in {self.workers} {unit}, about {about}", file=sys.stderr)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        if not error[0]:
            print(f"\r{self.line()}", file=sys.stderr)

    def line(self) -> str:
        """Runs done, time spent, time left."""
        now = time.monotonic()
        finished = self.finished()
        if len(finished) > self.done:
            # what each process is at in this moment counts by half
            done = sum(self.costs[path] for path in finished)
            left = sum(self.costs.values()) - done
            under_way = min(left, self.workers * left / max(1, len(self.costs) - len(finished)))
            pace = (now - self.started) * self.workers / (done + under_way / 2)
            self.done, self.due = len(finished), now + pace * left / self.workers
        spent = _clock(now - self.started)
        left = "nothing" if self.done == len(self.costs) else f"about {_clock(max(1.0, self.due - now))}"
        return f"{self.done}/{len(self.costs)} {self.what.split()[0]}, {spent} spent, {left} left"

    def finished(self) -> list[Path]:
        """Records written since this began."""
        return [path for path in self.costs if _changed(path) != self.before[path]]

    def _watch(self) -> None:
        while not self.over.wait(1.0 if self.live else 10.0):
            start, end = ("\r", "   ") if self.live else ("", "\n")
            print(f"{start}{self.line()}", end=end, file=sys.stderr, flush=True)


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
