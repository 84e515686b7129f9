"""Mean and standard deviation of a data set that is decoded image by image. No torch here."""

import functools
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from ..errors import Everywhere
from .listing import describe, rank
from .store import statistics

_IMAGES = 1024  # at most, that they are taken from
_NAMED = 5  # classes that are named


class Pixels(Protocol):
    """A split whose images are read when they are asked for."""

    ids: np.ndarray  # uint64 (N,)

    def __len__(self) -> int: ...

    def pixels(self, place: int) -> np.ndarray:
        """The image at a place: uint8 (3, H, W)."""

    def numbers(self, places: Iterable[int]) -> Iterator[set[int]]:
        """Which classes, counted from 1, the annotations at some places hold; 0 is what is in none."""


class Measured:
    """Mean and standard deviation of the training images (at most 1,024 of them), a channel, in 0..1 units."""

    spec: str
    train: Pixels
    test: Pixels
    classes: tuple[str, ...]

    @property
    def line(self) -> str:
        """As in `sources.Data`."""
        return describe(self.spec, len(self.classes), {"train": len(self.train), "test": len(self.test)})

    @property
    def mean(self) -> tuple[float, ...]:
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        return self._statistics[1]

    def name_unseen(self, places: Iterable[int], *, quiet: bool = False) -> None:
        """Say on stderr which classes never occur in the training images at these places; `UserError` if it is all."""
        places, seen = list(places), set()
        for found in self.train.numbers(places):  # as a rule, every class has been seen long before the last image
            seen |= found
            if len(seen - {0}) == len(self.classes):
                return
        if not seen - {0}:
            raise Everywhere(f"{self.spec}: no pixel of {len(places):,} training annotations has a class; all are 0")
        if quiet:
            return
        unseen = [f"{k} ({name})" for k, name in enumerate(self.classes, 1) if k not in seen]
        what = f"class{'es' * (len(unseen) > 1)} {', '.join(unseen[:_NAMED])}{', ...' * (len(unseen) > _NAMED)}"
        said = f"{self.spec}: {len(unseen)} of {len(self.classes)} classes never occur in training: {what}"
        if {0, 1} & seen == {0, 1} and len(self.classes) not in seen:
            said += "; 0 is unlabelled and classes count from 1: if these labels count from 0, add 1 to every pixel"
        say_once(said)

    @functools.cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        histogram = np.zeros((3, 256), np.int64)
        for place in rank(self.train.ids, None, 0)[:_IMAGES]:
            for counts, channel in zip(histogram, self.train.pixels(int(place)), strict=True):
                counts += np.bincount(channel.ravel(), minlength=256)
        return tuple(map(tuple, statistics(histogram)))


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr that a process says once, however often it opens the same data."""
    print(" ".join(line.splitlines()), file=sys.stderr)
