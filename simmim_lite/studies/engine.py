"""Runs what is missing of a study, longest first."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.scenes import LOOKS
from ..data.sources import open_data, open_pictures
from ..errors import UserError, check_writable
from ..evidence import tables
from ..evidence.claims import claims
from ..evidence.records import beside, load
from ..evidence.rules import Claim
from ..model.sizes import SIZES, short
from ..processes import cores, has_driver, pick_device, tell_once
from ..training.record import current_record, read_record, run_of, usable
from ..training.run import PRECISIONS, Run, check_runs_dir, record_path
from ..training.specs import Whole, value
from ..training.tuning import Dense
from . import costs
from .cluster import Cluster, joined
from .costs import faster_precision, known_speeds
from .grids import NEARLY, Axes, TransferSpec, counts_of, held_by, left_out, plan_of, planned, sources, with_references
from .tiers import TIERS, TRANSFER, StudyName, StudyOptions, claim_ids
from .workers import Local, execute, make_jobs

#: Seconds that a study takes beside its runs: starting processes, and four notebooks at the end.
_REST = 30.0


@dataclass(frozen=True)
class StudyResult:
    """What a study left, and what this call cost."""

    name: str
    records: list[dict]  # runs in grid order, then fine-tunings
    trained: int  # runs and fine-tunings that this call did itself
    wall_seconds: float
    core_seconds: float  # of what this call did itself

    @property
    def claims(self) -> list[Claim]:
        """The claims it is about, with their verdicts on its records."""
        return [claim for claim in claims(self.records) if claim.id in claim_ids(self.name)]


def study(name: str = "all", given: Sequence[Run] | None = None, **options: object) -> StudyResult:
    """Run what is missing of a study (a name in STUDIES, `transfer` or `all`): its records, and verdicts on its claims.

    options: the fields of `tiers.StudyOptions`. given: the runs that it takes, by default those of `grids.grid`.

    Precision `auto` takes bf16 where it is measured faster than fp32 on this machine, and keeps to that choice in this
    runs_dir. Finished runs are never run again; an interrupted study goes on where it was. Where nothing is missing,
    torch is not imported. Tier paper prints its cost first, trains in bf16 by default, takes two sources as `data`, and
    is refused where there is no GPU, unless device is `cpu` and it can end there."""
    started, how = time.monotonic(), StudyOptions.from_dict(options)
    if how.tier not in TIERS:
        raise UserError(f"tier {how.tier} trains nothing: give one of {', '.join(TIERS)}")
    if given is None and (how.minutes or (how.axes.fitted and not how.seeds)):
        how = choose(name, how)[0]
    axes, same = how.axes, {"data": how.data, "seeds": how.seeds}
    # a wrong name fails before anything is opened
    runs = (planned if axes.full_size else plan_of)(name, axes, **same, precision=_precision(how, {}))[0]
    with _pool(how) as pool:
        speeds: dict[str, float] = {}
        if axes.full_size and not all(record_path(how.runs_dir, run).exists() for run in runs):
            _start(runs, how, pool)
        check_runs_dir(how.runs_dir)
        opened, held = _opened(how, max(max(axes.images), *(run.images or 0 for run in given or runs)))

        def plan(precision: str) -> tuple[list[Run], list[TransferSpec]]:
            if given is None:
                return plan_of(name, axes, **same, precision=precision, **held)
            seeds = sorted({run.seed for run in given})
            own, first = [replace(run, precision=precision) for run in given], sources(how.data)[0]
            mine = with_references(filled(run, held["available"]) if run.data == first else run for run in own)
            tuned = plan_of(name, axes, data=how.data, seeds=seeds, precision=precision, **held)[1]
            return mine, [spec for spec in tuned if spec.run is None or spec.run in mine]

        models = list(axes.models)
        if given is not None and axes.fitted:  # they are of the sizes that were chosen
            models = sorted(costs.models_of(given), key=lambda name: SIZES[name].parameters)
        runs, tuned = plan(_precision(how, known_speeds(how.runs_dir, axes.recipe, how.device), models))
        if not axes.full_size and _missing([*runs, *tuned], how, opened):
            speeds = pool().speeds(Path(how.runs_dir), models, axes.recipe)
            runs, tuned = plan(_precision(how, speeds, models))
        done = [_execute(items, how, pool, opened, speeds) for items in (runs, tuned)]
    trained, core = map(sum, zip(*done, strict=True))
    records = usable([record_path(how.runs_dir, item) for item in (*runs, *tuned)])
    return StudyResult(name, records, trained, time.monotonic() - started, core)


def filled(run: Run, available: int) -> Run:
    """A run that takes all images there are, where nearly all that it asks for could be read."""
    nearly = run.images and NEARLY * run.images <= available < run.images
    return replace(run, images=available) if nearly else run


def _precision(how: StudyOptions, speeds: Mapping[str, float], models: Sequence[str] = ()) -> str:
    """As it is given, else the faster one of the largest model, by default the tier's, as far as that is measured."""
    tier = how.axes
    largest = [*tier.models, *models][-1]
    if how.precision != "auto" or tier.full_size or not all(f"{largest} {p}" in speeds for p in PRECISIONS):
        return tier.recipe.precision if how.precision == "auto" else how.precision
    return faster_precision(speeds, largest)


def train(runs: Sequence[Run], **options: object) -> list[dict]:
    """The records of any Runs, in their order: a sweep over a field of `Run` that no tier varies, say. What is missing
    is trained. options: fields of `tiers.StudyOptions` (workers, runs_dir, device, engine, log, …)."""
    how = StudyOptions.from_dict(options)
    with _pool(how) as pool:
        _execute(runs, how, pool, {}, {})
    return [read_record(record_path(how.runs_dir, run)) for run in runs]


def _execute(
    items: Sequence[Run | TransferSpec], how: StudyOptions, pool: Callable, opened: dict, speeds: dict
) -> tuple[int, float]:
    """Do what is missing: how many records that made, and core seconds."""
    if not (todo := _missing(items, how, opened)):
        return 0, 0.0
    check_writable(how.runs_dir, "choose another --runs-dir")
    return execute(pool(), make_jobs(todo, speeds, how.log), Path(how.runs_dir))


def _missing(items: Sequence[Run | TransferSpec], how: StudyOptions, opened: dict) -> list[Run | TransferSpec]:
    """What has no record that was made from the images its source holds now, nor one that cannot be read: that may be a
    later version's. opened: sources by data and side."""
    found = []
    for item in items:
        whole = getattr(item, "full_size", False)
        place = item.data, None if whole else item.image_size
        if isinstance(item, Dense):
            from ..training.transfer import open_for

            digest = open_for(item.task, *place).digest
        else:
            if place not in opened:
                options = {"images_needed": getattr(item, "images", None), "streamed": getattr(item, "streamed", False)}
                opened[place] = open_pictures(item.data) if whole else open_data(*place, **options)
            digest = opened[place].digest
        with contextlib.suppress(UserError):  # `usable` names it
            found += [item] if current_record(record_path(how.runs_dir, item), digest) is None else []
    return found


@contextlib.contextmanager
def _pool(how: StudyOptions) -> Iterator[Callable[[], Local | Cluster]]:
    """Who does the jobs, when it is first called: this machine, or a cluster that is left at the end."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def pool() -> Local | Cluster:
            if how.engine == "local":
                return Local(how.device, how.workers)
            return stack.enter_context(joined(Path(how.runs_dir), how))

        yield pool


def _opened(how: StudyOptions, needed: int) -> tuple[dict, dict[str, object]]:
    """The sources of a study by name and side, and what they hold, as `plan_of` takes it; what they cannot fill is
    printed."""
    axes, side = how.axes, how.axes.recipe.image_size
    options = {"images_needed": needed, "streamed": axes.recipe.streamed}
    opened = {(s, side): open_data(s, side, **options) for s in sources(how.data) if s}
    held = counts_of(*opened.values())
    if (axes.full_size or how.images) and (line := left_out(axes, how.data, held)):
        tell_once(line)
    return opened, held | {"coco": how.coco, "ade20k": how.ade20k}


def _start(runs: Sequence[Run], how: StudyOptions, pool: Callable) -> None:
    """Before the missing runs of a full-size tier start: print their cost.

    `UserError` with the cost where there is no GPU and device is `auto`, for scenes, which have no photographs, and
    where a processor could not end the runs in a year."""
    by, frame = pool(), costs.costs(runs, None, how.runs_dir)
    if by.device == "cpu" and how.device == "auto":
        whole = ", ".join(f"{name} {one}" for name, one in costs.shown(frame, 1).loc["all"].items())
        where = "machine" if how.engine == "local" else "cluster"
        raise UserError(f"tier {how.tier} needs GPUs, and this {where} has none ({whole}); --dry-run shows more")
    if LOOKS.keys() & set(sources(how.data)):
        raise UserError(f"tier {how.tier} is about photographs of {runs[0].image_size} px: give --data imagefolder:DIR")
    years = frame.seconds["all"] / cores() / (365 * 86_400)
    if by.device == "cpu" and years > 1:
        raise UserError(
            f"tier {how.tier} cannot run on this machine's processor: about {years:,.0f} years on {cores()} cores; "
            "take a machine with GPUs, or another tier"
        )
    print(costs.text(runs, how, max(1, by.gpus), costs.find_speed(runs)), file=sys.stderr, flush=True)


def collect(name: str, runs: Sequence[Run] | None = None, **options: object) -> list[dict]:
    """The reader's records of a study (a name in STUDIES, `transfer` or `all`), training what is missing.

    runs: those that the study takes, by default those of `grids.grid`; references and fine-tunings are added to them.

    options: the fields of `tiers.StudyOptions`; tier is `shipped` by default. Tier `shipped` trains nothing and
    returns the finished runs on this data that lie in `runs_dir`, perhaps none. Any other tier (smoke, quick, laptop,
    paper) returns its records in grid order. `UserError` for a wrong option, for data that cannot be opened, and for
    runs that could not be finished; what was finished is kept."""
    name, how = value("study", StudyName, name), StudyOptions.from_dict({"tier": "shipped", **options})
    if how.tier == "shipped":
        found = [r for r in load(how.runs_dir) if (r["run"] or r["spec"])["data"] in sources(how.data)]
        tests = [r for r in found if r["kind"] == "pretrain" and 0 < r["run"]["steps"] <= max(TIERS["smoke"].lengths)]
        if tests:
            print(
                f"{len(tests)} runs of tier smoke in {how.runs_dir} are left out: they say nothing about the question"
            )
            found = [r for r in found if r not in tests]
        if how.data != "scenes" and not found:
            stand_in = "scenes" if name == TRANSFER or how.data in LOOKS else "CIFAR-10"
            print(f"tier shipped trains nothing: shipped runs on {stand_in} stand in for {how.data}")
        return found
    return study(name, runs, **options).records


def axes(tier: str = "shipped", **options: object) -> Axes:
    """What a tier varies on this data (sizes, unique images, lengths, seeds), and the runs that fill it.

    Tier `shipped` has those of the shipped records. Where a tier chooses its number of seeds by the time they take,
    this times a step on this machine, once, and prints what was chosen. A source is opened, full-size tiers apart:
    its runs are those of the pictures that can be read. options: the fields of `tiers.StudyOptions`."""
    how = StudyOptions.from_dict({"tier": tier, **options})
    if tier == "shipped":
        keys = {row["key"] for row in tables.rows(data=how.data).get("shipped", [])}
        return Axes.of(run_of(record["run"]) for record in beside(how.data) if record["key"] in keys)
    how, said = choose("all", how)
    print(said, end="\n" if said else "")
    runs = planned("all", how.axes, data=how.data, seeds=how.seeds)[0]  # what cannot be is refused before it is opened
    if not how.axes.full_size and how.data not in LOOKS:
        held = _opened(how, max(how.axes.images))[1]
        runs = plan_of("all", how.axes, data=how.data, seeds=how.seeds, precision="bf16", **held)[0]
    return Axes.of(runs)


def choose(
    name: str, how: StudyOptions, *, first_seed: int | None = None, measure: bool = True, gpus: int = 1, **speed: object
) -> tuple[StudyOptions, str]:
    """The options of a study with its seeds, None for those of the tier or the task itself, and a line to print, or "".

    how.seeds: how many, or which. how.minutes: a study of more than the fewest seeds takes so many as these hold, up to
    the tier's most, and at tier gpu the largest of its grids that they hold; by default the tier's own. measure: time a
    step on this machine where that is not known, else guess. speed: options of `find_speed`, of each of some GPUs."""
    how.check_study(name)
    trains = how.tier in TIERS
    if isinstance(how.seeds, tuple) or not trains:
        why = "seeds says which they are" if trains else "tier shipped trains nothing"
        for option, one in (("first_seed", first_seed), ("seeds", None if trains else how.seeds)):
            if one is not None:
                raise UserError(f"{option} is {one}, and {why}: leave it out")
        return how, ""
    given, axes = how, how.axes
    first = axes.first_seed if first_seed is None else value("first_seed", Whole, first_seed)

    def taken(count: int) -> StudyOptions:
        return replace(how, seeds=tuple(range(first, first + count)), minutes=None)

    minutes = how.minutes or axes.minutes
    if how.seeds is not None or name == TRANSFER or axes.full_size or not (minutes or axes.most_seeds):
        count = how.seeds or (axes.transfers or axes if name == TRANSFER else axes).seeds
        return (how if first_seed is None and how.seeds is None else taken(count)), ""
    held = held_by(axes, how.data)
    plan_of(name, axes, data=how.data, seeds=[first], **held)  # what cannot be is refused before anything is measured
    fitted = [] if how.models else [model for smaller in axes.fitted for model in smaller["models"]]
    models = list(dict.fromkeys([*axes.models, *fitted]))
    device, known = costs.measured(how.runs_dir, axes.recipe, how.device)
    if measure and how.engine == "local" and how.device == "auto" and known and (device != "cpu" or has_driver()):
        device, known = costs.measured(how.runs_dir, axes.recipe, str(pick_device()))  # what was measured is not here
    processes = how.workers or (cores() if device == "cpu" else 1)
    if any(speed.values()):
        images = costs.find_speed([replace(axes.recipe, model=model) for model in models], **speed).images
        processes, steps = gpus, {model: axes.recipe.batch_size / rate for model, rate in images.items()}
        known = {f"{model} {p}": seconds for model, seconds in steps.items() for p in PRECISIONS}
    elif measure and (how.engine == "ray" or not all(f"{m} {p}" in known for m in models for p in PRECISIONS)):
        with _pool(how) as pool:
            known, processes = pool().speeds(Path(how.runs_dir), models, axes.recipe), pool().workers

    def seed() -> tuple[list[Run], float]:
        """What a seed adds: its runs, and seconds."""
        precision = _precision(how, known)
        runs, tuned = plan_of(name, how.axes, data=how.data, seeds=[first], precision=precision, **held)
        tuning = sum(costs.tuning_seconds(spec, known) for spec in tuned)
        return runs, (costs.cost_of(runs, speeds=known)["seconds"] + tuning) / processes

    left, fewest = 60 * (minutes or 0) - _REST, axes.seeds
    for smaller in map(dict, axes.fitted):
        fewest = smaller.pop("seeds", axes.seeds)
        how = replace(given, **{name: one for name, one in smaller.items() if not getattr(given, name)})
        if left >= fewest * seed()[1]:
            break
    runs, each = seed()
    holds = max(0, int(left // each))
    count = min(max(holds, fewest), max(axes.most_seeds, fewest))
    many = f"{processes} {'GPU' if any(speed.values()) else 'process' + 'e' * (processes > 1)}{'s' * (processes > 1)}"
    said = f"{count} seeds, {first} to {first + count - 1}" if count > 1 else f"1 seed, {first}"
    if axes.fitted:
        levels, models = {run.images for run in runs}, ", ".join(map(short, how.axes.models))
        said += f", of {models} up to {how.axes.lengths[-1]:,} steps on {len(levels)} level{'s' * (len(levels) > 1)}"
        said += " of images"
    said += f": about {costs.clock(_REST + count * each)} in {many}"
    few = f", and fewer than {fewest} decide too little" if holds < fewest and not axes.fitted else ""
    said += f"; --minutes {minutes:g} holds {holds}{few}" if minutes else ""
    return taken(count), said
