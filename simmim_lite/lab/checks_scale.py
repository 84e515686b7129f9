"""The checks of notebook 10. Their truths are computed."""

from .checks import Verdict, call, exercise, near, right, verdict, wrong

LENGTHS = (125_000, 250_000, 500_000)


def _shared(lengths: tuple[int, ...]) -> int:
    """Steps of lengths off one trunk: the longest, and the last eighth of each other."""
    longest = max(lengths)
    return longest + sum(steps - 7 * steps // 8 for steps in lengths if steps < longest)


@exercise("compute what sharing a trunk saves")
def trunk_saves(answer: float) -> Verdict:
    """The share of steps saved, in %, by lengths 125,000, 250,000 and 500,000 off one trunk."""
    alone, shared = sum(LENGTHS), _shared(LENGTHS)
    truth = 100 * (1 - shared / alone)
    if near(answer, truth / 100):
        return wrong("that is the share as a fraction: times 100 for per cent")
    if near(answer, 100 * shared / alone):
        return wrong("that is what is still to be trained; what is saved is the rest")
    if near(answer, 100 * (1 - max(LENGTHS) / alone)):
        return wrong("the branches are missing: each shorter run trains its own last eighth, at a tenth of the rate")
    if near(answer, 100 * (1 - (max(LENGTHS) + 7 * (LENGTHS[0] + LENGTHS[1]) / 8) / alone)):
        return wrong("turned round: a shorter run shares seven eighths with the trunk, and trains one eighth itself")
    line = f"{truth:.1f} %: {alone - shared:,} of {alone:,} steps, and the shared ones are equal to the digit"
    return verdict(near(answer, truth), line, "trained: 500,000, and an eighth each of 125,000 and of 250,000")


@exercise("find the parts that a share of the batch is cut into")
def parts_needed(answer) -> Verdict:
    """A function (batch, gpus, fits) -> the fewest equal parts of a GPU's share that hold at most `fits` images."""
    for batch, gpus, fits in ((2048, 8, 64), (2048, 8, 100), (2048, 16, 128), (1536, 8, 50), (2048, 4, 600)):
        share = batch // gpus
        truth = next(k for k in range(1, share + 1) if share % k == 0 and share // k <= fits)
        found = call(answer, batch, gpus, fits)
        if found == truth:
            continue
        if found == -(-share // fits):
            return wrong(f"{share} images do not divide into {found} equal parts: take the next number that divides")
        if found == next((k for k in range(1, batch + 1) if batch % k == 0 and batch // k <= fits), 0):
            return wrong("the whole batch was cut up: each GPU has only its share of it")
        return wrong(f"batch {batch} on {gpus} GPUs with {fits} images at a time needs {truth} parts, not {found}")
    return right("gradients of the parts add up to those of the whole: the loss agrees to rounding, memory shrinks")


@exercise("turn images a second into GPU hours of a family of runs")
def family_hours(answer) -> Verdict:
    """A function (lengths, batch, images a second) -> GPU hours of runs that share a trunk; validation left out."""
    for lengths, batch, speed in ((LENGTHS, 2048, 900.0), ((80_000,), 512, 450.0), ((8_000, 64_000), 256, 1000.0)):
        truth = _shared(lengths) * batch / speed / 3600
        found = float(call(answer, tuple(lengths), batch, speed))
        if near(found, truth):
            continue
        if near(found, sum(lengths) * batch / speed / 3600):
            return wrong("every length was trained from its first step: shorter ones branch off at seven eighths")
        if near(found, truth * 3600):
            return wrong("these are seconds: 3,600 make an hour")
        if near(found, truth / batch):
            return wrong("a step is a batch of images, and the speed counts images")
        return wrong(f"lengths {lengths} of batch {batch} at {speed:g} images a second take {truth:.4g} hours")
    return right("what the table of costs does for every family; it counts validation too, a third of a step an image")
