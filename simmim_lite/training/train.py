"""The loop that trains everything here: pretraining, fine-tuning, detection, segmentation."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Preempted
from .checkpoint import adopt, latest, read_checkpoint, save_checkpoint
from .machine import Meter, Preemption
from .parallel import Parallel, clip_grad_norm_
from .specs import Spec

#: Seconds between checkpoints: what a kill can cost at most.
CHECKPOINT_SECONDS = 30.0
LOOK = 25  # steps between looks at the loss; a look waits for the device
DIVERGED = 3.0  # a training loss this many times that of the first steps is divergence


def step(model: torch.nn.Module, optimiser: torch.optim.Optimizer, batch: Sequence, lr: float, spec: Spec) -> Tensor:
    """One step of training: `model(*batch)` is the loss, which is returned as it was before the update."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    optimiser.zero_grad()
    device, half = next(model.parameters()).device.type, spec.precision == "bf16"
    with torch.autocast(device, torch.bfloat16, enabled=half):
        loss = model(*batch)
    loss.backward()
    if spec.clip_grad:
        clip_grad_norm_(model.parameters(), spec.clip_grad)
    optimiser.step()
    return loss.detach()


def train(training: "Training", batch: Callable[[int], Sequence], callbacks: Iterable["Callback"] = ()) -> None:
    """All steps that are left; `batch(step)` is this process's share. `Failed` where the loss says so."""
    training.callbacks = callbacks = list(callbacks)
    training.net.train()
    for callback in callbacks:
        callback.on_train_start(training)
    while training.step < training.spec.steps:
        for callback in callbacks:
            callback.on_step_start(training)
        now, lr = training.step, training.spec.lr_at(training.step)
        loss = step(training.net, training.optimiser, batch(now), lr, training.spec)
        training.losses[now] = training.team.mean(loss)
        training.step += 1
        for callback in callbacks:
            callback.on_step_end(training)


class Failed(Exception):
    """The training has failed; the reason is its message."""


class Callback:
    """Told of a training as it goes. All processes have the same ones, so they may speak to each other in it."""

    def on_train_start(self, training: "Training") -> None:
        """Training begins, or goes on."""

    def on_step_start(self, training: "Training") -> None:
        """Before a step: `training.step` steps are done."""

    def on_step_end(self, training: "Training") -> None:
        """After a step: it is counted in `training.step`."""

    def on_validation_end(self, training: "Training", val_loss: float) -> None:
        """There is a validation loss after `training.step` steps."""


class Training:
    """What is trained, and how far it is: all that a checkpoint holds. net: whose call on a batch is the loss."""

    def __init__(self, spec: Spec, net: Parallel, optimiser: torch.optim.AdamW, digest: str) -> None:
        self.spec, self.net, self.optimiser, self.digest, self.team = spec, net, optimiser, digest, net.team
        self.step, self.curve, self.callbacks = 0, [], []
        self.losses = torch.zeros(spec.steps, device=self.team.device)
        self.meter = Meter(self.team.device)

    def resume(self, paths: Iterable[Path]) -> None:
        """Go on from the furthest of these checkpoints that can be read and belongs to the same data, if any does."""
        state = latest(paths, self.digest, lambda p: read_checkpoint(p, self.net.model, self.optimiser), self.team)
        if state is not None:
            adopt(state, self.net.model, self.optimiser)
            self.step, self.curve = state["step"], state["curve"]
            self.losses[: self.step] = state["losses"].to(self.team.device)
            self.meter = Meter(self.team.device, state["spent"] if self.team.is_main else None)

    def save(self, folder: Path, keep: Sequence[int] = ()) -> None:
        """Write a checkpoint; every process calls it. keep: steps whose checkpoints stay beside the newest two."""
        state = {
            "step": self.step,
            "data_digest": self.digest,
            "losses": self.losses[: self.step].cpu(),
            "curve": self.curve,
            "spent": {**self.meter.spent_by(self.team), "started": self.meter.started},
        }
        save_checkpoint(folder, state, self.net.model, self.optimiser, self.team, self.net.sharded, keep)

    def at_point(self) -> bool:
        """Whether a point of the curve is due after this step."""
        return self.step % self.spec.eval_every == 0 or self.step == self.spec.steps

    def looks(self) -> bool:
        """Whether the loss is looked at after this step."""
        return self.at_point() or self.step % LOOK == 0

    def point(self, **numbers: float) -> None:
        """Put a point on the curve: the training loss is the mean since the point before."""
        since = self.curve[-1]["step"] if self.curve else 0
        point = {"step": self.step, "images_seen": self.step * self.spec.batch_size}
        point["train_loss"] = self.losses[since : self.step].mean().item()
        self.curve.append(point | numbers | {"lr": self.spec.lr_at(self.step - 1)})

    def validated(self, val_loss: float) -> None:
        """Put a point on the curve, with a validation loss."""
        self.point(val_loss=val_loss)
        for callback in self.callbacks:
            callback.on_validation_end(self, val_loss)

    def cost(self, unique: int, flops: float | None) -> dict:
        """The cost of a record. flops: of an image, forward and backward; None where images differ."""
        seen = self.spec.steps * self.spec.batch_size
        found = {"images_seen": seen, "epochs": seen / unique, "unique_images": unique, "flops": flops and flops * seen}
        peak = self.meter.peak_of(self.team)
        return found | self.meter.spent_by(self.team) | {"peak_memory_bytes": peak}

    def where(self, line: str, **more: object) -> dict:
        """Where it ran, for a record. line: what was said of the data."""
        how = {"processes": self.team.size} if self.team.size > 1 else {}
        return self.meter.where(self.digest, line) | how | more


class Health(Callback):
    """`Failed` where the loss is not finite or, where it can be told (`divergence`), runs away."""

    def __init__(self, divergence: bool = True, remedy: str = "") -> None:
        self.divergence, self.remedy = divergence, remedy

    def on_step_end(self, training: Training) -> None:
        if not training.looks():
            return
        step, losses, lr = training.step, training.losses[: training.step], training.spec.lr
        if not bool(losses[-max(LOOK, training.spec.eval_every) :].isfinite().all()):
            first = int((~losses.isfinite()).nonzero()[0])
            raise Failed(f"the training loss was not finite at step {first}; lower lr ({lr:g}){self.remedy}")
        early = min(LOOK, max(1, training.spec.warmup_steps), step)  # before it can have run away
        first, now = losses[:early].mean().item(), losses[-min(5, LOOK, step) :].mean().item()
        if self.divergence and now > DIVERGED * first:
            raise Failed(f"the training loss ran away: {now:.3g} by step {step} from {first:.3g}; lower lr ({lr:g})")


class Progress(Callback):
    """Calls `report(step, steps)` now and then, in the main process."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(self, training: Training) -> None:
        if training.team.is_main and training.looks():
            self.report(training.step, training.spec.steps)


class Curve(Callback):
    """The training loss at the points of the curve."""

    def on_step_end(self, training: Training) -> None:
        if training.at_point():
            training.point()


class Checkpoints(Callback):
    """Saves every `CHECKPOINT_SECONDS`, and on SIGTERM and SIGUSR1, which then raise `Preempted`.

    folder: where a checkpoint after so many steps belongs. always: steps at which one is saved, and kept.
    """

    def __init__(self, folder: Callable[[int], Path], preemption: Preemption, always: Iterable[int] = ()) -> None:
        self.folder, self.preemption, self.always = folder, preemption, set(always)

    def on_train_start(self, training: Training) -> None:
        # where a shorter length's trunk ended when this began: others may branch off there again
        self.keep, self.saved = {training.step, *self.always}, time.monotonic()

    def on_step_start(self, training: Training) -> None:
        if training.step in self.always:
            self.save(training)

    def on_step_end(self, training: Training) -> None:
        team, signal = training.team, self.preemption.signal
        late = team.is_main and time.monotonic() - self.saved > CHECKPOINT_SECONDS
        # all processes save, and all stop, after the same step
        late, stop = team.any(late, signal is not None)
        if late or stop:
            self.save(training)
        if stop:
            name, step = next(filter(None, team.gather(signal))), f"step {training.step} of {training.spec.steps}"
            raise Preempted(f"{name}: {training.spec.key} is saved at {step}; run the same command to go on")

    def save(self, training: Training) -> None:
        training.save(self.folder(training.step), self.keep)
        self.saved = time.monotonic()
