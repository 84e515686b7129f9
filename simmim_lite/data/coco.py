"""Pictures with boxes and masks in COCO layout, and what data sets with annotations share. No torch here.

pycocotools reads beyond a buffer where runs do not fill a picture: every field is checked before it sees it."""

import contextlib
import functools
import hashlib
import json
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import Everywhere, UserError, first_line, listed, unknown
from . import decode, scenes
from .manifests import image_ids, rank, say, signature
from .scenes import SCENE_COUNTS, rle
from .store import ensure_folder, levels, statistics

_TEST_SEED = 0  # of the order of the test images
_LIMIT = 1e6  # pixels: no coordinate lies farther out
_FAR = 10  # a polygon stays within so many sides of its picture
_LEAST = 2**-20  # of the image's longer side: a box's side below it may be none in float32
_IMAGES = 1024  # at most, that mean and standard deviation are taken from


# --- data sets with annotations


@dataclass(frozen=True)
class AnnotatedSplit:
    """Images of one split, read when they are asked for.

    Of each kind of data set: `pixels(place)`, the image alone, uint8 (3, H, W); and `numbers(places)`, which classes,
    counted from 1, the annotations at some places hold, a set a place; 0 is what is in none."""

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
        lists = {name: [v[i] for i in places] for name, v in vars(self).items() if isinstance(v, list)}
        return replace(self, ids=self.ids[places], **lists)


@dataclass(frozen=True)
class AnnotatedData:
    """An open data set for detection or segmentation."""

    spec: str
    train: AnnotatedSplit
    test: AnnotatedSplit  # in hash order: any first n are a random draw
    classes: tuple[str, ...]  # names of the classes 1..K; the background is none
    digest: str  # of the annotations, and of the names and (but for scenes) lengths of the image files

    num_classes = property(lambda self: len(self.classes))
    mean = property(lambda self: self._statistics[0])  # of at most 1,024 training images, by channel, in 0..1 units
    std = property(lambda self: self._statistics[1])

    @functools.cached_property
    def _statistics(self) -> tuple[tuple[float, ...], ...]:
        chosen = rank(self.train.ids, None, 0)[:_IMAGES]
        return tuple(map(tuple, statistics(sum(levels(self.train.pixels(int(place))) for place in chosen))))

    def name_unseen(self, places: Iterable[int]) -> None:
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
        say(line, line)


def annotated_folder(spec: str, kind: str, size: int, write: Callable, counts: dict) -> Path:
    """The folder of KIND:DIR, or of `scenes`, which are written once into the data root at a size; `write(FOLDER,
    size=SIZE)` does, and `counts` tells how many."""
    if spec == "scenes":
        version = signature(scenes.LAYOUT_VERSION, scenes.SCENES_VERSION, counts)
        write = functools.partial(write, size=size)
        return ensure_folder(f"scenes-{kind}-{size}px", version, write, f"scenes in the layout of {kind}")
    if not spec.startswith(f"{kind}:") or spec == f"{kind}:":
        raise unknown("annotated data", spec, ("scenes", f"{kind}:DIR"))
    return Path(spec.partition(":")[2]).expanduser().absolute()


def lengths(root: Path, folders: Iterable[str]) -> dict[str, int]:
    """Bytes of each file that lies directly in some folders below a root, by path; of no such folder there are none."""
    found = {}
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(root / folder) as entries:
            found |= {os.path.join(folder, entry.name): entry.stat().st_size for entry in entries if entry.is_file()}
    return found


@contextlib.contextmanager
def one_line(where: str | Path, mend: str = "correct it, or get it again") -> Iterator[None]:
    """Whatever wrong content raises inside becomes one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {first_line(error)}; {mend}") from error


def id_order(value: int | str) -> tuple:
    """A key to sort the ids of categories by: numbers first."""
    return isinstance(value, str), value


# --- COCO


class Sample(NamedTuple):
    """An image and what is trained on in it: crowds are left out."""

    image: np.ndarray  # uint8 (3, H, W)
    boxes: np.ndarray  # float32 (N, 4), xyxy in pixels, inside the image
    labels: np.ndarray  # int64 (N,), 1 to the number of classes; 0 is the background's
    masks: np.ndarray  # uint8 (N, H, W), 0 or 1


@dataclass(frozen=True)
class CocoSplit(AnnotatedSplit):
    """Images of one split with their annotations; `split[i]` reads one from the disk."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # height, width in pixels
    objects: list[list[dict]] = field(default_factory=list)  # COCO annotations, with crowds; category_id 1 to K

    def pixels(self, place: int) -> np.ndarray:
        """`UserError` names a file that is not readable or of another size than its annotations."""
        return decode.read_annotated(self.folder / self.files[place], self.sizes[place])

    def numbers(self, places: Iterable[int]) -> Iterator[set[int]]:
        return ({a["category_id"] for a in self.objects[place] if not a["iscrowd"]} for place in places)

    def __getitem__(self, place: int) -> Sample:
        size, known = self.sizes[place], [a for a in self.objects[place] if not a["iscrowd"]]
        image = self.pixels(place)  # first: it says whether its size is the one that masks are made for
        boxes = np.array([_inside(a["bbox"], size) for a in known], np.float32).reshape(-1, 4)
        masks = np.array([decode_mask(a["segmentation"], size) for a in known], np.uint8).reshape(-1, *size)
        return Sample(image, boxes, np.array([a["category_id"] for a in known], np.int64), masks)


def open_coco(spec: str, image_size: int) -> AnnotatedData:
    """Open `scenes` (at `image_size` pixels, written once into the data root) or `coco:DIR` (images of any size):
    annotations/instances_train2017.json and instances_val2017.json, train2017/, val2017/. Annotations without area
    or mask inside their image are left out and counted in one line on stderr. `train` is the images with an object."""
    counts = {"train": SCENE_COUNTS["probe_train"], "val": SCENE_COUNTS["test"]}
    root = annotated_folder(spec, "coco", image_size, functools.partial(scenes.write_coco, **counts), counts)
    parts = ("train2017", "val2017")
    files = tuple((root / "annotations" / f"instances_{part}.json", root / part) for part in parts)
    if missing := [path for pair in files for path in pair if not path.exists()]:
        raise UserError(f"{spec}: {missing[0]} is missing; give a folder in COCO layout")
    return _open(spec, files, tuple((p.stat().st_mtime_ns, p.stat().st_size) for pair in files for p in pair))


@functools.lru_cache(maxsize=2)  # reading COCO takes half a minute, and one transfer opens it several times
def _open(spec: str, files: tuple, stamp: tuple) -> AnnotatedData:
    splits, digest, categories = [], hashlib.sha256(), None
    for part, (path, folder) in zip(("train", "test"), files, strict=True):
        with one_line(path):
            raw = path.read_bytes()
            content = json.loads(raw)
            names = {c["id"]: str(c["name"]) for c in content["categories"]}
            names = {c: names[c] for c in sorted(names, key=id_order)}
            if len(names) < len(content["categories"]) or categories not in (None, names):
                raise ValueError("a category is there twice, or train and val have not the same categories")
            split = _split(f"{part} of {spec}", path, folder, content, {c: k for k, c in enumerate(names, 1)})
        categories = names
        splits.append(split)
        there = lengths(folder, {name.rpartition("/")[0] for name in split.files})
        if missing := [name for name in split.files if name not in there]:
            such = f"{len(missing):,} of {len(split):,} images are not in {folder}, such as {missing[0]}"
            raise UserError(f"{path}: {such}; add them")
        digest.update(hashlib.sha256(raw).digest())
        # a scene is the same picture everywhere, but not the same number of bytes: that is up to the PNG library
        names_and_bytes = split.files if spec == "scenes" else [(name, there[name]) for name in split.files]
        digest.update(repr(names_and_bytes).encode("utf-8", "surrogateescape"))
    train, test = splits
    known = [i for i, found in enumerate(train.numbers(range(len(train)))) if found]
    if not known:
        raise UserError(f"{files[0][0]}: no image has an object to train on; give annotated images")
    test = test.select(rank(test.ids, None, _TEST_SEED).tolist())
    return AnnotatedData(spec, train.select(known), test, tuple(categories.values()), digest.hexdigest()[:16])


def _split(name: str, path: Path, folder: Path, content: dict, label: dict) -> CocoSplit:
    """Images in the order of their names, each with its usable annotations; the others are counted on stderr."""
    images = sorted(content["images"], key=lambda row: row["file_name"])
    place, files = {row["id"]: i for i, row in enumerate(images)}, [row["file_name"] for row in images]
    if not images or len(place) < len(images) or len({*files}) < len(files):
        raise ValueError("lists no images, or an id or a file_name twice")
    sizes = [tuple(map(int, _within((row["height"], row["width"]), 1, 65_535, "height and width"))) for row in images]
    objects: list[list[dict]] = [[] for _ in images]
    left = []  # ids
    for row in content["annotations"]:
        with one_line(f"{path}: annotation {row['id']!r}"):
            i = place.get(row["image_id"])
            if found := None if i is None else _object(row, label, sizes[i]):
                objects[i].append(found)
            else:
                left.append(repr(row["id"]))
    if left:
        many = f"{len(left):,} annotation{'s' * (len(left) > 1)}"
        said = f"left out: no area or mask inside a listed image (id {listed(left)})"
        print(f"{path}: {many} {said}", file=sys.stderr)
    boxes = [found["bbox"] for some in objects for found in some]
    if boxes and all(x + width <= 1 and y + height <= 1 for x, y, width, height in boxes):
        raise ValueError("no box reaches farther than 1, as if it were a share of its image: give pixels")
    return CocoSplit(name, folder, files, image_ids(files), sizes=sizes, objects=objects)


def _object(row: dict, label: dict, size: tuple[int, int]) -> dict | None:
    """An annotation as it is trained on; None without area or mask inside its image of (height, width)."""
    box, shape = _within(row["bbox"], -_LIMIT, _LIMIT, "bbox"), mask(row.get("segmentation"), size)
    if row["category_id"] not in label:
        raise ValueError(f"category_id {row['category_id']!r} is none of {listed([*map(repr, label)])}")
    x0, y0, x1, y1 = _inside(box, size)
    [area] = _within([row.get("area") or box[2] * box[3]], -(_LIMIT**2), 1e10, "area")
    [crowd] = _within([row.get("iscrowd") or 0], 0, 1, "iscrowd")
    # a box has area still when it is float32 and its image is mirrored or resized
    if shape is None or min(x1 - x0, y1 - y0) <= _LEAST * max(size):
        return None
    numbers = {"area": area, "category_id": label[row["category_id"]], "iscrowd": int(crowd)}
    return {"bbox": box, "segmentation": shape, **numbers}


def _within(values: Iterable, low: float, high: float, what: str) -> list[float]:
    found = [float(value) for value in values]
    if not all(low <= value <= high for value in found):
        raise ValueError(f"{what} {reprlib.repr(values)}: give numbers from {low:,} to {high:,}")
    return found


def _inside(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a box (x, y, width, height) that is inside the image: xyxy."""
    (x, y, width, height), (rows, columns) = box, size
    return max(0.0, x), max(0.0, y), min(float(columns), x + width), min(float(rows), y + height)


def mask(value: object, size: tuple[int, int]) -> list | dict | None:
    """A COCO `segmentation` as pycocotools can take it: polygons, or RLE text; None for one that the field passes over.

    Passed over are no mask, one of another size than (height, width), one without pixels in its picture, and polygons
    that are not three or more x, y pairs. Errors of many kinds for what no mask can hold."""
    (height, width), far = size, _FAR * max(size)
    if isinstance(value, list) and value and not any(isinstance(polygon, (int, float)) for polygon in value):
        shape = [_within(polygon, -far, far, "polygon") for polygon in value]
        if any(len(p) < 6 or len(p) % 2 for p in shape):
            return None
        ends = ((min(p[0::2]), max(p[0::2]), min(p[1::2]), max(p[1::2])) for p in shape)
        return shape if any(x0 < width and x1 > 0 and y0 < height and y1 > 0 for x0, x1, y0, y1 in ends) else None
    if not value or isinstance(value, list) or value["size"] != list(size):
        return None  # coordinates without the list around them among them
    runs = _runs(value["counts"]) if isinstance(value["counts"], str) else value["counts"]
    if {*map(type, runs)} != {int} or min(runs) < 0 or sum(runs) != height * width:
        raise ValueError(f"counts {reprlib.repr(value['counts'])}: give runs of {height * width:,} pixels in all")
    pixels = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs).reshape(size, order="F")
    return rle(pixels) if pixels.any() else None


def _runs(text: str) -> list[int]:
    """The runs that a COCO RLE text means: 5 bits a character, the lowest first; from the fourth, differences."""
    if not re.fullmatch("([P-o]{0,6}[0-O])*[P-o]{0,7}", text):  # P to o: another character of this run follows
        raise ValueError(f"counts {reprlib.repr(text)}: no RLE")
    runs: list[int] = []
    for characters in re.findall("[P-o]*[0-O]", text):
        value = -((ord(characters[-1]) - 48) >> 4)  # the highest bit is the sign
        for character in reversed(characters):
            value = value << 5 | (ord(character) - 48) & 31
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def decode_mask(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """A mask as `mask` returns it (polygons, RLE text) as uint8 (H, W) of 0 and 1."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    return coco_mask.decode(segmentation)
