"""Which image comes when: a shuffle that is a function of (seed, epoch), and batches that are one of (seed, step)."""

import functools

import numpy as np

from ..model.masking import splitmix64, stream

_ORDER = 1  # stream of random numbers


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
