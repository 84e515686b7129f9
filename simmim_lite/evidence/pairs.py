"""Which of two runs is better? How often the lower loss names the run with the higher score. No torch here."""

from typing import TYPE_CHECKING

import numpy as np

from .records import short, trained
from .stats import drawn

if TYPE_CHECKING:
    import pandas as pd

#: Gaps of validation loss by which pairs are told apart: below a thousandth, the choice should be a coin flip.
GAPS = (0.0, 0.001, 0.002, 0.005, 0.01, np.inf)
SAME = ("dataset", "data", "images")


def accuracy(rows: list[dict], score: str = "linear", by: str = "val_loss", among: str = "all") -> dict:
    """The share of pairs of runs in which `by` names the one with the higher score.

    by: "val_loss" or "train_loss" (the lower is taken to be better), "params" or "images_seen" (the larger).
    among: "all" pairs, "size" (pairs that differ in model size alone), "length" (in iterations alone).
    Returns overall, non_overfit (both runs are not) and overfit (both are), each a dict of share, low, high (95 %,
    bootstrap over cells of size x data level) and n pairs, or None without pairs; and by_gap, a list of
    such with `gap` (from, to), for losses. Pairs that are equal in one of the two do not count.
    """
    rows = [row for row in trained(rows) if row[score] is not None and row[by] is not None]
    sign = -1 if by.endswith("loss") else 1
    x, y = (np.array([row[name] for row in rows], float) for name in (by, score))
    cells = _codes([(row["model"], row.get("dataset"), row["images"]) for row in rows])
    i, j = np.triu_indices(len(rows), 1)
    use = (x[i] != x[j]) & (y[i] != y[j]) & _comparable(rows, i, j, among)
    i, j = i[use], j[use]
    right = sign * (x[i] - x[j]) * (y[i] - y[j]) > 0
    overfit = np.array([bool(row["overfit"]) for row in rows], bool)
    known = np.array([row["overfit"] is not None for row in rows], bool)
    both = {"overall": np.ones(len(i), bool)}
    if len(rows):
        both["non_overfit"] = known[i] & known[j] & ~overfit[i] & ~overfit[j]
        both["overfit"] = overfit[i] & overfit[j]
    found = {name: _share(right, i, j, cells, both.get(name)) for name in ("overall", "non_overfit", "overfit")}
    found["by_gap"] = []
    if by.endswith("loss") and len(rows):
        gap = np.abs(x[i] - x[j])
        for low, high in zip(GAPS, GAPS[1:], strict=False):
            share = _share(right, i, j, cells, (gap >= low) & (gap < high))
            if share:
                found["by_gap"].append(share | {"gap": (low, None if np.isinf(high) else high)})
    return found


#: How groups of pairs are called, by the keys of `accuracy`.
GROUPS = {"overall": "all pairs", "non_overfit": "both clean", "overfit": "both overfit"}


def shares(found: dict[str, dict]) -> "pd.DataFrame":
    """What `accuracy` found by source, as rows for `figures.intervals`: per cent, groups without pairs left out."""
    import pandas as pd

    lines = [
        {"source": source, "name": f"{source}, {name}", "n": some[group]["n"]}
        | {"value": 100 * some[group]["share"]}
        | {end: None if some[group][end] is None else 100 * some[group][end] for end in ("low", "high")}
        for source, some in found.items()
        for group, name in GROUPS.items()
        if some.get(group)
    ]
    return pd.DataFrame(lines)


def misleading(rows: list[dict], score: str = "linear", top: int = 10) -> list[dict]:
    """The pairs in which the lower validation loss misleads most, one a pair of cells, the largest loss of score first.

    Each a dict: picked and better (the run of lower loss, the run of higher score, by name), loss_gap (how much lower
    the picked one's loss is), score_lost (0 to 1), picked_overfit, better_overfit, picked_row, better_row.
    """
    rows = [row for row in trained(rows) if row[score] is not None and row["val_loss"] is not None]
    found, seen = [], set()
    pairs = [(a, b) for a in rows for b in rows if a["val_loss"] < b["val_loss"] and a[score] < b[score]]
    pairs.sort(key=lambda ab: (ab[0][score] - ab[1][score], ab[0]["key"], ab[1]["key"]))
    for picked, better in pairs:
        cells = tuple((r["model"], r["images"], r["steps"]) for r in (picked, better))
        if cells in seen:  # the same two cells by another seed teach nothing new
            continue
        seen.add(cells)
        found.append(
            {
                "picked": run_name(picked),
                "better": run_name(better),
                "loss_gap": better["val_loss"] - picked["val_loss"],
                "score_lost": better[score] - picked[score],
                "picked_overfit": picked["overfit"],
                "better_overfit": better["overfit"],
                "picked_row": picked,
                "better_row": better,
            }
        )
        if len(found) == top:
            break
    return found


def run_name(row: dict) -> str:
    """A run by name: `pico, 64 images, 1,000 steps, seed 2`."""
    name = f"{short(row['model'])}, {row['images']:,} images, {row['steps']:,} steps"
    return name if row["data"] == "published" else f"{name}, seed {row['seed']}"


def _comparable(rows: list[dict], i: np.ndarray, j: np.ndarray, among: str) -> np.ndarray:
    if among not in ("all", "size", "length"):
        raise ValueError(f"among is {among!r}: give all, size or length")
    same = np.ones(len(i), bool)
    if among == "all":
        return same
    other = "steps" if among == "size" else "model"
    for name in (*SAME, "seed", other):
        code = _codes([row.get(name) for row in rows])
        same &= code[i] == code[j]
    varied = _codes([row["model" if among == "size" else "steps"] for row in rows])
    return same & (varied[i] != varied[j])


def _codes(names: list) -> np.ndarray:
    index: dict = {}
    return np.array([index.setdefault(name, len(index)) for name in names], int)


def _share(right: np.ndarray, i: np.ndarray, j: np.ndarray, cells: np.ndarray, use: np.ndarray | None) -> dict | None:
    """Share of the chosen pairs, and its interval when cells are drawn whole with replacement."""
    if use is None or not use.any():
        return None
    right, a, b = right[use], cells[i[use]], cells[j[use]]
    n_cells = int(cells.max()) + 1
    hits, counts = np.zeros((n_cells, n_cells)), np.zeros((n_cells, n_cells))
    np.add.at(hits, (a, b), right)
    np.add.at(counts, (a, b), 1)
    said = {"share": float(right.mean()), "low": None, "high": None, "n": int(len(right))}
    if len(np.unique(np.concatenate([a, b]))) < 3:
        return said  # one or two cells drawn again and again are no sample
    weights = drawn(n_cells).astype(float)
    total = np.einsum("rc,cd,rd->r", weights, counts, weights)
    shares = np.einsum("rc,cd,rd->r", weights, hits, weights)[total > 0] / total[total > 0]
    low, high = np.percentile(shares, [2.5, 97.5])
    return said | {"low": float(low), "high": float(high)}
