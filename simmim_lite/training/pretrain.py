"""Pretraining: from a Run to a Record."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.batches import Batches, Streamed
from ..data.manifests import check_count
from ..data.sources import Data, open_for_training
from ..model.simmim import SimMIM
from ..model.sizes import SIZES
from .building import build, build_optimiser, drop_path_noise, make_batches
from .checkpoint import (
    clear_checkpoints,
    latest_checkpoint,
    read_whole,
    save_checkpoint,
    save_final,
    tail_folder,
    thin_checkpoints,
    trunk_folder,
    weights_path,
)
from .device import one_thread
from .distributed import Team, team
from .film import Camera, film_steps
from .journal import Journal, clear_journal
from .kept import kept
from .meter import Meter, device_name
from .parallel import Parallel
from .probes import input_statistics, probe_all
from .run import Run, new_record, record_path, remove_unfinished, write_record
from .runtime import Runtime
from .shards import SUFFIX, adopt, read_shards, save_shards
from .signals import Ears, listening, preempted
from .specs import Folder, Whole, checked
from .validate import validation_loss
from .writers import check_writers, open_writers

#: Seconds between checkpoints: what a kill can cost at most.
CHECKPOINT_SECONDS = 30.0
_LOOK = 25  # steps between looks at the loss; a look waits for the device
_DIVERGED = 3.0  # a training loss this many times that of the first steps is divergence


def training_step(
    model: SimMIM | Parallel,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    mask: Tensor,
    run: Run,
    lr: float,
    noise: Tensor | None = None,
) -> Tensor:
    """Forward, backward, clip, update, at a learning rate; the loss before the update, still on the device.

    Images, mask and noise are this process's share of the batch, the loss is that of all of it.
    """
    net = model if isinstance(model, Parallel) else Parallel(model, precision=run.precision)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    loss = net.backward(images, mask, noise)
    net.clip(run.clip_grad)
    optimiser.step()
    return loss


@checked
def pretrain(
    run: Run,
    *,
    runs_dir: Folder = "runs",
    device: str = "auto",
    data: Data | None = None,
    wait: bool = True,
    progress: Callable[[int, int], None] | None = None,
    film: Whole = 0,
    runtime: Runtime | None = None,
    log: Sequence[str] = (),
) -> dict:
    """Train, validate and probe a run, write its record, and return it; a finished run is returned as it is.

    An interrupted run goes on from its last checkpoint; runs that differ in length alone branch off one trunk. Only one
    process at a time works on a trunk: another waits, or raises `Busy` with `wait=False`. Under torchrun every process
    calls this with the same arguments, and all of them are that one process; `runtime` says how they share the work.
    SIGTERM and SIGUSR1 save a checkpoint after the step in progress and raise `Preempted`. `progress(step, steps)` is
    called now and then, by the main process. A loss that is not finite or runs away ends in a record with status
    `failed`; whatever the caller can mend is a `UserError`. On a CPU it runs in one thread, so that equal runs give
    equal numbers. `film`: how many frames to keep in RUNS_DIR/films/KEY.png (see `film.py`); each costs a validation
    and changes no number. A run that is finished is not filmed. While it trains its journal can be watched
    (`journal.py`); `log` names who else is told: tensorboard, wandb (`writers.py`).
    """
    options = {"device": device, "data": data, "wait": wait, "progress": progress, "film": film, "runtime": runtime}
    return pretrain_once(run, runs_dir=runs_dir, log=log, **options)[0]


@checked
def pretrain_once(
    run: Run,
    *,
    runs_dir: Folder,
    device: str = "auto",
    data: Data | None = None,
    wait: bool = True,
    progress: Callable[[int, int], None] | None = None,
    film: Whole = 0,
    runtime: Runtime | None = None,
    log: Sequence[str] = (),
) -> tuple[dict, bool]:
    """`pretrain`, and whether this call did the work: False when the run was finished already."""
    check_writers(log)
    data = data or open_for_training(run.data, run.image_size, run.images, streamed=run.streamed)
    check_count(data.train, run.images)  # of a run of no steps too, which draws none
    path, lock = record_path(runs_dir, run), Path(runs_dir) / "locks" / f"{run.trunk_key}.lock"
    runtime = runtime or Runtime()

    def make() -> dict:
        def clear_away() -> None:
            for folder in (trunk_folder(runs_dir, run), tail_folder(runs_dir, run)):
                remove_unfinished(folder)
            remove_unfinished(weights_path(runs_dir, run).parent, weights_path(runs_dir, run).name)

        def keep() -> None:
            write_record(path, record)
            clear_checkpoints(runs_dir, run)
            clear_journal(runs_dir, run.key)

        us.lead(clear_away)
        journal = None
        if us.main:
            about = {"device": device_name(us.device), "processes": us.size}
            journal = Journal(runs_dir, run, writers=open_writers(log, runs_dir, run), **about)
        with one_thread(us.device) as chosen, journal or contextlib.nullcontext():
            record = _Training(run, Path(runs_dir), chosen, data, progress, film, us, runtime, journal).record()
            if journal:
                journal.record = record
        us.lead(keep)
        return record

    with team(device) as us:
        share = us.share(run.batch_size)
        runtime.check_share(share.stop - share.start)
        return kept(path, lock, data, make, wait=wait, us=us)


class _Training:
    """The state of one run between its steps."""

    def __init__(
        self,
        run: Run,
        runs_dir: Path,
        device: torch.device,
        data: Data,
        progress: Callable | None,
        film: int = 0,
        us: Team | None = None,
        runtime: Runtime | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.journal = journal
        self.run, self.runs_dir, self.device, self.data, self.progress = run, runs_dir, device, data, progress
        self.mean, self.std = input_statistics(data, run.statistics)
        self.unique = len(data.train) if run.images is None else run.images
        self.us, self.runtime = us or Team(device), runtime or Runtime()
        self.model = build(run).to(device)
        self.net = Parallel(self.model, self.us, self.runtime, run.precision)
        self.optimiser = build_optimiser(self.model, run)
        self.losses = torch.zeros(run.steps, device=device)
        self.curve: list[dict] = []
        self.step = 0
        self.skipped: list[tuple[str, str]] = []  # pictures that could not be read, since this process began
        state = latest_checkpoint(runs_dir, run, data.digest, self.read, self.us) if run.steps else None
        if state is not None:
            adopt(state, self.model, self.optimiser)
            self.step, self.curve = state["step"], state["curve"]
            self.losses[: self.step] = state["losses"].to(device)
        # where a shorter length's trunk ended when this run began: others may branch off there again
        self.ends = {self.step, run.drop_step}
        self.meter = Meter(device, state["spent"] if state and self.us.main else None)
        self.filmed = film_steps(run, film) if film else ()
        self.camera = Camera(runs_dir, run, data, self.mean, self.std, film) if film and self.us.main else None

    def record(self) -> dict:
        """Train to the end and say what came of it."""
        run = self.run
        reason = self.train() if run.steps else None
        if reason:
            return new_record(run, status="failed", reason=reason, where=self.where())
        model = self.net.whole()
        loss, error = self.validate(model)
        if not math.isfinite(loss) or (run.steps and loss > _DIVERGED * self.losses[0].item()):
            reason = f"the validation loss was {loss:.3g} after step {run.steps}; lower lr ({run.lr:g})"
            return new_record(run, status="failed", reason=reason, where=self.where())
        tail = self.losses[min(run.drop_step, max(0, run.steps - 1)) :]
        final = {"train_loss": tail.mean().item() if run.steps else None, "val_loss": loss, "val_loss_se": error}
        final |= {"val_images": min(run.val_images, len(self.data.val)), "val_masks": run.val_masks}
        if run.steps:
            self.mark(loss)
        transfer = self.us.lead(lambda: probe_all(model, self.data, run))
        self.us.lead(lambda: save_final(self.runs_dir, run, model.state_dict()))
        size, seen = SIZES[run.model], run.steps * run.batch_size
        gmac = size.gmac(run.image_size, run.window_size, head=True)
        cost = {
            "images_seen": seen,
            "epochs": seen / self.unique,
            "unique_images": self.unique,
            "flops": 6e9 * gmac * seen,
            **self.meter.spent_by(self.us),
            "peak_memory_bytes": self.meter.peak_of(self.us),
        }
        where = self.where()
        if self.camera:
            self.camera.look(model, run.steps, loss)
            self.camera.write(curve=self.curve, final=final, transfer=transfer, where=where)
        parts = {
            "cost": cost,
            "model": {"parameters": size.parameters, "total_parameters": size.simmim_parameters, "gmac": gmac},
            "curve": self.curve,
            "final": final,
            "transfer": transfer,
            "where": where,
        }
        parts |= {"skipped": [list(item) for item in self.skipped]} if self.skipped else {}
        return new_record(run, status="done", **parts)

    def train(self) -> str | None:
        """Run the remaining steps; the reason when the run failed."""
        # on a CPU decoding is the small part, and other runs have the other cores
        workers = 0 if self.device.type == "cpu" else self.us.decoders()
        share = self.us.share(self.run.batch_size)
        batches = make_batches(self.run, self.data, self.device, share, workers)
        with listening() as ears, contextlib.closing(batches):
            reason = self.steps(ears, batches)
        self.skipped = sorted({item for some in self.us.gather(dict(batches.skipped)) for item in some.items()})
        return reason

    def steps(self, ears: Ears, batches: Batches | Streamed) -> str | None:
        """`train`, with an ear for signals."""
        run, us = self.run, self.us
        saved = time.monotonic()
        if self.journal:
            self.journal.start(self.step, self.curve)
        self.model.train()
        while self.step < run.steps:
            if self.step == run.drop_step:
                saved = self.save()
            if self.step in self.filmed:
                model = self.net.whole()
                loss = self.validate(model)[0]
                if self.camera:
                    self.camera.look(model, self.step, loss)
            self.losses[self.step] = self.advance(*batches.batch(self.step)[:2])
            self.step += 1
            point = self.step % run.eval_every == 0 and self.step < run.steps
            if point or self.step % _LOOK == 0 or self.step == run.steps:
                reason = self.unsound()
                if reason:
                    return reason
                if self.progress and us.main:
                    self.progress(self.step, run.steps)
                if self.journal and (point or self.step == run.steps or self.journal.due()):
                    self.journal.point(self.step, self.losses[self.journal.told : self.step].mean().item())
            if point:
                self.mark(self.validate(self.net.whole())[0])
            # all processes save, and all stop, after the same step
            due, stop = us.any(us.main and time.monotonic() - saved > CHECKPOINT_SECONDS, ears.heard is not None)
            if due or stop:
                saved = self.save()
            if stop:
                raise preempted(ears, us, run.key, self.step, run.steps)
        return None

    def advance(self, images: Tensor, mask: Tensor) -> Tensor:
        """One optimiser step; the loss, still on the device."""
        return training_step(self.net, self.optimiser, images, mask, self.run, self.run.lr_at(self.step), self.noise())

    def noise(self) -> Tensor | None:
        """Drop path's numbers: a function of (seed, step, sample, block)."""
        run = self.run
        return drop_path_noise(run, self.step, SIZES[run.model].depths, self.us) if run.drop_path else None

    def validate(self, model: SimMIM) -> tuple[float, float]:
        """Validation loss and its standard error now, of the whole model; every process takes its part."""
        return validation_loss(model, self.data.val, self.run, self.mean, self.std, self.device, self.us)

    def mark(self, val_loss: float) -> None:
        """Put a point on the curve: the training loss is the mean since the point before."""
        since = self.curve[-1]["step"] if self.curve else 0
        train_loss = self.losses[since : self.step].mean().item()
        point = {"step": self.step, "images_seen": self.step * self.run.batch_size, "train_loss": train_loss}
        self.curve.append(point | {"val_loss": val_loss, "lr": self.run.lr_at(self.step - 1)})
        if self.journal:
            self.journal.validated(self.step, val_loss)

    def unsound(self) -> str | None:
        """Why the loss of the last steps means that this run has failed, or None."""
        recent = self.losses[max(0, self.step - _LOOK) : self.step]
        if not bool(recent.isfinite().all()):
            first = int((~self.losses[: self.step].isfinite()).nonzero()[0])
            return f"the training loss was not finite at step {first}; lower lr ({self.run.lr:g}) or use fp32"
        early = min(_LOOK, max(1, self.run.warmup_steps), self.step)  # before it can have run away
        first = self.losses[:early].mean().item()
        now = recent[-5:].mean().item()
        if now > _DIVERGED * first:
            why = f"lower lr ({self.run.lr:g})"
            return f"the training loss ran away: {now:.3g} by step {self.step} from {first:.3g}; {why}"
        return None

    def where(self) -> dict:
        """Where it ran, and how where that is not one process as it comes."""
        how = {"processes": self.us.size} if self.us.size > 1 else {}
        how |= {"runtime": dataclasses.asdict(self.runtime)} if self.runtime != Runtime() else {}
        return self.meter.where(self.data.digest, self.data.line) | how

    def read(self, path: Path) -> dict:
        """A checkpoint, whole or sharded."""
        return read_shards(path, self.model, self.optimiser) if path.suffix == SUFFIX else read_whole(path)

    def save(self) -> float:
        """Write a checkpoint: to the trunk up to the drop, to the run's own tail after it; the time when it is there.

        The main process writes one file; where the model is sharded, each process its shards.
        """
        folder = (trunk_folder if self.step <= self.run.drop_step else tail_folder)(self.runs_dir, self.run)
        parts = {"model": self.model, "optimiser": self.optimiser}
        whole = {} if self.net.sharded else {name: part.state_dict() for name, part in parts.items()}
        state = {
            "step": self.step,
            "data_digest": self.data.digest,
            **whole,
            "losses": self.losses[: self.step].cpu(),
            "curve": self.curve,
            "spent": {**self.meter.spent_by(self.us), "started": self.meter.started},
        }
        if self.net.sharded:
            save_shards(folder, state, **parts, us=self.us)
        else:
            self.us.lead(lambda: save_checkpoint(folder, state) and None)
        self.us.lead(lambda: thin_checkpoints(folder, self.ends))
        return time.monotonic()
