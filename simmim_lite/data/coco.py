"""Detection data in COCO layout: images, boxes, classes and masks, checked at opening. No torch here.

Scenes are written in that layout first (`scene_layouts`), so that laptop and full size share one code path.
"""

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError, unknown
from . import annotations, decode, scene_layouts
from .annotations import AnnotatedData, AnnotatedSplit
from .listing import image_ids, listed, rank

_YEARS = ("2017", "2014", "")  # what may follow `train` and `val` in the names of files and folders, newest first
_TEST_SEED = 0  # of the order of the test images
_NEEDS = {
    "images": "id file_name width height",
    "annotations": "id image_id category_id bbox iscrowd? area?",
    "categories": "id name",
}
_LEAST = 2**-20  # of the image's longer side: a box's side below it may be none in float32


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
        """The image alone: uint8 (3, H, W); `UserError` names a file that is not readable or of another size."""
        return decode.read_annotated(self.folder / self.files[place], self.sizes[place])

    def numbers(self, places: Iterable[int]) -> Iterator[set[int]]:
        """The classes that are trained on, counted from 1, of the images at these places."""
        return ({a["category_id"] for a in self.objects[place] if not a["iscrowd"]} for place in places)

    def __getitem__(self, place: int) -> Sample:
        height, width = size = self.sizes[place]
        known = [a for a in self.objects[place] if not a["iscrowd"]]
        image = self.pixels(place)  # first: it says whether its size is the one that masks are made for
        masks = [decode_mask(a["segmentation"], size) for a in known]
        return Sample(
            image,
            np.array([_inside(a["bbox"], size) for a in known], np.float32).reshape(-1, 4),
            np.array([a["category_id"] for a in known], np.int64),
            np.array(masks, np.uint8).reshape(-1, height, width),
        )


def open_coco(spec: str, image_size: int) -> AnnotatedData:
    """Open `scenes` (at `image_size` pixels, written once into the data root) or `coco:DIR` (images of any size).

    DIR holds annotations/instances_train2017.json and instances_val2017.json, train2017/ and val2017/ (or 2014, or no
    year). They are read as of the upright images. Annotations without area or mask inside their image, or of an image
    that is not listed, are left out and counted in one line on stderr. `train` is the images with an object.
    `UserError` for what cannot be trained on as it stands: files or images missing, JSON that is not COCO's, a field
    that holds what it cannot (`annotations`).
    """
    kind, _, place = spec.partition(":")
    if spec == "scenes":
        root = scene_layouts.scenes_as_coco(image_size)
    elif kind == "coco" and place:
        root = Path(place).expanduser().absolute()
    elif os.path.isdir(spec):
        raise UserError(f"unknown data '{spec}': it is a folder, say coco:{spec}")
    else:
        raise unknown("data for detection", spec, ("scenes", "coco:DIR"))
    first = "annotations/instances_{}{}.json"
    year = next((year for year in _YEARS if (root / first.format("train", year)).is_file()), None)
    if year is None:
        what = f"holds no {first.format('train', _YEARS[0])}" if root.is_dir() else "is no folder"
        raise UserError(f"{spec}: {root} {what}; give a folder in COCO layout")
    files = tuple((root / first.format(part, year), root / f"{part}{year}") for part in ("train", "val"))
    if missing := [path for pair in files for path in pair if not path.exists()]:
        raise UserError(f"{spec}: {missing[0]} is missing; {files[0][0].name} needs it beside it")
    stamp = tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for pair in files for p in pair)
    return _open(spec, files, stamp)


def decode_mask(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """A COCO mask (polygons, RLE as numbers or as text) as uint8 (H, W) of 0 and 1."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(segmentation)


@functools.lru_cache(maxsize=2)  # reading COCO takes half a minute, and one transfer opens it several times
def _open(spec: str, files: tuple, stamp: tuple) -> AnnotatedData:
    splits, digest, categories = [], hashlib.sha256(), None
    for part, (path, folder) in zip(("train", "test"), files, strict=True):
        raw, content = annotations.read(path, _NEEDS)
        names = {c["id"]: str(c["name"]) for c in content["categories"]}
        if categories is not None and names != categories:
            raise UserError(f"{path}: other categories than {files[0][0].name} has; give both files the same")
        categories = {c: names[c] for c in sorted(names, key=annotations.id_order)}
        split = _split(f"{part} of {spec}", path, folder, content, list(categories))
        splits.append(split)
        there: dict[str, int] = {}
        for parent in {name.rpartition("/")[0] for name in split.files}:
            with contextlib.suppress(OSError):  # its files are missing, and said to be
                there |= {os.path.join(parent, name): n for name, n in annotations.lengths(folder / parent).items()}
        if missing := [name for name in split.files if name not in there]:
            such = f"{len(missing):,} of {len(split):,} images are not in {folder}, such as {missing[0]}"
            raise UserError(f"{path}: {such}; add them")
        digest.update(hashlib.sha256(raw).digest())
        # a scene is the same picture everywhere, but not the same number of bytes: that is up to the PNG library
        names_and_bytes = split.files if spec == "scenes" else [(name, there[name]) for name in split.files]
        digest.update(repr(names_and_bytes).encode("utf-8", "surrogateescape"))
    train, test = splits
    known = [i for i, objects in enumerate(train.objects) if any(not a["iscrowd"] for a in objects)]
    if not known:
        raise UserError(f"{files[0][0]}: no image has an object to train on; give annotated images")
    test = test.select(rank(test.ids, None, _TEST_SEED).tolist())
    return AnnotatedData(spec, train.select(known), test, tuple(categories.values()), digest.hexdigest()[:16])


def _split(name: str, path: Path, folder: Path, content: dict, categories: list) -> CocoSplit:
    """Images in the order of their names, each with its usable annotations; the others are counted on stderr."""
    images = sorted(content["images"], key=lambda row: row["file_name"])
    if not images:
        raise UserError(f"{path}: lists no images; get it again")
    place = {row["id"]: i for i, row in enumerate(images)}
    sizes = [(int(row["height"]), int(row["width"])) for row in images]
    label = {category: i for i, category in enumerate(categories, 1)}
    objects: list[list[dict]] = [[] for _ in images]
    left, odd = [], []  # ids
    for row in content["annotations"]:
        number, box, i = row["id"], row["bbox"], place.get(row["image_id"])
        if row["category_id"] not in label:
            known = f"annotation {number!r} has the category_id {row['category_id']!r}; categories are"
            raise UserError(f"{path}: {known} {listed([*map(repr, categories)])}")
        try:
            mask = None if i is None else annotations.mask(row.get("segmentation"), sizes[i])
        except ValueError as error:
            raise UserError(f"{path}: the segmentation of annotation {number!r} {error}") from error
        if mask is None or not _has_area(box, sizes[i]):
            left.append(repr(number))
            continue
        if _apart(box, mask):
            odd.append(repr(number))
        numbers = {"category_id": label[row["category_id"]], "iscrowd": int(row.get("iscrowd") or 0)}
        objects[i].append({"bbox": box, "segmentation": mask, "area": row.get("area") or box[2] * box[3], **numbers})
    for what, ids in (
        ("left out: no area or mask inside a listed image", left),
        ("kept: the box has little in common with the polygons", odd),
    ):
        if ids:
            print(f"{path}: {len(ids):,} annotation{'s' * (len(ids) > 1)} {what} (id {listed(ids)})", file=sys.stderr)
    boxes = [a["bbox"] for some in objects for a in some]
    if boxes and all(x + width <= 1 and y + height <= 1 for x, y, width, height in boxes):
        raise UserError(f"{path}: no box reaches farther than 1, as if it were a share of its image; give pixels")
    files = [row["file_name"] for row in images]
    return CocoSplit(name, folder, files, image_ids(files), sizes=sizes, objects=objects)


def _has_area(box: list[float], size: tuple[int, int]) -> bool:
    """Whether a box still has some when it is float32 and its image is mirrored or resized."""
    x0, y0, x1, y1 = _inside(box, size)
    return min(x1 - x0, y1 - y0) > _LEAST * max(size)


def _apart(box: list[float], mask: list | dict) -> bool:
    """Whether a box and the one around its polygons share less than a half (x, y, width, height, as it should be?)."""
    if isinstance(mask, dict):
        return False
    x, y, width, height = box
    x0, y0, x1, y1 = (f(f(p[k::2]) for p in mask) for f, k in ((min, 0), (min, 1), (max, 0), (max, 1)))
    shared = max(0, min(x + width, x1) - max(x, x0)) * max(0, min(y + height, y1) - max(y, y0))
    return shared < 0.5 * max(width * height, (x1 - x0) * (y1 - y0))


def _inside(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a box (x, y, width, height) that is inside the image: xyxy."""
    (x, y, width, height), (rows, columns) = box, size
    return max(0.0, x), max(0.0, y), min(float(columns), x + width), min(float(rows), y + height)
