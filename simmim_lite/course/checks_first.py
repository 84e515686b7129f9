"""The graders of notebooks 00 to 03. Each takes the answer alone, so that a cell works whatever was run before it."""

from collections.abc import Iterator

import numpy as np

from ..model.masking import MaskGenerator, average_distance, upsample
from .grading import ANY, array, call, case, exercise, number, numbers, same, wrong


@exercise
def fill_visible(answer) -> Iterator[dict]:
    (image, hidden), (before, _) = _picture(0), _picture(0)
    filled = array(call(answer, image, hidden))
    if not np.array_equal(image, before):
        yield wrong("changed")
    if filled.shape != image.shape:
        yield case(filled.shape, image.shape, {"shape": ANY})
    if not np.allclose(filled[:, ~hidden], image[:, ~hidden]):
        yield wrong("visible")
    means = {"whole": image.mean((1, 2)), "hidden": image[:, hidden].mean(1), "grey": [image[:, ~hidden].mean()] * 3}
    truth, *others = (
        np.tile(np.reshape(colour, (3, 1)), hidden.sum()) for colour in (image[:, ~hidden].mean(1), *means.values())
    )
    yield case(filled[:, hidden], truth, dict(zip(means, others, strict=True)))


@exercise
def masked_l1(answer) -> Iterator[dict]:
    (target, hidden), (guess, _) = _picture(1), _picture(2)
    found, error = number(call(answer, target, guess, hidden)), target - guess
    off = np.abs(error)
    truth = off[:, hidden].mean()
    mistakes = {"whole": off.mean(), "visible": off[:, ~hidden].mean(), "zeros": (off * hidden).mean()}
    mistakes |= {"channels": 3 * truth, "squared": (off[:, hidden] ** 2).mean(), "signed": error[:, hidden].mean()}
    yield case(found, truth, mistakes)


def _picture(seed: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A random picture (3, side, side) in 0..1, and which of its pixels are hidden."""
    random = np.random.default_rng(seed)
    image = random.random((3, side, side)) * np.array([1.0, 0.7, 0.4])[:, None, None]
    return image, upsample(random.permutation(16).reshape(4, 4) < 10, side // 4)


@exercise
def cells_at_224(answer: tuple[int, float]) -> Iterator[dict]:
    cells, share = numbers(answer, "hidden cells", "hidden share")
    yield case(cells, 30, {"all": 49, "down": 29}, otherwise="cells")
    yield case(share, 30 / 49, {"ratio": 0.6})


@exercise
def to_tokens(answer) -> Iterator[dict]:
    mask = np.array([[True, False, False], [False, True, True]])
    found, truth = array(call(answer, mask.copy(), 4)), upsample(mask, 4)
    if found.shape != truth.shape:
        yield case(found.shape, truth.shape, {"shape": ANY})
    yield case(found.astype(bool), truth, {"tiled": np.tile(mask, (4, 4))})


@exercise
def same_distance(answer: float) -> Iterator[dict]:
    ratio = number(answer)
    if not 0 < ratio < 1:
        yield wrong("none", ratio=ratio)
    found, truth = _distance(16, ratio), _distance(32, 0.6)
    mistakes = {"same": ANY} if same(ratio, 0.6, 1e-6) else {}
    yield case(found, truth, mistakes, ratio=ratio, more="more" if found < truth else "less")


def _distance(patch: int, ratio: float) -> float:
    """Mean AvgDist in pixels of 16 official masks at 192 px."""
    generator = MaskGenerator(192, patch, 4, ratio, seed=0)
    masks = [generator()[:: patch // 4, :: patch // 4] for _ in range(16)]
    return float(np.mean([average_distance(mask, patch) for mask in masks]))


@exercise
def windows_at_192(answer: tuple[int, int, int, int]) -> Iterator[dict]:
    found = numbers(answer, "stage 1", "stage 2", "stage 3", "stage 4")
    yield case(found, (16, 4, 1, 1), {"side": (4, 2, 1, 1), "small": (16, 4, 1, ANY), "pixels": (256, 64, 16, 4)})


@exercise
def window_partition(answer) -> Iterator[dict]:
    x = np.arange(4 * 6 * 2).reshape(4, 6, 2)
    found, blocks = array(call(answer, x.copy(), 2)), x.reshape(2, 2, 3, 2, 2)
    if found.shape != (6, 4, 2):
        yield case(found.shape, (6, 4, 2), {"shape": ANY})
    orders = {
        "truth": (0, 2, 1, 3, 4),
        "by_column": (2, 0, 1, 3, 4),
        "turned": (0, 2, 3, 1, 4),
        "rows": (0, 1, 2, 3, 4),
    }
    made = {name: blocks.transpose(order).reshape(6, 4, 2) for name, order in orders.items()}
    yield case(found, made.pop("truth"), made, first=found[0].astype(int).tolist())


@exercise
def schedule(answer) -> Iterator[dict]:
    for step, truth, what in (
        (10, 4e-3, "at the end of the warm-up it should be the peak"),
        (69, 4e-3, "it should stay at the peak until just before step 7 * steps // 8"),
        (70, 4e-4, "from step 7 * steps // 8 on, that step included, it should be a tenth"),
        (79, 4e-4, "the last steps should have a tenth: one drop, and no second one"),
        (0, 2e-5, "at step 0 it should be peak / 200: the warm-up does not begin at the peak, nor at 0"),
        (5, 2.01e-3, "half way through the warm-up it should be half way up"),
    ):
        yield case(number(call(answer, step, 80, 4e-3, 10)), truth, case=what, step=step)


@exercise
def paired_difference(answer) -> Iterator[dict]:
    random = np.random.default_rng(3)
    hard = random.gamma(4.0, 0.1, 400)  # some images are hard for any network
    a, b = hard + random.normal(0.01, 0.02, 400), hard + random.normal(0, 0.02, 400)
    mean, error = numbers(call(answer, a.copy(), b.copy()), "mean", "standard error")
    each, apart = a - b, float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 400))
    yield case(mean, each.mean(), {"turned": -each.mean()}, otherwise="mean", apart=0, mean=mean)
    yield case(error, each.std(ddof=1) / 20, {"apart": apart, "spread": each.std()}, apart=apart, mean=mean)
