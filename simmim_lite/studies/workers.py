"""The jobs of a study, one trunk or one transfer each: in processes of this machine, or as command lines for any other.

`Local` is this machine; `cluster.Cluster` has the same face. No torch here before a job is done."""

import contextlib
import dataclasses
import functools
import shlex
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.manifests import quietly
from ..data.sources import open_data
from ..errors import Preempted, UserError, stopped
from ..processes import again, cores, each, one_thread, pick_device, told
from ..training.record import Busy, usable
from ..training.run import Run, Runtime, record_path
from ..training.specs import Count, checked
from .costs import clock, cost_of, step_speeds, tuning_seconds
from .grids import TransferSpec, planned
from .tiers import TIERS, TRANSFER, StudyName, StudyOptions

#: Images of a part of a batch on one GPU, at 192 px; the rest is accumulated. Ours, and cautious: no GPU was measured.
PART = {"swinv2_small": 256, "swinv2_base": 128, "swinv2_large": 64, "swinv2_huge": 64, "swinv2_giant": 32}
#: Sizes whose blocks are computed again in the backward pass, and that are sharded over several GPUs (FSDP2); ours too.
LARGE = ("swinv2_huge", "swinv2_giant")
_GRACE = 20.0  # seconds in which what is interrupted saves the step it has reached


@dataclass(frozen=True)
class Job:
    """What one process does in one go: runs off one trunk, shortest first, or a single transfer."""

    name: str  # of what it locks
    work: tuple[Run | TransferSpec, ...]
    seconds: float  # estimate, core seconds
    log: tuple[str, ...] = ()  # who is told of its pretraining (`training/callbacks.py`)


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    name: str
    trained: int = 0  # runs that were finished by it
    core_seconds: float = 0.0
    busy: bool = False  # another process holds it
    error: str = ""
    preempted: bool = False  # by a signal, with everything saved


def make_jobs(items: Sequence[Run | TransferSpec], speeds: Mapping[str, float], log: Sequence[str] = ()) -> list[Job]:
    """Runs by trunk, the shorter first because the longer branches off it; transfers one by one; the longest job
    first. speeds: seconds of a step by "MODEL PRECISION"."""
    families, jobs = defaultdict(list), []
    for item in items:
        families[item.trunk_key if isinstance(item, Run) else item.key].append(item)
    for name, family in families.items():
        runs = isinstance(family[0], Run)
        seconds = cost_of(family, speeds=speeds)["seconds"] if runs else tuning_seconds(family[0], speeds)
        jobs.append(Job(name, tuple(sorted(family, key=lambda item: item.steps)), seconds, tuple(log)))
    return sorted(jobs, key=lambda job: -job.seconds)


@quietly()
def do(job: Job, runs_dir: str, device: str, wait: bool) -> Outcome:
    """The work of one job, in order, in this process. wait: for another process that is at it, else it is busy."""
    from ..training.pretrain import pretrain_once
    from ..training.transfer import once as transfer_once

    started, trained, said, first = time.process_time(), 0, {}, job.work[0]
    try:
        once, options = transfer_once, {}  # a transfer opens its own data
        if isinstance(first, Run):  # all of a trunk have the same data and batch
            data = open_data(first.data, first.image_size, images_needed=first.images, streamed=first.streamed)
            runtime = None if device == "cpu" else runtime_of(first)  # on it the plain way's numbers, to the bit
            once, options = pretrain_once, {"data": data, "runtime": runtime, "log": job.log}
        for item in job.work:
            trained += once(item, runs_dir=runs_dir, device=device, wait=wait, **options)[1]
    except Busy:
        said = {"busy": True}
    except UserError as error:
        said = {"error": str(error), "preempted": isinstance(error, Preempted)}
    return Outcome(job.name, trained, time.process_time() - started, **said)


class Local:
    """This machine's processes; device: as `pick_device` takes it; workers: None is one a core, or one on a GPU."""

    def __init__(self, device: str, workers: int | None) -> None:
        import torch

        self.place = pick_device(device)
        self.device = str(self.place)
        self.gpus = torch.cuda.device_count() if self.place.type == "cuda" else 0
        self.workers = workers or (1 if self.place.type != "cpu" else cores())

    def speeds(self, runs_dir: Path, models: Sequence[str], recipe: Run) -> dict[str, float]:
        """`costs.step_speeds`, here."""
        with one_thread(self.place):
            return step_speeds(runs_dir, models, recipe, self.device)

    def do(self, jobs: Sequence[Job], runs_dir: Path, wait: bool) -> Iterator[Outcome]:
        """The outcomes of jobs as they end, each in a process of one thread."""
        work = functools.partial(do, runs_dir=str(runs_dir), device=self.device, wait=wait)
        return each(work, jobs, self.workers, grace=_GRACE)


@contextlib.contextmanager
def reported(costs: Mapping[Path, float], about: float, unit: str) -> Iterator[None]:
    """Inside, a line every ten seconds on stderr, every second in place on a terminal or in a notebook: how many of
    these records are there, time spent, and time left by their shares of the cost (`about` seconds until there is one).
    """
    began, end, out = time.time(), threading.Event(), told()
    in_place = out is not sys.stderr or out.isatty()

    def report() -> None:
        last = False
        while not last:
            last = end.wait(1 if in_place else 10)
            with contextlib.suppress(OSError, ValueError):  # a closed terminal ends no training
                done = [cost for path, cost in costs.items() if path.exists() and path.stat().st_mtime >= began - 1]
                spent, share = time.time() - began, sum(done) / max(sum(costs.values()), 1e-9)
                left = spent / share - spent if share else about - spent
                left = f"about {clock(left)} left" if left > 0 else f"longer than the {clock(about)} expected"
                line = f"{len(done)} of {len(costs)} {unit}, {clock(spent)} spent" + f", {left}" * (not last)
                start, stop = ("\r", "\n" * last) if in_place else ("", "\n")
                print(start + line.ljust(78 * in_place), end=stop, file=out, flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        end.set()
        reporter.join()


def execute(pool, jobs: Sequence[Job], runs_dir: Path) -> tuple[int, float]:
    """Do jobs by `Local` or a cluster: how many records this made, and core seconds. What another process holds is
    waited for only when nothing else is left; the first error is raised when all jobs are over."""
    costs = {record_path(runs_dir, item): job.seconds / len(job.work) for job in jobs for item in job.work}
    workers, outcomes = min(pool.workers, len(jobs)), []
    what = "runs" if isinstance(jobs[0].work[0], Run) else "transfers"
    about, many = sum(costs.values()) / workers, f"{workers} process{'es' * (workers > 1)}"
    before = sum(isinstance(item, Run) and not item.steps for job in jobs for item in job.work)
    more = f" ({before} of them networks before training)" if before else ""
    print(f"{len(costs)} {what}{more} to train in {many}, about {clock(about)}", file=told())
    with reported(costs, about, what):
        try:
            for wait in (False, True):
                busy = {outcome.name for outcome in outcomes if outcome.busy}
                left = [job for job in jobs if job.name in busy or not wait]
                outcomes += pool.do(left, runs_dir, wait) if left else ()
        except KeyboardInterrupt as by:
            done = f"{sum(path.exists() for path in costs)} of {len(costs)} {what} are finished and kept in {runs_dir}"
            raise stopped(by, f"{done}; {again()}") from None
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise (Preempted if any(outcome.preempted for outcome in outcomes) else UserError)(errors[0] + more)
    return sum(o.trained for o in outcomes), sum(o.core_seconds for o in outcomes)


# --- runs as command lines ------------------------------------------------------------------------------------------


def runtime_of(run: Run, gpus: int = 1) -> Runtime:
    """How a run is executed on GPUs, by `PART` and `LARGE`; `UserError` where its batch does not divide among them."""
    if run.batch_size % gpus:
        raise UserError(f"gpus_per_run {gpus} does not divide the batch of {run.batch_size}: give a divisor of it")
    if run.model not in PART:
        return Runtime()
    share, large = run.batch_size // gpus, run.model in LARGE
    parts = next(k for k in range(1, share + 1) if share % k == 0 and share // k <= PART[run.model])
    return Runtime(parallel="fsdp" if large and gpus > 1 else "ddp", accumulate=parts, checkpointing=large)


def pretrain_words(run: Run, runtime: Runtime, runs_dir: str, device: str, log: Sequence[str] = ()) -> list[str]:
    """`pretrain …`, which the command line reads back as this run and this runtime."""
    words = ["pretrain"]
    for spec in (run, runtime):
        for field in dataclasses.fields(spec):
            name, value = f"--{field.name.replace('_', '-')}", getattr(spec, field.name)
            if isinstance(value, tuple):
                words += [name, *map(str, value)]
            elif value is True:
                words.append(name)
            elif not (value is None or value is False or field.name == "recipe_version"):  # None, False: the defaults
                words.append(f"{name}={value}")
    words += [f"--runs-dir={runs_dir}", f"--device={device}"]
    return words + [word for name in log for word in ("--log-to", name)]


def launch(gpus: int, nodes: int = 1) -> str:
    """What a command line begins with: python, or torchrun on so many GPUs of so many nodes, which hands signals on."""
    several = f'--nnodes={nodes} --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:29500" --rdzv-id="$JOB"'
    meet = several if nodes > 1 else "--standalone"
    torchrun = f"torchrun {meet} --nproc-per-node={gpus} --signals-to-handle=SIGTERM,SIGINT,SIGUSR1"
    return torchrun if gpus * nodes > 1 else "python"


@checked
def lines(study: StudyName, how: StudyOptions, *, gpus_per_run: Count = 1, nodes: Count = 1) -> list[str]:
    """A shell line for each trunk of a study that is not all done, the longest first: its commands by `&&`, the
    shortest run first, under torchrun where a run has several GPUs (of so many nodes, each of which runs the line, with
    the first one's name in MASTER_ADDR and the job's number in JOB). Nothing starts; precision `auto` is the recipe's.
    """
    if study == TRANSFER or how.tier not in TIERS:
        raise UserError(f"--commands is about pretraining at tier {', '.join(TIERS)}: not {study} at tier {how.tier}")
    precision, start = None if how.precision == "auto" else how.precision, launch(gpus_per_run, nodes)
    runs = planned(study, how.axes, data=how.data, seeds=how.seeds, precision=precision)[0]

    def command(run: Run) -> str:
        words = pretrain_words(run, runtime_of(run, gpus_per_run * nodes), how.runs_dir, how.device, how.log)
        return f"{start} -m simmim_lite {shlex.join(words)}"

    usable(record_path(how.runs_dir, run) for run in runs)  # names what cannot be used: `pretrain` refuses it
    jobs = make_jobs([run for run in runs if not record_path(how.runs_dir, run).exists()], {})
    return [" && ".join(map(command, job.work)) for job in jobs]
