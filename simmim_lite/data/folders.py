"""The one rule of what a folder of pictures means. No torch here.

DIR/train beside DIR/val or DIR/test, in any usual spelling, by class or not; or DIR by class; or pictures without
labels; each also below wrappers. The name of a split means one only beside another; else a wrapper or a class."""

import contextlib
import errno
import functools
import os
import re
import stat
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, listed
from .decode import Unreadable, read_stack
from .manifests import Listing, PassedOver, image_ids, signature

_SPLITS = {
    "train": "train training trainset trn",
    "val": "val valid validate validation valset dev devset holdout eval evaluation",
    "test": "test testing testset tst",
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words.split()}
_PLAIN = {"train", "val", "valid", "validation", "test"}  # spellings that go without saying
#: Words that tell no folder of pictures from another; and of folders that are about the pictures in another one.
_FILLERS = re.compile("(jpeg)?images?|imgs?|pictures?|photos?|jpe?g|png|data|dataset|set")
_ABOUT = re.compile(
    "(annotation|label|mask|trimap|bbox|bboxe|thumb|thumbnail)s?|gt|truth|segmentation(s|class|object)?"
)
_SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"}
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows these and decodes none of them by itself
_LINKS = {errno.ELOOP: "a link in a circle", errno.ENOENT: "a link to nothing"}


@functools.cache
def extensions() -> frozenset[str]:
    """Endings of the names of files that Pillow can read, in lower case."""
    known = Image.registered_extensions()  # it names MPO by its writer alone; the reader is JPEG's
    return frozenset(end for end, kind in known.items() if kind in {*Image.OPEN, "MPO"} - _STUBS)


class Files:
    """A reader of files (see `Listing`). Names are one array of bytes, which worker processes share."""

    endings = staticmethod(extensions)

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = os.fspath(root), np.array([os.fsencode(name) for name in names])

    def title(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[i])))

    def content(self, i: int) -> bytes:
        return Path(self.title(i)).read_bytes()


class Stacks(Files):
    """A reader of pictures of 1 to 16 channels: arrays of numpy, and TIFF with as many samples or pages."""

    endings = staticmethod(lambda: (".npy", ".tif", ".tiff"))

    def ends(self, rows: np.ndarray, most: int = 64) -> np.ndarray:
        """The values that become 0 and 255, for each channel, of the first pictures of these: bytes as they are, else
        the thousandth that is lowest and highest: float64 (C, 2)."""
        found = []
        for i in rows.tolist():
            with contextlib.suppress(Unreadable):
                found.append(read_stack(self.content(i)))
            if len(found) == most:
                break
        if not found:
            raise UserError(f"{self.root}: none of its stacks can be read; give .npy or TIFF of 1 to 16 channels")
        if {stack.dtype for stack in found} == {np.dtype(np.uint8)}:
            return np.array([[0.0, 255.0]] * found[0].shape[2])
        same = [stack.reshape(-1, stack.shape[2]) for stack in found if stack.shape[2] == found[0].shape[2]]
        low, high = np.nanpercentile(np.concatenate(same).astype(float), [0.1, 99.9], axis=0)
        return np.stack([low, np.maximum(high, low + 1e-12)], 1)


def scan(
    root: Path, title: str, endings: Callable = extensions
) -> tuple[list, np.ndarray, np.ndarray, dict, list[PassedOver], str]:
    """All pictures below a folder, along links but never in circles, and past hidden files and folders: relative paths
    with forward slashes, sorted; bytes of each; uint64 that are equal where two paths lead to one file; texts of
    `*_annotations.txt` by path; what was passed over; and what changes when a file may have. `UserError` where there
    are no pictures, and for a folder that cannot be read."""
    names, annotations, passed = [], {}, []
    columns = [array(kind) for kind in "qqQ"]  # not lists: ImageNet-22K has 14 million files

    def identity(about: os.stat_result) -> int:
        return (about.st_ino ^ (about.st_dev * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF

    def enter(place: str, relative: str, above: frozenset[int]) -> None:
        with os.scandir(place) as entries:
            shown = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _SYSTEM]
        for entry in shown:
            path = f"{relative}{entry.name}"
            try:
                about = entry.stat()
            except OSError as error:
                if error.errno not in _LINKS:
                    raise
                passed.append((path, _LINKS[error.errno]))
                continue
            own, is_folder = identity(about), stat.S_ISDIR(about.st_mode)
            if is_folder and own in above:
                passed.append((f"{path}/", _LINKS[errno.ELOOP]))
            elif is_folder:
                enter(entry.path, f"{path}/", above | {own})
            elif os.path.splitext(path)[1].lower() in endings() and stat.S_ISREG(about.st_mode):
                names.append(path)
                for column, number in zip(columns, (about.st_size, about.st_mtime_ns, own), strict=True):
                    column.append(number)
            elif path.endswith("_annotations.txt"):
                annotations[path] = Path(entry.path).read_text(encoding="utf-8", errors="surrogateescape")
            else:
                passed.append((path, "no picture"))

    try:
        enter(os.fspath(root), "", frozenset({identity(root.stat())}))
    except OSError as error:
        reason = f"no such folder, or {error.filename} cannot be read ({error.strerror})"
        raise UserError(f"{title}: {reason}; give the folder that holds the images") from error
    if not names:
        such = "files that Pillow reads, such as .jpg or .png" if endings is extensions else ", ".join(endings())
        raise UserError(f"{title}: no images in this folder; give {such}")
    order = sorted(range(len(names)), key=names.__getitem__)
    names = [names[i] for i in order]
    sizes, times, files = (np.array(column)[order] for column in columns)
    different, same = np.unique(files, return_inverse=True)
    same = same.tolist() if len(different) < len(names) else None
    stamp = signature(names, sizes.tolist(), times.tolist(), same, sorted(annotations.items()))
    return names, sizes, files, annotations, sorted(passed), stamp


def of_folder(spec: str, place: str, reader: type[Files] = Files) -> Listing:
    root = Path(place).expanduser().absolute()
    names, sizes, files, annotations, passed, stamp = scan(root, spec, reader.endings)
    found = read(names, annotations, files, str(root))
    # without times: a copy of the folder is the same data, and its records stay
    rows = [(split, rows.tolist(), found.labels[rows].tolist()) for split, rows in found.splits.items()]
    digest = signature(names, sizes.tolist(), found.classes, rows)
    about = {"spec": spec, "reader": reader(root, names), "digest": digest, "stamp": stamp}
    return replace(found, passed=(*passed, *found.passed), **about)


@dataclass
class _Folder:
    """A folder with pictures somewhere below it; its path is relative and ends in a slash, but for the root's."""

    path: str = ""
    pictures: list[int] = field(default_factory=list)  # numbers of those that lie directly in it
    folders: dict[str, "_Folder"] = field(default_factory=dict)

    @functools.cached_property
    def rows(self) -> list[int]:
        return [*self.pictures, *(row for inner in self.folders.values() for row in inner.rows)]

    name = property(lambda self: self.path.rstrip("/").rpartition("/")[2])
    mostly_folders = property(lambda self: 2 * len(self.pictures) < len(self.rows))  # not loose in it


def read(names: list[str], annotations: Mapping | None = None, files: np.ndarray | None = None, root="") -> Listing:
    """What a folder holds, by the paths of its pictures, annotations and files as `scan` has them."""
    reading, top = _Reading(names, annotations or {}, root), _Folder()
    for row, name in enumerate(names):
        folder, above = top, name.split("/")[:-1]
        for depth, own in enumerate(above, 1):
            folder = folder.folders.setdefault(own, _Folder("/".join(above[:depth]) + "/"))
        folder.pictures.append(row)
    top = reading.enter(top, splits=True)
    if splits := _splits(top):
        reading.by_split(splits)
    else:
        reading.train([top])
    return reading.listing(np.arange(len(names)) if files is None else files)


class _Reading:
    def __init__(self, names: list[str], annotations: Mapping[str, str], root: str) -> None:
        self.names, self.annotations, self.root = names, annotations, root or "folder"
        self.labels, self.classes = np.full(len(names), -1), {}
        self.rows: dict[str, list[int]] = {}
        self.entered, self.notes = [], []

    def enter(self, folder: _Folder, *, splits: bool = False) -> _Folder:
        """The folder below all wrappers: down to splits where these are looked for, and to classes that are known."""
        first = folder
        while not (splits and _splits(folder) or folder.folders.keys() & self.classes) and (inner := _wrapped(folder)):
            folder = inner
        self.entered += [folder.path] * (folder is not first)
        return folder

    def train(self, folders: list[_Folder]) -> None:
        by_class = all(folder.mostly_folders for folder in folders)
        names = sorted({name for folder in folders for name in folder.folders}) if by_class else ()
        if len(names) < 2:
            self.rows["train"] = [row for folder in folders for row in folder.rows]
            if loose := sum(len(folder.pictures) for folder in folders if len(folder.folders) > 1):
                self.notes.append(f"folders are not taken as classes: {loose:,} pictures lie outside of them")
            return
        if all(_order(inner) == "splits" for folder in folders for inner in folder.folders.values()):
            raise UserError(f"{self.root}: each class has splits of its own; give train/CLASS and test/CLASS")
        self.classes = {name: k for k, name in enumerate(names)}
        if odd := [name for name in names if _role(name)]:
            self.notes.append(f"{listed(odd)} taken as {'a class' if len(odd) == 1 else 'classes'}, not as a split")
        self.rows["train"] = [row for folder in folders for row in self.label(folder)]

    def label(self, folder: _Folder) -> list[int]:
        for name, inner in folder.folders.items():
            self.labels[inner.rows] = self.classes[name]
        return [row for inner in folder.folders.values() for row in inner.rows]

    def by_split(self, splits: dict[str, list[_Folder]]) -> None:
        """DIR/train and DIR/test. Held-out folders have labels where they are by class as train is, or annotated."""
        spelled = {split: [folder.name for folder in splits.get(split, ())] for split in _SPLITS}
        odd = [f"{split} is {listed(names)}" for split, names in spelled.items() if not _PLAIN.issuperset(names)]
        self.notes += [", ".join(odd)] * bool(odd)
        if "train" not in splits:
            there = " and ".join(sorted(sum(spelled.values(), [])))
            raise UserError(f"{self.root}: {there} without pictures to train on; add a folder called train")
        self.train([self.enter(folder) for folder in splits["train"]])
        for split in sorted(splits.keys() - {"train"}):
            self.rows[split] = [row for folder in splits[split] for row in self.held(split, folder)]

    def held(self, split: str, folder: _Folder) -> list[int]:
        inner = self.enter(folder)
        strange = sorted(inner.folders.keys() - self.classes.keys())
        if inner.mostly_folders and len(strange) < len(inner.folders):
            if strange:
                raise self.strange(min(inner.folders[strange[0]].rows), strange[0])
            return self.label(inner)
        if self.classes and (rows := self.annotated(folder)):
            return rows
        if len(inner.folders) > 1:
            why = "are none of train's classes" if self.classes else "are no classes: train has none"
            self.notes.append(f"folders of {split} {why}")
        return inner.rows

    def annotated(self, folder: _Folder) -> list[int]:
        paths = [path for path in self.annotations if path.startswith(folder.path)]
        lines = (re.split("[\t, ]+", line.strip()) for path in paths for line in self.annotations[path].splitlines())
        said = {line[0]: line[1] for line in lines if len(line) > 1}
        rows = [row for row in folder.rows if self.names[row].rpartition("/")[2] in said]
        for row in rows:
            name = said[self.names[row].rpartition("/")[2]]
            if name not in self.classes:
                raise self.strange(row, name)
            self.labels[row] = self.classes[name]
        self.notes += [f"labels of {folder.name} from {listed(paths)}"] * bool(rows)
        return rows

    def strange(self, row: int, of: str) -> UserError:
        known = f"class '{of}' is not in train ({listed([*self.classes])})"
        return UserError(f"{self.root}/{self.names[row]}: {known}; give pictures of it to train on, or move these away")

    def listing(self, files: np.ndarray) -> Listing:
        """All of it; a file that several paths lead to belongs to the first alone, to train before test."""
        order = [split for split in ("train", "test", "val") if split in self.rows]
        rows = np.concatenate([np.sort(np.array(self.rows[split], np.int64)) for split in order])
        split = np.repeat(order, [len(self.rows[split]) for split in order])
        _, first, again = np.unique(files[rows], return_index=True, return_inverse=True)
        owner = first[again]
        kept = owner == np.arange(len(rows))
        splits = {name: rows[kept & (split == name)] for name in order if (kept & (split == name)).any()}
        beside = np.setdiff1d(np.arange(len(self.names)), rows)
        passed = [(self.names[row], "outside of what is read") for row in beside]
        passed += [(self.names[rows[k]], f"the same file as one of {split[owner[k]]}") for k in np.flatnonzero(~kept)]
        notes = [f"read from {listed(self.entered)}"] * bool(self.entered) + self.notes
        parts = (self.names, image_ids(self.names), self.labels, tuple(self.classes), splits)
        return Listing(*parts, notes=tuple(notes), passed=tuple(passed))


def _splits(folder: _Folder) -> dict[str, list[_Folder]]:
    """The split folders in a folder: those whose names say the same besides; {} where there are not two splits."""
    found: dict[str, dict[str, list[_Folder]]] = defaultdict(lambda: defaultdict(list))
    for name, inner in folder.folders.items():
        if role := _role(name):
            found[role[1]][role[0]].append(inner)
    found = {rest: dict(splits) for rest, splits in found.items() if len(splits) > 1}
    if "" not in found and len(found) > 1:
        there = listed([f.path for splits in found.values() for folders in splits.values() for f in folders])
        raise UserError(f"{folder.path or 'folder'}: several sets of splits ({there}); give one of them")
    return found.get("", next(iter(found.values()), {}))


def _role(name: str) -> tuple[str, str] | None:
    """Split and what else a folder's name says: `seg_train2017` -> train, "seg"; None where it names no split."""
    words = _words(name)
    said = [word for word in words if word in _SPLIT_OF]
    if len(said) != 1:
        return None
    return _SPLIT_OF[said[0]], " ".join(word for word in words if not _FILLERS.fullmatch(word) and word != said[0])


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name) if word]


def _wrapped(folder: _Folder) -> _Folder | None:
    """The one folder below that holds all there is to read, beside what can be passed over; else None."""
    inside = list(folder.folders.values())
    if len(inside) == 1:
        return inside[0] if not folder.pictures or (folder.mostly_folders and _order(inside[0])) else None
    if not folder.mostly_folders:
        return None
    # the only one with splits; the only one with folders, if called train or images; images beside their masks
    split, ordered = [f for f in inside if _order(f) == "splits"], [f for f in inside if _order(f)]
    pictures = [f for f in inside if all(map(_FILLERS.fullmatch, words := _words(f.name))) and words]
    about = [f for f in inside if any(map(_ABOUT.fullmatch, _words(f.name)))]
    if len(split) == 1:
        return split[0]
    if len(ordered) == 1 and (ordered[0] in pictures or _role(ordered[0].name)):
        return ordered[0]
    return pictures[0] if len(pictures) == 1 and len(about) == len(inside) - 1 else None


def _order(folder: _Folder) -> str:
    """What is in a folder, or below its wrappers: `splits`, `classes`, or nothing of the kind."""
    inner = None if _splits(folder) else _wrapped(folder)
    if inner:
        return _order(inner)
    return "splits" if _splits(folder) else "classes" if len(folder.folders) > 1 and folder.mostly_folders else ""
