"""Doublings of the length: does a rising validation loss mean a falling score, and what tells beforehand (C7).

Omega is parameters x images seen / unique images squared (docs/facts.md, 7): how often a network of this size sees each
image, against how many images there are. No torch here.
"""

import numpy as np

from .records import millions, trained


def omega(row: dict) -> float:
    """Parameters x images seen / unique images squared of a run (docs/facts.md, 7)."""
    return row["params"] * row["images_seen"] / row["images"] ** 2


def doublings(rows: list[dict], score: str = "linear") -> list[dict]:
    """One row for every two runs of a size, a data level and a seed of which one is twice as long as the other.

    `loss_change` and `score_change` (0 to 1) are those of the longer run less the shorter; `omega` is the longer one's;
    model, params, images, steps (of the longer), seed and `unit` say which. Runs without the score are left out.
    """
    runs = {(r["model"], r["images"], r.get("dataset"), r["seed"], r["steps"]): r for r in trained(rows)}
    found = []
    for (*cell, steps), shorter in runs.items():
        longer = runs.get((*cell, 2 * steps))
        if longer is None or any(r[k] is None for r in (shorter, longer) for k in ("val_loss", score)):
            continue
        found.append(
            {name: longer[name] for name in ("model", "params", "images", "steps", "seed")}
            | {
                "unit": " ".join(map(str, cell)),
                "loss_change": longer["val_loss"] - shorter["val_loss"],
                "score_change": longer[score] - shorter[score],
                "omega": omega(longer),
            }
        )
    return sorted(found, key=lambda d: (d["params"], d["images"], d["steps"], d["seed"]))


def turning_point(found: list[dict], of: str = "loss") -> float | None:
    """The Omega at which a doubling is as likely to raise the loss (`of="loss"`) or lower the score ("score") as not.

    By logistic regression on log Omega; halfway between the two where they do not overlap. None where a side is
    empty, or where the event does not become likelier with Omega.
    """
    x = np.log(np.array([d["omega"] for d in found], float))
    hit = np.array([d["loss_change"] > 0 if of == "loss" else d["score_change"] < 0 for d in found], bool)
    if not found or hit.all() or not hit.any():
        return None
    if x[~hit].max() < x[hit].min():
        return float(np.exp((x[~hit].max() + x[hit].min()) / 2))
    if x[hit].max() < x[~hit].min() or np.ptp(x) == 0:
        return None
    z = np.stack([np.ones_like(x), (x - x.mean()) / x.std()], 1)
    beta = np.zeros(2)
    for _ in range(100):  # Newton, damped: the likelihood is concave
        p = 1 / (1 + np.exp(-np.clip(z @ beta, -30, 30)))
        gradient = z.T @ (hit - p)
        step = np.linalg.solve((z.T * (p * (1 - p))) @ z + 1e-9 * np.eye(2), gradient)
        beta += step * min(1, 5 / max(np.abs(step).max(), 1e-12))
        if np.abs(gradient).max() < 1e-9:
            break
    if beta[1] <= 0:
        return None
    return float(np.exp(x.mean() - beta[0] / beta[1] * x.std()))


def turning_points(found: list[dict]) -> dict[str, float | None]:
    """`turning_point` of the loss and of the score, None where it lies outside of the doublings there are."""
    low, high = min((d["omega"] for d in found), default=0), max((d["omega"] for d in found), default=0)
    turns = {of: turning_point(found, of) for of in ("loss", "score")}
    return {of: at if at and low <= at <= high else None for of, at in turns.items()}


def name_of(d: dict) -> str:
    """A doubling by name: `pico (2.1 M), 64 images, 500 to 1,000 steps`."""
    size = d["model"].removeprefix("swinv2_")
    return f"{size} ({millions(d['params'])}), {d['images']:,} images, {d['steps'] // 2:,} to {d['steps']:,} steps"


def power(value: float) -> str:
    """A number as mantissa and exponent: `2.9e6`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
