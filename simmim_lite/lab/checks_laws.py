"""The checks of notebooks 09 and 11. Their truths are computed."""

import math

import numpy as np

from ..evidence import published, regret
from .checks import Verdict, call, exercise, near, right, verdict, wrong

# --- 09_scaling_law -----------------------------------------------------------------------------------------------


@exercise("compute what overfitting adds to the loss")
def overfitting_term(answer: float) -> Verdict:
    """C h / (1 + h), h = (Omega / Omega0)^p, of C .07, Omega 5.4e6, Omega0 2.7e6, p 2."""
    h = 2.0**2
    truth = 0.07 * h / (1 + h)
    if near(answer, 0.07 * h):
        return wrong("this is C h, which grows without end: overfitting saturates, so divide by 1 + h")
    if near(answer, 0.07 * 2 / 3):
        return wrong("the exponent is missing: h is (Omega / Omega0) to the power p")
    if near(answer, 0.07 / (1 + h)):
        return wrong("this is C / (1 + h), which falls with Omega: the numerator is h")
    line = f"{truth:.3f}: at twice Omega0 four fifths of all that overfitting can cost are already paid"
    return verdict(near(answer, truth), line, "first h = (5.4e6 / 2.7e6)^2, then 0.07 h / (1 + h)")


@exercise("write folds that hold whole groups out")
def group_folds(answer) -> Verdict:
    """A function (groups: list of names) -> list of (train indices, test indices), a fold a group."""
    groups = ["a", "b", "a", "c", "b", "a"]
    found = [(sorted(map(int, train)), sorted(map(int, test))) for train, test in call(answer, list(groups))]
    if len(found) == len(groups):
        return wrong("there is a fold for every run: other runs of its group stay in the fit and give its answer away")
    for train, test in found:
        if shared := {groups[k] for k in train} & {groups[k] for k in test}:
            return wrong(f"group {min(shared)} is in the fit and in the test of one fold: hold all of its runs out")
        if sorted(train + test) != list(range(len(groups))):
            return wrong("a fold leaves runs out altogether: what is not tested is fitted on")
    tested = sorted(k for _, test in found for k in test)
    line = "an error on a size that no fit has seen: the question a planner is asked"
    return verdict(tested == list(range(len(groups))), line, "every run must be tested exactly once, with its group")


@exercise("compute the mean regret of a rule")
def mean_regret(answer) -> Verdict:
    """A function (rows of one data level, rule(options) -> row) -> mean regret in points over its budgets."""
    rows = [r for r in published.rows() if r["dataset"] == "imagenet1k-10"]
    problems = regret.problems(rows)

    def rule(options):
        return max(options, key=lambda r: (r["steps"], r["params"]))

    truth = float(np.mean([p.regret(rule(p.options)) for p in problems]))
    found = float(call(answer, [dict(r) for r in rows], rule))
    if near(found, truth / 100):
        return wrong("a score of 0.01 is one point: times 100")
    best = max(r["finetune"] for r in rows)
    if near(found, float(np.mean([100 * (best - rule(p.options)["finetune"]) for p in problems])), 0.005):
        return wrong("the pick was compared with the best of all runs: no rule can pick what the budget does not allow")
    costs = sorted({r["flops"] for r in rows})
    every = [[r for r in rows if r["flops"] <= cost] for cost in costs]
    if near(found, float(np.mean([100 * (max(r["finetune"] for r in o) - rule(o)["finetune"]) for o in every])), 0.005):
        return wrong("the smallest budget was counted too: with one option there is nothing to choose")
    line = f"{truth:.2f} points: with a tenth of ImageNet-1K, the longest run that one can afford is not the best"
    return verdict(near(found, truth), line, f"over the {len(problems)} budgets of these rows it should be {truth:.3f}")


# --- 11_your_study ------------------------------------------------------------------------------------------------


@exercise("turn iterations into GPU hours")
def gpu_hours(answer: float) -> Verdict:
    """250,000 iterations of batch 2,048 at 900 images a second."""
    truth = 250_000 * 2048 / 900 / 3600
    if near(answer, 250_000 / 900 / 3600):
        return wrong("a step is a batch of 2,048 images, and the speed counts images")
    if near(answer, truth * 3600):
        return wrong("these are seconds: 3,600 make an hour")
    if near(answer, truth / 8):
        return wrong("that is the time on eight GPUs; GPU hours are counted over all of them")
    line = f"{truth:.0f} GPU hours, however many GPUs share them. Only a measured speed makes this more than a guess"
    return verdict(near(answer, truth), line, "images seen, over images a second, over seconds an hour")


@exercise("say how many seeds an effect needs")
def seeds_needed(answer) -> Verdict:
    """A function (effect, spread) -> the fewest seeds n with 2.8 spread / sqrt(n) <= effect, at least 2."""
    for effect, spread in ((0.02, 0.008), (0.01, 0.008), (0.05, 0.008), (0.01, 0.02)):
        truth = max(2, math.ceil((2.8 * spread / effect) ** 2 - 1e-9))
        found = call(answer, effect, spread)
        if found == truth:
            continue
        if found == max(2, math.ceil(2.8 * spread / effect)) and found != truth:
            return wrong("the root is missing: twice as sharp takes four times the seeds, not twice")
        if found == max(1, math.ceil((2.8 * spread / effect) ** 2 - 1e-9)):
            return wrong("a single seed was said to do: without a second one the spread cannot be seen")
        if isinstance(found, float) and near(found, (2.8 * spread / effect) ** 2):
            return wrong("seeds come whole: round up")
        return wrong(f"an effect of {effect} at a spread of {spread} needs {truth} seeds, not {found}")
    return right("seeds grow with the square of spread over effect: below some effect no pilot can answer")


@exercise("find the options that cannot be told from the best")
def not_told_apart(answer) -> Verdict:
    """A function (options: (name, value, half width), higher is better) -> names whose interval overlaps the best's."""
    options = [("a", 84.0, 0.3), ("b", 84.2, 0.2), ("c", 83.9, 0.1), ("d", 83.7, 0.35), ("e", 83.2, 0.2)]
    best = max(options, key=lambda o: o[1])
    truth = {name for name, value, half in options if value + half >= best[1] - best[2]}
    found = set(call(answer, list(options)))
    if found == {best[0]}:
        return wrong("this is the best prediction alone: whose intervals reach into its interval?")
    if found == {name for name, value, _ in options if value >= best[1] - best[2]}:
        return wrong("the other options' own intervals were forgotten: d may be as good as the low end of b's")
    if found == {name for name, _, _ in options}:
        return wrong("e's interval ends below that of the best begins: it can be told apart")
    line = f"{', '.join(sorted(truth))}: a plan names this set, and then the cheapest of it is worth a thought"
    return verdict(found == truth, line, "the interval of an option is value plus and minus its half width; best's too")
