"""Pretraining: from a Run to its model and batches, its validation loss, and its record. Where transfers start."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.batches import Batches, normalise, validation_masks
from ..data.manifests import check_count, subset
from ..data.sources import Data, Split, open_data
from ..errors import UserError
from ..model.masking import hash_masks, uniforms, upsample
from ..model.simmim import SimMIM, create_model
from ..model.sizes import PAPER, SIZES
from ..model.swin import SwinV2
from ..processes import device_name, one_thread, timed
from . import train
from .film import Camera, film_path
from .journal import Journal, check_writers, journal_path
from .parallel import Parallel, Team, join
from .probes import input_statistics, probe_all
from .run import (
    Run,
    Runtime,
    made_once,
    new_record,
    record_path,
    remove,
    save_final,
    tail_folder,
    trunk_folder,
    weights_path,
    write_record,
)
from .specs import Folder, Whole, checked
from .tuning import Transfer

#: Windows of the paper's pretraining, a stage: 12, clamped to the last stage's 6 x 6 map at 192 px (docs/facts.md, 3).
PAPER_WINDOWS = (12, 12, 12, 6)
_DROP_PATH, TRANSFER_DROP_PATH = 4, 5  # streams of random numbers


def build(run: Run) -> SimMIM:
    """The model of a run at step 0, on the CPU: a function of the Run alone."""
    how = {"target": run.target, "target_window": run.norm_window, "drop_path": run.drop_path, "seed": run.seed}
    return create_model(run.model, run.image_size, run.window_size, **how)


def build_optimiser(model: SimMIM, run: Run) -> torch.optim.AdamW:
    """AdamW in its fused form, decay on matrices only."""
    groups = train.decay_groups(model.named_parameters(), run.weight_decay)
    return torch.optim.AdamW(groups, lr=run.lr, betas=run.betas, fused=True)


def build_encoder(spec: Transfer, weights: dict[str, Tensor] | None) -> SwinV2:
    """The encoder of a transfer at step 0, its mask token frozen: nothing is hidden. weights: a pretrained SimMIM's
    state dict where the spec has a start. Each stage knows the window of its pretraining, clamped to its map then."""
    if (weights is None) != (spec.init == "scratch"):
        raise UserError(
            f"{spec.key}: {spec.init} needs {'no' if spec.init == 'scratch' else 'the run and its'} weights"
        )
    size, windows = SIZES[spec.model], None
    if spec.run is not None:
        windows = tuple(min(spec.run.window_size, grid) for grid in size.stage_grids(spec.run.image_size))
    elif spec.weights is not None:
        windows = PAPER_WINDOWS if spec.model in PAPER else (4,) * len(size.depths)
    encoder = SwinV2(size.embed_dim, size.depths, spec.window_size, size.patch_size, spec.drop_path, windows)
    encoder.reset_parameters(torch.Generator().manual_seed(spec.seed))
    if weights is not None:
        inside = {name: value for name, value in weights.items() if name.startswith("encoder.")}
        encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in inside.items()})
    encoder.mask_token.requires_grad_(False)
    return encoder


def weights_name(path: str | Path) -> str:
    """NAME@DIGEST of a checkpoint file: what a spec holds, so that its key is about the content and not the place."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise UserError(f"cannot read the weights {path} ({error.strerror}); give a checkpoint file") from error
    return f"{Path(path).name}@{digest}"


def make_batches(
    run: Run, data: Data, device: str | torch.device = "cpu", share: slice = slice(None), workers: int = 0
) -> Batches:
    """The batches of a run, each a function of (seed, step). share: this process's part of each; workers: processes
    that decode for it where pictures are decoded as training goes."""
    mean, std = input_statistics(data, run.statistics)
    chosen = subset(data.train, run.images, run.draw)
    options = {name: getattr(run, name) for name in ("seed", "batch_size", "image_size", "mask_patch", "mask_ratio")}
    options |= {"mask_strategy": run.mask_strategy, "patch_size": SIZES[run.model].patch_size}
    options |= {"mean": mean, "std": std, "device": device, "share": share}
    return Batches(data.train, chosen, augment=run.augment, steps=run.steps, workers=workers, **options)


def drop_path_noise(spec, now: int, depths: Sequence[int], team: Team, stream: int = _DROP_PATH) -> Tensor:
    """Drop path's numbers (share, blocks, 2) in (0, 1), on the device: a function of (seed, step, sample, block).
    depths: blocks of each stage."""
    blocks, samples = sum(depths), np.arange(spec.batch_size)[team.share(spec.batch_size)]
    return torch.from_numpy(uniforms(2 * blocks, spec.seed, now, samples, stream)).to(team.device).view(-1, blocks, 2)


def validation_loss(model: SimMIM, split: Split, run: Run, *how: object, **options: object) -> tuple[float, float]:
    """The mean of `image_losses`, and its standard error: the same number for the same weights on every call."""
    each = image_losses(model, split, run, *how, **options)
    return each.mean().item(), each.std().item() / math.sqrt(len(each)) if len(each) > 1 else math.nan


@torch.inference_mode()
def image_losses(
    model: SimMIM,
    split: Split,
    run: Run,
    mean: tuple,
    std: tuple,
    device: torch.device,
    team: Team | None = None,
    *,
    masks: Sequence[int] | None = None,
    target: str | None = None,
) -> Tensor:
    """The loss of each of the first `run.val_images` images, its mean over masks: float64 (images,), on the CPU.

    Whole stored images, masks fixed by image id and number, evaluation mode, the forward pass in the run's own
    precision, the loss in full. In a `team` each process takes its part, and all get the result. masks: their numbers,
    by default 0 to `run.val_masks` - 1. target: `raw` or `normalized` in place of what the model was trained on.
    """
    team = team or Team(device)
    was_training, trained_on = model.training, model.target
    model.eval()
    model.target = target or trained_on
    masks = range(run.val_masks) if masks is None else masks
    grid, cell = (run.image_size // run.mask_patch,) * 2, run.mask_patch // model.patch_size
    count, losses = min(run.val_images, len(split)), []
    first, end = count * team.rank // team.size, count * (team.rank + 1) // team.size
    for start in range(first, end, 256):
        rows = slice(start, min(start + 256, end))
        images = normalise(split.images[rows], mean, std, device)
        total = torch.zeros(len(images), dtype=torch.float64)
        for k in masks:
            cells = validation_masks(grid, run.mask_ratio, run.mask_strategy, np.asarray(split.ids[rows]), k)
            mask = torch.from_numpy(upsample(cells, cell)).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                prediction = model.reconstruct(images, mask)
            total += model.loss(prediction, images, mask, per_image=True).cpu()  # not every device has float64
        losses += (total / len(masks)).tolist()
    model.train(was_training)
    model.target = trained_on
    return torch.tensor(sum(team.gather(losses), []), dtype=torch.float64)


def pretrain(run: Run, **options: object) -> dict:
    """Train, validate and probe a run, write its record, and return it; a finished run is returned as it is.

    options: those of `pretrain_once`.
    """
    return pretrain_once(run, **options)[0]


@checked
def pretrain_once(
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
) -> tuple[dict, bool]:
    """The record of a run, and whether this call did the work: False when the run was finished already.

    An interrupted run goes on from its last checkpoint; runs that differ in length alone branch off one trunk. Only one
    process at a time works on a trunk: another waits, or raises `Busy` with `wait=False`. Under torchrun every process
    makes the same call; `runtime` says how they share the work. SIGTERM and SIGUSR1 save a checkpoint and raise
    `Preempted`. A loss that is not finite or runs away ends in a record with status `failed`. On a CPU it runs in one
    thread, so that equal runs give equal numbers. `progress(step, steps)` is called now and then; film: how many frames
    to keep in RUNS_DIR/films/KEY.png; log: who is told beside the journal: tensorboard, wandb.
    """
    check_writers(log)
    data = data or open_data(run.data, run.image_size, images_needed=run.images, streamed=run.streamed)
    check_count(data.train, run.images)  # of a run of no steps too, which draws none
    runs_dir, runtime, team = Path(runs_dir), runtime or Runtime(), join(device)
    share = team.share(run.batch_size)
    if (share.stop - share.start) % runtime.accumulate:
        images = f"the {share.stop - share.start} images of a process's share"
        raise UserError(f"accumulate {runtime.accumulate} does not divide {images}: give a number that does")
    trunk, tail = trunk_folder(runs_dir, run), tail_folder(runs_dir, run)

    def make() -> dict:
        where = {"device": device_name(team.device), "processes": team.size}
        journal = Journal(runs_dir, run, **where, log=log) if team.is_main else None
        callbacks = [train.Progress(progress), *([journal] if journal else [])]
        with one_thread(team.device), journal or contextlib.nullcontext():
            record = _record(run, runs_dir, data, team, runtime, film, callbacks)
            if journal:
                journal.record = record

        def write() -> None:
            write_record(record_path(runs_dir, run), record)
            remove(tail)
            for path in trunk.glob("step-*"):
                if train.step_of(path) < run.drop_step:  # its end stays: a longer run can branch off there
                    remove(path)
            remove(journal_path(runs_dir, run.key))

        team.on_main(write)
        return record

    lock, others = runs_dir / "locks" / f"{run.trunk_key}.lock", (trunk, tail, weights_path(runs_dir, run))
    return made_once(record_path(runs_dir, run), lock, data, make, *others, team=team, wait=wait)


def _record(run: Run, runs_dir: Path, data: Data, team: Team, runtime: Runtime, film: int, callbacks: list) -> dict:
    """Train to the end and say what came of it."""
    mean, std = input_statistics(data, run.statistics)
    net = Parallel(build(run).to(team.device), team, runtime)
    training = train.Training(run, net, build_optimiser(net.model, run), data.digest)
    how = {} if runtime == Runtime() else {"runtime": dataclasses.asdict(runtime)}

    def validate() -> tuple[float, float]:
        return validation_loss(net.whole(), data.val, run, mean, std, team.device, team)

    camera = [Camera(film_path(runs_dir, run), run, data, (mean, std), film, validate, team.is_main)] if film else []
    callbacks, skipped = [*camera, train.Health(), *callbacks, train.Curve(validate)], []
    try:
        if run.steps:
            skipped = _train(training, data, runs_dir, callbacks)
        loss, error = validate()
        if not math.isfinite(loss) or (run.steps and loss > train.DIVERGED * training.losses[0].item()):
            raise train.Failed(f"the validation loss was {loss:.3g} after step {run.steps}; lower lr ({run.lr:g})")
    except train.Failed as failed:
        return new_record(run, status="failed", reason=str(failed), where=training.meter.where(data, **how))
    tail = training.losses[min(run.drop_step, max(0, run.steps - 1)) :]
    final = {"train_loss": tail.mean().item() if run.steps else None, "val_loss": loss, "val_loss_se": error}
    final |= {"val_images": min(run.val_images, len(data.val)), "val_masks": run.val_masks}
    if run.steps:
        training.validated(loss)
    model = net.whole()
    transfer = team.on_main(lambda: probe_all(model, data, run))
    team.on_main(lambda: save_final(runs_dir, run, model.state_dict()))
    size = SIZES[run.model]
    gmac = size.gmac(run.image_size, run.window_size, head=True)
    parts = {
        "cost": training.cost(len(data.train) if run.images is None else run.images, 6e9 * gmac),
        "model": {"parameters": size.parameters, "total_parameters": size.simmim_parameters, "gmac": gmac},
        "curve": training.curve,
        "final": final,
        "transfer": transfer,
        "where": training.meter.where(data, **how),
    }
    for one in camera:
        one.look(model, run.steps, loss, **{name: parts[name] for name in ("curve", "final", "transfer", "where")})
    return new_record(run, status="done", **parts, **({"skipped": skipped} if skipped else {}))


def _train(training: train.Training, data: Data, runs_dir: Path, callbacks: list) -> list[list[str]]:
    """Take the steps that are left; pictures that could not be read, with the reason."""
    run, team = training.spec, training.team
    trunk, tail = trunk_folder(runs_dir, run), tail_folder(runs_dir, run)
    before = [path for path in trunk.glob("step-*") if train.step_of(path) <= run.drop_step]
    training.resume([*tail.glob("step-*"), *before])
    # on a CPU decoding is the small part, and other runs have the other cores
    workers = 0 if team.device.type == "cpu" else team.decoders()
    batches = make_batches(run, data, team.device, team.share(run.batch_size), workers)

    def batch(now: int) -> tuple[Tensor, ...]:
        images, mask, _ = batches.batch(now)
        noise = [drop_path_noise(run, now, SIZES[run.model].depths, team)] if run.drop_path else []
        return images, mask, *noise

    with train.Preemption() as preemption, contextlib.closing(batches):
        saving = train.Checkpoints(lambda now: trunk if now <= run.drop_step else tail, preemption, [run.drop_step])
        train.train(training, batch, [*callbacks, saving])
    return sorted(list(item) for item in {pair for part in team.gather(dict(batches.skipped)) for pair in part.items()})


def example(run: Run, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Images of noise (B, 3, S, S) and masks of a run's kind (B, S/p, S/p), on the device."""
    images = torch.randn(run.batch_size, 3, run.image_size, run.image_size, generator=torch.Generator().manual_seed(0))
    cells = hash_masks(
        (run.image_size // run.mask_patch,) * 2, run.mask_ratio, 0, np.arange(run.batch_size), 0, run.mask_strategy
    )
    mask = torch.from_numpy(upsample(cells, run.mask_patch // SIZES[run.model].patch_size))
    return images.to(device), mask.to(device)


def step_seconds(run: Run, device: str = "cpu", steps: int = 4) -> float:
    """Seconds of one optimiser step of a run, batch assembly not counted: the fastest of a few."""
    batch, model = example(run, device), build(run).to(device).train()
    optimiser = build_optimiser(model, run)
    return min(timed(lambda: train.step(model, optimiser, batch, 0.0, run), device) for _ in range(steps + 1))
