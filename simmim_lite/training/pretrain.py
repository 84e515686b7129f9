"""Pretraining: from a Run to a Record. The one place where a Run becomes a model, an optimiser and batches."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import Batches
from ..data.manifests import subset
from ..data.sources import Data, open_data
from ..errors import UserError, unknown
from ..model.masking import uniforms
from ..model.simmim import SimMIM, create_model
from ..model.sizes import SIZES
from .checkpoint import (
    clear_checkpoints,
    latest_checkpoint,
    save_checkpoint,
    save_final,
    tail_folder,
    thin_checkpoints,
    trunk_folder,
    weights_path,
)
from .film import Camera
from .kept import kept
from .meter import Meter
from .optim import decay_groups
from .probes import input_statistics, probe_all
from .run import Run, new_record, record_path, remove_unfinished, write_record
from .validate import validation_loss

#: Seconds between checkpoints: what a kill can cost at most.
CHECKPOINT_SECONDS = 30.0
_LOOK = 25  # steps between looks at the loss; a look waits for the device
_DIVERGED = 3.0  # a training loss this many times that of the first steps is divergence
_DROP_PATH = 4  # stream of random numbers


def build(run: Run) -> SimMIM:
    """The model of a run at step 0, on the CPU: a function of the Run alone."""
    return create_model(
        run.model,
        run.image_size,
        run.window_size,
        target=run.target,
        target_window=run.norm_window,
        drop_path=run.drop_path,
        seed=run.seed,
    )


def build_optimiser(model: SimMIM, run: Run) -> torch.optim.AdamW:
    """AdamW in its fused form, decay on matrices only."""
    groups = decay_groups(model.named_parameters(), run.weight_decay)
    return torch.optim.AdamW(groups, lr=run.lr, betas=run.betas, fused=True)


def training_step(
    model: SimMIM,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    mask: Tensor,
    run: Run,
    lr: float,
    noise: Tensor | None = None,
) -> Tensor:
    """Forward, backward, clip, update, at a learning rate; the loss before the update, still on the device."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    with torch.autocast(images.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        loss = model(images, mask, noise)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad)
    optimiser.step()
    return loss.detach()


def make_batches(run: Run, data: Data, device: str | torch.device = "cpu") -> Batches:
    """The batches of a run, each a function of (seed, step)."""
    mean, std = input_statistics(data, run.statistics)
    return Batches(
        data.train,
        subset(data.train, run.images, run.draw),
        seed=run.seed,
        batch_size=run.batch_size,
        image_size=run.image_size,
        mean=mean,
        std=std,
        augment=run.augment,
        mask_patch=run.mask_patch,
        mask_ratio=run.mask_ratio,
        mask_strategy=run.mask_strategy,
        patch_size=SIZES[run.model].patch_size,
        device=device,
    )


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; one line for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise unknown("device", device, ("auto", "cpu", "cuda", "mps"))
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        raise UserError(f"device '{device}' is not there: use --device cpu, or install a torch built for it")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or (chosen.index or 0) >= max(1, torch.cuda.device_count() if kind == "cuda" else 1):
        raise UserError(f"device '{device}' is not there: say {kind}, or {kind}:0 for the first")
    return chosen


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[torch.device]:
    """On a CPU, one torch thread inside: sums depend on how they are split, and a Run's numbers must not.

    Several runs at a time use the cores better than several threads a run do (`simmim-lite study`).
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield device
    finally:
        torch.set_num_threads(before)


def pretrain(
    run: Run,
    *,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    data: Data | None = None,
    wait: bool = True,
    progress: Callable[[int, int], None] | None = None,
    film: int = 0,
) -> dict:
    """Train, validate and probe a run, write its record, and return it; a finished run is returned as it is.

    An interrupted run goes on from its last checkpoint; runs that differ in length alone branch off one trunk. Only one
    process at a time works on a trunk: another waits, or raises `Busy` with `wait=False`. `progress(step, steps)` is
    called now and then. A loss that is not finite or runs away ends in a record with status `failed`; whatever the
    caller can mend is a `UserError`. On a CPU it runs in one thread, so that equal runs give equal numbers. `film`: how
    many frames to keep in RUNS_DIR/films/KEY.png (see `film.py`); each costs a validation and changes no number. A run
    that is finished is not filmed.
    """
    options = {"runs_dir": runs_dir, "device": device, "data": data, "wait": wait, "progress": progress, "film": film}
    return pretrain_once(run, **options)[0]


def pretrain_once(
    run: Run,
    *,
    runs_dir: str | Path,
    device: str = "auto",
    data: Data | None = None,
    wait: bool = True,
    progress: Callable[[int, int], None] | None = None,
    film: int = 0,
) -> tuple[dict, bool]:
    """`pretrain`, and whether this call did the work: False when the run was finished already."""
    data = data or open_data(run.data, run.image_size, images_needed=run.images)
    path, lock = record_path(runs_dir, run), Path(runs_dir) / "locks" / f"{run.trunk_key}.lock"

    def make() -> dict:
        for folder in (trunk_folder(runs_dir, run), tail_folder(runs_dir, run)):
            remove_unfinished(folder)
        remove_unfinished(weights_path(runs_dir, run).parent, weights_path(runs_dir, run).name)
        with one_thread(pick_device(device)) as chosen:
            record = _Training(run, Path(runs_dir), chosen, data, progress, film).record()
        write_record(path, record)
        clear_checkpoints(runs_dir, run)
        return record

    return kept(path, lock, data, make, wait=wait)


class _Training:
    """The state of one run between its steps."""

    def __init__(
        self, run: Run, runs_dir: Path, device: torch.device, data: Data, progress: Callable | None, film: int = 0
    ) -> None:
        self.run, self.runs_dir, self.device, self.data, self.progress = run, runs_dir, device, data, progress
        self.mean, self.std = input_statistics(data, run.statistics)
        self.unique = len(data.train) if run.images is None else run.images
        self.model = build(run).to(device)
        self.optimiser = build_optimiser(self.model, run)
        self.losses = torch.zeros(run.steps, device=device)
        self.curve: list[dict] = []
        self.step = 0
        state = latest_checkpoint(runs_dir, run, data.digest) if run.steps else None
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.curve = state["step"], state["curve"]
            self.losses[: self.step] = state["losses"].to(device)
        # where a shorter length's trunk ended when this run began: others may branch off there again
        self.ends = {self.step, run.drop_step}
        self.meter = Meter(device, state["spent"] if state else None)
        self.camera = Camera(runs_dir, run, data, self.mean, self.std, film) if film else None

    def record(self) -> dict:
        """Train to the end and say what came of it."""
        run = self.run
        reason = self.train() if run.steps else None
        where = self.meter.where(self.data.digest)
        if reason:
            return new_record(run, status="failed", reason=reason, where=where)
        loss, error = self.validate()
        if not math.isfinite(loss) or (run.steps and loss > _DIVERGED * self.losses[0].item()):
            reason = f"the validation loss was {loss:.3g} after step {run.steps}; lower lr ({run.lr:g})"
            return new_record(run, status="failed", reason=reason, where=where)
        tail = self.losses[min(run.drop_step, max(0, run.steps - 1)) :]
        final = {"train_loss": tail.mean().item() if run.steps else None, "val_loss": loss, "val_loss_se": error}
        final |= {"val_images": min(run.val_images, len(self.data.val)), "val_masks": run.val_masks}
        transfer = probe_all(self.model, self.data, run)
        save_final(self.runs_dir, run, self.model.state_dict())
        size, seen = SIZES[run.model], run.steps * run.batch_size
        gmac = size.gmac(run.image_size, run.window_size, head=True)
        cost = {
            "images_seen": seen,
            "epochs": seen / self.unique,
            "unique_images": self.unique,
            "flops": 6e9 * gmac * seen,
            **self.meter.read(),
            "peak_memory_bytes": self.meter.peak_memory(),
        }
        model = {"parameters": size.parameters, "total_parameters": size.simmim_parameters, "gmac": gmac}
        if run.steps:
            self.mark(loss)
        where = self.meter.where(self.data.digest)
        if self.camera:
            self.camera.look(self.model, run.steps, loss)
            self.camera.write(curve=self.curve, final=final, transfer=transfer, where=where)
        parts = {
            "cost": cost,
            "model": model,
            "curve": self.curve,
            "final": final,
            "transfer": transfer,
            "where": where,
        }
        return new_record(run, status="done", **parts)

    def train(self) -> str | None:
        """Run the remaining steps; the reason when the run failed."""
        run = self.run
        batches = make_batches(run, self.data, self.device)
        saved = time.monotonic()
        self.model.train()
        while self.step < run.steps:
            if self.step == run.drop_step:
                self.save()
                saved = time.monotonic()
            if self.camera and self.step in self.camera.steps:
                self.camera.look(self.model, self.step, self.validate()[0])
            self.losses[self.step] = self.advance(*batches.batch(self.step)[:2])
            self.step += 1
            point = self.step % run.eval_every == 0 and self.step < run.steps
            if point or self.step % _LOOK == 0 or self.step == run.steps:
                reason = self.unsound()
                if reason:
                    return reason
                if self.progress:
                    self.progress(self.step, run.steps)
            if point:
                self.mark(self.validate()[0])
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        return None

    def advance(self, images: Tensor, mask: Tensor) -> Tensor:
        """One optimiser step; the loss, still on the device."""
        return training_step(
            self.model, self.optimiser, images, mask, self.run, self.run.lr_at(self.step), self.noise()
        )

    def noise(self) -> Tensor | None:
        """Drop path's numbers: a function of (seed, step, sample, block)."""
        if not self.run.drop_path:
            return None
        blocks = sum(SIZES[self.run.model].depths)
        draws = uniforms(2 * blocks, self.run.seed, self.step, np.arange(self.run.batch_size), _DROP_PATH)
        return torch.from_numpy(draws).to(self.device).view(-1, blocks, 2)

    def validate(self) -> tuple[float, float]:
        """Validation loss and its standard error now."""
        return validation_loss(self.model, self.data.val, self.run, self.mean, self.std, self.device)

    def mark(self, val_loss: float) -> None:
        """Put a point on the curve: the training loss is the mean since the point before."""
        since = self.curve[-1]["step"] if self.curve else 0
        train_loss = self.losses[since : self.step].mean().item()
        point = {"step": self.step, "images_seen": self.step * self.run.batch_size, "train_loss": train_loss}
        self.curve.append(point | {"val_loss": val_loss, "lr": self.run.lr_at(self.step - 1)})

    def unsound(self) -> str | None:
        """Why the loss of the last steps means that this run has failed, or None."""
        recent = self.losses[max(0, self.step - _LOOK) : self.step]
        if not bool(recent.isfinite().all()):
            first = int((~self.losses[: self.step].isfinite()).nonzero()[0])
            return f"the training loss was not finite at step {first}; lower lr ({self.run.lr:g}) or use fp32"
        first = self.losses[: min(_LOOK, max(1, self.run.warmup_steps))].mean().item()  # before it can have run away
        now = recent[-5:].mean().item()
        if now > _DIVERGED * first:
            why = f"lower lr ({self.run.lr:g})"
            return f"the training loss ran away: {now:.3g} by step {self.step} from {first:.3g}; {why}"
        return None

    def save(self) -> None:
        """Write a checkpoint: to the trunk up to the drop, to the run's own tail after it."""
        folder = trunk_folder if self.step <= self.run.drop_step else tail_folder
        state = {
            "step": self.step,
            "data_digest": self.data.digest,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses[: self.step].cpu(),
            "curve": self.curve,
            "spent": {**self.meter.read(), "started": self.meter.started},
        }
        path = save_checkpoint(folder(self.runs_dir, self.run), state)
        thin_checkpoints(path.parent, self.ends)
