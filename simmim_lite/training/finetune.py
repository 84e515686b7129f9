"""Fine-tuning for classification: the pretrained encoder and a linear head, with layer decay (FACTS 4).

The supervised baseline is the same function from a random initialisation, without layer decay.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import Batches
from ..data.manifests import subset
from ..data.sources import Data
from ..errors import UserError, unknown
from ..model.masking import stream, uniforms
from ..model.simmim import create_model
from ..model.sizes import SIZES
from .classifier import Classifier, parameter_groups
from .meter import Meter
from .pretrain import pick_device
from .probes import features, input_statistics, top1
from .run import SCHEMA_VERSION, Run

#: Raised whenever the same FineTune would give other numbers; it is part of every key.
FINETUNE_VERSION = 1
_FLOOR = 1 / 5000  # of the peak learning rate: where warm-up starts and the cosine ends (FACTS 4)
_DROP_PATH, _HEAD = 5, 6  # streams of random numbers


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
        return cls(**{**_inherited(run), **options, "run": None, "layer_decay": 1.0})

    @property
    def init(self) -> str:
        """`pretrained` or `scratch`."""
        return "scratch" if self.run is None else "pretrained"

    @property
    def key(self) -> str:
        """Readable, unique, and a function of every field: `atto-scenes-pretrained-l4000-t600-s0-1f2e3d4c5b`."""
        data = re.sub(r"[^A-Za-z0-9]+", "_", self.data.removeprefix("imagefolder:").rstrip("/").split("/")[-1])[:24]
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:10]
        name = self.model.removeprefix("swinv2_")
        return f"{name}-{data}-{self.init}-l{self.labels}-t{self.steps}-s{self.seed}-{digest}"

    def lr_at(self, step: int) -> float:
        """Learning rate of the head at a step: linear warm-up, then a cosine to the floor at the last step."""
        low = self.lr * _FLOOR
        if step < self.warmup_steps:
            return low + (self.lr - low) * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        return low + (self.lr - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def to_dict(self) -> dict:
        """Plain JSON types; `run` is the run's own dict, or None."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
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


def build_classifier(spec: FineTune, classes: int, weights: dict[str, Tensor] | None = None) -> Classifier:
    """The network at step 0; weights are the pretrained SimMIM's state dict, needed just when the spec has a run."""
    if (weights is None) != (spec.run is None):
        raise UserError(
            f"fine-tuning {spec.key}: {spec.init} needs {'no' if spec.run is None else 'the run and its'} weights"
        )
    pretrained = None
    if spec.run is not None:
        # windows are clamped to each stage's map, so the last stage may have seen a smaller one (12, 12, 12, 6)
        pretrained = tuple(min(spec.run.window_size, g) for g in SIZES[spec.model].stage_grids(spec.run.image_size))
    model = create_model(
        spec.model,
        spec.image_size,
        spec.window_size,
        drop_path=spec.drop_path,
        pretrained_window_sizes=pretrained,
        seed=spec.seed,
    )
    if weights is not None:
        prefix = "encoder."
        model.encoder.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    # the head has a generator of its own: it starts the same whatever the encoder starts from
    return Classifier(model.encoder, classes, torch.Generator().manual_seed(int(stream(spec.seed, _HEAD)[0])))


def finetune(
    spec: FineTune,
    data: Data,
    weights: dict[str, Tensor] | None = None,
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Train a classifier on labelled images, test it once at the end, and return its record (kind `finetune`).

    weights: the pretrained SimMIM's state dict for a spec with a run, else None. `progress(step, steps)` is called at
    each point of the curve. A loss that is not finite ends in a record with status `failed` and no numbers. `UserError`
    where the source has no labels, or fewer images than asked for. It is short and keeps no checkpoints.
    """
    train, test = data.probe_train, data.test
    if train is None or test is None or train.labels is None or test.labels is None:
        raise UserError(f"data '{spec.data}' has no labels to fine-tune on: use a source with classes")
    if spec.labels > len(train):
        raise UserError(
            f"labels {spec.labels}: {spec.data} has {len(train)} labelled images; ask for 1 to {len(train)}"
        )
    device = pick_device(device)
    meter = Meter(device)
    chosen = subset(train, spec.labels, spec.seed)
    mean, std = input_statistics(data, spec.statistics)
    batches = Batches(
        train,
        chosen,
        seed=spec.seed,
        batch_size=spec.batch_size,
        image_size=spec.image_size,
        mean=mean,
        std=std,
        augment=spec.augment,
        mask_patch=spec.image_size,  # one cell: nothing is hidden here, and drawing it costs least
        device=device,
    )
    labels = torch.from_numpy(np.asarray(train.labels)[chosen])
    model = build_classifier(spec, data.num_classes, weights).to(device)
    curve, reason = _train(spec, model, batches, labels, device, progress)
    n_test = min(spec.test_images, len(test))
    if not reason:
        pooled, _ = features(model, test.images[:n_test], mean, std, precision=spec.precision)
        with torch.no_grad():
            logits = model.head(pooled.to(device)).cpu()
        if not bool(logits.isfinite().all()):
            reason = f"the trained network's outputs were not finite; lower lr ({spec.lr:g})"
    if reason:
        return _record(spec, status="failed", reason=reason, where=meter.where(data.digest))
    score = top1(logits.argmax(1).numpy(), test.labels[:n_test], len(chosen))
    seen = spec.steps * spec.batch_size
    cost = {
        "images_seen": seen,
        "epochs": seen / len(chosen),
        "unique_images": len(chosen),
        "flops": 6e9 * SIZES[spec.model].gmac(spec.image_size, spec.window_size) * seen,
        **meter.read(),
        "peak_memory_bytes": meter.peak_memory(),
    }
    final = {"top1": score["score"], "low": score["low"], "high": score["high"], "n_test": n_test}
    return _record(spec, status="done", cost=cost, curve=curve, final=final, where=meter.where(data.digest))


def _train(
    spec: FineTune, model: Classifier, batches: Batches, labels: Tensor, device: torch.device, progress: Callable | None
) -> tuple[list[dict], str | None]:
    """All steps: the curve, and why it failed or None."""
    groups = parameter_groups(model, spec.layer_decay, spec.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=True)
    blocks = sum(model.encoder.depths)
    losses, curve, since = torch.zeros(spec.steps, device=device), [], 0
    model.train()
    for step in range(spec.steps):
        images, _, _ = batches.batch(step)
        target = labels[torch.from_numpy(batches.positions(step)[1])].to(device)
        draws = uniforms(2 * blocks, spec.seed, step, np.arange(spec.batch_size), _DROP_PATH)
        noise = torch.from_numpy(draws).to(device).view(-1, blocks, 2)
        for group in optimiser.param_groups:
            group["lr"] = spec.lr_at(step) * group["scale"]
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = model(images, noise)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=spec.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip_grad)
        optimiser.step()
        losses[step] = loss.detach()
        done = step + 1
        if done % spec.eval_every == 0 or done == spec.steps:
            train_loss = losses[since:done].mean().item()
            if not math.isfinite(train_loss):
                first = int((~losses[:done].isfinite()).nonzero()[0])
                return [], f"the training loss was not finite at step {first}; lower lr ({spec.lr:g})"
            point = {"step": done, "images_seen": done * spec.batch_size, "train_loss": train_loss}
            curve.append(point | {"lr": spec.lr_at(step)})
            since = done
            if progress:
                progress(done, spec.steps)
    return curve, None


def _record(spec: FineTune, *, status: str, reason: str | None = None, **parts: object) -> dict:
    fields = spec.to_dict()
    record = {"schema": SCHEMA_VERSION, "kind": "finetune", "key": spec.key, "status": status, "reason": reason}
    return record | {"run": fields.pop("run"), "spec": fields} | parts
