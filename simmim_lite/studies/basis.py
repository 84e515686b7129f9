"""What a plan rests on: a table of runs, the law fitted to it, and its errors on held-out runs. No torch here."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evidence import published, tables
from ..evidence.doublings import doublings
from ..evidence.laws import FORMS, Fit, Points, bootstrap, fit, points, score_of
from ..evidence.records import SCORES
from ..evidence.trial import HeldOut, better_by_gap, coverage, held_out
from ..processes import waiting

#: Omega on the published runs (FACTS 7): below, nothing overfits; the loss may turn up; a coin flip; above, longer
#: training lost accuracy every time. A test counts this on the doublings.
LIGHTS = (4e5, 2e6, 5e6)
RESAMPLES = 40  # bootstrap fits for the choice of a pilot run
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
    def bootstrap(self) -> list[Fit]:
        """The law fitted to cells drawn again, seeds fixed."""
        return bootstrap(self.form, self.points, resamples=RESAMPLES, most=60)

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
