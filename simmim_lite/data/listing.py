"""What a source lists, before a picture is read: files of a folder, ids, ranks, splits, and the line about it all."""

import errno
import functools
import hashlib
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..model.masking import splitmix64

#: What was passed over: its name (a folder's ends in a slash), why, and how many files that are.
Passed = tuple[str, str, int]
_HOLDOUT_SEED = 1  # which tenth of a source without a test split is held out, and how a test split is halved
_NAMED = 3  # names a reason in the line
_HIDDEN = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_SILENT = {"thumbs.db", "desktop.ini"}  # what systems leave beside pictures, and hidden files that are none
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows these and decodes none of them by itself
_LINKS = {errno.ELOOP: "a link in a circle", errno.ENOENT: "a link to nothing"}
_ANNOTATIONS = "_annotations.txt"  # the end of the name of a file of labels, see `folders.read`
_LONGEST = 1 << 26  # bytes of such a file


@dataclass
class Listing:
    """The pictures below a folder, sorted by path, and what else is there."""

    names: list[str]  # relative, with forward slashes
    sizes: np.ndarray  # int64 (N,), bytes
    times: np.ndarray  # int64 (N,), of the last change, ns
    files: list[tuple[int, bool]] | None  # as `folders.read` takes them; None: no two paths lead to one file
    annotations: dict[str, str]  # texts by path
    passed: tuple[Passed, ...]

    @property
    def stamp(self) -> str:
        """Changes when a file may have."""
        columns = (self.names, self.sizes.tolist(), self.times.tolist(), self.files)
        return signature(*columns, sorted(self.annotations.items()))


@functools.cache
def extensions() -> frozenset[str]:
    """Endings of the names of files that Pillow can read, in lower case."""
    known = Image.registered_extensions()  # it names MPO by its writer alone; the reader is JPEG's
    return frozenset(end for end, kind in known.items() if kind in {*Image.OPEN, "MPO"} - _STUBS)


def scan(root: Path, title: str) -> Listing:
    """All pictures below a folder, along links but never in circles; hidden and system folders are passed over.

    `UserError` where there are no pictures, and for a folder that cannot be read.
    """
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "no such folder"
        raise UserError(f"{title}: {what}; give the folder that holds the images")
    names: list[str] = []
    columns = [array(kind) for kind in "qqQb"]  # not lists: ImageNet-22K has 14 million files
    annotations: dict[str, str] = {}
    passed: list[Passed] = []

    def folder(place: str, relative: str, above: frozenset[int], linked: bool) -> None:
        """Everything below a folder. above: it and those that it was reached by; linked: whether one was a link."""
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    visit(entry, f"{relative}{entry.name}", above, linked or entry.is_symlink())
        except OSError as error:
            reason = f"{error.filename or place} cannot be read ({error.strerror})"
            raise UserError(f"{title}: {reason}; make it readable, or move it out of the folder") from error

    def visit(entry: os.DirEntry, path: str, above: frozenset[int], linked: bool) -> None:
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.name in _HIDDEN or entry.name.startswith("."):
            inner = os.path.isdir(entry.path)
            if inner or ending in extensions():
                passed.append((f"{path}/" if inner else path, "hidden", 1))
            return
        try:
            about = entry.stat()
        except OSError as error:
            if error.errno not in _LINKS:
                raise
            passed.append((path, _LINKS[error.errno], 1))
            return
        if stat.S_ISDIR(about.st_mode):
            identity = _identity(entry.path, about)
            if identity in above:
                passed.append((f"{path}/", _LINKS[errno.ELOOP], 1))
            else:
                folder(entry.path, f"{path}/", above | {identity}, linked)
        elif ending in extensions() and stat.S_ISREG(about.st_mode):
            names.append(path)
            row = about.st_size, about.st_mtime_ns, _identity(entry.path, about), linked
            for column, number in zip(columns, row, strict=True):
                column.append(number)
        elif entry.name.endswith(_ANNOTATIONS) and about.st_size <= _LONGEST:
            annotations[path] = Path(entry.path).read_text(encoding="utf-8", errors="surrogateescape")
        elif entry.name.lower() not in _SILENT:
            passed.append((path, "no picture", 1))

    folder(os.fspath(root), "", frozenset({_identity(os.fspath(root), root.stat())}), False)
    if not names:
        ends = Counter(os.path.splitext(name)[1].lower() or "no ending" for name, _, _ in passed)
        there = f"; there are files of {listed([end for end, _ in ends.most_common()])}" if ends else ""
        raise UserError(f"{title}: no images in this folder{there}; give files that Pillow reads, such as .jpg or .png")
    order = sorted(range(len(names)), key=names.__getitem__)
    sizes, times, files, linked = (np.array(column)[order] for column in columns)
    different, files = np.unique(files, return_inverse=True)
    several = len(different) < len(files)
    files = list(zip(files.tolist(), linked.astype(bool).tolist(), strict=True)) if several else None
    return Listing([names[i] for i in order], sizes, times, files, annotations, tuple(sorted(passed)))


def _identity(path: str, about: os.stat_result) -> int:
    """64 bits that two paths share when they lead to one file or folder."""
    if about.st_ino:
        return (about.st_ino ^ (about.st_dev * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF
    return int.from_bytes(hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).digest())


def signature(*parts: object) -> str:
    """12 hexadecimal digits that change when the parts do."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def picture_digest(content: bytes) -> int:
    """64 bits that change when a picture's bytes do."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def image_ids(names: list[str]) -> np.ndarray:
    """64-bit ids of images: a hash of each name (a relative path with forward slashes); uint64 (N,)."""
    encoded = (name.encode("utf-8", "surrogateescape") for name in names)
    return np.frombuffer(b"".join(hashlib.blake2b(e, digest_size=8).digest() for e in encoded), "<u8").astype(np.uint64)


def rank(ids: np.ndarray, labels: np.ndarray | None, seed: int, block: int | None = None) -> np.ndarray:
    """Order of a source's images such that every prefix is a class-balanced draw: int64 (N,), indices into `ids`.

    Within a class, images are ordered by a hash of (seed, class, id); the k-th of n of a class then stands at (k + .5)
    / n of the whole, so a prefix holds each class in proportion. It depends on the set of ids, not on their order.
    With `block`, each run of `block` images is ranked alone, one after the other: a source that grows at its end keeps
    its draws.
    """
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
class Parts:
    """Images by split: `names` of all, and for each split the indices into them, in the order they are kept.

    Of a source as it lists them, or, after `split`, as training and scoring see them.
    """

    names: list[str]
    ids: np.ndarray  # uint64 (N,)
    labels: np.ndarray  # int64 (N,) into the classes, -1 where unknown
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]  # train, and val or test where they are there: int64, indices into the names
    left_out: np.ndarray | None = None  # bool (N,): known not to be readable; None = nobody has looked
    notes: tuple[str, ...] = ()  # how the source was read, for its line
    passed: tuple[Passed, ...] = ()

    @property
    def train(self) -> np.ndarray:
        return self.splits["train"]

    def known(self, rows: np.ndarray) -> bool:
        """Whether all of some images have labels."""
        return bool(self.classes) and bool((self.labels[rows] >= 0).all())

    def split(self, title: str, *, halve: bool = True) -> "Parts":
        """The splits that training and scoring see; what is left out takes part in the draw alone.

        A single labelled split that is held out serves val (first half by hash rank) and test (second half). Without
        one, a tenth of the training images is held out, class-balanced and so that each class keeps an image: halved
        alike, or all of it test beside a test split without labels, which is then val. A val split without labels is
        val, and training keeps its images: there is no test. Without labels there is val alone. Held-out images are
        kept in rank order, so any first n of them are class-balanced. halve=False: all that is held out with labels is
        `test`, and there is no val.
        """
        held = {split: self.splits[split] for split in ("val", "test") if len(self.splits.get(split, ()))}
        own, train, notes, drawn = self, self.train, list(self.notes), None

        def ranked(rows: np.ndarray) -> np.ndarray:
            return rows[rank(self.ids[rows], own.labels[rows] if own.known(rows) else None, _HOLDOUT_SEED)]

        scored = next((split for split in ("test", "val") if split in held and self.known(held[split])), None)
        if not scored and self.known(train) and "val" in held:
            mend = "sort it into class folders, or take it away and a part of train is held out"
            notes.append(f"val has no labels, so there is nothing to probe with: {mend}")
        elif not scored and self.known(train):
            drawn, alone = _drawn(ranked(train), self.labels, title)
            if len(drawn) < 2:
                own, drawn = replace(self, labels=np.full(len(self.labels), -1), classes=()), None
                notes.append("labels not used: with one picture a class there is nothing to probe with")
            elif len(alone):
                named = listed([self.classes[k] for k in sorted(set(self.labels[alone].tolist()))])
                notes.append(f"classes of a single picture are trained on and not tested ({named})")
        if drawn is None and not held:
            drawn, _ = _drawn(ranked(train), np.zeros_like(self.labels), title)
        if drawn is not None:
            train = np.setdiff1d(train, drawn)
        test = ranked(held[scored]) if scored else drawn if drawn is None else ranked(drawn)
        # a held-out split without labels, or beside a labelled one, is for validation alone
        spare = None if scored == "val" else next((split for split in held if split != scored), None)
        val = ranked(held[spare]) if spare else None
        if spare and drawn is not None:
            said = f"{len(drawn):,} pictures of train are held out as test"
            notes.append(f"{spare} has no labels and serves as val: {said}")
        for split in held.keys() - {spare, scored}:
            notes.append(f"{len(held[split]):,} pictures of {split} not used: they have no labels")
        if halve and val is None:
            if scored and len(test) < 4:
                raise UserError(f"{title}: {len(test)} held-out images are too few; give at least 4")
            half = (len(test) + 1) // 2 if own.known(test) else len(test)
            val, test = test[:half], test[half:]
        elif halve and test is None and len(val) < 2:
            raise UserError(f"{title}: {len(val)} held-out images are too few; give at least 2")
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
    small = "smaller than the image size"
    every = [*passed, *((name, small if small in reason else "cannot be read", 1) for name, reason in skipped)]
    reasons: dict[str, list[str]] = {}
    for name, reason, _ in every:
        reasons.setdefault(reason, []).append(name)
    what = f"{classes:,} classes" if classes else "no labels"
    pictures = " / ".join(f"{count:,} {split}" for split, count in counts.items())
    said = [f"data: {what}, {pictures} pictures of {title}", *notes]
    if every:
        named = "; ".join(f"{listed(names)}: {reason}" for reason, names in reasons.items())
        said.append(f"{sum(count for *_, count in every):,} passed over ({named})")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in "; ".join(said))


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
