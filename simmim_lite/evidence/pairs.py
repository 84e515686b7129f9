"""Which of two runs is better? How often the lower loss names the run with the higher score. No torch here."""

import numpy as np
import pandas as pd

from .records import short
from .stats import drawn

#: Gaps of validation loss by which pairs are told apart: below a thousandth, the choice should be a coin flip.
GAPS = (0.0, 0.001, 0.002, 0.005, 0.01, np.inf)
#: How groups of pairs are called, by the keys of `accuracy`.
GROUPS = {"overall": "all pairs", "non_overfit": "both clean", "overfit": "both overfit"}
#: What pairs differ in alone, by `among`: all else that tells runs apart is equal.
VARIED = {"size": "model", "length": "steps"}
_TOLD_APART = ("dataset", "data", "images", "seed", "model", "steps")


def accuracy(runs: pd.DataFrame | list[dict], score="linear", by="val_loss", among="all") -> dict:
    """The share of pairs of runs in which `by` names the one with the higher score.

    by: "val_loss" or "train_loss" (the lower is taken to be better), "params" or "images_seen" (the larger).
    among: "all" pairs, "size" (pairs that differ in model size alone), "length" (in iterations alone).
    Returns overall, non_overfit (both runs are not) and overfit (both are), each a dict of share, low, high (95 %,
    bootstrap over cells of size x data level) and n pairs, or None without pairs; and by_gap, a list of
    such with `gap` (from, to), for losses. Pairs that are equal in one of the two do not count.
    """
    if among not in ("all", *VARIED):
        raise ValueError(f"among is {among!r}: give all, size or length")
    frame = _known(runs, score, by)
    if not len(frame):
        return dict.fromkeys(GROUPS) | {"by_gap": []}
    x, y = (frame[name].to_numpy(float) for name in (by, score))
    i, j = np.triu_indices(len(frame), 1)
    use = (x[i] != x[j]) & (y[i] != y[j])
    for name in _TOLD_APART if among != "all" else ():
        code = _codes(frame, name)
        use &= (code[i] == code[j]) != (name == VARIED[among])
    i, j = i[use], j[use]
    right = (x[i] - x[j]) * (y[i] - y[j]) * (-1 if by.endswith("loss") else 1) > 0
    cells, gap = _codes(frame, "model", "dataset", "images"), np.abs(x[i] - x[j])
    clean, overfit = (frame["overfit"].eq(flag).to_numpy() for flag in (False, True))  # of some it is not known
    both = {"overall": i >= 0, "non_overfit": clean[i] & clean[j], "overfit": overfit[i] & overfit[j]}
    found = {name: _share(right, i, j, cells, which) for name, which in both.items()}
    found["by_gap"] = []
    for low, high in zip(GAPS, GAPS[1:], strict=False) if by.endswith("loss") else ():
        if share := _share(right, i, j, cells, (gap >= low) & (gap < high)):
            found["by_gap"].append(share | {"gap": (low, None if np.isinf(high) else high)})
    return found


def shares(found: dict[str, dict]) -> pd.DataFrame:
    """What `accuracy` found by source, as rows for `figures.intervals`: per cent, groups without pairs left out."""
    lines = [
        {"source": source, "name": f"{source}, {name}", "n": some[group]["n"]}
        | {"value": 100 * some[group]["share"]}
        | {end: None if some[group][end] is None else 100 * some[group][end] for end in ("low", "high")}
        for source, some in found.items()
        for group, name in GROUPS.items()
        if some.get(group)
    ]
    return pd.DataFrame(lines)


def misleading(runs: pd.DataFrame | list[dict], score: str = "linear", top: int = 10) -> pd.DataFrame:
    """The pairs in which the lower validation loss misleads most, one a pair of cells, the largest loss of score first.

    Columns: picked and better (the run of lower loss, the run of higher score, by name), loss_gap (how much lower
    the picked one's loss is), score_lost (0 to 1), picked_overfit, better_overfit.
    """
    columns = ["picked", "picked_overfit", "better", "better_overfit", "loss_gap", "score_lost"]
    frame = _known(runs, score, "val_loss")
    if not len(frame):
        return pd.DataFrame(columns=columns)
    frame = frame.assign(score=frame[score], name=[run_name(row) for row in frame.to_dict("records")])
    frame = frame[["name", "model", "images", "steps", "key", "overfit", "val_loss", "score"]].add_prefix("picked_")
    pairs = frame.merge(frame.rename(columns=lambda name: name.replace("picked", "better")), how="cross")
    pairs["loss_gap"] = pairs["better_val_loss"] - pairs["picked_val_loss"]
    pairs["score_lost"] = pairs["better_score"] - pairs["picked_score"]
    pairs = pairs[(pairs["loss_gap"] > 0) & (pairs["score_lost"] > 0)]
    pairs = pairs.sort_values(["score_lost", "picked_key", "better_key"], ascending=[False, True, True])
    # the same two cells by another seed teach nothing new
    cells = [f"{run}_{name}" for run in ("picked", "better") for name in ("model", "images", "steps")]
    pairs = pairs.drop_duplicates(cells).head(top).rename(columns={"picked_name": "picked", "better_name": "better"})
    return pairs[columns].reset_index(drop=True)


def run_name(row: dict) -> str:
    """A run by name: `pico, 64 images, 1,000 steps, seed 2`."""
    name = f"{short(row['model'])}, {row['images']:,} images, {row['steps']:,} steps"
    return name if row["data"] == "published" else f"{name}, seed {row['seed']}"


def _known(runs: pd.DataFrame | list[dict], *names: str) -> pd.DataFrame:
    """The trained runs that have all of these."""
    frame = pd.DataFrame(runs)
    return frame[~frame["reference"].eq(True) & frame[[*names]].notna().all(axis=1)] if len(frame) else frame


def _codes(frame: pd.DataFrame, *names: str) -> np.ndarray:
    """A number for each different combination of these columns (of those there are)."""
    there = [name for name in names if name in frame]
    return frame.groupby(there, dropna=False, sort=False).ngroup().to_numpy() if there else np.zeros(len(frame), int)


def _share(right: np.ndarray, i: np.ndarray, j: np.ndarray, cells: np.ndarray, use: np.ndarray) -> dict | None:
    """Share of the chosen pairs, and its interval when cells are drawn whole with replacement."""
    if not use.any():
        return None
    right, a, b = right[use], cells[i[use]], cells[j[use]]
    n_cells = int(cells.max()) + 1
    hits, counts = np.zeros((n_cells, n_cells)), np.zeros((n_cells, n_cells))
    np.add.at(hits, (a, b), right)
    np.add.at(counts, (a, b), 1)
    found = {"share": float(right.mean()), "low": None, "high": None, "n": int(len(right))}
    if len(np.unique(np.concatenate([a, b]))) < 3:
        return found  # one or two cells drawn again and again are no sample
    weights = drawn(n_cells).astype(float)
    total = np.einsum("rc,cd,rd->r", weights, counts, weights)
    shares = np.einsum("rc,cd,rd->r", weights, hits, weights)[total > 0] / total[total > 0]
    low, high = np.percentile(shares, [2.5, 97.5])
    return found | {"low": float(low), "high": float(high)}
