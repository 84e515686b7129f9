"""Solutions of all exercises, and a plausible wrong answer to each that asks for more than one number."""

import math
from itertools import combinations

import numpy as np

solution_00_1 = 10 * 8 * 8


def solution_00_2(image, hidden):
    filled = image.copy()
    filled[:, hidden] = image[:, ~hidden].mean(axis=1, keepdims=True)
    return filled


def wrong_00_2(image, hidden):  # the mean of the whole picture: the hidden pixels leak
    filled = image.copy()
    filled[:, hidden] = image.mean(axis=(1, 2))[:, None]
    return filled


def solution_00_3(target, guess, hidden):
    return np.abs(target - guess)[:, hidden].mean()


def wrong_00_3(target, guess, hidden):  # visible pixels count too
    return np.abs(target - guess).mean()


solution_01_1 = (30, 30 / 49)
wrong_01_1 = (int(0.6 * 49), int(0.6 * 49) / 49)  # rounded down, as `int` does


def solution_01_2(mask, factor):
    return mask.repeat(factor, 0).repeat(factor, 1)


def wrong_01_2(mask, factor):  # copies of the whole mask, side by side
    return np.tile(mask, (factor, factor))


solution_01_3 = 0.85
wrong_01_3 = 0.6  # the same ratio


solution_02_1 = (16, 4, 1, 1)
wrong_02_1 = (4, 2, 1, 1)  # windows a side

solution_02_2 = 8 * 128 * 3 * 32**2 + 3 * 32**2


def solution_02_3(x, window):
    height, width, channels = x.shape
    x = x.reshape(height // window, window, width // window, window, channels)
    return x.transpose(0, 2, 1, 3, 4).reshape(-1, window * window, channels)


def wrong_02_3(x, window):  # reshape alone
    return x.reshape(-1, window * window, x.shape[-1])


solution_03_1 = 300 * 64 / 1024


def solution_03_2(step, steps, peak, warmup):
    warm = peak / 200 + (peak - peak / 200) * min(1, step / warmup)
    return warm / 10 if step >= 7 * steps // 8 else warm


def wrong_03_2(step, steps, peak, warmup):  # the drop comes a step late
    warm = peak / 200 + (peak - peak / 200) * min(1, step / warmup)
    return warm / 10 if step > 7 * steps // 8 else warm


def solution_03_3(a, b):
    each = a - b
    return each.mean(), each.std(ddof=1) / math.sqrt(len(each))


def wrong_03_3(a, b):  # as if the images were different ones
    return (a - b).mean(), math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))


solution_04_1 = 500_000 * 2048 / 128_117


def solution_04_2(rows):
    best = {}
    for row in rows:
        if row["steps"] == 500_000 and row["dataset"] != "imagenet22k":
            n = row["images"]
            if n not in best or row["val_loss"] < best[n]["val_loss"]:
                best[n] = row
    return {n: row["model"] for n, row in best.items()}


def wrong_04_2(rows):  # the shorter runs are among them
    rows = [r for r in rows if r["dataset"] != "imagenet22k"]
    return {
        n: min((r["val_loss"], r["model"]) for r in rows if r["images"] == n)[1] for n in {r["images"] for r in rows}
    }


def solution_04_3(rows):
    whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == "imagenet1k-100"}
    return sum(r["val_loss"] - whole[r["model"], r["steps"]] > 0.004 for r in rows)


def wrong_04_3(rows):  # without the margin
    whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == "imagenet1k-100"}
    return sum(r["val_loss"] > whole[r["model"], r["steps"]] for r in rows)


solution_05_1 = 12 * (2 * 16**2 + 2 * 32**2 + 18 * 64**2 + 2 * 128**2)


def solution_05_2(gmac, steps, batch_size):
    return 6 * gmac * 1e9 * steps * batch_size


def wrong_05_2(gmac, steps, batch_size):  # the forward pass alone
    return 2 * gmac * 1e9 * steps * batch_size


def solution_05_3(rows, budget):
    some = [r for r in rows if r["dataset"] == "imagenet1k-100" and r["flops"] <= budget]
    return max(some, key=lambda r: r["finetune"])["model"] if some else None


def wrong_05_3(rows, budget):  # the largest that is affordable
    some = [r for r in rows if r["dataset"] == "imagenet1k-100" and r["flops"] <= budget]
    return max(some, key=lambda r: r["params"])["model"] if some else None


def _counter(counts):
    def rose_and_gained(rows):
        runs = {(r["model"], r["dataset"], r["steps"]): r for r in rows}
        pairs = [(r, runs.get((m, d, 2 * t))) for (m, d, t), r in runs.items()]
        return sum(counts(b["val_loss"] - a["val_loss"], b["finetune"] - a["finetune"]) for a, b in pairs if b)

    return rose_and_gained


solution_06_1 = 49e6 * 500_000 * 2048 / 128_117**2

solution_06_2 = _counter(lambda loss, score: loss > 0 and score > 0)
wrong_06_2 = _counter(lambda loss, score: score > 0)  # all that gained accuracy


def solution_06_3(omega):
    return "green" if omega < 7e5 else "amber" if omega < 4e6 else "red"


def wrong_06_3(omega):  # red as soon as the loss rises
    return "green" if omega < 7e5 else "red"


def _rules(comparable):
    def share(rows, rule):
        pairs = [(a, b) for a, b in combinations(rows, 2) if comparable(a, b)]
        values = [(rule(a) - rule(b)) * (a["finetune"] - b["finetune"]) for a, b in pairs]
        return sum(v > 0 for v in values) / sum(v != 0 for v in values)

    def two_rules(rows):
        return share(rows, lambda r: -r["val_loss"]), share(rows, lambda r: r["params"])

    return two_rules


solution_07_1 = 9


def solution_07_2(losses, scores):
    pairs = [(a, b) for a, b in combinations(zip(losses, scores, strict=True), 2) if a[0] != b[0] and a[1] != b[1]]
    return sum((a[0] < b[0]) == (a[1] > b[1]) for a, b in pairs) / len(pairs)


def wrong_07_2(losses, scores):  # ties are counted
    pairs = list(combinations(zip(losses, scores, strict=True), 2))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs) / len(pairs)


solution_07_3 = _rules(
    lambda a, b: a["dataset"] == b["dataset"] and a["steps"] == b["steps"] and a["model"] != b["model"]
)
wrong_07_3 = _rules(lambda a, b: True)  # all pairs of runs


def _average_precision(envelope):
    def ap(scores, hits, truths):
        pairs = sorted(zip(scores, hits, strict=True), key=lambda pair: -pair[0])
        points, right = [], 0
        for k, (_, hit) in enumerate(pairs, 1):
            right += hit
            points.append((right / truths, right / k))
        total = 0.0
        for k in range(101):
            reached = [p for r, p in points if r >= k / 100 - 1e-12]
            total += (max(reached) if envelope else reached[0]) if reached else 0.0
        return total / 101

    return ap


solution_08_1 = 1.25e-3 * 0.75**25


def solution_08_2(confusion):
    inside = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - inside
    return np.mean(inside[union > 0] / union[union > 0])


def wrong_08_2(confusion):  # a class that never occurs counts as 0
    inside = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - inside
    return np.mean(inside / np.maximum(union, 1))


solution_08_3 = _average_precision(True)
wrong_08_3 = _average_precision(False)  # precision may rise again


solution_09_1 = 0.07 * 2**2 / (1 + 2**2)


def solution_09_2(groups):
    everything = range(len(groups))
    return [
        ([k for k in everything if groups[k] != one], [k for k in everything if groups[k] == one])
        for one in dict.fromkeys(groups)
    ]


def wrong_09_2(groups):  # leaves single runs out
    return [([j for j in range(len(groups)) if j != k], [k]) for k in range(len(groups))]


def solution_09_3(rows, rule):
    lost = []
    for budget in sorted({r["flops"] for r in rows})[1:]:
        options = [r for r in rows if r["flops"] <= budget]
        lost.append(100 * (max(r["finetune"] for r in options) - rule(options)["finetune"]))
    return sum(lost) / len(lost)


def wrong_09_3(rows, rule):  # against the best of all runs
    best = max(r["finetune"] for r in rows)
    budgets = sorted({r["flops"] for r in rows})[1:]
    return sum(100 * (best - rule([r for r in rows if r["flops"] <= b])["finetune"]) for b in budgets) / len(budgets)


solution_10_1 = 100 * (1 - (500_000 + 250_000 / 8 + 125_000 / 8) / 875_000)


def solution_10_2(batch, gpus, fits):
    share = batch // gpus
    return min(k for k in range(1, share + 1) if share % k == 0 and share / k <= fits)


def wrong_10_2(batch, gpus, fits):  # rounded up, whether it divides or not
    return -(-(batch // gpus) // fits)


def solution_10_3(lengths, batch, images_per_second):
    longest = max(lengths)
    steps = longest + sum(steps - 7 * steps // 8 for steps in lengths if steps < longest)
    return steps * batch / images_per_second / 3600


def wrong_10_3(lengths, batch, images_per_second):  # each run alone
    return sum(lengths) * batch / images_per_second / 3600


solution_11_1 = 250_000 * 2048 / 900 / 3600


def solution_11_2(effect, spread):
    return max(2, math.ceil((2.8 * spread / effect) ** 2 - 1e-9))


def wrong_11_2(effect, spread):  # without the square
    return max(2, math.ceil(2.8 * spread / effect))


def solution_11_3(options):
    best = max(options, key=lambda o: o[1])
    return [name for name, value, half in options if value + half >= best[1] - best[2]]


def wrong_11_3(options):  # only the best's interval counts
    best = max(options, key=lambda o: o[1])
    return [name for name, value, _ in options if value >= best[1] - best[2]]
