"""What each study runs at each tier: lists of Runs, nothing else. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import UserError, unknown
from ..training.run import Run
from ..training.tuning import FineTune

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
    schedule_models: tuple[str, ...] | None = None  # sizes of the schedule study; None = all
    schedule_images: tuple[int, ...] | None = None  # its data levels; None = the smallest and the largest
    finetune_models: tuple[str, ...] = ()  # sizes whose core grid is fine-tuned, beside scratch
    finetune_labels: int = 4000  # labelled images of these fine-tunings
    supervised_models: tuple[str, ...] = ()  # sizes trained on labels alone, at every one of
    supervised_labels: tuple[int, ...] = ()  # these numbers of labelled images

    @property
    def core_steps(self) -> int:
        """Optimiser steps that all cells of the (size x level) grid share."""
        return self.core or self.lengths[-1]


_RECIPE = Run()

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
}


def grid(
    study: str,
    tier: str,
    *,
    data: str = "scenes",
    available: int | None = None,
    seeds: int | Sequence[int] | None = None,
    precision: str = "fp32",
) -> list[Run]:
    """The Runs of a study (a name in STUDIES, or `all`) at a tier, without duplicates.

    available: training images the source has (None = no limit); larger levels are replaced by all there are. seeds: how
    many (0, 1, ...) or which. Every model and seed comes with its random initialisation, a Run of 0 steps, as the
    reference of its transfer scores.
    """
    if study not in (*STUDIES, "all"):
        raise unknown("study", study, (*STUDIES, "all"))
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    axes = TIERS[tier]
    chosen = _seeds(axes.seeds if seeds is None else seeds)
    levels = _levels(axes.images, available)
    ends = dict.fromkeys(_levels(axes.schedule_images or (axes.images[0], axes.images[-1]), available))
    recipe = replace(axes.recipe, data=data, precision=precision)
    runs = []
    for seed in chosen:
        for model in axes.models:
            one = replace(recipe, model=model, seed=seed, lr=axes.lr.get(model, recipe.lr))
            runs.append(replace(one, images=levels[-1], steps=0))
            if study != "schedule":
                runs += [replace(one, images=n, steps=axes.core_steps) for n in levels]
            if study in ("schedule", "proxy", "all") and model in (axes.schedule_models or axes.models):
                runs += [replace(one, images=n, steps=t) for n in ends for t in axes.lengths]
    return list(dict.fromkeys(runs))


def tunings(
    study: str,
    tier: str,
    *,
    data: str = "scenes",
    available: int | None = None,
    labelled: int | None = None,
    seeds: int | Sequence[int] | None = None,
    precision: str = "fp32",
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
    for run in grid("data-scale", tier, data=data, available=available, seeds=seeds, precision=precision):
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


def _levels(levels: tuple[int, ...], available: int | None) -> list[int]:
    """The levels that fit, and all images in place of those that do not."""
    if available is None or available >= levels[-1]:
        return list(levels)
    # a level too close to all there are would compare a set with itself
    return [*(n for n in levels if n <= available / 2), available]
