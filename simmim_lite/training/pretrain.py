"""Pretraining: from a Run to its model and batches, its validation loss, and its record."""

import contextlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.batches import Batches, normalise, validation_masks
from ..data.manifests import check_count, subset
from ..data.sources import Data, Split, open_data
from ..errors import UserError
from ..files import discard
from ..model.masking import hash_masks, uniforms, upsample
from ..model.simmim import SimMIM, create_model
from ..model.sizes import SIZES
from ..model.weights import load_weights, pinned
from ..processes import one_thread, timed
from . import train
from .callbacks import Camera, Journal, check_writers, film_path, journal_path
from .parallel import Group, Parallel, join
from .probes import input_statistics, probe_all
from .record import made_once, read_record, run_of
from .run import Run, Runtime, checkpoints, load_final, new_record, record_path, save_final, write_record
from .specs import Folder, Whole, checked

_DROP_PATH = 4  # stream of random numbers


def build(run: Run) -> SimMIM:
    """The model of a run at step 0, on the CPU: a function of the Run alone."""
    how = {"target": run.target, "target_window": run.target_window, "drop_path": run.drop_path, "seed": run.seed}
    how |= {"pretrained_window_sizes": run.init_windows, "channels": run.channels}
    return create_model(run.model, run.image_size, run.window_size, **how)


def begun(run: Run, runs_dir: Path) -> SimMIM:
    """The model of a run at step 0, filled with what its `init` names; what is not loaded stays random, and is said."""
    model, (file, _, digest) = build(run), (run.init or "").rpartition("@")
    if file and pinned(file)[0] != run.init:
        raise UserError(f"init {file} holds other weights than those that {run.key} begins with ({digest})")
    if file:
        load_weights(model, file)
    elif run.init:
        record = read_record(runs_dir / "records" / f"{run.init}.json")
        if record is None or record["status"] != "done":
            raise UserError(
                f"init {run.init}: no finished run of that key in {runs_dir}; give a file, or train it first"
            )
        before = run_of(record["run"])
        if before.windows != run.windows:
            raise UserError(f"init {run.init} has windows of {before.windows}: give init_windows={before.windows}")
        load_weights(model, load_final(runs_dir, before))
    return model


def build_optimiser(model: SimMIM, run: Run) -> torch.optim.AdamW:
    """AdamW in its fused form, decay on matrices only."""
    groups = train.decay_groups(model.named_parameters(), run.weight_decay)
    return torch.optim.AdamW(groups, lr=run.lr, betas=run.betas, fused=True)


def make_batches(
    run: Run, data: Data, device: str | torch.device = "cpu", share: slice = slice(None), workers: int = 0
) -> Batches:
    """The batches of a run. share: this process's part of each; workers: processes that decode for it, if any."""
    mean, std = input_statistics(data, run.statistics)
    chosen = subset(data.train, run.images, run.seed if run.subset_seed is None else run.subset_seed)
    options = {name: getattr(run, name) for name in ("seed", "batch_size", "image_size", "mask_patch", "mask_ratio")}
    options |= {"mask_strategy": run.mask_strategy, "patch_size": SIZES[run.model].patch_size}
    options |= {"mean": mean, "std": std, "device": device, "share": share}
    return Batches(data.train, chosen, augment=run.augment, steps=run.steps, workers=workers, **options)


def drop_path_noise(spec, now: int, depths: Sequence[int], group: Group, stream: int = _DROP_PATH) -> Tensor:
    """Drop path's numbers (share, blocks, 2) in (0, 1), on the device: a function of (seed, step, sample, block).
    depths: blocks of each stage."""
    blocks, samples = sum(depths), np.arange(spec.batch_size)[group.share(spec.batch_size)]
    return torch.from_numpy(uniforms(2 * blocks, spec.seed, now, samples, stream)).to(group.device).view(-1, blocks, 2)


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
    group: Group | None = None,
    *,
    masks: Sequence[int] | None = None,
) -> Tensor:
    """The loss of each of the first `run.val_images` images, its mean over masks: float64 (images,), on the CPU. Whole
    stored images, masks fixed by image id and number, the forward pass in the run's precision, the loss in full. Each
    process of a group takes its part, and all get the result. masks: their numbers, by default the first
    `run.val_masks`."""
    group = group or Group(device)
    was_training = model.training
    model.eval()
    masks = range(run.val_masks) if masks is None else masks
    grid, cell = (run.image_size // run.mask_patch,) * 2, run.mask_patch // model.patch_size
    count, losses = min(run.val_images, len(split)), []
    first, end = count * group.rank // group.size, count * (group.rank + 1) // group.size
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
    return torch.tensor(sum(group.gather(losses), []), dtype=torch.float64)


def pretrain(run: Run, **options: object) -> dict:
    """Train, validate and probe a run, write its record, and return it; options: those of `pretrain_once`."""
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
    callbacks: Sequence[object] = (),
) -> tuple[dict, bool]:
    """The record of a run, and whether this call did the work. An interrupted run goes on from its last checkpoint;
    SIGTERM and SIGUSR1 save one and raise `Preempted`. One process at a time works on a trunk: another waits, or raises
    `Busy` with `wait=False`. Under torchrun all make this call. progress(step, steps): called now and then; film:
    frames to keep in RUNS_DIR/films/KEY.png; log: tensorboard, wandb; callbacks: as `train.Trainer.fit` has them."""
    check_writers(log)
    if run.recipe_version != (own := Run.recipe_version):  # the default is this version's
        raise UserError(f"{run.key} is of recipe {run.recipe_version}: this version trains {own} alone")
    data = data or open_data(run.data, run.image_size, images_needed=run.images, streamed=run.streamed)
    if data.channels != run.channels:
        raise UserError(
            f"channels is {run.channels}: pictures of {data.spec} have {data.channels}; give channels={data.channels}"
        )
    check_count(data.train, run.images)  # of a run of no steps too, which draws none
    runs_dir, runtime, group = Path(runs_dir).absolute(), runtime or Runtime(), join(device)
    group.share(run.batch_size, runtime.accumulate)  # before anything is made
    trunk, tail = checkpoints(runs_dir, run.trunk_key), checkpoints(runs_dir, run.key)

    def make() -> dict:
        journal = Journal(runs_dir, run, log) if group.is_main else contextlib.nullcontext()
        with one_thread(group.device), journal:
            record = _record(run, runs_dir, data, group, runtime, film, [journal, *callbacks], progress)

        def write() -> None:
            write_record(record_path(runs_dir, run), record)
            shutil.rmtree(tail, ignore_errors=True)
            # the trunk's end stays: a longer run can branch off there
            discard(*(path for path in train.saved(trunk) if train.step_of(path) < run.drop_step))
            discard(journal_path(runs_dir, run.key))

        group.on_main(write)
        return record

    return made_once(record_path(runs_dir, run), run.trunk_key, data, make, group, wait)


def _record(
    run: Run,
    runs_dir: Path,
    data: Data,
    group: Group,
    runtime: Runtime,
    film: int,
    callbacks: Sequence,
    progress: Callable | None,
) -> dict:
    """Train to the end and say what came of it."""
    statistics, size = input_statistics(data, run.statistics), replace(SIZES[run.model], channels=run.channels)
    net = Parallel(begun(run, runs_dir).to(group.device), group, runtime)
    trainer = train.Trainer(run, net, build_optimiser(net.model, run), data.digest)
    how = {} if runtime == Runtime() else {"runtime": runtime.to_dict()}

    def validate() -> tuple[float, float]:
        return validation_loss(net.whole(), data.val, run, *statistics, group.device, group)

    camera = Camera(film_path(runs_dir, run), run, data, statistics, film, validate, group.is_main) if film else None
    trunk, tail = checkpoints(runs_dir, run.trunk_key), checkpoints(runs_dir, run.key)
    skipped = {}
    try:
        if run.steps:
            trainer.resume([*train.saved(tail), *(p for p in train.saved(trunk) if train.step_of(p) <= run.drop_step)])
            # on a CPU decoding is the small part, and other runs have the other cores
            workers = 0 if group.device.type == "cpu" else group.decoders()
            batches = make_batches(run, data, group.device, group.share(run.batch_size), workers)

            def batch(now: int) -> tuple[Tensor, ...]:
                noise = [drop_path_noise(run, now, size.depths, group)] if run.drop_path else []
                return *batches.batch(now)[:2], *noise

            def folder(now: int) -> Path:
                return trunk if now <= run.drop_step else tail

            options = {"keep": run.drop_step, "validate": lambda: validate()[0], "progress": progress}
            with contextlib.closing(batches):
                trainer.fit(batch, folder, [camera, *callbacks], **options)
            skipped = {name: reason for part in group.gather(dict(batches.skipped)) for name, reason in part.items()}
        loss, error = validate()
        if not math.isfinite(loss) or (run.steps and loss > train.DIVERGED * trainer.losses[0].item()):
            raise train.Failed(f"the validation loss was {loss:.3g} after step {run.steps}; lower lr ({run.lr:g})")
    except train.Failed as failed:
        return new_record(run, status="failed", reason=str(failed), where=trainer.meter.where(data, **how))
    final = {"train_loss": trainer.losses[run.drop_step :].mean().item() if run.steps else None, "val_loss": loss}
    final |= {"val_loss_se": error, "val_images": min(run.val_images, len(data.val)), "val_masks": run.val_masks}
    if run.steps:
        trainer.point(val_loss=loss)
    model = net.whole()
    transfer = group.on_main(lambda: probe_all(model, data, run))
    group.on_main(lambda: save_final(runs_dir, run, model.state_dict()))
    gmac = size.gmac(run.image_size, run.window_size, head=True)
    parts = {
        "cost": trainer.cost(len(data.train) if run.images is None else run.images, 6e9 * gmac),
        "model": {"parameters": size.parameters, "total_parameters": size.simmim_parameters, "gmac": gmac},
        "curve": trainer.curve,
        "final": final,
        "transfer": transfer,
        "where": trainer.meter.where(data, **how),
    }
    if camera:
        camera.look(model, run.steps, loss, **{name: parts[name] for name in ("curve", "final", "transfer", "where")})
    if skipped:
        parts["skipped"] = sorted(map(list, skipped.items()))
    return new_record(run, status="done", **parts)


def example(run: Run, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Images of noise (B, 3, S, S) and masks of a run's kind (B, S/p, S/p), on the device."""
    shape, grid = (run.batch_size, run.channels, *(run.image_size,) * 2), (run.image_size // run.mask_patch,) * 2
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    cells = hash_masks(grid, run.mask_ratio, 0, np.arange(run.batch_size), 0, run.mask_strategy)
    mask = torch.from_numpy(upsample(cells, run.mask_patch // SIZES[run.model].patch_size))
    return images.to(device), mask.to(device)


def step_seconds(run: Run, device: str = "cpu", steps: int = 4) -> float:
    """Seconds of one optimiser step of a run, batch assembly not counted: the fastest of a few."""
    batch, model = example(run, device), build(run).to(device).train()
    optimiser = build_optimiser(model, run)
    return min(timed(lambda: train.step(model, optimiser, batch, 0.0, run), device) for _ in range(steps + 1))
