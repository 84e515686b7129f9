"""Scenes as files, in the layouts of the field's data sets: detection then has one code path, whatever the data."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from . import scenes
from .folders import signature
from .sources import SCENE_COUNTS, SCENE_SPLITS, data_root
from .store import ensure_folder, progress

#: Raised when the files of a layout change, so that old ones are written again.
LAYOUT_VERSION = 1
_CHUNK = 256  # scenes drawn together


def scenes_as_coco(size: int) -> Path:
    """The folder of scenes in COCO layout at `size` pixels a side, in the data root; written at the first time.

    Training images are those of the labelled pool (scene seed 3), validation images the test split's (scene seed 2).
    """
    counts = {"train": SCENE_COUNTS["probe_train"], "val": SCENE_COUNTS["test"]}
    version = signature(LAYOUT_VERSION, scenes.SCENES_VERSION, counts)

    def write(folder: Path) -> None:
        write_coco(folder, **counts, size=size)

    return ensure_folder(data_root() / "stores", f"scenes_coco-{size}px", version, write, "scenes in COCO layout")


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
            for start in range(0, count, _CHUNK):
                index = np.arange(start, min(start + _CHUNK, count))
                drawn = scenes.render(SCENE_SPLITS[source], index, size)
                for place, number in enumerate(index.tolist()):
                    name = f"{number:012d}.png"
                    Image.fromarray(np.ascontiguousarray(drawn.images[place].transpose(1, 2, 0))).save(pictures / name)
                    images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
                    for annotation in _objects(drawn, place):
                        number_of = {"id": len(annotations) + 1, "image_id": number + 1}
                        annotations.append(number_of | annotation)
                advance(len(index))
            # the version is that of the pictures: annotations alone would not tell other colours
            content = {"info": {"description": "scenes", "version": scenes.SCENES_VERSION}}
            content |= {"images": images, "annotations": annotations, "categories": categories}
            (folder / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content), encoding="utf-8")


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
