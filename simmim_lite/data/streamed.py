"""Training batches of pictures that are decoded as training goes: cropped at their own size, in worker processes.

What a worker hands over is uint8 at the input's size; flipping and normalising is the device's work. Pillow decodes,
torch shrinks bytes as bytes: that is where the time goes that torchvision's transforms take (`bench`, loader).
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .batches import Steps, crop_box, crop_draws, crop_tries
from .loading import StepLoader
from .pictures import Shelf, first_readable


class Streamed(Steps):
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
        steps: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        workers: int = 0,
        **draw: object,
    ) -> None:
        super().__init__(shelf, indices, **draw)
        level, scale = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        self.factor, self.level = (x.float().to(self.device) for x in (1 / (255 * scale), level / scale))
        self.crops = Crops(shelf, self.indices, self.seed, self.image_size)
        self.loader = StepLoader(self.crops, self.order, self.share, steps, workers=workers, whole=True)

    def batch(self, step: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """As `batches.Batches.batch`; `UserError` where picture after picture cannot be read."""
        epochs, places = self.positions(step)
        ids = self.ids[places]
        pixels, problems = self.loader.batch(step)
        self.skipped.note(problems)
        flips = torch.from_numpy(np.flatnonzero(crop_draws(self.seed, ids, epochs)[:, 0] < 0.5)).to(self.device)
        pixels = pixels.to(self.device, non_blocking=True)
        pixels[flips] = pixels[flips].flip(3)
        # one pass from bytes to floats and one more, where `batches.normalise` takes three
        return torch.mul(pixels, self.factor).sub_(self.level), self.masks(ids, epochs), ids

    def close(self) -> None:
        self.loader.close()


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
            picture, _, unread = first_readable(self.shelf, self.indices, place)
            pixels[k] = self.crop(picture, tries[k])
            problems += unread
        return pixels, problems

    def crop(self, picture: Image.Image, tries: list[tuple[float, float, float, float]]) -> Tensor:
        """The crop of one picture, of `batches.crop_tries`: uint8 (3, S, S)."""
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        top, left, tall, wide = crop_box(tries, height, width)
        part = pixels[None, :, top : top + tall, left : left + wide]
        options = {"size": (self.size, self.size), "mode": "bilinear", "antialias": True}
        return F.interpolate(part, **options)[0]
