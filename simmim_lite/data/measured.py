"""Mean and standard deviation of a data set that is decoded image by image. No torch here."""

import functools
from typing import Protocol

import numpy as np

from .ranking import rank
from .splits import describe
from .store import statistics

_IMAGES = 1024  # at most, that they are taken from


class Pixels(Protocol):
    """A split whose images are read when they are asked for."""

    ids: np.ndarray  # uint64 (N,)

    def __len__(self) -> int: ...

    def pixels(self, place: int) -> np.ndarray:
        """The image at a place: uint8 (3, H, W)."""


class Measured:
    """Mean and standard deviation of the training images (at most 1,024 of them), a channel, in 0..1 units."""

    spec: str
    num_classes: int
    train: Pixels
    test: Pixels

    @property
    def line(self) -> str:
        """As in `sources.Data`."""
        return describe(self.spec, self.num_classes, {"train": len(self.train), "test": len(self.test)})

    @property
    def mean(self) -> tuple[float, ...]:
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        return self._statistics[1]

    @functools.cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        histogram = np.zeros((3, 256), np.int64)
        for place in rank(self.train.ids, None, 0)[:_IMAGES]:
            for counts, channel in zip(histogram, self.train.pixels(int(place)), strict=True):
                counts += np.bincount(channel.ravel(), minlength=256)
        return tuple(map(tuple, statistics(histogram)))
