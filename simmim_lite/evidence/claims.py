"""The ten claims on runs: records in, sentences with numbers, intervals and verdicts out. No torch here.

What each claim compares stands in `rules.TABLE`, and nowhere else. One engine serves runs of several seeds, where the
unit is a seed, and runs that were made once, published or imported, where it is a cell.
"""

from collections.abc import Callable, Iterable

import numpy as np

from ..errors import UserError
from . import product
from .contrasts import contrast
from .doublings import doublings
from .findings import CannotTell, Finding, Runs, judge, listed, side, tail, wanted
from .ranks import rank, rank_difference
from .records import SCORES, finetunings, groups, short, table
from .rules import FEW, MIN_ROSE, TABLE, Claim, Rule
from .stats import Interval, t_interval

CONSISTENCY = "one seed: the interval tells consistency over cells, not repetition"


def claims(records: list[dict]) -> list[Claim]:
    """C1 to C9 for every recipe among the records, the recipe with most runs first; none without finished runs.

    Runs of different data, target, image size or recipe are never mixed; failed runs and the order of records do not
    matter.
    """
    return [claim for rows in groups(table(records)).values() for claim in claims_of(rows, records)]


def claims_of(
    rows: list[dict], records: Iterable[dict] = (), *, score: str | None = None, note: str = CONSISTENCY
) -> list[Claim]:
    """C1 to C9 on rows in the columns of `records.table`, all comparable with one another; none without rows.

    records: where fine-tunings are (C8). score: of runs that were not trained here, the score they have; runs then have
    no network at random initialisation to count from, and where they have fewer than three seeds the unit is a cell.
    note: what a sentence about cells says of them.
    """
    rows = [row for row in rows if row["val_loss"] is not None]
    runs = reason = None
    try:
        runs = Runs(rows, list(records), score, note) if rows else None
    except CannotTell as error:
        reason = error
    found = []
    for rule in TABLE if rows else ():
        try:
            if reason:
                raise reason
            finding = MEASURES[rule.measure](rule, runs)
        except CannotTell as error:
            finding = Finding(str(error), error.verdict)
        numbers = dict(zip(("effect", "low", "high"), finding.interval, strict=True))
        numbers |= {"n": finding.n, "margin": rule.margin if finding.margin is None else finding.margin}
        same = {name: rows[0][name] for name in ("data", "target", "image_size", "recipe")}
        about = {"id": rule.id, "statement": rule.statement, "evidence": finding.evidence, "verdict": finding.verdict}
        found.append(Claim(**about, **numbers, **same))
    return found


def _score_change(rule: Rule, runs: Runs) -> Finding:
    """C7: what the score does in doublings of the length that raise the validation loss."""
    import pandas as pd

    score = runs.score or "linear"
    if all(row[score] is None for row in runs.rows):
        raise CannotTell(f"No run has a score ({SCORES[score]}, which needs labelled images)")
    frame = runs.frame
    if runs.by_seed:
        frame = runs.complete[runs.complete["images"] <= max(FEW, runs.levels[0])]
    found = pd.DataFrame(doublings(frame.to_dict("records"), score))
    if not len(found):
        raise CannotTell("No size and data level was run at a length and at twice that length")
    rose, margin = found["loss_change"] > 0, rule.margin
    counted, said = f"{len(found)} doublings of the length", f"margin {100 * margin:+.2f}"
    if runs.by_seed:
        counted += f" at {listed(sorted(set(found['images'])))} images"
        if rose.mean() < MIN_ROSE:
            raise CannotTell(f"Validation loss rose in {rose.sum()} of {counted}: too few")
        values = found.groupby("seed")["score_change"].mean()
        text = f"Over {counted}, {rose.sum()} of which raise the validation loss"
    else:
        if not rose.any() or rose.all():
            raise CannotTell(f"Validation loss rose in {rose.sum()} of {counted}: the claim compares both kinds")
        # a point could not fail where no change is as large: the scale is what a falling loss gains here
        values, margin = found["score_change"][rose], -0.5 * float(found["score_change"][~rose].mean())
        text = f"In the {rose.sum()} of {counted} that raise the validation loss"
        said = f"margin {100 * margin:+.2f}, half of what a doubling that lowers the loss gains"
    interval = t_interval(values)
    text += f", the score ({SCORES[score]}) changes by {100 * interval.value:+.2f} points"
    text += tail(runs, interval, values, found["seed"].unique(), said, scale=100, unit="doubling")
    verdict = judge(rule, values, interval, margin)
    return Finding(text + wanted(runs, values - margin, verdict), verdict, interval, len(values), margin)


def _top1(rule: Rule, runs: Runs) -> Finding:
    """C8: pretrained on little and fine-tuned on few labels, against supervised for as long on many labels."""
    if runs.score:
        raise CannotTell("No supervised networks were trained beside these runs")
    data, own = {row["data"] for row in runs.rows}, {row["key"]: row for row in runs.rows}
    tuned = [t for t in finetunings(runs.records) if t["data"] in data]
    starts = [(own[t["run"]], t) for t in tuned if t["run"] in own]
    if not starts:
        raise CannotTell("No run is fine-tuned (tier laptop does it; it needs labelled images)")
    scratch: dict[tuple, dict[int, float]] = {}
    pretrained: dict[tuple, dict[int, float]] = {}
    for t in tuned:
        if t["scratch"]:
            scratch.setdefault((t["model"], t["labels"], t["steps"]), {})[t["seed"]] = t["top1"]
    for row, t in starts:
        cell = (row["params"], t["model"], row["images"], row["steps"], t["labels"], t["steps"])
        pretrained.setdefault(cell, {})[t["seed"]] = t["top1"]
    pairs = [
        (one, other)
        for one in pretrained
        for other in scratch
        if other[0] == one[1] and other[1] > one[4] and other[2] == one[3] + one[5] and one[2] < runs.levels[-1]
    ]
    if not pairs:
        raise CannotTell(
            "No network of the size is trained on more labels, from scratch, for as long as pretraining and "
            "fine-tuning together"
        )
    # the largest size, the most labels, the fewest images
    one, other = max(pairs, key=lambda pair: (pair[0][0], pair[1][1], -pair[0][2], pair))
    seeds = sorted(pretrained[one].keys() & scratch[other].keys())
    if not seeds:
        raise CannotTell("No seed has both the pretrained and the supervised network")
    values = np.array([pretrained[one][seed] - scratch[other][seed] for seed in seeds])
    interval, (_, model, images, steps, labels, tuning) = t_interval(values), one
    verdict = judge(rule, values, interval)
    text = (
        f"Pretrained for {steps:,} steps on {images:,} images without labels and fine-tuned for {tuning:,} on "
        f"{labels:,} labels, {short(model)} scores {100 * abs(interval.value):.1f} points of top-1 "
        f"{side(interval.value)} the same network trained from scratch on {other[1]:,} labels for {other[2]:,}"
    )
    text += tail(runs, interval, values, seeds, f"margin {100 * rule.margin:+.1f}", "+.1f", scale=100)
    text += f"; top-1: pretrained {_mean(pretrained[one])}"
    for n, length in ((other[1], other[2]), (labels, other[2]), (other[1], tuning)):
        if top := scratch.get((model, n, length)):
            text += f", from scratch on {n:,} labels for {length:,} {_mean(top)}"
    return Finding(text + wanted(runs, values - rule.margin, verdict), verdict, interval, len(values))


def _mean(by_seed: dict[int, float]) -> str:
    return f"{100 * np.mean(list(by_seed.values())):.1f} %"


def _product(rule: Rule, runs: Runs) -> Finding:
    """C9, which `product.claim` tries on runs that are not overfit."""
    try:
        found = product.claim(runs.rows, score=runs.score)
    except UserError as error:  # no run has what a law needs
        raise CannotTell(str(error)) from error
    return Finding(found.evidence, found.verdict, Interval(found.effect, found.low, found.high), found.n)


#: Who computes a rule, by its `measure`.
MEASURES: dict[str, Callable[[Rule, Runs], Finding]] = {
    "loss": contrast,
    "rank": rank,
    "rank difference": rank_difference,
    "score": _score_change,
    "top-1": _top1,
    "product": _product,
}
