"""Which seeds a study takes: so many as were asked for, else so many as the minutes hold. No torch here.

The number is fixed before anything is looked at: who adds seeds until a verdict appears finds one by chance.
"""

import math
import os
from pathlib import Path

from ..errors import UserError
from ..training.run import PRECISIONS
from . import full_size
from .collecting import check, cost_of
from .engine import plan_of
from .estimate import faster_precision, known_speeds, tuning_seconds
from .grids import TIERS, TRANSFER, seeds_of
from .parameters import check_data
from .transfer_grid import AXES
from .workers import Local

#: Seconds that a study takes beside its runs: starting processes, and four notebooks at the end.
_REST = 30.0


def choose(
    name: str, *, tier: str, data: str, seeds: int | None, first_seed: int | None, minutes: float | None,
    runs_dir: str | Path, workers: int | None, device: str, precision: str, engine: str, measure: bool = True,
) -> tuple[list[int] | None, str]:  # fmt: skip
    """The seeds of a study, None for those of the tier or the task itself, and a line to print, or "".

    seeds: how many. minutes: a study of more than the fewest seeds takes so many as these hold, up to the tier's most;
    by default the tier's own. measure: time a step on this machine where that is not known yet, else guess.
    """
    check(name, tier)
    if first_seed is not None and first_seed < 0:
        raise UserError(f"first_seed is {first_seed}: give a whole number from 0")
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise UserError(f"minutes is {minutes:g}: give a number above 0")
    if seeds is not None and minutes is not None:
        raise UserError(f"seeds is {seeds} and minutes {minutes:g}: give one, seeds fixes the number")
    if tier not in TIERS:  # shipped
        return None, ""
    axes = TIERS[tier].on(data)
    first = axes.first_seed if first_seed is None else first_seed
    minutes = axes.minutes if minutes is None else minutes
    if seeds is not None or name == TRANSFER or axes.full_size or not (minutes or axes.most_seeds):
        count = seeds or (AXES[tier] if name == TRANSFER and tier in AXES else axes).seeds
        return None if first_seed is None and seeds is None else seeds_of(tier, range(first, first + count)), ""
    for source in filter(None, full_size.sources(data)):
        check_data(source)  # before anything is measured
    known = known_speeds(Path(runs_dir), axes.recipe)
    here = None
    if measure and engine == "local" and not all(f"{m} {p}" in known for m in axes.models for p in PRECISIONS):
        here = Local(device, workers)
        known = here.speeds(Path(runs_dir), axes.models, axes.recipe)
    processes = here.workers if here else workers or (os.cpu_count() or 1 if engine == "local" else 1)
    each = _seconds(name, tier, data, first, Path(runs_dir), known, precision) / processes
    holds = int((60 * (minutes or 0) - _REST) // each)
    count = min(max(holds, axes.seeds), max(axes.most_seeds, axes.seeds))
    chosen = seeds_of(tier, range(first, first + count))
    said = f"{count} seeds, {chosen[0]} to {chosen[-1]}: about {_clock(_REST + count * each)} in {processes} "
    said += "process" if processes == 1 else "processes"
    if minutes and holds < axes.seeds:
        said += f"; --minutes {minutes:g} holds {max(0, holds)}, and fewer than {axes.seeds} decide too little"
    elif minutes:
        said += f", which --minutes {minutes:g} holds"
    return chosen, said


def _seconds(
    name: str, tier: str, data: str, seed: int, runs_dir: Path, speeds: dict[str, float], precision: str
) -> float:
    """Seconds of a core that a seed adds to a study."""
    if precision == "auto":
        axes = TIERS[tier].on(data)
        precision = faster_precision(speeds, axes.models[-1]) if speeds else axes.recipe.precision
    runs, tuned = plan_of(name, tier, data=data, seeds=[seed], precision=precision)
    return cost_of(runs, runs_dir)["seconds"] + sum(tuning_seconds(spec, speeds) for spec in tuned)


def _clock(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
