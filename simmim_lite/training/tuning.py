"""A fine-tuning as data: what defines it. Running it is `finetune.py`'s; no torch here.

The laptop defaults are ours; `imagenet-100ep` is the released fine-tuning recipe of swinv2_base (FACTS 4).
"""

import dataclasses
import math
import re
from dataclasses import dataclass

from ..errors import UserError, unknown
from ..model.sizes import SIZES
from .run import AUGMENTATIONS, Run, check_names, data_slug, digest

#: Raised whenever the same FineTune would give other numbers; it is part of every key.
FINETUNE_VERSION = 1
#: Fields that came later, at the value that changes nothing: keys of fine-tunings that do not use them stay the same.
_LATER = {
    "weights": None,
    "mixup": 0.0,
    "cutmix": 0.0,
    "rand_augment": "",
    "colour_jitter": 0.0,
    "erasing": 0.0,
    "interpolation": "bicubic",
    "test_crop": 0.875,
    "warmup_prefix": True,
}
#: As in Run, on images decoded once at the input's size; and `timm`, on pictures at their own size.
TUNING_AUGMENTATIONS = (*AUGMENTATIONS, "timm")
_RAND_AUGMENT = re.compile(r"(rand(-(m|n|p|mstd|mmax|inc|t)[0-9.a-z]+)+)?")
_FLOOR = 1 / 5000  # of the peak learning rate: where warm-up starts and the cosine ends (FACTS 4)


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """One fine-tuning; equal specs give equal numbers. `FineTune.of(run)` and `FineTune.scratch(run)` fill it in.

    Labelled images come from the source's labelled training split, drawn class-balanced by `seed`.
    """

    run: Run | None = None  # the pretraining run whose weights it starts from; None = random initialisation
    model: str = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: str = "scenes"  # as in Run; must have labels
    labels: int | None = 4000  # labelled training images; None = all there are
    steps: int = 600  # optimiser steps; far fewer measure how fast it learns, not how well (DESIGN 3)
    seed: int = 0  # draw of the labels, initialisation of the head (and encoder), order, augmentation, drop path
    batch_size: int = 64  # images per optimiser step
    image_size: int = 32  # pixels a side
    window_size: int = 4  # tokens a side
    statistics: str = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    augment: str = "flip"  # none | flip | crop+flip | timm (random resized crop of .08 to 1, flip, and what is below)
    lr: float = 4e-3  # peak learning rate of the head at this batch size
    layer_decay: float = 0.9  # learning rate of a layer over that of the layer above it; 0.75 at the paper's depth
    warmup_steps: int = 60  # linear, from lr / 5000; then a cosine down to lr / 5000 (see `warmup_prefix`)
    weight_decay: float = 0.05  # AdamW, matrices only
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float = 5.0  # global gradient norm
    drop_path: float = 0.1  # rate of the last block; earlier blocks linear from 0
    label_smoothing: float = 0.1  # share of the target spread over all classes
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    eval_every: int = 50  # steps between points of the curve
    test_images: int | None = 2000  # labelled test images; None = all there are
    recipe_version: int = FINETUNE_VERSION
    # later fields: `to_dict` leaves them out at these values, which mean what was done before there was the field
    weights: str | None = None  # NAME@DIGEST of a checkpoint file it starts from, as `starting.weights_name` gives
    mixup: float = 0.0  # alpha of the Beta distribution of the mix of two images; 0 = none
    cutmix: float = 0.0  # the same for a pasted box; with both, a batch takes one or the other at even odds
    rand_augment: str = ""  # timm: RandAugment as timm writes it, "rand-m9-mstd0.5-inc1"; "" = none
    colour_jitter: float = 0.0  # timm: brightness, contrast, saturation; timm leaves it out where there is RandAugment
    erasing: float = 0.0  # timm: probability that a box is filled with noise
    interpolation: str = "bicubic"  # timm: bicubic | bilinear
    test_crop: float = 0.875  # timm: side of the test image's centre crop over its shorter side; 224 of 256 pixels
    warmup_prefix: bool = True  # the cosine begins after the warm-up; False = at step 0, under it (released code)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "data", self.data.rstrip("/") or self.data)  # one folder, one key
        check_finetune(self)

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
        fields = {**TUNING_RECIPES[name], **options}
        epochs, warmup, lr = (fields.pop(part) for part in ("epochs", "warmup_epochs", "lr_per_512"))
        batch = fields["batch_size"]
        scaled = {"steps": math.ceil(epochs * images / batch), "warmup_steps": math.ceil(warmup * images / batch)}
        return cls(**{**scaled, "lr": lr * batch / 512, **fields})

    @property
    def full_size(self) -> bool:
        """Whether it reads pictures at their own size (`data.pictures`), and not images decoded at the input's size."""
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

    def to_dict(self) -> dict:
        """Plain JSON types; `run` is the run's own dict, or None. A later field is there if it changes something."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, before in _LATER.items():
            if fields[name] == before:
                del fields[name]
        return {**fields, "betas": list(self.betas), "run": self.run and self.run.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict) -> "FineTune":
        """The inverse of `to_dict`; a field this version does not know is an error that names it."""
        check_names(cls, fields, "fine-tuning field")
        run = fields.get("run")
        return cls(**{**fields, "run": run and Run.from_dict(run)})


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


def check_finetune(spec: FineTune) -> None:
    """Raise `UserError` on the first field that cannot be run, naming field, value and remedy."""
    if spec.model not in SIZES:
        raise unknown("model", spec.model, SIZES)
    shared = {f.name for f in dataclasses.fields(FineTune)} & {f.name for f in dataclasses.fields(Run)}
    fields = {name: getattr(spec, name) for name in shared - {"recipe_version"}}
    if spec.augment not in TUNING_AUGMENTATIONS:
        raise unknown("augment", spec.augment, TUNING_AUGMENTATIONS)
    if spec.full_size:
        fields["augment"] = "none"  # no run of pretraining knows it
    Run(**fields, mask_patch=SIZES[spec.model].patch_size)  # what the two have in common is checked there
    if spec.run is not None and spec.weights is not None:
        raise UserError("run and weights are both given: a fine-tuning starts from one of them")
    if spec.run is not None and spec.run.model != spec.model:
        raise UserError(f"model is {spec.model!r}, but the pretraining run's is {spec.run.model!r}: give the same")
    for name in ("labels", "steps", "test_images"):
        value = getattr(spec, name)
        if value is None and name != "steps":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} is {value!r}: give a whole number of at least 1")
    if not 0 < spec.layer_decay <= 1:
        raise UserError(f"layer_decay is {spec.layer_decay!r}: give a number above 0, at most 1 (1 = none)")
    if not 0 <= spec.label_smoothing < 1:
        raise UserError(f"label_smoothing is {spec.label_smoothing!r}: give a number from 0 to below 1")
    _check_augmentation(spec)


def _check_augmentation(spec: FineTune) -> None:
    for name, high in (("mixup", 10), ("cutmix", 10), ("colour_jitter", 1), ("erasing", 1), ("test_crop", 1)):
        value = getattr(spec, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= high:
            raise UserError(f"{name} is {value!r}: give a number from 0 to {high}")
    if spec.test_crop == 0:
        raise UserError("test_crop is 0: give the share of the test image's shorter side that is kept, as in 0.875")
    if (spec.mixup or spec.cutmix) and spec.batch_size % 2:
        raise UserError(f"batch_size {spec.batch_size}: mixup and cutmix mix images in pairs; give an even number")
    if spec.interpolation not in ("bicubic", "bilinear"):
        raise unknown("interpolation", spec.interpolation, ("bicubic", "bilinear"))
    for name in ("rand_augment", "colour_jitter", "erasing", "interpolation", "test_crop"):
        if not spec.full_size and getattr(spec, name) != _LATER[name]:
            raise UserError(
                f"{name} is {getattr(spec, name)!r}, but augment is {spec.augment!r}: it needs augment=timm"
            )
    if not _RAND_AUGMENT.fullmatch(spec.rand_augment):
        raise UserError(f"rand_augment is {spec.rand_augment!r}: give it as timm does, as in rand-m9-mstd0.5-inc1")
