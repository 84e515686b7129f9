"""Folders of a few generated photographs, laid out as ImageNet and iNaturalist-2018 are."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

#: Sizes of photographs: landscape, portrait, smaller than the input, and square.
SIZES = ((300, 240), (230, 310), (90, 120), (256, 256))


def photo(path: Path, seed: int) -> Path:
    """A JPEG of smooth colours, of one of `SIZES`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(SIZES[seed % len(SIZES)], Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def imagenet(root: Path, classes: int = 3, train: int = 4, val: int = 3) -> Path:
    """ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG, as torchvision's ImageNet has them once unpacked."""
    for c in range(classes):
        for split, n in (("train", train), ("val", val)):
            for k in range(n):
                photo(root / split / f"n0{c}" / f"{split}_{k}.JPEG", 100 * c + 10 * k + (split == "val"))
    return root


def inaturalist(root: Path, tree: str = "2018", categories: tuple[int, ...] = (7, 12, 3)) -> Path:
    """ROOT/TREE/SUPER/CATEGORY/*.jpg of both splits, train2018.json and val2018.json as the competition wrote them."""
    names = {"train": [], "val": []}
    for c in categories:
        for k in range(5):
            place = f"{'Aves' if c % 2 else 'Plantae'}/{c}/{c}{k}.jpg"
            photo(root / tree / place, 10 * c + k)
            names["val" if k > 2 else "train"].append((f"train_val2018/{place}", c))
    listed = [{"id": c, "name": f"species {c}", "supercategory": "Aves"} for c in range(max(categories) + 1)]
    for split, found in names.items():
        images = [{"id": 1000 + i, "file_name": name, "width": 1, "height": 1} for i, (name, _) in enumerate(found)]
        notes = [{"id": i, "image_id": 1000 + i, "category_id": c} for i, (_, c) in enumerate(found)]
        content = {"info": {}, "images": images, "annotations": notes, "categories": listed}
        (root / f"{split}2018.json").write_text(json.dumps(content))
    return root
