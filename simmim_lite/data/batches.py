"""A batch as a function of (seed, step): order, crop, flip and mask depend on numbers, never on history."""

import contextlib
import functools
import math
import random
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError, first_line
from ..model.masking import hash_masks, hashes, splitmix64, stream, uniforms, upsample
from .manifests import Split

#: Seed of every validation mask: two runs are judged on the same hidden cells.
VAL_SEED = 20220608

_ORDER, _AUGMENT, _SAMPLE = 1, 2, 11  # streams of random numbers
_TRIES, _SCALE, _RATIO = 10, (0.67, 1.0), (3 / 4, 4 / 3)  # of random crops; docs/facts.md, 3
_STAND_INS = 10  # unreadable pictures in a row before training gives up


def first_readable(split: Split, chosen: np.ndarray, place: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
    """The picture at a place of a draw (`chosen`: numbers in the split), or the next one that can be read; its
    number in the split; and those that could not (name, reason). `UserError` after ten in a row."""
    problems = []
    for further in range(_STAND_INS):
        i = int(chosen[(place + further) % len(chosen)])
        try:
            return split.picture(i), i, problems
        except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
            problems.append((split.title(i), first_line(error)))
    last = f"{_STAND_INS} pictures in a row cannot be read (the last: {': '.join(problems[-1])})"
    raise UserError(f"{split.name}: {last}; is the disk there? Run again to go on from the last checkpoint")


class Skipped(dict):
    """Pictures that could not be read, name -> reason. Each is named once on stderr."""

    def note(self, problems: list[tuple[str, str]]) -> None:
        for name, reason in problems:
            if name not in self:
                self[name] = reason
                print(f"simmim-lite: {name} cannot be read ({reason}); it is left out", file=sys.stderr, flush=True)


class Order:
    """The order of N images with ids uint64 (N,): position p is of epoch p // N, so a batch may span epochs."""

    def __init__(self, ids: np.ndarray, seed: int, batch_size: int) -> None:
        self.ids, self.seed, self.batch_size = np.asarray(ids, np.uint64), seed, batch_size
        self._order = functools.lru_cache(maxsize=4)(
            lambda epoch: np.argsort(splitmix64(self.ids ^ splitmix64(stream(seed, epoch, _ORDER))), kind="stable")
        )

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch (B,) and place among the ids (B,) of each image of a step: int64."""
        epochs, offsets = np.divmod(step * self.batch_size + np.arange(self.batch_size), len(self.ids))
        places = [self._order(epoch)[offset] for epoch, offset in zip(epochs.tolist(), offsets, strict=True)]
        return epochs, np.array(places)


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators as a function of the numbers; put back afterwards. A GPU's is set
    too where this process uses one, and stays as it then is: reading its state would wait for the GPU."""
    first, second, third = hashes(stream(*numbers), 3)[0].tolist()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)  # torch.manual_seed costs ten times as much
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(third)
    try:
        yield
    finally:
        for put_back, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True):
            put_back(state)


class _Loaded(Dataset):
    """(epochs, places) -> a batch, or a `UserError` as a value: DataLoader would make it a long traceback."""

    def __init__(self, load: Callable) -> None:
        self.load = load

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray]) -> object:
        try:
            return self.load(*key)
        except UserError as error:
            return error


def _samples(load: Callable, ids: np.ndarray, seed: int, collate: Callable, epochs: np.ndarray, places: np.ndarray):
    samples = []
    for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True):
        with seeded(seed, epoch, int(ids[place]), _SAMPLE):
            samples.append(load(place))
    return collate(samples)


class StepLoader:
    """`batch(step)`: this process's share of a step's samples, collated; steps in sequence are prepared ahead.

    load(place) returns one sample and may draw from global generators: they are seeded by (seed, epoch, id), so a batch
    depends neither on workers (processes that decode; 0 = none but this one) nor on where a run was interrupted.
    Without `collate`, `load(epochs, places)` returns a batch at once."""

    def __init__(
        self, load: Callable, order: Order, share: slice, steps: int, workers: int = 0, collate: Callable | None = None
    ) -> None:
        self.order, self.share, self.steps, self.workers = order, share, steps, workers
        self.load = functools.partial(_samples, load, order.ids, order.seed, collate) if collate else load
        self.close()

    def batch(self, step: int) -> object:
        """The share of one step; any step may be asked for, the one after the last one comes fastest."""
        if step != self._next:
            self._batches = iter(self._loader(step))
        self._next = step + 1
        batch = next(self._batches)
        if isinstance(batch, UserError) or self._next == self.steps:
            self.close()  # left to an error's traceback, the processes that decode take 5 seconds each
        if isinstance(batch, UserError):
            raise batch
        return batch

    def close(self) -> None:
        """End the processes that decode; another batch may still be asked for."""
        self._next, self._batches = -1, iter(())

    def _loader(self, start: int) -> DataLoader:
        positions = map(self.order.positions, range(start, self.steps))
        return DataLoader(
            _Loaded(self.load),
            sampler=((epochs[self.share], places[self.share]) for epochs, places in positions),
            batch_size=None,
            collate_fn=nn.Identity(),  # what is loaded is a batch already
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if self.workers else None,  # a batch at full size is some 150 MB
        )


class Batches:
    """Training batches of the images `indices` (N,) of a split: which image comes when, and what is hidden of it.

    The order depends on (seed, epoch), an image's crop, flip and mask on (seed, epoch, image id).
    `image_size`, `mask_patch` and `patch_size` (of the model) are in pixels; `mean`, `std` in 0..1 units; share: which
    of the batch's images this process takes. A split with a reader is decoded as training goes, by `workers` processes,
    in `steps` steps: a RandomResizedCrop of each picture at its own size; one that cannot be read is named once on
    stderr, and the next one of the draw stands in for it."""

    def __init__(
        self,
        split: Split,
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        image_size: int,
        mean: tuple,
        std: tuple,
        augment: str = "flip",
        mask_patch: int = 8,
        mask_ratio: float = 0.6,
        mask_strategy: str = "random",
        patch_size: int = 4,
        device: str | torch.device = "cpu",
        share: slice = slice(None),
        steps: int = 0,
        workers: int = 0,
    ) -> None:
        self.indices, self.seed, self.image_size = np.asarray(indices, np.int64), seed, image_size
        self.ids, self.augment, self.mean, self.std = np.asarray(split.ids)[self.indices], augment, mean, std
        self.order, self.share, self.device = Order(self.ids, seed, batch_size), share, torch.device(device)
        self.grid, self.cell = (image_size // mask_patch,) * 2, mask_patch // patch_size
        self.mask_ratio, self.mask_strategy, self.skipped, self.loader = mask_ratio, mask_strategy, Skipped(), None
        if split.reader is not None:
            level, scale = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
            self.factor, self.level = (x.float().to(self.device) for x in (1 / (255 * scale), level / scale))
            load = functools.partial(load_crops, split, self.indices, seed, image_size)
            self.loader = StepLoader(load, self.order, share, steps, workers)
        else:
            self.images = np.asarray(split.images)  # a plain view: indexing a memmap subclass is slower

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and place in `indices` of each image of this process's share: int64 (B,)."""
        epochs, places = self.order.positions(step)
        return epochs[self.share], places[self.share]

    def batch(self, step: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """Images float32 (B, 3, S, S), normalised; masks bool (B, S/patch, S/patch), True = hidden; ids uint64 (B,)."""
        epochs, places = self.positions(step)
        ids = self.ids[places]
        images = self._stored(ids, epochs, places) if self.loader is None else self._decoded(step, ids, epochs)
        cells = hash_masks(self.grid, self.mask_ratio, self.seed, ids, epochs, self.mask_strategy)
        return images, torch.from_numpy(upsample(cells, self.cell)).to(self.device), ids

    def _stored(self, ids: np.ndarray, epochs: np.ndarray, places: np.ndarray) -> Tensor:
        pixels = self.images[self.indices[places]]
        if self.augment == "flip":
            flip = np.flatnonzero(uniforms(1, self.seed, ids, epochs, _AUGMENT)[:, 0] < 0.5)
            pixels[flip] = pixels[flip, ..., ::-1]
        images = normalise(pixels, self.mean, self.std, self.device)
        if self.augment == "crop+flip":
            draws, sides = crop_draws(self.seed, ids, epochs), pixels.shape[-2:]
            boxes = np.array([crop_box(tries, *sides) for tries in crop_tries(draws)])
            images = crop(images, boxes, draws[:, 0] < 0.5)
        return images

    def _decoded(self, step: int, ids: np.ndarray, epochs: np.ndarray) -> Tensor:
        pixels, problems = self.loader.batch(step)
        self.skipped.note(problems)
        flips = torch.from_numpy(np.flatnonzero(crop_draws(self.seed, ids, epochs)[:, 0] < 0.5)).to(self.device)
        pixels = pixels.to(self.device, non_blocking=True)
        pixels[flips] = pixels[flips].flip(3)
        # one pass from bytes to floats and one more, where `normalise` takes three
        return torch.mul(pixels, self.factor).sub_(self.level)

    def close(self) -> None:
        """End the processes that decode, where there are any."""
        if self.loader is not None:
            self.loader.close()


def load_crops(
    split: Split, indices: np.ndarray, seed: int, size: int, epochs: np.ndarray, places: np.ndarray
) -> tuple[Tensor, list[tuple[str, str]]]:
    """The crops of a batch, uint8 (B, 3, size, size), and the pictures that could not be read."""
    tries = crop_tries(crop_draws(seed, np.asarray(split.ids)[indices[places]], epochs))
    pixels, problems = torch.empty(len(places), 3, size, size, dtype=torch.uint8), []
    for k, place in enumerate(places.tolist()):
        picture, _, unread = first_readable(split, indices, place)
        pixels[k] = crop_picture(picture, tries[k], size)
        problems += unread
    return pixels, problems


def crop_picture(picture: Image.Image, tries: list[tuple[float, float, float, float]], size: int) -> Tensor:
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    top, left, tall, wide = crop_box(tries, *pixels.shape[1:])
    part = pixels[None, :, top : top + tall, left : left + wide]
    return F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]


def normalise(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], device: str | torch.device = "cpu"
) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 tensor, (x / 255 - mean) / std per channel, on the device."""
    pixels = torch.from_numpy(np.require(images, requirements=("C", "W"))).to(device)
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1) for v in (mean, std))
    return pixels.float().sub_(mean * 255).mul_(1 / (255 * std))


def crop_draws(seed: int, ids: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """What a flip (the first) and `crop_tries` (the others) take: uniforms float32 (B, 4 * tries + 1)."""
    return uniforms(4 * _TRIES + 1, seed, ids, epochs, _AUGMENT)


def crop_tries(draws: np.ndarray) -> list[list[tuple[float, float, float, float]]]:
    """What `crop_box` takes, for each image: share of the area (.67 to 1), ratio (3/4 to 4/3), and place from top and
    left, of every try of a RandomResizedCrop: docs/facts.md, 3."""
    share, ratio, top, left = draws[:, 1:].astype(np.float64).reshape(len(draws), -1, 4).transpose(2, 0, 1)
    low, high = np.log(_RATIO)
    share, ratio = _SCALE[0] + (_SCALE[1] - _SCALE[0]) * share, np.exp(low + (high - low) * ratio)
    return np.stack([share, ratio, top, left], -1).tolist()


def crop_box(tries: list[tuple[float, float, float, float]], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height, width for one image of any shape; where no try fits, as much of its middle as may be."""
    for share, ratio, top, left in tries:
        area = height * width * share
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if wide <= width and tall <= height:
            rows, columns = height - tall, width - wide
            return min(int(top * (rows + 1)), rows), min(int(left * (columns + 1)), columns), tall, wide
    tall, wide = min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def crop(images: Tensor, boxes: np.ndarray, flips: np.ndarray) -> Tensor:
    """Cut boxes (B, 4: top, left, height, width) out of (B, 3, S, S), resize each alone (bilinear), mirror `flips`."""
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
    """The k-th validation mask of each image id, the same in every run: bool (B, rows, columns) of mask cells."""
    return hash_masks(grid, ratio, VAL_SEED, ids, k, strategy)
