"""Batches from files: decoded and augmented ahead by worker processes, each image a function of (seed, epoch, id)."""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import UserError
from ..model.masking import hashes, stream
from .order import Order

_SAMPLE = 11  # stream of random numbers


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators as a function of the numbers; put back afterwards.

    For pieces of other libraries (timm, torchvision) that draw from them. A GPU's generator is set too where this
    process uses one, and stays as it then is: reading its state would wait for the GPU.
    """
    first, second, third = hashes(stream(*numbers), 3)[0].tolist()
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)  # torch.manual_seed costs ten times as much
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(third)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class _Samples(Dataset):
    """load(place), or the `UserError` it raises, under generators that are a function of (seed, epoch, id)."""

    def __init__(self, load: Callable[[int], object], ids: np.ndarray, seed: int) -> None:
        self.load, self.ids, self.seed = load, ids, seed

    def __getitem__(self, key: tuple[int, int]) -> object:
        epoch, place = key
        with seeded(self.seed, epoch, int(self.ids[place]), _SAMPLE):
            try:
                return self.load(place)
            except UserError as error:
                return error  # as a value: DataLoader would make a traceback of many lines of it


class _Batches(Dataset):
    """load(epochs, places) of a whole batch, or the `UserError` it raises."""

    def __init__(self, load: Callable[[np.ndarray, np.ndarray], object]) -> None:
        self.load = load

    def __getitem__(self, keys: list[tuple[int, int]]) -> object:
        try:
            return self.load(*np.array(keys, np.int64).reshape(-1, 2).T)
        except UserError as error:
            return error


class StepLoader:
    """`batch(step)`: this process's share of a step's samples, collated; steps in sequence are prepared ahead.

    load(place) returns one sample and may draw from the global generators of Python, numpy and torch: they are seeded
    by (seed, epoch, id), so a batch does not depend on the number of workers or processes, nor on where a run was
    interrupted. whole: `load(epochs, places)` returns a batch at once, and draws from no generator. share: which of the
    global batch's samples; workers: processes that decode, 0 = none but this one. A `UserError` of load's is raised as
    it is, in whatever process it came up.
    """

    def __init__(
        self,
        load: Callable[..., object],
        order: Order,
        share: slice | np.ndarray,
        steps: int,
        *,
        workers: int = 0,
        collate: Callable[[list], object] | None = None,
        whole: bool = False,
    ) -> None:
        self.samples = _Batches(load) if whole else _Samples(load, order.ids, order.seed)
        self.whole = whole
        self.order, self.share, self.steps = order, share, steps
        self.workers, self.collate = workers, _Collate(collate or default_collate)
        self._next, self._batches = -1, iter(())

    def batch(self, step: int) -> object:
        """The share of one step; any step may be asked for, the one after the last one comes fastest."""
        if step != self._next:
            self._batches = iter(self._loader(step))
        self._next = step + 1
        batch = next(self._batches)
        wrong = isinstance(batch, UserError)
        if wrong or self._next == self.steps:
            # the processes that decode end with the last step; left to an error's traceback they take 5 seconds each
            self._next, self._batches = -1, iter(())
        if wrong:
            raise batch
        return batch

    def close(self) -> None:
        """End the processes that decode; another batch may still be asked for."""
        self._next, self._batches = -1, iter(())

    def _loader(self, start: int) -> DataLoader:
        def keys() -> Iterator[list[tuple[int, int]]]:
            for step in range(start, self.steps):
                epochs, places = self.order.positions(step)
                yield list(zip(epochs[self.share].tolist(), places[self.share].tolist(), strict=True))

        how = {"sampler": _Keys(keys), "batch_size": None, "collate_fn": _as_it_is} if self.whole else {}
        return DataLoader(
            self.samples,
            **(how or {"batch_sampler": _Keys(keys), "collate_fn": self.collate}),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if self.workers else None,  # a batch at full size is some 150 MB
        )


def _as_it_is(batch: object) -> object:
    return batch


class _Collate:
    """The samples of a batch collated, or the first error among them."""

    def __init__(self, collate: Callable[[list], object]) -> None:
        self.collate = collate

    def __call__(self, samples: list) -> object:
        wrong = next((sample for sample in samples if isinstance(sample, UserError)), None)
        return wrong or self.collate(samples)


class _Keys:
    """What DataLoader takes for a batch sampler: an iterable that can be begun again."""

    def __init__(self, make: Callable[[], Iterator]) -> None:
        self.make = make

    def __iter__(self) -> Iterator:
        return self.make()
