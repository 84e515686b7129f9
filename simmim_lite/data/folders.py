"""The one rule of what a folder of pictures means: wrappers, splits, classes, what is passed over. No disk, no torch.

A folder is taken as

- DIR/train beside DIR/val or DIR/test, in any usual spelling (`_SPLITS`), by class or without classes,
- DIR/CLASS/train beside DIR/CLASS/test, or DIR/CLASS_train beside DIR/CLASS_test,
- DIR by class, or pictures without labels,

each also below wrappers (a folder that holds one folder, perhaps beside stray files or what is no split). A folder with
the name of a split is one only beside another split: else it is a wrapper where it is alone, and a class among others.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError
from .listing import Parts, Passed, image_ids, listed

_SPLITS = {
    "train": "train training trainset trn",
    "val": "val valid validate validation valset dev devset holdout eval evaluation",
    "test": "test testing testset tst",
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words.split()}
_EVALUATION = ("eval", "evaluation")  # val, or test beside a val
_PLAIN = {"train", "val", "valid", "validation", "test"}  # spellings that go without saying
#: Words that tell no folder of pictures from another; and of folders that are about the pictures in another one.
_FILLERS, _ABOUT = (
    set(words.split())
    for words in (
        "image images img imgs picture pictures photo photos jpegimages jpeg jpg png data dataset set",
        "annotation annotations label labels mask masks gt truth trimap trimaps bbox bboxes thumb thumbs thumbnail "
        "thumbnails segmentation segmentations segmentationclass segmentationobject",
    )
)


@dataclass
class _Folder:
    """A folder with pictures somewhere below it; its path is relative and ends in a slash, but for the root's."""

    path: str = ""
    pictures: list[int] = field(default_factory=list)  # numbers of those that lie directly in it
    folders: dict[str, "_Folder"] = field(default_factory=dict)

    @functools.cached_property
    def rows(self) -> list[int]:
        """Numbers of all pictures below it."""
        return [*self.pictures, *(row for inner in self.folders.values() for row in inner.rows)]

    @property
    def mostly_folders(self) -> bool:
        """Whether fewer pictures lie loose in it than in its folders."""
        return 2 * len(self.pictures) < len(self.rows)


@dataclass(frozen=True)
class _Group:
    """Split folders that belong together: those of everything, or of one class."""

    name: str
    folder: _Folder  # that they lie in
    splits: dict[str, list[_Folder]]


def read(
    names: list[str],
    annotations: Mapping[str, str] | None = None,
    files: Sequence[tuple[int, bool]] | None = None,
    root: str = "",
) -> Parts:
    """What a folder holds, by the relative paths of its pictures (with forward slashes).

    annotations: texts of `*_annotations.txt` by relative path: lines of a picture's name and its class, as
    Tiny-ImageNet has them of val. files: for each path a number, equal where two paths lead to one file, and whether a
    link is on its way; such a file is listed once: in train before test before val, best without a link. root: for
    messages.
    `UserError` for held-out pictures of a class that train does not have, and for splits without train.
    """
    reading = _Reading(names, annotations or {}, root)
    top = reading.enter(_tree(names), splits=True)
    groups = _splits(top)
    if not groups:
        reading.train([top])
    elif len(groups) == 1:
        reading.by_split(groups[0])
    else:
        reading.by_class_and_split(top, groups)
    return reading.parts(files)


class _Reading:
    """What was found so far: pictures of each split, labels, classes, notes, what is passed over."""

    def __init__(self, names: list[str], annotations: Mapping[str, str], root: str) -> None:
        self.names, self.annotations, self.root = names, annotations, root
        self.labels = np.full(len(names), -1)
        self.classes: dict[str, int] = {}
        self.by_case: dict[str, int | None] = {}  # None where two classes differ in case alone
        self.rows: dict[str, list[int]] = {}
        self.entered: list[str] = []
        self.notes: list[str] = []
        self.passed: list[Passed] = []

    def enter(self, folder: _Folder, *, splits: bool = False) -> _Folder:
        """The folder below all wrappers: down to splits where these are looked for, and to classes that are known."""
        first = folder
        while not (splits and _splits(folder)) and not any(self.number(name) is not None for name in folder.folders):
            inner = _wrapped(folder)
            if inner is None:
                break
            self.pass_over(folder, [inner], f"beside {inner.path}")
            folder = inner
        if folder is not first:
            self.entered.append(folder.path)
        return folder

    def pass_over(self, folder: _Folder, kept: Iterable[_Folder], why: str) -> None:
        """Everything in a folder but some of its folders."""
        paths = {inner.path for inner in kept}
        self.passed += [(self.names[row], why, 1) for row in folder.pictures]
        self.passed += [(f.path, why, len(f.rows)) for f in folder.folders.values() if f.path not in paths]

    def number(self, name: str) -> int | None:
        """The number of the training class that a folder's name means, in whatever case; None where there is none."""
        return self.classes.get(name, self.by_case.get(name.casefold()))

    def name_classes(self, names: Iterable[str]) -> None:
        """These are the classes, in the order of their names."""
        self.classes = {name: k for k, name in enumerate(sorted(names))}
        for name, k in self.classes.items():
            self.by_case[name.casefold()] = None if name.casefold() in self.by_case else k

    def train(self, folders: list[_Folder]) -> None:
        """Training pictures, and their labels where each of these folders is by class."""
        by_class = all(folder.mostly_folders for folder in folders)
        names = {name for folder in folders for name in folder.folders} if by_class else ()
        if len(names) < 2:
            self.rows["train"] = [row for folder in folders for row in folder.rows]
            if loose := sum(len(folder.pictures) for folder in folders if len(folder.folders) > 1):
                self.notes.append(f"folders are not taken as classes: {loose:,} pictures lie outside of them")
            return
        self.name_classes(names)
        if odd := [name for name in self.classes if _role(name)]:
            self.notes.append(f"{listed(odd)} taken as {'a class' if len(odd) == 1 else 'classes'}, not as a split")
        self.rows["train"] = [row for folder in folders for row in self.label(folder)]

    def label(self, folder: _Folder) -> list[int]:
        """Pictures of a folder by class, which get their labels; loose ones are passed over."""
        self.pass_over(folder, folder.folders.values(), "outside of the class folders")
        for name, inner in folder.folders.items():
            self.labels[inner.rows] = self.number(name)
        return [row for inner in folder.folders.values() for row in inner.rows]

    def by_split(self, group: _Group) -> None:
        """DIR/train and DIR/test."""
        kept = [folder for folders in group.splits.values() for folder in folders]
        self.pass_over(group.folder, kept, "beside the splits")
        spelled = {split: [_name(folder) for folder in group.splits.get(split, ())] for split in _SPLITS}
        if odd := [f"{split} is {listed(names)}" for split, names in spelled.items() if not _PLAIN.issuperset(names)]:
            self.notes.append(", ".join(odd))
        if "train" not in group.splits:
            there = " and ".join(folder.path for folder in kept)
            raise UserError(f"{self.root or 'folder'}: {there} without pictures to train on; add a folder called train")
        self.train([self.enter(folder) for folder in group.splits["train"]])
        for split in sorted(group.splits.keys() - {"train"}):
            self.rows[split] = [row for folder in group.splits[split] for row in self.held(split, folder)]

    def held(self, split: str, folder: _Folder) -> list[int]:
        """Held-out pictures of a folder, labelled where it is by class as train is, or has annotations."""
        inner = self.enter(folder)
        strange = sorted(name for name in inner.folders if self.number(name) is None)
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
        """Pictures of a folder that its annotations give a class; [] where there are none."""
        paths = [path for path in self.annotations if path.startswith(folder.path)]
        lines = (re.split("\t|,| +", line.strip()) for path in paths for line in self.annotations[path].splitlines())
        said = {line[0]: line[1] for line in lines if len(line) > 1}
        rows = [row for row in folder.rows if self.names[row].rpartition("/")[2] in said]
        for row in rows:
            name = said[self.names[row].rpartition("/")[2]]
            if name not in self.classes:
                raise self.strange(row, name)
            self.labels[row] = self.classes[name]
        if rows:
            self.notes.append(f"labels of {_name(folder)} from {listed(paths)}")
            self.passed += [(self.names[row], "in no annotation", 1) for row in sorted({*folder.rows} - {*rows})]
        return rows

    def strange(self, row: int, of: str) -> UserError:
        """A held-out picture of a class that has none to train on."""
        known = f"class '{of}' is not in train ({listed([*self.classes])})"
        mend = "give pictures of it to train on, or move these out of the folder"
        return UserError(f"{self.root}/{self.names[row]}: {known}; {mend}")

    def by_class_and_split(self, top: _Folder, groups: list[_Group]) -> None:
        """DIR/CLASS/train and DIR/CLASS/test, or DIR/CLASS_train and DIR/CLASS_test."""
        if all(_ordered(folder) for group in groups for folder in group.splits["train"]):
            there = listed([group.folder.path or group.name for group in groups])
            raise UserError(f"{self.root or 'folder'}: {there} each hold splits by class; give one of them")
        self.notes.append("each class has splits of its own")
        self.name_classes(group.name for group in groups)
        kept = [folder for group in groups for folders in group.splits.values() for folder in folders]
        kept += [group.folder for group in groups]
        for folder in ({group.folder.path: group.folder for group in groups} | {top.path: top}).values():
            self.pass_over(folder, kept, "beside the splits")
        for group in groups:
            for split, folders in group.splits.items():
                for folder in folders:
                    self.labels[folder.rows] = self.classes[group.name]
                    self.rows.setdefault(split, []).extend(folder.rows)

    def parts(self, files: Sequence[tuple[int, bool]] | None) -> Parts:
        """All of it; a file that several paths lead to belongs to the first alone."""
        owner: dict[int, tuple[str, int]] = {}
        for split in ("train", "test", "val") if files is not None else ():
            rows, self.rows[split] = sorted(self.rows.get(split, []), key=lambda row: (files[row][1], row)), []
            for row in rows:
                if owner.setdefault(files[row][0], (split, row))[1] == row:
                    self.rows[split].append(row)
                else:
                    self.passed.append((self.names[row], f"the same file as one of {owner[files[row][0]][0]}", 1))
        rows = {split: np.sort(np.array(rows, np.int64)) for split, rows in self.rows.items() if rows}
        classes, labels = tuple(self.classes), self.labels
        used = np.unique(labels[np.concatenate(list(rows.values()))])
        used = used[used >= 0]
        if len(used) < len(classes):  # all files of a class are another's
            used = used if len(used) > 1 else used[:0]
            classes, kept = tuple(classes[k] for k in used), np.isin(labels, used)
            labels = np.where(kept, np.searchsorted(used, labels), -1)
        notes = [f"read from {listed(self.entered)}"] * bool(self.entered) + self.notes
        parts = (self.names, image_ids(self.names), labels, classes, rows)
        return Parts(*parts, notes=tuple(notes), passed=tuple(self.passed))


def _tree(names: list[str]) -> _Folder:
    """The folders that hold some pictures."""
    folders = {"": _Folder()}

    def made(path: str) -> _Folder:
        if path not in folders:
            above, _, name = path.rpartition("/")
            folders[path] = made(above).folders[name] = _Folder(f"{path}/")
        return folders[path]

    for row, name in enumerate(names):
        made(name.rpartition("/")[0]).pictures.append(row)
    return folders[""]


def _splits(folder: _Folder) -> list[_Group]:
    """The split folders in a folder: one group, or one for each class, where all of these have pictures to train on."""
    groups = _grouped(folder)
    if "" in groups or len(groups) == 1:
        return [groups.get("") or next(iter(groups.values()))]
    if groups:
        whole = sum(len(f) for group in groups.values() for f in group.splits.values()) == len(folder.folders)
    else:
        below = {name: _grouped(inner).get("") for name, inner in folder.folders.items()}
        whole = all(below.values())
        groups = {name: _Group(name, group.folder, group.splits) for name, group in below.items() if group}
    whole = whole and all("train" in group.splits for group in groups.values())
    return list(groups.values()) if whole and len(groups) > 1 else []


def _grouped(folder: _Folder) -> dict[str, _Group]:
    """Folders in a folder with the names of splits, by what else their names say; of at least two splits."""
    found: dict[str, dict[str, list[_Folder]]] = defaultdict(lambda: defaultdict(list))
    for name, inner in folder.folders.items():
        if role := _role(name):
            found[role[1]][role[0]].append(inner)
    for splits in found.values():
        if "eval" in splits:
            splits["test" if "val" in splits and "test" not in splits else "val"] += splits.pop("eval")
    return {rest: _Group(rest, folder, dict(splits)) for rest, splits in found.items() if len(splits) > 1}


def _role(name: str) -> tuple[str, str] | None:
    """Split and what else a folder's name says: `seg_train2017` -> train, "seg"; None where it names no split."""
    words = _words(name)
    said = [word for word in words if word in _SPLIT_OF]
    if len(said) != 1:
        return None
    split = "eval" if said[0] in _EVALUATION else _SPLIT_OF[said[0]]
    return split, " ".join(word for word in words if word not in _FILLERS and word != said[0])


def _words(name: str) -> list[str]:
    """Words of a name, without case and numbers: `TrainSet_2` -> train, set."""
    return [word.lower() for word in re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name) if word]


def _name(folder: _Folder) -> str:
    return folder.path.rstrip("/").rpartition("/")[2]


def _wrapped(folder: _Folder) -> _Folder | None:
    """The one folder below that holds all there is to read, beside nothing or what can be passed over; else None."""
    inside = list(folder.folders.values())
    if len(inside) == 1:
        return inside[0] if not folder.pictures or (folder.mostly_folders and _ordered(inside[0])) else None
    if not folder.mostly_folders:
        return None
    # the only one with splits; the only one with folders, if called train or images; images beside their masks
    split, ordered = [f for f in inside if _leads_to_splits(f)], [f for f in inside if _ordered(f)]
    pictures = [f for f in inside if _FILLERS.issuperset(words := _words(_name(f))) and words]
    about = [f for f in inside if _ABOUT.intersection(_words(_name(f)))]
    if len(split) == 1:
        return split[0]
    if len(ordered) == 1 and ordered[0] in [*pictures, *(f for f in inside if _role(_name(f)))]:
        return ordered[0]
    return pictures[0] if len(pictures) == 1 and len(about) == len(inside) - 1 else None


def _leads_to_splits(folder: _Folder) -> bool:
    """Whether there are split folders in it, or below its wrappers."""
    return bool(_splits(folder)) or ((inner := _wrapped(folder)) is not None and _leads_to_splits(inner))


def _ordered(folder: _Folder) -> bool:
    """Whether there are split or class folders in it, or below its wrappers."""
    inner = _wrapped(folder)
    return bool(_splits(folder)) or (_ordered(inner) if inner else len(folder.folders) > 1 and folder.mostly_folders)
