"""Which tokens hear of which: windows, shift and merging as sets, block after block. No torch here.

Attention mixes whatever lies in one window, so that after a block a token has heard of everything its window had heard
of. This is what the weights allow, whatever they are; how much a token makes of it is another matter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


def attention_groups(side: int, window: int, shift: int = 0) -> np.ndarray:
    """Tokens of a (side, side) map that attend to each other share a number: int64 (side, side), not contiguous.

    A shifted map is rolled by -shift, and cut where it wraps: opposite edges never meet (docs/facts.md, 5).
    """
    place = (np.arange(side) - shift) % side  # after the roll
    piece = 2 * (place // window) + (place >= side - shift if shift else np.zeros(side, bool))
    return piece[:, None] * (2 * -(-side // window)) + piece[None, :]


@dataclass(frozen=True)
class Step:
    """One block of the encoder as sets of tokens."""

    stage: int  # from 0
    block: int  # in its stage, from 0
    window: int  # tokens a side, clamped to the map
    shift: int  # tokens
    groups: np.ndarray  # int64 (side, side), as `attention_groups`
    before: np.ndarray  # bool (side, side): which tokens have heard of a visible one when the block begins
    after: np.ndarray  # the same when it ends

    @property
    def blind(self) -> int:
        """How many groups have nothing to share: none of their tokens has heard of a visible one."""
        return len(np.unique(self.groups)) - len(np.unique(self.groups[self.before]))


def steps(hidden: np.ndarray, window: int, depths: Sequence[int]) -> Iterator[Step]:
    """The blocks of a Swin on a mask of tokens (side, side), True or 1 = hidden; merges lie between the stages.

    The window is clamped to each stage's map, every second block is shifted by half of it where the map is larger. A
    merged token has heard of what any of its four has.
    """
    heard = ~np.asarray(hidden, bool)
    for stage, depth in enumerate(depths):
        side = len(heard)
        clamped, shift = min(window, side), window // 2 if side > window else 0
        for block in range(depth):
            groups = attention_groups(side, clamped, shift * (block % 2))
            after = np.isin(groups, np.unique(groups[heard]))
            yield Step(stage, block, clamped, shift * (block % 2), groups, heard, after)
            heard = after
        if stage + 1 < len(depths) and side % 2 == 0:
            heard = heard.reshape(side // 2, 2, side // 2, 2).any((1, 3))


def blocks_until_seen(hidden: np.ndarray, window: int, depths: Sequence[int]) -> np.ndarray:
    """After how many blocks each token of the first map has heard of a visible one: int64 (side, side).

    0 for visible tokens, -1 for those that never do. A token that has been merged counts with the one it is part of.
    """
    hidden = np.asarray(hidden, bool)
    found = np.where(hidden, -1, 0)
    for count, step in enumerate(steps(hidden, window, depths), 1):
        factor = len(hidden) // len(step.after)
        now = step.after.repeat(factor, 0).repeat(factor, 1)
        found[(found < 0) & now] = count
    return found


def blind_groups(hidden: np.ndarray, window: int, shift: int = 0) -> tuple[int, int]:
    """Groups of a mask of tokens (side, side) without a visible token, and all groups: (4, 25) of a shifted map, say.

    A shifted map of 4 x 4 windows is cut into 5 x 5 pieces; `fully_masked_windows` counts the 16 before the cut.
    """
    hidden = np.asarray(hidden, bool)
    groups = attention_groups(len(hidden), window, shift)
    every = len(np.unique(groups))
    return every - len(np.unique(groups[~hidden])), every
