"""Which seeds a study takes: so many as were asked for, else so many as the minutes hold. No torch here.

The number is fixed before anything is looked at: who adds seeds until a verdict appears finds one by chance.
"""

import os
from pathlib import Path

from ..errors import UserError
from ..training.run import PRECISIONS
from ..training.specs import Positive, Whole, checked
from .collecting import cost_of
from .engine import plan_of
from .estimate import faster_precision, known_speeds, tuning_seconds
from .grids import TIERS, TRANSFER, seeds_of
from .parameters import StudyOptions, images_of
from .transfer_grid import AXES
from .workers import Local

#: Seconds that a study takes beside its runs: starting processes, and four notebooks at the end.
_REST = 30.0


@checked
def choose(
    name: str,
    how: StudyOptions,
    *,
    first_seed: Whole | None = None,
    minutes: Positive | None = None,
    measure: bool = True,
) -> tuple[list[int] | None, str]:
    """The seeds of a study, None for those of the tier or the task itself, and a line to print, or "".

    how.seeds: how many, or which. minutes: a study of more than the fewest seeds takes so many as these hold, up to the
    tier's most; by default the tier's own. measure: time a step on this machine where that is not known, else guess.
    """
    tier, data, seeds, runs_dir, engine = how.tier, how.data, how.seeds, Path(how.runs_dir), how.engine
    if isinstance(seeds, tuple):
        return list(seeds), ""
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
    images_of(data)  # before anything is measured
    known = known_speeds(runs_dir, axes.recipe)
    here = None
    if measure and engine == "local" and not all(f"{m} {p}" in known for m in axes.models for p in PRECISIONS):
        here = Local(how.device, how.workers)
        known = here.speeds(runs_dir, axes.models, axes.recipe)
    processes = here.workers if here else how.workers or (os.cpu_count() or 1 if engine == "local" else 1)
    each = _seconds(name, tier, data, first, runs_dir, known, how.precision) / processes
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
