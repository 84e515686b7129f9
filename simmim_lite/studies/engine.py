"""Runs what is missing of a study, longest first."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, check_writable
from ..evidence import tables
from ..evidence.claims import claims
from ..evidence.records import beside, load
from ..evidence.rules import Claim
from ..training.run import PRECISIONS, Run, current_record, read_record, record_path
from ..training.specs import Count, Folder, Positive, Whole, checked
from ..training.tuning import Dense
from .collecting import cost_of, tuning_seconds
from .full_size import left_out, sources
from .grids import TIERS, TRANSFER, Axes, claims_of, seeds_of, with_references
from .parameters import Study, StudyOptions, Tier, images_of
from .speed import faster_precision, known_speeds
from .transfer_grid import AXES, Spec, plan_of, planned
from .workers import Local, make_jobs, path_of

if TYPE_CHECKING:
    from .cluster import Cluster


#: Seconds that a study takes beside its runs: starting processes, and four notebooks at the end.
_REST = 30.0


@dataclass(frozen=True)
class Trained:
    """The records of a study, and what this call cost."""

    records: list[dict]  # runs in grid order, then fine-tunings
    trained: int  # runs and fine-tunings that this call did itself
    wall_seconds: float
    core_seconds: float  # of what this call did itself


@dataclass(frozen=True)
class StudyResult(Trained):
    """What a study left: its records, and the claims it is about."""

    claims: list[Claim]


def study(name: str = "all", **options: object) -> StudyResult:
    """Run what is missing of a study (`grids.STUDIES` or `all`): its records, and the verdicts on its claims.

    options: the fields of `parameters.StudyOptions`.
    """
    done, wanted = train_missing(name, **options), claims_of(name)
    return StudyResult(**vars(done), claims=[claim for claim in claims(done.records) if claim.id in wanted])


def train_missing(name: str, given: Sequence[Run] | None = None, **options: object) -> Trained:
    """The records of a study, after running what is missing of it; options: the fields of `parameters.StudyOptions`.

    given: the runs that it takes, of the tier's recipe; by default those of `grids.grid`.

    Precision `auto` takes bf16 where it is measured faster than fp32 on this machine, and keeps to that choice in this
    runs_dir. Finished runs are never run again; an interrupted study goes on where it was. Where nothing is missing,
    torch is not imported. Tier paper prints its cost first, trains in bf16 by default, takes two sources as `data`, and
    is refused where there is no GPU, unless device is `cpu` and it can end there.

    engine: `local`, processes of this machine, or `ray`, tasks on a Ray cluster (`cluster.py`): the one at `address`,
    else one that is started on this machine; workers is then how many jobs run at a time (as many as fit by default),
    and gpus_per_run how many GPUs each takes (1).
    """
    started, how = time.monotonic(), StudyOptions.from_dict(options)
    if how.tier not in TIERS:
        raise UserError(f"tier {how.tier} trains nothing: give one of {', '.join(TIERS)}")
    runs_dir, axes = Path(how.runs_dir), TIERS[how.tier].on(how.data)
    same = {"data": how.data, "seeds": how.seeds}
    # a wrong name fails before anything is opened
    runs = (planned if axes.full_size else plan_of)(name, how.tier, **same)[0]
    with contextlib.ExitStack() as stack:

        @functools.cache
        def pool() -> "Local | Cluster":  # nothing is joined where nothing is missing
            return stack.enter_context(_pool(how, runs_dir))

        speeds: dict[str, float] = {}
        if axes.full_size:
            speeds = _ready(runs, how, pool)
        check_writable(runs_dir, "choose another --runs-dir")

        from ..data.sources import open_for_training

        place = (axes.recipe.image_size, max(axes.images))
        opened = {s: open_for_training(s, *place, streamed=axes.recipe.streamed) for s in sources(how.data) if s}
        first, *second = opened.values()
        held = {"available": len(first.train)} | ({"second_available": len(second[0].train)} if second else {})
        if axes.full_size and (line := left_out(how.data, axes.images, axes.second_images, *held.values())):
            print(f"simmim-lite: {line}", file=sys.stderr)
        held |= {"coco": how.coco, "ade20k": how.ade20k, "labelled": _labelled(first)}

        def plan(precision: str) -> tuple[list[Run], list[Spec]]:
            if given is None:
                return plan_of(name, how.tier, **same, precision=precision, **held)
            seeds = sorted({run.seed for run in given})
            mine = with_references(replace(run, precision=precision) for run in given)
            tuned = plan_of(name, how.tier, data=how.data, seeds=seeds, precision=precision, **held)[1]
            return mine, [spec for spec in tuned if spec.run is None or spec.run in mine]

        def missing(items: Sequence[Run | Spec]) -> list[Run | Spec]:
            return [i for i in items if current_record(path_of(i, runs_dir), _digest(i, opened)) is None]

        chosen, largest = how.precision, axes.models[-1]
        if chosen == "auto":
            known = known_speeds(runs_dir, axes.recipe)
            both = all(f"{largest} {p}" in known for p in PRECISIONS)
            chosen = axes.recipe.precision if axes.full_size or not both else faster_precision(known, largest)
        runs, tuned = plan(chosen)
        trained, core = 0, 0.0
        if missing(runs) or missing(tuned):
            if not axes.full_size:
                speeds = pool().speeds(runs_dir, axes.models, axes.recipe)
                if how.precision == "auto":
                    runs, tuned = plan(faster_precision(speeds, largest))
            for items, what in ((runs, "runs to train"), (tuned, "networks to transfer")):
                if todo := missing(items):
                    done, seconds = pool().execute(make_jobs(todo, speeds, how.log), runs_dir, what)
                    trained, core = trained + done, core + seconds
    records = [read_record(path_of(item, runs_dir)) for item in (*runs, *tuned)]
    return Trained(records, trained, time.monotonic() - started, core)


@checked
def collect(study: Study, runs: Sequence[Run] | None = None, **options: object) -> list[dict]:
    """The reader's records of a study (a name in `STUDIES`, `transfer` or `all`), training what is missing.

    runs: those that the study takes, by default those of `grids.grid`; references and fine-tunings are added to them.

    options: the fields of `parameters.StudyOptions`; tier is `shipped` by default. Tier `shipped` trains nothing and
    returns the finished runs on this data that lie in `runs_dir`, perhaps none. Any other tier (smoke, quick, laptop,
    paper) returns its records in grid order. `UserError` for a wrong option, for data that cannot be opened, and for
    runs that could not be finished; what was finished is kept.
    """
    how = StudyOptions.from_dict({"tier": "shipped", **options})
    if how.tier == "shipped":
        return [record for record in load(how.runs_dir) if _data_of(record) in sources(how.data)]
    return train_missing(study, runs, **options).records


@checked
def axes(tier: Tier = "shipped", *, minutes: Positive | None = None, **options: object) -> Axes:
    """What a tier varies on this data (sizes, unique images, lengths, seeds), and the runs that fill it.

    Tier `shipped` has those of the shipped records. Where a tier chooses its number of seeds by the time they take,
    this times a step on this machine, once, and prints what was chosen. The source is looked at, not opened.
    options: the fields of `parameters.StudyOptions`.
    """
    how = StudyOptions.from_dict({"tier": tier, **options})
    if tier == "shipped":
        keys = {row["key"] for row in tables.rows(data=how.data).get("shipped", [])}
        return Axes.of(Run.from_dict(record["run"]) for record in beside(how.data) if record["key"] in keys)
    chosen, said = choose("all", how, minutes=minutes)
    print(said, end="\n" if said else "")
    return Axes.of(planned("all", tier, data=how.data, seeds=chosen)[0])


@contextlib.contextmanager
def _pool(how: StudyOptions, runs_dir: Path) -> "Iterator[Local | Cluster]":
    """Who does the jobs: this machine, or a cluster that is left at the end."""
    if how.engine != "ray":
        yield Local(how.device, how.workers)
        return
    from .cluster import joined

    options = {name: getattr(how, name) for name in ("address", "device", "workers", "gpus_per_run")}
    with joined(runs_dir, **options) as cluster:
        yield cluster


def _ready(runs: list[Run], how: StudyOptions, pool: "Callable[[], Local | Cluster]") -> dict[str, float]:
    """Before runs of a full-size tier: what they cost is printed, or why they do not start is raised (`costs.start`);
    seconds of a step by "MODEL PRECISION". Where every record is there already, nothing is asked or printed."""
    from . import costs

    if how.precision != "auto":
        runs = [replace(run, precision=how.precision) for run in runs]
    if all(record_path(how.runs_dir, run).exists() for run in runs):
        return {}
    return costs.start(runs, how, cluster=pool() if how.engine == "ray" else None)


def _digest(item: Run | Spec, opened: Mapping[str, object]) -> str:
    """The digest of the images that an item is trained on; opened: the study's own sources."""
    if not isinstance(item, Dense):
        return opened[item.data].digest
    from ..training.transfer import open_for

    return open_for(item.task, item.data, item.image_size).digest


@checked
def train_runs(
    runs: Sequence[Run], *, workers: Count | None = None, runs_dir: Folder = "runs", device: str = "auto"
) -> list[dict]:
    """The records of any runs of one source, in their order, after training what is missing; as `train_missing`.

    Their precision is taken as given. Where nothing is missing, torch is not imported.
    """
    runs_dir = Path(runs_dir)
    check_writable(runs_dir, "choose another --runs-dir")
    from ..data.sources import open_for_training

    needed = max(run.images or 0 for run in runs)
    opened = open_for_training(runs[0].data, runs[0].image_size, needed, streamed=runs[0].streamed)
    todo = [run for run in runs if current_record(path_of(run, runs_dir), opened.digest) is None]
    if todo:
        here = Local(device, workers)
        speeds = here.speeds(runs_dir, list(dict.fromkeys(run.model for run in todo)), todo[0])
        here.execute(make_jobs(todo, speeds), runs_dir)
    return [read_record(path_of(run, runs_dir)) for run in runs]


def _labelled(data) -> int:
    """Labelled images that can be trained on; 0 where there are none to train or to test on."""
    if data.probe_train is None or data.test is None or data.probe_train.labels is None or data.test.labels is None:
        return 0
    return max(len(data.probe_train), len(data.train) if data.train.labels is not None else 0)


def _data_of(record: dict) -> str | None:
    return (record.get("run") or record.get("spec") or {}).get("data")


@checked
def choose(
    name: str,
    how: StudyOptions,
    *,
    first_seed: Whole | None = None,
    minutes: Positive | None = None,
    measure: bool = True,
) -> tuple[list[int] | None, str]:
    """The seeds of a study, None for those of the tier or the task itself, and a line to print, or "".

    how.seeds: how many, or which. minutes: a study of more than the fewest seeds takes so many as these hold, up to the
    tier's most; by default the tier's own. measure: time a step on this machine where that is not known, else guess.
    """
    tier, data, seeds, runs_dir, engine = how.tier, how.data, how.seeds, Path(how.runs_dir), how.engine
    if isinstance(seeds, tuple):
        return list(seeds), ""
    if seeds is not None and minutes is not None:
        raise UserError(f"seeds is {seeds} and minutes {minutes:g}: give one, seeds fixes the number")
    if tier not in TIERS:  # shipped
        return None, ""
    axes = TIERS[tier].on(data)
    first = axes.first_seed if first_seed is None else first_seed
    minutes = axes.minutes if minutes is None else minutes
    if seeds is not None or name == TRANSFER or axes.full_size or not (minutes or axes.most_seeds):
        count = seeds or (AXES[tier] if name == TRANSFER and tier in AXES else axes).seeds
        return None if first_seed is None and seeds is None else seeds_of(tier, range(first, first + count)), ""
    images_of(data)  # before anything is measured
    known = known_speeds(runs_dir, axes.recipe)
    here = None
    if measure and engine == "local" and not all(f"{m} {p}" in known for m in axes.models for p in PRECISIONS):
        here = Local(how.device, how.workers)
        known = here.speeds(runs_dir, axes.models, axes.recipe)
    processes = here.workers if here else how.workers or (os.cpu_count() or 1 if engine == "local" else 1)
    each = _seconds(name, tier, data, first, runs_dir, known, how.precision) / processes
    holds = int((60 * (minutes or 0) - _REST) // each)
    count = min(max(holds, axes.seeds), max(axes.most_seeds, axes.seeds))
    chosen = seeds_of(tier, range(first, first + count))
    said = f"{count} seeds, {chosen[0]} to {chosen[-1]}: about {_hours(_REST + count * each)} in {processes} "
    said += "process" if processes == 1 else "processes"
    if minutes and holds < axes.seeds:
        said += f"; --minutes {minutes:g} holds {max(0, holds)}, and fewer than {axes.seeds} decide too little"
    elif minutes:
        said += f", which --minutes {minutes:g} holds"
    return chosen, said


def _seconds(
    name: str, tier: str, data: str, seed: int, runs_dir: Path, speeds: dict[str, float], precision: str
) -> float:
    """Seconds of a core that a seed adds to a study."""
    if precision == "auto":
        axes = TIERS[tier].on(data)
        precision = faster_precision(speeds, axes.models[-1]) if speeds else axes.recipe.precision
    runs, tuned = plan_of(name, tier, data=data, seeds=[seed], precision=precision)
    return cost_of(runs, runs_dir)["seconds"] + sum(tuning_seconds(spec, speeds) for spec in tuned)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
