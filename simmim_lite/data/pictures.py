"""Pictures at their own size, for fine-tuning at full size: an index of where they are, decoded when asked for.

Nothing is stored: of a folder only names, sizes and labels are read. No torch here.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ..errors import UserError, first_line
from . import sources
from .catalogue import Catalogue, catalogue, say_layout
from .listing import signature
from .splits import Layout, describe

_STAND_INS = 10  # unreadable pictures in a row before training gives up
SCENE_SIZE = 32  # pixels: scenes have no size of their own; they are drawn as the studies draw them


@dataclass(frozen=True)
class Shelf:
    """Pictures of one split. `picture(i)` decodes one, and raises whatever its decoder raises."""

    name: str  # "train of imagefolder:DIR", for messages
    ids: np.ndarray  # uint64 (N,), unique
    labels: np.ndarray | None  # int64 (N,), or None where they are not known
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
    line: str = ""  # as in `sources.Data`

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def open_pictures(spec: str) -> Pictures:
    """Open a source by its name, as `sources.open_data` takes it; `UserError` for what the caller can mend."""
    if spec == "scenes":
        return _from_scenes(sources.open_data(spec, SCENE_SIZE))
    found = catalogue(spec)
    layout = found.parts.split(spec, halve=False)

    def shelf(split: str) -> Shelf | None:
        rows = layout.splits.get(split)
        if rows is None or not layout.classes or (layout.labels[rows] < 0).any():
            return None
        return shelved(found, layout, split)

    line = say_layout(found, layout)
    return Pictures(spec, shelf("train"), shelf("test"), layout.classes, None, None, found.digest, line)


def open_for_training(
    spec: str, image_size: int, images_needed: int | None = None, *, streamed: bool = False
) -> sources.Data:
    """A source as a run takes it: decoded into a store, or as training goes (`streamed`)."""
    if streamed:
        return open_streamed(spec, image_size)
    return sources.open_data(spec, image_size, images_needed=images_needed)


def open_streamed(spec: str, image_size: int) -> sources.Data:
    """A source for pretraining that decodes its pictures as it goes: `train` is a `Shelf`, and nothing of it is stored.

    The validation pictures alone are decoded at the first time, as `sources.open_data` has them; there is no test split
    and nothing to probe with. mean and std are None: nobody has counted. Scenes are drawn as always.
    """
    if spec == "scenes":
        data = sources.open_data(spec, image_size)
        return replace(data, train=drawn(data.train), probe_train=None, test=None)
    found = catalogue(spec)
    layout = found.parts.split(spec)
    store = sources.held_out(found, layout, image_size)
    val = sources.split_of(spec, store, "val")
    counts = {"train": len(layout.splits["train"]), "val": len(val)}
    skipped = store.info["skipped"]
    line = describe(spec, len(layout.classes), counts, store.info["notes"], found.parts.passed, skipped)
    sources.say(line, spec, found.stamp)
    return sources.Data(
        spec=spec,
        name=spec,
        image_size=image_size,
        train=shelved(found, layout, "train"),
        val=val,
        probe_train=None,
        test=None,
        classes=layout.classes,
        mean=None,
        std=None,
        digest=signature(found.digest, store.info["digest"]),
        skipped=[tuple(item) for item in skipped],
        line=line,
    )


def shelved(found: Catalogue, layout: Layout, split: str) -> Shelf:
    """A split of a catalogue's pictures: labels are None where one of them is unknown."""
    rows = layout.splits[split]
    labels = layout.labels[rows]
    known = labels if layout.classes and (labels >= 0).all() else None
    parts = (_Rows(get, rows) for get in (found.picture, found.title))
    return Shelf(f"{split} of {found.spec}", layout.ids[rows], known, *parts)


def first_readable(shelf: Shelf, chosen: np.ndarray, place: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
    """The picture at a place of a draw, or the first one after it that can be read; its number on the shelf; and those
    that could not (name, reason). `UserError` after ten in a row.

    chosen: the draw, numbers on the shelf; after its last comes its first again.
    """
    problems = []
    for further in range(_STAND_INS):
        i = int(chosen[(place + further) % len(chosen)])
        try:
            return shelf.picture(i), i, problems
        except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
            problems.append((shelf.title(i), first_line(error)))
    raise UserError(
        f"{shelf.name}: {_STAND_INS} pictures in a row cannot be read (the last: {problems[-1][0]}: "
        f"{problems[-1][1]}); is the disk there? Run again to go on from the last checkpoint"
    )


class LeftOut(dict):
    """Pictures that could not be read, name -> reason. Each is named once on stderr."""

    def note(self, problems: list[tuple[str, str]]) -> None:
        """Take in some more."""
        for name, reason in problems:
            if name not in self:
                self[name] = reason
                print(f"simmim-lite: {name} cannot be read ({reason}); it is left out", file=sys.stderr, flush=True)


class _Rows:
    """A function of a picture's number, as one of its place in a split."""

    def __init__(self, get: Callable[[int], object], rows: np.ndarray) -> None:
        self.get, self.rows = get, rows

    def __call__(self, k: int) -> object:
        return self.get(int(self.rows[k]))


def _from_scenes(data: sources.Data) -> Pictures:
    return Pictures(
        data.spec, drawn(data.probe_train), drawn(data.test), data.classes, data.mean, data.std, data.digest
    )


def drawn(split: sources.Split) -> Shelf:
    """A split of scenes as pictures."""
    parts = (functools.partial(f, x) for f, x in ((_from_array, split.images), (_scene, split.ids)))
    return Shelf(split.name, split.ids, split.labels, *parts, split.block)


def _from_array(images: np.ndarray, i: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(images[i].transpose(1, 2, 0)))


def _scene(ids: np.ndarray, i: int) -> str:
    return f"scene {ids[i]}"
