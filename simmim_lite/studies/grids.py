"""What each study runs at each tier: lists of Runs, nothing else. No torch here."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..errors import UserError, unknown
from ..model.sizes import SIZES
from ..training.run import Run
from ..training.tuning import FineTune
from . import full_size

STUDIES = ("data-scale", "model-size", "schedule", "proxy")
#: The study of transfer tasks (`transfer_grid.py`); `all` means the four of STUDIES.
TRANSFER = "transfer"
#: The claims that a study is about.
CLAIMS = {
    "data-scale": ("C1", "C6", "C8"),
    "model-size": ("C1", "C2"),
    "schedule": ("C3", "C4", "C7"),
    "proxy": ("C5a", "C5b"),
    TRANSFER: ("C5a", "C5b", "C8"),
}


def claims_of(study: str) -> set[str]:
    """The claims that a study, or `all`, is about."""
    return {claim for name, ids in CLAIMS.items() if study in (name, "all") for claim in ids}


#: Of a pretrained start; from scratch the defaults of `FineTune` are best. Tuned as `TUNED`, top-1 at 4e-3, 8e-3,
#: 1.6e-2, 3.2e-2: .591 .623 .610 .615 with layer decay .9, .625 at 8e-3 without, .618 at 1.6e-2 with .75; scratch at
#: 2e-3, 4e-3, 8e-3: .432 .469 .435.
CLASSIFY = {"lr": 8e-3, "layer_decay": 1.0}


@dataclass(frozen=True)
class Supervised:
    """What C8 compares: pretraining on few images and fine-tuning on few labels, with as long on labels alone."""

    model: str = "swinv2_femto"
    images: int = 1024  # of pretraining
    steps: int = 1000  # of pretraining
    labels: int = 4000
    tuning: int = 600  # steps of fine-tuning
    much: int = 16384  # labels of the network from scratch


@dataclass(frozen=True)
class Tier:
    """The one grid of a tier, of which every study is a slice, and the recipe its runs share."""

    models: tuple[str, ...]
    images: tuple[int, ...]  # unique training images, smallest first
    lengths: tuple[int, ...]  # optimiser steps off one trunk, shortest first
    seeds: int  # how many, and where no minutes are given
    recipe: Run  # every other field
    first_seed: int = 0
    most_seeds: int = 0  # where the minutes hold so many; 0 = as many as `seeds`
    minutes: float | None = None  # that a study may take by default; the number of seeds follows
    extra: tuple[tuple[str, int, int], ...] = ()  # model, images, steps of runs beside the grid
    photographs: dict = field(default_factory=dict)  # fields of this class that differ where data are not scenes
    lr: dict[str, float] = field(default_factory=dict)  # peak learning rate of sizes that want their own
    by_size: dict[str, dict] = field(default_factory=dict)  # other fields of Run, likewise
    supervised: Supervised | None = None
    second_images: tuple[int, ...] = ()  # levels of a second source, which stand for a data set of their own
    holes: frozenset[tuple[str, int]] = frozenset()  # (model, images) that are not run
    full_size: bool = False  # the original grid: needs GPUs, and shows its cost before it starts

    def on(self, data: str) -> "Tier":
        """The tier on a source: photographs need longer runs than scenes, and more labels for their probe."""
        return self if data == "scenes" else replace(self, **self.photographs)


#: Seeds of studies count from here: those before were looked at while rules and grids were made, or are shipped.
FIRST_SEED = 200
_RECIPE = Run()
_LAPTOP = replace(_RECIPE, eval_every=125, probe_labels=4096, probe_test=4096)  # of scenes there are no more labels
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
    # five seeds are the fewest that decide C1 to C4 together (docs/settings.md)
    "quick": Tier(
        models=("swinv2_atto", "swinv2_femto"),
        images=(16, 16384),
        lengths=(250, 500),
        extra=(("swinv2_atto", 1024, 500),),
        seeds=5,
        most_seeds=8,
        minutes=5,
        first_seed=FIRST_SEED,
        recipe=replace(_RECIPE, eval_every=125, probe_test=4096),
    ),
    "laptop": Tier(
        models=("swinv2_atto", "swinv2_femto"),
        images=(16, 64, 256, 1024, 16384),
        lengths=(250, 500, 1000, 2000),
        seeds=3,
        most_seeds=8,
        first_seed=FIRST_SEED,
        recipe=_LAPTOP,
        photographs={
            "lengths": (500, 1000, 2000, 4000),
            "recipe": replace(_LAPTOP, probe_labels=10_000, probe_test=5000),
        },
        supervised=Supervised(),
    ),
    # a third size at the longest length: it is shown, and decides nothing
    "laptop-pico": Tier(
        models=("swinv2_pico",),
        images=(16, 1024, 16384),
        lengths=(2000,),
        seeds=3,
        first_seed=FIRST_SEED,
        recipe=_LAPTOP,
        photographs={"lengths": (4000,), "recipe": replace(_LAPTOP, probe_labels=10_000, probe_test=5000)},
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
        holes=full_size.HOLES,
        full_size=True,
    ),
}


@dataclass(frozen=True)
class Axes:
    """What a tier varies on a source, and the runs that fill it: a study is a slice of these."""

    runs: tuple[Run, ...]  # trained ones, without references
    models: tuple[str, ...]  # those with the most seeds, smallest first
    images: tuple[int, ...]  # unique training images that all of these were run at, fewest first
    lengths: tuple[int, ...]  # optimiser steps that all of these cells were run for, shortest first
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, runs: Iterable[Run]) -> "Axes":
        """The axes of trained runs; references among them are left out."""
        runs = tuple(run for run in dict.fromkeys(runs) if run.steps)
        seeds = {model: {run.seed for run in runs if run.model == model} for model in {run.model for run in runs}}
        most = max(map(len, seeds.values()), default=0)
        models = sorted((m for m in seeds if len(seeds[m]) == most), key=lambda m: (SIZES[m].parameters, m))
        images = _shared({run.images for run in runs if run.model == model} for model in models)
        cells = [(model, n) for model in models for n in images]
        lengths = _shared({run.steps for run in runs if (run.model, run.images) == cell} for cell in cells)
        return cls(runs, tuple(models), images, lengths, tuple(sorted(set().union(*seeds.values()))))


def _shared(sets: Iterable[set[int]]) -> tuple[int, ...]:
    """What all of them have, or else any."""
    sets = list(sets)
    return tuple(sorted(set.intersection(*sets) or set.union(*sets))) if sets else ()


#: Which of a tier's runs a study takes: data and size are compared at the longest length.
SLICES: dict[str, Callable[[Axes], Iterable[Run]]] = {
    "data-scale": lambda axes: (run for run in axes.runs if run.steps == axes.lengths[-1]),
    "model-size": lambda axes: (run for run in axes.runs if run.steps == axes.lengths[-1]),
    "schedule": lambda axes: axes.runs,
    "proxy": lambda axes: axes.runs,
    "all": lambda axes: axes.runs,
}


def grid(study: str, tier: str, **options: object) -> list[Run]:
    """The Runs of a study (a name in STUDIES, or `all`) at a tier, with the references of their scores.

    options as `tier_axes` has them.
    """
    if study not in SLICES:
        raise unknown("study", study, SLICES)
    return with_references(SLICES[study](tier_axes(tier, **options)))


def with_references(runs: Iterable[Run]) -> list[Run]:
    """Runs, and before those of each model and seed its network at random initialisation, a Run of 0 steps.

    Transfer scores count from it; where there are no probes there is none.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.model, run.seed), []).append(run)
    found = []
    for some in groups.values():
        first = max((run for run in some if run.images), key=lambda run: run.images)
        found += [*([replace(first, steps=0)] if first.probe_labels else []), *some]
    return list(dict.fromkeys(found))


def tier_axes(
    tier: str,
    *,
    data: str = "scenes",
    available: int | None = None,
    second_available: int | None = None,
    seeds: int | Sequence[int] | None = None,
    precision: str | None = None,
) -> Axes:
    """The axes and runs of a tier.

    data: one source; at tier paper two, `FIRST + SECOND`, of ImageNet-1K and ImageNet-22K (`full_size.sources`).
    available, second_available: training images these hold (None = no limit); larger levels are replaced by all there
    are. Without a second source its level is drawn from the first, and left out where that is too small. seeds: how
    many, from the tier's first on, or which. precision: None = the tier's own.
    """
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    axes = TIERS[tier].on(data)
    places = _places(tier, data, available, second_available)
    recipe = replace(axes.recipe, precision=precision or axes.recipe.precision)
    runs = []
    for seed in seeds_of(tier, seeds):
        for model in axes.models:
            own = {"lr": axes.lr.get(model, recipe.lr), **axes.by_size.get(model, {})}
            one = replace(recipe, model=model, seed=seed, **own)
            cells = {n: replace(one, **place) for n, place in places.items() if (model, n) not in axes.holes}
            whole = [n for n in (*axes.images, *axes.second_images) if n in cells]
            runs += [replace(cells[n], steps=t) for n in whole for t in axes.lengths]
            runs += [replace(cells[n], steps=t) for name, n, t in axes.extra if name == model and n in cells]
    return Axes.of(runs)


def tunings(study: str, tier: str, *, labelled: int | None = None, **options: object) -> list[FineTune]:
    """The fine-tunings of a study at a tier, four a seed: a pretrained network on few labels, and from scratch on many
    labels for as long as both, on few for as long, and on many for as long as the fine-tuning.

    labelled: labelled images the source has (None = no limit, 0 = none, and then no fine-tuning); options as
    `tier_axes` has them. All have the run's seed, so that pairs over seeds share the head, the labels and the order.
    """
    axes = TIERS[tier].supervised
    if axes is None or study not in ("data-scale", "proxy", "all") or labelled == 0:
        return []
    much = min(axes.much, labelled or axes.much)
    labels, long = min(axes.labels, much // 4), axes.steps + axes.tuning
    found = []
    for run in grid("all", tier, **options):
        if (run.model, run.images, run.steps) == (axes.model, axes.images, axes.steps):
            shared = {"seed": run.seed, "test_images": run.probe_test}
            found.append(FineTune.of(run, labels=labels, steps=axes.tuning, **CLASSIFY, **shared))
            for n, steps in ((much, long), (labels, long), (much, axes.tuning)):
                found.append(FineTune.scratch(run, labels=n, steps=steps, **shared))
    return list(dict.fromkeys(found))


def seeds_of(tier: str, seeds: int | Sequence[int] | None = None) -> list[int]:
    """Which seeds a study has: so many from the tier's first on (None = its own number), or those given."""
    axes = TIERS[tier]
    seeds = axes.seeds if seeds is None else seeds
    chosen = list(range(axes.first_seed, axes.first_seed + seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen:
        raise UserError(f"seeds is {seeds!r}: give a number of at least 1, or a list of seeds")
    return chosen


def _places(tier: str, data: str, available: int | None, more: int | None) -> dict[int, dict]:
    """The fields of Run that say where the images of each level of a tier come from, and how many there are."""
    axes, (first, second) = TIERS[tier], full_size.sources(data)
    if second is not None and not axes.second_images:
        raise UserError(f"data '{data}' names two sources: tier {tier} takes one, {first}")
    levels = tuple(sorted({*axes.images, *(n for _, n, _ in axes.extra)}))
    found = {n: {"data": first, "images": m} for n, m in _levels(levels, available).items()}
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
