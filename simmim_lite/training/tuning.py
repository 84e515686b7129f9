"""A fine-tuning as data: what defines it. Running it is `finetune.py`'s; no torch here.

The laptop defaults are ours; `imagenet-100ep` is the released fine-tuning recipe of swinv2_base (FACTS 4).
"""

import math
from dataclasses import dataclass
from typing import Annotated

from ..errors import UserError, unknown
from ..model.sizes import SIZES
from .run import AUGMENTATIONS, Precision, Run, Statistics, check_start, data_slug, digest
from .specs import (
    Checkpoint,
    Count,
    LearningRate,
    Model,
    OneOf,
    Part,
    Positive,
    Range,
    Share,
    Side,
    Source,
    Spec,
    Text,
    Whole,
    fields,
)

#: Raised whenever the same FineTune would give other numbers; it is part of every key.
FINETUNE_VERSION = 1
#: As in Run, on images decoded once at the input's size; and `timm`, on pictures at their own size.
TUNING_AUGMENTATIONS = (*AUGMENTATIONS, "timm")
_RAND_AUGMENT = Text(r"(rand(-(m|n|p|mstd|mmax|inc|t)[0-9.a-z]+)+)?", "it as timm does, as in rand-m9-mstd0.5-inc1")
_Alpha = Annotated[float, Range(0, 10, "[]")]
_Chance = Annotated[float, Range(0, 1, "[]")]
_FLOOR = 1 / 5000  # of the peak learning rate: where warm-up starts and the cosine ends (FACTS 4)


@dataclass(frozen=True, kw_only=True)
class FineTune(Spec):
    """One fine-tuning; equal specs give equal numbers. `FineTune.of(run)` and `FineTune.scratch(run)` fill it in.

    Labelled images come from the source's labelled training split, drawn class-balanced by `seed`.
    """

    run: Run | None = None  # the pretraining run whose weights it starts from; None = random initialisation
    model: Model = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: Source = "scenes"  # as in Run; must have labels
    labels: Count | None = 4000  # labelled training images; None = all there are
    steps: Count = 600  # optimiser steps; far fewer measure how fast it learns, not how well (DESIGN 3)
    seed: Whole = 0  # draw of the labels, initialisation of the head (and encoder), order, augmentation, drop path
    batch_size: Count = 64  # images per optimiser step
    image_size: Side = 32  # pixels a side
    window_size: Side = 4  # tokens a side
    statistics: Statistics = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    augment: Annotated[str, OneOf(TUNING_AUGMENTATIONS)] = "flip"  # timm: random resized crop, flip, and what is below
    lr: LearningRate = 4e-3  # peak learning rate of the head at this batch size
    layer_decay: Part = 0.9  # learning rate of a layer over that of the layer above it; 0.75 at the paper's depth
    warmup_steps: Whole = 60  # linear, from lr / 5000; then a cosine down to lr / 5000 (see `warmup_prefix`)
    weight_decay: Share = 0.05  # AdamW, matrices only
    betas: tuple[Share, Share] = (0.9, 0.999)
    clip_grad: Positive = 5.0  # global gradient norm
    drop_path: Share = 0.1  # rate of the last block; earlier blocks linear from 0
    label_smoothing: Share = 0.1  # share of the target spread over all classes
    precision: Precision = "fp32"  # fp32 | bf16 (autocast)
    eval_every: Count = 50  # steps between points of the curve
    test_images: Count | None = 2000  # labelled test images; None = all there are
    recipe_version: Count = FINETUNE_VERSION
    # later fields (LATER): their defaults mean what was done before there was the field
    weights: Checkpoint | None = None  # NAME@DIGEST of a file it starts from, as `starting.weights_name` gives
    mixup: _Alpha = 0.0  # alpha of the Beta distribution of the mix of two images; 0 = none
    cutmix: _Alpha = 0.0  # the same for a pasted box; with both, a batch takes one or the other at even odds
    rand_augment: Annotated[str, _RAND_AUGMENT] = ""  # timm: RandAugment as timm writes it; "" = none
    colour_jitter: _Chance = 0.0  # timm: brightness, contrast, saturation; timm leaves it out beside RandAugment
    erasing: _Chance = 0.0  # timm: probability that a box is filled with noise
    interpolation: Annotated[str, OneOf(("bicubic", "bilinear"))] = "bicubic"  # timm
    test_crop: Part = 0.875  # timm: side of the test image's centre crop over its shorter side; 224 of 256 pixels
    warmup_prefix: bool = True  # the cosine begins after the warm-up; False = at step 0, under it (released code)

    LATER = (
        "weights", "mixup", "cutmix", "rand_augment", "colour_jitter", "erasing", "interpolation", "test_crop",
        "warmup_prefix",
    )  # fmt: skip

    @classmethod
    def of(cls, run: Run, **options: object) -> "FineTune":
        """Fine-tuning of a run's weights on its own data, at its own size unless the options say otherwise."""
        return cls(**{"run": run, **_inherited(run), **options})

    @classmethod
    def scratch(cls, run: Run, **options: object) -> "FineTune":
        """The supervised baseline of `of(run, ...)`: same network, data and budget, random weights, no layer decay.

        It does not hold the run, so that all runs of one size on one source share one baseline.
        """
        return cls(**{**_inherited(run), **options, "run": None, "weights": None, "layer_decay": 1.0})

    @classmethod
    def recipe(cls, name: str, images: int, **options: object) -> "FineTune":
        """A full-size recipe by name (`TUNING_RECIPES`) for a training set of so many images.

        For swinv2_base at batch 2048, on all labels, unless the options say otherwise. Epochs become steps of the
        images there are and of the batch, and the learning rate is scaled with the batch; options may be fields, or
        `epochs`, `warmup_epochs` and `lr_per_512`. What the other sizes were fine-tuned with, and on other data than
        ImageNet-1K, was never released: they get the same here.
        """
        if name not in TUNING_RECIPES:
            raise unknown("recipe", name, TUNING_RECIPES)
        given = {**TUNING_RECIPES[name], **fields(cls, options)}
        epochs, warmup, lr = (given.pop(part) for part in ("epochs", "warmup_epochs", "lr_per_512"))
        batch = given["batch_size"]
        scaled = {"steps": math.ceil(epochs * images / batch), "warmup_steps": math.ceil(warmup * images / batch)}
        return cls(**{**scaled, "lr": lr * batch / 512, **given})

    @property
    def full_size(self) -> bool:
        """Whether it reads pictures at their own size, and not images decoded at the input's size."""
        return self.augment == "timm"

    @property
    def init(self) -> str:
        """`pretrained` or `scratch`."""
        return "scratch" if self.run is None and self.weights is None else "pretrained"

    @property
    def key(self) -> str:
        """Readable, unique, and a function of every field: `atto-scenes-pretrained-l4000-t600-s0-1f2e3d4c5b`."""
        name = self.model.removeprefix("swinv2_")
        count = "all" if self.labels is None else self.labels
        return f"{name}-{data_slug(self.data)}-{self.init}-l{count}-t{self.steps}-s{self.seed}-{digest(self.to_dict())}"

    def lr_at(self, step: int) -> float:
        """Learning rate of the head at a step: linear warm-up, then a cosine to the floor, as timm's CosineLRScheduler.

        With `warmup_prefix` the floor is reached at the last step; without, one step after it, and the rate falls where
        the warm-up ends, to where the cosine is by then. Layer decay scales warm-up and floor along with the peak.
        """
        low = self.lr * _FLOOR
        if step < self.warmup_steps:
            return low + (self.lr - low) * step / self.warmup_steps
        if not self.warmup_prefix:
            return low + (self.lr - low) * (1 + math.cos(math.pi * step / self.steps)) / 2
        done = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        return low + (self.lr - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def check(self) -> None:
        """What fields say of each other."""
        size = SIZES[self.model]
        size.check_input(self.image_size, self.window_size, size.patch_size)
        check_start(self)
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f"batch_size {self.batch_size}: mixup and cutmix mix images in pairs; give an even number")
        for name in ("rand_augment", "colour_jitter", "erasing", "interpolation", "test_crop"):
            value = getattr(self, name)
            if not self.full_size and value != getattr(FineTune, name):
                raise UserError(f"{name} is {value!r}, but augment is {self.augment!r}: it needs augment=timm")


#: Full-size recipes by name (FACTS 4). Random erasing fills in noise, and the cosine begins at step 0, as in the
#: released code; fine-tuning there never enters autocast, a trap (FACTS 5): here it is bf16.
TUNING_RECIPES = {
    "imagenet-100ep": {
        "model": "swinv2_base",
        "epochs": 100,
        "warmup_epochs": 20,
        "lr_per_512": 1.25e-3,
        "labels": None,
        "batch_size": 2048,
        "image_size": 224,
        "window_size": 14,
        "statistics": "imagenet",
        "augment": "timm",
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "betas": (0.9, 0.999),
        "clip_grad": 5.0,
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "precision": "bf16",
        "test_images": None,
        "mixup": 0.8,
        "cutmix": 1.0,
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "colour_jitter": 0.4,
        "erasing": 0.25,
        "interpolation": "bicubic",
        "test_crop": 0.875,
        "warmup_prefix": False,
    }
}


def _inherited(run: Run) -> dict:
    names = ("model", "data", "image_size", "window_size", "statistics", "augment", "precision")
    fields = {name: getattr(run, name) for name in names}
    if run.streamed:  # the crop that fine-tuning has for images that are decoded once
        fields["augment"] = "crop+flip"
    return fields
