"""Runs what is missing of a study, longest first."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, check_writable, unknown
from ..evidence.claims import claims
from ..evidence.rules import Claim
from ..training.dense import Dense
from ..training.run import PRECISIONS, Run, current_record, read_record
from ..training.specs import Count, Folder, checked
from .estimate import faster_precision, known_speeds
from .full_size import check_sides, left_out, sources
from .grids import TIERS, TRANSFER, Axes, claims_of, grid, tunings, with_references
from .parameters import StudyOptions, images_of
from .transfer_grid import AXES, Spec, transfer_runs, transfer_specs
from .workers import Local, make_jobs, path_of

if TYPE_CHECKING:
    from .cluster import Cluster


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
    tier, data, seeds, precision, device = how.tier, how.data, how.seeds, how.precision, how.device
    if tier not in TIERS:
        raise UserError(f"tier {tier} trains nothing: give one of {', '.join(TIERS)}")
    runs_dir, axes = Path(how.runs_dir), TIERS[tier].on(data)
    # a wrong name fails before anything is opened
    runs = (
        planned(name, tier, data=data, seeds=seeds)[0]
        if axes.full_size
        else plan_of(name, tier, data=data, seeds=seeds)[0]
    )
    recipe, models = axes.recipe, axes.models
    with contextlib.ExitStack() as stack:

        @functools.cache
        def pool() -> "Local | Cluster":  # nothing is joined where nothing is missing
            return stack.enter_context(_pool(how, runs_dir))

        speeds: dict[str, float] = {}
        if axes.full_size:
            speeds = _ready(runs, tier, data, device, precision, runs_dir, pool if how.engine == "ray" else None)
        check_writable(runs_dir, "choose another --runs-dir")

        from ..data.pictures import open_for_training

        place = (recipe.image_size, max(axes.images))
        opened = {s: open_for_training(s, *place, streamed=recipe.streamed) for s in sources(data) if s}
        first, *second = opened.values()
        held = {"available": len(first.train)} | ({"second_available": len(second[0].train)} if second else {})
        if axes.full_size and (line := left_out(data, axes.images, axes.second_images, *held.values())):
            print(f"simmim-lite: {line}", file=sys.stderr)

        def plan(precision: str) -> tuple[list[Run], list[Spec]]:
            options = held | {"coco": how.coco, "ade20k": how.ade20k, "labelled": _labelled(first)}
            if given is None:
                return plan_of(name, tier, data=data, seeds=seeds, precision=precision, **options)
            options |= {"data": data, "seeds": sorted({run.seed for run in given}), "precision": precision}
            mine = with_references(replace(run, precision=precision) for run in given)
            tuned = plan_of(name, tier, **options)[1]
            return mine, [spec for spec in tuned if spec.run is None or spec.run in mine]

        def missing(items: Sequence[Run | Spec]) -> list[Run | Spec]:
            return [i for i in items if current_record(path_of(i, runs_dir), _digest(i, opened)) is None]

        trained, core = 0, 0.0
        chosen = precision
        if precision == "auto":
            known = known_speeds(runs_dir, recipe)
            both = all(f"{models[-1]} {p}" in known for p in PRECISIONS)
            chosen = recipe.precision if axes.full_size or not both else faster_precision(known, models[-1])
        runs, tuned = plan(chosen)
        if missing(runs) or missing(tuned):
            if not axes.full_size:
                speeds = pool().speeds(runs_dir, models, recipe)
                if precision == "auto":
                    runs, tuned = plan(faster_precision(speeds, models[-1]))
            for items, what in ((runs, "runs to train"), (tuned, "networks to transfer")):
                if todo := missing(items):
                    done, seconds = pool().execute(make_jobs(todo, speeds, how.log), runs_dir, what)
                    trained, core = trained + done, core + seconds
    records = [read_record(path_of(item, runs_dir)) for item in (*runs, *tuned)]
    return Trained(records, trained, time.monotonic() - started, core)


def planned(
    name: str,
    tier: str,
    *,
    data: str = "scenes",
    seeds: int | Sequence[int] | None = None,
    precision: str | None = "bf16",
) -> tuple[list[Run], list[Spec]]:
    """The runs and transfers that a study would start, at the levels that its source can fill as far as it lists them.

    The source is looked at and not opened (`parameters.images_of`); of a full-size tier some pictures are decoded, and
    ones that are too small are refused. Of scenes such a tier's runs are those as published: a study starts with
    photographs alone. precision: None = the tier's own.
    """
    seeds = None if seeds == 0 else seeds
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    listed = images_of(data)
    if TIERS[tier].full_size:
        for source in filter(None, sources(data)):
            check_sides(source, tier, TIERS[tier].recipe.image_size)
    return plan_of(name, tier, data=data, seeds=seeds, precision=precision, **listed)


def planned_axes(tier: str, **options: object) -> Axes:
    """The axes of a tier at the levels that its source can fill as far as it lists them; options as `planned` has them.

    The precision is a guess until the engine has chosen one.
    """
    return Axes.of(planned("all", tier, **options)[0])


def plan_of(
    name: str, tier: str, *, labelled: int | None = None, coco: str = "", ade20k: str = "", **options: object
) -> tuple[list[Run], list[Spec]]:
    """The runs of a study at a tier, and what is trained from them; options as `grids.grid` has them.

    coco, ade20k: folders with boxes and with class maps, which the transfer study opens at tier paper.
    """
    if name != TRANSFER:
        return grid(name, tier, **options), tunings(name, tier, labelled=labelled, **options)
    if tier not in AXES:
        raise unknown("tier of the transfer study", tier, AXES)
    annotated = {}
    if TIERS[tier].full_size:
        options.pop("second_available", None)
        for task, kind, folder in (("detect", "coco", coco), ("segment", "ade20k", ade20k)):
            if folder:
                from ..training.transfer import open_for

                spec = f"{kind}:{folder}"
                annotated[task] = spec, len(open_for(task, spec, 0).train)
    return transfer_runs(tier, **options), transfer_specs(tier, labelled=labelled, annotated=annotated, **options)


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


def _ready(
    runs: list[Run],
    tier: str,
    data: str,
    device: str,
    precision: str,
    runs_dir: Path,
    pool: "Callable[[], Cluster] | None",
) -> dict[str, float]:
    """Before runs of a full-size tier: what they cost is printed, or why they do not start is raised (`costs.start`);
    seconds of a step by "MODEL PRECISION". Where every record is there already, nothing is asked or printed."""
    from . import costs

    planned = [replace(run, precision=run.precision if precision == "auto" else precision) for run in runs]
    if costs.done(planned, runs_dir):
        return {}
    cluster = pool() if pool else None
    return costs.start(planned, tier=tier, data=data, device=device, runs_dir=runs_dir, cluster=cluster)


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
    from ..data.pictures import open_for_training

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
