"""What a source of pictures lists, and how to get at each; of folders by the rule of `folders`. No torch here."""

import contextlib
import os
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import UserError, first_line
from . import decode, folders
from .listing import Parts, describe, picture_digest, scan, signature
from .store import Chunk, StorePlan

_COMPARED = 1 << 30  # bytes that are read at most to find pictures that are there twice
_CHUNK = 256  # pictures decoded between two writes


class Reader(Protocol):
    """Where pictures are, by number. Goes to other processes, so it pickles."""

    def source(self, i: int) -> decode.Source:
        """What `decode.read` takes."""

    def content(self, i: int) -> bytes | None:
        """The bytes of its file; None where it is in none."""

    def title(self, i: int) -> str:
        """Its name in messages."""


@dataclass(frozen=True)
class Catalogue:
    """The pictures of a source by number, as `parts` lists them."""

    spec: str
    parts: Parts
    reader: Reader = field(repr=False)
    digest: str  # of what is listed: names, bytes and labels of files; pictures of a pack
    stamp: str  # changes when a picture may have: files' times too
    sizes: np.ndarray | None = None  # int64 (N,), bytes of each picture's file; None where it is in none

    def picture(self, i: int) -> Image.Image:
        """Picture i at its own size, upright, RGB; raises as decoders do."""
        return decode.read(self.reader.source(i))

    def square(self, i: int, size: int) -> np.ndarray:
        """As `decode.read_square` has picture i: uint8 (3, size, size). Of a file, detail that goes is not decoded."""
        content = self.reader.content(i)
        return decode.read_square(self.picture(i) if content is None else content, size)


_hushed = 0
_said: set[tuple[str, str]] = set()  # sources of this process, with what tells their files from others


def say(line: str, spec: str, stamp: str = "") -> None:
    """Print the line of a source on stderr: once in a process, as long as its files are the same.

    Of processes that torchrun started the first one does, and of a study's the one that started the others (`hushed`).
    """
    if not _hushed and (spec, stamp) not in _said and int(os.environ.get("RANK", "0")) == 0:
        _said.add((spec, stamp))
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Nothing is said of sources that are opened here: another process has said it."""
    global _hushed
    _hushed += 1
    try:
        yield
    finally:
        _hushed -= 1


def say_layout(found: Catalogue, laid: Parts | None = None) -> str:
    """Say the line of a source whose pictures stay where they are, and return it; without `laid`, as it is listed."""
    laid = laid or found.parts
    counts = {split: len(rows) for split, rows in laid.splits.items()}
    line = describe(found.spec, len(laid.classes), counts, laid.notes, laid.passed)
    say(line, found.spec, found.stamp)
    return line


def copies(found: Catalogue, laid: Parts) -> list[str]:
    """What the line of a source says of held-out pictures whose bytes are those of a training picture; [] for none.

    Only files of one length are read and compared, and no more than 1 GiB of them: beyond that the held-out pictures
    that come first are looked at, and the line says how many these are. Pictures that are in no file are not looked at.
    """
    if found.sizes is None:
        return []
    held = np.concatenate([rows for split, rows in laid.splits.items() if split != "train"])
    every = found.sizes[np.concatenate([laid.train, held])]
    count_of = dict(zip(*np.unique(every, return_counts=True), strict=True))
    both = np.isin(found.sizes[held], found.sizes[laid.train]) & (found.sizes[held] > 0)
    chosen, left = set(), _COMPARED
    for length in dict.fromkeys(found.sizes[held[both]].tolist()):
        left -= length * int(count_of[length])
        if left < 0:
            break
        chosen.add(length)

    def digests(rows: np.ndarray) -> list[int | None]:
        return [_digest(found, int(i)) for i in rows[np.isin(found.sizes[rows], list(chosen))]]

    known = set(digests(laid.train)) - {None}
    count = sum(digest in known for digest in digests(held))
    looked = int((~both | np.isin(found.sizes[held], list(chosen))).sum())
    beyond = "" if looked == len(held) else f" (of {looked:,} that were compared)"
    note = f"{count:,} of {len(held):,} held-out pictures{beyond} have the bytes of a training picture"
    return [note] if count else []


def _digest(found: Catalogue, i: int) -> int | None:
    """Of the bytes of picture i; None where they cannot be read, which whoever decodes it says."""
    try:
        return picture_digest(found.reader.content(i))
    except OSError:
        return None


class Files:
    """Names as one array of bytes: worker processes share it, and copy a list of strings bit by bit."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = os.fspath(root), np.array([os.fsencode(name) for name in names])

    def title(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[i])))

    source = title

    def content(self, i: int) -> bytes:
        with open(self.title(i), "rb", buffering=0) as file:
            return file.read()


def of_folder(spec: str, place: str) -> Catalogue:
    root = Path(place).expanduser().absolute()
    listing = scan(root, spec)
    parts = folders.read(listing.names, listing.annotations, listing.files, str(root))
    parts = replace(parts, passed=(*listing.passed, *parts.passed))
    # without times: a copy of the folder is the same data, and its records stay
    digest = signature(list(zip(listing.names, listing.sizes.tolist(), strict=True)))
    if not _plain(parts):
        rows = {split: (rows.tolist(), parts.labels[rows].tolist()) for split, rows in parts.splits.items()}
        digest = signature(digest, parts.classes, {"train": rows.pop("train"), **rows})
    return Catalogue(spec, parts, Files(root, parts.names), digest, listing.stamp, listing.sizes)


def _plain(parts: Parts) -> bool:
    """Whether names alone say what each picture is: [train/]CLASS/… and val/ or test/, or no labels, nothing else."""
    tops = [name.partition("/")[0] for name in parts.names]
    places = {split: {tops[i] for i in rows} for split, rows in parts.splits.items()}
    train, held = places.pop("train"), set().union(*places.values())
    if held and (train != {"train"} or not held <= {"val", "valid", "validation", "test"}):
        return False
    depth = int(bool(held) or set(tops) == {"train"})
    known = np.flatnonzero(parts.labels >= 0)
    whole = sum(map(len, parts.splits.values())) == len(parts.names)
    return whole and all(parts.classes[parts.labels[i]] == parts.names[i].split("/")[depth] for i in known)


def squares(found: Catalogue, laid: Parts, size: int, parts: Collection[str] | None = None) -> StorePlan:
    """The plan of a catalogue's pictures (parts: of some splits). Sets that are no files are read by one thread."""

    def square(i: int) -> np.ndarray | Exception:
        try:
            return found.square(int(i), size)
        except Exception as error:  # decoders raise errors of many kinds; each one names its image and is left out
            return error

    def chunks(split: str, rows: np.ndarray) -> Iterator[Chunk]:
        whole, sides, first = 0, [], []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if found.sizes is not None else 1) as pool:
            for some in (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)):
                done = list(pool.map(square, some))
                bad = np.array([isinstance(result, Exception) for result in done])
                skipped = [(laid.names[i], first_line(done[k])) for k, i in enumerate(some) if bad[k]]
                sides += [result.side for result in done if isinstance(result, decode.TooSmall)]
                whole, first = whole + int((~bad).sum()), first or skipped
                good = [result for result in done if isinstance(result, np.ndarray)]
                pixels = np.stack(good) if good else np.empty((0, 3, size, size), np.uint8)
                yield Chunk(pixels, laid.ids[some[~bad]], laid.labels[some[~bad]], None, skipped)
        if not whole and sides:
            small = f"every image of its {split} split is smaller than {size} px"
            raise UserError(f"{found.spec}: {small}; use a smaller --image-size, at most {min(sides)}")
        if not whole:
            raise UserError(f"{found.spec}: no image of its {split} split can be read (first: {': '.join(first[0])})")

    splits = {split: rows for split, rows in laid.splits.items() if parts is None or split in parts}
    streams = {split: chunks(split, rows) for split, rows in splits.items()}
    total, notes = sum(map(len, splits.values())), (*laid.notes, *copies(found, laid))
    return StorePlan(streams, total, size, laid.classes, notes)
