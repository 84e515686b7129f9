"""A pilot study of one's own images: what is there, the seeds an effect needs, the grid that fits the time. Power is
that of the paired t-test over seeds, the test behind the claims. No torch here."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from ..data import decode, scenes
from ..data.sources import listing
from ..errors import UserError
from ..evidence.records import beside
from ..evidence.rules import SMOKE_STEPS
from ..evidence.stats import power, units_needed
from ..evidence.tables import main_rows
from ..model.sizes import SIZES
from ..studies.costs import cost_of
from ..studies.grids import with_references
from ..studies.tiers import TIERS
from ..training.run import Run
from ..training.specs import Folder, Positive, Source, Whole, checked

SCENES = 16_384  # scenes have no end: so many count as the reader's images
MOST_SEEDS = 12  # a study will ask for at most: beyond, an effect is too small for a pilot
MODELS = ("swinv2_atto", "swinv2_femto")
#: Data levels, from one that is short to all, and the longer of two lengths, the shorter long enough for a claim.
GRIDS = ((3, 1000), (3, 500), (3, 250), (2, 250), (2, 2 * SMOKE_STEPS))
_WANTED, _SMALLEST = 0.8, 16  # chance to see an effect; images of the smallest level at least
_SHORT = 1e7  # Omega of the larger size at the smallest level: well past where published losses and scores turn


def seed_spread(records: Iterable[dict] = (), data: str = "photographs") -> float:
    """Standard deviation over seeds of the difference of validation loss between two settings of one length, the median
    over pairs: of the shipped runs (on photographs or on scenes) where the records have no two seeds."""
    for source in (list(records), beside(data)):
        rows = pd.DataFrame(main_rows(source), columns=["seed", "steps", "model", "images", "val_loss"])
        spreads = []
        for _, some in rows.groupby("steps"):
            loss = some.pivot_table(values="val_loss", index="seed", columns=["model", "images"])
            pairs = [(a, b) for a, b in combinations(loss, 2) if (a[0] == b[0]) != (a[1] == b[1])]
            spreads += [(loss[a] - loss[b]).std() for a, b in pairs]  # NaN of fewer than two seeds
        if not np.isnan(spreads).all():
            return float(np.nanmedian(spreads))
    raise UserError("no finished runs have two seeds: train two seeds of a study")


def detectable(spread: float, seeds: int) -> float:
    """The smallest effect that this many seeds see in 80 of 100 studies; infinite for one seed."""
    from scipy.optimize import brentq

    if seeds < 2:
        return float("inf")
    return brentq(lambda effect: power(effect, spread, seeds) - _WANTED, 0.0, 100 * spread, rtol=1e-9)


@dataclass(frozen=True)
class Design:
    """A pilot study: its runs, what they cost, and what they can see."""

    runs: tuple[Run, ...]
    seeds: int
    levels: tuple[int, ...]  # unique images, smallest first
    lengths: tuple[int, ...]  # optimiser steps, shortest first
    core_seconds: float
    power: float  # chance to see the effect asked for
    sees: str  # the same to read, and what had to give for the budget


@checked
def design(
    data: Source, available: Whole, *, core_minutes: Positive, effect: Positive, spread: Positive,
    runs_dir: Folder = "runs", tier: str = "quick", seeds: Whole = 0,
) -> Design:  # fmt: skip
    """A small fixed grid of pilot runs that fits into minutes of one core, with the seeds the effect needs: `MODELS` by
    the first of `GRIDS` that fits; where the barest does not, with fewer seeds, at least two. seeds: take so many (0:
    as many as the effect needs). Tier smoke tests the machinery: two levels of 64 images at most and 20 steps.
    `UserError` where nothing fits, or for too few images."""
    if available < 4 * _SMALLEST:
        raise UserError(f"{data} has {available} training images: a pilot compares levels, and needs {4 * _SMALLEST}")
    needed, smoke = min(units_needed(effect, spread, _WANTED) or 99, MOST_SEEDS + 1), tier == "smoke"
    base = replace(TIERS["smoke" if smoke else "quick"].recipe, data=data)
    most, grids = (min(available, 4 * _SMALLEST), ((2, 20),)) if smoke else (available, GRIDS)
    seconds = {grid: cost_of(_grid(base, most, *grid, range(1)), runs_dir)["seconds"] for grid in grids}  # of a seed
    tries = [seeds] if seeds else [2] if smoke else range(min(needed, MOST_SEEDS), 1, -1)
    fits = ((n, grid) for n in tries for grid in grids if n * seconds[grid] <= 60 * core_minutes)
    n, grid = next(fits, (0, None))
    if not n:
        barest = (seeds or 2) * seconds[grids[-1]] / 60
        raise UserError(f"core_minutes is {core_minutes:g}: the barest pilot takes about {barest:.1f}; give more")
    runs, left = tuple(_grid(base, most, *grid, range(n))), power(effect, spread, n)
    sees = f"sees {effect:g} with power {left:.0%}, and {detectable(spread, n):.2g} with 80 %"
    if n < needed:
        sees += f". {f'more than {MOST_SEEDS}' if needed > MOST_SEEDS else needed} seeds would be needed, {n} are run"
    levels, lengths = (tuple(sorted({getattr(run, k) for run in runs if run.steps})) for k in ("images", "steps"))
    return Design(runs, n, levels, lengths, n * seconds[grid], left, sees)


def _grid(base: Run, available: int, levels: int, steps: int, seeds: Iterable[int]) -> list[Run]:
    """Every size, level and seed at two lengths, and each network at random initialisation, from which lift counts."""
    seen = SIZES[MODELS[-1]].parameters * steps * base.batch_size
    smallest = min(max(_SMALLEST, round((seen / _SHORT) ** 0.5)), available // 4)
    images = [int(n) for n in np.geomspace(smallest, available, levels).round()]
    cells = [replace(base, model=model, seed=seed) for seed in seeds for model in MODELS]
    return with_references(replace(r, images=n, steps=t) for r in cells for n in images for t in (steps // 2, steps))


def look(data: str) -> dict:
    """What a source holds: images to train on, held-out images, classes (0 = none known). It is listed, not decoded,
    which may download it."""
    if data in scenes.LOOKS:
        return {"images": SCENES, "held out": 1024, "classes": len(scenes.LOOKS[data])}
    found = listing(data).split()
    found.say()
    train, every = len(found.splits["train"]), sum(map(len, found.splits.values()))
    return {"images": train, "held out": every - train, "classes": len(found.classes)}


def pictures(data: str, side: int = 32) -> np.ndarray:
    """A few training pictures to look at: uint8 (n, 3, side, side)."""
    if data in scenes.LOOKS:
        return scenes.render(0, range(6), side, data).images
    train, readable = listing(data).split().readable("train"), []
    for i in range(0, len(train), max(1, len(train) // 6))[:6]:
        with suppress(decode.Unreadable):  # a study names it
            readable.append(decode.read_square(train.picture(i), side))
    if not readable:
        raise UserError(f"{data}: none of {min(6, len(train))} pictures can be read in colours; give RGB pictures")
    return np.stack(readable)
