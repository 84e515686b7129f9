"""Scenes as files, in the layouts of the field's data sets: a task then has one code path, whatever the data.

Training images are those of the labelled pool (scene seed 3), held-out ones those of the test split (seed 2); files are
named by the scene's index. No torch here.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from . import scenes
from .listing import signature
from .sources import SCENE_COUNTS, SCENE_SPLITS
from .store import ensure_folder, is_there, progress

#: Raised when the files of a layout change, so that old ones are written again.
LAYOUT_VERSION = 1
#: ADE20K's folder -> scene seed and number of scenes.
ADE_SPLITS = {
    folder: (SCENE_SPLITS[split], SCENE_COUNTS[split])
    for folder, split in (("training", "probe_train"), ("validation", "test"))
}
#: Class 1 is the background; 2 to 11 are the classes of the large object and of the small one.
ADE_NAMES = ("background", *scenes.CLASSES)
_CHUNK = 256  # scenes drawn together


def scenes_as_coco(size: int) -> Path:
    """The folder of scenes in COCO layout at `size` pixels a side, in the data root; written at the first time."""
    counts = {"train": SCENE_COUNTS["probe_train"], "val": SCENE_COUNTS["test"]}
    version = signature(LAYOUT_VERSION, scenes.SCENES_VERSION, counts)
    write = functools.partial(write_coco, **counts, size=size)
    return ensure_folder(f"scenes_coco-{size}px", version, write, "scenes in COCO layout", is_there)


def scenes_as_ade20k(size: int) -> Path:
    """As `scenes_as_coco`, in the layout of ADE20K; the folder's name says all that the scenes depend on."""
    version = signature(LAYOUT_VERSION, scenes.SCENES_VERSION, ADE_SPLITS)
    write = functools.partial(write_ade20k, size=size)
    return ensure_folder(f"scenes-ade20k-{size}px", version, write, "scenes in ADE20K's layout", is_there)


def write_coco(folder: Path, *, train: int, val: int, size: int) -> None:
    """Write the first `train` and `val` scenes of their splits into a folder as COCO instances 2017 has them.

    A PNG a scene, `size` pixels a side; its large object and, where it is visible, the small one, with category (1 to
    10), tight box (x, y, width, height) and mask (compressed RLE of what is visible).
    """
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": i, "name": name} for i, name in enumerate(scenes.CLASSES, 1)]
    with progress(train + val, "scenes in COCO layout") as advance:
        for part, source, count in (("train", "probe_train", train), ("val", "test", val)):
            pictures = folder / f"{part}2017"
            pictures.mkdir(exist_ok=True)
            images, annotations = [], []
            for number, drawn, place in _drawn(SCENE_SPLITS[source], count, size, advance):
                name = f"{number:012d}.png"
                _save(drawn.images[place], pictures / name)
                images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
                for annotation in _objects(drawn, place):
                    annotations.append({"id": len(annotations) + 1, "image_id": number + 1} | annotation)
            # the version is that of the pictures: annotations alone would not tell other colours
            content = {"info": {"description": "scenes", "version": scenes.SCENES_VERSION}}
            content |= {"images": images, "annotations": annotations, "categories": categories}
            (folder / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content), encoding="utf-8")


def write_ade20k(folder: Path, *, size: int) -> None:
    """Write the scenes of `ADE_SPLITS` into a folder as ADE20K has its images, and the names of the classes.

    images/validation/scene_00012.png is `render(2, [12], size)`, annotations/validation/scene_00012.png its classes.
    """
    (folder / "classes.txt").write_text("\n".join(ADE_NAMES) + "\n", encoding="utf-8")
    with progress(sum(count for _, count in ADE_SPLITS.values()), "scenes in ADE20K's layout") as advance:
        for split, (seed, count) in ADE_SPLITS.items():
            images, annotations = folder / "images" / split, folder / "annotations" / split
            images.mkdir(parents=True)
            annotations.mkdir(parents=True)
            for number, drawn, place in _drawn(seed, count, size, advance):
                name = f"scene_{number:05d}.png"
                _save(drawn.images[place], images / name)
                Image.fromarray(class_numbers(drawn, place)).save(annotations / name)


def class_numbers(drawn: scenes.Scenes, place: int) -> np.ndarray:
    """Numbers of `ADE_NAMES` at each pixel of one scene, counted from 1: uint8 (S, S)."""
    numbers = np.ones(drawn.masks.shape[1:], np.uint8)
    numbers[drawn.small_masks[place]] = drawn.small_labels[place] + 2
    numbers[drawn.masks[place]] = drawn.labels[place] + 2
    return numbers


def _drawn(seed: int, count: int, size: int, advance: Callable[[int], object]) -> Iterator[tuple]:
    """(index, scenes drawn together, place among them) of the first `count` scenes of a seed."""
    for start in range(0, count, _CHUNK):
        index = range(start, min(start + _CHUNK, count))
        drawn = scenes.render(seed, np.array(index), size)
        yield from ((number, drawn, place) for place, number in enumerate(index))
        advance(len(index))


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path)


def _objects(drawn: scenes.Scenes, place: int) -> list[dict]:
    """The large object and, where it is visible, the small one: their annotations but for ids."""
    from pycocotools import mask as coco_mask

    found = []
    for labels, boxes, masks in (
        (drawn.labels, drawn.boxes, drawn.masks),
        (drawn.small_labels, drawn.small_boxes, drawn.small_masks),
    ):
        if labels[place] < 0:
            continue
        x0, y0, x1, y1 = boxes[place].tolist()
        encoded = coco_mask.encode(np.asfortranarray(masks[place], dtype=np.uint8))
        found.append(
            {
                "category_id": int(labels[place]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(masks[place].sum()),
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                "iscrowd": 0,
            }
        )
    return found
