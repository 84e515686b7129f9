"""Pictures with boxes or masks: annotation files in JSON, checked field by field, and what all such data sets share.

pycocotools reads beyond a buffer, or leaves memory as it was, where runs do not fill a picture or a number is none: so
every field is checked before any library sees it. No torch here.
"""

import functools
import json
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import Everywhere, UserError
from .listing import describe, rank
from .store import levels, statistics

_LIMIT = 1e6  # pixels: no coordinate lies farther out
_AREA = 1e10  # square pixels: pycocotools scores no larger object
_SIDE = 65_535  # pixels: masks of larger pictures have more pixels than pycocotools can count
_FAR = 10  # a polygon stays within so many sides of its picture
_IMAGES = 1024  # at most, that mean and standard deviation are taken from
_NAMED = 5  # classes that are named


# --- data sets


class Annotated(Protocol):
    """A split whose images are read when they are asked for."""

    ids: np.ndarray  # uint64 (N,)

    def __len__(self) -> int: ...

    def pixels(self, place: int) -> np.ndarray:
        """The image at a place: uint8 (3, H, W)."""

    def numbers(self, places: Iterable[int]) -> Iterator[set[int]]:
        """Which classes, counted from 1, the annotations at some places hold; 0 is what is in none."""


@dataclass(frozen=True)
class AnnotatedData:
    """An open data set for detection or segmentation."""

    spec: str
    train: Annotated
    test: Annotated  # in hash order: any first n are a random draw
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
        if quiet:
            return
        unseen = [f"{k} ({name})" for k, name in enumerate(self.classes, 1) if k not in seen]
        what = f"class{'es' * (len(unseen) > 1)} {', '.join(unseen[:_NAMED])}{', ...' * (len(unseen) > _NAMED)}"
        said = f"{self.spec}: {len(unseen)} of {len(self.classes)} classes never occur in training: {what}"
        if {0, 1} <= seen and len(self.classes) not in seen:
            said += "; 0 is unlabelled and classes count from 1: if these labels count from 0, add 1 to every pixel"
        say_once(said)


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr that a process says once, however often it opens the same data."""
    print(" ".join(line.splitlines()), file=sys.stderr)


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
#: Field -> whether a value is good, and what a good one is.
RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "name": _ID,
    "file_name": (_file_name, "the name of a file"),
    "width": _SIZE,
    "height": _SIZE,
    "bbox": (
        lambda v: type(v) is list and len(v) == 4 and all(map(_number, v)),
        "four numbers x, y, width, height in pixels",
    ),
    "iscrowd": (lambda v: type(v) in (int, float, bool) and v in (0, 1), "0 or 1"),
    "area": (lambda v: type(v) in (int, float) and 0 <= v <= _AREA, f"a number from 0 to {_AREA:g}"),
}
_UNIQUE = ("id", "file_name")
_ONE = {"images": "image", "annotations": "annotation", "categories": "category"}


class _Shown(reprlib.Repr):
    """A value in a message: short, and as JSON writes it."""

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()


_shown = _Shown().repr


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
    for name, fields in needs.items():
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{path}: no file of annotations, it has no list '{name}'; get the right one")
        checks = [(field.rstrip("?"), field.endswith("?"), *RULES[field.rstrip("?")]) for field in fields.split()]
        for i, row in enumerate(rows):
            for field, optional, good, words in checks:
                value = row.get(field) if isinstance(row, dict) else None
                if not (optional and value is None) and not good(value):
                    raise _wrong(path, name, i, row, field, words)
        for field in set(_UNIQUE) & set(fields.split()):
            if len({row[field] for row in rows}) != len(rows):
                seen: set = set()
                value = next(row[field] for row in rows if row[field] in seen or seen.add(row[field]))
                same = f"two entries of '{name}' have the same {field} ({value!r})"
                raise UserError(f"{path}: {same}; each needs its own")
    return raw, content


def _wrong(path: Path, name: str, i: int, row: object, field: str, words: str) -> UserError:
    known = field != "id" and isinstance(row, dict) and _identifier(row.get("id"))
    where = f"{_ONE[name]} {row['id']!r}" if known else f"entry {i} of '{name}'"
    if not isinstance(row, dict) or field not in row:
        return UserError(f"{path}: {where} has no {field}; it must be {words}")
    return UserError(f"{path}: {where} has the {field} {_shown(row[field])}; it must be {words}")


def mask(value: object, size: tuple[int, int]) -> tuple[list | dict | None, str | None]:
    """A COCO `segmentation` as pycocotools can take it, or None and why the field passes such an annotation over.

    Polygons as they are; RLE with the runs that fill a picture of `size` (height, width). `ValueError` says what a mask
    holds that none can: no numbers, runs of another sum, text that is no RLE.
    """
    if value is None or value == [] or value == {}:
        return None, "without a mask"
    if isinstance(value, list):
        return _polygons(value, size)
    if not isinstance(value, dict):
        raise ValueError(f"is {_shown(value)}; it must be polygons or RLE")
    if not isinstance(value.get("size"), list) or "counts" not in value:
        raise ValueError("has not both a list 'size' and 'counts', as RLE has")
    if value["size"] != list(size):
        return None, "whose mask is not of their image's size"
    counts = value["counts"]
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not set(map(type, runs)) <= {int} or min(runs, default=0) < 0:
        raise ValueError(f"has the counts {_shown(counts)}; they must be whole numbers of 0 or more, or RLE text")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"has counts of {sum(runs):,} pixels in all; its image has {size[0] * size[1]:,}")
    if not any(runs[1::2]):
        return None, "whose mask is empty"
    if 0 in runs[1:]:  # pycocotools takes two runs of length 0 for the end
        counts = _joined(runs)
    return {"size": list(size), "counts": counts}, None


def _polygons(polygons: list, size: tuple[int, int]) -> tuple[list | None, str | None]:
    whole, far = True, _FAR * max(size)
    for polygon in polygons:
        if type(polygon) in (int, float):
            whole = False  # coordinates without the list around them
            continue
        kinds = set(map(type, polygon)) if type(polygon) is list else {type(polygon)}
        if not kinds <= {int, float}:
            raise ValueError(f"holds the polygon {_shown(polygon)}; it must be numbers x, y, x, y, ... in pixels")
        if len(polygon) < 6 or len(polygon) % 2:
            whole = False
        elif not all(-far <= value <= far for value in polygon):
            raise ValueError(f"holds the polygon {_shown(polygon)}, which leads far out of its image")
    if not whole:
        return None, "whose polygons are not lists of x, y pairs, three or more"
    height, width = size
    inside = any(
        min(p[0::2]) < width and max(p[0::2]) > 0 and min(p[1::2]) < height and max(p[1::2]) > 0 for p in polygons
    )
    return (polygons, None) if inside else (None, "whose mask lies outside their image")


def _unpacked(text: str) -> list[int]:
    """The runs that a COCO RLE text means: 5 bits a character, the lowest first; from the fourth, differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"has the counts {_shown(text)}, which are no RLE text")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError(f"has the counts {_shown(text)}, which are cut short")
    return runs


def _joined(runs: list[int]) -> list[int]:
    """The same pixels without runs of length 0, the first apart."""
    found = runs[:1]
    for k, run in enumerate(runs[1:], 1):
        if run and len(found) % 2 == k % 2:
            found.append(run)
        else:
            found[-1] += run
    return found
