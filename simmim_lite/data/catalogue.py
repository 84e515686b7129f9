"""Everything that a source lists, before it is split: where each picture is, its id, its label. No torch here."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from . import decode, folders, inaturalist, packs, sequences, sources
from .folders import Parts
from .ranking import image_ids


@dataclass(frozen=True)
class Catalogue:
    """The pictures of a source by number, as `parts` lists them. Its functions go to other processes (they pickle)."""

    spec: str
    parts: Parts
    picture: Callable[[int], Image.Image] = field(repr=False)  # RGB, upright, at its own size; raises as decoders do
    content: Callable[[int], bytes | None] = field(repr=False)  # the bytes of its file; None where it is in none
    title: Callable[[int], str] = field(repr=False)  # for messages
    digest: str  # of what is listed: names, bytes and labels of files; pictures of a pack

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
        return Catalogue(spec, pack.parts(), pack.picture, pack.content, pack.title, pack.digest)
    return _of_sequences(spec, kind, name)


def _of_files(spec: str, kind: str, root: Path) -> Catalogue:
    if kind == "inaturalist":
        parts, digest = inaturalist.read_parts(root)
    else:
        found = folders.scan(root, spec)
        parts = folders.parts_of(root, [name for name, _, _ in found])
        # without times: a copy of the folder is the same data, and its records stay
        digest = folders.signature([(name, size) for name, size, _ in found])
    files = _Files(root, parts.names)
    return Catalogue(spec, parts, files.picture, files.content, files.path, digest)


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
    digest = folders.signature(spec, names, labels.tolist())
    return Catalogue(spec, listed, entries.picture, entries.content, entries.title, digest)


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
