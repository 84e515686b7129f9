"""What the runs say on one claim, and the three verdicts. No torch here."""

from dataclasses import dataclass

HOLDS, FAILS, OPEN = "holds", "does not hold", "too small to say"


@dataclass(frozen=True)
class Finding:
    """What the runs say on one rule of `claims.TABLE`; it becomes a verdict unless it is `open`."""

    evidence: str  # a sentence with all numbers filled in
    effect: float | None = None
    low: float | None = None  # 95 % interval
    high: float | None = None
    n: int = 0  # independent units
    open: bool = False
    other: tuple[float, float] | None = None  # interval of the training loss' correlation (C5)
