"""Ids of images and their rank: hashes that turn "a random subset" into a rule. No torch here."""

import hashlib

import numpy as np

from ..model.masking import splitmix64


def image_ids(names: list[str]) -> np.ndarray:
    """64-bit ids of images: a hash of each name (a relative path with forward slashes); uint64 (N,)."""
    encoded = (name.encode("utf-8", "surrogateescape") for name in names)
    return np.frombuffer(b"".join(hashlib.blake2b(e, digest_size=8).digest() for e in encoded), "<u8").astype(np.uint64)


def rank(ids: np.ndarray, labels: np.ndarray | None, seed: int, block: int | None = None) -> np.ndarray:
    """Order of a source's images such that every prefix is a class-balanced draw: int64 (N,), indices into `ids`.

    Within a class, images are ordered by a hash of (seed, class, id); the k-th of n of a class then stands at (k + .5)
    / n of the whole, so a prefix holds each class in proportion. It depends on the set of ids, not on their order.
    With `block`, each run of `block` images is ranked alone, one after the other: a source that grows at its end keeps
    its draws.
    """
    ids = np.asarray(ids, np.uint64)
    classes = np.zeros(len(ids), np.int64) if labels is None else np.asarray(labels, np.int64)
    if block and len(ids) > block:
        starts = range(0, len(ids), block)
        return np.concatenate([s + rank(ids[s : s + block], classes[s : s + block], seed) for s in starts])
    key = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ classes.astype(np.uint64))
    hashed = splitmix64(ids ^ key)
    within = np.lexsort((ids, hashed, classes))  # by class, then hash
    counts = np.bincount(classes, minlength=1)
    first = np.cumsum(counts) - counts
    ordered = classes[within]
    place = (np.arange(len(ids)) - first[ordered] + 0.5) / counts[ordered]
    return within[np.lexsort((hashed[within], place))]
