"""Pictures with boxes or masks: annotation files in JSON, checked field by field, and what all such data sets share.

pycocotools reads beyond a buffer, or leaves memory as it was, where runs do not fill a picture or a number is none: so
every field is checked before any library sees it. No torch here.
"""

import functools
import json
import os
import reprlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..errors import Everywhere, UserError
from .listing import describe, listed, rank
from .store import levels, statistics

_LIMIT = 1e6  # pixels: no coordinate lies farther out
_AREA = 1e10  # square pixels: pycocotools scores no larger object
_SIDE = 65_535  # pixels: masks of larger pictures have more pixels than pycocotools can count
_FAR = 10  # a polygon stays within so many sides of its picture
_IMAGES = 1024  # at most, that mean and standard deviation are taken from


# --- data sets


@dataclass(frozen=True)
class AnnotatedSplit:
    """Images of one split, read when they are asked for; what is annotated in them is up to the kind of data set."""

    name: str  # "train of coco:DIR", for messages
    folder: Path
    files: list[str]  # paths of the images below the folder
    ids: np.ndarray  # uint64 (N,): hashes of the names
    labels: None = None  # draws are not balanced by class: an image may hold several
    block: None = None

    def __len__(self) -> int:
        return len(self.files)

    def select(self, places: Iterable[int]) -> "AnnotatedSplit":
        """The split of the images at these places, in their order."""
        places = list(places)
        lists = ((f.name, getattr(self, f.name)) for f in fields(self))
        chosen = {name: [value[i] for i in places] for name, value in lists if isinstance(value, list)}
        return replace(self, ids=self.ids[places], **chosen)


@dataclass(frozen=True)
class AnnotatedData:
    """An open data set for detection or segmentation.

    Its splits have `pixels(place)`, the image alone, uint8 (3, H, W); and `numbers(places)`, which classes, counted
    from 1, the annotations at some places hold, a set a place; 0 is what is in none.
    """

    spec: str
    train: AnnotatedSplit
    test: AnnotatedSplit  # in hash order: any first n are a random draw
    classes: tuple[str, ...]  # names of the classes 1..K; the background is none
    digest: str  # of the annotations, and of the names and (but for scenes) lengths of the image files

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def line(self) -> str:
        """As in `sources.Data`."""
        return describe(self.spec, len(self.classes), {"train": len(self.train), "test": len(self.test)})

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the training images (at most 1,024 of them), a channel, in 0..1 units."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        return self._statistics[1]

    @functools.cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        chosen = rank(self.train.ids, None, 0)[:_IMAGES]
        histogram = sum(levels(self.train.pixels(int(place))) for place in chosen)
        return tuple(map(tuple, statistics(histogram)))

    def name_unseen(self, places: Iterable[int], *, quiet: bool = False) -> None:
        """Say on stderr which classes never occur in the training images at these places; `UserError` if it is all."""
        places, seen = list(places), set()
        for found in self.train.numbers(places):  # as a rule, every class has been seen long before the last image
            seen |= found
            if len(seen - {0}) == len(self.classes):
                return
        if not seen - {0}:
            raise Everywhere(f"{self.spec}: no pixel of {len(places):,} training annotations has a class; all are 0")
        unseen = [f"class {k} ({name})" for k, name in enumerate(self.classes, 1) if k not in seen]
        line = f"{self.spec}: {len(unseen)} of {len(self.classes)} classes never occur in training: {listed(unseen)}"
        if {0, 1} <= seen and len(self.classes) not in seen:
            line += "; 0 is unlabelled and classes count from 1: if these labels count from 0, add 1 to every pixel"
        if not quiet:
            say_once(line)


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr that a process says once, however often it opens the same data."""
    print(" ".join(line.splitlines()), file=sys.stderr)


def lengths(folder: Path) -> dict[str, int]:
    """Bytes of each file that lies directly in a folder; `OSError`."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


# --- fields of JSON files


def _number(value: object) -> bool:
    return type(value) in (int, float) and -_LIMIT <= value <= _LIMIT  # true is no number, and NaN lies nowhere


def _identifier(value: object) -> bool:
    return type(value) in (int, str) or (type(value) is float and value.is_integer())


def id_order(value: int | str) -> tuple:
    """To sort ids by: numbers first, then texts."""
    return isinstance(value, str), value


def _file_name(value: object) -> bool:
    try:
        return type(value) is str and len(value.encode("utf-8", "surrogateescape")) > 0 and "\0" not in value
    except UnicodeEncodeError:  # half a character
        return False


_ID = (_identifier, "a whole number or a text")
_SIZE = (lambda v: type(v) in (int, float) and 1 <= v <= _SIDE and v == int(v), f"a whole number from 1 to {_SIDE:,}")
_BOX = (
    lambda v: type(v) is list and len(v) == 4 and all(map(_number, v)),
    "four numbers x, y, width, height in pixels",
)
#: Field -> whether a value is good, and what a good one is.
RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("id", "image_id", "category_id", "name"), _ID),
    **dict.fromkeys(("width", "height"), _SIZE),
    "file_name": (_file_name, "the name of a file"),
    "bbox": _BOX,
    "iscrowd": (lambda v: type(v) in (int, float, bool) and v in (0, 1), "0 or 1"),
    "area": (lambda v: type(v) in (int, float) and 0 <= v <= _AREA, f"a number from 0 to {_AREA:g}"),
}


def read(path: Path, needs: dict[str, str]) -> tuple[bytes, dict[str, list[dict]]]:
    """The bytes of a JSON file of annotations and its content, each field that is used checked by `RULES`.

    needs: list -> its fields; one that ends in `?` may be missing or null. Ids and names of files are unique in their
    list. `UserError` names file, entry and field.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON ({error}); get it again") from error
    for name, wanted in needs.items():
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{path}: no file of annotations, it has no list '{name}'; get the right one")
        for field in wanted.split():
            optional, field, seen = field.endswith("?"), field.rstrip("?"), set()
            good, words = RULES[field]
            for i, row in enumerate(rows):
                value = row.get(field) if isinstance(row, dict) else None
                if not (good(value) or (optional and value is None)):
                    where = f"entry {row.get('id', i) if isinstance(row, dict) else i!r} of '{name}'"
                    raise UserError(f"{path}: {where} has the {field} {reprlib.repr(value)}; it must be {words}")
                if field in ("id", "file_name"):
                    if value in seen:
                        raise UserError(f"{path}: two entries of '{name}' have the same {field} ({value!r})")
                    seen.add(value)
    return raw, content


def mask(value: object, size: tuple[int, int]) -> list | dict | None:
    """A COCO `segmentation` as pycocotools can take it; None for one that the field passes over.

    Polygons as they are; RLE with the runs that fill a picture of `size` (height, width). Passed over are no mask, one
    of another size, one without pixels in its picture, and polygons that are not three or more x, y pairs. `ValueError`
    says what a mask holds that none can: no numbers, runs of another sum, text that is no RLE.
    """
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, list):
        return _polygons(value, size)
    if not isinstance(value, dict) or not isinstance(value.get("size"), list) or "counts" not in value:
        raise ValueError(f"is {reprlib.repr(value)}; it must be polygons, or RLE with size and counts")
    if value["size"] != list(size):
        return None
    runs = _unpacked(value["counts"]) if isinstance(value["counts"], str) else value["counts"]
    whole = isinstance(runs, list) and set(map(type, runs)) <= {int} and min(runs, default=0) >= 0
    if not whole or sum(runs) != size[0] * size[1]:
        must = f"they must be runs of 0 or more, {size[0] * size[1]:,} pixels in all, or RLE text that says so"
        raise ValueError(f"has the counts {reprlib.repr(value['counts'])}; {must}")
    if not any(runs[1::2]):
        return None
    if 0 not in runs[1:]:
        return {"size": list(size), "counts": value["counts"]}
    from pycocotools import mask as coco_mask  # it takes two runs of length 0 for the end

    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(size, order="F")
    return {"size": list(size), "counts": coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()}


def _polygons(polygons: list, size: tuple[int, int]) -> list | None:
    (height, width), far = size, _FAR * max(size)
    for polygon in polygons:
        if type(polygon) in (int, float):
            return None  # coordinates without the list around them
        kinds = set(map(type, polygon)) if type(polygon) is list else {type(polygon)}
        if not kinds <= {int, float} or not all(-far <= value <= far for value in polygon):
            must = "it must be numbers x, y, x, y, ... in pixels, not far out of its image"
            raise ValueError(f"holds the polygon {reprlib.repr(polygon)}; {must}")
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return None
    ends = ((min(p[0::2]), max(p[0::2]), min(p[1::2]), max(p[1::2])) for p in polygons)
    return polygons if any(x0 < width and x1 > 0 and y0 < height and y1 > 0 for x0, x1, y0, y1 in ends) else None


def _unpacked(text: str) -> list[int] | None:
    """The runs that a COCO RLE text means: 5 bits a character, the lowest first; from the fourth, differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return None if shift else runs
