"""The runs and transfers of a study at a tier, on the images that a source has. No torch here."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..data.scenes import LOOKS
from ..data.sources import FORMATS, Data, kind_of, listing, open_data, stored
from ..errors import UserError, unknown
from ..model.sizes import SIZES
from ..training.run import Run
from ..training.tuning import Dense, FineTune, Probe
from .tiers import ALL, CLASSIFY, LEVELS, NAMED, STUDIES, TIERS, TRANSFER, TWO_SOURCES, AnyTier, Tier, tier_of

TransferSpec = FineTune | Dense | Probe
#: A data set of which a few images cannot be read still fills its level.
NEARLY = 0.99
#: Recipes of tier paper, by task.
_FULL_SIZE = {"classify": "imagenet-100ep", "segment": "upernet-160k", "detect": "mask-rcnn-3x"}


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
        images = _shared([{run.images for run in runs if run.model == model} for model in models])
        cells = [(model, n) for model in models for n in images]
        lengths = _shared([{run.steps for run in runs if (run.model, run.images) == cell} for cell in cells])
        return cls(runs, tuple(models), images, lengths, tuple(sorted(set().union(*seeds.values()))))


def _shared(sets: list[set[int]]) -> tuple[int, ...]:
    """What all of them have, or else any."""
    return tuple(sorted(set.intersection(*sets) or set.union(*sets))) if sets else ()


def grid(study: str, tier: AnyTier, **options: object) -> list[Run]:
    """The Runs of a study (a name in STUDIES, or `all`) at a tier, with the references of their scores; options as
    `tier_axes` has them. Data and size are compared at the longest length."""
    if study not in (*STUDIES, ALL):
        raise unknown("study", study, (*STUDIES, ALL))
    axes = tier_axes(tier, **options)
    longest = study in STUDIES and STUDIES[study].longest
    return with_references(run for run in axes.runs if not longest or run.steps == axes.lengths[-1])


def with_references(runs: Iterable[Run]) -> list[Run]:
    """Runs, and before those of each model and seed its network at random initialisation, a Run of 0 steps, from which
    transfer scores count; where there are no probes there is none."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.model, run.seed), []).append(run)
    found = []
    for some in groups.values():
        first = max((run for run in some if run.images), key=lambda run: run.images)
        random = replace(first, steps=0, init=None, init_windows=None)
        found += [*([random] if first.probe_labels else []), *some]
    return list(dict.fromkeys(found))


def tier_axes(
    tier: AnyTier,
    *,
    data: str = "scenes",
    available: int | None = None,
    second_available: int | None = None,
    seeds: int | Sequence[int] | None = None,
    precision: str | None = None,
) -> Axes:
    """The axes and runs of a tier; seeds: how many, from the tier's first on, or which; precision: None = its own.

    data: one source; at tier paper two, `FIRST + SECOND`. available, second_available: training images these hold
    (None = no limit); larger levels are replaced by all there are. Without a second source its level is drawn from the
    first, and left out where that is too small."""
    axes = tier_of(tier).on(data)
    places = _places(axes, data, available, second_available)
    recipe = replace(axes.recipe, precision=precision or axes.recipe.precision)
    runs = []
    for seed in seeds_of(axes, seeds):
        for model in axes.models:
            one = replace(recipe, model=model, seed=seed, **axes.by_size.get(model, {}))
            cells = {n: replace(one, **place) for n, place in places.items() if (model, n) not in axes.holes}
            whole = [n for n in (*axes.images, *axes.second_images) if n in cells]
            runs += [replace(cells[n], steps=t) for n in whole for t in axes.lengths]
            runs += [replace(cells[n], steps=t) for name, n, t in axes.extra if name == model and n in cells]
    return Axes.of(runs)


def seeds_of(axes: Tier, seeds: int | Sequence[int] | None) -> list[int]:
    """Which seeds a study has: so many from the tier's first on (None = its own number), or those given."""
    seeds = axes.seeds if seeds is None else seeds
    chosen = list(range(axes.first_seed, axes.first_seed + seeds) if isinstance(seeds, int) else seeds)
    if not chosen:
        raise UserError(f"seeds is {seeds!r}: give a number of at least 1, or a list of seeds")
    return chosen


def _places(tier: AnyTier, data: str, available: int | None, more: int | None) -> dict[int, dict]:
    """Which images each level of a tier takes, as fields of Run; levels that there are too few images for are not in
    it, but the largest, which takes all there are."""
    axes, (first, second) = tier_of(tier), sources(data)
    if second is not None and not axes.second_images:
        raise UserError(f"data '{data}' names two sources: tier {tier} takes one, {first}")
    *levels, last = sorted({*axes.images, *(n for _, n, _ in axes.extra)})
    if available is not None and available < NEARLY * last:
        # a level too close to all there are would compare a set with itself
        taken = {n: n for n in levels if n <= available / 2} | {last: available}
    else:
        taken = {n: min(n, available or n) for n in (*levels, last)}
    found = {n: {"data": first, "images": images} for n, images in taken.items()}
    held = available if second is None else more
    for n in axes.second_images:
        if second is not None or held is None or held >= NEARLY * n:
            found[n] = {"data": second or first, "images": min(n, held or n)}
    return found


def left_out(tier: AnyTier, data: str, held: Mapping[str, int]) -> str:
    """Which levels the images that are there cannot fill, in one line; empty when they fill every level. held: as
    `images_of` gives it."""
    axes = tier_of(tier)
    places = _places(axes, data, held.get("available"), held.get("second_available"))
    levels = (*axes.images, *axes.second_images)
    short = [n for n in levels if n not in places or places[n]["images"] < NEARLY * n]
    if not short:
        return ""
    taken = " + ".join(f"{place['images']:,}" for place in places.values())
    line = f"{data} cannot fill the levels of {', '.join(f'{n:,}' for n in short)} images: runs take {taken}"
    missing = any(n not in places for n in axes.second_images)
    return line + (f"; a second source has the last: --data {TWO_SOURCES}" if missing else "")


# --- transfers ------------------------------------------------------------------------------------------------------


def tunings(study: str, tier: AnyTier, *, labelled: int | None = None, **options: object) -> list[FineTune]:
    """The fine-tunings of a study at a tier, four a seed: a pretrained network on few labels, and from scratch on many
    labels for as long as both, on few for as long, and on many for as long as the fine-tuning.

    labelled: labelled images the source has (None = no limit); options as `tier_axes` has them."""
    axes = tier_of(tier).supervised
    if axes is None or labelled == 0 or not (study == ALL or NAMED[study].supervised):
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


def transfer_runs(tier: Tier, *, available: int | None = None, seeds: object = None, **options: object) -> list[Run]:
    """The pretraining runs that the tasks start from, cells of the tier's own grid, with their references; options as
    `tier_axes` has them."""
    own, seeds = tier.transfers, seeds or tier.transfers.seeds
    runs = grid("data-scale", tier, available=available, seeds=seeds, **options)
    if tier.full_size:
        return [run for run in runs if run.model in own.models]
    levels = [n for n in own.images if available is None or n <= available] or [available]
    own_cells = [(levels[-1], 0), *((n, own.steps) for n in levels)]
    cells = itertools.product(seeds_of(tier, seeds), own.models, own_cells)
    return [replace(runs[0], seed=seed, model=model, images=n, steps=t) for seed, model, (n, t) in cells]


def transfer_specs(
    axes: Tier, runs: Sequence[Run], labelled: int | None, annotated: Mapping[str, tuple[str, int]]
) -> list[TransferSpec]:
    """The tasks from each of `transfer_runs` and from scratch, each once, the same seed for all that is compared.

    labelled: labelled images the source has (None = no limit). Boxes and masks are known of scenes alone; annotated: at
    tier paper {"detect": ("coco:DIR", training images), "segment": ("ade20k:DIR", training images)}."""
    own, found = axes.transfers, []
    if axes.full_size:
        for run in runs:
            # on labels of the first source, whatever a network has seen (docs/facts.md, 4)
            given = {"classify": (runs[0].data, labelled or LEVELS[-1])} if labelled != 0 else {}
            for task, (data, count) in (given | annotated).items():
                kind, shared = FineTune if task == "classify" else Dense, {"seed": run.seed, "precision": run.precision}
                spec = kind.recipe(_FULL_SIZE[task], count, data=data, model=run.model, **shared)
                found += [replace(spec, run=run), replace(spec, layer_decay=1.0)]
        return list(dict.fromkeys(found))
    fits = [n for n in (*own.few, own.labels, *own.supervised) if labelled is None or n <= labelled]
    fits = fits or ([labelled] if labelled else [])
    most = min(own.labels, max(fits, default=0))
    for run in runs:
        largest, start = run.model == own.models[-1], "of" if run.steps else "scratch"
        labels = [n for n in fits if n == most or (largest and (n < most or not run.steps))]
        shared = {"seed": run.seed} | own.classify | (CLASSIFY if run.steps else {})
        found += [getattr(FineTune, start)(run, labels=n, **shared) for n in labels]
        if labelled != 0:
            found.append(Probe.of(run))
        if run.data == "scenes":
            found += [getattr(Dense, start)(task, run, seed=run.seed, **own.dense) for task in ("segment", "detect")]
    return list(dict.fromkeys(found))


# --- beginnings -----------------------------------------------------------------------------------------------------


def beginnings(
    tier: AnyTier, *, data: str = "plankton", foreign: str = "scenes", seeds: int | Sequence[int] | None = None
) -> tuple[list[Run], list[Run]]:
    """The runs whose weights others begin with, none where `foreign` names weights, and the runs of the four arms.

    foreign: a source to pretrain on, for every seed anew, or weights as `Run.init` has them, whose size is taken.
    Levels larger than the own images are replaced by all of them. Tier shipped is laptop's, and looks at sources; at
    others they are opened. `UserError` for a tier without this study, and for weights that are not there."""
    axes = tier_of("laptop" if str(tier) == "shipped" else tier).on(data)
    if (own := axes.beginnings) is None:
        raise unknown("tier of the study of beginnings", str(axes), [n for n, one in TIERS.items() if one.beginnings])
    source = not foreign.startswith("hf://") and re.match(_STARTS, foreign)
    recipe = replace(axes.recipe, data=data, model=own.model, precision="bf16")
    first = recipe if source else axes.begin_with(foreign, recipe)

    def held(spec: str, asked: int) -> int:
        if spec in LOOKS or str(tier) == "shipped":
            return images_of(spec).get("available", asked)
        held_by(replace(axes, recipe=first), spec)  # small pictures are refused before all are decoded
        return len(open_data(spec, first.image_size).train)

    levels, most = own.images, own.images[-1]
    if (available := held(data, most)) < NEARLY * most:
        levels = (*(n for n in levels if n <= available / 2), available)
    levels = tuple(min(n, available) for n in levels)  # of a source that nearly fills the largest
    before, found, (images, steps) = [], [], own.foreign
    images = min(images, held(foreign, images)) if source else images
    for seed in seeds_of(axes, seeds or own.seeds):
        random = replace(first, seed=seed, images=levels[-1], steps=0, init=None, init_windows=None)
        if source:
            before.append(replace(random, data=foreign, images=images, steps=steps))
        start = {"init": before[-1].key} if source else {"init": first.init, "init_windows": first.init_windows}
        alone = [replace(random, images=n, steps=own.steps) for n in levels]
        both = [replace(run, lr=own.lr * run.lr, **start) for run in alone]
        found += [random, replace(random, **start), *alone, *both]
    return before, found


# --- a study on a source --------------------------------------------------------------------------------------------


def plan_of(
    name: str, tier: AnyTier, *, labelled: int | None = None, coco: str = "", ade20k: str = "", **options: object
) -> tuple[list[Run], list[TransferSpec]]:
    """The runs of a study at a tier, and what is trained from them; options as `tier_axes` has them. coco, ade20k:
    folders with boxes and with class maps, which the transfer study opens at tier paper."""
    if name != TRANSFER:
        return grid(name, tier, **options), tunings(name, tier, labelled=labelled, **options)
    axes = tier_of(tier)
    axes.check_transfers()
    annotated = {}
    for task, kind, folder in (("detect", "coco", coco), ("segment", "ade20k", ade20k)):
        if folder and axes.full_size:
            from ..training.transfer import open_for

            annotated[task] = f"{kind}:{folder}", len(open_for(task, f"{kind}:{folder}", 0).train)
    runs = transfer_runs(axes, **options)
    return runs, transfer_specs(axes, runs, labelled, annotated)


def planned(
    name: str, tier: AnyTier, *, data: str = "scenes", seeds: object = None, precision: str | None = "bf16"
) -> tuple[list[Run], list[TransferSpec]]:
    """`plan_of` at the levels that a source can fill, as far as `held_by` knows; seeds: 0 as None."""
    return plan_of(name, tier, data=data, seeds=seeds or None, precision=precision, **held_by(tier, data))


def held_by(tier: AnyTier, data: str) -> dict[str, int]:
    """Images that the sources of a `data` parameter hold, as `plan_of` takes them: those that could be read, where a
    study has decoded them at the tier's size, else those listed, and a source of smaller pictures is refused."""
    (first, second), recipe = sources(data), tier_of(tier).recipe
    if second is None and not recipe.streamed and (decoded := stored(first, recipe.image_size)):
        return counts_of(decoded)
    held = images_of(data)
    for source, name in ((first, "available"), (second, "second_available")):
        if name in held and kind_of(source)[0] != "stacks":
            _check_sides(source, tier, recipe.image_size)
    return held


_STARTS = "|".join(kind + (":" if row.place else r"\b") for kind, row in FORMATS.items())
_PLUS = re.compile(rf"\s*\+\s*(?=(?:{_STARTS}))")


def sources(data: str) -> tuple[str, str | None]:
    """The one or two sources of a `data` parameter: `FIRST` or `FIRST + SECOND`. A plus inside a name is left alone."""
    parts = [part.rstrip("/") or part for part in _PLUS.split(data.strip())]
    if len(parts) > 2:
        raise UserError(f"data '{data}' names {len(parts)} sources: give one, or two as in {TWO_SOURCES}")
    return parts[0], parts[1] if len(parts) > 1 else None


def counts_of(first: Data, second: Data | None = None) -> dict[str, int]:
    """Images that opened sources hold, as `plan_of` takes them."""
    held, labelled = {"available": len(first.train)}, 0
    # of a source that is streamed, pictures at their own size are trained and tested on
    splits = (first.train, first.val) if first.train.reader else (first.probe_train, first.test)
    if not any(split is None or split.labels is None for split in splits):
        labelled = max(len(splits[0]), len(first.train) if first.train.labels is not None else 0)
    return held | ({"second_available": len(second.train)} if second else {}) | {"labelled": labelled}


def images_of(data: str) -> dict[str, int]:
    """Images that the sources of a `data` parameter list, as `plan_of` takes them: {"available": to train on,
    "labelled": with labels, 0 without a labelled test split; "second_available"}, without what is not known.

    `UserError` for a source that does not exist or has no images. Nothing is decoded or downloaded."""
    found: dict[str, int] = {}
    for spec, name in zip(sources(data), ("available", "second_available"), strict=True):
        kind, place = kind_of(spec) if spec else ("scenes", "")
        FORMATS[kind].check(place)
        if FORMATS[kind].open and FORMATS[kind].local:
            listed = listing(spec).split()
            train = listed.splits["train"]
            found[name] = len(train)
            if name == "available":
                known = listed.classes and "test" in listed.splits and (listed.labels[train] >= 0).all()
                found["labelled"] = len(train) if known else 0
    return found


def _check_sides(source: str, tier: AnyTier, side: int) -> None:
    """`UserError` where each of 16 pictures is smaller than a tier's input."""
    train, sides = listing(source).readable("train"), []
    for i in range(0, len(train), max(1, -(-len(train) // 16))):
        with contextlib.suppress(Exception):  # decoders raise errors of many kinds; training names what it leaves out
            sides.append(min(train.picture(i).size))
    if sides and max(sides) < side:
        raise UserError(
            f"{source} holds pictures of at most {max(sides)} px on their shorter side ({len(sides)} looked at), and "
            f"tier {tier} trains at {side} px: give larger pictures, another tier or a smaller image_size"
        )
