"""iNaturalist-2018 as torchvision lays it out: one tree of train and val images, told apart by the official JSON files.

torchvision's `INaturalist(root, version="2018", download=True)` leaves ROOT/2018/SUPER/CATEGORY/IMAGE.jpg; the archive
unpacked by hand leaves ROOT/train_val2018/... . Which image is whose is in train2018.json and val2018.json, which are
downloads of their own beside it. No torch here.
"""

import os
from pathlib import Path

import numpy as np

from ..errors import UserError
from . import annotations
from .listing import scan, signature
from .ranking import image_ids
from .splits import Parts

_TREES = ("2018", "train_val2018")
_JSONS = {"train": "train2018.json", "val": "val2018.json"}
_NEEDS = {"images": "id file_name", "annotations": "image_id category_id", "categories": "id name?"}


def read_parts(root: Path) -> tuple[Parts, np.ndarray, str]:
    """Labels, classes and held-out images of DIR, their bytes (int64, (N,)), and a signature of all that.

    Names are relative to DIR. Category ids become classes in ascending order, named as the files do. `UserError` for a
    file that is not there, an unknown category, a validation class without training images.
    """
    title = f"inaturalist:{root}"
    tree = next((name for name in _TREES if (root / name).is_dir()), None)
    if tree is None:
        raise UserError(f"{title}: neither {_TREES[0]}/ nor {_TREES[1]}/ in it; unpack train_val2018.tar.gz there")
    listing = scan(root / tree, title)
    there = {f"{tree}/{name}": size for name, size in zip(listing.names, listing.sizes.tolist(), strict=True)}
    names, categories, splits, known, taken = [], [], {}, {}, set()
    for split, file in _JSONS.items():
        found, theirs = _read(root / file, title)
        for category in known.keys() & theirs.keys():
            if known[category] != theirs[category]:
                raise UserError(
                    f"{root / file}: category {category!r} is {theirs[category]!r}, which {_JSONS['train']} "
                    f"calls {known[category]!r}; get both files again"
                )
        known |= theirs
        start = len(names)
        for path, category in found:
            name = f"{tree}/{path.partition('/')[2]}"
            if name not in there:
                raise UserError(f"{title}: {name} is in {file}, but not on the disk; unpack train_val2018.tar.gz again")
            if category not in theirs:
                raise UserError(f"{root / file}: {path} is of category {category}, which it does not list")
            if name in taken:
                raise UserError(f"{root / file}: {path} is listed twice; an image is in train or in val, and once")
            taken.add(name)
            names.append(name)
            categories.append(category)
        splits[split] = np.arange(start, len(names))
    if not all(map(len, splits.values())):
        raise UserError(f"{title}: {' or '.join(_JSONS.values())} lists no images; get both files again")
    classes = sorted(set(categories[: splits["val"][0]]), key=annotations.id_order)
    number = {category: i for i, category in enumerate(classes)}
    for name, category in zip(names[splits["val"][0] :], categories[splits["val"][0] :], strict=True):
        if category not in number:
            raise UserError(f"{title}: {name} is of category {category}, of which {_JSONS['train']} has no image")
    labels = np.array([number[c] for c in categories], np.int64)
    ids = image_ids(names)
    listed = tuple(known[c] for c in classes)
    passed = (
        *listing.passed,
        *((name, f"in no {' or '.join(_JSONS.values())}", 1) for name in there.keys() - {*names}),
    )
    parts = Parts(names, ids, labels, listed, splits["train"], {"val": splits["val"]}, passed=tuple(sorted(passed)))
    sizes = np.array([there[name] for name in names])
    return parts, sizes, signature(list(zip(names, sizes.tolist(), strict=True)), labels.tolist(), parts.classes)


def _read(path: Path, title: str) -> tuple[list[tuple[str, int | str]], dict[int | str, str]]:
    """(file name, category id) of each annotated image, in the order of the file; and the categories' names by id."""
    if not path.exists():
        raise UserError(
            f"{title}: no {path.name} in it, so train and val cannot be told apart; get it from the page of the 2018 "
            f"competition (github.com/visipedia/inat_comp) and put it into {os.fspath(path.parent)}"
        )
    _, content = annotations.read(path, _NEEDS)
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found = {}
    for i, row in enumerate(content["annotations"]):
        image = row["image_id"]
        if image not in files:
            raise UserError(f"{path}: entry {i} of 'annotations' is of image {image!r}, which it does not list")
        if image in found:
            raise UserError(f"{path}: two entries of 'annotations' are of image {image!r}; each image has one category")
        found[image] = row["category_id"]
    names = {c["id"]: str(c["id"] if c.get("name") is None else c["name"]) for c in content["categories"]}
    return [(files[image], category) for image, category in found.items()], names
