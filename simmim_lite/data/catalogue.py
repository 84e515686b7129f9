"""Everything that a source lists, before it is split: where each picture is, its id, its label. No torch here."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from . import decode, folders, inaturalist, packs, sequences, sources
from .listing import scan, signature
from .packs import picture_digest
from .ranking import image_ids
from .splits import Layout, Parts, describe

_COMPARED = 1 << 30  # bytes that are read at most to find pictures that are there twice


@dataclass(frozen=True)
class Catalogue:
    """The pictures of a source by number, as `parts` lists them. Its functions go to other processes (they pickle)."""

    spec: str
    parts: Parts
    picture: Callable[[int], Image.Image] = field(repr=False)  # RGB, upright, at its own size; raises as decoders do
    content: Callable[[int], bytes | None] = field(repr=False)  # the bytes of its file; None where it is in none
    title: Callable[[int], str] = field(repr=False)  # for messages
    digest: str  # of what is listed: names, bytes and labels of files; pictures of a pack
    stamp: str  # changes when a picture may have: files' times too
    sizes: np.ndarray | None = None  # int64 (N,), bytes of each picture's file; None where it is in none

    def square(self, i: int, size: int) -> np.ndarray:
        """As `decode.read_square` has picture i: uint8 (3, size, size). Of a file, detail that goes is not decoded."""
        content = self.content(i)
        return decode.read_square(self.picture(i) if content is None else content, size)


def catalogue(spec: str) -> Catalogue:
    """The catalogue of a source, by its name as `sources.open_data` takes it, scenes apart (they are drawn)."""
    if spec == "scenes":
        raise UserError("scenes are drawn and not read: there are no files of them; give a source of pictures")
    kind, name = sources.kind_of(spec)
    if kind in ("imagefolder", "inaturalist"):
        return _of_files(spec, kind, Path(name).expanduser().absolute())
    if kind == "packed":
        pack = packs.open_pack(name)
        sizes = np.asarray(pack.columns["size"])
        return Catalogue(spec, pack.parts(), pack.picture, pack.content, pack.title, pack.digest, pack.digest, sizes)
    return _of_sequences(spec, kind, name)


def _of_files(spec: str, kind: str, root: Path) -> Catalogue:
    if kind == "inaturalist":
        parts, sizes, digest = inaturalist.read_parts(root)
        stamp = digest
    else:
        listing = scan(root, spec)
        parts = folders.read(listing.names, listing.annotations, listing.files, str(root))
        parts = replace(parts, passed=(*listing.passed, *parts.passed))
        sizes, stamp = listing.sizes, listing.stamp
        # without times: a copy of the folder is the same data, and its records stay
        digest = signature(list(zip(listing.names, sizes.tolist(), strict=True)))
        if not _plain(parts):
            rows = {"train": parts.train, **parts.held}
            digest = signature(
                digest, parts.classes, {s: (r.tolist(), parts.labels[r].tolist()) for s, r in rows.items()}
            )
    files = _Files(root, parts.names)
    return Catalogue(spec, parts, files.picture, files.content, files.path, digest, stamp, sizes)


def _plain(parts: Parts) -> bool:
    """Whether names alone say what each picture is: [train/]CLASS/… and val/ or test/, or no labels, nothing else."""
    tops = [name.partition("/")[0] for name in parts.names]
    place = {split: {tops[i] for i in rows} for split, rows in parts.held.items()}
    if parts.held and ({tops[i] for i in parts.train} != {"train"} or not set().union(*place.values()) <= _HELD_OUT):
        return False
    whole = len(parts.train) + sum(map(len, parts.held.values())) == len(parts.names)
    depth = int(bool(parts.held) or set(tops) == {"train"})
    known = np.flatnonzero(parts.labels >= 0)
    return whole and all(parts.classes[parts.labels[i]] == parts.names[i].split("/")[depth] for i in known)


_HELD_OUT = {"val", "valid", "validation", "test"}


def say_layout(found: Catalogue, layout: Layout | None = None) -> str:
    """Say the line of a source whose pictures stay where they are, and return it; without a layout, as it is listed."""
    parts, of = found.parts, layout or found.parts
    splits = layout.splits if layout else {"train": parts.train, **parts.held}
    line = describe(found.spec, len(of.classes), {s: len(rows) for s, rows in splits.items()}, of.notes, parts.passed)
    sources.say(line, found.spec, found.stamp)
    return line


def copies(found: Catalogue, layout: Layout) -> list[str]:
    """What the line of a source says of held-out pictures whose bytes are those of a training picture; [] for none.

    Only files of one length are read and compared, and no more than 1 GiB of them: beyond that the held-out pictures
    that come first are looked at, and the line says how many these are. Pictures that are in no file are not looked at.
    """
    if found.sizes is None:
        return []
    train = layout.splits["train"]
    held = np.concatenate([rows for split, rows in layout.splits.items() if split != "train"])
    lengths = found.sizes[held]
    both = np.isin(lengths, found.sizes[train]) & (lengths > 0)
    by_length = dict(zip(*np.unique(found.sizes[np.concatenate([train, held])], return_counts=True), strict=True))
    chosen, left = set(), _COMPARED
    for length in dict.fromkeys(lengths[both].tolist()):
        left -= length * int(by_length[length])
        if left < 0:
            break
        chosen.add(length)
    looked = ~both | np.isin(lengths, list(chosen))

    def contents(rows: np.ndarray) -> list[int | None]:
        some = rows[np.isin(found.sizes[rows], list(chosen))]
        return [_digest(found, int(i)) for i in some]

    known = set(contents(train)) - {None}
    count = sum(digest in known for digest in contents(held))
    if not count:
        return []
    beyond = "" if looked.all() else f" (of {looked.sum():,} that were compared)"
    return [f"{count:,} of {len(held):,} held-out pictures{beyond} have the bytes of a training picture"]


def _digest(found: Catalogue, i: int) -> int | None:
    """Of the bytes of picture i; None where they cannot be read, which whoever decodes it says."""
    try:
        return picture_digest(found.content(i))
    except OSError:
        return None


class _Files:
    """Names as one array of bytes: worker processes share it, and copy a list of strings bit by bit."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = os.fspath(root), np.array([os.fsencode(name) for name in names])

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[i])))

    def picture(self, i: int) -> Image.Image:
        return decode.read(self.path(i))

    def content(self, i: int) -> bytes:
        with open(self.path(i), "rb", buffering=0) as file:
            return file.read()


def _of_sequences(spec: str, kind: str, name: str) -> Catalogue:
    parts, picture, classes = sequences.indexed(spec, kind, name, sources.downloads())
    names = [f"{split}/{i}" for split, (part, _) in parts.items() for i in range(len(part))]
    labels = np.array([label for _, targets in parts.values() for label in targets], np.int64)
    of = np.array([split for split, (part, _) in parts.items() for _ in range(len(part))])
    held = {split: np.flatnonzero(of == split) for split in parts if split != "train"}
    listed = Parts(names, image_ids(names), labels, classes, np.flatnonzero(of == "train"), held)
    entries = _Entries(spec, {split: part for split, (part, _) in parts.items()}, picture)
    digest = signature(spec, names, labels.tolist())
    return Catalogue(spec, listed, entries.picture, entries.content, entries.title, digest, digest)


class _Entries:
    """Sets that give a picture by its number, one after the other."""

    def __init__(self, spec: str, parts: dict[str, Sequence], draw: Callable) -> None:
        self.spec, self.parts, self.draw = spec, parts, draw
        self.ends = np.cumsum([len(part) for part in parts.values()])

    def place(self, i: int) -> tuple[str, int]:
        k = int(np.searchsorted(self.ends, i, "right"))
        return list(self.parts)[k], int(i - (self.ends[k - 1] if k else 0))

    def picture(self, i: int) -> Image.Image:
        split, index = self.place(i)
        return decode.read(self.draw(self.parts[split], index))

    def content(self, i: int) -> None:
        return None

    def title(self, i: int) -> str:
        return "{} {}/{}".format(self.spec, *self.place(i))
