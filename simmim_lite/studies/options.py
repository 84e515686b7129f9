"""Sizes and lengths that a budget can buy, predicted by a law, with intervals from held-out errors. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..evidence.laws import Fit
from ..evidence.records import short
from ..evidence.regret import at
from .basis import Basis

WHOLE = 1_281_167  # images of ImageNet-1K: only ImageNet-22K is known beyond


@dataclass(frozen=True, kw_only=True)
class Option:
    """One size and length. value, low, high are in the unit of `Plan.measure`, None where the law does not reach."""

    model: str
    params: int
    steps: int
    flops: float
    hours: float | None  # GPU hours in all
    epochs: float
    omega: float
    light: str
    value: float | None
    low: float | None  # 90 % interval from held-out errors
    high: float | None
    together: bool | None  # its interval overlaps that of the best
    chance: float | None  # that the best prediction is really the better of the two
    rank: int  # 1 is the best predicted

    @property
    def name(self) -> str:
        """`large, 250,000 iterations`."""
        return f"{short(self.model)}, {self.steps:,} iterations"


def row_of(on: Basis, model: str, size: Mapping, steps: int, images: int) -> dict:
    """A run that was not made, in the columns a law needs."""
    row = {"model": model, "params": size["params"], "steps": steps, "images": images, "images_seen": steps * on.batch}
    return row | {"flops": size["flop"] * steps * on.batch, "on_axis": on.own or images <= 1.001 * WHOLE}


def predict(on: Basis, law: Fit, rows: list[dict]) -> np.ndarray:
    """y of the law for each row: loss, or error in per cent; lower is better."""
    return np.array([law.predict(at(row, on.target))[0] for row in rows])


def options_of(
    on: Basis, rows: list[dict], speeds: Mapping[str, float], refused: bool
) -> tuple[list[Option], list[str]]:
    """All options, best first, and notes.

    Options more overfit (by Omega) than any run that the law was fitted to have no number and come last, the least
    overfit first: there the law's last term is saturated, and what it says of longer training is made up.
    """
    y = predict(on, on.law, rows)
    omega = np.array([row["params"] * row["images_seen"] / row["images"] ** 2 for row in rows])
    reach = float(on.points.omega.max())
    known = omega <= 1.01 * reach
    order = sorted(range(len(rows)), key=lambda k: (not known[k], y[k] if known[k] else omega[k]))
    said = known & (not refused)
    wide = [on.half_width(row["model"], row["images"]) if said[k] else (0.0, []) for k, row in enumerate(rows)]
    best, found = order[0], []
    for place, k in enumerate(order, 1):
        row, value, half = rows[k], y[k], wide[k][0]
        ends = sorted((100 - v if on.target == "accuracy" else v) for v in (value - half, value + half))
        speed = speeds.get(row["model"])
        found.append(
            Option(
                model=row["model"], params=row["params"], steps=row["steps"], flops=row["flops"],
                hours=row["images_seen"] / speed / 3600 if speed else None,
                epochs=row["images_seen"] / row["images"], omega=float(omega[k]), light=on.light(omega[k]),
                value=float(100 - value if on.target == "accuracy" else value) if said[k] else None,
                low=float(ends[0]) if said[k] else None, high=float(ends[1]) if said[k] else None,
                together=bool(value - half <= y[best] + wide[best][0]) if said[k] else None,
                chance=_chance(on, value - y[best]) if said[k] and k != best else None, rank=place,
            )
        )  # fmt: skip
    notes = list(dict.fromkeys(note for _, some in wide for note in some))
    if beyond := int((~known).sum()):
        one = f"{beyond} option{'s' * (beyond > 1)} beyond Omega {reach:.1e}, the most overfit of {on.name}"
        notes.append(f"{one}: no numbers, and last in order, by Omega")
    return found, notes


def _chance(on: Basis, gap: float) -> float | None:
    """How often the better of two predictions this far apart was the better run; None where too few pairs tell."""
    return next((g["share"] for g in on.gaps if g["from"] <= gap and (g["to"] is None or gap < g["to"])), None)
