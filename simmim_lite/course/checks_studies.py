"""The graders of notebooks 04 to 11. Truths of the studies are computed from the published runs."""

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from ..evidence import published
from .grading import ANY, TEXTS, WrongForm, call, case, exercise, form_of, is_number, number, numbers, wrong


@exercise
def best_size_by_data(answer) -> Iterator[dict]:
    found = call(answer, published.rows())
    if not isinstance(found, dict):
        yield wrong("form", found=form_of(found))
    rows = [r for r in published.rows() if r["on_axis"]]
    longest, levels = [r for r in rows if r["steps"] == 500_000], sorted({r["images"] for r in rows})

    def best(chosen: list[dict], score: str, pick) -> dict:
        return {n: pick((r for r in chosen if r["images"] == n), key=lambda r: r[score])["model"] for n in levels}

    truth = best(longest, "val_loss", min)
    mistakes = {"lengths": best(rows, "val_loss", min), "highest": best(longest, "val_loss", max)}
    mistakes["accuracy"] = best(longest, "finetune", max)
    more = [n for n in found if is_number(n) and n not in levels]
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
        best, largest = (
            max(some, key=key)["model"] for key in (lambda r: r["finetune"], lambda r: (r["params"], r["finetune"]))
        )
        yield case(call(answer, published.rows(), budget), best, {"largest": largest, "dear": dear}, budget=budget)
    try:
        yield case(answer(published.rows(), costs[0] / 2), None, otherwise="nothing")
    except ValueError:
        yield wrong("fails")


def _doublings() -> list[dict[str, float]]:
    """Omega of the longer run, and what loss and score gain, of every two runs of a cell, one twice as long."""
    runs = {(r["model"], r["dataset"], r["steps"]): r for r in published.rows()}
    pairs = [(r, runs[m, d, 2 * t]) for (m, d, t), r in runs.items() if (m, d, 2 * t) in runs]
    return [
        {"omega": b["params"] * b["images_seen"] / b["images"] ** 2}
        | {"loss": b["val_loss"] - a["val_loss"], "score": b["finetune"] - a["finetune"]}
        for a, b in pairs
    ]


@exercise
def rising_both(answer) -> Iterator[dict]:
    some = _doublings()
    rose, gained = (sum(d[of] > 0 for d in some) for of in ("loss", "score"))
    truth = sum(d["loss"] > 0 and d["score"] > 0 for d in some)
    found = number(call(answer, published.rows()))
    yield case(found, truth, {"rose": rose, "gained": gained}, rose=rose, doublings=len(some))


@exercise
def traffic_light(answer) -> Iterator[dict]:
    some = _doublings()
    first, last = min(d["omega"] for d in some if d["loss"] > 0), max(d["omega"] for d in some if d["score"] >= 0)
    limits = TEXTS["traffic_light"]["limits"].format(first=first, last=last)
    for omega in sorted(d["omega"] for d in some):
        truth = "green" if omega < first else "red" if omega > last else "amber"
        facts = {"omega": omega, "first": first, "last": last, "limits": limits}
        yield case(call(answer, omega), truth, {colour: colour for colour in ("green", "amber", "red")}, **facts)


def _share(rows: list[dict], by: str, equal: tuple[str, ...] = ()) -> float:
    """The share of untied pairs, equal in some fields, in which the lower loss, or the larger, has the higher score."""
    sign = -1 if by == "val_loss" else 1
    pairs = [(a, b) for a, b in combinations(rows, 2) if all(a[name] == b[name] for name in equal)]
    values = np.array([sign * (a[by] - b[by]) * (a["finetune"] - b["finetune"]) for a, b in pairs])
    return float((values > 0).sum() / (values != 0).sum())


@exercise
def pairwise_accuracy(answer) -> Iterator[dict]:
    yield case(number(call(answer, [0.4, 0.5, 0.6], [3, 2, 1])), 1, {"turned": 0}, otherwise="easy")
    yield case(number(call(answer, [0.4, 0.4, 0.6], [3, 2, 1])), 1, otherwise="ties")
    rows = [r for r in published.rows() if r["dataset"] == "imagenet1k-10"]
    found = number(call(answer, [r["val_loss"] for r in rows], [r["finetune"] for r in rows]))
    yield case(found, _share(rows, "val_loss"))


@exercise
def choosing_the_size(answer) -> Iterator[dict]:
    found = numbers(call(answer, published.rows()), "share by lower loss", "share by larger size")
    rows = published.rows()
    loss, size = (_share(rows, by, ("dataset", "steps")) for by in ("val_loss", "params"))
    mistakes = {"all": (_share(rows, "val_loss"), ANY), "order": (size, loss)}
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
        raise WrongForm("a list of pairs is wanted, (train indices, test indices), a fold a group") from None
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
    found = call(answer, list(options))
    if not isinstance(found, (set, list, tuple)) or not all(isinstance(name, str) for name in found):
        yield wrong("form", found=form_of(found))
    low = 84.2 - 0.2  # of the best
    truth = {name for name, value, half in options if value + half >= low}
    mistakes = {"best": {"b"}, "own": {name for name, value, _ in options if value >= low}, "all": set("abcde")}
    yield case(set(found), truth, mistakes, names=", ".join(sorted(truth)))
