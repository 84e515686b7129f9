"""Training batches of pictures that are decoded as training goes: cropped at their own size, in worker processes.

What a worker hands over is uint8 at the input's size; flipping and normalising is the device's work. Pillow decodes,
torch shrinks bytes as bytes: that is where the time goes that torchvision's transforms take (`bench`, loader).
"""

import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError, first_line
from ..model.masking import hash_masks, upsample
from .batches import crop_box, crop_draws, crop_tries
from .loading import StepLoader
from .order import Order
from .pictures import Shelf

_STAND_INS = 10  # unreadable pictures in a row before training gives up


class Streamed:
    """As `batches.Batches`, of a `Shelf`: the crop is a RandomResizedCrop of the picture at its own size (FACTS 3).

    A picture's crop and flip are a function of (seed, epoch, id), so a batch depends neither on the number of workers
    or processes nor on where a run was interrupted. One that cannot be read is named once on stderr, and the next one
    of the draw stands in for it. steps: of the run; workers: processes that decode ahead, 0 = none but this one.
    """

    def __init__(
        self,
        shelf: Shelf,
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        mask_patch: int = 32,
        mask_ratio: float = 0.6,
        mask_strategy: str = "random",
        patch_size: int = 4,
        device: str | torch.device = "cpu",
        share: slice | np.ndarray = slice(None),
        workers: int = 0,
    ) -> None:
        if not len(indices):
            raise UserError(f"images 0: a batch needs at least one training image of {len(shelf)}")
        self.ids = np.asarray(shelf.ids)[indices]
        self.seed, self.share, self.name = seed, share, shelf.name
        self.order = Order(self.ids, seed, batch_size)
        self.device = torch.device(device)
        level, scale = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        self.factor, self.level = (x.float().to(self.device) for x in (1 / (255 * scale), level / scale))
        self.grid, self.cell = (image_size // mask_patch,) * 2, mask_patch // patch_size
        self.mask_ratio, self.mask_strategy = mask_ratio, mask_strategy
        crops = Crops(shelf, np.asarray(indices, np.int64), seed, image_size)
        self.loader = StepLoader(crops, self.order, share, steps, workers=workers, whole=True)
        self.skipped: dict[str, str] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """Step's images float32 (B, 3, S, S), normalised, and masks bool (B, S/patch_size, S/patch_size), True =
        hidden, both on the device; and the image ids uint64 (B,)."""
        epochs, places = self.positions(step)
        ids = self.ids[places]
        pixels, problems = self.loader.batch(step)
        for name, reason in problems:
            if name not in self.skipped:
                self.skipped[name] = reason
                print(f"simmim-lite: {name} cannot be read ({reason}); it is left out", file=sys.stderr, flush=True)
        cells = hash_masks(self.grid, self.mask_ratio, self.seed, ids, epochs, self.mask_strategy)
        mask = torch.from_numpy(upsample(cells, self.cell)).to(self.device)
        flips = torch.from_numpy(np.flatnonzero(crop_draws(self.seed, ids, epochs)[:, 0] < 0.5)).to(self.device)
        pixels = pixels.to(self.device, non_blocking=True)
        pixels[flips] = pixels[flips].flip(3)
        # one pass from bytes to floats and one more, where `batches.normalise` takes three
        return torch.mul(pixels, self.factor).sub_(self.level), mask, ids

    def close(self) -> None:
        """End the processes that decode."""
        self.loader.close()

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and place in `indices` of each image of this process's share of a step: int64 (B,)."""
        epochs, places = self.order.positions(step)
        return epochs[self.share], places[self.share]


class Crops:
    """(epochs, places) of a batch -> its crops uint8 (B, 3, S, S), and the pictures that could not be read."""

    def __init__(self, shelf: Shelf, indices: np.ndarray, seed: int, size: int) -> None:
        self.shelf, self.indices, self.seed, self.size = shelf, indices, seed, size
        self.ids = np.asarray(shelf.ids)[indices]

    def __call__(self, epochs: np.ndarray, places: np.ndarray) -> tuple[Tensor, list[tuple[str, str]]]:
        tries = crop_tries(crop_draws(self.seed, self.ids[places], epochs))
        pixels = torch.empty(len(places), 3, self.size, self.size, dtype=torch.uint8)
        problems: list[tuple[str, str]] = []
        for k, place in enumerate(places.tolist()):
            for further in range(_STAND_INS):
                i = int(self.indices[(place + further) % len(self.indices)])
                try:
                    pixels[k] = self.crop(i, tries[k])
                    break
                except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
                    problems.append((self.shelf.title(i), first_line(error)))
            else:
                raise UserError(
                    f"{self.shelf.name}: {_STAND_INS} pictures in a row cannot be read (the last: {problems[-1][0]}: "
                    f"{problems[-1][1]}); is the disk there? Run again to go on from the last checkpoint"
                )
        return pixels, problems

    def crop(self, i: int, tries: list[tuple[float, float, float, float]]) -> Tensor:
        """The crop of one picture, of `batches.crop_tries`: uint8 (3, S, S)."""
        pixels = torch.from_numpy(np.array(self.shelf.picture(i))).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        top, left, tall, wide = crop_box(tries, height, width)
        part = pixels[None, :, top : top + tall, left : left + wide]
        options = {"size": (self.size, self.size), "mode": "bilinear", "antialias": True}
        return F.interpolate(part, **options)[0]
