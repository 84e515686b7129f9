"""Runs what is missing of a study: one trunk a job, longest first, each in a single-thread process of its own."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import Interrupted, UserError, unknown
from ..evidence.claims import Claim, claims
from ..training.run import (
    PRECISIONS,
    Run,
    cannot_write,
    current_record,
    data_slug,
    read_record,
    record_path,
    write_atomic,
)
from .estimate import Progress, faster_precision, job_seconds, step_speeds
from .grids import STUDIES, TIERS, grid


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

    from ..data.sources import open_data
    from ..training.pretrain import one_thread, pick_device
    from .report import SECTIONS, write_report

    recipe = TIERS[tier].recipe
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}: give at least 1")
    chosen = pick_device(device)
    workers = workers or (1 if chosen.type != "cpu" else os.cpu_count() or 1)
    opened = open_data(data, recipe.image_size, images_needed=max(TIERS[tier].images))
    with one_thread(chosen):
        speeds = step_speeds(Path(runs_dir), TIERS[tier].models, recipe, str(chosen))
    if precision == "auto":
        precision = faster_precision(speeds, TIERS[tier].models[-1])
    runs = grid(name, tier, data=data, available=len(opened.train), seeds=seeds, precision=precision)
    todo = [run for run in runs if current_record(record_path(runs_dir, run), opened.digest) is None]
    trained, core = _execute(todo, Path(runs_dir), str(chosen), workers, speeds) if todo else (0, 0.0)
    records = [read_record(record_path(runs_dir, run)) for run in runs]
    wall = time.monotonic() - started
    data = runs[0].data
    path = Path(runs_dir) / "report" / f"{name}-{tier}-{data_slug(data)}.html"
    studies = STUDIES if name == "all" else (name,)
    write_report(records, path, tier=tier, data=data, core_seconds=core, wall_seconds=wall, studies=studies)
    write_atomic(path.with_name("index.html"), path.read_bytes())  # the latest, under a name one can remember
    wanted = {claim for study in studies for claim in SECTIONS[study].claims}
    said = [claim for claim in claims(records) if claim.id in wanted]
    return StudyResult(records, said, path, trained, wall, core)


def _check_writable(runs_dir: Path) -> None:
    """Fail before anything runs when records cannot be written: tried in the nearest folder that is there already."""
    there = next(folder for folder in (runs_dir, *runs_dir.absolute().parents) if folder.exists())
    try:
        write_atomic(there / ".simmim-lite-writable", "")
    except UserError as error:  # name the folder that was asked for
        raise cannot_write(runs_dir, error.__cause__) from error
    (there / ".simmim-lite-writable").unlink(missing_ok=True)


def _execute(runs: list[Run], runs_dir: Path, device: str, workers: int, speeds: dict[str, float]) -> tuple[int, float]:
    """Train the runs; how many, and core seconds. An error of one job is raised when all others are finished."""
    import joblib

    families = defaultdict(list)
    for run in runs:
        families[run.trunk_key].append(run)
    # within a trunk the shorter run comes first: the longer one branches off it
    jobs = [sorted(family, key=lambda r: r.steps) for family in families.values()]
    jobs.sort(key=lambda job: -job_seconds(job, speeds))
    outcomes: list[_Outcome] = []
    with Progress(jobs, runs_dir, workers, speeds) as progress:
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
            done = len(progress.finished())
            raise Interrupted(
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
    from ..data.sources import open_data
    from ..training.kept import Busy
    from ..training.pretrain import pretrain_once

    _end_with(parent)
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
