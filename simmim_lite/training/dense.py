"""Detection and segmentation as data: what defines one such training. Running it is `detect.py`'s and `segment.py`'s.

No torch here. The laptop defaults are ours; `mask-rcnn-1x`, `mask-rcnn-3x` and `upernet-160k` are the standard recipes
of the Swin papers (arXiv 2103.14030): the recipes behind the paper's own scores were never released (FACTS 4, 9).
"""

import math
from dataclasses import dataclass
from typing import Annotated

from ..errors import UserError, unknown
from .run import Precision, Run, Statistics, check_start, data_slug, digest
from .specs import (
    Checkpoint,
    Count,
    Inside,
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
    Whole,
    fields,
)

#: Raised whenever the same Dense would give other numbers; it is part of every key.
DENSE_VERSION = 1
DENSE_TASKS = ("detect", "segment")
SCHEDULES = ("linear", "step")
#: Test images whose predictions a record keeps; up to which side, in pixels. Up to it images are also kept decoded, and
#: no process of its own decodes them.
EXAMPLES, SMALL_SIDE = 6, 64
#: By task; scale+crop+colour: ratio .5 to 2, a crop of image_size, colours.
DENSE_AUGMENTATIONS = {"detect": ("flip", "scale"), "segment": ("flip", "scale+crop+colour")}
#: Data of a task beside scenes.
_ANNOTATED = {"detect": "coco:", "segment": "ade20k:"}
DenseSide = Annotated[int, Range(16, 16384, "[]")]  # pixels
Width = Annotated[int, Range(1, 65536, "[]")]  # channels


@dataclass(frozen=True, kw_only=True)
class Dense(Spec):
    """One training of Mask R-CNN (`detect`) or UPerNet (`segment`); equal specs give equal numbers.

    `Dense.of(task, run)` and `Dense.scratch(task, run)` fill it in for a laptop, `Dense.recipe(name, ...)` for
    full size.
    """

    task: Annotated[str, OneOf(DENSE_TASKS)] = "segment"  # detect | segment
    run: Run | None = None  # the pretraining run whose weights it starts from; None = random, or `weights`
    weights: Checkpoint | None = None  # NAME@DIGEST of a file it starts from, as `starting.weights_name` gives
    model: Model = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: Source = "scenes"  # scenes | coco:DIR (detect) | ade20k:DIR (segment)
    images: Count | None = None  # annotated training images; None = all there are
    steps: Count = 600  # optimiser steps
    seed: Whole = 0  # draw of the images, initialisation of heads (and encoder), order, augmentation, drop path
    batch_size: Count = 16  # images per optimiser step over all processes
    image_size: DenseSide = 32  # pixels: short side at test time (detect), side of the training crop and test (segment)
    long_side: DenseSide | None = None  # detect: longest side in pixels; None = 5/3 of image_size (1,333 at 800)
    short_sides: tuple[DenseSide, ...] = ()  # detect: drawn from in training, image_size last; () = image_size
    window_size: Side = 4  # tokens a side
    statistics: Statistics = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    augment: Annotated[str, OneOf(("flip", "scale", "scale+crop+colour"))] = "flip"  # scale: short_sides (detect)
    channels: Width = 64  # of the pyramid and the heads; 256 for Mask R-CNN, 512 for UPerNet at full size
    hidden: Width = 128  # detect: width of the box head; 1,024 at full size
    lr: LearningRate = 1e-3  # peak learning rate of the heads at this batch size
    layer_decay: Part = 1.0  # learning rate of a layer over that of the layer above it; 1 = none
    warmup_steps: Whole = 50  # linear
    warmup_start: Part = 1e-3  # of the peak: where the warm-up begins
    schedule: Annotated[str, OneOf(SCHEDULES)] = "linear"  # linear (to 0 at the end) | step (x0.1 at each milestone)
    milestones: tuple[Inside, ...] = ()  # step: shares of all steps
    weight_decay: Share = 0.05  # AdamW, matrices only
    betas: tuple[Share, Share] = (0.9, 0.999)
    clip_grad: Positive | None = 5.0  # global gradient norm; None = not clipped, as in the full-size recipes
    drop_path: Share = 0.1  # rate of the last block; earlier blocks linear from 0
    auxiliary: Annotated[float, Range(0)] = 0.4  # segment: weight of the auxiliary head's loss; 0 = no such head
    precision: Precision = "fp32"  # fp32 | bf16 (autocast)
    eval_every: Count = 50  # steps between points of the curve
    test_images: Count | None = 1000  # images of the test split; None = all
    version: Count = DENSE_VERSION

    @classmethod
    def of(cls, task: str, run: Run, **options: object) -> "Dense":
        """Training from a run's weights, at its size and window unless the options say otherwise."""
        return cls(**{"task": task, "run": run, **_laptop(task, "pretrained", run, options), **options})

    @classmethod
    def scratch(cls, task: str, run: Run, **options: object) -> "Dense":
        """The same from random initialisation, without layer decay; it does not hold the run (see `FineTune`)."""
        given = {"task": task, **_laptop(task, "scratch", run, options), **options}
        return cls(**{**given, "run": None, "weights": None, "layer_decay": 1.0})

    @classmethod
    def recipe(cls, name: str, images: int, **options: object) -> "Dense":
        """A standard recipe of the Swin papers by name (`RECIPES`) for a training set of so many images.

        For swinv2_base at the pretraining window of 12, unless the options say otherwise. Epochs become steps of the
        images there are and of the batch; options may be fields, or `epochs`. What the papers set by the size of the
        network (drop path) is the same default for all of them here.
        """
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
        given = {**RECIPES[name], "images": images, **fields(cls, options)}
        if epochs := given.pop("epochs", None):
            given.setdefault("steps", math.ceil(epochs * images / given["batch_size"]))
        return cls(**given)

    @property
    def init(self) -> str:
        """`pretrained` or `scratch`."""
        return "scratch" if self.run is None and self.weights is None else "pretrained"

    @property
    def longest(self) -> int:
        """Longest side of a detection input, pixels."""
        return self.long_side or self.image_size * 5 // 3

    @property
    def key(self) -> str:
        """Readable, unique, and a function of every field: `atto-scenes-detect-pretrained-nall-t600-s0-1f2e3d4c5b`."""
        n = "all" if self.images is None else self.images
        name = f"{self.model.removeprefix('swinv2_')}-{data_slug(self.data)}-{self.task}-{self.init}"
        return f"{name}-n{n}-t{self.steps}-s{self.seed}-{digest(self.to_dict())}"

    def lr_at(self, step: int) -> float:
        """Learning rate of the heads at a step: the schedule, times a linear warm-up."""
        if self.schedule == "linear":
            lr = self.lr * (1 - step / self.steps)
        else:
            lr = self.lr * 0.1 ** sum(step >= round(m * self.steps) for m in self.milestones)
        if step < self.warmup_steps:
            lr *= 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_start)
        return lr

    def check(self) -> None:
        """What fields say of each other."""
        if self.augment not in DENSE_AUGMENTATIONS[self.task]:
            raise unknown("augment", self.augment, DENSE_AUGMENTATIONS[self.task])
        if self.long_side is not None and self.long_side < self.image_size:
            raise UserError(f"long_side is {self.long_side}: give at least image_size, {self.image_size}, or None")
        if self.short_sides and (self.augment != "scale" or self.short_sides[-1] != self.image_size):
            raise UserError(
                f"short_sides {self.short_sides} go with augment scale and end with image_size {self.image_size}, the "
                "side at test time: give all three so"
            )
        check_start(self)
        other = {kind: task for task, kind in _ANNOTATED.items() if task != self.task}
        if any(self.data.startswith(kind) for kind in other):
            fits = f"{_ANNOTATED[self.task]}DIR"
            raise UserError(f"data '{self.data}' has no annotations for {self.task}: give scenes or {fits}")


_FULL_SIZE = {
    "model": "swinv2_base",
    "window_size": 12,
    "statistics": "imagenet",
    "batch_size": 16,
    "precision": "bf16",
    "clip_grad": None,
    "betas": (0.9, 0.999),
    "layer_decay": 1.0,
    "eval_every": 50,
    "test_images": None,
}
_MASK_RCNN = _FULL_SIZE | {
    "task": "detect",
    "image_size": 800,
    "long_side": 1333,
    "channels": 256,
    "hidden": 1024,
    "lr": 1e-4,
    "weight_decay": 0.05,
    "warmup_steps": 500,
    "warmup_start": 1e-3,
    "schedule": "step",
    "drop_path": 0.2,
}
#: Standard recipes by name. Epochs become steps of the training set there is. Drop path is our default for every size.
#: Mask R-CNN itself is torchvision's: where it differs from the papers' (smooth L1 for boxes, 2,000 proposals in
#: training, no random crop in the multi-scale one), so do these.
RECIPES = {
    "mask-rcnn-1x": _MASK_RCNN | {"epochs": 12, "milestones": (8 / 12, 11 / 12), "augment": "flip"},
    "mask-rcnn-3x": _MASK_RCNN
    | {
        "epochs": 36,
        "milestones": (27 / 36, 33 / 36),
        "augment": "scale",
        "short_sides": tuple(range(480, 801, 32)),
    },
    "upernet-160k": _FULL_SIZE
    | {
        "task": "segment",
        "image_size": 512,
        "steps": 160_000,
        "channels": 512,
        "augment": "scale+crop+colour",
        "lr": 6e-5,
        "weight_decay": 0.01,
        "warmup_steps": 1500,
        "warmup_start": 1e-6,
        "schedule": "linear",
        "drop_path": 0.3,
    },
}


#: What a task needs to train in about a minute on a core, on scenes; the rest are the fields' own defaults.
LAPTOP = {"detect": {"channels": 32, "images": 512}, "segment": {"batch_size": 32, "images": 1000}}


#: Learning rates of each start by itself: the best on an unreported seed (100) of swinv2_femto, pretrained on 16,384
#: scenes. Box AP at 2e-3, 4e-3, 8e-3, 1.6e-2: scratch .484 .475 .438 .286; pretrained .499 .503 .510 .439, with layer
#: decay .9 .478 .501 .505 .463, with .75 .466 at 2e-3. mIoU at 2e-3 to .128 by doublings: scratch .383 .557 .608 .660
#: .703 .751 .758; pretrained .445 .556 .626 .680 - .743 .755, with layer decay .9 .439 .556 .629 .685 .727 .746 .746,
#: with .75 .732 .736 at .064 and .128.
TUNED: dict[str, dict[str, dict]] = {
    "detect": {"pretrained": {"lr": 8e-3}, "scratch": {"lr": 2e-3}},
    "segment": {"pretrained": {"lr": 0.128}, "scratch": {"lr": 0.128}},
}


def _laptop(task: str, start: str, run: Run, options: dict) -> dict:
    """The fields of a run that a transfer shares, and the laptop's where the data are scenes."""
    names = ("model", "data", "image_size", "window_size", "statistics", "precision")
    shared = {name: getattr(run, name) for name in names}
    if options.get("data", run.data) != "scenes" or task not in DENSE_TASKS:
        return shared
    return shared | LAPTOP[task] | TUNED[task][start]
