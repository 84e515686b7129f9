"""The 63 published runs as rows, the claims on them, and what they really say (docs/facts.md, 7). No torch here."""

import csv
from functools import cache
from importlib.resources import files

import numpy as np

from ..model.sizes import SIZES
from . import pairs
from .claims import CONSISTENCY, claims_of
from .doublings import doublings, turning_point
from .records import OVERFIT, SCORES
from .rules import Claim
from .stats import drawn

SOURCE = "the public model table of the Swin-Transformer repository (SimMIM pretraining of Swin V2, 63 runs)"
SCORE = "finetune"  # top-1 on ImageNet-1K after fine-tuning
IMAGE_SIZE, WINDOW = 192, 12
WHOLE = "imagenet1k-100"
OTHER = "imagenet22k"  # not a part of ImageNet-1K: its losses have no place on the axis of data levels


def rows() -> list[dict]:
    """The 63 runs in the columns of `records.table`, and `dataset` and `on_axis` (False for ImageNet-22K).

    `finetune` is ImageNet-1K top-1 in 0 to 1 after fine-tuning; lifts, training losses and other scores are unknown and
    None. A run is overfit when its loss lies more than .004 above that of the same size and length on all of
    ImageNet-1K, or of a shorter run of the same size and data (docs/facts.md, 7). One seed a run, numbered 0.
    """
    return [dict(row) for row in _rows()]


@cache
def _rows() -> tuple[dict, ...]:
    found = []
    with (files(__package__) / "published_runs.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            images, steps, batch = (int(line[name]) for name in ("unique_images", "iterations", "batch_size"))
            gmac = SIZES[line["model"]].gmac(IMAGE_SIZE, WINDOW, head=True)
            row = {
                "model": line["model"],
                "params": int(line["backbone_params"]),
                "dataset": line["dataset"],
                "on_axis": line["dataset"] != OTHER,
                "images": images,
                "steps": steps,
                "images_seen": steps * batch,
                "epochs": steps * batch / images,
                "seed": 0,
                "data": "published",
                "target": "unknown",
                "image_size": IMAGE_SIZE,
                "batch_size": batch,
                "val_loss": float(line["val_loss"]),
                "val_loss_se": None,
                "train_loss": None,
                "flops": 6e9 * gmac * steps * batch,
                "seconds": None,
                "core_seconds": None,
                "reference": False,
                "recipe": "published",
            }
            row |= {name: None for score in SCORES for name in (score, f"{score}_lift")}
            row[SCORE] = float(line["finetune_top1"]) / 100
            row["key"] = f"published-{row['model']}-{row['dataset']}-{steps}"
            row["trunk"] = f"published-{row['model']}-{row['dataset']}"
            found.append(row)
    for row in found:
        own = [r for r in found if r["model"] == row["model"]]
        whole = next((r for r in own if r["dataset"] == WHOLE and r["steps"] == row["steps"]), row)
        shorter = [r for r in own if r["dataset"] == row["dataset"] and r["steps"] < row["steps"]]
        row["overfit"] = any(row["val_loss"] - r["val_loss"] > OVERFIT + 1e-9 for r in (whole, *shorter))
    return tuple(found)


@cache
def claims() -> list[Claim]:
    """C1 to C9 on the published runs, scored by fine-tuning accuracy."""
    return claims_of(rows(), score=SCORE, note=f"{CONSISTENCY}; chosen after seeing these runs")


@cache
def facts() -> dict:
    """What the published runs say (docs/facts.md, 7), computed: correlations with 95 % intervals (bootstrap over the 21
    cells of size x data), pairwise accuracies, doublings, turning points of Omega, and 22K against 1K.

    A correlation is a dict of value, low, high, n; an accuracy one of `pairs.accuracy`.
    """
    all_ = rows()
    sets = {
        "all": all_,
        "whole": [r for r in all_ if r["dataset"] == WHOLE],
        "22k": [r for r in all_ if r["dataset"] == OTHER],
        "tenth": [r for r in all_ if r["dataset"] == "imagenet1k-10"],
        "non_overfit": [r for r in all_ if not r["overfit"]],
        "overfit": [r for r in all_ if r["overfit"]],
    }
    found = doublings(all_, SCORE)
    rose, gained, lost = found["loss_change"] > 0, found["score_change"] > 0, found["score_change"] < 0
    counts = {"n": found, "fell": found[~rose], "fell_and_gained": found[~rose & gained], "rose": found[rose]}
    counts |= {"rose_and_lost": found[rose & lost], "rose_and_gained": found[rose & gained]}
    by_cell = {(r["model"], r["dataset"], r["steps"]): r for r in all_}
    shifts = [
        (r, by_cell[r["model"], WHOLE, r["steps"]]) for r in sets["22k"] if (r["model"], WHOLE, r["steps"]) in by_cell
    ]
    return {
        "pearson": {name: _pearson(rows_) for name, rows_ in sets.items()},
        "pairs": pairs.accuracy(all_, SCORE),
        "size": {by: pairs.accuracy(all_, SCORE, by, "size")["overall"] for by in ("val_loss", "params")},
        "length": {by: pairs.accuracy(all_, SCORE, by, "length")["overall"] for by in ("val_loss", "images_seen")},
        "doublings": {name: len(some) for name, some in counts.items()},
        "omega": {of: turning_point(found, of) for of in ("loss", "score")},
        "22k_against_1k": {
            "loss": [a["val_loss"] - b["val_loss"] for a, b in shifts],
            "score": [a[SCORE] - b[SCORE] for a, b in shifts],
        },
    }


def _pearson(chosen: list[dict]) -> dict:
    """Pearson correlation of validation loss and accuracy; its interval by bootstrap over size x data cells."""
    x, y = (np.array([r[name] for r in chosen]) for name in ("val_loss", SCORE))
    names, cell = np.unique([r["trunk"] for r in chosen], return_inverse=True)
    weights = drawn(len(names))[:, cell].astype(float)

    def correlation(w: np.ndarray) -> np.ndarray:
        w = w / w.sum(1, keepdims=True)
        a, b = (v - (w * v).sum(1, keepdims=True) for v in (x, y))
        return (w * a * b).sum(1) / np.sqrt((w * a * a).sum(1) * (w * b * b).sum(1))

    low, high = np.percentile(correlation(weights), [2.5, 97.5])
    value = correlation(np.ones((1, len(x))))[0]
    return {"value": float(value), "low": float(low), "high": float(high), "n": len(chosen)}
