"""The steps of a transfer, whatever its task: forward, backward, update, curve, checkpoints, on one process or many."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .checkpoint import latest_in, save_checkpoint, thin_checkpoints
from .dense import Dense
from .distributed import Team
from .meter import Meter
from .run import SCHEMA_VERSION
from .signals import Ears, listening, preempted
from .tuning import FineTune

#: Seconds between checkpoints: what a kill can cost at most.
CHECKPOINT_SECONDS = 30.0


class Task(Protocol):
    """What a task brings: its network, how fast each part learns, and the loss of a step."""

    kind: str  # of its record
    model: nn.Module
    unique: int  # training images
    flops: float | None  # of training on one image; None where images differ in size

    def groups(self) -> list[dict]:
        """AdamW's groups; `scale` multiplies the learning rate."""

    def loss(self, net: nn.Module, step: int) -> Tensor:
        """The mean loss over this process's share of a step. `net` is the model, perhaps wrapped (`Team.wrap`)."""

    def evaluate(self) -> tuple[dict, str | None]:
        """The parts of the record that hold its scores, and why there are none, or None. Every process calls it."""


class Loop:
    """Training of one spec: goes on from its last checkpoint, `run()` returns the curve and why it failed, or None."""

    def __init__(
        self,
        spec: FineTune | Dense,
        task: Task,
        team: Team,
        *,
        folder: Path | None,
        data_digest: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.spec, self.task, self.team, self.progress = spec, task, team, progress
        self.folder, self.digest = folder, data_digest
        self.optimiser = torch.optim.AdamW(task.groups(), lr=spec.lr, betas=spec.betas, fused=True)
        self.losses = torch.zeros(spec.steps, device=team.device)
        self.curve: list[dict] = []
        self.step = 0
        state = latest_in(folder.glob("step-*.pt"), data_digest, team=team) if folder else None
        if state is not None:
            task.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.curve = state["step"], state["curve"]
            self.losses[: self.step] = state["losses"].to(team.device)
        self.meter = Meter(team.device, state["spent"] if state and team.main else None)

    def run(self) -> tuple[list[dict], str | None]:
        """All steps that are left. SIGTERM and SIGUSR1 save and raise `Preempted` where checkpoints are kept."""
        with listening() if self.folder else contextlib.nullcontext(Ears()) as ears:
            return self.steps(ears)

    def steps(self, ears: Ears) -> tuple[list[dict], str | None]:
        """`run`, with an ear for signals."""
        spec, team = self.spec, self.team
        net = team.wrap(self.task.model)
        self.task.model.train()
        saved = time.monotonic()
        while self.step < spec.steps:
            self.losses[self.step] = self.advance(net)
            self.step += 1
            if self.step % spec.eval_every == 0 or self.step == spec.steps:
                if reason := self.mark():
                    return [], reason
                if self.progress and team.main:
                    self.progress(self.step, spec.steps)
            due = self.folder is not None and team.main and time.monotonic() - saved > CHECKPOINT_SECONDS
            due, stop = team.any(due, ears.heard is not None)
            if due or stop:
                self.save()
                saved = time.monotonic()
            if stop:
                raise preempted(ears, team, spec.key, self.step, spec.steps)
        return self.curve, None

    def advance(self, net: nn.Module) -> Tensor:
        """One optimiser step; this process's loss, still on the device."""
        spec = self.spec
        for group in self.optimiser.param_groups:
            group["lr"] = spec.lr_at(self.step) * group["scale"]
        with torch.autocast(self.team.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            loss = self.task.loss(net, self.step)
        self.optimiser.zero_grad()
        loss.backward()
        if spec.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.task.model.parameters(), spec.clip_grad)
        self.optimiser.step()
        return loss.detach()

    def mark(self) -> str | None:
        """A point on the curve, the mean training loss since the one before; why this run has failed, or None."""
        since = self.curve[-1]["step"] if self.curve else 0
        recent = self.team.mean(self.losses[since : self.step].clone())
        train_loss = recent.mean().item()
        if not math.isfinite(train_loss):
            first = since + int((~recent.isfinite()).nonzero()[0])
            return f"the training loss was not finite at step {first}; lower lr ({self.spec.lr:g})"
        point = {"step": self.step, "images_seen": self.step * self.spec.batch_size, "train_loss": train_loss}
        self.curve.append(point | {"lr": self.spec.lr_at(self.step - 1)})
        return None

    def save(self) -> None:
        """Write a checkpoint into the spec's own folder. Every process calls it, the main one writes."""
        state = {
            "step": self.step,
            "data_digest": self.digest,
            "model": self.task.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses[: self.step].cpu(),
            "curve": self.curve,
            "spent": {**self.meter.spent_by(self.team), "started": self.meter.started},
        }
        self.team.lead(lambda: save_checkpoint(self.folder, state) and thin_checkpoints(self.folder))


def work(
    spec: FineTune | Dense,
    task: Task,
    team: Team,
    *,
    digest: str,
    line: str = "",
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Train and test a task; its record. digest, line: of the data; folder: of checkpoints, None = none."""
    loop = Loop(spec, task, team, folder=folder, data_digest=digest, progress=progress)
    curve, reason = loop.run()
    parts = {}
    if not reason:
        parts, reason = task.evaluate()
    fields = spec.to_dict()
    record = {"schema": SCHEMA_VERSION, "kind": task.kind, "key": spec.key}
    record |= {"status": "failed" if reason else "done", "reason": reason, "run": fields.pop("run"), "spec": fields}
    where = loop.meter.where(digest, line) | ({"processes": team.size} if team.size > 1 else {})
    if reason:
        return record | {"where": where}
    seen = spec.steps * spec.batch_size
    cost = {
        "images_seen": seen,
        "epochs": seen / task.unique,
        "unique_images": task.unique,
        "flops": task.flops and task.flops * seen,
        **loop.meter.spent_by(team),
        "peak_memory_bytes": loop.meter.peak_of(team),
    }
    return record | {"cost": cost, "curve": curve, **parts, "where": where}
