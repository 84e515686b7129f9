"""Doublings of the length: does a rising validation loss mean a falling score, and what tells beforehand (C7).

Omega is parameters x images seen / unique images squared (docs/facts.md, 7): how often a network of this size sees each
image, against how many images there are. No torch here.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def omega(row: dict) -> float:
    """Parameters x images seen / unique images squared of a run, or of a DataFrame of runs (docs/facts.md, 7)."""
    return row["params"] * row["images_seen"] / row["images"] ** 2


def doublings(runs: "pd.DataFrame | list[dict]", score: str = "linear") -> "pd.DataFrame":
    """One row for every two runs of a size, a data level and a seed of which one is twice as long as the other.

    runs: in the columns of `records.table`. `loss_change` and `score_change` (0 to 1) are those of the longer run less
    the shorter; `omega` is the longer one's; model, params, images, steps (of the longer), seed and `unit` say which.
    Runs without the score are left out.
    """
    import pandas as pd

    columns = ["model", "params", "images", "steps", "seed", "unit", "loss_change", "score_change", "omega"]
    runs = pd.DataFrame(runs)
    if not len(runs):
        return pd.DataFrame(columns=columns)
    runs = runs[~runs["reference"].eq(True) & runs[["val_loss", score]].notna().all(axis=1)]
    cell = ["model", "images", *(["dataset"] if "dataset" in runs else []), "seed"]
    runs = runs.assign(dataset=runs.get("dataset"), omega=omega(runs))
    runs["unit"] = [" ".join(map(str, unit)) for unit in runs[["model", "images", "dataset", "seed"]].values]
    runs = runs.drop_duplicates([*cell, "steps"], keep="last")
    shorter = runs.assign(steps=2 * runs["steps"])[[*cell, "steps", *dict.fromkeys(("val_loss", score))]]
    found = runs.merge(shorter, on=[*cell, "steps"], suffixes=("", "_shorter"))
    for change, name in (("loss_change", "val_loss"), ("score_change", score)):
        found[change] = found[name].astype(float) - found[f"{name}_shorter"].astype(float)
    return found[columns].sort_values(["params", "images", "steps", "seed"], kind="stable", ignore_index=True)


def turning_point(found: "pd.DataFrame", of: str = "loss") -> float | None:
    """The Omega at which a doubling is as likely to raise the loss (`of="loss"`) or lower the score ("score") as not.

    By logistic regression on log Omega; halfway between the two where they do not overlap. None where a side is
    empty, or where the event does not become likelier with Omega.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    hit = np.array(found["loss_change"] > 0 if of == "loss" else found["score_change"] < 0, bool)
    x = np.log(np.array(found["omega"], float))
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


def turning_points(found: "pd.DataFrame") -> dict[str, float | None]:
    """`turning_point` of the loss and of the score, None where it lies outside of the doublings there are."""
    turns = {of: turning_point(found, of) for of in ("loss", "score")}
    return {of: at if at and found["omega"].min() <= at <= found["omega"].max() else None for of, at in turns.items()}


def power(value: float) -> str:
    """A number as mantissa and exponent: `2.9e6`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
