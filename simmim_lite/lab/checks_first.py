"""The checks of notebooks 00 to 03. Each takes the answer alone, so that a cell works whatever was run before it."""

import numpy as np

from ..model.masking import MaskGenerator, average_distance, hidden_count, upsample
from .checks import Verdict, call, exercise, near, numbers, right, verdict, wrong

# --- 00_start -----------------------------------------------------------------------------------------------------


@exercise("say how many pixels are hidden")
def hidden_pixels(answer: int) -> Verdict:
    """Hidden pixels of a 32 px picture with mask cells of 8 px at ratio 0.6."""
    cells, pixels = hidden_count(16, 0.6), 64
    if near(answer, cells):
        return wrong(f"{cells} is the number of cells: each holds 8 x 8 pixels")
    if near(answer, 9 * pixels):
        return wrong("9.6 cells were rounded down to 9: the official code rounds up, so that no ratio hides too little")
    if near(answer, 0.6 * 1024, 0.002):
        return wrong("this is 60 % of the pixels, but only whole cells are hidden: 60 % of 16 cells is 9.6")
    share = cells / 16
    line = f"{cells} of 16 cells are hidden, {share:.1%} of the picture rather than 60 %: small grids are coarse"
    return verdict(near(answer, cells * pixels, 1e-6), line, "count cells first: 16 of them, 60 % rounded up")


@exercise("fill the hidden pixels with the mean colour of the visible ones")
def fill_visible(answer) -> Verdict:
    """A function (image (3, H, W) floats, hidden (H, W) bool) -> the image with hidden pixels filled."""
    image, hidden = _picture(0)
    before = image.copy()
    filled = np.asarray(call(answer, image, hidden))
    if not np.array_equal(image, before):
        return wrong("your function changed the picture it was given: work on a copy, image.copy()")
    if filled.shape != image.shape:
        return wrong(f"it returns shape {filled.shape}: a picture is (3, H, W) = {image.shape}")
    if not np.allclose(filled[:, ~hidden], image[:, ~hidden]):
        return wrong("visible pixels were changed: only hidden ones are to be filled")
    got = filled[:, hidden]
    if np.allclose(got, image.mean((1, 2))[:, None]):
        return wrong("this is the mean of the whole picture: the hidden pixels leaked into the answer")
    if np.allclose(got, image[:, hidden].mean(1)[:, None]):
        return wrong("this is the mean of the hidden pixels, the very thing that must not be known")
    if np.allclose(got, image[:, ~hidden].mean()):
        return wrong("this is one grey for all three channels: take the mean of each channel, mean(axis=1)")
    good = np.allclose(got, image[:, ~hidden].mean(1)[:, None])
    line = "a guess from visible pixels alone: the simplest masked image model there is, and the one to beat"
    return verdict(good, line, "hidden pixels should hold, channel by channel, the mean of image[:, ~hidden]")


@exercise("write the loss on hidden pixels")
def masked_l1(answer) -> Verdict:
    """A function (target (3, H, W), guess (3, H, W), hidden (H, W)) -> mean |target - guess| over hidden pixels."""
    target, hidden = _picture(1)
    guess = _picture(2)[0]
    difference = np.abs(target - guess)
    truth = float(difference[:, hidden].mean())
    found = float(call(answer, target, guess, hidden))
    for value, case in (
        (difference.mean(), "this averages over the whole picture: a network is not paid for copying visible pixels"),
        (difference[:, ~hidden].mean(), "this averages over the visible pixels: `hidden` is True where to look"),
        ((difference * hidden).mean(), "visible pixels count as zeros here: divide by the number of hidden pixels"),
        (3 * truth, "three times too much: every hidden pixel has three channels, and the mean is over them too"),
        (np.square(target - guess)[:, hidden].mean(), "this is the squared error (L2): SimMIM takes the absolute one"),
        ((target - guess)[:, hidden].mean(), "errors of opposite sign cancel here: take absolute values"),
    ):
        if near(found, float(value), 1e-5):
            return wrong(case)
    line = "the mean absolute error of what was hidden, which is all the supervision there is"
    return verdict(near(found, truth, 1e-4), line, f"for this pair it should be {truth:.4f}, yours is {found:.4f}")


# --- 01_masks -----------------------------------------------------------------------------------------------------


@exercise("count the hidden cells at 224 px, and say which share of the picture they are")
def cells_at_224(answer: tuple[int, float]) -> Verdict:
    """(hidden cells, hidden share of the picture) at 224 px, mask patch 32, ratio 0.6."""
    total, count = 49, hidden_count(49, 0.6)
    cells, share = numbers(answer, "hidden cells", "hidden share")
    if near(cells, total):
        return wrong("49 is the number of all cells, 7 x 7: how many of them are hidden?")
    if near(cells, count - 1):
        return wrong("29.4 was rounded down to 29: the official code takes the ceiling")
    if not near(cells, count, 1e-6):
        return wrong("the grid has 224 / 32 cells a side; 60 % of all of them, rounded up")
    if near(share, 0.6, 0.001):
        return wrong(f"0.6 is what was asked for; {count} of {total} cells is a little more")
    line = f"{count} of {total} cells, {count / total:.4f} of the picture: the ratio asked for is not the share hidden"
    return verdict(near(share, count / total, 0.002), line, f"the share is hidden cells over {total}")


@exercise("blow a mask of cells up to tokens")
def to_tokens(answer) -> Verdict:
    """A function (mask (rows, columns), factor) -> mask (rows * factor, columns * factor)."""
    mask = np.array([[True, False, False], [False, True, True]])
    truth = upsample(mask, 4)
    found = np.asarray(call(answer, mask.copy(), 4))
    if found.shape == truth.shape and np.array_equal(found.astype(bool), np.tile(mask, (4, 4))):
        return wrong(
            "this lays copies of the whole mask side by side (tile): each cell should become a block of its own"
        )
    if found.shape != truth.shape:
        return wrong(
            f"a mask of {mask.shape} should become {truth.shape}, yours is {found.shape}: repeat along both axes"
        )
    good = np.array_equal(found.astype(bool), truth)
    line = "every token of a cell is hidden with it: mask patch over model patch, both ways"
    return verdict(good, line, "the shape is right, the cells are not: repeat rows, then columns")


@exercise("find the ratio at which 16 px cells are as hard as 32 px cells at 0.6")
def same_distance(answer: float) -> Verdict:
    """A ratio for mask patch 16 at 192 px whose AvgDist is within 10 % of patch 32 at 0.6."""
    ratio = float(answer)
    if not 0 < ratio < 1:
        return wrong(f"{ratio:g} is no ratio between 0 and 1")
    target, found = _distance(32, 0.6), _distance(16, ratio)
    if near(ratio, 0.6, 1e-6):
        return wrong(f"the same ratio with smaller cells: AvgDist {found:.1f} px, and {target:.1f} px is wanted")
    if not near(found, target, 0.1):
        more = "more" if found < target else "less"
        return wrong(f"patch 16 at {ratio:g} gives AvgDist {found:.1f} px, {target:.1f} px is wanted: hide {more}")
    return right(f"AvgDist {found:.1f} px beside {target:.1f} px: small cells must hide far more to be as hard")


def _distance(patch: int, ratio: float) -> float:
    """Mean AvgDist in pixels of 16 official masks at 192 px."""
    generator = MaskGenerator(192, patch, 4, ratio, seed=0)
    masks = [generator()[:: patch // 4, :: patch // 4] for _ in range(16)]
    return float(np.mean([average_distance(mask, patch) for mask in masks]))


def _picture(seed: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A random picture (3, side, side) in 0..1, and which of its pixels are hidden."""
    random = np.random.default_rng(seed)
    image = random.random((3, side, side)) * np.array([1.0, 0.7, 0.4])[:, None, None]
    cells = random.permutation(16).reshape(4, 4) < 10
    return image, upsample(cells, side // 4)


# --- 02_swin ------------------------------------------------------------------------------------------------------


@exercise("count the windows of each stage at 192 px, window 12")
def windows_at_192(answer: tuple[int, int, int, int]) -> Verdict:
    """Windows of the four stages, maps of 48, 24, 12 and 6 tokens a side."""
    grids = (48, 24, 12, 6)
    truth = tuple((g // min(12, g)) ** 2 for g in grids)
    found = numbers(answer, "stage 1", "stage 2", "stage 3", "stage 4")
    if found == tuple(g // min(12, g) for g in grids):
        return wrong("these are windows a side: square them")
    if found[:3] == truth[:3] and found != truth:
        return wrong("stage 4 has 6 x 6 tokens, fewer than a window: the window shrinks to the map, and there is one")
    if found == tuple((192 // 12 // 2**s) ** 2 for s in range(4)):
        return wrong("windows are counted in tokens, not in pixels: stage 1 has 192 / 4 = 48 tokens a side")
    line = "so stage 3, with most of the blocks, is one window that sees everything"
    return verdict(found == truth, line, "the maps have 48, 24, 12 and 6 tokens a side; windows at most 12")


@exercise("count the parameters of swinv2_base's head")
def head_parameters(answer: int) -> Verdict:
    """Parameters of a linear layer with bias from 1024 channels to 3 x 32 x 32 numbers."""
    channels, pixels = 1024, 3 * 32 * 32
    for value, case in (
        (channels * pixels, "the bias is missing: one number for each of the 3 x 32 x 32 outputs"),
        (128 * pixels + pixels, "128 is the first stage's width: it doubles three times until the last"),
        (channels * 1024 + 1024, "this is one colour: three are predicted"),
        (channels * 48 + 48, "a token of the last stage stands for 32 x 32 pixels, not for 4 x 4"),
    ):
        if near(answer, value, 1e-9):
            return wrong(case)
    line = f"{channels:,} x {pixels:,} + {pixels:,}; for all that size it is one layer, and it goes after pretraining"
    return verdict(near(answer, channels * pixels + pixels, 1e-9), line, "channels of the last stage x outputs + bias")


@exercise("cut a map into windows")
def window_partition(answer) -> Verdict:
    """A function (x (H, W, C), window) -> (windows, window * window, C) in reading order."""
    x = np.arange(4 * 6 * 2).reshape(4, 6, 2)
    blocks = x.reshape(2, 2, 3, 2, 2)
    truth = blocks.transpose(0, 2, 1, 3, 4).reshape(6, 4, 2)
    found = np.asarray(call(answer, x.copy(), 2))
    if found.shape != truth.shape:
        return wrong(
            f"a map of {x.shape} with window 2 has {truth.shape}: six windows of 4 tokens; yours is {found.shape}"
        )
    if np.array_equal(found, x.reshape(6, 4, 2)):
        return wrong("reshape alone takes four tokens of one row: a window takes two of each of two rows, so transpose")
    if np.array_equal(found, blocks.transpose(2, 0, 1, 3, 4).reshape(6, 4, 2)):
        return wrong("the windows come column by column: reading order goes along a row of windows first")
    if np.array_equal(found, blocks.transpose(0, 2, 3, 1, 4).reshape(6, 4, 2)):
        return wrong("inside a window the tokens come column by column: rows first")
    good = np.array_equal(found, truth)
    line = "two reshapes around one transpose; the library keeps tokens in this order and saves most of the copies"
    return verdict(
        good, line, f"the first window should hold tokens (0,0), (0,1), (1,0), (1,1), yours {found[0].tolist()}"
    )


# --- 03_one_run ---------------------------------------------------------------------------------------------------


@exercise("say how many epochs 300 steps of 64 images are over 1,024 unique ones")
def epochs(answer: float) -> Verdict:
    """Epochs of 300 steps, batch 64, 1,024 unique images."""
    steps, batch, unique = 300, 64, 1024
    if near(answer, steps / unique, 1e-3):
        return wrong("a step is a batch of 64 images, not one image")
    if near(answer, unique / batch, 1e-3):
        return wrong("16 is the number of steps of one epoch: how many of those are in 300?")
    if near(answer, steps * batch, 1e-3):
        return wrong("this is how many images are seen: an epoch is one pass over the unique ones")
    line = "every image is seen almost nineteen times, under another mask each time"
    return verdict(near(answer, steps * batch / unique, 0.002), line, "images seen over unique images")


@exercise("write the learning-rate schedule")
def schedule(answer) -> Verdict:
    """A function (step, steps, peak, warmup) -> learning rate; warm-up, constant, a tenth from 7 * steps // 8."""
    peak, warmup, steps = 4e-3, 10, 80
    drop = 7 * steps // 8

    def at(step: int) -> float:
        return float(call(answer, step, steps, peak, warmup))

    for step, truth, case in (
        (warmup, peak, "at the end of the warm-up it should be the peak"),
        (drop - 1, peak, "it should stay at the peak until just before step 7 * steps // 8"),
        (drop, peak / 10, "from step 7 * steps // 8 on, that step included, it should be a tenth"),
        (steps - 1, peak / 10, "the last steps should have a tenth: one drop, and no second one"),
        (0, peak / 200, "at step 0 it should be peak / 200: the warm-up does not begin at the peak, nor at 0"),
        (warmup // 2, peak / 200 + (peak - peak / 200) / 2, "half way through the warm-up it should be half way up"),
    ):
        found = at(step)
        if not near(found, truth, 1e-6):
            return wrong(f"{case}: step {step} of {steps} gives {found:.3g}, should be {truth:.3g}")
    return right(
        "constant until seven eighths: a longer run has the same first part, and can branch off a shorter one's"
    )


@exercise("give the mean difference and its standard error")
def paired_difference(answer) -> Verdict:
    """A function (a (n,), b (n,)) -> mean of a - b, and its standard error over images."""
    random = np.random.default_rng(3)
    hard = random.gamma(4.0, 0.1, 400)  # some images are hard for any network
    a, b = hard + random.normal(0.01, 0.02, 400), hard + random.normal(0, 0.02, 400)
    mean, error = numbers(call(answer, a.copy(), b.copy()), "mean", "standard error")
    each = a - b
    truth = each.std(ddof=1) / np.sqrt(len(each))
    apart = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    if near(mean, -each.mean(), 1e-6):
        return wrong("the sign is turned round: a - b is wanted")
    if not near(mean, each.mean(), 1e-6):
        return wrong(f"the mean of a - b is {each.mean():.4f} here, yours is {mean:.4f}")
    if near(error, apart, 0.01):
        return wrong(
            f"this treats the two as if they had seen different images: {error:.4f} where the differences, image by "
            f"image, give {truth:.4f}; what makes an image hard cancels"
        )
    if near(error, each.std(), 0.01):
        return wrong("this is the spread of single differences: the mean of n of them is surer by the root of n")
    line = f"{mean:.4f} +- {error:.4f}; unpaired it would be +- {apart:.4f}, and the difference would drown"
    return verdict(near(error, truth, 0.01), line, f"the standard error should be {truth:.4f}, yours is {error:.4f}")
