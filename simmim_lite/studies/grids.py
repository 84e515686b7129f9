"""What each study runs at each tier: lists of Runs, nothing else. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import UserError, unknown
from ..training.run import Run
from ..training.tuning import FineTune
from . import full_size

STUDIES = ("data-scale", "model-size", "schedule", "proxy")
#: The study of transfer tasks (`transfer_grid.py`); `all` means the four of STUDIES.
TRANSFER = "transfer"


@dataclass(frozen=True)
class Tier:
    """The axes of the four studies and the recipe their runs share."""

    models: tuple[str, ...]
    images: tuple[int, ...]  # unique training images, smallest first
    lengths: tuple[int, ...]  # optimiser steps of the schedule study, shortest first
    seeds: int  # default number of seeds: 0, 1, ...
    recipe: Run  # every other field
    core: int | None = None  # optimiser steps of the (size x level) grid; None = the longest length
    lr: dict[str, float] = field(default_factory=dict)  # peak learning rate of sizes that want their own
    by_size: dict[str, dict] = field(default_factory=dict)  # other fields of Run, likewise
    schedule_models: tuple[str, ...] | None = None  # sizes of the schedule study; None = all
    schedule_images: tuple[int, ...] | None = None  # its data levels; None = the smallest and the largest
    finetune_models: tuple[str, ...] = ()  # sizes whose core grid is fine-tuned, beside scratch
    finetune_labels: int = 4000  # labelled images of these fine-tunings
    supervised_models: tuple[str, ...] = ()  # sizes trained on labels alone, at every one of
    supervised_labels: tuple[int, ...] = ()  # these numbers of labelled images
    second_images: tuple[int, ...] = ()  # levels of a second source, which stand for a data set of their own
    holes: frozenset[tuple[str, int]] = frozenset()  # (model, images) that are not run
    full_size: bool = False  # the original grid: needs GPUs, and shows its cost before it starts

    @property
    def core_steps(self) -> int:
        """Optimiser steps that all cells of the (size x level) grid share."""
        return self.core or self.lengths[-1]


_RECIPE = Run()
#: A data set of which a few images cannot be read still fills its level.
_NEARLY = 0.99

TIERS = {
    "smoke": Tier(
        models=("swinv2_atto", "swinv2_femto"),
        images=(16, 64),
        lengths=(10, 20),
        seeds=1,
        recipe=replace(
            _RECIPE,
            batch_size=16,
            warmup_steps=5,
            eval_every=10,
            val_images=64,
            val_masks=2,
            probe_labels=200,
            probe_test=100,
        ),
    ),
    "quick": Tier(
        models=("swinv2_atto", "swinv2_femto"),
        images=(64, 1024, 16384),
        lengths=(250, 500, 1000),
        seeds=2,
        recipe=_RECIPE,
    ),
    # learning rate a size: lowest validation loss on 16,384 scenes, seed 100, which no study reports
    # (pico: 1e-3 .3733, 2e-3 .3660, 3e-3 .3679, 6e-3 .3702)
    "laptop": Tier(
        models=("swinv2_atto", "swinv2_femto", "swinv2_pico"),
        images=(16, 64, 256, 1024, 16384),
        lengths=(250, 500, 1000, 2000),
        seeds=3,
        recipe=_RECIPE,
        core=1000,
        lr={"swinv2_pico": 2e-3},
        schedule_models=("swinv2_atto", "swinv2_femto"),
        schedule_images=(64, 16384),
        finetune_models=("swinv2_atto", "swinv2_femto"),
        supervised_models=("swinv2_femto",),
        supervised_labels=(64, 256, 1024, 16384),
    ),
    # data-scale and model-size take the 21 cells at the longest length; schedule, proxy and all take all 63 runs
    "paper": Tier(
        models=full_size.SIZES,
        images=full_size.LEVELS,
        second_images=(full_size.WHOLE_22K,),
        lengths=full_size.LENGTHS,
        seeds=1,
        recipe=full_size.RECIPE,
        lr=full_size.LR,
        by_size=full_size.BY_SIZE,
        schedule_images=(*full_size.LEVELS, full_size.WHOLE_22K),
        holes=full_size.HOLES,
        full_size=True,
    ),
}


def grid(
    study: str,
    tier: str,
    *,
    data: str = "scenes",
    available: int | None = None,
    second_available: int | None = None,
    seeds: int | Sequence[int] | None = None,
    precision: str | None = None,
) -> list[Run]:
    """The Runs of a study (a name in STUDIES, or `all`) at a tier, without duplicates.

    data: one source; at tier paper two, `FIRST + SECOND`, of ImageNet-1K and ImageNet-22K (`full_size.sources`).
    available, second_available: training images these hold (None = no limit); larger levels are replaced by all there
    are. Without a second source its level is drawn from the first, and left out where that is too small. seeds: how
    many (0, 1, ...) or which. precision: None = the tier's own. Where there are probes, every model and seed comes with
    its random initialisation, a Run of 0 steps, as the reference of its transfer scores.
    """
    if study not in (*STUDIES, "all"):
        raise unknown("study", study, (*STUDIES, "all"))
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    axes = TIERS[tier]
    chosen = _seeds(axes.seeds if seeds is None else seeds)
    places = _places(tier, data, available, second_available)
    ends = axes.schedule_images or (axes.images[0], axes.images[-1])
    recipe = replace(axes.recipe, precision=precision or axes.recipe.precision)
    runs = []
    for seed in chosen:
        for model in axes.models:
            own = {"lr": axes.lr.get(model, recipe.lr), **axes.by_size.get(model, {})}
            one = replace(recipe, model=model, seed=seed, **own)
            cells = {n: replace(one, **place) for n, place in places.items() if (model, n) not in axes.holes}
            if recipe.probe_labels:
                runs.append(replace(cells[axes.images[-1]], steps=0))
            if study != "schedule":
                runs += [replace(cell, steps=axes.core_steps) for cell in cells.values()]
            if study in ("schedule", "proxy", "all") and model in (axes.schedule_models or axes.models):
                runs += [replace(cells[n], steps=t) for n in ends if n in cells for t in axes.lengths]
    return list(dict.fromkeys(runs))


def tunings(
    study: str,
    tier: str,
    *,
    data: str = "scenes",
    available: int | None = None,
    second_available: int | None = None,
    labelled: int | None = None,
    seeds: int | Sequence[int] | None = None,
    precision: str | None = None,
) -> list[FineTune]:
    """The fine-tunings of a study at a tier: the core grid's, each size from scratch, and the supervised baselines.

    labelled: labelled images the source has (None = no limit, 0 = none, and then no fine-tuning). Fine-tuning of a run
    has the run's seed, so that pairs over seeds share the head, the labels and the order of a seed.
    """
    axes = TIERS[tier]
    if study not in ("data-scale", "proxy", "all") or labelled == 0:
        return []
    labels = min(axes.finetune_labels, labelled or axes.finetune_labels)
    supervised = [n for n in axes.supervised_labels if labelled is None or n <= labelled]
    found = []
    same = {"data": data, "available": available, "second_available": second_available}
    for run in grid("data-scale", tier, seeds=seeds, precision=precision, **same):
        if run.model not in (*axes.finetune_models, *axes.supervised_models):
            continue
        if run.steps and run.model in axes.finetune_models:
            found.append(FineTune.of(run, labels=labels, seed=run.seed))
        if not run.steps:
            counts = [labels] if run.model in axes.finetune_models else []
            counts += supervised if run.model in axes.supervised_models else []
            found += [FineTune.scratch(run, labels=n, seed=run.seed) for n in counts]
    return list(dict.fromkeys(found))


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen:
        raise UserError(f"seeds is {seeds!r}: give a number of at least 1, or a list of seeds")
    return chosen


def _places(tier: str, data: str, available: int | None, more: int | None) -> dict[int, dict]:
    """The fields of Run that say where the images of each level of a tier come from, and how many there are."""
    axes, (first, second) = TIERS[tier], full_size.sources(data)
    if second is not None and not axes.second_images:
        raise UserError(f"data '{data}' names two sources: tier {tier} takes one, {first}")
    found = {n: {"data": first, "images": m} for n, m in _levels(axes.images, available).items()}
    for n in axes.second_images:
        if second is not None:
            found[n] = {"data": second, "images": _levels((n,), more)[n]}
        elif available is None or available >= _NEARLY * n:
            found[n] = {"data": first, "images": _levels((n,), available)[n]}
    return found


def _levels(levels: tuple[int, ...], available: int | None) -> dict[int, int]:
    """The images to draw by level: the levels that fit, and all images in place of those that do not."""
    if available is None or available >= _NEARLY * levels[-1]:
        return {n: min(n, available or n) for n in levels}
    # a level too close to all there are would compare a set with itself
    return {**{n: n for n in levels[:-1] if n <= available / 2}, levels[-1]: available}
