"""Scenes as a folder in the layout of ADE20K, so that the full-size path reads them. No torch here."""

from pathlib import Path

import numpy as np
from PIL import Image

from . import scenes
from .folders import signature
from .sources import SCENE_COUNTS, SCENE_SPLITS, data_root
from .store import ensure_folder, progress

#: Part of the folder's name: raised when the same scenes would be written otherwise.
LAYOUT_VERSION = 1
#: Folder -> scene seed and number of scenes: the labelled pool, and the test split.
SPLITS = {
    folder: (SCENE_SPLITS[split], SCENE_COUNTS[split])
    for folder, split in (("training", "probe_train"), ("validation", "test"))
}
#: Class 1 is the background; 2 to 11 are the classes of the large object and of the small one.
CLASSES = ("background", *scenes.CLASSES)
_CHUNK = 256  # scenes drawn together


def scenes_folder(size: int) -> Path:
    """The folder of scenes of `size` pixels a side, written at the first time, whole or not at all.

    Files are named by the scene's index: images/validation/scene_00012.png is `render(2, [12], size)`. One process
    writes, others wait.
    """
    version = signature(LAYOUT_VERSION, scenes.SCENES_VERSION, SPLITS)
    name, title = f"scenes-ade20k-{size}px", "scenes in ADE20K's layout"
    return ensure_folder(data_root() / "stores", name, version, lambda folder: _write(folder, size, title), title)


def _write(root: Path, size: int, title: str) -> None:
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    with progress(sum(count for _, count in SPLITS.values()), title) as advance:
        for split, (seed, count) in SPLITS.items():
            images, annotations = root / "images" / split, root / "annotations" / split
            images.mkdir(parents=True)
            annotations.mkdir(parents=True)
            for start in range(0, count, _CHUNK):
                indices = np.arange(start, min(start + _CHUNK, count))
                drawn = scenes.render(seed, indices, size)
                for i, pixels, numbers in zip(indices, drawn.images, class_numbers(drawn), strict=True):
                    Image.fromarray(pixels.transpose(1, 2, 0)).save(images / f"scene_{i:05d}.png")
                    Image.fromarray(numbers).save(annotations / f"scene_{i:05d}.png")
                advance(len(indices))


def class_numbers(drawn: scenes.Scenes) -> np.ndarray:
    """Numbers of `CLASSES` at each pixel, counted from 1: uint8 (N, S, S)."""
    numbers = np.ones(drawn.masks.shape, np.uint8)
    for masks, labels in ((drawn.small_masks, drawn.small_labels), (drawn.masks, drawn.labels)):
        np.copyto(numbers, (labels + 2).astype(np.uint8)[:, None, None], where=masks)
    return numbers
