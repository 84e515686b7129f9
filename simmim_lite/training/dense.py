"""Detection and segmentation as data: what defines one such training. Running it is `detect.py`'s and `segment.py`'s.

No torch here. The laptop defaults are ours; `mask-rcnn-1x`, `mask-rcnn-3x` and `upernet-160k` are the standard recipes
of the Swin papers (arXiv 2103.14030): the recipes behind the paper's own scores were never released (FACTS 4, 9).
"""

import dataclasses
import math
from dataclasses import dataclass

from ..errors import UserError, unknown
from ..model.sizes import SIZES
from .run import PRECISIONS, Run, check_names, data_slug, digest

#: Raised whenever the same Dense would give other numbers; it is part of every key.
DENSE_VERSION = 1
DENSE_TASKS = ("detect", "segment")
SCHEDULES = ("linear", "step")
#: Test images whose predictions a record keeps; up to which side, in pixels. Up to it images are also kept decoded, and
#: no process of its own decodes them.
EXAMPLES, SMALL_SIDE = 6, 64
DENSE_AUGMENTATIONS = {"detect": ("flip", "scale"), "segment": ("flip", "scale+crop+colour")}


@dataclass(frozen=True, kw_only=True)
class Dense:
    """One training of Mask R-CNN (`detect`) or UPerNet (`segment`); equal specs give equal numbers.

    `Dense.of(task, run)` and `Dense.scratch(task, run)` fill it in for a laptop, `Dense.recipe(name, ...)` for
    full size.
    """

    task: str = "segment"  # detect | segment
    run: Run | None = None  # the pretraining run whose weights it starts from; None = random, or `weights`
    weights: str | None = None  # NAME@DIGEST of a checkpoint file it starts from, as `starting.weights_name` gives
    model: str = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: str = "scenes"  # scenes | coco:DIR (detect) | ade20k:DIR (segment)
    images: int | None = None  # annotated training images; None = all there are
    steps: int = 600  # optimiser steps
    seed: int = 0  # draw of the images, initialisation of heads (and encoder), order, augmentation, drop path
    batch_size: int = 16  # images per optimiser step over all processes
    image_size: int = 32  # pixels: short side at test time (detect), side of the training crop and at test (segment)
    long_side: int | None = None  # detect: longest side in pixels; None = 5/3 of image_size (1,333 at 800)
    short_sides: tuple[int, ...] = ()  # detect: short sides drawn from in training, image_size last; () = image_size
    window_size: int = 4  # tokens a side
    statistics: str = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    augment: str = "flip"  # flip | scale (detect: short_sides) | scale+crop+colour (segment: ratio .5 to 2, 512 crop)
    channels: int = 64  # of the pyramid and the heads; 256 for Mask R-CNN, 512 for UPerNet at full size
    hidden: int = 128  # detect: width of the box head; 1,024 at full size
    lr: float = 1e-3  # peak learning rate of the heads at this batch size
    layer_decay: float = 1.0  # learning rate of a layer over that of the layer above it; 1 = none
    warmup_steps: int = 50  # linear
    warmup_start: float = 1e-3  # of the peak: where the warm-up begins
    schedule: str = "linear"  # linear (to 0 at the end) | step (x0.1 at each milestone)
    milestones: tuple[float, ...] = ()  # step: shares of all steps
    weight_decay: float = 0.05  # AdamW, matrices only
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = 5.0  # global gradient norm; None = not clipped, as in the full-size recipes
    drop_path: float = 0.1  # rate of the last block; earlier blocks linear from 0
    auxiliary: float = 0.4  # segment: weight of the loss of the auxiliary head; 0 = no such head
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    eval_every: int = 50  # steps between points of the curve
    test_images: int | None = 1000  # images of the test split; None = all
    version: int = DENSE_VERSION

    def __post_init__(self) -> None:
        for name in ("short_sides", "milestones", "betas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "data", self.data.rstrip("/") or self.data)
        check_dense(self)

    @classmethod
    def of(cls, task: str, run: Run, **options: object) -> "Dense":
        """Training from a run's weights, at its size and window unless the options say otherwise."""
        return cls(**{"task": task, "run": run, **_laptop(task, "pretrained", run, options), **options})

    @classmethod
    def scratch(cls, task: str, run: Run, **options: object) -> "Dense":
        """The same from random initialisation, without layer decay; it does not hold the run (see `FineTune`)."""
        fields = {"task": task, **_laptop(task, "scratch", run, options), **options}
        return cls(**{**fields, "run": None, "weights": None, "layer_decay": 1.0})

    @classmethod
    def recipe(cls, name: str, images: int, **options: object) -> "Dense":
        """A standard recipe of the Swin papers by name (`RECIPES`) for a training set of so many images.

        For swinv2_base at the pretraining window of 12, unless the options say otherwise. Epochs become steps of the
        images there are and of the batch; options may be fields, or `epochs`. What the papers set by the size of the
        network (drop path) is the same default for all of them here.
        """
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
        fields = {**RECIPES[name], "images": images, **options}
        if epochs := fields.pop("epochs", None):
            fields.setdefault("steps", math.ceil(epochs * images / fields["batch_size"]))
        return cls(**fields)

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

    def to_dict(self) -> dict:
        """Plain JSON types; `run` is the run's own dict, or None."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: list(fields[name]) for name in ("short_sides", "milestones", "betas")}
        return {**fields, **lists, "run": self.run and self.run.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict) -> "Dense":
        """The inverse of `to_dict`; a field this version does not know is an error that names it."""
        check_names(cls, fields, "field")
        run = fields.get("run")
        return cls(**{**fields, "run": run and Run.from_dict(run)})


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


def check_dense(spec: Dense) -> None:
    """Raise `UserError` on the first field that cannot be run, naming field, value and remedy."""
    known = {"task": DENSE_TASKS, "model": SIZES, "schedule": SCHEDULES}
    known |= {"augment": DENSE_AUGMENTATIONS.get(spec.task, ())}
    known |= {"precision": PRECISIONS, "statistics": ("dataset", "imagenet")}
    for name, values in known.items():
        if getattr(spec, name) not in values:
            raise unknown(name, getattr(spec, name), values)
    least = {"steps": 1, "seed": 0, "batch_size": 1, "image_size": 16, "window_size": 1, "channels": 1, "hidden": 1}
    least |= {"warmup_steps": 0, "eval_every": 1, "images": 1, "long_side": spec.image_size, "test_images": 1}
    for name, low in least.items():
        value = getattr(spec, name)
        if value is None and name in ("images", "long_side", "test_images"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UserError(f"{name} is {value!r}: give a whole number of at least {low}")
    ranges = {"lr": (0, 10), "layer_decay": (0, 1.0000001), "warmup_start": (0, 1.0000001)}
    for name, (low, high) in ranges.items():
        if not low < getattr(spec, name) < high:
            raise UserError(f"{name} is {getattr(spec, name)!r}: give a number above {low}, at most {high:.0f}")
    for name in ("drop_path", "weight_decay"):
        if not 0 <= getattr(spec, name) < 1:
            raise UserError(f"{name} is {getattr(spec, name)!r}: give a number from 0 to below 1")
    if spec.clip_grad is not None and spec.clip_grad <= 0:
        raise UserError(f"clip_grad is {spec.clip_grad!r}: give a number above 0, or None for no clipping")
    if spec.auxiliary < 0:
        raise UserError(f"auxiliary is {spec.auxiliary!r}: give a number of at least 0")
    if spec.schedule == "step" and not all(0 < m < 1 for m in spec.milestones):
        raise UserError(f"milestones are {spec.milestones}: give shares of all steps, between 0 and 1")
    if spec.short_sides and (spec.augment != "scale" or spec.short_sides[-1] != spec.image_size):
        raise UserError(
            f"short_sides {spec.short_sides} go with augment scale and end with image_size {spec.image_size}, the side "
            "at test time: give all three so"
        )
    if spec.run is not None and spec.weights is not None:
        raise UserError("run and weights are both given: a training starts from one of them")
    if spec.run is not None and spec.run.model != spec.model:
        raise UserError(f"model is {spec.model!r}, but the pretraining run's is {spec.run.model!r}: give the same")
    other = {"detect": "ade20k:", "segment": "coco:"}[spec.task]
    if spec.data.startswith(other):
        fits = {"detect": "coco:DIR", "segment": "ade20k:DIR"}[spec.task]
        raise UserError(f"data '{spec.data}' has no annotations for {spec.task}: give scenes or {fits}")
