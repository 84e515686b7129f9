"""Which image comes when, and batches prepared ahead by worker processes: functions of (seed, epoch, id)."""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import UserError
from ..model.masking import hashes, splitmix64, stream

_ORDER, _SAMPLE = 1, 11  # streams of random numbers


class Order:
    """The order of N images with ids uint64 (N,) in batches of `batch_size`: position p is of epoch p // N.

    A batch may span epochs, so N may be smaller than the batch.
    """

    def __init__(self, ids: np.ndarray, seed: int, batch_size: int) -> None:
        self.ids, self.seed, self.batch_size = np.asarray(ids, np.uint64), seed, batch_size
        self._order = functools.lru_cache(maxsize=4)(self._permutation)

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch (B,) and place among the ids (B,) of each image of a step: int64."""
        epochs, offsets = np.divmod(step * self.batch_size + np.arange(self.batch_size), len(self.ids))
        places = np.empty(self.batch_size, np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            places[here] = self._order(epoch)[offsets[here]]
        return epochs, places

    def _permutation(self, epoch: int) -> np.ndarray:
        key = splitmix64(stream(self.seed, epoch, _ORDER))
        return np.argsort(splitmix64(self.ids ^ key), kind="stable")


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


class _Batches(Dataset):
    """(epochs, places) -> load(place) of each, under generators that are a function of (seed, epoch, id), collated; of
    a load that makes whole batches, what it makes. A `UserError` is a value: DataLoader would make it a long traceback.
    """

    def __init__(self, load: Callable, order: Order, collate: Callable[[list], object], whole: bool) -> None:
        self.load, self.ids, self.seed, self.collate, self.whole = load, order.ids, order.seed, collate, whole

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray]) -> object:
        try:
            return self.load(*key) if self.whole else self.collate(list(map(self._sample, *(k.tolist() for k in key))))
        except UserError as error:
            return error

    def _sample(self, epoch: int, place: int) -> object:
        with seeded(self.seed, epoch, int(self.ids[place]), _SAMPLE):
            return self.load(place)


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
        self.dataset = _Batches(load, order, collate or default_collate, whole)
        self.order, self.share, self.steps, self.workers = order, share, steps, workers
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
        positions = map(self.order.positions, range(start, self.steps))
        return DataLoader(
            self.dataset,
            sampler=((epochs[self.share], places[self.share]) for epochs, places in positions),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if self.workers else None,  # a batch at full size is some 150 MB
        )


def _as_it_is(batch: object) -> object:
    return batch
