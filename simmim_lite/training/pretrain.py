"""Pretraining: from a Run to its model and batches, its validation loss, and its record."""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.batches import Batches, Streamed, normalise, validation_masks
from ..data.manifests import check_count, subset
from ..data.sources import Data, Split, open_for_training
from ..model.masking import hash_masks, uniforms, upsample
from ..model.simmim import SimMIM, create_model
from ..model.sizes import SIZES
from .checkpoint import (
    clear_checkpoints,
    made_once,
    run_checkpoints,
    save_final,
    tail_folder,
    trunk_folder,
    weights_path,
)
from .film import Camera, film_path
from .journal import Journal, check_writers, journal_path
from .machine import Preemption, device_name, one_thread, timed
from .optim import decay_groups
from .parallel import Parallel, Team, join
from .probes import input_statistics, probe_all
from .run import Run, Runtime, new_record, record_path, remove, remove_unfinished, write_record
from .specs import Folder, Whole, checked
from .train import DIVERGED, Callback, Checkpoints, Failed, Health, Progress, Training, step, train

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


def make_batches(
    run: Run, data: Data, device: str | torch.device = "cpu", share: slice = slice(None), workers: int = 0
) -> Batches | Streamed:
    """The batches of a run, each a function of (seed, step); `share`: this process's part of each; `workers`: processes
    that decode for it where pictures are decoded as training goes."""
    mean, std = input_statistics(data, run.statistics)
    chosen = subset(data.train, run.images, run.draw)
    options = {name: getattr(run, name) for name in ("seed", "batch_size", "image_size", "mask_patch", "mask_ratio")}
    options |= {"mask_strategy": run.mask_strategy, "patch_size": SIZES[run.model].patch_size}
    options |= {"mean": mean, "std": std, "device": device, "share": share}
    if run.streamed:
        return Streamed(data.train, chosen, steps=run.steps, workers=workers, **options)
    return Batches(data.train, chosen, augment=run.augment, **options)


def drop_path_noise(spec, now: int, depths: Sequence[int], team: Team, share=None, stream: int = _DROP_PATH) -> Tensor:
    """Drop path's numbers (share, blocks, 2) in (0, 1), on the device: a function of (seed, step, sample, block).

    spec: its seed and batch_size. depths: blocks of each stage. share: which samples of the batch this process has;
    `Team.share` by default. stream: of random numbers; a transfer's is another one.
    """
    blocks = sum(depths)
    samples = np.arange(spec.batch_size)[team.share(spec.batch_size) if share is None else share]
    return torch.from_numpy(uniforms(2 * blocks, spec.seed, now, samples, stream)).to(team.device).view(-1, blocks, 2)


def validation_loss(model: SimMIM, split: Split, run: Run, *how: object, **options: object) -> tuple[float, float]:
    """Mean loss over the first `run.val_images` images x `run.val_masks` masks, and its standard error over images.

    As `image_losses`: the same number for the same weights on every call.
    """
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

    Fixed centre crop (the stored image), masks fixed by image id and number, evaluation mode, the forward pass in the
    run's own precision, the loss in full. In a `team` each process takes its part of the images, and all get the
    result. masks: their numbers, by default 0 to `run.val_masks` - 1. `target` asks for `raw` or `normalized` pixels
    instead of what the model was trained on; the two are different quantities.
    """
    team = team or Team(device)
    was_training, trained_on = model.training, model.target
    model.eval()
    model.target = target or trained_on
    masks = range(run.val_masks) if masks is None else masks
    grid, cell = (run.image_size // run.mask_patch,) * 2, run.mask_patch // model.patch_size
    count = min(run.val_images, len(split))
    first, end = count * team.rank // team.size, count * (team.rank + 1) // team.size
    losses = []
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
    """`pretrain`, and whether this call did the work: False when the run was finished already."""
    check_writers(log)
    data = data or open_for_training(run.data, run.image_size, run.images, streamed=run.streamed)
    check_count(data.train, run.images)  # of a run of no steps too, which draws none
    path, lock = record_path(runs_dir, run), Path(runs_dir) / "locks" / f"{run.trunk_key}.lock"
    runtime, team = runtime or Runtime(), join(device)
    share = team.share(run.batch_size)
    runtime.check_share(share.stop - share.start)

    def make() -> dict:
        def clear_away() -> None:
            for folder in (trunk_folder(runs_dir, run), tail_folder(runs_dir, run)):
                remove_unfinished(folder)
            remove_unfinished(weights_path(runs_dir, run).parent, weights_path(runs_dir, run).name)

        def write() -> None:
            write_record(path, record)
            clear_checkpoints(runs_dir, run)
            remove(journal_path(runs_dir, run.key))

        team.on_main(clear_away)
        journal = contextlib.nullcontext()
        if team.is_main:
            journal = Journal(runs_dir, run, device=device_name(team.device), processes=team.size, log=log)
        with one_thread(team.device), journal as journal:
            record = _record(run, Path(runs_dir), data, team, runtime, progress, film, journal)
            if journal:
                journal.record = record
        team.on_main(write)
        return record

    return made_once(path, lock, data, make, team=team, wait=wait)


def pretrain(*run: Run, **options: object) -> dict:
    """Train, validate and probe a run, write its record, and return it; a finished run is returned as it is.

    An interrupted run goes on from its last checkpoint; runs that differ in length alone branch off one trunk. Only one
    process at a time works on a trunk: another waits, or raises `Busy` with `wait=False`. Under torchrun every process
    calls this with the same arguments, and all of them are that one process; `runtime` says how they share the work.
    SIGTERM and SIGUSR1 save a checkpoint after the step in progress and raise `Preempted`. `progress(step, steps)` is
    called now and then, by the main process. A loss that is not finite or runs away ends in a record with status
    `failed`; whatever the caller can mend is a `UserError`. On a CPU it runs in one thread, so that equal runs give
    equal numbers. `film`: how many frames to keep in RUNS_DIR/films/KEY.png (see `film.py`); each costs a validation
    and changes no number. A run that is finished is not filmed. While it trains its journal can be watched
    (`journal.py`); `log` names who else is told: tensorboard, wandb.
    """
    return pretrain_once(*run, **options)[0]


pretrain.__signature__ = inspect.signature(pretrain_once).replace(return_annotation=dict)


def _record(
    run: Run,
    runs_dir: Path,
    data: Data,
    team: Team,
    runtime: Runtime,
    progress: Callable | None,
    film: int,
    journal: Journal | None,
) -> dict:
    """Train to the end and say what came of it."""
    mean, std = input_statistics(data, run.statistics)
    net = Parallel(build(run).to(team.device), team, runtime, run.precision)
    training = Training(run, net, build_optimiser(net.model, run), data.digest)
    training.resume(run_checkpoints(runs_dir, run) if run.steps else ())
    how = {} if runtime == Runtime() else {"runtime": dataclasses.asdict(runtime)}

    def validate() -> tuple[float, float]:
        return validation_loss(net.whole(), data.val, run, mean, std, team.device, team)

    camera = film and Camera(film_path(runs_dir, run), run, data, (mean, std), film, validate, team.is_main)
    health, report = Health(remedy=" or use fp32"), progress and Progress(progress)
    callbacks, skipped = filter(None, (camera, health, report, journal, _Validation(validate))), []
    try:
        if run.steps:
            skipped = _train(training, data, runs_dir, callbacks)
        loss, error = validate()
        if not math.isfinite(loss) or (run.steps and loss > DIVERGED * training.losses[0].item()):
            raise Failed(f"the validation loss was {loss:.3g} after step {run.steps}; lower lr ({run.lr:g})")
    except Failed as failed:
        return new_record(run, status="failed", reason=str(failed), where=training.where(data.line, **how))
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
        "where": training.where(data.line, **how),
    }
    if camera:
        camera.look(model, run.steps, loss)
        if team.is_main:
            camera.write(**{name: parts[name] for name in ("curve", "final", "transfer", "where")})
    return new_record(run, status="done", **parts, **({"skipped": skipped} if skipped else {}))


def _train(training: Training, data: Data, runs_dir: Path, callbacks: list) -> list[list[str]]:
    """The steps that are left; pictures that could not be read, with the reason, since this process began."""
    run, team = training.spec, training.team
    # on a CPU decoding is the small part, and other runs have the other cores
    workers = 0 if team.device.type == "cpu" else team.decoders()
    batches = make_batches(run, data, team.device, team.share(run.batch_size), workers)

    def batch(now: int) -> tuple[Tensor, ...]:
        images, mask, _ = batches.batch(now)
        noise = drop_path_noise(run, now, SIZES[run.model].depths, team) if run.drop_path else None
        return (images, mask) if noise is None else (images, mask, noise)

    def folder(now: int) -> Path:
        return (trunk_folder if now <= run.drop_step else tail_folder)(runs_dir, run)

    with Preemption() as preemption, contextlib.closing(batches):
        train(training, batch, [*callbacks, Checkpoints(folder, preemption, always=[run.drop_step])])
    return sorted(list(item) for item in {pair for part in team.gather(dict(batches.skipped)) for pair in part.items()})


class _Validation(Callback):
    """The validation loss at the points of the curve but the last, which the record adds."""

    def __init__(self, validate: Callable[[], tuple[float, float]]) -> None:
        self.validate = validate

    def on_step_end(self, training: Training) -> None:
        if training.at_point() and training.step < training.spec.steps:
            training.validated(self.validate()[0])


def example(run: Run, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Images of noise (B, 3, S, S) and masks of a run's kind (B, S/p, S/p), on the device."""
    images = torch.randn(run.batch_size, 3, run.image_size, run.image_size, generator=torch.Generator().manual_seed(0))
    cells = hash_masks((run.image_size // run.mask_patch,) * 2, run.mask_ratio, 0, np.arange(run.batch_size))
    mask = torch.from_numpy(upsample(cells, run.mask_patch // SIZES[run.model].patch_size))
    return images.to(device), mask.to(device)


def step_seconds(run: Run, device: str = "cpu", steps: int = 4) -> float:
    """Seconds of one optimiser step of a run, batch assembly not counted: the fastest of a few."""
    batch, model = example(run, device), build(run).to(device).train()
    optimiser = build_optimiser(model, run)
    return min(timed(lambda: step(model, optimiser, batch, 0.0, run), device) for _ in range(steps + 1))
