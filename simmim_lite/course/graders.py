"""The graders of all notebooks. Each takes the answer alone, so that a cell works whatever was run before it; truths of
the studies are computed from the published runs."""

import math
from collections.abc import Iterator

import numpy as np

from ..evidence import published
from ..evidence.proxy import accuracy, doublings
from ..model.masking import MaskGenerator, average_distance, upsample
from .grading import ANY, TEXTS, WrongForm, array, call, case, exercise, number, numbers, of_type, same, wrong


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
    colours = {"truth": image[:, ~hidden].mean(1), "whole": image.mean((1, 2)), "hidden": image[:, hidden].mean(1)}
    colours["grey"] = [image[:, ~hidden].mean()] * 3
    made = {name: np.tile(np.reshape(colour, (3, 1)), hidden.sum()) for name, colour in colours.items()}
    yield case(filled[:, hidden], made.pop("truth"), made)


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
    orders = {"truth": (0, 2, 1, 3, 4), "by_column": (2, 0, 1, 3, 4), "turned": (0, 2, 3, 1, 4)}
    orders["rows"] = (0, 1, 2, 3, 4)
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


@exercise
def best_size_by_data(answer) -> Iterator[dict]:
    found = of_type(call(answer, published.rows()), dict, "a dictionary is wanted, {unique images: model}")
    rows = [r for r in published.rows() if r["on_axis"]]
    longest, levels = [r for r in rows if r["steps"] == 500_000], sorted({r["images"] for r in rows})

    def best(chosen: list[dict], score: str, pick) -> dict:
        return {n: pick((r for r in chosen if r["images"] == n), key=lambda r: r[score])["model"] for n in levels}

    truth = best(longest, "val_loss", min)
    mistakes = {"lengths": best(rows, "val_loss", min), "highest": best(longest, "val_loss", max)}
    mistakes["accuracy"] = best(longest, "finetune", max)
    more = [n for n in found if isinstance(n, (int, float, np.number)) and n not in levels]
    if more and found not in mistakes.values():
        yield wrong("other", images=max(more))
    names = ", ".join(name.removeprefix("swinv2_") for name in truth.values())
    yield case(found, truth, mistakes, names=names, levels=len(levels))


@exercise
def overfit_runs(answer) -> Iterator[dict]:
    found, rows = number(call(answer, published.rows())), published.rows()
    whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == published.WHOLE}
    lowest = {model: min(loss for (m, _), loss in whole.items() if m == model) for model, _ in whole}
    above = np.array([r["val_loss"] - whole[r["model"], r["steps"]] for r in rows])
    truth, rule = int((above > 0.004 + 1e-9).sum()), sum(r["overfit"] for r in rows)
    mistakes = {"any": (above > 0).sum(), "rule": rule, "others": len(rows) - truth, "share": truth / len(rows)}
    mistakes["both"] = (abs(above) > 0.004 + 1e-9).sum()
    mistakes["best"] = sum(r["val_loss"] - lowest[r["model"]] > 0.004 + 1e-9 for r in rows)
    yield case(found, truth, mistakes, runs=len(rows), rule=rule)


@exercise
def training_flops(answer) -> Iterator[dict]:
    truth, missing = 6e9 * 11.87 * 125_000 * 2048, {"sixth": 6, "third": 3, "half": 2, "giga": 1e9, "batch": 2048}
    mistakes = {name: truth / factor for name, factor in missing.items()}
    yield case(number(call(answer, 11.87, 125_000, 2048)), truth, mistakes)


@exercise
def best_under_budget(answer) -> Iterator[dict]:
    rows = [r for r in published.rows() if r["dataset"] == published.WHOLE]
    costs = sorted({r["flops"] for r in rows})
    dear = max(published.rows(), key=lambda r: r["finetune"])["model"]
    for budget in (costs[0], *costs[2::3], costs[-1]):
        some = [r for r in rows if r["flops"] <= budget]
        best = max(some, key=lambda r: r["finetune"])["model"]
        largest = max(some, key=lambda r: (r["params"], r["finetune"]))["model"]
        found = of_type(call(answer, published.rows(), budget), str, "the name of a model is wanted")
        yield case(found, best, {"largest": largest, "dear": dear}, budget=budget)
    try:
        yield case(answer(published.rows(), costs[0] / 2), None, otherwise="nothing")
    except ValueError:
        yield wrong("fails")


@exercise
def rising_both(answer) -> Iterator[dict]:
    some = doublings(published.rows(), published.SCORE)
    rose, gained = some["loss_change"] > 0, some["score_change"] > 0
    found, mistakes = number(call(answer, published.rows())), {"rose": rose.sum(), "gained": gained.sum()}
    yield case(found, int((rose & gained).sum()), mistakes, rose=rose.sum(), doublings=len(some))


@exercise
def traffic_light(answer) -> Iterator[dict]:
    some = doublings(published.rows(), published.SCORE)
    first = some["omega"][some["loss_change"] > 0].min()
    last = some["omega"][some["score_change"] >= 0].max()
    limits = TEXTS["traffic_light"]["limits"].format(first=first, last=last)
    for omega in sorted(some["omega"]):
        truth = "green" if omega < first else "red" if omega > last else "amber"
        facts = {"omega": omega, "first": first, "last": last, "limits": limits}
        found = of_type(call(answer, omega), str, "a colour is wanted, green, amber or red")
        yield case(found, truth, {colour: colour for colour in ("green", "amber", "red")}, **facts)


@exercise
def pairwise_accuracy(answer) -> Iterator[dict]:
    yield case(number(call(answer, [0.4, 0.5, 0.6], [3, 2, 1])), 1, {"turned": 0}, otherwise="easy")
    yield case(number(call(answer, [0.4, 0.4, 0.6], [3, 2, 1])), 1, otherwise="ties")
    rows = [r for r in published.rows() if r["dataset"] == "imagenet1k-10"]
    found = number(call(answer, [r["val_loss"] for r in rows], [r["finetune"] for r in rows]))
    yield case(found, accuracy(rows, published.SCORE)["share"]["all pairs"])


@exercise
def choosing_the_size(answer) -> Iterator[dict]:
    found = numbers(call(answer, published.rows()), "share by lower loss", "share by larger size")
    rows = published.rows()
    kinds = (("val_loss", "size"), ("params", "size"), ("val_loss", "all"))
    loss, size, every = (accuracy(rows, published.SCORE, *kind)["share"]["all pairs"] for kind in kinds)
    mistakes = {"all": (every, ANY), "order": (size, loss)}
    yield case(found, (loss, size), mistakes | {"size_turned": (ANY, 1 - size), "loss_turned": (1 - loss, ANY)})


@exercise
def mean_iou(answer) -> Iterator[dict]:
    yield case(number(call(answer, np.array([[3, 0], [0, 5]]))), 1, otherwise="easy")
    mistakes = {"absent": (6 / 9 + 3 / 6) / 3, "pixels": 9 / 12, "recall": (6 / 8 + 3 / 4) / 2}
    found = number(call(answer, np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])))
    yield case(found, (6 / 9 + 3 / 6) / 2, mistakes)


@exercise
def average_precision(answer) -> Iterator[dict]:
    scores, hits = [0.9, 0.8, 0.7, 0.6], [False, True, True, False]
    truth, raw = (_average_precision(hits, 2, interpolated=how) for how in (True, False))
    yield case(number(call(answer, list(scores), list(hits), 2)), truth, {"raw": raw}, main=truth)
    yield case(number(call(answer, scores[::-1], hits[::-1], 2)), truth, otherwise="order", main=truth)
    missed = _average_precision([True], 4)
    yield case(number(call(answer, [0.9], [True], 4)), missed, otherwise="missed", main=truth)


def _average_precision(hits: list[bool], truths: int, *, interpolated: bool = True) -> float:
    """Of detections in the order of their scores."""
    found = np.cumsum(hits)
    recall, precision = found / truths, found / np.arange(1, len(hits) + 1)
    if interpolated:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[at].mean())


@exercise
def group_folds(answer) -> Iterator[dict]:
    groups = ["a", "b", "a", "c", "b", "a"]
    folds = call(answer, list(groups))
    try:
        found = [(sorted(map(int, train)), sorted(map(int, test))) for train, test in folds]
    except (TypeError, ValueError):
        raise WrongForm("a list of pairs is wanted, (train indices, test indices), a fold a group", folds) from None
    if len(found) == len(groups):
        yield wrong("runs")
    for train, test in found:
        if not set(train + test) <= set(range(6)):
            yield wrong("range")
        if shared := {groups[k] for k in train} & {groups[k] for k in test}:
            yield wrong("shared", group=min(shared))
        if sorted(train + test) != list(range(6)):
            yield wrong("left_out")
    yield case(sorted(k for _, test in found for k in test), list(range(6)))


@exercise
def mean_regret(answer) -> Iterator[dict]:
    rows = [r for r in published.rows() if r["dataset"] == "imagenet1k-10"]
    costs = sorted({r["flops"] for r in rows})

    def rule(options: list[dict]) -> dict:
        return max(options, key=lambda r: (r["steps"], r["params"]))

    def regret(budgets: list[float], best: float | None = None) -> float:
        options = [[r for r in rows if r["flops"] <= budget] for budget in budgets]
        lost = [(best or max(r["finetune"] for r in some)) - rule(some)["finetune"] for some in options]
        return 100 * float(np.mean(lost))

    truth, best = regret(costs[1:]), regret(costs[1:], max(r["finetune"] for r in rows))
    found = number(call(answer, [dict(r) for r in rows], rule))
    yield case(found, truth, {"share": truth / 100, "best": best, "smallest": regret(costs)}, budgets=len(costs) - 1)


@exercise
def parts_needed(answer) -> Iterator[dict]:
    def parts(images: int, fits: int) -> int:
        return next(k for k in range(1, images + 1) if images % k == 0 and images // k <= fits)

    for batch, gpus, fits in ((2048, 8, 64), (2048, 8, 100), (2048, 16, 128), (1536, 8, 50), (2048, 4, 600)):
        share, found = batch // gpus, number(call(answer, batch, gpus, fits))
        mistakes = {"uneven": -(-share // fits), "whole": parts(batch, fits)}
        yield case(found, parts(share, fits), mistakes, batch=batch, gpus=gpus, fits=fits, share=share)


@exercise
def family_hours(answer) -> Iterator[dict]:
    grids = ((125_000, 250_000, 500_000), 2048, 900.0), ((80_000,), 512, 450.0), ((8_000, 64_000), 256, 1000.0)
    for lengths, batch, speed in grids:
        *shorter, longest = lengths
        an_image = batch / speed / 3600  # hours a step
        truth = (longest + sum(steps - 7 * steps // 8 for steps in shorter)) * an_image
        mistakes = {"first": sum(lengths) * an_image, "seconds": truth * 3600, "steps": truth / batch}
        found = number(call(answer, lengths, batch, speed))
        yield case(found, truth, mistakes, lengths=lengths, batch=batch, speed=speed)


@exercise
def seeds_needed(answer) -> Iterator[dict]:
    for effect, spread in ((0.02, 0.008), (0.01, 0.008), (0.05, 0.008), (0.01, 0.02)):
        exact = (2.8 * spread / effect) ** 2
        mistakes = {"root": max(2, math.ceil(exact**0.5)), "single": 1, "exact": exact}
        found = number(call(answer, effect, spread))
        yield case(found, max(2, math.ceil(exact - 1e-9)), mistakes, effect=effect, spread=spread)


@exercise
def not_told_apart(answer) -> Iterator[dict]:
    options = [("a", 84.0, 0.3), ("b", 84.2, 0.2), ("c", 83.9, 0.1), ("d", 83.7, 0.35), ("e", 83.2, 0.2)]
    found, words = call(answer, list(options)), "names are wanted, as a list or a set"
    for name in of_type(found, (set, list, tuple), words):
        of_type(name, str, words)
    low = 84.2 - 0.2  # of the best
    truth = {name for name, value, half in options if value + half >= low}
    mistakes = {"best": {"b"}, "own": {name for name, value, _ in options if value >= low}, "all": set("abcde")}
    yield case(set(found), truth, mistakes, names=", ".join(sorted(truth)))


@exercise
def deciding_end(answer) -> Iterator[dict]:
    both, *rivals = [61.0, 62.5, 60.2, 61.9], [58.1, 59.9, 57.0, 59.2], [52.0, 52.4, 51.1, 53.0]
    for own, foreign in (rivals, rivals[::-1]):
        gain, larger = sorted((np.subtract(both, own), np.subtract(both, foreign)), key=np.mean)
        (mean, half), root = (gain.mean(), 3.182 * gain.std(ddof=1) / 2), 3**0.5 / 2
        mistakes = {"larger": larger.mean() - 3.182 * larger.std(ddof=1) / 2, "upper": mean + half}
        mistakes |= {"population": mean - half * root, "single": mean - 2 * half}
        yield case(number(call(answer, list(both), list(own), list(foreign))), mean - half, mistakes)
