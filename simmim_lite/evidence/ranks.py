"""C5a and C5b: how validation and training loss rank the runs of a seed by what their features are worth. No torch."""

from collections.abc import Iterable

import numpy as np

from . import stats
from .findings import CannotTell, Finding, Runs, judge, side, tail, wanted
from .records import PROBES, SCORES
from .rules import GATES, MIN_OVERFIT, MIN_RANKED, Rule
from .stats import Interval, t_interval

_NO_RANK = "A loss or the score is the same in all runs that are ranked: there is no rank"


def rank(rule: Rule, runs: Runs) -> Finding:
    """C5a: does validation loss rank the runs by their score?"""
    frame, said = _scored(runs)
    confidence = GATES[_kind(runs)].confidence if runs.by_seed and not runs.score else 0.95
    values, interval = _compared(runs, frame, lambda some: _rho(some, "val_loss"), 1, confidence)
    verdict, n = judge(rule, values, interval), frame.groupby("seed").size().max()
    text = f"Spearman correlation of validation loss with the score over {n} runs"
    text += f"{' of a seed' if runs.by_seed else f' ({said})'}: {interval.value:+.2f}"
    level = f"{100 * confidence:.0f} %"
    text += tail(runs, interval, values, frame["seed"].unique(), f"margin {rule.margin:+.1f}", level=level)
    text += f"; the score is the {said}{_beside(frame)}" if runs.by_seed else ""
    text += wanted(runs, values - rule.margin, verdict, confidence)
    return Finding(text, verdict, interval, len(values))


def rank_difference(rule: Rule, runs: Runs) -> Finding:
    """C5b: training loss ranks the runs less than validation loss does, once some of them overfit."""
    frame, _ = _scored(runs)
    if frame["train_loss"].isna().any():
        raise CannotTell("The training losses of these runs are not known")
    overfit = frame["overfit"].map(bool).sum() / frame["seed"].nunique()
    if overfit < MIN_OVERFIT:
        raise CannotTell(f"{overfit:.1f} runs of a seed are overfit: the claim needs {MIN_OVERFIT}")
    values, interval = _compared(runs, frame, lambda some: _rho(some, "train_loss") - _rho(some, "val_loss"), 2)
    verdict = judge(rule, values, interval)
    text = f"The Spearman correlation of training loss with the score is {abs(interval.value):.2f} "
    text += f"{side(interval.value)} that of validation loss"
    text += tail(runs, interval, values, frame["seed"].unique(), f"margin {rule.margin:.0f}")
    text += f"; {overfit:.1f} runs of a seed are overfit"
    return Finding(text + wanted(runs, values - rule.margin, verdict), verdict, interval, len(values))


def _compared(runs: Runs, frame, statistic, most: float, confidence: float = 0.95) -> tuple[np.ndarray, Interval]:
    """A statistic by seed, or its pseudo-values by cell, and its interval within +- most."""
    if runs.by_seed:
        values = np.array([statistic(some) for _, some in frame.groupby("seed")])
        interval = t_interval(values, confidence)
    else:
        data = frame["dataset"] if "dataset" in frame else frame["images"]
        units = [f"{m} {d} {n}" for m, d, n in zip(frame["model"], data, frame["images"], strict=True)]
        values, interval = stats.jackknife(lambda index: statistic(frame.iloc[index]), units)
    if not np.isfinite(interval.value) or not np.isfinite(values).all():
        raise CannotTell(_NO_RANK)
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
