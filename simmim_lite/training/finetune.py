"""Fine-tuning for classification: the pretrained encoder and a linear head, with layer decay (FACTS 4).

The supervised baseline is the same function from a random initialisation, without layer decay.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import Batches
from ..data.manifests import subset
from ..data.sources import Data
from ..errors import UserError
from ..model.masking import stream, uniforms
from ..model.simmim import create_model
from ..model.sizes import SIZES
from .classifier import Classifier, parameter_groups
from .meter import Meter
from .pretrain import pick_device
from .probes import features, input_statistics, top1
from .run import SCHEMA_VERSION
from .tuning import FineTune

_DROP_PATH, _HEAD = 5, 6  # streams of random numbers


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
    if spec.labels > len(train) and data.train.labels is not None and len(data.train) > len(train):
        train = data.train  # of scenes the pool for probes is the smaller one; no test image is in either
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
