"""What a source lists, what training and scoring see of it, and the one line that says so. No torch here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .ranking import rank

_HOLDOUT_SEED = 1  # which tenth of a source without a test split is held out, and how a test split is halved
_NAMED = 3  # names a reason in the line
#: What was passed over: its name (a folder's ends in a slash), why, and how many files that are.
Passed = tuple[str, str, int]


@dataclass(frozen=True)
class Layout:
    """Images by split: `names` of all, and for each split the indices into them, in the order they are kept.

    Labels are int64 (N,) into `classes`, -1 where unknown. Without classes there is no `test` split.
    """

    names: list[str]
    ids: np.ndarray  # uint64 (N,)
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()  # what the line of the source says of all this


@dataclass(frozen=True)
class Parts:
    """What a source lists, before any of it is held out; as `Layout`, with what is held out by the source itself."""

    names: list[str]
    ids: np.ndarray  # uint64 (N,)
    labels: np.ndarray  # int64 (N,), -1 where unknown
    classes: tuple[str, ...]
    train: np.ndarray  # int64, indices into the names
    held: dict[str, np.ndarray]  # split (val, test) -> indices
    left_out: np.ndarray | None = None  # bool (N,): known not to be readable; None = nobody has looked
    notes: tuple[str, ...] = ()  # how the source was read, for its line
    passed: tuple[Passed, ...] = ()

    def split(self, title: str, *, halve: bool = True) -> Layout:
        """The splits that training and scoring see; what is left out takes part in the draw alone.

        A single labelled split that is held out serves val (first half by hash rank) and test (second half). Without
        one, a tenth of the training images is held out, class-balanced and so that each class keeps an image: halved
        alike, or all of it test beside a test split without labels, which is then val. A val split without labels is
        val, and training keeps its images: there is no test. Without labels there is val alone. Held-out images are
        kept in rank order, so any first n of them are class-balanced. halve=False: all that is held out with labels is
        `test`, and there is no val.
        """
        held = {split: self.held[split] for split in ("val", "test") if len(self.held.get(split, ()))}
        train, labels, classes, notes = self.train, self.labels, self.classes, list(self.notes)

        def known(rows: np.ndarray) -> bool:
            return bool(classes) and bool((labels[rows] >= 0).all())

        def ranked(rows: np.ndarray) -> np.ndarray:
            return rows[rank(self.ids[rows], labels[rows] if known(rows) else None, _HOLDOUT_SEED)]

        scored = next((split for split in ("test", "val") if split in held and known(held[split])), None)
        drawn = None
        if not scored and known(train) and "val" in held:
            mend = "sort it into class folders, or take it away and a part of train is held out"
            notes.append(f"val has no labels, so there is nothing to probe with: {mend}")
        elif not scored and known(train):
            drawn, alone = _drawn(ranked(train), labels, title)
            if len(drawn) < 2:
                labels, classes, drawn = np.full(len(labels), -1), (), None
                notes.append("labels not used: with one picture a class there is nothing to probe with")
            elif len(alone):
                named = listed([classes[k] for k in sorted(set(labels[alone].tolist()))])
                notes.append(f"classes of a single picture are trained on and not tested ({named})")
        if drawn is None and not held:
            drawn, _ = _drawn(ranked(train), np.zeros_like(labels), title)
        if drawn is not None:
            train = np.setdiff1d(train, drawn)
        test = ranked(held[scored]) if scored else drawn if drawn is None else ranked(drawn)
        # a held-out split without labels, or beside a labelled one, is for validation alone
        spare = None if scored == "val" else next((split for split in held if split != scored), None)
        val = ranked(held[spare]) if spare else None
        if spare and drawn is not None:
            notes.append(
                f"{spare} has no labels and serves as val: {len(drawn):,} pictures of train are held out as test"
            )
        for split in held.keys() - {spare, scored}:
            notes.append(f"{len(held[split]):,} pictures of {split} not used: they have no labels")
        if halve and val is None:
            if scored and len(test) < 4:
                raise UserError(f"{title}: {len(test)} held-out images are too few; give at least 4")
            half = (len(test) + 1) // 2 if known(test) else len(test)
            val, test = test[:half], test[half:]
        elif halve and test is None and len(val) < 2:
            raise UserError(f"{title}: {len(val)} held-out images are too few; give at least 2")
        splits = {"train": train} | ({"val": val} if halve else {})
        if test is not None and len(test) and known(test):
            splits["test"] = test
        if self.left_out is not None:
            splits = {split: rows[~self.left_out[rows]] for split, rows in splits.items()}
        return Layout(self.names, self.ids, labels, classes, splits, tuple(notes))


def _drawn(order: np.ndarray, labels: np.ndarray, title: str) -> tuple[np.ndarray, np.ndarray]:
    """A tenth of some ranked images, at least 4 where each class (by label) keeps one; and the only ones of a class."""
    tenth = max(4, round(len(order) / 10))
    if len(order) < tenth + 1:
        raise UserError(f"{title}: {len(order)} images are too few to hold some of them out; give at least 5")
    _, last, count = np.unique(labels[order][::-1], return_index=True, return_counts=True)
    last = len(order) - 1 - last
    return np.delete(order, last)[:tenth], order[last[count == 1]]


def describe(
    title: str,
    classes: int,
    counts: Mapping[str, int],
    notes: Iterable[str] = (),
    passed: Iterable[Passed] = (),
    skipped: Iterable[tuple[str, str]] = (),
) -> str:
    """The one line about a source: classes, pictures by split, how it was read, what was passed over and why.

    skipped: pictures that could not be decoded, as a store has them (name, reason).
    """
    what = f"{classes:,} classes" if classes else "no labels"
    pictures = " / ".join(f"{count:,} {split}" for split, count in counts.items())
    reasons: dict[str, list[str]] = {}
    total = 0
    small = "smaller than the image size"
    undecoded = ((name, small if small in reason else "cannot be read", 1) for name, reason in skipped)
    for name, reason, count in (*passed, *undecoded):
        reasons.setdefault(reason, []).append(name)
        total += count
    named = "; ".join(f"{listed(names)}: {reason}" for reason, names in reasons.items())
    said = [
        f"data: {what}, {pictures} pictures of {title}",
        *notes,
        *([f"{total:,} passed over ({named})"] * bool(total)),
    ]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in "; ".join(said))


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
