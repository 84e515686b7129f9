"""A batch as a function of (seed, step): order, crop, flip and mask depend on numbers, never on history."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import UserError, unknown
from ..model.masking import hash_masks, uniforms, upsample
from .loading import Order, StepLoader
from .sources import LeftOut, Split, first_readable

#: Seed of every validation mask: two runs are judged on the same hidden cells.
VAL_SEED = 20220608

AUGMENTATIONS = ("none", "flip", "crop+flip")  # `Streamed` crops pictures at their own size
_AUGMENT = 2  # stream of random numbers
_TRIES = 10  # crops drawn before the centre crop is taken, as torchvision does
_SCALE, _RATIO = (0.67, 1.0), (3 / 4, 4 / 3)  # docs/facts.md, 3


class Steps:
    """What all training batches have in common: which image comes when, and what is hidden of it (docs/facts.md, 3).

    Position p = step * batch_size + j holds an image of epoch p // N; the order within an epoch depends on (seed,
    epoch), an image's crop, flip and mask on (seed, epoch, image id). A batch may span epochs, so N may be smaller than
    the batch. `share`: which of the batch's images this process takes. `image_size`, `mask_patch` and `patch_size` (of
    the model) are in pixels.
    """

    def __init__(
        self,
        source: Split,
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        image_size: int,
        mask_patch: int = 8,
        mask_ratio: float = 0.6,
        mask_strategy: str = "random",
        patch_size: int = 4,
        device: str | torch.device = "cpu",
        share: slice | np.ndarray = slice(None),
    ) -> None:
        if not len(indices):
            raise UserError(f"images 0: a batch needs at least one training image of {len(source)}")
        if image_size % mask_patch or mask_patch % patch_size:
            raise UserError(
                f"mask_patch {mask_patch} does not fit: it must divide image_size {image_size} and be a multiple of "
                f"the model's patch {patch_size}"
            )
        self.indices = np.asarray(indices, np.int64)
        self.ids = np.asarray(source.ids)[self.indices]
        self.seed, self.batch_size, self.image_size = seed, batch_size, image_size
        self.order, self.share, self.device = Order(self.ids, seed, batch_size), share, torch.device(device)
        self.grid = (image_size // mask_patch,) * 2
        self.cell = mask_patch // patch_size
        self.mask_ratio, self.mask_strategy = mask_ratio, mask_strategy
        self.skipped = LeftOut()

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and place in `indices` of each image of this process's share of a step: int64 (B,)."""
        epochs, places = self.order.positions(step)
        return epochs[self.share], places[self.share]

    def masks(self, ids: np.ndarray, epochs: np.ndarray) -> Tensor:
        """bool (B, S/patch_size, S/patch_size), True = hidden, on the device."""
        cells = hash_masks(self.grid, self.mask_ratio, self.seed, ids, epochs, self.mask_strategy)
        return torch.from_numpy(upsample(cells, self.cell)).to(self.device)

    def close(self) -> None:
        """End the processes that prepare batches, where there are any."""


class Batches(Steps):
    """Training batches of the images `indices` (N,) of a split, each a pure function of (seed, step); see `Steps`.

    `mean`, `std` in 0..1 units.
    """

    def __init__(
        self,
        split: Split,
        indices: np.ndarray,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        augment: str = "flip",
        **draw: object,
    ) -> None:
        super().__init__(split, indices, **draw)
        if augment not in AUGMENTATIONS:
            raise unknown("augment", augment, AUGMENTATIONS)
        if split.images.shape[-1] != self.image_size:
            raise UserError(
                f"image_size {self.image_size}: {split.name} was opened at {split.images.shape[-1]} px; reopen it"
            )
        self.images = np.asarray(split.images)  # a plain view: indexing a memmap subclass is slower
        self.augment, self.mean, self.std = augment, tuple(mean), tuple(std)

    def batch(self, step: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """Step's images float32 (B, 3, S, S), normalised, and masks bool (B, S/patch_size, S/patch_size), True =
        hidden, both on the device; and the image ids uint64 (B,)."""
        epochs, places = self.positions(step)
        ids = self.ids[places]
        mask = self.masks(ids, epochs)
        pixels = self.images[self.indices[places]]
        if self.augment == "none":
            return normalise(pixels, self.mean, self.std, self.device), mask, ids
        if self.augment == "flip":
            flip = np.flatnonzero(uniforms(1, self.seed, ids, epochs, _AUGMENT)[:, 0] < 0.5)
            pixels[flip] = pixels[flip, ..., ::-1]
            return normalise(pixels, self.mean, self.std, self.device), mask, ids
        boxes, flips = crop_boxes(crop_draws(self.seed, ids, epochs), pixels.shape[-1])
        images = normalise(pixels, self.mean, self.std, self.device)
        return crop(images, boxes, flips), mask, ids


class Streamed(Steps):
    """As `Batches`, of a split with a reader: a RandomResizedCrop of the picture at its own size (docs/facts.md, 3).

    A picture's crop and flip are a function of (seed, epoch, id), so a batch depends neither on the number of workers
    or processes nor on where a run was interrupted. One that cannot be read is named once on stderr, and the next one
    of the draw stands in for it. steps: of the run; workers: processes that decode ahead, 0 = none but this one.
    """

    def __init__(
        self,
        split: Split,
        indices: np.ndarray,
        *,
        steps: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        workers: int = 0,
        **draw: object,
    ) -> None:
        super().__init__(split, indices, **draw)
        level, scale = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        self.factor, self.level = (x.float().to(self.device) for x in (1 / (255 * scale), level / scale))
        self.crops = Crops(split, self.indices, self.seed, self.image_size)
        self.loader = StepLoader(self.crops, self.order, self.share, steps, workers=workers, whole=True)

    def batch(self, step: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """As `Batches.batch`; `UserError` where picture after picture cannot be read."""
        epochs, places = self.positions(step)
        ids = self.ids[places]
        pixels, problems = self.loader.batch(step)
        self.skipped.note(problems)
        flips = torch.from_numpy(np.flatnonzero(crop_draws(self.seed, ids, epochs)[:, 0] < 0.5)).to(self.device)
        pixels = pixels.to(self.device, non_blocking=True)
        pixels[flips] = pixels[flips].flip(3)
        # one pass from bytes to floats and one more, where `normalise` takes three
        return torch.mul(pixels, self.factor).sub_(self.level), self.masks(ids, epochs), ids

    def close(self) -> None:
        self.loader.close()


class Crops:
    """(epochs, places) of a batch -> its crops uint8 (B, 3, S, S), and the pictures that could not be read."""

    def __init__(self, split: Split, indices: np.ndarray, seed: int, size: int) -> None:
        self.split, self.indices, self.seed, self.size = split, indices, seed, size
        self.ids = np.asarray(split.ids)[indices]

    def __call__(self, epochs: np.ndarray, places: np.ndarray) -> tuple[Tensor, list[tuple[str, str]]]:
        tries = crop_tries(crop_draws(self.seed, self.ids[places], epochs))
        pixels = torch.empty(len(places), 3, self.size, self.size, dtype=torch.uint8)
        problems: list[tuple[str, str]] = []
        for k, place in enumerate(places.tolist()):
            picture, _, unread = first_readable(self.split, self.indices, place)
            pixels[k] = self.crop(picture, tries[k])
            problems += unread
        return pixels, problems

    def crop(self, picture: Image.Image, tries: list[tuple[float, float, float, float]]) -> Tensor:
        """The crop of one picture, of `crop_tries`: uint8 (3, S, S)."""
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        top, left, tall, wide = crop_box(tries, height, width)
        part = pixels[None, :, top : top + tall, left : left + wide]
        options = {"size": (self.size, self.size), "mode": "bilinear", "antialias": True}
        return F.interpolate(part, **options)[0]


def normalise(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], device: str | torch.device = "cpu"
) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 tensor, (x / 255 - mean) / std per channel, on the device."""
    pixels = torch.from_numpy(np.require(images, requirements=("C", "W"))).to(device)
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std))
    return pixels.float().sub_(mean * 255).mul_(1 / (255 * std))


def crop_draws(seed: int, ids: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """What `crop_boxes` takes: uniforms float32 (B, 4 * tries + 1), a function of (seed, epoch, id)."""
    return uniforms(4 * _TRIES + 1, seed, ids, epochs, _AUGMENT)


def crop_boxes(draws: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of RandomResizedCrop on square images of `size` pixels, scale (.67, 1), ratio (3/4, 4/3): docs/facts.md, 3.

    From uniforms (B, 4 * tries + 1) -> int64 (B, 4): top, left, height, width; and flips: bool (B,). As in torchvision,
    area and log ratio are uniform, sides are rounded, the first try that fits is taken; the whole image if none does.
    """
    return np.array([crop_box(tries, size, size) for tries in crop_tries(draws)]), draws[:, 0] < 0.5


def crop_tries(draws: np.ndarray) -> list[list[tuple[float, float, float, float]]]:
    """What `crop_box` takes, for each image: share of the area, ratio, and place from top and left, of every try."""
    share, ratio, top, left = draws[:, 1:].astype(np.float64).reshape(len(draws), -1, 4).transpose(2, 0, 1)
    low, high = np.log(_RATIO)
    share, ratio = _SCALE[0] + (_SCALE[1] - _SCALE[0]) * share, np.exp(low + (high - low) * ratio)
    return np.stack([share, ratio, top, left], -1).tolist()


def crop_box(tries: list[tuple[float, float, float, float]], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height, width: the box of `crop_boxes` for one image of any shape.

    Where no try fits, the middle of the image, as much of it as the ratio allows (of a square image all).
    """
    for share, ratio, top, left in tries:
        area = height * width * share
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if wide <= width and tall <= height:
            rows, columns = height - tall, width - wide
            return min(int(top * (rows + 1)), rows), min(int(left * (columns + 1)), columns), tall, wide
    tall, wide = min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def crop(images: Tensor, boxes: np.ndarray, flips: np.ndarray) -> Tensor:
    """Cut boxes (B, 4: top, left, height, width) out of (B, 3, S, S), resize them to S x S (bilinear), mirror `flips`.

    The numbers are those of resizing each cut-out alone: samples never leave the pixel centres of their box. A box is
    never larger than the output, so there is nothing to filter.
    """
    size = images.shape[-1]
    box = torch.from_numpy(boxes).to(images.device, torch.float32)
    centres = (torch.arange(size, device=images.device) + 0.5) / size
    lines = []
    for start, length in ((box[:, 0], box[:, 2]), (box[:, 1], box[:, 3])):
        inside = (centres * length[:, None] - 0.5).clamp(min=0)
        line = start[:, None] + torch.minimum(inside, length[:, None] - 1)
        lines.append(line * (2 / (size - 1)) - 1)
    y, x = lines
    x = torch.where(torch.from_numpy(flips).to(images.device)[:, None], x.flip(1), x)
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def validation_masks(grid: tuple[int, int], ratio: float, strategy: str, ids: np.ndarray, k: int) -> np.ndarray:
    """The k-th validation mask of each image id: bool (B, rows, columns) of mask cells, the same in every run."""
    return hash_masks(grid, ratio, VAL_SEED, ids, k, strategy)
