"""How many seeds an effect needs: power of the paired t-test over seeds, the test behind the claims. No torch here.

The spread between seeds comes from finished records: the reader's, else shipped ones.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from ..errors import UserError
from ..evidence import shipped
from ..evidence.records import groups, table
from ..evidence.stats import power

MEASURES = ("val_loss", "linear")
#: Seeds a study will ask for at most: beyond, an effect is too small for a pilot.
MOST_SEEDS = 12


def seed_spread(records: Iterable[dict] | None = None, measure: str = "val_loss", data: str = "photographs") -> float:
    """Standard deviation over seeds of the difference between two settings of one length, the median over pairs.

    Half the answer to how many seeds: the other half is the effect. Of the shipped runs (on photographs or on scenes)
    where no records are given or theirs have no two seeds. `UserError` for an unknown measure.
    """
    if measure not in MEASURES:
        raise UserError(f"measure is '{measure}': give one of {', '.join(MEASURES)}")
    for source in (list(records or ()), shipped.records("laptop-scenes" if data == "scenes" else "laptop-cifar10")):
        rows = next(iter(groups(table(source)).values()), [])
        cells: dict[tuple, dict[int, float]] = defaultdict(dict)
        for row in rows:
            if row[measure] is not None:
                cells[row["model"], row["images"], row["steps"]][row["seed"]] = row[measure]
        spreads = []
        for a in cells:
            for b in cells:
                both = sorted(cells[a].keys() & cells[b].keys())
                if a < b and a[2] == b[2] and (a[0] == b[0]) != (a[1] == b[1]) and len(both) > 1:
                    spreads.append(np.std([cells[a][s] - cells[b][s] for s in both], ddof=1))
        if spreads:
            return float(np.median(spreads))
    raise UserError(
        "no finished runs have two seeds: the spread between seeds is not known; train two seeds of a study"
    )


def seeds_for(effect: float, spread: float, wanted: float = 0.8) -> int:
    """The fewest seeds that see an effect this often. `UserError` where MOST_SEEDS do not, and for an effect of 0."""
    if not (np.isfinite(effect) and effect > 0):
        raise UserError(f"effect is {effect}: give the smallest difference that would matter, above 0")
    for seeds in range(2, MOST_SEEDS + 1):
        if power(effect, spread, seeds) >= wanted:
            return seeds
    raise UserError(
        f"an effect of {effect:g} needs more than {MOST_SEEDS} seeds (they differ by {spread:.3g}); the smallest that "
        f"{MOST_SEEDS} seeds see is {detectable(spread, MOST_SEEDS, wanted):.2g}"
    )


def detectable(spread: float, seeds: int, wanted: float = 0.8) -> float:
    """The smallest effect that this many seeds see this often; infinite for one seed."""
    if seeds < 2:
        return float("inf")
    low, high = 0.0, 100 * spread
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, spread, seeds) >= wanted else (middle, high)
    return high
