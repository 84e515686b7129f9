"""What a plan rests on: a table of runs, the law fitted to it, its errors on held-out runs, and what it predicts.

No torch here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evidence import published, tables
from ..evidence.laws import FORMS, Fit, Points, at, fit, points, score_of
from ..evidence.proxy import doublings
from ..evidence.records import SCORES, short
from ..evidence.trial import HeldOut, better_by_gap, coverage, held_out
from ..processes import waiting

WHOLE = 1_281_167  # images of ImageNet-1K: only ImageNet-22K is known beyond
#: Omega on the published runs (docs/facts.md, 7): below, nothing overfits; the loss may turn up; a coin flip; above,
#: longer training lost accuracy every time. A test counts this on the doublings.
LIGHTS = (4e5, 2e6, 5e6)
_GAPS = {"accuracy": (0.0, 0.1, 0.2, 0.4, np.inf), "loss": (0.0, 0.001, 0.002, 0.005, 0.01, np.inf)}
_ENOUGH = 20  # pairs from which a share is quoted


@dataclass(frozen=True, eq=False)
class Basis:
    """Runs of one recipe and the law that predicts them best, with its errors on held-out runs."""

    name: str  # published runs | your runs in DIR
    own: bool
    rows: list[dict] = field(repr=False)
    target: str  # loss | accuracy
    score: str | None
    form: str
    held: dict[str, HeldOut | None] = field(default_factory=dict, repr=False)  # by split, as far as computed
    rivals: dict[str, float] = field(default_factory=dict)  # mean error on held-out cells, by form

    @cached_property
    def points(self) -> Points:
        """The runs as arrays."""
        return points(self.rows, self.target, self.score)

    @cached_property
    def law(self) -> Fit:
        """The law fitted to all of them."""
        return fit(self.form, self.points)

    def errors(self, *splits: str) -> HeldOut:
        """Errors on held-out runs by the first of these splits that the runs allow; each is computed once."""
        for split in splits:
            if split not in self.held:
                try:
                    self.held[split] = held_out(self.form, self.points, split, whole=self.law)
                except UserError:
                    self.held[split] = None
            if self.held[split] is not None:
                return self.held[split]
        raise UserError(f"{self.name} are too few to hold any out: train more of a study")

    @cached_property
    def gaps(self) -> list[dict]:
        """How often the better prediction is the better run, by the gap predicted; groups of few pairs left out."""
        found = self.errors("cell", "one")
        steps = tuple(k * found.mean for k in (0, 0.5, 1, 2, 4, np.inf)) if self.own else _GAPS[self.target]
        return [g for g in better_by_gap(self.points, found, steps) if g["n"] >= _ENOUGH]

    @cached_property
    def sizes(self) -> dict[str, dict]:
        """Of each model, smallest first: `params`, and `flop`, those of training on one image."""
        found = {row["model"]: row for row in sorted(self.rows, key=lambda row: row["params"])}
        return {m: {"params": r["params"], "flop": r["flops"] / r["images_seen"]} for m, r in found.items()}

    @cached_property
    def lengths(self) -> list[int]:
        """Iterations that were run, shortest first."""
        return sorted({row["steps"] for row in self.rows})

    def row(self, model: str, steps: int, images: int, **changed: float) -> dict:
        """A run that was not made, in the columns a law needs."""
        size, seen = self.sizes[model], steps * self.batch
        row = {"model": model, "params": size["params"], "steps": steps, "images": images, "images_seen": seen}
        return row | {"flops": size["flop"] * seen, "on_axis": self.own or images <= 1.001 * WHOLE} | changed

    def predict(self, row: dict) -> float:
        """What the law says of a run: loss, or error in per cent; lower is better."""
        return float(self.law.predict(at(row, self.target))[0])

    @property
    def batch(self) -> int:
        """Images a step."""
        return self.rows[0]["batch_size"]

    @property
    def image_size(self) -> int | None:
        """Pixels a side; None where the runs do not say."""
        return self.rows[0]["image_size"]

    @property
    def images(self) -> tuple[int, int]:
        """The fewest and the most unique images."""
        counts = [row["images"] for row in self.rows]
        return min(counts), max(counts)

    @property
    def measure(self) -> str:
        """What is predicted, to read."""
        if self.target == "loss":
            return "validation loss"
        return "top-1 (%)" if self.score == "finetune" and not self.own else f"{SCORES[self.score]} (%)"

    @cached_property
    def lights(self) -> tuple[float, float, float] | None:
        """Omega below which nothing is known to overfit, two marks between, and above which longer always lost.

        Of own runs from their own doublings, the two marks being one; None where they have no doubling that rose.
        """
        if not self.own:
            return LIGHTS
        found = doublings(self.rows, self.score).to_dict("records") if self.score else []
        rose = [d["omega"] for d in found if d["loss_change"] > 0]
        kept = [d["omega"] for d in found if d["score_change"] >= 0]
        if not rose:
            return None
        last = max([*kept, min(rose)])
        lost = any(d["omega"] > last for d in found)  # without one that lost above, there is no red
        return min(rose), last, last if lost else float("inf")

    def light(self, omega: float) -> str:
        """green, yellow, orange or red; a dash where these runs cannot tell."""
        if self.lights is None:
            return "–"
        return ("green", "yellow", "orange", "red")[sum(omega > mark for mark in self.lights)]

    def half_width(self, model: str, images: int) -> tuple[float, list[str]]:
        """Half a 90 % interval for a size on a number of images, and where it was widened because it under-covers.

        From held-out errors of whole data levels, or of cells where the level was run. Groups (this size, the nearest
        level) in which that holds the truth too rarely take their own largest error instead.
        """
        x = self.points
        known = bool(np.isclose(x.d, images, rtol=0.01).any())
        found = self.errors("cell" if known else "level", "cell", "one")
        width, notes = found.half_width, []
        nearest = str(x.level[np.abs(np.log(x.d / images)).argmin()])
        for by, group in (("level", nearest), ("size", model)):
            said = coverage(x, found, by).get(group)
            if said and said["under"]:
                width = max(width, float(np.nanmax(np.abs(found.error[getattr(x, by) == group]))))
                notes.append(
                    f"{group}: 90 % intervals held {said['others']:.0%} of held-out runs there, so they are widened"
                )
        return width, notes


@cache
def of_published(target: str, form: str = "fixed") -> Basis:
    """The 63 published runs."""
    return Basis("the published runs", False, published.rows(), target, published.SCORE, form)


def of_own(runs_dir: str | Path, target: str) -> Basis:
    """The reader's own runs, else imported ones (`tables.of_folder`), and the form that predicts held-out cells best.

    `UserError` for no runs, for one size or one length only, for runs without a cost, and where accuracy is asked for
    and no run has a score.
    """
    found, name = tables.of_folder(runs_dir)
    rows = [r for r in found if r["flops"] and r["val_loss"] is not None]
    if not rows:
        remedy = "add a column flops, or image_size for the sizes of this project, and import the file again"
        if not name.startswith("the imported"):
            remedy = "train some of a study"
        raise UserError(f"{name} have no cost in FLOPs, and a plan is made under a budget: {remedy}")
    if len(rows) < len(found):
        name += f" ({len(rows)} of {len(found)}: the others have no loss or no FLOPs)"
    return of_rows(rows, target, name)


def of_rows(rows: Iterable[dict], target: str, name: str = "your runs") -> Basis:
    """As `of_own`, from rows of one recipe."""
    rows = list(rows)
    score = score_of(rows)
    if target == "accuracy":
        rows = [row for row in rows if score and row[score] is not None]
    if not rows:
        raise UserError(f"{name} have no transfer score (it needs labelled images): use --target loss")
    for field_, what, remedy in (
        ("steps", "length", "run the same at half the steps as well (study schedule)"),
        ("model", "size", "run a second size (study model-size)"),
    ):
        values = {row[field_] for row in rows}
        if len(values) < 2:
            raise UserError(f"{name} are of one {what} only ({values.pop()}): a plan needs two; {remedy}")
    for field_, what in (("batch_size", "batch sizes"), ("image_size", "image sizes")):
        values = sorted({row[field_] for row in rows}, key=str)
        if len(values) > 1:
            raise UserError(f"{name} are of several {what} ({', '.join(map(str, values))}): a plan needs runs of one")
    x, found = points(rows, target, score), {}
    with waiting(f"fitting the laws to {name}"):
        for form in FORMS:
            try:
                whole = fit(form, x)
                split = "cell" if len(np.unique(x.cell)) > 2 else "one"
                found[form] = held_out(form, x, split, whole=whole)
            except UserError:
                continue
    if not found:
        raise UserError(
            f"{name}: {len(np.unique(x.unit))} different runs are too few for any law; train more of a study"
        )
    best = min(found, key=lambda form: found[form].mean)
    rivals = {form: one.mean for form, one in found.items()}
    return Basis(name, True, rows, target, score, best, {found[best].split: found[best]}, rivals)


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


def options_of(
    on: Basis, rows: list[dict], speeds: Mapping[str, float], refused: bool
) -> tuple[list[Option], list[str]]:
    """All options, best first, and notes.

    Options more overfit (by Omega) than any run that the law was fitted to have no number and come last, the least
    overfit first: there the law's last term is saturated, and what it says of longer training is made up.
    """
    y = np.array([on.predict(row) for row in rows])
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
