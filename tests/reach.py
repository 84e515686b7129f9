"""Which tokens hear of which: windows, shift and merging as sets, block after block. No torch here.

Attention mixes whatever lies in one window, so that after a block a token has heard of everything its window had heard
of. This is what the weights allow, whatever they are."""

from collections.abc import Iterator, Sequence

import numpy as np


def attention_groups(side: int, window: int, shift: int = 0) -> np.ndarray:
    """Tokens of a (side, side) map that attend to each other share a number: int64 (side, side), not contiguous.

    A shifted map is rolled by -shift, and cut where it wraps: opposite edges never meet (docs/facts.md, 5)."""
    place = (np.arange(side) - shift) % side  # after the roll
    piece = 2 * (place // window) + (place >= side - shift if shift else np.zeros(side, bool))
    return piece[:, None] * (2 * -(-side // window)) + piece[None, :]


def steps(hidden: np.ndarray, window: int, depths: Sequence[int]) -> Iterator[np.ndarray]:
    """Which tokens (side, side) have heard of a visible one after each block of a Swin, on a mask, True or 1 = hidden.

    The window is clamped to each stage's map, every second block is shifted by half of it where the map is larger. A
    merged token has heard of what any of its four has."""
    heard = ~np.asarray(hidden, bool)
    for stage, depth in enumerate(depths):
        side = len(heard)
        clamped, shift = min(window, side), window // 2 if side > window else 0
        for block in range(depth):
            groups = attention_groups(side, clamped, shift * (block % 2))
            heard = np.isin(groups, np.unique(groups[heard]))
            yield heard
        if stage + 1 < len(depths) and side % 2 == 0:
            heard = heard.reshape(side // 2, 2, side // 2, 2).any((1, 3))


def blocks_until_seen(hidden: np.ndarray, window: int, depths: Sequence[int]) -> np.ndarray:
    """After how many blocks each token of the first map has heard of a visible one: int64 (side, side); 0 for visible
    tokens, -1 for those that never do. A token that has been merged counts with the one it is part of."""
    found = np.where(np.asarray(hidden, bool), -1, 0)
    for count, heard in enumerate(steps(hidden, window, depths), 1):
        factor = len(found) // len(heard)
        found[(found < 0) & heard.repeat(factor, 0).repeat(factor, 1)] = count
    return found


def blind_groups(hidden: np.ndarray, window: int, shift: int = 0) -> int:
    """How many groups of a mask of tokens (side, side) have no visible token."""
    groups = attention_groups(len(hidden), window, shift)
    return len(np.unique(groups)) - len(np.unique(groups[~np.asarray(hidden, bool)]))
