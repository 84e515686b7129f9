"""Foreign weights, own images, or both? Four ways to begin, by what their features are worth. No torch here."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from .records import PROBES, run_rows
from .rules import FAILS, HOLDS, OPEN, SMOKE_STEPS, UNTESTED, Claim, seed_list
from .stats import MIN_UNITS, t_interval

#: The arms by what a run is, and how they are called.
ARMS = {"random": "random start", "foreign": "foreign weights", "own": "own pretraining", "both": "both"}
MARGIN = 0.005  # half a point of the probe
STATEMENT = "Pretraining on from foreign weights beats foreign weights and own pretraining alone"


def arms(records: Iterable[dict], score: str = "linear") -> pd.DataFrame:
    """A row a finished run of the one study of beginnings that has most runs among the records, its network random,
    foreign, own or both: arm, model, images (unique own ones; 0 where there are none), seed, steps, val_loss, key, and
    score (in 0..1). A study has one kind of own images, size, length and foreign weights."""
    rows = [row for row in run_rows(list(records)) if row[score] is not None]
    both = [row for row in rows if row["init"] and row["steps"]]
    studies = Counter((*(row[name] for name in _SAME), row["steps"], _weights(row)) for row in both)
    found = []
    if studies:
        *same, steps, weights = max(studies, key=lambda one: (studies[one], one))
        for row in rows:
            arm = "random" if row["reference"] else "foreign" if not row["steps"] else "both" if row["init"] else "own"
            fits = row["steps"] in (0, steps) and (not row["init"] or _weights(row) == weights)
            if fits and [row[name] for name in _SAME] == same:
                images = row["images"] if row["steps"] else 0
                found.append({"arm": arm, "images": images, "score": row[score]} | {k: row[k] for k in _KEPT})
    columns = ["arm", "images", "score", *_KEPT]
    return pd.DataFrame(found, columns=columns).sort_values(["images", "seed"], ignore_index=True)


_SAME = ("data", "model", "image_size", "target")
_KEPT = ("model", "data", "seed", "steps", "val_loss", "key")


def _weights(row: dict) -> str:
    """What a run begins with, the same for all seeds: foreign runs but for their seed, a file by its digest."""
    return re.sub(r"-s\d+-[0-9a-f]{10}$", "", row["init"].rpartition("@")[2])


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What both gain over own pretraining and over foreign weights, by number of own images: columns over (an arm),
    images, value, low, high (points, 95 % by Student's t over seeds), seeds."""
    scores, lines = frame.pivot_table(values="score", index="seed", columns=["arm", "images"]), []
    for images in sorted(n for arm, n in scores if arm == "both"):
        for base in (("own", images), ("foreign", 0)):  # foreign weights alone have seen none
            if base in scores and len(gain := 100 * (scores["both", images] - scores[base]).dropna()):
                lines.append([base[0], int(images), *t_interval(gain), len(gain)])
    return pd.DataFrame(lines, columns=["over", "images", "value", "low", "high", "seeds"])


def claim(records: Iterable[dict], score: str = "linear") -> Claim:
    """C10: from how many own images on both beat either, by a margin; a verdict on all numbers of images together.

    It holds where that is so from some number on to the largest; it does not where at every number one of the two is
    not beaten by the margin, by the whole interval."""
    frame = arms(records, score)
    same = {"id": "C10", "statement": STATEMENT, "margin": MARGIN, "recipe": ""}
    levels = [some for _, some in gains(frame).groupby("images") if set(some["over"]) == {"own", "foreign"}]
    if len(frame) and frame["steps"].max() <= SMOKE_STEPS:
        return Claim(**same, evidence=f"Runs of {frame['steps'].max()} steps test the machinery", verdict=UNTESTED)
    if not levels:
        evidence = "No runs of all four beginnings: random, foreign weights, own pretraining, and both"
        return Claim(**same, evidence=evidence, verdict=UNTESTED)
    enough = min(some["seeds"].min() for some in levels) >= MIN_UNITS
    beats = [enough and bool((some["low"] > 100 * MARGIN).all()) for some in levels]
    fails = [enough and bool((some["high"] < 100 * MARGIN).any()) for some in levels]
    first = next((k for k in range(len(levels)) if all(beats[k:])), None)
    verdict = OPEN if not enough or (first is None and not all(fails)) else HOLDS if first is not None else FAILS
    said = [_sentence(some) for some in levels]
    start = "" if first is None else f"From {levels[first]['images'].iloc[0]:,} own images on both beat either. "
    seeds = seed_list(sorted(int(seed) for seed in frame[frame["arm"] == "both"]["seed"].unique()))
    evidence = f"{start}{PROBES[score].capitalize()}, points: {'; '.join(said)} ({seeds}; margin {100 * MARGIN:+.1f})"
    least = min((some.loc[some["value"].idxmin()] for some in levels[first or 0 :]), key=lambda row: row["value"])
    ends = {name: None if np.isnan(end) else end / 100 for name, end in least[["low", "high"]].astype(float).items()}
    return Claim(**same, evidence=evidence, verdict=verdict, effect=least["value"] / 100, n=int(least["seeds"]), **ends)


def _sentence(some: pd.DataFrame) -> str:
    """`at 64 images +1.2 [+0.5, +1.9] over own pretraining, …`."""
    parts = []
    for row in some.sort_values("over", ascending=False).itertuples():
        interval = "" if row.low is None or np.isnan(row.low) else f" [{row.low:+.1f}, {row.high:+.1f}]"
        parts.append(f"{row.value:+.1f}{interval} over {ARMS[row.over]}")
    return f"at {some['images'].iloc[0]:,} images {', '.join(parts)}"
