"""The ten claims on runs: records in, sentences with numbers, intervals and verdicts out. No torch here.

What each claim compares stands in `rules.TABLE`, and nowhere else. A measure finds its values by unit (a seed, or a
cell of runs that were made once); `findings.conclude` makes interval, verdict and sentence of them.
"""

from collections.abc import Callable, Iterable

import numpy as np

from ..errors import UserError
from . import product, stats
from .contrasts import contrast
from .doublings import doublings
from .findings import CannotTell, Finding, Runs, conclude, listed, side
from .records import PROBES, SCORES, finetunings, groups, short, table
from .rules import FEW, GATES, MIN_OVERFIT, MIN_RANKED, MIN_ROSE, TABLE, Claim, Rule
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
    if not rows:
        return []
    same = {name: rows[0][name] for name in ("data", "target", "image_size", "recipe")}
    runs = smoke = None
    try:
        runs = Runs(rows, list(records), score, note)
    except CannotTell as error:
        smoke = Finding(str(error), error.verdict)
    found = []
    for rule in TABLE:
        try:
            finding = smoke or MEASURES[rule.measure](rule, runs)
        except CannotTell as error:
            finding = Finding(str(error), error.verdict)
        numbers = dict(zip(("effect", "low", "high"), finding.interval, strict=True)) | {"n": finding.n}
        numbers |= {"margin": rule.margin if finding.margin is None else finding.margin, "verdict": finding.verdict}
        found.append(Claim(id=rule.id, statement=rule.statement, evidence=finding.evidence, **numbers, **same))
    return found


def _rank(rule: Rule, runs: Runs) -> Finding:
    """C5a: does validation loss rank the runs of a seed by what their features are worth?"""
    frame, said = _scored(runs)
    confidence = GATES[_kind(runs)].confidence if runs.by_seed and not runs.score else 0.95
    values, interval = _by_unit(runs, frame, lambda some: _rho(some, "val_loss"), 1, confidence)
    text = f"Spearman correlation of validation loss with the score over {frame.groupby('seed').size().max()} runs"
    text += f"{' of a seed' if runs.by_seed else f' ({said})'}: {interval.value:+.2f}"
    more = f"; the score is the {said}{_beside(frame)}" if runs.by_seed else ""
    options = {"interval": interval, "confidence": confidence, "more": lambda verdict: more}
    return conclude(rule, runs, values, text, f"{rule.margin:+.1f}", seeds=frame["seed"].unique(), **options)


def _rank_difference(rule: Rule, runs: Runs) -> Finding:
    """C5b: training loss ranks the runs less than validation loss does, once some of them overfit."""
    frame, _ = _scored(runs)
    if frame["train_loss"].isna().any():
        raise CannotTell("The training losses of these runs are not known")
    overfit = frame["overfit"].map(bool).sum() / frame["seed"].nunique()
    if overfit < MIN_OVERFIT:
        raise CannotTell(f"{overfit:.1f} runs of a seed are overfit: the claim needs {MIN_OVERFIT}")
    values, interval = _by_unit(runs, frame, lambda some: _rho(some, "train_loss") - _rho(some, "val_loss"), 2)
    text = f"The Spearman correlation of training loss with the score is {abs(interval.value):.2f} "
    text += f"{side(interval.value)} that of validation loss"
    options = {"interval": interval, "more": lambda verdict: f"; {overfit:.1f} runs of a seed are overfit"}
    return conclude(rule, runs, values, text, f"{rule.margin:.0f}", seeds=frame["seed"].unique(), **options)


def _by_unit(runs: Runs, frame, statistic, most: float, confidence: float = 0.95) -> tuple[np.ndarray, Interval]:
    """A statistic by seed, or its pseudo-values by cell, and its interval within +- most."""
    if runs.by_seed:
        values = np.array([statistic(some) for _, some in frame.groupby("seed")])
        interval = t_interval(values, confidence)
    else:
        data = frame["dataset"] if "dataset" in frame else frame["images"]
        units = [f"{m} {d} {n}" for m, d, n in zip(frame["model"], data, frame["images"], strict=True)]
        values, interval = stats.jackknife(lambda index: statistic(frame.iloc[index]), units)
    if not np.isfinite([interval.value, *values]).all():
        raise CannotTell("A loss or the score is the same in all runs that are ranked: there is no rank")
    ends = (None if end is None else float(np.clip(end, -most, most)) for end in interval[1:])
    return values, Interval(interval.value, *ends)


def _kind(runs: Runs) -> str:
    return "scenes" if runs.rows[0]["data"] == "scenes" else "photographs"


def _rho(frame, loss: str) -> float:
    return stats.spearman(frame[loss], frame["merit"])


def _scored(runs: Runs):
    """The runs to rank, with their `merit`, and how it is made."""
    if runs.score:
        frame = runs.frame[runs.frame[runs.score].notna()]
        few = frame.groupby("seed").size().max() if len(frame) else 0
        if few < (MIN_RANKED if runs.by_seed else 8):
            raise CannotTell(f"{few} runs have a score ({SCORES[runs.score]}): too few to be ranked")
        return frame.assign(merit=frame[runs.score]), SCORES[runs.score]
    frame, kind = runs.complete, _kind(runs)
    gate, labels = GATES[kind], frame["probe_images"].fillna(0).min()
    if all(frame[probe].isna().all() for probe in PROBES):
        raise CannotTell("No run has a probe (it needs labelled images)")
    if (most := frame.groupby("seed").size().max()) < MIN_RANKED:
        raise CannotTell(f"A rank needs {MIN_RANKED} runs of a seed, these have {most}")
    here = _reliabilities(frame, PROBES)
    if labels < gate.labels:
        raise CannotTell(
            f"On {kind} a probe ranks runs where it has {gate.labels:,} labels or more, here it has {labels:,.0f}: "
            f"with so few, seeds moved it more than cells on design data (share of variance between cells here: {here})"
        )
    probes = [probe for probe in gate.probes if frame[probe].notna().all()]
    if not probes:
        raise CannotTell(f"No run has a {' or '.join(PROBES[probe] for probe in gate.probes)}")
    merits = []
    for probe in probes:
        untrained = (frame[probe] - frame[f"{probe}_lift"]).groupby(frame["model"]).mean()
        if untrained.isna().any():
            raise CannotTell("Missing runs: the networks at random initialisation (0 steps), from which lift counts")
        merits.append((frame[probe] - frame["model"].map(untrained)).groupby(frame["seed"]).rank())
    said = f"mean rank of {' and '.join(PROBES[probe] for probe in probes)}, each less the mean of untrained networks"
    known = ", ".join(f"{PROBES[probe]} {value:.2f}" for probe, value in gate.reliability.items())
    said += f" of the size; reliability (share of variance between cells) on design data, {gate.source}: {known}"
    return frame.assign(merit=sum(merits) / len(merits)), f"{said}; in these runs: {here}"


def _reliabilities(frame, scores: Iterable[str]) -> str:
    parts = []
    for score in scores:
        some = frame[frame[score].notna()]
        cells = zip(some["images"], some["steps"], strict=True)
        known = stats.reliability(zip(some["model"], cells, some[score], strict=True))
        parts += [f"{SCORES[score]} {known:.2f}"] if known is not None else []
    return ", ".join(parts) or "unknown"


def _beside(frame) -> str:
    """What C5a prints without deciding by it: both losses among runs that are not overfit, and at the most images."""
    clean, most = frame["overfit"].map(lambda value: not value), frame["images"].max()
    parts = []
    for name, use in (("among runs not found overfit", clean), (f"at {most:,} images", frame["images"] == most)):
        seeds = [some for _, some in frame[use].groupby("seed") if len(some) >= 3]
        val, train = ([_rho(some, loss) for some in seeds] for loss in ("val_loss", "train_loss"))
        if seeds and np.isfinite([*val, *train]).all():
            parts.append(f"{name} {np.mean(val):+.2f}, and {np.mean(train):+.2f} for training loss")
    if not parts:
        return ""
    return f"; beside it, {'; '.join(parts)}: over all runs it says mostly that runs short of data are worse"


def _score_change(rule: Rule, runs: Runs) -> Finding:
    """C7: what the score does in doublings of the length that raise the validation loss."""
    score = runs.score or "linear"
    if all(row[score] is None for row in runs.rows):
        raise CannotTell(f"No run has a score ({SCORES[score]}, which needs labelled images)")
    frame = runs.frame
    if runs.by_seed:
        frame = runs.complete[runs.complete["images"] <= max(FEW, runs.levels[0])]
    found = doublings(frame, score)
    if not len(found):
        raise CannotTell("No size and data level was run at a length and at twice that length")
    rose, margin = found["loss_change"] > 0, rule.margin
    counted, said = f"{len(found)} doublings of the length", ""
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
        said = ", half of what a doubling that lowers the loss gains"
    text += f", the score ({SCORES[score]}) changes by {100 * float(np.mean(values)):+.2f} points"
    options = {"margin": margin, "scale": 100, "unit": "doubling", "seeds": found["seed"].unique()}
    return conclude(rule, runs, values, text, f"{100 * margin:+.2f}{said}", **options)


def _top1(rule: Rule, runs: Runs) -> Finding:
    """C8: pretrained on little and fine-tuned on few labels, against supervised for as long on many labels."""
    import pandas as pd

    def by_seed(frame, *names: str) -> dict[tuple, pd.Series]:
        cells = frame.groupby(list(names))
        return {cell: some.drop_duplicates("seed", keep="last").set_index("seed")["top1"] for cell, some in cells}

    if runs.score:
        raise CannotTell("No supervised networks were trained beside these runs")
    columns = ["model", "data", "labels", "steps", "seed", "scratch", "run", "top1"]
    tuned = pd.DataFrame(finetunings(runs.records), columns=columns)
    tuned = tuned[tuned["data"].isin(runs.frame["data"])]
    own = runs.frame[["key", "params", "images", "steps"]].rename(columns={"key": "run", "steps": "before"})
    pretrained = by_seed(tuned.merge(own, on="run"), "params", "model", "images", "before", "labels", "steps")
    scratch = by_seed(tuned[tuned["scratch"].eq(True)], "model", "labels", "steps")
    if not pretrained:
        raise CannotTell("No run is fine-tuned (tier laptop does it; it needs labelled images)")
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
    values, (_, model, images, before, labels, steps), (_, many, long) = pretrained[one] - scratch[other], one, other
    if not len(values := values.dropna()):
        raise CannotTell("No seed has both the pretrained and the supervised network")
    value = float(np.mean(values))
    text = (
        f"Pretrained for {before:,} steps on {images:,} images without labels and fine-tuned for {steps:,} on "
        f"{labels:,} labels, {short(model)} scores {100 * abs(value):.1f} points of top-1 {side(value)} the same "
        f"network trained from scratch on {many:,} labels for {long:,}"
    )
    more = f"; top-1: pretrained {100 * pretrained[one].mean():.1f} %"
    for n, length in ((many, long), (labels, long), (many, steps)):
        if (model, n, length) in scratch:
            more += f", from scratch on {n:,} labels for {length:,} {100 * scratch[model, n, length].mean():.1f} %"
    options = {"seeds": values.index, "form": "+.1f", "scale": 100, "more": lambda verdict: more}
    return conclude(rule, runs, values, text, f"{100 * rule.margin:+.1f}", **options)


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
    "rank": _rank,
    "rank difference": _rank_difference,
    "score": _score_change,
    "top-1": _top1,
    "product": _product,
}
