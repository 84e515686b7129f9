"""A folder of images: which files, which splits, which classes. No torch here."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .ranking import image_ids, rank

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_VAL, _TEST = ("val", "valid", "validation"), ("test",)
_HOLDOUT_SEED = 1  # which tenth of a folder without a test split is held out, and how a test split is halved


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


def list_images(root: Path) -> tuple[list[str], str]:
    """Relative paths of all image files below a folder, sorted, and a signature of paths, sizes and times."""
    found = scan(root, f"imagefolder:{root}")
    return [path for path, _, _ in found], signature(found)


def scan(root: Path, title: str) -> list[tuple[str, int, int]]:
    """(relative path, bytes, mtime in ns) of all image files below a folder, sorted; `UserError` if there are none."""
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "no such folder"
        raise UserError(f"{title}: {what}; give the folder that holds the images")
    found = sorted(_walk(root, "", {os.path.realpath(root)}))
    if not found:
        known = " ".join(sorted(EXTENSIONS))
        raise UserError(f"{title}: no images in this folder (files that end in {known})")
    return found


def signature(*parts: object) -> str:
    """12 hexadecimal digits that change when the parts do."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


@dataclass(frozen=True)
class Parts:
    """What a source lists, before any of it is held out; as `Layout`, with what is held out by the source itself."""

    names: list[str]
    ids: np.ndarray  # uint64 (N,)
    labels: np.ndarray  # int64 (N,), -1 where unknown
    classes: tuple[str, ...]
    train: np.ndarray  # int64, indices into the names
    held: dict[str, np.ndarray]  # split -> indices
    left_out: np.ndarray | None = None  # bool (N,): known not to be readable; None = nobody has looked

    def split(self, title: str, *, halve: bool = True) -> Layout:
        """The splits that training and scoring see; see `layout`. What is left out takes part in the draw alone."""
        splits = split_held(self.train, self.held, self.ids, self.labels, title, halve=halve)
        if self.left_out is not None:
            splits = {split: rows[~self.left_out[rows]] for split, rows in splits.items()}
        return Layout(self.names, self.ids, self.labels, self.classes, splits)


def layout(root: Path, names: list[str], *, halve: bool = True) -> Layout:
    """Splits and classes of a folder.

    DIR/train with DIR/val or DIR/test by class, or DIR by class (at least two class folders, no loose images), or flat.
    A single held-out folder serves val (first half by hash rank) and test (second half); without one, a tenth of the
    images is held out and halved alike. Without labels all of it is val. Held-out images are kept in rank order, so any
    first n of them are class-balanced. halve=False: all that is held out with labels is `test`, and there is no val.
    """
    return parts_of(root, names).split(f"imagefolder:{root}", halve=halve)


def parts_of(root: Path, names: list[str]) -> Parts:
    """Classes, labels and held-out folders of a folder."""
    paths = [name.split("/") for name in names]
    tops = {parts[0] for parts in paths if len(parts) > 1}
    place = np.array([parts[0] if len(parts) > 1 else "" for parts in paths])
    train = np.flatnonzero(place == "train") if "train" in tops else np.arange(len(names))
    depth = int("train" in tops)
    held = {split: np.flatnonzero(place == folder) for split, folder in _held_folders(tops).items() if "train" in tops}
    classes = _classes([paths[i][depth:] for i in train])
    labels = np.full(len(names), -1)
    number = {name: i for i, name in enumerate(classes)}
    if classes:
        labels[train] = [number[paths[i][depth]] for i in train]
    for indices in held.values():
        if classes and all(len(paths[i]) > 2 for i in indices):
            for i in indices:
                if paths[i][1] not in number:
                    raise UserError(
                        f"{root / names[i]}: class '{paths[i][1]}' is not in {root / 'train'}; remove it there"
                    )
            labels[indices] = [number[paths[i][1]] for i in indices]
    return Parts(names, image_ids(names), labels, classes, train, held)


def split_held(
    train: np.ndarray,
    held: dict[str, np.ndarray],
    ids: np.ndarray,
    labels: np.ndarray,
    title: str,
    *,
    halve: bool = True,
) -> dict[str, np.ndarray]:
    """Splits train, val and (where labels are known) test from what there is, as `layout` describes."""

    def ranked(indices: np.ndarray) -> np.ndarray:
        known = labels[indices] if (labels[indices] >= 0).all() else None
        return indices[rank(ids[indices], known, _HOLDOUT_SEED)]

    labelled = {split: bool((labels[indices] >= 0).all()) for split, indices in held.items()}
    if not held:
        order = ranked(train)
        tenth = max(4, round(len(train) / 10))
        if len(train) < tenth + 1:
            raise UserError(f"{title}: {len(train)} images are too few to hold some of them out; give at least 5")
        held, train = {"val": order[:tenth]}, np.sort(order[tenth:])
        labelled = {"val": bool((labels >= 0).all())}
    if not halve:
        found = next((held[split] for split in ("test", "val") if labelled.get(split)), None)
        return {"train": train} if found is None else {"train": train, "test": ranked(found)}
    if len(held) == 2 and labelled["test"]:
        return {"train": train, "val": ranked(held["val"]), "test": ranked(held["test"])}
    split, indices = next(((s, i) for s, i in held.items() if labelled[s]), next(iter(held.items())))
    order = ranked(indices)
    least = 4 if labelled[split] else 2
    if len(order) < least:
        raise UserError(f"{title}: {len(order)} held-out images are too few; give at least {least}")
    if not labelled[split]:
        return {"train": train, "val": order}
    half = (len(order) + 1) // 2
    return {"train": train, "val": order[:half], "test": order[half:]}


def _held_folders(tops: set[str]) -> dict[str, str]:
    """Split -> folder of the held-out folders there are."""
    found = {"val": next((f for f in _VAL if f in tops), None), "test": next((f for f in _TEST if f in tops), None)}
    return {split: folder for split, folder in found.items() if folder}


def _classes(paths: list[list[str]]) -> tuple[str, ...]:
    """Class folders, sorted; none when an image lies loose or all share one folder."""
    if any(len(parts) < 2 for parts in paths):
        return ()
    found = sorted({parts[0] for parts in paths})
    return tuple(found) if len(found) > 1 else ()


def _walk(folder: Path | str, relative: str, above: set[str]) -> Iterator[tuple[str, int, int]]:
    """(relative path, bytes, mtime in ns) of each image file; hidden names are passed over, links are followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = f"{relative}{entry.name}"
            if entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if real not in above:  # a link to a folder above would never end
                    yield from _walk(entry.path, f"{path}/", above | {real})
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # a dangling link: reported when it is opened
                    yield path, 0, 0
                else:
                    yield path, stat.st_size, stat.st_mtime_ns
