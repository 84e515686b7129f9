"""The loop that trains everything here, its callbacks, its checkpoints, and the optimiser's parameter groups."""

import contextlib
import io
import re
import signal
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import Interrupted, Preempted, first_line
from ..files import discard, entries, write_atomic
from ..processes import SIGNALS, again, tell, tell_once
from .parallel import Meter, Parallel
from .specs import Spec

CHECKPOINT_VERSION = 1
CHECKPOINT_SECONDS = 30.0  # between checkpoints: what a kill can cost at most
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


class Failed(Exception):
    """The training has failed; the reason is its message."""


class Trainer:
    """What is trained, and how far it is: all that a checkpoint holds. net: whose call on a batch is the loss."""

    def __init__(self, spec: Spec, net: Parallel, optimiser: torch.optim.AdamW, digest: str) -> None:
        self.spec, self.net, self.optimiser, self.digest, self.group = spec, net, optimiser, digest, net.group
        self.step, self.curve, self.callbacks = 0, [], []
        self.losses = torch.zeros(spec.steps, device=self.group.device)
        self.meter = Meter(self.group)

    def fit(
        self,
        batch: Callable[[int], Sequence],
        folder: Callable[[int], Path],
        callbacks: Iterable = (),
        *,
        keep: int | None = None,
        validate: Callable[[], float] | None = None,
        progress: Callable[[int, int], None] | None = None,
        divergence: bool = True,
    ) -> None:
        """All steps that are left; `batch(step)` is this process's share. `Failed` where the loss is not finite or, if
        that can be told (divergence), runs away. After so many steps a checkpoint belongs into `folder(step)`: every
        CHECKPOINT_SECONDS, on a signal, which raises `Preempted` (Ctrl-C and a notebook's Stop: `Interrupted`), and,
        to stay, after `keep` steps. Callbacks have some of on_train_start, on_step_start, on_step_end (trainer) and
        on_validation_end (trainer, val_loss)."""
        # where a shorter length's trunk ended when this began: others may branch off there again
        self.callbacks, stay, saved = list(callbacks), {self.step, keep}, time.monotonic()
        self.net.train()
        self.tell("on_train_start")
        with preemption() as signals:
            while self.step < self.spec.steps:
                self.tell("on_step_start")
                if self.step == keep:
                    self.save(folder(self.step), stay)
                loss = step(self.net, self.optimiser, batch(self.step), self.spec.lr_at(self.step), self.spec)
                self.losses[self.step] = self.group.sum(loss) / self.group.size
                self.step += 1
                if self.looks():
                    self.check(divergence)
                    if progress and self.group.is_main:
                        progress(self.step, self.spec.steps)
                self.tell("on_step_end")
                if self.at_point() and validate is None:
                    self.point()
                elif self.at_point() and self.step < self.spec.steps:  # the record adds the last one
                    self.point(val_loss=validate())
                late = self.group.is_main and time.monotonic() - saved > CHECKPOINT_SECONDS
                late, stop = self.group.any(late, bool(signals))  # all save, and all stop, after the same step
                if late or stop:
                    self.save(folder(self.step), stay)
                    saved = time.monotonic()
                if stop:
                    name = sum(self.group.gather(signals), [])[0]
                    where = f"at step {self.step} of {self.spec.steps}; {again()}"
                    if name == "SIGINT":
                        raise Interrupted(f"stopped {where}")
                    raise Preempted(f"{name}: {self.spec.key} is saved {where}")

    def check(self, divergence: bool) -> None:
        """`Failed` where the loss is not finite or runs away."""
        step, losses, lr = self.step, self.losses[: self.step], self.spec.lr
        if not bool(losses[-max(LOOK, self.spec.eval_every) :].isfinite().all()):
            first = int((~losses.isfinite()).nonzero()[0])
            raise Failed(f"the training loss was not finite at step {first}; lower lr ({lr:g}) or use fp32")
        early = min(LOOK, max(1, self.spec.warmup_steps), step)  # before it can have run away
        first, now = losses[:early].mean().item(), losses[-min(5, LOOK, step) :].mean().item()
        if divergence and now > DIVERGED * first:
            raise Failed(f"the training loss ran away: {now:.3g} by step {step} from {first:.3g}; lower lr ({lr:g})")

    def tell(self, what: str, *about: object) -> None:
        """Call a method of all callbacks that have it."""
        for callback in self.callbacks:
            getattr(callback, what, lambda *_: None)(self, *about)

    def save(self, folder: Path, keep: Collection[int] = ()) -> None:
        """Write FOLDER/step-NNNNNNN.pt, whole tensors also of a sharded model; every process calls it. The newest two
        (should one not be readable) and those at the steps in `keep` stay."""
        whole = {"model": self.net.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        spent = self.meter.spent() | {"started": self.meter.started}
        state = {"version": CHECKPOINT_VERSION, "key": folder.name, "step": self.step, "data_digest": self.digest}
        state |= {"curve": self.curve, "losses": self.losses[: self.step].cpu(), "spent": spent}
        state |= tree_map(self.net.gathered, whole)

        def write() -> None:
            discard(*folder.glob(".step-*"))  # left by a write that was killed
            torch.save(state, buffer := io.BytesIO())
            write_atomic(folder / f"step-{self.step:07d}.pt", buffer.getvalue())
            done = [path for path in saved(folder) if step_of(path) <= self.step]  # those beyond were passed over
            discard(*(path for path in done[:-2] if step_of(path) not in keep))

        self.group.on_main(write)

    def resume(self, paths: Iterable[Path]) -> None:
        """Go on from the furthest of these checkpoints that every process can read, and that is whole, of this training
        and of the same data; one that is not is named on stderr and passed over."""
        for path in self.group.broadcast(sorted(paths, key=lambda p: (step_of(p), p), reverse=True)):
            reason = ""
            try:
                state = self.read(path)
            except Exception as error:  # a short file fails in many ways
                reason = first_line(error)[:120]
            reason = next(filter(None, self.group.gather(reason)), "")
            if not reason:
                if "key" not in state and self.group.is_main:
                    tell_once(f"checkpoint {path} is of an earlier version, and taken for what its folder says")
                self.net.load(state["model"], state["optimiser"], self.optimiser)
                self.step, self.curve, self.meter = state["step"], state["curve"], Meter(self.group, state["spent"])
                self.losses[: self.step] = state["losses"].to(self.group.device)
                return
            if self.group.is_main:
                tell(f"checkpoint {path} is passed over ({reason})")

    def read(self, path: Path) -> dict:
        """The content of a checkpoint that fits; its folder is the key of what it is asked for."""
        with zipfile.ZipFile(path) as archive:  # torch writes a CRC of every part, and looks at none
            if archive.testzip() or any(part.external_attr for part in archive.infolist()):
                raise ValueError("its bytes are not those that were written")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["version"] != CHECKPOINT_VERSION or state["data_digest"] != self.digest:
            raise ValueError("it was made from other data or by another version")
        about = state.get("key", path.parent.name), state["step"], len(state["losses"])
        if about != (path.parent.name, step_of(path), step_of(path)):
            raise ValueError(f"it is of step {about[1]} of {about[0]}")
        if not all(bool(x.isfinite().all()) for x in tree_leaves(state) if isinstance(x, Tensor)):
            raise ValueError("its numbers are not finite")
        own, moments = self.net.model.state_dict(), state["optimiser"]["state"]
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        pairs = [(held, state["model"][name]) for name, held in own.items()]
        pairs += [(parameters[i], one) for i, some in moments.items() for name, one in some.items() if name != "step"]
        if len(own) < len(state["model"]) or len(moments) < bool(about[1]) or any(a.shape != b.shape for a, b in pairs):
            raise ValueError("it is of another network, or its optimiser is missing")
        return state

    def at_point(self) -> bool:
        """Whether a point of the curve is due after this step."""
        return self.step % self.spec.eval_every == 0 or self.step == self.spec.steps

    def looks(self) -> bool:
        """Whether the loss is looked at after this step."""
        return self.at_point() or self.step % LOOK == 0

    def point(self, **val_loss: float) -> None:
        """Put a point on the curve: the training loss, the mean since the point before, and a `val_loss` if given."""
        since = self.curve[-1]["step"] if self.curve else 0
        point = {"step": self.step, "images_seen": self.step * self.spec.batch_size}
        point["train_loss"] = self.losses[since : self.step].mean().item()
        self.curve.append(point | val_loss | {"lr": self.spec.lr_at(self.step - 1)})
        if val_loss:
            self.tell("on_validation_end", *val_loss.values())

    def cost(self, unique: int, flops: float | None) -> dict:
        """The cost of a record. flops: of an image, forward and backward; None where images differ."""
        seen = self.spec.steps * self.spec.batch_size
        found = {"images_seen": seen, "epochs": seen / unique, "unique_images": unique, "flops": flops and flops * seen}
        return found | self.meter.spent()


@contextlib.contextmanager
def preemption() -> Iterator[list[str]]:
    """Inside, the signals by which schedulers take a machine away, and SIGINT, end nothing where they are not ignored:
    their names are put into the list. Outside of a process's main thread nothing is changed."""
    signals, before = [], {}
    if threading.current_thread() is threading.main_thread():
        for number in (*SIGNALS, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, lambda number, _: signals.append(signal.Signals(number).name))
    try:
        yield signals
    finally:
        for number, handler in before.items():  # None: set by something that is not Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step: files that are named as `Trainer.save` names them, and nothing else."""
    found = (path for path in entries(folder, "step-*.pt") if re.fullmatch(r"step-[0-9]{7,}", path.stem))
    return sorted(filter(Path.is_file, found), key=step_of)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter: not on biases, norms, the mask token, logit scales and the MLP of the
    position bias, as the reference code means it (docs/facts.md, 5)."""
    return parameter.ndim > 1 and not any(word in name for word in ("mask_token", "logit_scale", "cpb_mlp"))


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups for AdamW, with decay and without, from named parameters."""
    kinds = {True: [], False: []}
    for name, parameter in parameters:
        kinds[decays(name, parameter)].append(parameter)
    return [{"params": params, "weight_decay": weight_decay * kind} for kind, params in kinds.items()]


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
    groups, last = defaultdict(dict), sum(depths) + 1
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[layer_id(name, depths), decays(name, parameter)][name] = parameter
    return [
        {"params": [*groups[key].values()], "names": [*groups[key]], "scale": layer_decay ** (last - key[0])}
        | {"weight_decay": weight_decay * key[1]}
        for key in sorted(groups)
    ]
