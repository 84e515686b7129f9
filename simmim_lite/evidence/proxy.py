"""Does validation loss tell the score? Ranks of runs (C5), doublings of the length (C7), pairs. No torch here."""

import itertools

import numpy as np
import pandas as pd

from .records import PROBES, SCORES
from .rules import FEW, GATES, MIN_OVERFIT, MIN_RANKED, MIN_ROSE, CannotTell, Rule, Runs, conclude, joined, side
from .stats import Interval, drawn, jackknife, reliability, spearman, t_interval

#: Gaps of validation loss by which pairs are told apart: below a thousandth, the choice should be a coin flip.
GAPS = (0.0, 0.001, 0.002, 0.005, 0.01, np.inf)


def omega(row: dict) -> float:
    """Parameters x images seen / unique images squared of a run, or of a DataFrame of runs (docs/facts.md, 7)."""
    return row["params"] * row["images_seen"] / row["images"] ** 2


def doublings(runs: pd.DataFrame | list[dict], score: str = "linear") -> pd.DataFrame:
    """One row for every two runs of a size, a data level and a seed of which one is twice as long as the other.

    runs: `records.run_rows`, those without the score left out. `loss_change` and `score_change` (0 to 1) are the longer
    run less the shorter; model, params, images, steps, `omega` are the longer one's; `unit`: the cell.
    """
    columns = ["model", "params", "images", "steps", "seed", "unit", "loss_change", "score_change", "omega"]
    runs = _known(runs, score, "val_loss")
    if not len(runs):
        return pd.DataFrame(columns=columns)
    runs = runs.assign(dataset=runs.get("dataset"), omega=omega(runs))
    runs["unit"] = [" ".join(map(str, unit)) for unit in runs[["model", "images", "dataset", "seed"]].values]
    runs = runs.drop_duplicates(["unit", "steps"], keep="last")
    shorter = runs.assign(steps=2 * runs["steps"])[["unit", "steps", *dict.fromkeys(("val_loss", score))]]
    found = runs.merge(shorter, on=["unit", "steps"], suffixes=("", "_shorter"))
    for change, name in (("loss_change", "val_loss"), ("score_change", score)):
        found[change] = found[name].astype(float) - found[f"{name}_shorter"].astype(float)
    return found[columns].sort_values(["params", "images", "steps", "seed"], kind="stable", ignore_index=True)


def turning_points(found: pd.DataFrame) -> dict[str, float | None]:
    """The Omega at which a doubling is as likely to raise the loss (or to lower the score) as not, by logistic
    regression on log Omega; None where it gets no likelier, or turns outside of the doublings there are."""
    turns = {"loss": _turn(found, found["loss_change"] > 0), "score": _turn(found, found["score_change"] < 0)}
    return {of: at if at and found["omega"].min() <= at <= found["omega"].max() else None for of, at in turns.items()}


def _turn(found: pd.DataFrame, hit: pd.Series) -> float | None:
    from scipy.optimize import minimize
    from scipy.special import expit

    hit, x = np.array(hit, bool), np.log(np.array(found["omega"], float))
    if hit.all() or not hit.any():
        return None
    if x[~hit].max() < x[hit].min():
        return float(np.exp((x[~hit].max() + x[hit].min()) / 2))
    if x[hit].max() < x[~hit].min() or np.ptp(x) == 0:
        return None
    z = np.stack([np.ones_like(x), (x - x.mean()) / x.std()], 1)

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        return np.logaddexp(0, z @ beta).sum() - (z @ beta)[hit].sum(), z.T @ (expit(z @ beta) - hit)

    beta = minimize(loss, np.zeros(2), jac=True, options={"gtol": 1e-9}).x
    return float(np.exp(x.mean() - beta[0] / beta[1] * x.std())) if beta[1] > 0 else None


def accuracy(runs: pd.DataFrame | list[dict], score="linear", by="val_loss", among="all") -> pd.DataFrame:
    """The share of pairs of runs in which `by` names the one with the higher score; ties do not count. by: "val_loss"
    or "train_loss" (the lower is better), "params" or "images_seen" (the larger). among: "all" pairs, or those that
    differ in "size" or "length" alone. Index: all pairs, both clean, both overfit, and for losses gaps (gap 0.001 to
    0.002); columns share, low, high (95 %, bootstrap over cells of size x data level), n."""
    frame, found = _known(runs, score, by), {}
    if len(frame):
        x, y = (frame[name].to_numpy(float) for name in (by, score))
        i, j = np.triu_indices(len(frame), 1)
        use = (x[i] != x[j]) & (y[i] != y[j])
        varied = {"all": None, "size": "model", "length": "steps"}[among]
        others = ("dataset", "data", "images", "seed", "model", "steps") if varied else ()
        for name in frame.columns.intersection(others):
            code = pd.factorize(frame[name])[0]
            use &= (code[i] == code[j]) != (name == varied)  # all else that tells runs apart is equal
        i, j = i[use], j[use]
        right = (x[i] - x[j]) * (y[i] - y[j]) * (-1 if by.endswith("loss") else 1) > 0
        gap, (clean, overfit) = np.abs(x[i] - x[j]), (frame["overfit"].eq(flag).to_numpy() for flag in (False, True))
        pairs = {"all pairs": i >= 0, "both clean": clean[i] & clean[j], "both overfit": overfit[i] & overfit[j]}
        for low, high in itertools.pairwise(GAPS) if by.endswith("loss") else ():
            pairs[f"gap {low:g} to {high:g}".replace("inf", "…")] = (gap >= low) & (gap < high)
        found = {name: _share(right, i, j, _cells(frame), which) for name, which in pairs.items() if which.any()}
    return pd.DataFrame(found, ["share", "low", "high", "n"], dtype=float).T


def _known(runs: pd.DataFrame | list[dict], *names: str) -> pd.DataFrame:
    """The trained runs that have all of these."""
    frame = pd.DataFrame(runs)
    return frame[~frame["reference"].eq(True) & frame[[*names]].notna().all(axis=1)] if len(frame) else frame


def _cells(frame: pd.DataFrame) -> np.ndarray:
    """A number for each size and data level."""
    cell = [name for name in ("model", "dataset", "images") if name in frame]
    return frame.groupby(cell, dropna=False, sort=False).ngroup().to_numpy()


def _share(right: np.ndarray, i: np.ndarray, j: np.ndarray, cells: np.ndarray, use: np.ndarray) -> list:
    """Of the chosen pairs the share, its interval when cells are drawn whole with replacement, and their number."""
    right, a, b = right[use], cells[i[use]], cells[j[use]]
    n, share = int(cells.max()) + 1, float(right.mean())
    if len(np.unique([a, b])) < 3:
        return [share, None, None, len(right)]  # one or two cells drawn again and again are no sample
    weights = drawn(range(n))
    tables = (np.bincount(a * n + b, one, n * n).reshape(n, n) for one in (right, np.ones(len(right))))
    hits, total = (np.einsum("rc,cd,rd->r", weights, table, weights) for table in tables)
    return [share, *np.percentile(hits[total > 0] / total[total > 0], [2.5, 97.5]), len(right)]


def rank(rule: Rule, runs: Runs) -> dict:
    """C5a: does validation loss rank the runs of a seed by what their features are worth? C5b: training loss ranks them
    less than validation loss does, once some of them overfit."""
    frame, said = _scored(runs)
    overfit, confidence = frame["overfit"].map(bool).sum() / frame["seed"].nunique(), 0.95
    if difference := rule.id == "C5b":
        if frame["train_loss"].isna().any():
            raise CannotTell("The training losses of these runs are not known")
        if overfit < MIN_OVERFIT:
            raise CannotTell(f"{overfit:.1f} runs of a seed are overfit: the claim needs {MIN_OVERFIT}")
    elif runs.by_seed and not runs.score:
        confidence = GATES[runs.kind].confidence

    def statistic(some: pd.DataFrame) -> float:
        value = spearman(some["val_loss"], some["merit"])
        return spearman(some["train_loss"], some["merit"]) - value if difference else value

    if runs.by_seed:
        values = pd.Series({seed: statistic(some) for seed, some in frame.groupby("seed")})
        interval = t_interval(values, confidence)
    else:
        values, interval = jackknife(lambda index: statistic(frame.iloc[index]), _cells(frame))
    if not np.isfinite([interval.value, *values]).all():
        raise CannotTell("A loss or the score is the same in all runs that are ranked: there is no rank")
    most = 2 if difference else 1
    interval = Interval(*(None if end is None else float(np.clip(end, -most, most)) for end in interval))
    if difference:
        text = f"The Spearman correlation of training loss with the score is {abs(interval.value):.2f} "
        text += f"{side(interval.value)} that of validation loss"
        more, margin = f"; {overfit:.1f} runs of a seed are overfit", f"{rule.margin:.0f}"
    else:
        text = f"Spearman correlation of validation loss with the score over {frame.groupby('seed').size().max()} runs"
        text += f"{' of a seed' if runs.by_seed else f' ({said})'}: {interval.value:+.2f}"
        more, margin = f"; the score is the {said}{_beside(frame)}" if runs.by_seed else "", f"{rule.margin:+.1f}"
    return conclude(rule, runs, values, text, margin, interval=interval, confidence=confidence, more=more)


def _scored(runs: Runs) -> tuple[pd.DataFrame, str]:
    """The runs to rank, with their `merit`, and how it is made."""
    if runs.score:
        frame = runs.frame[runs.frame[runs.score].notna()]
        few = frame.groupby("seed").size().max() if len(frame) else 0
        if few < (MIN_RANKED if runs.by_seed else 8):
            raise CannotTell(f"{few} runs have a score ({SCORES[runs.score]}): too few to be ranked")
        return frame.assign(merit=frame[runs.score]), SCORES[runs.score]
    frame, kind = runs.complete, runs.kind
    gate, labels = GATES[kind], frame["probe_images"].fillna(0).min()
    if frame[list(PROBES)].isna().all(axis=None):
        raise CannotTell("No run has a probe (it needs labelled images)")
    if (most := frame.groupby("seed").size().max()) < MIN_RANKED:
        raise CannotTell(f"A rank needs {MIN_RANKED} runs of a seed, these have {most}")
    shares = {probe: reliability(frame, probe) for probe in PROBES}
    here = ", ".join(f"{PROBES[p]} {share:.2f}" for p, share in shares.items() if share is not None) or "unknown"
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


def _beside(frame: pd.DataFrame) -> str:
    """What C5a prints without deciding by it: both losses among runs that are not overfit, and at the most images."""
    clean, most, parts = frame["overfit"].map(lambda value: not value), frame["images"].max(), []
    for name, use in (("among runs not found overfit", clean), (f"at {most:,} images", frame["images"] == most)):
        seeds = [some for _, some in frame[use].groupby("seed") if len(some) >= 3]
        val, train = ([spearman(s[loss], s["merit"]) for s in seeds] for loss in ("val_loss", "train_loss"))
        if seeds and np.isfinite([*val, *train]).all():
            parts.append(f"{name} {np.mean(val):+.2f}, and {np.mean(train):+.2f} for training loss")
    said = "over all runs it says mostly that runs short of data are worse"
    return f"; beside it, {'; '.join(parts)}: {said}" if parts else ""


def score_change(rule: Rule, runs: Runs) -> dict:
    """C7: what the score does in doublings of the length that raise the validation loss."""
    score, frame = runs.score or "linear", runs.frame
    if frame[score].isna().all():
        raise CannotTell(f"No run has a score ({SCORES[score]}, which needs labelled images)")
    if runs.by_seed:
        frame = runs.complete[runs.complete["images"] <= max(FEW, runs.levels[0])]
    found = doublings(frame, score)
    if not len(found):
        raise CannotTell("No size and data level was run at a length and at twice that length")
    rose, margin, said = found["loss_change"] > 0, rule.margin, ""
    counted = f"{len(found)} doublings of the length"
    if runs.by_seed:
        counted += f" at {joined(sorted(set(found['images'])))} images"
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
    said = f"{100 * margin:+.2f}{said}"
    return conclude(rule, runs, values, text, said, margin=margin, scale=100, unit="doubling")
