"""The tiers of the studies as data: sizes, images, lengths, seeds and recipes; options of a study. No torch here."""

import importlib.util
from dataclasses import dataclass, field, replace
from typing import Annotated

from ..errors import UserError, unknown
from ..training.callbacks import check_writers
from ..training.run import PICTURE_CROP, PRECISIONS, Run
from ..training.specs import Count, Folder, OneOf, Source, Spec, Text, Whole


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
class Tier:
    """The one grid of a tier, of which every study is a slice, and the recipe its runs share."""

    models: tuple[str, ...]
    images: tuple[int, ...]  # unique training images, smallest first
    lengths: tuple[int, ...]  # optimiser steps off one trunk, shortest first
    recipe: Run  # every other field
    seeds: int = 1  # how many, and where no minutes are given
    first_seed: int = 200  # seeds before were looked at while rules and grids were made, or are shipped
    most_seeds: int = 0  # where the minutes hold so many; 0 = as many as `seeds`
    minutes: float | None = None  # that a study may take by default; the number of seeds follows
    extra: tuple[tuple[str, int, int], ...] = ()  # model, images, steps of runs beside the grid
    photographs: dict = field(default_factory=dict)  # fields of this class that differ where data are not scenes
    by_size: dict[str, dict] = field(default_factory=dict)  # fields of Run that sizes want their own of
    supervised: Supervised | None = None
    transfers: Transfers | None = None
    second_images: tuple[int, ...] = ()  # levels of a second source, which stand for a data set of their own
    holes: frozenset[tuple[str, int]] = frozenset()  # (model, images) that are not run
    full_size: bool = False  # the original grid: needs GPUs, and shows its cost before it starts

    def on(self, data: str) -> "Tier":
        """The tier on a source: photographs need longer runs than scenes, and more labels for their probe."""
        return self if data == "scenes" else replace(self, **self.photographs)


_TWO = ("swinv2_atto", "swinv2_femto")
_SMOKE = {"batch_size": 16, "warmup_steps": 5, "eval_every": 10, "val_images": 64, "val_masks": 2}
_LAPTOP = Run(eval_every=125, probe_labels=4096, probe_test=4096)  # of scenes there are no more labels
_PHOTOS = replace(_LAPTOP, probe_labels=10_000, probe_test=5000)
_FEW_STEPS = {"batch_size": 8, "steps": 4, "eval_every": 2, "warmup_steps": 1, "images": 16, "test_images": 8}

TIERS = {
    "smoke": Tier(
        models=_TWO, images=(16, 64), lengths=(10, 20), first_seed=0,
        recipe=Run(**_SMOKE, probe_labels=200, probe_test=100),
        transfers=Transfers(
            models=_TWO[:1], images=(16, 64), labels=64, steps=20, few=(16, 64), dense=_FEW_STEPS,
            classify={"steps": 10, "batch_size": 16, "warmup_steps": 2, "test_images": 64},
        ),
    ),
    # five seeds are the fewest that decide C1 to C4 together (docs/settings.md)
    "quick": Tier(
        models=_TWO, images=(16, 16384), lengths=(250, 500), extra=(("swinv2_atto", 1024, 500),),
        seeds=5, most_seeds=8, minutes=5,
        recipe=Run(eval_every=125, probe_test=4096),
        transfers=Transfers(
            models=_TWO[1:], images=(64, 16384), seeds=2, labels=4000, few=(64, 256), dense={"test_images": 500}
        ),
    ),
    "laptop": Tier(
        models=_TWO, images=(16, 64, 256, 1024, 16384), lengths=(250, 500, 1000, 2000), seeds=3, most_seeds=8,
        recipe=_LAPTOP, photographs={"lengths": (500, 1000, 2000, 4000), "recipe": _PHOTOS}, supervised=Supervised(),
        transfers=Transfers(
            models=_TWO, images=(64, 1024, 16384), seeds=4, labels=4000, few=(64, 256, 1024), supervised=(16384,)
        ),
    ),
    # a third size at the longest length: it is shown, and decides nothing
    "laptop-pico": Tier(
        models=("swinv2_pico",), images=(16, 1024, 16384), lengths=(2000,), seeds=3,
        recipe=_LAPTOP, photographs={"lengths": (4000,), "recipe": _PHOTOS},
    ),
    # data-scale and model-size take the 21 cells at the longest length; schedule, proxy and all take all 63 runs:
    # 5 sizes x 5 data sets x 3 lengths less the cells that were never published
    "paper": Tier(
        models=tuple(BY_SIZE), images=LEVELS, second_images=(WHOLE_22K,), lengths=(125_000, 250_000, 500_000),
        recipe=RECIPE, by_size=BY_SIZE, first_seed=0, full_size=True,
        holes=frozenset({
            ("swinv2_small", WHOLE_22K), ("swinv2_huge", LEVELS[0]), ("swinv2_giant", LEVELS[0]),
            ("swinv2_giant", LEVELS[1]),
        }),
        # the three sizes that were evaluated on detection and segmentation (docs/facts.md, 4), at the longest length
        transfers=Transfers(models=("swinv2_small", "swinv2_base", "swinv2_large")),
    ),
}  # fmt: skip
#: Recipes of tier paper, by task.
FULL_SIZE = {"classify": "imagenet-100ep", "segment": "upernet-160k", "detect": "mask-rcnn-3x"}


def tier_of(name: str) -> Tier:
    """A tier by its name; `UserError` with the nearest for one that does not exist."""
    if name not in TIERS:
        raise unknown("tier", name, TIERS)
    return TIERS[name]


# --- options of a study ---------------------------------------------------------------------------------------------

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
    coco: _Place = ""  # folders that the transfer study takes boxes and class maps from at tier paper
    ade20k: _Place = ""
    engine: Annotated[str, OneOf(("local", "ray"))] = "local"  # who does the jobs
    address: Annotated[str, Text(".+", "HOST:PORT of a running Ray cluster")] | None = None
    gpus_per_run: Count | None = None
    log: tuple[Annotated[str, Text(".*", "a writer")], ...] = ()  # who is told of runs (`training/callbacks.py`)

    def check(self) -> None:
        """What options say of each other, and what is not installed; zeros that mean the default become None."""
        for name in ("seeds", "workers"):
            object.__setattr__(self, name, getattr(self, name) or None)
        check_writers(self.log)
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise UserError('engine ray needs ray: pip install "simmim-lite[ray]"')
        for name in ("address", "gpus_per_run"):
            if self.engine == "local" and getattr(self, name) is not None:
                raise UserError(f"{name} is about a Ray cluster: add --engine ray, or leave it out")
