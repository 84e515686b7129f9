"""Which files of a folder are pictures, and which are not: a walk along links, but never in circles. No torch here."""

import errno
import functools
import hashlib
import os
import stat
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from .splits import Passed, listed

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
    """All pictures below a folder; hidden and system folders are passed over.

    `UserError` where there are no pictures, and for a folder that cannot be read.
    """
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "no such folder"
        raise UserError(f"{title}: {what}; give the folder that holds the images")
    walk = _Walk(title)
    walk.folder(os.fspath(root), "", frozenset({_identity(os.fspath(root), root.stat())}), linked=False)
    if not walk.names:
        ends = Counter(os.path.splitext(name)[1].lower() or "no ending" for name, _, _ in walk.passed)
        there = f"; there are files of {listed([end for end, _ in ends.most_common()])}" if ends else ""
        raise UserError(f"{title}: no images in this folder{there}; give files that Pillow reads, such as .jpg or .png")
    order = sorted(range(len(walk.names)), key=walk.names.__getitem__)
    sizes, times, files, linked = (
        np.array(column)[order] for column in (walk.sizes, walk.times, walk.files, walk.linked)
    )
    different, files = np.unique(files, return_inverse=True)
    several = len(different) < len(files)
    files = list(zip(files.tolist(), linked.astype(bool).tolist(), strict=True)) if several else None
    return Listing([walk.names[i] for i in order], sizes, times, files, walk.annotations, tuple(sorted(walk.passed)))


def signature(*parts: object) -> str:
    """12 hexadecimal digits that change when the parts do."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


@dataclass
class _Walk:
    """What was found so far; columns are arrays, as ImageNet-22K has 14 million files."""

    title: str
    names: list[str] = field(default_factory=list)
    sizes: array = field(default_factory=lambda: array("q"))
    times: array = field(default_factory=lambda: array("q"))
    files: array = field(default_factory=lambda: array("Q"))
    linked: array = field(default_factory=lambda: array("b"))
    annotations: dict[str, str] = field(default_factory=dict)
    passed: list[Passed] = field(default_factory=list)

    def folder(self, folder: str, relative: str, above: frozenset[int], *, linked: bool) -> None:
        """Everything below a folder. above: it and those that it was reached by; linked: whether one was a link."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self.entry(entry, f"{relative}{entry.name}", above, linked=linked or entry.is_symlink())
        except OSError as error:
            reason = f"{error.filename or folder} cannot be read ({error.strerror})"
            raise UserError(f"{self.title}: {reason}; make it readable, or move it out of the folder") from error

    def entry(self, entry: os.DirEntry, path: str, above: frozenset[int], *, linked: bool) -> None:
        """A file or a folder of it."""
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.name in _HIDDEN or entry.name.startswith("."):
            folder = os.path.isdir(entry.path)
            if folder or ending in extensions():
                self.passed.append((f"{path}/" if folder else path, "hidden", 1))
            return
        try:
            about = entry.stat()
        except OSError as error:
            if error.errno not in _LINKS:
                raise
            self.passed.append((path, _LINKS[error.errno], 1))
            return
        if stat.S_ISDIR(about.st_mode):
            identity = _identity(entry.path, about)
            if identity in above:
                self.passed.append((f"{path}/", _LINKS[errno.ELOOP], 1))
            else:
                self.folder(entry.path, f"{path}/", above | {identity}, linked=linked)
        elif ending in extensions() and stat.S_ISREG(about.st_mode):
            self.names.append(path)
            self.sizes.append(about.st_size)
            self.times.append(about.st_mtime_ns)
            self.files.append(_identity(entry.path, about))
            self.linked.append(linked)
        elif entry.name.endswith(_ANNOTATIONS) and about.st_size <= _LONGEST:
            self.annotations[path] = Path(entry.path).read_text(encoding="utf-8", errors="surrogateescape")
        elif entry.name.lower() not in _SILENT:
            self.passed.append((path, "no picture", 1))


def _identity(path: str, about: os.stat_result) -> int:
    """64 bits that two paths share when they lead to one file or folder."""
    if about.st_ino:
        return (about.st_ino ^ (about.st_dev * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF
    return int.from_bytes(hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).digest())
