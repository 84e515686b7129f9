"""The validation loss: the same number for the same weights on every call (DESIGN 2)."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..data.batches import normalise, validation_masks
from ..data.sources import Split
from ..model.masking import upsample
from ..model.simmim import SimMIM
from .distributed import Team
from .run import Run


def validation_loss(
    model: SimMIM,
    split: Split,
    run: Run,
    mean: tuple,
    std: tuple,
    device: torch.device,
    team: Team | None = None,
    *,
    target: str | None = None,
) -> tuple[float, float]:
    """Mean loss over the first `run.val_images` images x `run.val_masks` masks, and its standard error over images.

    As `image_losses`; in a `team` each process takes its part of the images, and all get the result.
    """
    each = image_losses(model, split, run, mean, std, device, team, target=target)
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
) -> torch.Tensor:
    """The loss of each of the first `run.val_images` images, its mean over masks: float64 (images,), on the CPU.

    Fixed centre crop (the stored image), masks fixed by image id and number, evaluation mode, the forward pass in the
    run's own precision, the loss in full. masks: their numbers, by default 0 to `run.val_masks` - 1. `target` asks for
    `raw` or `normalized` pixels instead of what the model was trained on; the two are different quantities.
    """
    was_training, trained_on = model.training, model.target
    model.eval()
    model.target = target or trained_on
    masks = range(run.val_masks) if masks is None else masks
    cell = run.mask_patch // model.patch_size
    grid = (run.image_size // run.mask_patch,) * 2
    count = min(run.val_images, len(split))
    rank, size = (team.rank, team.size) if team else (0, 1)
    first, end = count * rank // size, count * (rank + 1) // size
    losses = [torch.zeros(0, dtype=torch.float64)]
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
        losses.append(total / len(masks))
    model.train(was_training)
    model.target = trained_on
    each = torch.cat(losses)
    if size > 1:
        each = torch.cat([torch.tensor(part, dtype=torch.float64) for part in team.gather(each.tolist())])
    return each
