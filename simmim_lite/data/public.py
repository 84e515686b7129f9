"""Public data sets: iNaturalist-2018 on the disk, torchvision's, and the Hugging Face hub's. No torch at import."""

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError, first_line, unknown
from . import annotations
from .catalogue import Catalogue, Files
from .decode import Source
from .listing import Parts, image_ids, scan, signature
from .store import data_root

_TREES = ("2018", "train_val2018")  # as torchvision names it, and as the archive does
_JSONS = {"train": "train2018.json", "val": "val2018.json"}
_NEEDS = {"images": "id file_name", "annotations": "image_id category_id", "categories": "id name?"}


def inaturalist(spec: str, place: str) -> Catalogue:
    """iNaturalist-2018 as torchvision lays it out: one tree of train and val, told apart by the official JSON files.

    Names are relative to DIR. Category ids become classes in ascending order, named as the files do. `UserError` for a
    file that is not there, an unknown category, a validation class without training images.
    """
    root = Path(place).expanduser().absolute()
    title = f"inaturalist:{root}"
    tree = next((name for name in _TREES if (root / name).is_dir()), None)
    if tree is None:
        raise UserError(f"{title}: neither {_TREES[0]}/ nor {_TREES[1]}/ in it; unpack train_val2018.tar.gz there")
    listing = scan(root / tree, title)
    there = {f"{tree}/{name}": size for name, size in zip(listing.names, listing.sizes.tolist(), strict=True)}
    category_of: dict[str, object] = {}
    splits, known = {}, {}
    for split, file in _JSONS.items():
        start = len(category_of)
        found, theirs = _annotated(root / file, title)
        if theirs | known != known | theirs:
            raise UserError(f"{root / file}: other categories than {_JSONS['train']} has; get both files again")
        known |= theirs
        for path, category in found:
            name = f"{tree}/{path.partition('/')[2]}"
            if name not in there:
                raise UserError(f"{title}: {name} is in {file}, but not on the disk; unpack train_val2018.tar.gz again")
            if category not in theirs or name in category_of:
                raise UserError(f"{root / file}: {path} is listed twice, or of a category that is not; get it again")
            category_of[name] = category
        splits[split] = np.arange(start, len(category_of))
    if not all(map(len, splits.values())):
        raise UserError(f"{title}: {' or '.join(_JSONS.values())} lists no images; get both files again")
    names, categories = list(category_of), list(category_of.values())
    number = {c: k for k, c in enumerate(sorted(set(categories[: splits["val"][0]]), key=annotations.id_order))}
    if odd := [name for name, category in category_of.items() if category not in number]:
        raise UserError(f"{title}: {odd[0]} is of a category of which {_JSONS['train']} has no image")
    labels = np.array([number[c] for c in categories], np.int64)
    classes = tuple(known[c] for c in number)
    odd = [(name, f"in no {' or '.join(_JSONS.values())}", 1) for name in there if name not in category_of]
    parts = Parts(names, image_ids(names), labels, classes, splits, passed=tuple(sorted([*listing.passed, *odd])))
    sizes = np.array([there[name] for name in names])
    digest = signature(list(zip(names, sizes.tolist(), strict=True)), labels.tolist(), classes)
    return Catalogue(spec, parts, Files(root, names), digest, digest, sizes)


def _annotated(path: Path, title: str) -> tuple[list[tuple[str, int | str]], dict[int | str, str]]:
    """(file name, category id) of each annotated image, in the order of the file; and the categories' names by id."""
    if not path.exists():
        get = "get it from the page of the 2018 competition (github.com/visipedia/inat_comp) and put it there"
        raise UserError(f"{title}: no {path.name} in it, so train and val cannot be told apart; {get}")
    _, content = annotations.read(path, _NEEDS)
    files = {image["id"]: image["file_name"] for image in content["images"]}
    category_of = {row["image_id"]: row["category_id"] for row in content["annotations"]}
    if len(category_of) < len(content["annotations"]) or category_of.keys() - files.keys():
        raise UserError(f"{path}: 'annotations' has an image twice, or one that it does not list; get it again")
    names = {c["id"]: str(c["id"] if c.get("name") is None else c["name"]) for c in content["categories"]}
    return [(files[image], category) for image, category in category_of.items()], names


class Entries:
    """Pictures of sets, one set after the other. draw(set, i) -> what `decode.read` takes."""

    def __init__(self, spec: str, sets: dict[str, Sequence], draw: Callable) -> None:
        self.spec, self.sets, self.draw = spec, sets, draw
        self.ends = np.cumsum([len(part) for part in sets.values()])

    def place(self, i: int) -> tuple[str, int]:
        k = int(np.searchsorted(self.ends, i, "right"))
        return list(self.sets)[k], int(i - (self.ends[k - 1] if k else 0))

    def source(self, i: int) -> Source:
        split, index = self.place(i)
        return self.draw(self.sets[split], index)

    def content(self, i: int) -> None:
        return None

    def title(self, i: int) -> str:
        return "{} {}/{}".format(self.spec, *self.place(i))


def _listed(spec: str, sets: dict[str, Sequence], labels: list[list[int]], classes: Sequence, draw: Callable):
    """A catalogue of sets by split, with their labels, -1 where unknown."""
    names = [f"{split}/{i}" for split, part in sets.items() for i in range(len(part))]
    labels = np.array([label for some in labels for label in some], np.int64)
    of = np.repeat(list(sets), [len(part) for part in sets.values()])
    splits = {split: np.flatnonzero(of == split) for split in sets}
    parts = Parts(names, image_ids(names), labels, tuple(map(str, classes)), splits)
    digest = signature(spec, names, labels.tolist())
    return Catalogue(spec, parts, Entries(spec, sets, draw), digest, digest)


def torchvision(spec: str, name: str) -> Catalogue:
    sets = dict(zip(("train", "test"), _torchvision_splits(name, data_root() / "torchvision"), strict=True))
    labels = [_targets(part) for part in sets.values()]
    classes = getattr(sets["train"], "classes", None) or range(1 + max(map(max, labels)))
    return _listed(spec, sets, labels, classes, _first)


def _first(part: Sequence, i: int) -> object:
    return part[i][0]


def _torchvision_splits(name: str, root: Path) -> tuple:
    """The training and the held-out set of a torchvision class, downloaded by itself where it can."""
    from torchvision import datasets

    every = {kind: inspect.signature(getattr(datasets, kind).__init__).parameters for kind in datasets.__all__}
    known = {kind: names for kind, names in every.items() if {"train", "split"} & names.keys()}
    if name not in known:
        raise unknown("torchvision data set", name, known)
    make = functools.partial(getattr(datasets, name), root, **({"download": True} if "download" in known[name] else {}))
    try:
        if "train" in known[name]:
            return make(train=True), make(train=False)
        train = make(split="train")
        try:
            return train, make(split="test")
        except ValueError:
            return train, make(split="val")
    except Exception as error:  # downloads fail in many ways
        raise UserError(f"torchvision:{name}: torchvision cannot open it in {root} ({first_line(error)})") from error


def _targets(part) -> list[int]:
    """Class numbers of a torchvision data set, -1 where a target is not one."""
    held = (getattr(part, name, None) for name in ("targets", "labels", "_labels", "_targets"))
    targets = next((some for some in held if some is not None and len(some) == len(part)), None)
    if targets is None:
        targets = [part[i][1] for i in range(len(part))]
    return [int(t) if isinstance(t, (int, np.integer)) or getattr(t, "ndim", 1) == 0 else -1 for t in targets]


def hugging_face(spec: str, name: str) -> Catalogue:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{spec} needs the package datasets: pip install 'simmim-lite[hf]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would come before our one line
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub raises errors of many libraries
        reason = first_line(error)
        raise UserError(f"{spec}: datasets cannot load it ({reason}); check the name and the network") from error
    columns = loaded["train"].features if "train" in loaded else {}
    image = next((c for c, f in columns.items() if isinstance(f, datasets.Image)), None)
    if image is None:
        raise UserError(f"{spec}: no train split with a column of images (splits: {', '.join(loaded)})")
    label = next((c for c, f in columns.items() if isinstance(f, datasets.ClassLabel)), None)
    names = {"train": "train", "val": "validation", "test": "test"}
    sets = {split: loaded[theirs] for split, theirs in names.items() if theirs in loaded}
    labels = [list(part[label]) if label else [-1] * len(part) for part in sets.values()]
    # as bytes or a path, so that their pictures are read as all others are
    sets = {split: part.cast_column(image, datasets.Image(decode=False)) for split, part in sets.items()}
    return _listed(spec, sets, labels, columns[label].names if label else (), functools.partial(_entry, image))


def _entry(column: str, part: Sequence, i: int) -> bytes | str | None:
    entry = part[i][column]
    return entry and (entry["bytes"] or entry["path"])
