"""What a source lists before a picture is decoded: names, ids, labels, ranks, splits, and the one line about it all."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, first_line
from ..model.masking import splitmix64
from . import decode

#: What was passed over: its name (a folder's ends in a slash), why, and how many files that are.
PassedOver = tuple[str, str, int]
_STAND_INS = 10  # unreadable pictures in a row before training gives up
_HOLDOUT_SEED = 1  # which tenth of a source without a test split is held out, and how a test split is halved


def signature(*parts: object) -> str:
    """12 hexadecimal digits that change when the parts do."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def picture_digest(content: bytes) -> int:
    """64 bits that change when a picture's bytes do."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def image_ids(names: list[str]) -> np.ndarray:
    """Ids of images: a hash of each name (a relative path with forward slashes); uint64 (N,)."""
    encoded = (name.encode("utf-8", "surrogateescape") for name in names)
    return np.frombuffer(b"".join(hashlib.blake2b(e, digest_size=8).digest() for e in encoded), "<u8").astype(np.uint64)


def rank(ids: np.ndarray, labels: np.ndarray | None, seed: int, block: int | None = None) -> np.ndarray:
    """Order of a source's images such that every prefix is a class-balanced draw: int64 (N,), indices into `ids`.

    Within a class, images are ordered by a hash of (seed, class, id); the k-th of n of a class then stands at (k + .5)
    / n of the whole. `block`: each run of so many images is ranked alone, so that a source that grows keeps its
    draws."""
    ids = np.asarray(ids, np.uint64)
    classes = np.zeros(len(ids), np.int64) if labels is None else np.asarray(labels, np.int64)
    if block and len(ids) > block:
        starts = range(0, len(ids), block)
        return np.concatenate([s + rank(ids[s : s + block], classes[s : s + block], seed) for s in starts])
    key = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ classes.astype(np.uint64))
    hashed = splitmix64(ids ^ key)
    within = np.lexsort((ids, hashed, classes))  # by class, then hash
    counts = np.bincount(classes, minlength=1)
    first = np.cumsum(counts) - counts
    ordered = classes[within]
    place = (np.arange(len(ids)) - first[ordered] + 0.5) / counts[ordered]
    return within[np.lexsort((hashed[within], place))]


@dataclass(frozen=True)
class Catalogue:
    """The pictures of a source by number: as it lists them, or, after `split`, as training and scoring see them."""

    names: list[str]
    ids: np.ndarray  # uint64 (N,)
    labels: np.ndarray  # int64 (N,) into the classes, -1 where unknown
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]  # train, and val or test where they are there: int64, numbers of pictures
    spec: str = ""
    reader: object = field(default=None, repr=False)  # content(i): bytes of a file, or a picture; title(i): its name
    digest: str = ""  # of what is listed: names, bytes and labels of files; pictures of a pack
    stamp: str = ""  # changes when a picture may have: files' times too
    sizes: np.ndarray | None = None  # int64 (N,), bytes of each picture's file; None where it is in none
    left_out: np.ndarray | None = None  # bool (N,): known not to be readable; None = nobody has looked
    notes: tuple[str, ...] = ()  # how the source was read, for its line
    passed: tuple[PassedOver, ...] = ()

    train = property(lambda self: self.splits["train"])

    def known(self, rows: np.ndarray) -> bool:
        return bool(self.classes) and bool((self.labels[rows] >= 0).all())

    def picture(self, i: int) -> Image.Image:
        """Picture i at its own size, upright, RGB; raises as decoders do."""
        return decode.read(self.reader.content(i))

    def readable(self, split: str) -> "Split":
        """A split at the pictures' own size."""
        rows = self.splits[split]
        labels = self.labels[rows] if self.known(rows) else None
        return Split(f"{split} of {self.spec}", None, self.ids[rows], labels, reader=self.reader, rows=rows)

    def say(self) -> str:
        """Say the line of this source, and return it."""
        counts = {split: len(rows) for split, rows in self.splits.items()}
        line = describe(self.spec, len(self.classes), counts, self.notes, self.passed)
        say(line, self.spec, self.stamp)
        return line

    def split(self, *, halve: bool = True) -> "Catalogue":
        """The splits that training and scoring see; what is left out takes part in the draw alone.

        A labelled held-out split serves val (first half by hash rank) and test (second half). Without one, a class-
        balanced tenth of train is held out; beside a test split without labels it is test, and that split val. A val
        split without labels is val, and there is no test. halve=False: all that is held out with labels is test."""
        held = {split: self.splits[split] for split in ("val", "test") if len(self.splits.get(split, ()))}
        own, train, notes, drawn = self, self.train, list(self.notes), None

        def ranked(rows: np.ndarray) -> np.ndarray:
            return rows[rank(self.ids[rows], own.labels[rows] if own.known(rows) else None, _HOLDOUT_SEED)]

        scored = next((split for split in ("test", "val") if split in held and self.known(held[split])), None)
        if not scored and self.known(train) and "val" in held:
            mend = "sort it into class folders, or take it away and a part of train is held out"
            notes.append(f"val has no labels, so there is nothing to probe with: {mend}")
        elif not scored and self.known(train):
            drawn, alone = _drawn(ranked(train), self.labels, self.spec)
            if len(drawn) < 2:
                own, drawn = replace(self, labels=np.full(len(self.labels), -1), classes=()), None
                notes.append("labels not used: with one picture a class there is nothing to probe with")
            elif len(alone):
                named = listed([self.classes[k] for k in sorted(set(self.labels[alone].tolist()))])
                notes.append(f"classes of a single picture are trained on and not tested ({named})")
        if drawn is None and not held:
            drawn, _ = _drawn(ranked(train), np.zeros_like(self.labels), self.spec)
        if drawn is not None:
            train = np.setdiff1d(train, drawn)
        test = ranked(held[scored]) if scored else drawn if drawn is None else ranked(drawn)
        # a held-out split without labels, or beside a labelled one, is for validation alone
        spare = None if scored == "val" else next((split for split in held if split != scored), None)
        val = ranked(held[spare]) if spare else None
        if spare and drawn is not None:
            tenth = f"{len(drawn):,} pictures of train are held out as test"
            notes.append(f"{spare} has no labels and serves as val: {tenth}")
        for split in held.keys() - {spare, scored}:
            notes.append(f"{len(held[split]):,} pictures of {split} not used: they have no labels")
        if halve and val is None:
            half = (len(test) + 1) // 2 if own.known(test) else len(test)
            val, test = test[:half], test[half:]
        if halve and len(val) < 2:
            raise UserError(f"{self.spec}: {len(val)} held-out images are too few; give at least 4")
        splits = {"train": train} | ({"val": val} if halve else {})
        if test is not None and len(test) and own.known(test):
            splits["test"] = test
        if self.left_out is not None:
            splits = {split: rows[~self.left_out[rows]] for split, rows in splits.items()}
        return replace(own, splits=splits, notes=tuple(notes))


def _drawn(order: np.ndarray, labels: np.ndarray, title: str) -> tuple[np.ndarray, np.ndarray]:
    """A tenth of some ranked images, at least 4 where each class (by label) keeps one; and the only ones of a class."""
    tenth = max(4, round(len(order) / 10))
    if len(order) < tenth + 1:
        raise UserError(f"{title}: {len(order)} images are too few to hold some of them out; give at least 5")
    _, last, count = np.unique(labels[order][::-1], return_index=True, return_counts=True)
    last = len(order) - 1 - last
    return np.delete(order, last)[:tenth], order[last[count == 1]]


class Files:
    """A reader of files (see `Catalogue`). Names are one array of bytes, which worker processes share."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = os.fspath(root), np.array([os.fsencode(name) for name in names])

    def title(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[i])))

    def content(self, i: int) -> bytes:
        return Path(self.title(i)).read_bytes()


@dataclass(frozen=True)
class Split:
    """Pictures of one split: arrays of one size, memory-mapped, so that slicing is cheap; or read when asked for."""

    name: str  # "train of imagefolder:DIR", for messages
    images: np.ndarray | None  # uint8 (N, 3, S, S); None where pictures are at their own size, behind a reader
    ids: np.ndarray  # uint64 (N,), unique
    labels: np.ndarray | None  # int64 (N,), or None where they are not known
    masks: np.ndarray | None = None  # bool (N, S, S) of the main object, or None
    block: int | None = None  # images that a manifest ranks together; None = all
    reader: object = field(default=None, repr=False)  # see `Catalogue`
    rows: np.ndarray | None = field(default=None, repr=False)  # the reader's numbers of these pictures

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, i: int) -> Image.Image:
        """Picture i, RGB, upright; raises as decoders do."""
        if self.reader is None:
            return Image.fromarray(np.ascontiguousarray(self.images[i].transpose(1, 2, 0)))
        return decode.read(self.reader.content(int(self.rows[i])))

    def title(self, i: int) -> str:
        return f"image {self.ids[i]}" if self.reader is None else self.reader.title(int(self.rows[i]))


@dataclass(frozen=True)
class Data:
    """An open source. val and test are in hash-rank order: any first n of them are a class-balanced draw."""

    spec: str
    name: str
    image_size: int | None  # pixels; None where pictures have a size of their own
    train: Split | None  # with a reader where pictures are decoded as training goes
    val: Split | None
    probe_train: Split | None  # labelled; None without labels
    test: Split | None  # labelled, no image of val (but see `open_pictures`); None without labels
    classes: tuple[str, ...]
    mean: tuple[float, float, float] | None  # of the training images, 0..1 units; None where nobody has counted
    std: tuple[float, float, float] | None
    digest: str  # of ids, labels, pixels and masks (of scenes: the first block), or of what is listed
    skipped: list[tuple[str, str]] = field(default_factory=list)  # images left out: name, reason
    line: str = ""  # what there is, how it was read and what was passed over

    num_classes = property(lambda self: len(self.classes))
    has_masks = property(lambda self: self.train.masks is not None)


def first_readable(split: Split, chosen: np.ndarray, place: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
    """The picture at a place of a draw (`chosen`: numbers in the split), or the next one that can be read; its
    number in the split; and those that could not (name, reason). `UserError` after ten in a row."""
    problems = []
    for further in range(_STAND_INS):
        i = int(chosen[(place + further) % len(chosen)])
        try:
            return split.picture(i), i, problems
        except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
            problems.append((split.title(i), first_line(error)))
    last = f"{_STAND_INS} pictures in a row cannot be read (the last: {': '.join(problems[-1])})"
    raise UserError(f"{split.name}: {last}; is the disk there? Run again to go on from the last checkpoint")


class Skipped(dict):
    """Pictures that could not be read, name -> reason. Each is named once on stderr."""

    def note(self, problems: list[tuple[str, str]]) -> None:
        for name, reason in problems:
            if name not in self:
                self[name] = reason
                print(f"simmim-lite: {name} cannot be read ({reason}); it is left out", file=sys.stderr, flush=True)


def describe(
    title: str, classes: int, counts: Mapping[str, int], notes: Iterable[str] = (), passed: Iterable[PassedOver] = ()
) -> str:
    """The one line about a source: classes, pictures by split, how it was read, what was passed over and why."""
    passed, reasons = list(passed), {}
    for name, reason, _ in passed:
        reasons.setdefault(reason, []).append(name)
    pictures = " / ".join(f"{count:,} {split}" for split, count in counts.items())
    what = f"{classes:,} classes" if classes else "no labels"
    said = [f"data: {what}, {pictures} pictures of {title}", *notes]
    if passed:
        named = "; ".join(f"{listed(names)}: {reason}" for reason, names in reasons.items())
        said.append(f"{sum(count for *_, count in passed):,} passed over ({named})")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in "; ".join(said))


def listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


_quiet = 0
_said: set[tuple[str, str]] = set()  # sources of this process, with what tells their files from others


def say(line: str, spec: str, stamp: str = "") -> None:
    """Print a line on stderr, once in a process for a source and its files; the first of torchrun's processes does."""
    if not _quiet and (spec, stamp) not in _said and int(os.environ.get("RANK", "0")) == 0:
        _said.add((spec, stamp))
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing is said of sources that are opened here."""
    global _quiet
    _quiet += 1
    try:
        yield
    finally:
        _quiet -= 1
