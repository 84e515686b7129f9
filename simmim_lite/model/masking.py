"""Which cells are hidden: the official generator's order, hash masks equal everywhere, and what a mask does. No torch.

The integer hash is murmur3's 32-bit finaliser. It is written on int64 arithmetic that numpy, torch and (on 32-bit
integers) JavaScript share, so one mask is the same in all three, on any machine.
"""

import math
from collections.abc import Callable

import numpy as np

from ..errors import UserError, unknown

_M32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1
_BLOCKS = 64  # rectangles drawn before the block strategy falls back to single cells


def fmix32(x):
    """Murmur3's finaliser on an int64 array (numpy or torch) of values in [0, 2**32); same shape and range."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _M32  # int64 overflow wraps, the low 32 bits are exact
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _M32
    return x ^ (x >> 16)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Splitmix64's output function on a uint64 array: a 64-bit hash for ids and ranks."""
    x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream(*numbers: "int | np.ndarray") -> np.ndarray:
    """Fold integers (scalars or arrays (B,), up to 64 bits) into 32-bit stream numbers: int64 (B,)."""
    shape = np.broadcast_shapes(*(np.shape(n) for n in numbers))
    h = np.zeros(shape or (1,), np.int64)
    for number in numbers:
        wide = np.asarray(number).astype(np.uint64)
        for word in (wide & np.uint64(_M32), wide >> np.uint64(32)):
            h = fmix32((h * 31 + word.astype(np.int64) + 0x9E3779B9) & _M32)
    return h


def hashes(streams: np.ndarray, n: int) -> np.ndarray:
    """n hashes in [0, 2**32) for each stream number: (B,) -> int64 (B, n)."""
    counter = (np.arange(1, n + 1, dtype=np.int64) * _GOLDEN) & _M32
    return fmix32(counter[None] ^ streams[:, None])


def uniforms(n: int, *numbers: "int | np.ndarray") -> np.ndarray:
    """float32 (B, n) in (0, 1), a function of the numbers alone (each a scalar or (B,))."""
    # 23 bits and a half: the largest is still exact in float32, and below 1
    return ((hashes(stream(*numbers), n) >> 9).astype(np.float32) + np.float32(0.5)) / np.float32(2**23)


def hidden_count(cells: int, ratio: float) -> int:
    """How many of the cells are hidden: ceil(cells * ratio) in float64, as the official code (docs/facts.md, 5)."""
    if not 0 <= ratio <= 1:
        raise UserError(f"mask_ratio {ratio} is outside 0 to 1: it is the share of cells that are hidden")
    return math.ceil(cells * float(ratio))


def hash_masks(
    grid: tuple[int, int],
    ratio: float,
    seed: int,
    ids: np.ndarray,
    visit: "int | np.ndarray" = 0,
    strategy: str = "random",
) -> np.ndarray:
    """Masks as a function of (seed, image id, visit): bool (B, rows, columns), True = hidden.

    `ids` (B,) are image ids of up to 64 bits, `visit` tells the epochs (or validation passes) of one image apart. The
    hidden cells at a lower ratio are among those at a higher one. Strategies (SimMIM compares them): `random` cells;
    one `square` around a random cell; `block`s of random place and shape, as BEiT's.
    """
    if strategy not in STRATEGIES:
        raise unknown("mask_strategy", strategy, STRATEGIES)
    rows, columns = grid
    cells = rows * columns
    count = hidden_count(cells, ratio)
    streams = stream(seed, np.asarray(ids), visit)
    order = STRATEGIES[strategy](rows, columns, streams) * (1 << 32) + hashes(streams, cells)
    # cells are told apart by their index where two hashes agree, so every sort gives the same order
    rank = np.argsort(np.argsort(order, axis=1, kind="stable"), axis=1)
    return (rank < count).reshape(len(streams), rows, columns)


def _square(rows: int, columns: int, streams: np.ndarray) -> np.ndarray:
    """Chebyshev distance to a drawn corner between cells, in half cells: the nearest are hidden first. (B, cells)."""
    draw = hashes(fmix32(streams ^ 0x5BD1E995), 2)
    y, x = draw[:, :1] % (2 * rows - 1), draw[:, 1:] % (2 * columns - 1)
    cy, cx = np.divmod(np.arange(rows * columns), columns)
    return np.maximum(np.abs(2 * cy - y), np.abs(2 * cx - x))


def _block(rows: int, columns: int, streams: np.ndarray) -> np.ndarray:
    """Number of the first drawn rectangle that covers a cell; cells no rectangle covers come last. (B, cells)."""
    draw = hashes(fmix32(streams ^ 0x1B873593), 4 * _BLOCKS).reshape(-1, _BLOCKS, 4)
    height = 1 + draw[..., 0] % max(1, (rows + 1) // 2)
    width = 1 + draw[..., 1] % max(1, (columns + 1) // 2)
    top, left = draw[..., 2] % (rows - height + 1), draw[..., 3] % (columns - width + 1)
    cy, cx = np.divmod(np.arange(rows * columns), columns)
    down, right = cy - top[..., None], cx - left[..., None]
    covers = (down >= 0) & (down < height[..., None]) & (right >= 0) & (right < width[..., None])
    return np.where(covers.any(1), covers.argmax(1), _BLOCKS)


#: Strategy -> the order in which cells are hidden: (rows, columns, streams (B,)) -> int64 (B, cells) below 2**31. The
#: lowest come first, and the hash of the cell decides between equals. Its twin is in lab/js/core.js.
STRATEGIES: dict[str, Callable[[int, int, np.ndarray], np.ndarray]] = {
    "random": lambda rows, columns, streams: np.zeros((len(streams), rows * columns), np.int64),
    "square": _square,
    "block": _block,
}


class MaskGenerator:
    """The official mask generator (docs/facts.md, 5): one permutation an image, its first cells hidden, as tokens.

    Sizes are in pixels. The permutations are those of numpy's legacy `RandomState(seed)`: with it the masks of a seed
    are the official ones.
    """

    def __init__(
        self,
        input_size: int = 192,
        mask_patch_size: int = 32,
        model_patch_size: int = 4,
        mask_ratio: float = 0.6,
        *,
        seed: int | None = None,
    ) -> None:
        if input_size % mask_patch_size or mask_patch_size % model_patch_size:
            wanted = f"it must divide image_size {input_size} and be a multiple of the model's patch {model_patch_size}"
            raise UserError(f"mask_patch {mask_patch_size} does not divide: {wanted}")
        self.grid = input_size // mask_patch_size
        self.scale = mask_patch_size // model_patch_size
        self.count = hidden_count(self.grid**2, mask_ratio)
        self.generator = np.random.RandomState(seed)

    def __call__(self) -> np.ndarray:
        """The next image's mask at model-patch resolution: int64 (H / patch, W / patch), 1 = hidden."""
        mask = np.zeros(self.grid**2, np.int64)
        mask[self.generator.permutation(self.grid**2)[: self.count]] = 1
        return upsample(mask.reshape(self.grid, self.grid), self.scale)


def upsample(mask: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every cell `factor` times both ways: (..., h, w) -> (..., h * factor, w * factor)."""
    return mask.repeat(factor, axis=-2).repeat(factor, axis=-1)


def average_distance(mask: np.ndarray, cell: int) -> float:
    """AvgDist (SimMIM): mean Euclidean distance in pixels from a hidden pixel to the nearest visible one.

    `mask` (rows, columns) of cells of `cell` pixels a side. 0 when nothing is hidden, infinity when all is.
    """
    from scipy.ndimage import distance_transform_edt

    hidden = upsample(np.asarray(mask, bool), cell)
    if not hidden.any():
        return 0.0
    if hidden.all():
        return math.inf
    return float(distance_transform_edt(hidden)[hidden].mean())


def fully_masked_windows(mask: np.ndarray, window: int, shift: int = 0) -> int:
    """How many attention windows hold no visible token.

    `mask` (H, W) in tokens, sides multiples of `window`; `shift` rolls the map first, as shifted blocks do.
    """
    hidden = np.roll(np.asarray(mask, bool), (-shift, -shift), (0, 1))
    rows, columns = hidden.shape
    return int(hidden.reshape(rows // window, window, columns // window, window).all((1, 3)).sum())
