"""What the studies start: of the transfer study pretraining runs, then every task from them and from scratch.

No torch here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import unknown
from ..training.run import Run
from ..training.tuning import Dense, FineTune, Probe
from . import full_size
from .full_size import check_sides, sources
from .grids import CLASSIFY, TIERS, TRANSFER, grid, seeds_of, tunings
from .parameters import images_of

Spec = FineTune | Dense | Probe


@dataclass(frozen=True)
class Axes:
    """The axes of the transfer study, and what its tasks share."""

    models: tuple[str, ...]
    images: tuple[int, ...]  # unique unlabelled images of pretraining
    seeds: int  # default number of seeds
    labels: int  # labelled images of classification
    steps: int = 1000  # of pretraining
    few: tuple[int, ...] = ()  # numbers of labelled images, few to many, for the largest model
    supervised: tuple[int, ...] = ()  # more numbers of labelled images, from scratch alone
    classify: dict = field(default_factory=dict)  # fields of FineTune
    detect: dict = field(default_factory=dict)  # fields of Dense
    segment: dict = field(default_factory=dict)


_SMALL = {"batch_size": 8, "steps": 4, "eval_every": 2, "warmup_steps": 1}
AXES = {
    "smoke": Axes(
        models=("swinv2_atto",),
        images=(16, 64),
        seeds=1,
        labels=64,
        steps=20,
        few=(16, 64),
        classify={"steps": 10, "batch_size": 16, "warmup_steps": 2, "test_images": 64},
        detect=_SMALL | {"images": 16, "test_images": 8},
        segment=_SMALL | {"images": 16, "test_images": 8},
    ),
    "quick": Axes(
        models=("swinv2_femto",),
        images=(64, 16384),
        seeds=2,
        labels=4000,
        few=(64, 256),
        detect={"test_images": 500},
        segment={"test_images": 500},
    ),
    "laptop": Axes(
        models=("swinv2_atto", "swinv2_femto"),
        images=(64, 1024, 16384),
        seeds=4,
        labels=4000,
        few=(64, 256, 1024),
        supervised=(16384,),
    ),
    # the three sizes that were evaluated on detection and segmentation (docs/facts.md, 4), at the longest length
    "paper": Axes(models=("swinv2_small", "swinv2_base", "swinv2_large"), images=full_size.LEVELS, seeds=1, labels=0),
}
#: Recipes of tier paper, by task.
FULL_SIZE = {"classify": "imagenet-100ep", "segment": "upernet-160k", "detect": "mask-rcnn-3x"}


def transfer_runs(
    tier: str,
    *,
    data: str = "scenes",
    available: int | None = None,
    seeds: int | Sequence[int] | None = None,
    precision: str = "fp32",
) -> list[Run]:
    """The pretraining runs that the tasks start from: cells of the tier's own grid, shared with the other studies.

    Every model and seed comes with its random initialisation, a Run of 0 steps, as the reference of its probes.
    """
    axes, base = AXES[tier], TIERS[tier].on(data)
    if base.full_size:
        same = {"data": data, "available": available, "seeds": seeds or None, "precision": precision}
        return [run for run in grid("data-scale", tier, **same) if run.model in axes.models]
    levels = [n for n in axes.images if available is None or n <= available] or [available]
    recipe = replace(base.recipe, data=data, precision=precision)
    runs = []
    for seed in seeds_of(tier, seeds or axes.seeds):
        for model in axes.models:
            one = replace(recipe, model=model, seed=seed, lr=base.lr.get(model, recipe.lr))
            runs.append(replace(one, images=levels[-1], steps=0))
            runs += [replace(one, images=n, steps=axes.steps) for n in levels]
    return list(dict.fromkeys(runs))


def transfer_specs(
    tier: str,
    *,
    labelled: int | None = None,
    annotated: Mapping[str, tuple[str, int]] | None = None,
    **options: object,
) -> list[Spec]:
    """The tasks from each of `transfer_runs` and from scratch, each once, the same seed for all that is compared.

    labelled: labelled images the source has (None = no limit, 0 = none). Boxes and masks are known of scenes alone;
    annotated: at tier paper {"detect": ("coco:DIR", training images), "segment": ("ade20k:DIR", training images)}.
    options as `transfer_runs` has them.
    """
    axes, runs = AXES[tier], transfer_runs(tier, **options)
    if TIERS[tier].full_size:
        return _full_size(runs, labelled, annotated or {})
    fits = [n for n in (*axes.few, axes.labels, *axes.supervised) if labelled is None or n <= labelled]
    if labelled and not fits:
        fits = [labelled]
    most = min(axes.labels, max(fits)) if fits else 0
    found: list[Spec] = []
    for run in runs:
        few = [n for n in fits if n < most] if run.model == axes.models[-1] else []
        for n in [*few, most] if most else []:
            found.append(_classify(axes, run, labels=n))
        if not run.steps and run.model == axes.models[-1]:
            found += [_classify(axes, run, labels=n) for n in fits if n > most]
        if labelled != 0:
            found.append(Probe.of(run))
        if run.data == "scenes":
            found += [_dense(axes, task, run) for task in ("segment", "detect")]
    return list(dict.fromkeys(found))


def _full_size(runs: list[Run], labelled: int | None, annotated: Mapping[str, tuple[str, int]]) -> list[Spec]:
    """Every task by its full-size recipe, from each run and once a size and seed from scratch."""
    found: list[Spec] = []
    for run in runs:
        given = {"classify": (run.data, labelled or full_size.LEVELS[-1]), **annotated}
        for task, recipe in FULL_SIZE.items():
            if task not in given or (task == "classify" and labelled == 0):
                continue
            data, count = given[task]
            kind = FineTune if task == "classify" else Dense
            spec = kind.recipe(recipe, count, data=data, model=run.model, seed=run.seed, precision=run.precision)
            found += [replace(spec, run=run), replace(spec, layer_decay=1.0)]
    return list(dict.fromkeys(found))


def _classify(axes: Axes, run: Run, labels: int) -> FineTune:
    options = {"labels": labels, "seed": run.seed, **axes.classify}
    return FineTune.of(run, **CLASSIFY, **options) if run.steps else FineTune.scratch(run, **options)


def _dense(axes: Axes, task: str, run: Run) -> Dense:
    make = Dense.of if run.steps else Dense.scratch
    return make(task, run, seed=run.seed, **getattr(axes, task))


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
