"""The tiers of the studies as data: sizes, images, lengths, seeds and recipes; options of a study. No torch here."""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated

from ..data.scenes import LOOKS
from ..errors import UserError, unknown
from ..model.sizes import SIZES
from ..training.callbacks import check_writers
from ..training.run import PICTURE_CROP, PINNED, PRECISIONS, Model, Run
from ..training.specs import Count, Folder, OneOf, Positive, Side, Source, Spec, Text, Whole, read, value


@dataclass(frozen=True)
class Study:
    """A slice of a tier's grid, and what it is for."""

    notebook: str
    claims: tuple[str, ...]
    longest: bool = False  # data and size are compared at the longest length alone
    supervised: bool = False  # with the fine-tunings of C8


STUDIES = {
    "data-scale": Study("04_data_scale", ("C1", "C6", "C8"), longest=True, supervised=True),
    "model-size": Study("05_model_size", ("C1", "C2"), longest=True),
    "schedule": Study("06_schedule", ("C3", "C4", "C7")),
    "proxy": Study("07_proxy_loss", ("C5a", "C5b"), supervised=True),
}
#: The four together, which share the tier's grid; and the study of transfers, whose runs are its own.
ALL, TRANSFER = "all", "transfer"
NAMED = STUDIES | {TRANSFER: Study("08_transfer", ("C5a", "C5b", "C8"))}


def claim_ids(study: str) -> set[str]:
    """The claims that a study, or `all`, is about."""
    return {claim for name, one in NAMED.items() if study in (name, ALL) for claim in one.claims}


# --- the published grid (docs/facts.md, 2 and 3) ------------------------------------------------------------------

#: Unique images: ImageNet-1K at 10, 20, 50 and 100 %, drawn as `data_manifests/` draws them (rule hash, seed 0).
LEVELS = (128_117, 256_233, 640_584, 1_281_167)
WHOLE_22K = 14_197_122  # all of ImageNet-22K: a data set of its own, from the second source
#: The recipe as released for base. Ours, because the paper's is unknown: bf16, 25,000 validation images (half of
#: ImageNet-1K's) x 4 masks every 12,500 steps, no probes: runs are scored by fine-tuning, as published.
RECIPE = Run(
    model="swinv2_base", batch_size=2048, image_size=192, window_size=12, mask_patch=32, mask_ratio=0.6,
    target="normalized", target_window=47, augment=PICTURE_CROP, statistics="imagenet",
    lr=4e-4, warmup_steps=6_250,  # 1e-4 per 512 images, from lr / 200 = 2e-6
    weight_decay=0.05, betas=(0.9, 0.999), clip_grad=5.0, drop_path=0.1, precision="bf16",
    subset_seed=0,  # the manifests'
    eval_every=12_500, val_images=25_000, val_masks=4, probe_labels=0,
)  # fmt: skip
#: What may be set by size. Only base's values were released; they are our defaults for all, and to be changed here.
BY_SIZE = {f"swinv2_{size}": {"lr": 4e-4, "drop_path": 0.1} for size in ("small", "base", "large", "huge", "giant")}
#: What of it pretraining that goes on from full-size weights takes, on images that are decoded once.
_RELEASED = ("image_size", "window_size", "mask_patch", "target", "target_window", "statistics", "betas", "drop_path")
TWO_SOURCES = "'imagefolder:IMAGENET1K + imagefolder:IMAGENET22K'"

# --- tiers ----------------------------------------------------------------------------------------------------------

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


@dataclass(frozen=True, kw_only=True)
class Transfers:
    """The transfer study of a tier: what is pretrained, and on how much it is trained for each task."""

    models: tuple[str, ...]
    images: tuple[int, ...] = ()  # unique unlabelled images of pretraining
    seeds: int = 1
    labels: int = 0  # labelled images of classification
    steps: int = 1000  # of pretraining
    few: tuple[int, ...] = ()  # numbers of labelled images, few to many, for the largest model
    supervised: tuple[int, ...] = ()  # more numbers of labelled images, from scratch alone
    classify: dict = field(default_factory=dict)  # fields of FineTune
    dense: dict = field(default_factory=dict)  # fields of Dense


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """The study of beginnings at a tier: pretraining on foreign images, then on ever more own ones."""

    model: str
    images: tuple[int, ...]  # unique own images, fewest first
    steps: int  # of own pretraining
    foreign: tuple[int, int]  # images and steps of foreign pretraining, where no weights are given
    seeds: int = 4
    lr: float = 0.1  # of pretraining that goes on, as a share of that from a random start (docs/settings.md)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The one grid of a tier, of which every study is a slice, and the recipe its runs share."""

    name: str
    models: tuple[str, ...]
    images: tuple[int, ...]  # unique training images, smallest first
    lengths: tuple[int, ...]  # optimiser steps off one trunk, shortest first
    recipe: Run  # every other field
    seeds: int = 1  # how many, and where no minutes are given
    first_seed: int = 200  # seeds before were looked at while rules and grids were made, or are shipped
    most_seeds: int = 0  # where the minutes hold so many; 0 = as many as `seeds`
    minutes: float | None = None  # that a study may take by default; the number of seeds follows
    fitted: tuple[dict, ...] = ()  # options of ever smaller grids, of which the first that fits the minutes is taken
    extra: tuple[tuple[str, int, int], ...] = ()  # model, images, steps of runs beside the grid
    photographs: dict = field(default_factory=dict)  # fields of this class that differ where data are not scenes
    by_size: dict[str, dict] = field(default_factory=dict)  # fields of Run that sizes want their own of
    supervised: Supervised | None = None
    transfers: Transfers | None = None
    beginnings: Beginnings | None = None
    second_images: tuple[int, ...] = ()  # levels of a second source, which stand for a data set of their own
    holes: frozenset[tuple[str, int]] = frozenset()  # (model, images) that are not run
    full_size: bool = False  # the original grid: needs GPUs, and shows its cost before it starts

    def __str__(self) -> str:
        return self.name

    def on(self, data: str) -> "Tier":
        """The tier on a source: photographs need longer runs than scenes, and more labels for their probe."""
        return self if data in LOOKS else replace(self, **self.photographs, photographs={})

    def check_transfers(self) -> None:
        """`UserError` for a tier that has no study of transfers."""
        if self.transfers is None:
            raise unknown("tier of the transfer study", self.name, [n for n, one in TIERS.items() if one.transfers])

    def begin_with(self, weights: str, recipe: Run) -> Run:
        """A run of a recipe that begins with weights as `Run.init` has them, and is of their size: full-size ones at
        192 px by the released recipe, its learning rate scaled to the batch. `UserError` for a size that is unknown."""
        size = f"swinv2_{weights.partition('-')[0]}" if PINNED.search(weights) else ""  # a key begins with it
        if size not in SIZES:
            from ..model.weights import pinned

            size = pinned(weights)[1]
        if size not in SIZES:
            raise UserError(f"{weights} is of no size of ours: simmim-lite weights show {weights} tells which it is of")
        if size in BY_SIZE:
            same = {name: getattr(RECIPE, name) for name in _RELEASED}
            recipe = replace(recipe, **same, model=size, lr=RECIPE.lr * recipe.batch_size / RECIPE.batch_size)
        return replace(recipe, model=size, steps=0, init=weights)


_TWO = ("swinv2_atto", "swinv2_femto")
_SMOKE = {"batch_size": 16, "warmup_steps": 5, "eval_every": 10, "val_images": 64, "val_masks": 2}
_LAPTOP = Run(eval_every=125, probe_labels=4096, probe_test=4096)  # of scenes there are no more labels
_PHOTOS = replace(_LAPTOP, probe_labels=10_000, probe_test=5000)
_LARGER = {"image_size": 64, "window_size": 8, "eval_every": 500}
#: Of tier gpu: shorter runs, then smaller sizes, both; and what a few minutes of a processor hold.
_LADDER = ("swinv2_atto", "swinv2_femto", "swinv2_pico", "swinv2_nano")
_FITTED = tuple(
    {"models": models, "lengths": tuple(t >> halvings for t in (2500, 5000, 10_000, 20_000))}
    for models in (_LADDER[1:], _LADDER[:3], _LADDER[:2])
    for halvings in range(4)
) + tuple(
    {"models": _TWO, "images": (64, 16384), "lengths": (t // 2, t), "seeds": 1} for t in (2000, 800, 300, 100, 40)
)
_FEW_STEPS = {"batch_size": 8, "steps": 4, "eval_every": 2, "warmup_steps": 1, "images": 16, "test_images": 8}

TIERS = {tier.name: tier for tier in (
    Tier(
        name="smoke",
        models=_TWO, images=(16, 64), lengths=(10, 20), first_seed=0,
        recipe=Run(**_SMOKE, probe_labels=200, probe_test=100),
        transfers=Transfers(
            models=_TWO[:1], images=(16, 64), labels=64, steps=20, few=(16, 64), dense=_FEW_STEPS,
            classify={"steps": 10, "batch_size": 16, "warmup_steps": 2, "test_images": 64},
        ),
        beginnings=Beginnings(model="swinv2_atto", images=(16, 64), steps=20, foreign=(64, 20)),
    ),
    # five seeds are the fewest that decide C1 to C4 together (docs/settings.md)
    Tier(
        name="quick",
        models=_TWO, images=(16, 16384), lengths=(250, 500), extra=(("swinv2_atto", 1024, 500),),
        seeds=5, most_seeds=8, minutes=5,
        recipe=Run(eval_every=125, probe_test=4096),
        transfers=Transfers(
            models=_TWO[1:], images=(64, 16384), seeds=2, labels=4000, few=(64, 256), dense={"test_images": 500}
        ),
        beginnings=Beginnings(model="swinv2_atto", images=(64, 1024, 16384), steps=500, foreign=(16384, 1000)),
    ),
    Tier(
        name="laptop",
        models=_TWO, images=(16, 64, 256, 1024, 16384), lengths=(250, 500, 1000, 2000), seeds=3, most_seeds=8,
        recipe=_LAPTOP, photographs={"lengths": (500, 1000, 2000, 4000), "recipe": _PHOTOS}, supervised=Supervised(),
        transfers=Transfers(
            models=_TWO, images=(64, 1024, 16384), seeds=4, labels=4000, few=(64, 256, 1024), supervised=(16384,)
        ),
        beginnings=Beginnings(
            model="swinv2_femto", images=(64, 256, 1024, 16384), steps=1000, foreign=(16384, 2000)
        ),
    ),
    # a third size at the longest length: it is shown, and decides nothing
    Tier(
        name="laptop-pico",
        models=("swinv2_pico",), images=(16, 1024, 16384), lengths=(2000,), seeds=3,
        recipe=_LAPTOP, photographs={"lengths": (4000,), "recipe": _PHOTOS},
    ),
    # larger in every direction, for an evening of one GPU; the recipe is the laptop's, and nothing was tuned for it
    Tier(
        name="gpu",
        models=("swinv2_femto", "swinv2_pico", "swinv2_nano"), images=(64, 1024, 16384),
        lengths=(2500, 5000, 10_000, 20_000), seeds=3, most_seeds=8, minutes=360, fitted=_FITTED,
        recipe=replace(_LAPTOP, **_LARGER),
        photographs={"images": (64, 1024, 16384, 1_281_167), "recipe": replace(_PHOTOS, **_LARGER)},
        beginnings=Beginnings(
            model="swinv2_pico", images=(64, 1024, 16384, 131_072), steps=5000, foreign=(131_072, 20_000)
        ),
    ),
    # data-scale and model-size take the 21 cells at the longest length; schedule, proxy and all take all 63 runs:
    # 5 sizes x 5 data sets x 3 lengths less the cells that were never published
    Tier(
        name="paper",
        models=tuple(BY_SIZE), images=LEVELS, second_images=(WHOLE_22K,), lengths=(125_000, 250_000, 500_000),
        recipe=RECIPE, by_size=BY_SIZE, first_seed=0, full_size=True,
        holes=frozenset({
            ("swinv2_small", WHOLE_22K), ("swinv2_huge", LEVELS[0]), ("swinv2_giant", LEVELS[0]),
            ("swinv2_giant", LEVELS[1]),
        }),
        # the three sizes that were evaluated on detection and segmentation (docs/facts.md, 4), at the longest length
        transfers=Transfers(models=("swinv2_small", "swinv2_base", "swinv2_large")),
    ),
)}  # fmt: skip
AnyTier = Tier | str  # or its name


def tier_of(name: AnyTier) -> Tier:
    """A tier by its name; `UserError` with the nearest for one that does not exist. A tier is itself."""
    tier = name if isinstance(name, Tier) else TIERS.get(name)
    if tier is None:
        raise unknown("tier", name, TIERS)
    return tier


# --- options of a study ---------------------------------------------------------------------------------------------

AXES = ("models", "images", "lengths", "image_size", "batch_size")  # of a tier that may be given
StudyName = Annotated[str, OneOf((*NAMED, ALL))]
TierName = Annotated[str, OneOf(("shipped", *TIERS))]  # shipped trains nothing
Seeds = Whole | tuple[Whole, ...]  # how many, 0 = the tier's own number; or which
_Place = Annotated[str, Text(".*", "a folder, or nothing")]


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Spec):
    """How a study runs, wherever it is started: by the command line, in Python or in a notebook."""

    tier: TierName = "quick"
    data: Source = "scenes"  # a source, or two at tier paper (`grids.sources`)
    seeds: Seeds | None = None  # how many, or which; 0 and None = the tier's own number
    workers: Whole | None = None  # processes; 0 and None = one a core, one on a GPU
    runs_dir: Folder = "runs"
    device: Annotated[str, Text(r"(auto|cpu|cuda|mps)(:\d+)?", "one of auto, cpu, cuda, mps")] = "auto"
    precision: Annotated[str, OneOf(("auto", *PRECISIONS))] = "auto"
    models: tuple[Model, ...] | None = None  # what the tier varies, and its input; None = its own (`axes`)
    images: tuple[Count, ...] | None = None
    lengths: tuple[Count, ...] | None = None
    image_size: Side | None = None
    batch_size: Count | None = None
    minutes: Positive | None = None  # what the study may take: as many seeds as fit
    coco: _Place = ""  # folders that the transfer study takes boxes and class maps from at tier paper
    ade20k: _Place = ""
    engine: Annotated[str, OneOf(("local", "ray"))] = "local"  # who does the jobs
    address: Annotated[str, Text(".+", "HOST:PORT of a running Ray cluster")] | None = None
    gpus_per_run: Count | None = None
    log: tuple[Annotated[str, Text(".*", "a writer")], ...] = ()  # who is told of runs (`training/callbacks.py`)

    def check(self) -> None:
        """What options say of each other, and what is not installed; zeros that mean the default become None."""
        for name in ("seeds", "workers", "models", "images", "lengths"):
            object.__setattr__(self, name, getattr(self, name) or None)
        for name in (*AXES, "minutes"):
            if self.tier == "shipped" and (held := getattr(self, name)):
                raise UserError(f"{name} is {held}, and tier shipped trains nothing: take another, or leave it out")
        if self.seeds and self.minutes:
            raise UserError(f"seeds is {self.seeds} and minutes {self.minutes:g}: give one, seeds fixes the number")
        check_writers(self.log)
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise UserError('engine ray needs ray: pip install "simmim-lite[ray]"')
        for name in ("address", "gpus_per_run"):
            if self.engine == "local" and (held := getattr(self, name)):
                raise UserError(f"{name} is {held}, which is about a Ray cluster: take engine ray too, or leave it out")

    def check_study(self, name: str) -> None:
        """`UserError` for a tier that a study does not have, and for minutes where its seeds do not go by the time."""
        if (tier := TIERS.get(self.tier)) and name == TRANSFER:
            tier.check_transfers()
        if self.minutes and (name == TRANSFER or tier.full_size):
            what = f"study {TRANSFER}" if name == TRANSFER else f"tier {tier}"
            raise UserError(f"minutes is {self.minutes:g}: the seeds of {what} do not go by the time; give seeds")

    @classmethod
    def of_texts(
        cls, options: Mapping[str, object], parameters: Iterable[tuple[str, str]] = (), hours: float | None = None
    ) -> "StudyOptions":
        """From options of the command line, axes among them as texts; parameters: of the study's notebooks, which are
        the study's own where it has them; hours: in place of minutes."""
        if hours is not None:
            if (minutes := dict(parameters).get("minutes", options.get("minutes"))) is not None:
                raise UserError(f"--hours is {hours:g} and minutes {str(minutes).removesuffix('.0')}: give one")
            options = options | {"minutes": 60 * value("hours", Positive, hours)}
        hints = {field.name: field.type for field in fields(cls)}
        texts = {name: text for name, text in options.items() if name in AXES and isinstance(text, str)}
        texts |= {name: text for name, text in parameters if name in hints}
        return cls(**options | {name: read(name, hints[name], text) for name, text in texts.items()})

    @property
    def axes(self) -> Tier:
        """The tier on this source, with the axes that are given in place of its own: the largest of each is last, the
        learning rate grows with the batch, and a shorter run has a validation halfway."""
        tier = tier_of(self.tier).on(self.data)
        recipe, lengths = tier.recipe, tuple(sorted(self.lengths or tier.lengths))
        models = tuple(sorted(self.models or tier.models, key=lambda name: SIZES[name].parameters))
        new = {"models": models, "images": tuple(sorted(self.images or tier.images)), "lengths": lengths}
        own = {name: new[name] for name in ("models", "images") if getattr(self, name)}  # its transfers take these
        every = recipe.eval_every
        if lengths != tier.lengths:
            own["steps"], every = lengths[-1], max(1, min(every, lengths[0] // 2))
        side, batch = self.image_size or recipe.image_size, self.batch_size or recipe.batch_size
        times = batch / recipe.batch_size
        new["recipe"] = replace(recipe, image_size=side, batch_size=batch, lr=recipe.lr * times, eval_every=every)
        new["by_size"] = {model: more | {"lr": more["lr"] * times} for model, more in tier.by_size.items()}
        new["transfers"] = tier.transfers and replace(tier.transfers, **own)
        return replace(tier, **new, extra=() if own else tier.extra)
