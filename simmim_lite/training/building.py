"""From a Run to its model, its optimiser and its batches: the one place where a Run is read for that."""

import numpy as np
import torch
from torch import Tensor

from ..data.batches import Batches, Streamed
from ..data.manifests import subset
from ..data.sources import Data
from ..model.masking import uniforms
from ..model.simmim import SimMIM, create_model
from ..model.sizes import SIZES
from .dense import Dense
from .distributed import Team
from .optim import decay_groups
from .probes import input_statistics
from .run import Run
from .tuning import FineTune

_DROP_PATH, _DROP_PATH_IN_TRANSFER = 4, 5  # streams of random numbers


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
    options = {
        "seed": run.seed,
        "batch_size": run.batch_size,
        "image_size": run.image_size,
        "mean": mean,
        "std": std,
        "mask_patch": run.mask_patch,
        "mask_ratio": run.mask_ratio,
        "mask_strategy": run.mask_strategy,
        "patch_size": SIZES[run.model].patch_size,
        "device": device,
        "share": share,
    }
    if run.streamed:
        return Streamed(data.train, chosen, steps=run.steps, workers=workers, **options)
    return Batches(data.train, chosen, augment=run.augment, **options)


def drop_path_noise(
    spec: Run | FineTune | Dense,
    step: int,
    depths: tuple[int, ...],
    us: Team,
    share: slice | np.ndarray | None = None,
) -> Tensor:
    """Drop path's numbers (share, blocks, 2) in (0, 1), on the device: a function of (seed, step, sample, block).

    depths: blocks of each stage. share: which samples of the batch this process has; `Team.share` by default.
    """
    blocks = sum(depths)
    samples = np.arange(spec.batch_size)[us.share(spec.batch_size) if share is None else share]
    stream = _DROP_PATH if isinstance(spec, Run) else _DROP_PATH_IN_TRANSFER
    draws = uniforms(2 * blocks, spec.seed, step, samples, stream)
    return torch.from_numpy(draws).to(us.device).view(-1, blocks, 2)
