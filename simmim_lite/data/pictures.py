"""Pictures at their own size, for fine-tuning at full size: an index of where they are, decoded when asked for.

Nothing is stored: of a folder only names, sizes and labels are read. No torch here.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from . import folders, inaturalist, sources
from .ranking import image_ids

SCENE_SIZE = 32  # pixels: scenes have no size of their own; they are drawn as the studies draw them


@dataclass(frozen=True)
class Shelf:
    """Labelled pictures of one split. `picture(i)` decodes one, and raises whatever its decoder raises."""

    name: str  # "train of imagefolder:DIR", for messages
    ids: np.ndarray  # uint64 (N,), unique
    labels: np.ndarray  # int64 (N,)
    picture: Callable[[int], Image.Image] = field(repr=False)  # RGB, upright, at its own size
    title: Callable[[int], str] = field(repr=False)  # of picture i, for messages
    block: int | None = None  # as in `sources.Split`

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Pictures:
    """An open source of pictures. `test` holds every labelled image that is held out, in hash-rank order.

    That is the whole of DIR/val, as ImageNet is scored (DIR/test instead where that is there and labelled), although
    pretraining takes a half of it for its validation loss, which sees no label.
    """

    spec: str
    train: Shelf | None  # None where there are no labels
    test: Shelf | None
    classes: tuple[str, ...]
    mean: tuple[float, float, float] | None  # of the training images, 0..1 units; None where nobody has counted
    std: tuple[float, float, float] | None
    digest: str  # of what is listed: names, bytes and labels of files; pixels of scenes

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def open_pictures(spec: str) -> Pictures:
    """Open a source by its name, as `sources.open_data` takes it; `UserError` for what the caller can mend."""
    kind, _, name = spec.partition(":")
    if kind in ("imagefolder", "inaturalist") and name:
        return _from_files(spec, kind, Path(name).expanduser().absolute())
    if kind in ("torchvision", "hf") and name:
        parts, picture, classes = sources.indexed(spec, kind, name)
        return _indexed(spec, parts, picture, classes)
    return _from_scenes(sources.open_data(spec, SCENE_SIZE))


def _from_files(spec: str, kind: str, root: Path) -> Pictures:
    if kind == "inaturalist":
        layout, digest = inaturalist.read_layout(root, halve=False)
    else:
        found = folders.scan(root, spec)
        layout = folders.layout(root, [name for name, _, _ in found], halve=False)
        # without times: a copy of the folder is the same data, and its records stay
        digest = folders.signature([(name, size) for name, size, _ in found])

    def shelf(split: str) -> Shelf | None:
        if split not in layout.splits or not layout.classes:
            return None
        rows = layout.splits[split]
        files = _Files(root, [layout.names[i] for i in rows])
        return Shelf(f"{split} of {spec}", layout.ids[rows], layout.labels[rows], files, files.path)

    return Pictures(spec, shelf("train"), shelf("test"), layout.classes, None, None, digest)


class _Files:
    """Names as one array of bytes: worker processes share it, and copy a list of strings bit by bit."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = os.fspath(root), np.array([os.fsencode(name) for name in names])

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[i])))

    def __call__(self, i: int) -> Image.Image:
        return folders.decode(self.path(i))


def _indexed(spec: str, parts: dict, picture: Callable, classes: tuple[str, ...]) -> Pictures:
    names = [f"{split}/{i}" for split, (part, _) in parts.items() for i in range(len(part))]
    labels = np.array([label for _, targets in parts.values() for label in targets], np.int64)
    of = np.array([split for split, (part, _) in parts.items() for _ in range(len(part))])
    ids = image_ids(names)
    held = {split: np.flatnonzero(of == split) for split in parts if split != "train"}
    splits = folders.split_held(np.flatnonzero(of == "train"), held, ids, labels, spec, halve=False)

    def shelf(split: str) -> Shelf | None:
        if split not in splits or (labels[splits[split]] < 0).any():
            return None
        rows = splits[split]
        own = [names[i].partition("/") for i in rows]
        draw = functools.partial(_from_part, parts, own, picture)
        return Shelf(f"{split} of {spec}", ids[rows], labels[rows], draw, functools.partial(_title, spec, own))

    digest = folders.signature(spec, names, labels.tolist())
    return Pictures(spec, shelf("train"), shelf("test"), classes, None, None, digest)


def _from_part(parts: dict, own: list, picture: Callable, i: int) -> Image.Image:
    split, _, index = own[i]
    return folders.upright(picture(parts[split][0], int(index)))


def _title(spec: str, own: list, i: int) -> str:
    return f"{spec} {''.join(own[i])}"


def _from_scenes(data: sources.Data) -> Pictures:
    def shelf(split: sources.Split) -> Shelf:
        draw = functools.partial(_from_array, split.images)
        return Shelf(split.name, split.ids, split.labels, draw, functools.partial(_scene, split.ids), split.block)

    return Pictures(
        data.spec, shelf(data.probe_train), shelf(data.test), data.classes, data.mean, data.std, data.digest
    )


def _from_array(images: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(images[i].transpose(1, 2, 0)))


def _scene(ids: np.ndarray, i: int) -> str:
    return f"scene {ids[i]}"
