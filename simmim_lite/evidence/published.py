"""The 63 published runs as rows, the claims on them, and what they really say (docs/facts.md, 7). No torch here."""

from functools import cache, partial
from importlib.resources import files

import numpy as np
import pandas as pd

from ..model.sizes import SIZES
from . import imported, proxy
from .claims import CONSISTENCY, claims_of
from .rules import Claim
from .stats import drawn

SOURCE = "the public model table of the Swin-Transformer repository (SimMIM pretraining of Swin V2, 63 runs)"
SCORE = "finetune"  # top-1 on ImageNet-1K after fine-tuning
IMAGE_SIZE, WINDOW = 192, 12
WHOLE = "imagenet1k-100"
OTHER = "imagenet22k"  # not a part of ImageNet-1K: its losses have no place on the axis of data levels


def rows() -> list[dict]:
    """The 63 runs in the columns of `records.table`, and `dataset` and `on_axis` (False for ImageNet-22K).

    `finetune` is ImageNet-1K top-1 in 0 to 1; lifts, training losses and other scores are unknown and None. Overfit is
    what `imported.flag_overfit` says, the whole data being ImageNet-1K. One seed a run, numbered 0.
    """
    return [dict(row) for row in _rows()]


@cache
def _rows() -> tuple[dict, ...]:
    found = imported.read_csv(files(__package__) / "published_runs.csv", "percent")
    for row in found:
        gmac = SIZES[row["model"]].gmac(IMAGE_SIZE, WINDOW, head=True)
        row |= {"image_size": IMAGE_SIZE, "flops": 6e9 * gmac * row["images_seen"]}
        row |= {"data": "published", "recipe": "published", "on_axis": row["dataset"] != OTHER}
        row["trunk"] = f"published-{row['model']}-{row['dataset']}"
        row["key"] = f"{row['trunk']}-{row['steps']}"
    imported.flag_overfit(found, lambda row: row["dataset"] == WHOLE)
    return tuple(found)


@cache
def claims() -> list[Claim]:
    """C1 to C9 on the published runs, scored by fine-tuning accuracy."""
    return claims_of(rows(), score=SCORE, note=f"{CONSISTENCY}; chosen after seeing these runs")


@cache
def facts() -> dict:
    """What the published runs say (docs/facts.md, 7): correlations (value, low, high, n; 95 %, bootstrap over the 21
    cells of size x data), accuracies (`proxy.accuracy`), doublings, turning points of Omega, and 22K against 1K."""
    runs = rows()
    frame, found = pd.DataFrame(runs), proxy.doublings(runs, SCORE)
    sets = {
        "all": frame,
        "whole": frame[frame["dataset"] == WHOLE],
        "22k": frame[frame["dataset"] == OTHER],
        "tenth": frame[frame["dataset"] == "imagenet1k-10"],
        "non_overfit": frame[~frame["overfit"]],
        "overfit": frame[frame["overfit"]],
    }
    rose, gained, lost = found["loss_change"] > 0, found["score_change"] > 0, found["score_change"] < 0
    counts = {"n": rose | ~rose, "fell": ~rose, "fell_and_gained": ~rose & gained, "rose": rose}
    counts |= {"rose_and_lost": rose & lost, "rose_and_gained": rose & gained}
    shifts = sets["22k"].merge(sets["whole"], on=["model", "steps"], suffixes=("", "_whole"))
    accuracy = partial(proxy.accuracy, runs, SCORE)
    return {
        "pearson": {name: _pearson(some) for name, some in sets.items()},
        "pairs": accuracy(),
        "size": {by: accuracy(by, "size")["overall"] for by in ("val_loss", "params")},
        "length": {by: accuracy(by, "length")["overall"] for by in ("val_loss", "images_seen")},
        "doublings": {name: int(which.sum()) for name, which in counts.items()},
        "omega": {of: proxy.turning_point(found, of) for of in ("loss", "score")},
        "22k_against_1k": {
            of: (shifts[name] - shifts[f"{name}_whole"]).tolist()
            for of, name in (("loss", "val_loss"), ("score", SCORE))
        },
    }


def _pearson(chosen: pd.DataFrame) -> dict:
    """Pearson correlation of validation loss and accuracy; its interval by bootstrap over size x data cells."""
    x, y = (chosen[name].to_numpy() for name in ("val_loss", SCORE))
    cells, cell = np.unique(chosen["trunk"], return_inverse=True)
    w = drawn(len(cells))[:, cell].astype(float)
    w = w / w.sum(1, keepdims=True)
    a, b = (v - (w * v).sum(1, keepdims=True) for v in (x, y))
    again = (w * a * b).sum(1) / np.sqrt((w * a * a).sum(1) * (w * b * b).sum(1))
    low, high = np.percentile(again, [2.5, 97.5]).tolist()
    return {"value": float(np.corrcoef(x, y)[0, 1]), "low": low, "high": high, "n": len(chosen)}
