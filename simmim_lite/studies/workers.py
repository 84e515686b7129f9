"""The jobs of a study and the processes that do them: one trunk or one transfer a job, one thread a process.

`Local` is this machine; `cluster.Cluster` has the same face.
"""

import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.catalogue import hushed
from ..data.sources import Data
from ..errors import Interrupted, Preempted, UserError
from ..processes import deaf_to_interrupts, end_with
from ..training.run import Run, record_path, transfer_path
from ..training.tuning import Dense, FineTune, Probe
from .collecting import family_cost, tuning_seconds
from .commands import runtime_of
from .speed import step_speeds


@dataclass(frozen=True)
class Job:
    """What one worker does in one go: runs off one trunk, shortest first, or a single transfer."""

    name: str  # of what it locks
    work: tuple[Run | FineTune | Dense | Probe, ...]
    seconds: float  # estimate, core seconds
    log: tuple[str, ...] = ()  # who is told of its pretraining (`training/journal.py`)

    def paths(self, runs_dir: Path) -> list[Path]:
        """The records it leaves."""
        return [path_of(item, runs_dir) for item in self.work]


def path_of(item: Run | FineTune | Dense | Probe, runs_dir: str | Path) -> Path:
    """Where the record of a run or a transfer lies."""
    return record_path(runs_dir, item) if isinstance(item, Run) else transfer_path(runs_dir, item.key)


def make_jobs(
    items: Sequence[Run | FineTune | Dense | Probe], speeds: dict[str, float], log: Sequence[str] = ()
) -> list[Job]:
    """Runs grouped by trunk, transfers one by one; the longest job first."""
    families = defaultdict(list)
    for item in items:
        families[item.trunk_key if isinstance(item, Run) else item.key].append(item)
    jobs = []
    for name, family in families.items():
        if isinstance(family[0], Run):
            # within a trunk the shorter run comes first: the longer one branches off it
            family.sort(key=lambda run: run.steps)
            seconds = family_cost(family, speeds)["seconds"]
        else:
            seconds = tuning_seconds(family[0], speeds)
        jobs.append(Job(name, tuple(family), seconds, tuple(log)))
    return sorted(jobs, key=lambda job: -job.seconds)


class Local:
    """This machine's processes; device: as `pick_device` takes it; workers: None is one a core, or one on a GPU."""

    def __init__(self, device: str, workers: int | None) -> None:
        from ..processes import pick_device

        self.place = pick_device(device)
        self.device = str(self.place)
        self.workers = workers or (1 if self.place.type != "cpu" else os.cpu_count() or 1)

    def speeds(self, runs_dir: Path, models: Sequence[str], recipe: Run) -> dict[str, float]:
        """`speed.step_speeds`, here."""
        from ..processes import one_thread

        with one_thread(self.place):
            return step_speeds(runs_dir, models, recipe, self.device)

    def execute(self, jobs: list[Job], runs_dir: Path, what: str = "runs to train") -> tuple[int, float]:
        """Do the jobs; how many records this made, and core seconds. An error of one is raised when all are over."""
        with Progress(jobs, runs_dir, self.workers, what) as progress:
            try:
                return settle(in_turns(jobs, progress, lambda some, wait: self._do(some, str(runs_dir), wait)))
            except (UserError, KeyboardInterrupt):
                raise
            except Exception as error:
                if type(error).__name__ not in ("TerminatedWorkerError", "BrokenProcessPool"):
                    raise
                raise UserError(
                    f"a worker process died (out of memory?): finished runs are kept in {runs_dir}; "
                    "run again with --workers 1"
                ) from error

    def _do(self, jobs: Sequence[Job], runs_dir: str, wait: bool) -> "Iterator[Outcome]":
        """What becomes of jobs in processes of one thread each, which end with this one."""
        import joblib

        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            pool = joblib.Parallel(n_jobs=min(self.workers, len(jobs)), return_as="generator_unordered", batch_size=1)
            calls = (joblib.delayed(_do)(job, runs_dir, self.device, wait, os.getpid()) for job in jobs)
            try:
                with deaf_to_interrupts():
                    found = pool(calls)  # starts the processes
                yield from found
            except KeyboardInterrupt:
                from joblib.externals.loky import get_reusable_executor

                get_reusable_executor().shutdown(wait=False, kill_workers=True)
                raise


def in_turns(
    jobs: list[Job], progress: "Progress", work: "Callable[[list[Job], bool], Iterable[Outcome]]"
) -> "list[Outcome]":
    """The outcomes of jobs; what another process holds is waited for only when nothing else is left.

    work(jobs, wait): their outcomes, as they end. Ctrl-C is one line that says what is kept.
    """
    outcomes: list[Outcome] = []
    try:
        for wait in (False, True):
            if jobs:
                outcomes += work(jobs, wait)
            busy = {outcome.name for outcome in outcomes if outcome.busy}
            jobs = [job for job in jobs if job.name in busy]
    except KeyboardInterrupt:
        done, what = len(progress.finished()), progress.what.split()[0]
        kept = f"{done} of {len(progress.costs)} {what} are finished and kept in {progress.runs_dir}"
        raise Interrupted(f"interrupted: {kept}; run the same command to go on") from None
    return outcomes


def settle(outcomes: "Sequence[Outcome]") -> tuple[int, float]:
    """Records made and core seconds of jobs that are over; the first error, if there was any, is raised."""
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        stopped = any(outcome.preempted for outcome in outcomes)
        raise (Preempted if stopped else UserError)(errors[0] + more)
    return sum(o.trained for o in outcomes), sum(o.core_seconds for o in outcomes)


@dataclass(frozen=True)
class Outcome:
    """What became of a job in its worker."""

    name: str
    trained: int = 0  # runs this job finished itself
    core_seconds: float = 0.0
    busy: bool = False  # another process holds it
    error: str = ""
    preempted: bool = False  # by a signal, with everything saved


def _do(job: Job, runs_dir: str, device: str, wait: bool, parent: int) -> Outcome:
    """In a worker of this machine: `do`, which ends with the process that started the study."""
    end_with(parent)
    return do(job, runs_dir, device, wait)


@hushed()
def do(job: Job, runs_dir: str, device: str, wait: bool) -> Outcome:
    """The work of one job, in order, in this process. Its study has said what the data is."""
    from ..training.pretrain import pretrain_once
    from ..training.run import Busy
    from ..training.transfer import once as transfer_once

    started, trained, outcome = time.process_time(), 0, Outcome(job.name)
    try:
        first = job.work[0]
        needed = max((run.images or 0 for run in job.work if isinstance(run, Run)), default=0)
        # boxes, masks and pictures at their own size are opened by their task
        own = isinstance(first, Dense) or (isinstance(first, FineTune) and first.full_size)
        data = None if own else _open(first, needed)
        for item in job.work:
            once, options = transfer_once, {}
            if isinstance(item, Run):
                # on a CPU numbers stay those of the plain way, to the bit
                once, options = pretrain_once, {} if device == "cpu" else {"runtime": runtime_of(item)}
                options["log"] = job.log
            trained += once(item, runs_dir=runs_dir, device=device, data=data, wait=wait, **options)[1]
    except Busy:
        outcome = replace(outcome, busy=True)
    except UserError as error:
        outcome = replace(outcome, error=str(error), preempted=isinstance(error, Preempted))
    return replace(outcome, trained=trained, core_seconds=time.process_time() - started)


def _open(first: Run | FineTune | Probe, needed: int) -> Data:
    from ..data.sources import open_for_training

    streamed = isinstance(first, Run) and first.streamed
    return open_for_training(first.data, first.image_size, needed, streamed=streamed)


class Progress:
    """One line with runs done and time left: rewritten in a terminal, every ten seconds elsewhere."""

    def __init__(self, jobs: Sequence[Job], runs_dir: Path, workers: int, what: str) -> None:
        # a record's share of its job, and its age now: a record of other images does not count as done
        self.costs = {path: job.seconds / len(job.work) for job in jobs for path in job.paths(runs_dir)}
        self.before = {path: _changed(path) for path in self.costs}
        self.what, self.runs_dir, self.workers = what, runs_dir, min(workers, len(jobs))
        self.live, self.started, self.over = sys.stderr.isatty(), time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        unit = "process" if self.workers == 1 else "processes"
        about = _clock(sum(self.costs.values()) / self.workers)
        print(f"{len(self.costs)} {self.what} in {self.workers} {unit}, about {about}", file=sys.stderr)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        if not error[0]:
            print(f"\r{self.line()}", file=sys.stderr)

    def line(self) -> str:
        """Runs done, time spent, time left: at the pace so far, what each process is at counting by half."""
        spent, finished, whole = time.monotonic() - self.started, self.finished(), sum(self.costs.values())
        left = whole - sum(self.costs[path] for path in finished)
        at_work = min(left, self.workers * left / max(1, len(self.costs) - len(finished)))
        pace = spent / (whole - left + at_work / 2) if finished else 1 / self.workers
        seconds = max(1.0, pace * left - (0 if finished else spent))
        said = "nothing" if len(finished) == len(self.costs) else f"about {_clock(seconds)}"
        return f"{len(finished)}/{len(self.costs)} {self.what.split()[0]}, {_clock(spent)} spent, {said} left"

    def finished(self) -> list[Path]:
        """Records written since this began."""
        return [path for path in self.costs if _changed(path) != self.before[path]]

    def _watch(self) -> None:
        while not self.over.wait(1.0 if self.live else 10.0):
            start, end = ("\r", "   ") if self.live else ("", "\n")
            print(f"{start}{self.line()}", end=end, file=sys.stderr, flush=True)


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
