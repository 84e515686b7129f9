"""From a Run to its model, its optimiser and its batches: the one place where a Run is read for that."""

import torch

from ..data.batches import Batches
from ..data.manifests import subset
from ..data.sources import Data
from ..model.simmim import SimMIM, create_model
from ..model.sizes import SIZES
from .optim import decay_groups
from .probes import input_statistics
from .run import Run


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


def make_batches(run: Run, data: Data, device: str | torch.device = "cpu", share: slice = slice(None)) -> Batches:
    """The batches of a run, each a function of (seed, step); `share`: this process's part of each."""
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
        share=share,
    )
