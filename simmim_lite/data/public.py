"""Public data sets: iNaturalist-2018 on the disk, torchvision's, and the Hugging Face hub's. No torch at import."""

import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError, first_line, unknown
from . import decode
from .coco import id_order, one_line
from .folders import scan
from .listing import Catalogue, Files, Parts, image_ids, signature
from .store import data_root


def inaturalist(spec: str, place: str) -> Catalogue:
    """iNaturalist-2018 as torchvision lays it out: one tree of train and val, told apart by the official JSON files.

    Names are relative to DIR. Category ids become classes in ascending order, named as the files do.
    """
    root = Path(place).expanduser().absolute()
    tree = next((name for name in ("2018", "train_val2018") if (root / name).is_dir()), None)
    if tree is None:
        raise UserError(f"{spec}: neither 2018/ nor train_val2018/ in it; unpack train_val2018.tar.gz there")
    listing = scan(root / tree, spec)
    there = {f"{tree}/{name}": size for name, size in zip(listing.names, listing.sizes, strict=True)}
    category_of, known, ends = {}, {}, [0]
    for file in ("train2018.json", "val2018.json"):
        with one_line(root / file, "get it (github.com/visipedia/inat_comp) and train_val2018.tar.gz again"):
            content = json.loads((root / file).read_bytes())
            known |= {c["id"]: str(c["id"] if c.get("name") is None else c["name"]) for c in content["categories"]}
            files = {image["id"]: image["file_name"] for image in content["images"]}
            for row in content["annotations"]:
                name = f"{tree}/{files[row['image_id']].partition('/')[2]}"
                if name not in there or name in category_of or row["category_id"] not in known:
                    raise ValueError(f"{name} is not on the disk, listed twice, or of no category")
                category_of[name] = row["category_id"]
            ends.append(len(category_of))
            number = {c: k for k, c in enumerate(sorted(set(list(category_of.values())[: ends[1]]), key=id_order))}
            if ends[-1] == ends[-2] or not number.keys() >= set(category_of.values()):
                raise ValueError("no images, or some of a category of which train2018.json has none")
    names, categories = list(category_of), list(category_of.values())
    labels = np.array([number[c] for c in categories], np.int64)
    classes = tuple(known[c] for c in number)
    odd = [(name, "in no train2018.json or val2018.json", 1) for name in there if name not in category_of]
    splits = {"train": np.arange(ends[1]), "val": np.arange(*ends[1:])}
    parts = Parts(names, image_ids(names), labels, classes, splits, passed=tuple(sorted([*listing.passed, *odd])))
    sizes = np.array([there[name] for name in names])
    digest = signature(list(zip(names, sizes.tolist(), strict=True)), labels.tolist(), classes)
    return Catalogue(spec, parts, Files(root, names), digest, digest, sizes)


class Entries:
    """The reader of sets without files, one set after the other. draw(set, i) -> what `decode.read` takes."""

    def __init__(self, spec: str, sets: dict[str, Sequence], draw: Callable) -> None:
        self.spec, self.sets, self.draw = spec, sets, draw
        self.ends = np.cumsum([len(part) for part in sets.values()])

    def place(self, i: int) -> tuple[str, int]:
        k = int(np.searchsorted(self.ends, i, "right"))
        return list(self.sets)[k], int(i - (self.ends[k - 1] if k else 0))

    def source(self, i: int) -> decode.Source:
        split, index = self.place(i)
        return self.draw(self.sets[split], index)

    def content(self, i: int) -> None:
        return None

    def title(self, i: int) -> str:
        return "{} {}/{}".format(self.spec, *self.place(i))

    def catalogue(self, labels: list[list[int]], classes: Iterable) -> Catalogue:
        """labels: of each set, -1 where unknown."""
        names = [f"{split}/{i}" for split, part in self.sets.items() for i in range(len(part))]
        labels = np.array([label for some in labels for label in some], np.int64)
        splits = dict(zip(self.sets, np.split(np.arange(len(names)), self.ends[:-1]), strict=True))
        parts = Parts(names, image_ids(names), labels, tuple(map(str, classes)), splits)
        digest = signature(self.spec, names, labels.tolist())
        return Catalogue(self.spec, parts, self, digest, digest)


def torchvision(spec: str, name: str) -> Catalogue:
    """A class of torchvision's that has a training and a held-out set, downloaded by itself where it can."""
    from torchvision import datasets

    every = {kind: inspect.signature(getattr(datasets, kind).__init__).parameters for kind in datasets.__all__}
    known = {kind: names for kind, names in every.items() if {"train", "split"} & names.keys()}
    if name not in known:
        raise unknown("torchvision data set", name, known)
    root, sets = data_root() / "torchvision", []
    make = functools.partial(getattr(datasets, name), root, **({"download": True} if "download" in known[name] else {}))
    wanted = ({"train": True}, {"train": False}) if "train" in known[name] else ({"split": "train"}, {"split": "test"})
    try:
        sets = [make(**options) for options in wanted]
    except Exception as error:  # downloads fail in many ways
        raise UserError(f"{spec}: torchvision cannot open it in {root} ({first_line(error)})") from error
    labels = [_targets(part) for part in sets]
    classes = getattr(sets[0], "classes", None) or range(1 + max(map(max, labels)))
    return Entries(spec, dict(zip(("train", "test"), sets, strict=True)), _first).catalogue(labels, classes)


def _first(part: Sequence, i: int) -> object:
    return part[i][0]


def _targets(part: Sequence) -> list[int]:
    """Class numbers of a torchvision data set, -1 where a target is not one."""
    held = (getattr(part, name, None) for name in ("targets", "labels", "_labels", "_targets"))
    targets = next((some for some in held if some is not None and len(some) == len(part)), None)
    if targets is None:
        targets = [part[i][1] for i in range(len(part))]
    return [int(t) if isinstance(t, (int, np.integer)) or getattr(t, "ndim", 1) == 0 else -1 for t in targets]


def hugging_face(spec: str, name: str) -> Catalogue:
    try:
        import datasets

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would come before our one line
        loaded = datasets.load_dataset(name)
    except ImportError as error:
        raise UserError(f"{spec} needs the package datasets: pip install 'simmim-lite[hf]'") from error
    except Exception as error:  # the hub raises errors of many libraries
        raise UserError(f"{spec}: datasets cannot load it ({first_line(error)}); check name and network") from error
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
    draw = functools.partial(_entry, image)
    return Entries(spec, sets, draw).catalogue(labels, columns[label].names if label else ())


def _entry(column: str, part: Sequence, i: int) -> bytes | str | None:
    entry = part[i][column]
    return entry and (entry["bytes"] or entry["path"])
