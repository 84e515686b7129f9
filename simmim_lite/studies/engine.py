"""Runs what is missing of a study: one trunk a job, longest first, each in a single-thread process of its own."""

import contextlib
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError, unknown
from ..evidence.claims import Claim, claims
from ..training.run import PRECISIONS, Run, read_record, record_path, write_atomic
from .grids import STUDIES, TIERS, grid

#: Validation and probes of one run, in optimiser steps of its model: only the estimate of time left depends on it.
_EVALUATION_STEPS = 60


@dataclass(frozen=True)
class StudyResult:
    """What a study left: its records in grid order, the report, and what this call cost."""

    records: list[dict]
    claims: list[Claim]  # those the study is about
    report: Path
    trained: int  # runs that this call trained
    wall_seconds: float
    core_seconds: float  # of the runs that this call trained


def study(
    name: str = "all",
    *,
    tier: str = "quick",
    data: str = "scenes",
    seeds: int | Sequence[int] | None = None,
    workers: int | None = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    precision: str = "auto",
) -> StudyResult:
    """Run what is missing of a study (`grids.STUDIES` or `all`), then write the report of all its records.

    workers: processes; by default one a core on a CPU, one on a GPU. precision: `auto` takes bf16 where it is measured
    faster than fp32 on this machine, and keeps to that choice in this runs_dir. Finished runs are never run again; an
    interrupted study goes on where it was.
    """
    started = time.monotonic()
    grid(name, tier, data=data, seeds=seeds)  # a wrong name fails before anything is opened
    if precision not in ("auto", *PRECISIONS):
        raise unknown("precision", precision, ("auto", *PRECISIONS))
    _check_writable(Path(runs_dir))

    import torch

    from ..data.sources import open_data
    from ..training.pretrain import pick_device
    from .report import SECTIONS, write_report

    recipe = TIERS[tier].recipe
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}: give at least 1")
    chosen = pick_device(device)
    workers = workers or (1 if chosen.type != "cpu" else os.cpu_count() or 1)
    opened = open_data(data, recipe.image_size, images_needed=max(TIERS[tier].images))
    speeds = _speeds(Path(runs_dir), TIERS[tier].models, recipe, str(chosen), torch)
    if precision == "auto":
        largest = TIERS[tier].models[-1]
        precision = min(PRECISIONS, key=lambda p: speeds[f"{largest} {p}"])
    runs = grid(name, tier, data=data, available=len(opened.train), seeds=seeds, precision=precision)
    todo = [run for run in runs if _missing(run, runs_dir, opened.digest)]
    trained, core = _execute(todo, Path(runs_dir), str(chosen), workers, speeds) if todo else (0, 0.0)
    records = [read_record(record_path(runs_dir, run)) for run in runs]
    wall = time.monotonic() - started
    path = Path(runs_dir) / "report" / "index.html"
    studies = STUDIES if name == "all" else (name,)
    write_report(records, path, tier=tier, data=data, core_seconds=core, wall_seconds=wall, studies=studies)
    wanted = {claim for study in studies for claim in SECTIONS[study].claims}
    said = [claim for claim in claims(records) if claim.id in wanted]
    return StudyResult(records, said, path, trained, wall, core)


def _missing(run: Run, runs_dir: str | Path, digest: str) -> bool:
    record = read_record(record_path(runs_dir, run))
    return record is None or record["where"]["data_digest"] != digest


def _check_writable(runs_dir: Path) -> None:
    """Fail before anything runs when records cannot be written; leaves nothing behind."""
    fresh = not runs_dir.exists()
    write_atomic(runs_dir / ".writable", "")
    (runs_dir / ".writable").unlink(missing_ok=True)
    if fresh:
        with contextlib.suppress(OSError):  # another process has put something there
            runs_dir.rmdir()


def _execute(runs: list[Run], runs_dir: Path, device: str, workers: int, speeds: dict[str, float]) -> tuple[int, float]:
    """Train the runs; how many, and core seconds. An error of one job is raised when all others are finished."""
    import joblib

    families = defaultdict(list)
    for run in runs:
        families[run.trunk_key].append(run)
    # within a trunk the shorter run comes first: the longer one branches off it
    jobs = [sorted(family, key=lambda r: r.steps) for family in families.values()]
    jobs.sort(key=lambda job: -_seconds(job, speeds))
    outcomes: list[_Outcome] = []
    with _Progress(jobs, runs_dir, workers, speeds):
        try:
            for wait in (False, True):  # what another process holds is waited for only when nothing else is left
                if not jobs:
                    break
                with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
                    pool = joblib.Parallel(
                        n_jobs=min(workers, len(jobs)), return_as="generator_unordered", batch_size=1
                    )
                    calls = (joblib.delayed(_job)(job, str(runs_dir), device, wait, os.getpid()) for job in jobs)
                    outcomes += pool(calls)
                busy = {outcome.trunk for outcome in outcomes if outcome.busy}
                jobs = [] if wait else [job for job in jobs if job[0].trunk_key in busy]
        except KeyboardInterrupt:
            _stop_workers()
            done = sum(record_path(runs_dir, run).exists() for run in runs)
            raise UserError(
                f"interrupted: {done} of {len(runs)} runs are finished and kept in {runs_dir}; "
                "run the same command to go on"
            ) from None
        except Exception as error:
            if type(error).__name__ not in ("TerminatedWorkerError", "BrokenProcessPool"):
                raise
            raise UserError(
                f"a worker process died (out of memory?): finished runs are kept in {runs_dir}; "
                "run again with --workers 1"
            ) from error
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(errors[0] + more)
    return sum(o.trained for o in outcomes), sum(o.core_seconds for o in outcomes)


@dataclass(frozen=True)
class _Outcome:
    """What became of a job in its worker."""

    trunk: str
    trained: int = 0  # runs this job finished itself
    core_seconds: float = 0.0
    busy: bool = False  # another process holds the trunk
    error: str = ""


def _job(runs: list[Run], runs_dir: str, device: str, wait: bool, parent: int) -> _Outcome:
    """In a worker: the runs of one trunk, shortest first."""
    import torch

    from ..data.sources import open_data
    from ..training.kept import Busy
    from ..training.meter import keep_freed_memory
    from ..training.pretrain import pretrain_once

    _end_with(parent)
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    started, trained, outcome = time.process_time(), 0, _Outcome(runs[0].trunk_key)
    try:
        needed = max(run.images or 0 for run in runs)
        data = open_data(runs[0].data, runs[0].image_size, images_needed=needed)
        for run in runs:
            trained += pretrain_once(run, runs_dir=runs_dir, device=device, data=data, wait=wait)[1]
    except Busy:
        outcome = replace(outcome, busy=True)
    except UserError as error:
        outcome = replace(outcome, error=str(error))
    finally:
        torch.set_num_threads(threads)  # with one worker this is the caller's own process
    return replace(outcome, trained=trained, core_seconds=time.process_time() - started)


_watched: set[int] = set()


def _end_with(parent: int) -> None:
    """End this worker when the process that started the study is gone: a killed study leaves nothing running."""
    if parent in _watched or os.getpid() == parent:
        return
    _watched.add(parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stop_workers() -> None:
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=False, kill_workers=True)


def _seconds(job: list[Run], speeds: dict[str, float]) -> float:
    """Estimated core seconds of a job: the longest run, the branches' tails, and an evaluation for each."""
    longest = max(run.steps for run in job)
    tails = sum(run.steps - run.drop_step for run in job if run.steps < longest)
    points = longest // job[0].eval_every * 0.5
    step = speeds.get(f"{job[0].model} {job[0].precision}", 0.1)
    return step * (longest + tails + _EVALUATION_STEPS * (len(job) + points))


def _speeds(runs_dir: Path, models: Sequence[str], recipe: Run, device: str, torch) -> dict[str, float]:
    """Seconds of an optimiser step by "MODEL PRECISION", measured once and kept in RUNS_DIR/machine.json."""
    path = runs_dir / "machine.json"
    name = f"{device} batch {recipe.batch_size} size {recipe.image_size}"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    speeds = known.setdefault(name, {})
    missing = [(m, p) for m in models for p in PRECISIONS if f"{m} {p}" not in speeds]
    if missing:
        from ..training.bench import step_seconds

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for model, precision in missing:
            speeds[f"{model} {precision}"] = step_seconds(replace(recipe, model=model, precision=precision), device)
        torch.set_num_threads(threads)
        write_atomic(path, json.dumps(known, indent=1) + "\n")
    return speeds


class _Progress:
    """One line with runs done and time left: rewritten in a terminal, every ten seconds elsewhere."""

    def __init__(self, jobs: list[list[Run]], runs_dir: Path, workers: int, speeds: dict[str, float]) -> None:
        self.jobs, self.runs_dir, self.speeds = jobs, runs_dir, speeds
        self.workers = min(workers, len(jobs))
        self.total = sum(map(len, jobs))
        self.live = sys.stderr.isatty()
        self.started, self.over = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Progress":
        estimate = sum(_seconds(job, self.speeds) for job in self.jobs) / self.workers
        unit = "process" if self.workers == 1 else "processes"
        print(f"{self.total} runs to train in {self.workers} {unit}, about {_clock(estimate)}", file=sys.stderr)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        if not error[0]:
            print(f"{self._line()}", file=sys.stderr)

    def _line(self) -> str:
        spent = time.monotonic() - self.started
        done, finished, total, longest = 0, 0.0, 0.0, 0.0
        for job in self.jobs:
            cost = _seconds(job, self.speeds)
            there = sum(record_path(self.runs_dir, run).exists() for run in job)
            done += there
            total += cost
            finished += cost * there / len(job)
            longest = max(longest, cost * (1 - there / len(job)))
        # what is under way counts as done in proportion to the time it has had: the estimate corrected by what is known
        planned = total / self.workers
        left = max(0.0, planned - spent) if finished < 0.1 * total else spent * (total - finished) / finished
        left = 0.0 if done == self.total else min(left, 2 * planned)
        return f"{done}/{self.total} runs, {_clock(spent)} spent, {'about ' + _clock(left) if left else 'nothing'} left"

    def _watch(self) -> None:
        while not self.over.wait(1.0 if self.live else 10.0):
            print(
                f"\r{self._line()}   " if self.live else self._line(),
                end="" if self.live else "\n",
                file=sys.stderr,
                flush=True,
            )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
