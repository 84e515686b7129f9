"""The loop that trains everything here, its callbacks, its checkpoints, and the optimiser's parameter groups."""

import contextlib
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._pytree import tree_map

from ..errors import Preempted, first_line
from .parallel import Meter, Parallel
from .run import remove, write_atomic
from .specs import Spec

CHECKPOINT_VERSION = 1
#: Seconds between checkpoints: what a kill can cost at most.
CHECKPOINT_SECONDS = 30.0
LOOK = 25  # steps between looks at the loss; a look waits for the device
DIVERGED = 3.0  # a training loss this many times that of the first steps is divergence


def step(model: nn.Module, optimiser: torch.optim.Optimizer, batch: Sequence, lr: float, spec: Spec) -> Tensor:
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


def train(training: "Training", batch: Callable[[int], Sequence], callbacks: Iterable = ()) -> None:
    """All steps that are left; `batch(step)` is this process's share. `Failed` where the loss says so."""
    training.callbacks = list(callbacks)
    training.net.train()
    training.tell("on_train_start")
    while training.step < training.spec.steps:
        training.tell("on_step_start")
        now, lr = training.step, training.spec.lr_at(training.step)
        loss = step(training.net, training.optimiser, batch(now), lr, training.spec)
        training.losses[now] = training.team.mean(loss)
        training.step += 1
        training.tell("on_step_end")


class Failed(Exception):
    """The training has failed; the reason is its message."""


class Training:
    """What is trained, and how far it is: all that a checkpoint holds. net: whose call on a batch is the loss."""

    def __init__(self, spec: Spec, net: Parallel, optimiser: torch.optim.AdamW, digest: str) -> None:
        self.spec, self.net, self.optimiser, self.digest, self.team = spec, net, optimiser, digest, net.team
        self.step, self.curve, self.callbacks = 0, [], []
        self.losses = torch.zeros(spec.steps, device=self.team.device)
        self.meter = Meter(self.team)

    def tell(self, what: str, *about: object) -> None:
        """Call a method of all callbacks that have it: on_train_start, on_step_start, on_step_end (training), when
        `training.step` steps are done, and on_validation_end (training, val_loss). Those that speak to other processes
        are in all of them."""
        for callback in self.callbacks:
            if hasattr(callback, what):
                getattr(callback, what)(self, *about)

    def save(self, folder: Path, keep: Collection[int] = ()) -> None:
        """Write FOLDER/step-NNNNNNN.pt, whole tensors also of a sharded model; every process calls it. The newest two
        (should one not be readable) and those at the steps in `keep` stay."""
        whole = {"model": self.net.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        spent = self.meter.spent() | {"started": self.meter.started}
        state = {
            **{"version": CHECKPOINT_VERSION, "step": self.step, "data_digest": self.digest, "curve": self.curve},
            **{"losses": self.losses[: self.step].cpu(), "spent": spent, **tree_map(self.net.gathered, whole)},
        }

        def write() -> None:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_atomic(folder / f"step-{self.step:07d}.pt", buffer.getvalue())
            saved = sorted(folder.glob("step-*"), key=step_of)
            for path in saved[:-2]:
                if step_of(path) not in keep:
                    remove(path)

        self.team.on_main(write)

    def resume(self, paths: Iterable[Path]) -> None:
        """Go on from the furthest of these checkpoints that every process can read and that is of the same data.

        One that is not is named on stderr and passed over: the one before it is taken, or the training starts anew.
        """
        for path in self.team.broadcast(sorted(paths, key=lambda p: (step_of(p), p), reverse=True)):
            state, reason = None, ""
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if state["version"] != CHECKPOINT_VERSION or state["data_digest"] != self.digest:
                    raise ValueError("it was made from other data or by another version")
            except Exception as error:  # a short file fails in many ways
                reason = first_line(error)[:120]
            reason = next(filter(None, self.team.gather(reason)), "")
            if not reason:
                return self._adopt(state)
            if self.team.is_main:
                print(f"simmim-lite: checkpoint {path} is passed over ({reason})", file=sys.stderr)

    def _adopt(self, state: dict) -> None:
        self.net.load(state["model"], state["optimiser"], self.optimiser)
        self.step, self.curve = state["step"], state["curve"]
        self.losses[: self.step] = state["losses"].to(self.team.device)
        self.meter = Meter(self.team, state["spent"])

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
        self.tell("on_validation_end", val_loss)

    def cost(self, unique: int, flops: float | None) -> dict:
        """The cost of a record. flops: of an image, forward and backward; None where images differ."""
        seen = self.spec.steps * self.spec.batch_size
        found = {"images_seen": seen, "epochs": seen / unique, "unique_images": unique, "flops": flops and flops * seen}
        return found | self.meter.spent() | {"peak_memory_bytes": self.meter.peak_memory()}


class Health:
    """`Failed` where the loss is not finite or, where it can be told (`divergence`), runs away."""

    def __init__(self, divergence: bool = True) -> None:
        self.divergence = divergence

    def on_step_end(self, training: Training) -> None:
        if not training.looks():
            return
        step, losses, lr = training.step, training.losses[: training.step], training.spec.lr
        if not bool(losses[-max(LOOK, training.spec.eval_every) :].isfinite().all()):
            first = int((~losses.isfinite()).nonzero()[0])
            raise Failed(f"the training loss was not finite at step {first}; lower lr ({lr:g}) or use fp32")
        early = min(LOOK, max(1, training.spec.warmup_steps), step)  # before it can have run away
        first, now = losses[:early].mean().item(), losses[-min(5, LOOK, step) :].mean().item()
        if self.divergence and now > DIVERGED * first:
            raise Failed(f"the training loss ran away: {now:.3g} by step {step} from {first:.3g}; lower lr ({lr:g})")


class Progress:
    """Calls `report(step, steps)` now and then, in the main process; report: None calls nobody."""

    def __init__(self, report: Callable[[int, int], None] | None) -> None:
        self.report = report

    def on_step_end(self, training: Training) -> None:
        if self.report and training.team.is_main and training.looks():
            self.report(training.step, training.spec.steps)


class Curve:
    """The points of the curve: the training loss or, with `validate` (whose first number is taken), both losses at all
    points but the last, which the record adds."""

    def __init__(self, validate: Callable[[], tuple] | None = None) -> None:
        self.validate = validate

    def on_step_end(self, training: Training) -> None:
        if training.at_point() and self.validate is None:
            training.point()
        elif training.at_point() and training.step < training.spec.steps:
            training.validated(self.validate()[0])


class Checkpoints:
    """Saves every `CHECKPOINT_SECONDS`, and on SIGTERM and SIGUSR1, which then raise `Preempted`. folder: where a
    checkpoint after so many steps belongs. always: steps at which one is saved, and kept."""

    def __init__(self, folder: Callable[[int], Path], preemption: "Preemption", always: Iterable[int] = ()) -> None:
        self.folder, self.preemption, self.always = folder, preemption, set(always)

    def on_train_start(self, training: Training) -> None:
        # where a shorter length's trunk ended when this began: others may branch off there again
        self.keep, self.saved = {training.step, *self.always}, time.monotonic()

    def on_step_start(self, training: Training) -> None:
        if training.step in self.always:
            self.save(training)

    def on_step_end(self, training: Training) -> None:
        team, name = training.team, self.preemption.signal
        late = team.is_main and time.monotonic() - self.saved > CHECKPOINT_SECONDS
        late, stop = team.any(late, name is not None)  # all processes save, and all stop, after the same step
        if late or stop:
            self.save(training)
        if stop:
            name, at = next(filter(None, team.gather(name))), f"step {training.step} of {training.spec.steps}"
            raise Preempted(f"{name}: {training.spec.key} is saved at {at}; run the same command to go on")

    def save(self, training: Training) -> None:
        training.save(self.folder(training.step), self.keep)
        self.saved = time.monotonic()


class Preemption(contextlib.AbstractContextManager):
    """Inside `with`, SIGTERM and SIGUSR1, which schedulers send before they take a machine away, end nothing: `signal`
    is the name of the one that came, or None. Outside of a process's main thread nothing is changed."""

    def __init__(self) -> None:
        self.signal, self._before = None, {}

    def __call__(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number).name

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():  # None: set by something that is not Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter: not on biases, norms, the mask token, logit scales and the MLP of the
    position bias, as the reference code means it (docs/facts.md, 5)."""
    return parameter.ndim > 1 and not any(word in name for word in ("mask_token", "logit_scale", "cpb_mlp"))


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups for AdamW, with decay and without, from named parameters."""
    parameters = list(parameters)
    return [
        {"params": [p for n, p in parameters if decays(n, p) == kind], "weight_decay": weight_decay if kind else 0.0}
        for kind in (True, False)
    ]


def layer_id(name: str, depths: tuple[int, ...]) -> int:
    """Depth of a parameter: 0 for the patch embedding to sum(depths) + 1 for final norm and heads; a merge shares the
    id of its stage's last block."""
    first, *rest = name.rpartition("encoder.")[2].split(".")
    if first in ("patch_embed", "mask_token"):
        return 0
    if first != "layers":
        return sum(depths) + 1
    stage = int(rest[0])
    return sum(depths[:stage]) + (int(rest[2]) + 1 if rest[1] == "blocks" else depths[stage])


def layer_groups(model: nn.Module, depths: tuple[int, ...], layer_decay: float, weight_decay: float) -> list[dict]:
    """AdamW's groups, one a layer id and kind, without frozen parameters; `step` applies their `scale`, which is
    layer_decay ** (last id - id). depths: blocks of the encoder's stages."""
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            i, decay = layer_id(name, depths), decays(name, parameter)
            fresh = {"params": [], "names": [], "weight_decay": weight_decay if decay else 0.0}
            group = groups.setdefault((i, decay), fresh | {"scale": layer_decay ** (sum(depths) + 1 - i)})
            group["params"].append(parameter)
            group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
