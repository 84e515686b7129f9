"""Transfers as data: fine-tuning for classification (FineTune), detection and segmentation (Dense), probes (Probe);
recipes by name, and what the laptop's need, are in `recipes.yaml`. Running them is `transfer.py`'s; no torch here."""

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, ClassVar

import yaml

from ..errors import UserError, unknown
from ..model.sizes import SIZES, short
from .run import AUGMENTATIONS, AtLeastTwo, LearningRate, Model, Precision, Run, Source, Statistics, data_slug, digest
from .specs import Count, OneOf, Part, Positive, Range, Share, Side, Spec, Text, Whole, value

#: Raised whenever the same FineTune, Dense or probed features would give other numbers; part of their keys.
FINETUNE_VERSION, DENSE_VERSION, PROBE_VERSION = 1, 1, 1
#: Test images whose predictions a record keeps; up to which side, in pixels. Up to it no other process decodes images.
EXAMPLES, SMALL_SIDE = 6, 64
#: By task; scale+crop+colour: ratio .5 to 2, a crop of image_size, colours.
DENSE_AUGMENTATIONS = {"detect": ("flip", "scale"), "segment": ("flip", "scale+crop+colour")}
_ANNOTATED = {"detect": "coco:", "segment": "ade20k:"}  # data of a task beside scenes
_RAND_AUGMENT = Text(
    r"(rand(-((m|n|inc|t)[0-9]+|(p|mstd|mmax)[0-9]+(\.[0-9]+)?))+)?", "it as timm does, as in rand-m9-mstd0.5-inc1"
)
_Checkpoint = Annotated[str, Text(r".+@[0-9a-f]+", "NAME@DIGEST of a checkpoint file")]
_Alpha = Annotated[float, Range(0, 10, "[]")]
_NotNegative = Annotated[float, Range(0)]
_Chance = Annotated[float, Range(0, 1, "[]")]
_FLOOR = 1 / 5000  # of the peak learning rate: where warm-up starts and the cosine ends (docs/facts.md, 4)
_DenseSide = Annotated[int, Range(16, 16384, "[]")]  # pixels
_Width = Annotated[int, Range(1, 65536, "[]")]  # channels
_SHARED = ("model", "data", "image_size", "window_size", "statistics", "precision")  # of a run and its transfers

_YAML = yaml.safe_load(files(__package__).joinpath("recipes.yaml").read_text("utf-8"))
#: Recipes at full size by name; and by task and start, fields of a laptop's on scenes.
TUNING_RECIPES, RECIPES, ON_SCENES = _YAML["classify"], _YAML["dense_tasks"], _YAML["laptop"]


@dataclass(frozen=True, kw_only=True)
class Transfer(Spec):
    """What every training from pretrained weights has, or from none; equal specs give equal numbers."""

    run: Run | None = None  # the pretraining run whose weights it starts from; None = random, or `weights`
    weights: _Checkpoint | None = None  # NAME@DIGEST of a file it starts from, as `finetune.weights_name` gives
    weights_windows: tuple[Count, ...] | None = None  # of each stage of `weights`, where they are others than usual
    model: Model = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: Source = "scenes"  # as in Run, with labels; coco:DIR (detect), ade20k:DIR (segment)
    steps: Count = 600  # optimiser steps; far fewer measure how fast it learns, not how well
    seed: Whole = 0  # draw of the images, initialisation of heads (and encoder), order, augmentation, drop path
    batch_size: Count = 64  # images per optimiser step over all processes
    window_size: Side = 4  # tokens a side
    statistics: Statistics = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    layer_decay: Part = 1.0  # learning rate of a layer over that of the layer above it; 1 = none
    weight_decay: Share = 0.05  # AdamW, matrices only
    betas: tuple[Share, Share] = (0.9, 0.999)
    clip_grad: Positive | None = 5.0  # global gradient norm; None = not clipped, as in the full-size dense recipes
    drop_path: Share = 0.1  # rate of the last block; earlier blocks linear from 0
    precision: Precision = "fp32"  # fp32 | bf16 (autocast)
    eval_every: Count = 50  # steps between points of the curve

    LATER = ("weights_windows",)
    KNOWN: ClassVar[dict[str, dict]] = {}  # recipes by name

    @classmethod
    def of(cls, run: Run, /, **options: object) -> "Transfer":
        """From a run's weights, on its data at its size and window unless the options say otherwise."""
        return cls.from_dict({"run": run, **{name: getattr(run, name) for name in _SHARED}, **options})

    @classmethod
    def scratch(cls, *of: object, **options: object) -> "Transfer":
        """The baseline of `of(...)`: the same from random weights, without layer decay; it does not hold the run, so
        that all runs of one size on one source share one baseline."""
        start = {"run": None, "weights": None, "weights_windows": None}
        return cls.of(*of, **{**options, **start, "layer_decay": 1.0})

    @classmethod
    def recipe(cls, name: str, images: int, /, **options: object) -> "Transfer":
        """A full-size recipe by name for a training set of so many images, at swinv2_base unless the options (fields,
        `epochs` or `warmup_epochs`) differ. Epochs become steps; a rate per 512 images scales with the batch."""
        given = {**cls.KNOWN[name], **options}
        batch = given["batch_size"] = value("batch_size", Count, given["batch_size"])
        for steps, epochs, kind in (("steps", "epochs", Positive), ("warmup_steps", "warmup_epochs", _NotNegative)):
            if (count := given.pop(epochs, None)) is not None:
                count = value(epochs, kind, count, text=isinstance(count, str))
                given.setdefault(steps, math.ceil(count * images / batch))
        if (rate := given.pop("lr_per_512", None)) is not None:
            rate = value("lr_per_512", LearningRate, rate, text=isinstance(rate, str))
            given.setdefault("lr", rate * batch / 512)
        return cls.from_dict(given)

    @property
    def init(self) -> str:
        """`pretrained` or `scratch`."""
        return "scratch" if self.run is None and self.weights is None else "pretrained"

    @property
    def key(self) -> str:
        """Readable, unique, and a function of every field: `atto-scenes-pretrained-l4000-t600-s0-1f2e3d4c5b`."""
        name = f"{short(self.model)}-{data_slug(self.data)}{self._named}"
        return f"{name}-t{self.steps}-s{self.seed}-{digest(self.to_dict())}"

    def check(self) -> None:
        """What fields say of each other."""
        if self.run is not None and self.weights is not None:
            raise UserError("run and weights are both given: a training starts from one of them")
        if self.run is not None and self.run.model != self.model:
            raise UserError(f"model is {self.model!r}, but the pretraining run's is {self.run.model!r}: give the same")
        if (own := self.weights_windows) and (not self.weights or len(own) != len(SIZES[self.model].depths)):
            stages = len(SIZES[self.model].depths)
            raise UserError(f"weights_windows is {own}: give one of {stages} stages each, and weights, or leave it out")


@dataclass(frozen=True, kw_only=True)
class FineTune(Transfer):
    """One fine-tuning for classification, on labelled images drawn class-balanced by `seed`."""

    labels: Count | None = 4000  # labelled training images; None = all there are
    image_size: Side = 32  # pixels a side
    #: As in Run, on images decoded once at the input's size; timm: pictures at their own size, and what is below.
    augment: Annotated[str, OneOf((*AUGMENTATIONS, "timm"))] = "flip"
    lr: LearningRate = 4e-3  # peak learning rate of the head at this batch size
    layer_decay: Part = 0.9  # 0.75 at the paper's depth
    warmup_steps: Whole = 60  # linear, from lr / 5000; then a cosine down to lr / 5000 (see `warmup_prefix`)
    clip_grad: Positive = 5.0
    label_smoothing: Share = 0.1  # share of the target spread over all classes
    test_images: Count | None = 2000  # labelled test images; None = all there are
    recipe_version: Count = FINETUNE_VERSION
    mixup: _Alpha = 0.0  # alpha of the Beta distribution of the mix of two images; 0 = none
    cutmix: _Alpha = 0.0  # the same for a pasted box; with both, a batch takes one or the other at even odds
    rand_augment: Annotated[str, _RAND_AUGMENT] = ""  # timm: RandAugment as timm writes it; "" = none
    colour_jitter: _Chance = 0.0  # timm: brightness, contrast, saturation; timm leaves it out beside RandAugment
    erasing: _Chance = 0.0  # timm: probability that a box is filled with noise
    warmup_prefix: bool = True  # the cosine begins after the warm-up; False = at step 0, under it (released code)

    _TIMM = ("rand_augment", "colour_jitter", "erasing")
    LATER = ("weights", *Transfer.LATER, "mixup", "cutmix", *_TIMM, "warmup_prefix")
    KNOWN = TUNING_RECIPES
    task = "classify"

    @classmethod
    def of(cls, run: Run, /, **options: object) -> "FineTune":
        # images are decoded once, whatever the run did
        return super().of(run, **{"augment": "crop+flip" if run.streamed else run.augment, **options})

    @property
    def full_size(self) -> bool:
        """Whether it reads pictures at their own size."""
        return self.augment == "timm"

    @property
    def _named(self) -> str:
        return f"-{self.init}-l{'all' if self.labels is None else self.labels}"

    def lr_at(self, step: int) -> float:
        """Learning rate of the head at a step, as timm's CosineLRScheduler: linear warm-up, then a cosine to the floor,
        from the end of the warm-up (`warmup_prefix`) or from step 0."""
        low, done = self.lr * _FLOOR, step / self.steps
        if self.warmup_prefix:
            done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps))
        share = step / self.warmup_steps if step < self.warmup_steps else (1 + math.cos(math.pi * done)) / 2
        return low + (self.lr - low) * share

    def check(self) -> None:
        SIZES[self.model].check_input(self.image_size, self.window_size, SIZES[self.model].patch_size)
        super().check()
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f"batch_size {self.batch_size}: mixup and cutmix mix images in pairs; give an even number")
        for name in self._TIMM:
            if not self.full_size and getattr(self, name) != getattr(FineTune, name):
                raise UserError(f"{name} is {getattr(self, name)!r}: it needs augment=timm, not {self.augment!r}")


@dataclass(frozen=True, kw_only=True)
class Dense(Transfer):
    """One training of Mask R-CNN (`detect`) or UPerNet (`segment`)."""

    task: Annotated[str, OneOf(tuple(_ANNOTATED))] = "segment"  # detect | segment
    images: Count | None = None  # annotated training images; None = all there are
    batch_size: Count = 16
    image_size: _DenseSide = 32  # pixels: short side at test time (detect), side of training crop and test (segment)
    long_side: _DenseSide | None = None  # detect: longest side in pixels; None = 5/3 of image_size (1,333 at 800)
    short_sides: tuple[_DenseSide, ...] = ()  # detect: drawn from in training, image_size last; () = image_size
    augment: Annotated[str, OneOf(("flip", "scale", "scale+crop+colour"))] = "flip"  # scale: short_sides (detect)
    channels: _Width = 64  # of the pyramid and the heads; 256 for Mask R-CNN, 512 for UPerNet at full size
    hidden: _Width = 128  # detect: width of the box head; 1,024 at full size
    lr: LearningRate = 1e-3  # peak learning rate of the heads at this batch size
    warmup_steps: Whole = 50  # linear
    warmup_start: Part = 1e-3  # of the peak: where the warm-up begins
    schedule: Annotated[str, OneOf(("linear", "step"))] = "linear"  # to 0 at the end | x0.1 at each milestone
    milestones: tuple[Annotated[float, Range(0, 1, "()")], ...] = ()  # step: shares of all steps
    auxiliary: Annotated[float, Range(0)] = 0.4  # segment: weight of the auxiliary head's loss; 0 = no such head
    test_images: Count | None = 1000  # images of the test split; None = all
    version: Count = DENSE_VERSION

    KNOWN = RECIPES

    @classmethod
    def of(cls, task: str, run: Run, /, **options: object) -> "Dense":
        scratch = options.get("run", run) is None and options.get("weights") is None
        laptop = ON_SCENES.get(task, {}) if options.get("data", run.data) == "scenes" else {}
        return super().of(run, **{"task": task, **laptop.get("scratch" if scratch else "pretrained", {}), **options})

    @property
    def _named(self) -> str:
        return f"-{self.task}-{self.init}-n{'all' if self.images is None else self.images}"

    def lr_at(self, step: int) -> float:
        """Learning rate of the heads at a step: the schedule, times a linear warm-up."""
        passed = sum(step >= round(m * self.steps) for m in self.milestones)
        lr = self.lr * {"linear": 1 - step / self.steps, "step": 0.1**passed}[self.schedule]
        if step < self.warmup_steps:
            lr *= 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_start)
        return lr

    def check(self) -> None:
        if self.augment not in DENSE_AUGMENTATIONS[self.task]:
            raise unknown("augment", self.augment, DENSE_AUGMENTATIONS[self.task])
        side, sides, longest = self.image_size, self.short_sides, self.long_side
        if (longest or side) < side or (sides and (self.augment != "scale" or sides[-1] != side)):
            rule = f"short_sides go with augment scale and end with image_size {side}, and long_side is not below it"
            raise UserError(f"short_sides {sides}, long_side {longest}, augment {self.augment}: {rule}")
        super().check()
        if any(self.data.startswith(kind) for task, kind in _ANNOTATED.items() if task != self.task):
            fits = f"{_ANNOTATED[self.task]}DIR"
            raise UserError(f"data '{self.data}' has no annotations for {self.task}: give scenes or {fits}")


@dataclass(frozen=True, kw_only=True)
class Probe(Spec):
    """All probes of one run: ridge, kNN, and segmentation (where masks are known)."""

    run: Run
    labels: Count  # labelled images to fit on
    test_images: AtLeastTwo  # labelled test images

    task, steps = "probe", 0  # the encoder is frozen: no optimiser steps

    @classmethod
    def of(cls, run: Run, labels: int | None = None, test_images: int | None = None) -> "Probe":
        """On as many images as the run's own probes had, unless other numbers are given."""
        own = run.probe_labels if labels is None else labels, run.probe_test if test_images is None else test_images
        return cls(run=run, labels=own[0], test_images=own[1])

    @property
    def key(self) -> str:
        """The run's key, numbers of images, and the version of the probes."""
        return f"{self.run.key}-probe-l{self.labels}-n{self.test_images}-a{PROBE_VERSION}"

    # what a transfer has as fields
    data = property(lambda self: self.run.data)
    image_size = property(lambda self: self.run.image_size)
    model = property(lambda self: self.run.model)
    precision = property(lambda self: self.run.precision)
