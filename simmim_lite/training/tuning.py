"""A fine-tuning as data: what defines it. Running it is `finetune.py`'s; no torch here."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from ..errors import UserError, unknown
from ..model.sizes import SIZES
from .run import Run, data_slug

#: Raised whenever the same FineTune would give other numbers; it is part of every key.
FINETUNE_VERSION = 1
#: Fields that came later, at the value that changes nothing: keys of fine-tunings that do not use them stay the same.
_LATER = {"weights": None}
_FLOOR = 1 / 5000  # of the peak learning rate: where warm-up starts and the cosine ends (FACTS 4)


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """One fine-tuning; equal specs give equal numbers. `FineTune.of(run)` and `FineTune.scratch(run)` fill it in.

    Labelled images come from the source's labelled training split, drawn class-balanced by `seed`.
    """

    run: Run | None = None  # the pretraining run whose weights it starts from; None = random initialisation
    model: str = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: str = "scenes"  # as in Run; must have labels
    labels: int = 4000  # labelled training images
    steps: int = 600  # optimiser steps; far fewer measure how fast it learns, not how well (DESIGN 3)
    seed: int = 0  # draw of the labels, initialisation of the head (and encoder), order, augmentation, drop path
    batch_size: int = 64  # images per optimiser step
    image_size: int = 32  # pixels a side
    window_size: int = 4  # tokens a side
    statistics: str = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    augment: str = "flip"  # none | flip | crop+flip
    lr: float = 4e-3  # peak learning rate of the head at this batch size
    layer_decay: float = 0.9  # learning rate of a layer over that of the layer above it; 0.75 at the paper's depth
    warmup_steps: int = 60  # linear, from lr / 5000; then a cosine down to lr / 5000
    weight_decay: float = 0.05  # AdamW, matrices only
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float = 5.0  # global gradient norm
    drop_path: float = 0.1  # rate of the last block; earlier blocks linear from 0
    label_smoothing: float = 0.1  # share of the target spread over all classes
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    eval_every: int = 50  # steps between points of the curve
    test_images: int = 2000  # labelled test images
    recipe_version: int = FINETUNE_VERSION
    # later fields: `to_dict` leaves them out at these values, which mean what was done before there was the field
    weights: str | None = None  # NAME@DIGEST of a checkpoint file it starts from, as `starting.weights_name` gives

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
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

    @property
    def init(self) -> str:
        """`pretrained` or `scratch`."""
        return "scratch" if self.run is None and self.weights is None else "pretrained"

    @property
    def key(self) -> str:
        """Readable, unique, and a function of every field: `atto-scenes-pretrained-l4000-t600-s0-1f2e3d4c5b`."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:10]
        name = self.model.removeprefix("swinv2_")
        return f"{name}-{data_slug(self.data)}-{self.init}-l{self.labels}-t{self.steps}-s{self.seed}-{digest}"

    def lr_at(self, step: int) -> float:
        """Learning rate of the head at a step: linear warm-up, then a cosine to the floor at the last step."""
        low = self.lr * _FLOOR
        if step < self.warmup_steps:
            return low + (self.lr - low) * step / self.warmup_steps
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
        names = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                raise unknown("fine-tuning field", name, names)
        run = fields.get("run")
        return cls(**{**fields, "run": run and Run.from_dict(run)})


def _inherited(run: Run) -> dict:
    names = ("model", "data", "image_size", "window_size", "statistics", "augment", "precision")
    return {name: getattr(run, name) for name in names}


def check_finetune(spec: FineTune) -> None:
    """Raise `UserError` on the first field that cannot be run, naming field, value and remedy."""
    if spec.model not in SIZES:
        raise unknown("model", spec.model, SIZES)
    shared = {f.name for f in dataclasses.fields(FineTune)} & {f.name for f in dataclasses.fields(Run)}
    fields = {name: getattr(spec, name) for name in shared - {"recipe_version"}}
    Run(**fields, mask_patch=SIZES[spec.model].final_stride)  # what the two have in common is checked there
    if spec.run is not None and spec.weights is not None:
        raise UserError("run and weights are both given: a fine-tuning starts from one of them")
    if spec.run is not None and spec.run.model != spec.model:
        raise UserError(f"model is {spec.model!r}, but the pretraining run's is {spec.run.model!r}: give the same")
    for name in ("labels", "steps", "test_images"):
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} is {value!r}: give a whole number of at least 1")
    if not 0 < spec.layer_decay <= 1:
        raise UserError(f"layer_decay is {spec.layer_decay!r}: give a number above 0, at most 1 (1 = none)")
    if not 0 <= spec.label_smoothing < 1:
        raise UserError(f"label_smoothing is {spec.label_smoothing!r}: give a number from 0 to below 1")
