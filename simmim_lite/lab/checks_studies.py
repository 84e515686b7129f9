"""The checks of notebooks 04 to 07. Their truths are computed from the published runs."""

import numpy as np

from ..evidence import pairs, published
from ..evidence.doublings import doublings
from ..evidence.records import OVERFIT, core_grid
from .checks import Verdict, call, exercise, near, numbers, right, verdict, wrong

# --- 04_data_scale ------------------------------------------------------------------------------------------------


@exercise("say how many epochs the longest run makes of the smallest data")
def published_epochs(answer: float) -> Verdict:
    """Epochs of 500,000 iterations of batch 2,048 on 128,117 images."""
    truth = 500_000 * 2048 / 128_117
    if near(answer, 500_000 / 128_117):
        return wrong("that is iterations over images, as if a batch held one image: each step draws 2,048")
    if near(answer, 128_117 / 2048, 0.02):
        return wrong("that is the number of steps in one epoch: how often do 500,000 steps go through it?")
    line = f"about {truth:,.0f} times: every image comes back thousands of times, which is where memory begins to pay"
    return verdict(near(answer, truth), line, "images seen are iterations times batch size; divide by unique images")


@exercise("find the best size at each number of unique images")
def best_size_by_data(answer) -> Verdict:
    """A function (published rows) -> {unique images: model of the lowest loss at 500,000 iterations}."""
    rows = published.rows()
    found = dict(call(answer, published.rows()))
    longest = [r for r in rows if r["steps"] == core_grid(rows).steps and r["on_axis"]]

    def best(chosen: list[dict], score: str, pick) -> dict:
        return {n: pick((r for r in chosen if r["images"] == n), key=lambda r: r[score])["model"] for n in levels}

    levels = {r["images"] for r in longest}
    truth = best(longest, "val_loss", min)
    if found == best([r for r in rows if r["on_axis"]], "val_loss", min):
        return wrong(
            "the shorter runs are among yours: at little data they have the lower loss; keep 500,000 iterations"
        )
    if found == best(longest, "val_loss", max):
        return wrong("this is the highest loss at each level: the lowest is the best")
    if found == best(longest, "finetune", max):
        return wrong("this goes by fine-tuning accuracy; the question is about the validation loss, and they differ")
    if set(found) - levels:
        return wrong(
            f"{max(set(found) - levels):,} images are ImageNet-22K: it is no part of ImageNet-1K (on_axis is False)"
        )
    names = ", ".join(truth[n].removeprefix("swinv2_") for n in sorted(levels))
    line = f"from little data to much: {names}. The more data, the larger the size that makes the most of it"
    return verdict(found == truth, line, f"at each of {len(levels)} levels, the model of the lowest val_loss")


@exercise("count the runs that are overfit against the whole of ImageNet-1K")
def overfit_runs(answer) -> Verdict:
    """A function (published rows) -> how many lie more than .004 above the same size and length on all of it."""
    rows = published.rows()
    whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == published.WHOLE}
    above = [r["val_loss"] - whole[r["model"], r["steps"]] for r in rows]
    found = call(answer, published.rows())
    truth = sum(gap > OVERFIT + 1e-9 for gap in above)
    if found != truth and found == sum(gap > 0 for gap in above):
        return wrong("every run that is worse at all was counted; noise alone does that, so the margin is 0.004")
    if found != truth and found == sum(r["overfit"] for r in rows):
        return wrong("that is the whole rule, which also looks at shorter runs of the same data; here it is half of it")
    line = f"{truth} of {len(rows)}; with the other half of the rule (a shorter run does better) "
    line += f"it is {sum(r['overfit'] for r in rows)}"
    return verdict(found == truth, line, "compare each run with the one of equal model and steps on imagenet1k-100")


# --- 05_model_size ------------------------------------------------------------------------------------------------


@exercise("estimate the parameters by the formula")
def parameters_by_formula(answer: float) -> Verdict:
    """12 sum d_s (2^s C)^2 of C = 16, blocks (2, 2, 18, 2)."""
    depths = (2, 2, 18, 2)
    truth = 12 * sum(d * (16 * 2**s) ** 2 for s, d in enumerate(depths))
    if near(answer, 12 * sum(depths) * 16**2):
        return wrong("all blocks were given width 16: the width doubles from stage to stage")
    if near(answer, 12 * sum(d * 16 * 2**s for s, d in enumerate(depths))):
        return wrong("the width was not squared: a matrix of a block has width times width entries")
    line = f"{truth:,}; of these {12 * 18 * 64**2 / truth:.0%} are in the third stage, where 18 of 24 blocks are"
    return verdict(near(answer, truth), line, "widths are 16, 32, 64, 128; sum blocks times width squared, times 12")


@exercise("write the training FLOPs of a run")
def training_flops(answer) -> Verdict:
    """A function (gmac, steps, batch_size) -> 6 x 1e9 x gmac x steps x batch size."""
    found = float(call(answer, 11.87, 125_000, 2048))
    truth = 6e9 * 11.87 * 125_000 * 2048
    cases = (
        (
            truth / 6,
            "a forward pass in multiply-accumulates alone: backward costs about two more, and each is two operations",
        ),
        (truth / 3, "this counts the forward pass only: the backward pass costs about twice as much again"),
        (truth / 2, "a multiply-accumulate is two operations, a multiplication and an addition"),
        (truth / 1e9, "gmac counts in 10⁹: multiply by 1e9"),
        (truth / 2048, "the batch is missing: a step sees batch_size images"),
    )
    for value, case in cases:
        if near(found, value):
            return wrong(case)
    line = f"{truth:.2e} FLOPs: 2 operations, times 3 for forward and backward, times images seen"
    return verdict(near(found, truth), line, "6 times multiply-accumulates of an image, times images seen")


@exercise("choose the best run under a budget")
def best_under_budget(answer) -> Verdict:
    """A function (published rows, budget in FLOPs) -> model of the best affordable run on ImageNet-1K, or None."""
    rows = [r for r in published.rows() if r["dataset"] == published.WHOLE]
    costs = sorted({r["flops"] for r in rows})
    for budget in (costs[0], *costs[2::3], costs[-1]):
        some = [r for r in rows if r["flops"] <= budget]
        best = max(some, key=lambda r: r["finetune"])["model"]
        found = call(answer, published.rows(), budget)
        if found == best:
            continue
        if found == max(some, key=lambda r: (r["params"], r["finetune"]))["model"]:
            return wrong(
                f"under {budget:.1e} FLOPs you chose the largest affordable model; a smaller one, longer, is better"
            )
        if found == max(published.rows(), key=lambda r: r["finetune"])["model"]:
            return wrong(f"{found} costs more than {budget:.1e} FLOPs: look among the runs that cost no more")
        return wrong(f"under {budget:.1e} FLOPs you chose {found}; the highest finetune that is affordable is {best}")
    try:
        nothing = answer(published.rows(), costs[0] / 2)
    except ValueError:
        return wrong("where nothing is affordable your function fails: max() of nothing; return None")
    line = "at equal compute the larger network is not always better: a smaller one has time for more steps"
    return verdict(nothing is None, line, "where nothing is affordable, return None")


# --- 06_schedule --------------------------------------------------------------------------------------------------


@exercise("compute Omega of a run")
def omega_of_a_run(answer: float) -> Verdict:
    """N S / D^2 of 49e6 parameters, 500,000 x 2,048 images seen, 128,117 unique ones."""
    n, seen, d = 49e6, 500_000 * 2048, 128_117
    truth = n * seen / d**2
    if near(answer, n * seen / d):
        return wrong("divide by the unique images twice: capacity per image, times epochs")
    if near(answer, n * 500_000 / d**2):
        return wrong("S counts images seen, not iterations: multiply by the batch size")
    line = f"{truth:.2g}: near where the published scores turn down; this run's loss had turned up long before"
    return verdict(near(answer, truth, 0.02), line, "parameters times images seen, over unique images squared")


@exercise("count the doublings in which loss and accuracy both rose")
def rising_both(answer) -> Verdict:
    """A function (published rows) -> doublings with rising loss and rising accuracy."""
    some = doublings(published.rows(), published.SCORE)
    rose = [d for d in some if d["loss_change"] > 0]
    truth = sum(d["score_change"] > 0 for d in rose)
    found = call(answer, published.rows())
    fell = len(some) - len(rose)
    if found == len(rose) != truth:
        return wrong("these are all doublings whose loss rose: of how many did the accuracy rise as well?")
    if found == truth + fell:
        return wrong("these are all doublings that gained accuracy; in most of them the loss fell")
    line = f"{truth} of the {len(rose)} rises cost no accuracy: a rising loss alone decides nothing"
    return verdict(found == truth, line, f"there are {len(some)} doublings; compare steps with 2 x steps, cell by cell")


@exercise("build a traffic light from the doublings")
def traffic_light(answer) -> Verdict:
    """A function (Omega) -> green | amber | red, by the published doublings."""
    some = doublings(published.rows(), published.SCORE)
    first = min(d["omega"] for d in some if d["loss_change"] > 0)
    last = max(d["omega"] for d in some if d["score_change"] >= 0)
    for d in sorted(some, key=lambda d: d["omega"]):
        truth = "green" if d["omega"] < first else "red" if d["omega"] > last else "amber"
        found = call(answer, d["omega"])
        if found not in ("green", "amber", "red"):
            return wrong(f"at Omega {d['omega']:.1e} it says {found!r}: one of green, amber, red is wanted")
        if found == truth:
            continue
        if found == "green":
            return wrong(
                f"green at Omega {d['omega']:.1e}, where a doubling has raised the loss, or a smaller Omega has"
            )
        if found == "red":
            return wrong(
                f"red at Omega {d['omega']:.1e}, but a doubling at that or a larger Omega did not lose accuracy"
            )
        return wrong(f"amber at Omega {d['omega']:.1e}: by the published doublings it is {truth}")
    return right(f"green below {first:.1e}, red above {last:.1e}. Seen on these runs, and tested on none")


# --- 07_proxy_loss ------------------------------------------------------------------------------------------------


@exercise("count the pairs in which the lower loss is right")
def pairs_right(answer: int) -> Verdict:
    """Losses .40 .42 .44 .46 .48, scores 80, 82, 79, 76, 75."""
    scores = (80, 82, 79, 76, 75)
    truth = sum(a > b for k, a in enumerate(scores) for b in scores[k + 1 :])
    if answer == 10 - truth:
        return wrong("these are the pairs in which the lower loss is wrong")
    if answer == sum(a > b for a, b in zip(scores, scores[1:], strict=False)):
        return wrong("only neighbours were compared: five runs make ten pairs")
    line = f"{truth} of 10: the wrong pair is one of neighbours in loss, as is usual"
    return verdict(answer == truth, line, "for each run, count the runs of higher loss that have a lower score")


@exercise("write pairwise accuracy")
def pairwise_accuracy(answer) -> Verdict:
    """A function (losses, scores) -> share of untied pairs in which the lower loss has the higher score."""
    rows = [r for r in published.rows() if r["dataset"] == "imagenet1k-10"]
    easy = float(call(answer, [0.4, 0.5, 0.6], [3, 2, 1]))
    if near(easy, 0):
        return wrong("a perfect proxy gets 0: the lower loss is right when its score is the higher one")
    if not near(easy, 1):
        return wrong(f"three runs in perfect order give 1, yours says {easy:.3g}")
    ties = float(call(answer, [0.4, 0.4, 0.6], [3, 2, 1]))
    if not near(ties, 1):
        return wrong(
            f"a pair of equal losses was counted ({ties:.2g} where 1 is right): leave ties out of the count, too"
        )
    found = float(call(answer, [r["val_loss"] for r in rows], [r["finetune"] for r in rows]))
    truth = pairs.accuracy(rows, "finetune")["overall"]["share"]
    line = f"on the published runs with a tenth of ImageNet-1K it is {truth:.0%}: worse than a coin"
    return verdict(near(found, truth), line, f"on the nine runs with a tenth of ImageNet-1K it should be {truth:.3f}")


@exercise("compare two rules for choosing the size")
def choosing_the_size(answer) -> Verdict:
    """A function (published rows) -> shares of right choices by (lower loss, larger size)."""
    loss, larger = numbers(call(answer, published.rows()), "share by lower loss", "share by larger size")
    facts = published.facts()
    truth = [facts["size"][by]["share"] for by in ("val_loss", "params")]
    if near(loss, facts["pairs"]["overall"]["share"]):
        return wrong("all pairs of runs were compared: here only those of the same dataset and the same steps count")
    if near(loss, truth[1]) and near(larger, truth[0]):
        return wrong("the two shares are in the wrong order: lower loss first")
    if near(larger, 1 - truth[1]) or near(loss, 1 - truth[0]):
        return wrong("one of the rules is turned round: it should be right more often than a coin")
    line = f"lower loss {truth[0]:.1%}, the larger {truth[1]:.1%}: a rule without any training does as well"
    both = np.allclose([loss, larger], truth, atol=0.002)
    return verdict(
        bool(both), line, "pairs of equal dataset and steps, different model; share in which the rule is right"
    )
