"""What a plan rests on: a table of runs, the law fitted to it, and its errors on held-out runs. No torch here."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evidence import published, tables
from ..evidence.heldout import HeldOut, coverage, held_out
from ..evidence.laws import FORMS, Fit, Points, at, fit, points
from ..evidence.records import SCORES, score_of
from ..processes import waiting

WHOLE = 1_281_167  # images of ImageNet-1K: only ImageNet-22K is known beyond
#: Omega on the published runs (docs/facts.md, 7): below, nothing overfits; the loss may turn up; a coin flip; above,
#: longer training lost accuracy every time. A test counts this on the doublings.
OMEGAS = (4e5, 2e6, 5e6)
LIGHTS = {
    "green": "nothing is known to overfit",
    "yellow": "the loss may turn up while the score still gains",
    "orange": "longer training is a coin flip",
    "red": "longer training lost score every time",
}


@dataclass(frozen=True, eq=False)
class Basis:
    """Runs of one recipe and the law that predicts them best, with its errors on held-out runs."""

    name: str  # the published runs | your runs in DIR
    own: bool
    rows: list[dict] = field(repr=False)
    target: str  # loss | accuracy
    score: str | None
    form: str = "fixed"
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
    def sizes(self) -> dict[str, dict]:
        """Of each model, smallest first: `params`, and `flop`, those of training on one image."""
        found = {row["model"]: row for row in sorted(self.rows, key=lambda row: row["params"])}
        return {m: {"params": r["params"], "flop": r["flops"] / r["images_seen"]} for m, r in found.items()}

    @cached_property
    def lengths(self) -> list[int]:
        """Iterations that were run, shortest first."""
        return sorted({row["steps"] for row in self.rows})

    def row(self, model: str, steps: int, images: int) -> dict:
        """A run that was not made, in the columns a law needs."""
        size, seen = self.sizes[model], steps * self.rows[0]["batch_size"]
        row = {"model": model, "params": size["params"], "steps": steps, "images": images, "images_seen": seen}
        return row | {"flops": size["flop"] * seen, "on_axis": self.own or images <= 1.001 * WHOLE}

    def predict(self, row: dict) -> float:
        """What the law says of a run: loss, or error in per cent; lower is better."""
        return float(self.law.predict(at(row, self.target))[0])

    @property
    def measure(self) -> str:
        """What is predicted, to read."""
        if self.target == "loss":
            return "validation loss"
        return "top-1 (%)" if self.score == "finetune" and not self.own else f"{SCORES[self.score]} (%)"

    def light(self, omega: float) -> str:
        """green, yellow, orange or red on the published scale; a dash for other runs, whose marks are not known."""
        return "–" if self.own else list(LIGHTS)[sum(omega > mark for mark in OMEGAS)]

    def half_width(self, model: str, images: int) -> tuple[float, list[str]]:
        """Half a 90 % interval for a size on a number of images, from held-out errors of whole data levels, or of cells
        where the level was run. Groups (this size, the nearest level) in which that holds the truth too rarely take
        their own largest error instead, and are named."""
        x, notes = self.points, []
        known = bool(np.isclose(x.d, images, rtol=0.01).any())
        found = self.errors("cell" if known else "level", "cell", "one")
        width, nearest = found.half_width, str(x.level[np.abs(np.log(x.d / images)).argmin()])
        for by, group in (("level", nearest), ("size", model)):
            said = coverage(x, found, by).get(group)
            if said and said["under"]:
                width = max(width, float(np.nanmax(np.abs(found.error[getattr(x, by) == group]))))
                notes.append(f"{group}: 90 % intervals held {said['others']:.0%} of held-out runs there: widened")
        return width, notes


@cache
def of_published(target: str) -> Basis:
    """The 63 published runs."""
    return Basis("the published runs", False, published.rows(), target, published.SCORE)


def of_own(runs_dir: str | Path, target: str) -> Basis:
    """The reader's own runs, else imported ones, and the form that predicts held-out cells best."""
    found, name = tables.of_folder(runs_dir)
    rows = [r for r in found if r["flops"] and r["val_loss"] is not None]
    if not rows:
        remedy = "train some of a study, or import a file with a column flops or image_size"
        raise UserError(f"{name} have no cost in FLOPs, and a plan is made under a budget: {remedy}")
    left = f" ({len(rows)} of {len(found)}: the others have no loss or no FLOPs)" if len(rows) < len(found) else ""
    return of_rows(rows, target, name + left)


def of_rows(rows: Iterable[dict], target: str, name: str = "your runs") -> Basis:
    """As `of_own`, from rows of one recipe. `UserError` for runs of one size or one length only, of several batch or
    image sizes, without a score where accuracy is asked for, and for too few runs."""
    rows = list(rows)
    score = score_of(rows)
    if target == "accuracy":
        rows = [row for row in rows if score and row[score] is not None]
    if not rows:
        raise UserError(f"{name} have no transfer score (it needs labelled images): use --target loss")
    for column, several in (("steps", True), ("model", True), ("batch_size", False), ("image_size", False)):
        values = sorted({row[column] for row in rows}, key=str)
        if (len(values) > 1) != several:
            wanted = "two at least; train more of a study" if several else "runs of one"
            raise UserError(f"{name} are of {column} {', '.join(map(str, values))}: a plan needs {wanted}")
    x, found = points(rows, target, score), {}
    with waiting(f"fitting the laws to {name}"):
        for form in FORMS:
            with suppress(UserError):
                found[form] = held_out(form, x, "cell" if len(np.unique(x.cell)) > 2 else "one", whole=fit(form, x))
    if not found:
        raise UserError(f"{name}: {len(np.unique(x.unit))} different runs are too few for any law; train more")
    best = min(found, key=lambda form: found[form].mean)
    rivals = {form: one.mean for form, one in found.items()}
    return Basis(name, True, rows, target, score, best, {found[best].split: found[best]}, rivals)
