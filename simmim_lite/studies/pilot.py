"""A pilot study of one's own images: the grid that fits the time, with the seeds an effect needs. No torch here."""

from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError
from ..evidence.rules import SMOKE_STEPS
from ..model.sizes import SIZES
from ..training.run import Run
from ..training.specs import Folder, Positive, Source, Whole, checked
from .collecting import collect as studies_collect
from .collecting import cost_of
from .grids import TIERS
from .parameters import Tier
from .power import MOST_SEEDS, detectable, power, seeds_for

#: Designs from rich to bare: sizes, data levels, longest length. Two lengths always, off one trunk, and the shorter one
#: is long enough for a claim.
_DESIGNS = [(m, n, t) for t in (1000, 500, 250, 2 * SMOKE_STEPS) for n in (4, 3, 2) for m in (3, 2)]
_MODELS = ("swinv2_atto", "swinv2_femto", "swinv2_pico")
_LR = {"swinv2_pico": 2e-3}  # lowest validation loss on 16,384 scenes (docs/settings.md)
_SMALLEST = 16  # images of the smallest level at least
_SHORT = 1e7  # Omega of the largest size at the smallest level: well past where published losses and scores turn


@dataclass(frozen=True)
class Design:
    """A pilot study: its runs, what they cost, and what they can see."""

    runs: tuple[Run, ...]
    seeds: int
    core_seconds: float
    power: float  # chance to see the effect asked for
    detects: float  # the smallest effect that these seeds see in 80 of 100 studies
    note: str  # what had to give for the budget; empty where nothing had to

    def sees(self, effect: float) -> str:
        """What these seeds can see, to read."""
        if self.seeds < 2:
            return "one seed has no spread: no difference can be told from noise"
        known = f"sees {effect:g} with power {self.power:.0%}, and {self.detects:.2g} with 80 %"
        return f"{known}. {self.note}" if self.note else known

    @property
    def sizes(self) -> tuple[str, ...]:
        """Models, smallest first."""
        return tuple(dict.fromkeys(run.model for run in self.runs))

    @property
    def levels(self) -> tuple[int, ...]:
        """Unique images, smallest first."""
        return tuple(sorted({run.images for run in self.runs if run.steps}))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Optimiser steps, shortest first."""
        return tuple(sorted({run.steps for run in self.runs if run.steps}))


@checked
def design(
    data: Source,
    available: Whole,
    *,
    core_minutes: Positive,
    effect: Positive,
    spread: Positive,
    runs_dir: Folder = "runs",
    wanted: float = 0.8,
    tier: Tier = "quick",
    seeds: Whole = 0,
) -> Design:
    """The richest grid of pilot runs on a source that fits into minutes of one core, with the seeds the effect needs.

    Two or three sizes, two to four data levels from one that is short to all `available` images, a length and half of
    it. Where the seeds do not fit with the barest grid, there are fewer of them, at least two, and the note says what
    power is left. seeds: take so many, whatever the effect needs (0: as many as it needs). Tier smoke tests the
    machinery: 64 images at most and 20 steps. `UserError` where nothing fits, or for too few images.
    """
    if available < 4 * _SMALLEST:
        raise UserError(
            f"{data} has {available} training images: a pilot compares data levels, and needs {4 * _SMALLEST}"
        )
    needed, more = _needed(effect, spread, wanted)
    base = replace(TIERS["smoke" if tier == "smoke" else "quick"].recipe, data=data)
    available = min(available, 4 * _SMALLEST) if tier == "smoke" else available
    designs = [(2, 2, 20)] if tier == "smoke" else _DESIGNS
    # seeds cost the same each
    one = [cost_of(_grid(base, available, *chosen, 1), runs_dir)["seconds"] for chosen in designs]
    for n in [seeds] if seeds else [2] if tier == "smoke" else range(needed, 1, -1):
        for chosen, seconds in zip(designs, one, strict=True):
            if n * seconds <= 60 * core_minutes:
                left = power(effect, spread, n)
                short = n < needed or more
                note = f"{more}{needed} seeds would be needed, {n} are run: power {left:.0%}" if short else ""
                runs = tuple(_grid(base, available, *chosen, n))
                return Design(runs, n, n * seconds, left, detectable(spread, n, wanted), note)
    raise UserError(
        f"core_minutes is {core_minutes:g}: the barest pilot (two sizes, levels, lengths and seeds) takes about "
        f"{(seeds or 2) * min(one) / 60:.1f}; give more"
    )


@checked
def collect(
    design: Design,
    *,
    tier: Tier = "quick",
    data: Source = "scenes",
    workers: Whole | None = None,
    runs_dir: Folder = "runs",
) -> list[dict]:
    """The records of a pilot, training what is missing; at tier shipped the finished runs on this data, untrained."""
    if tier == "shipped":
        return studies_collect("all", data=data, runs_dir=runs_dir)
    from .engine import train_runs

    return train_runs(design.runs, workers=workers or None, runs_dir=runs_dir)


def _needed(effect: float, spread: float, wanted: float) -> tuple[int, str]:
    """Seeds for an effect, and `more than ` where no number that is tried would do; a wrong effect is an error."""
    try:
        return seeds_for(effect, spread, wanted), ""
    except UserError:
        if not effect > 0 or power(effect, spread, MOST_SEEDS) >= wanted:
            raise
        return MOST_SEEDS, "more than "


def _grid(base: Run, available: int, sizes: int, levels: int, steps: int, seeds: int) -> list[Run]:
    """Every size, level and seed at two lengths, and each network at random initialisation, from which lift counts."""
    seen = SIZES[_MODELS[sizes - 1]].parameters * steps * base.batch_size
    smallest = min(max(_SMALLEST, round((seen / _SHORT) ** 0.5)), available // 4)
    images = [int(n) for n in np.geomspace(smallest, available, levels).round()]
    runs = []
    for seed in range(seeds):
        for model in _MODELS[:sizes]:
            one = replace(base, model=model, seed=seed, lr=_LR.get(model, base.lr))
            runs.append(replace(one, images=images[-1], steps=0))
            runs += [replace(one, images=n, steps=t) for n in images for t in (steps // 2, steps)]
    return runs
