"""Where images come from: every kind of source is a row of `FORMATS`, and is opened to one `Data`. No torch here.

Decoded once into a store at one size (`open_data`), or decoded as training goes (`open_streamed`, `open_pictures`).
"""

import functools
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, first_line, unknown
from . import decode, scenes
from .coco import id_order, one_line
from .folders import of_folder, scan
from .listing import Catalogue, Data, Files, PassedOver, Split, describe, image_ids, picture_digest, say, signature
from .packs import of_pack
from .scenes import SCENE_BLOCK, SCENE_COUNTS, SCENE_SPLITS
from .store import STORE_VERSION, Chunk, Store, StorePlan, data_root, ensure

SCENE_SIZE = 32  # pixels: scenes have no size of their own; they are drawn as the studies draw them
_CHUNK = 256  # images decoded between two writes


@dataclass(frozen=True)
class Format:
    """A kind of source, named KIND:PLACE."""

    place: str  # what stands after the colon; empty for scenes
    open: Callable[[str, str], Catalogue] | None  # of the whole name and the place; None for what is drawn
    local: bool = True  # whether listing it needs no download


def _inaturalist(spec: str, place: str) -> Catalogue:
    """iNaturalist-2018 as torchvision lays it out: one tree of train and val, told apart by the official JSON files."""
    root = Path(place).expanduser().absolute()
    tree = next((name for name in ("2018", "train_val2018") if (root / name).is_dir()), None)
    if tree is None:
        raise UserError(f"{spec}: neither 2018/ nor train_val2018/ in it; unpack train_val2018.tar.gz there")
    found = scan(root / tree, spec)
    there = {f"{tree}/{name}": size for name, size in zip(found.names, found.sizes, strict=True)}
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
    sizes = np.array([there[name] for name in names])
    digest = signature(list(zip(names, sizes.tolist(), strict=True)), labels.tolist(), classes)
    about = {"digest": digest, "stamp": digest, "sizes": sizes, "passed": tuple(sorted([*found.passed, *odd]))}
    return Catalogue(names, image_ids(names), labels, classes, splits, spec, Files(root, names), **about)


class Entries:
    """The reader of sets without files, one set after the other; draw(set, i): a picture as `decode.read` takes it."""

    def __init__(self, spec: str, sets: dict[str, Sequence], draw: Callable) -> None:
        self.spec, self.sets, self.draw = spec, sets, draw
        self.places = [(split, i) for split, part in sets.items() for i in range(len(part))]

    def content(self, i: int) -> Image.Image:
        split, index = self.places[i]
        return decode.read(self.draw(self.sets[split], index))

    def title(self, i: int) -> str:
        return "{} {}/{}".format(self.spec, *self.places[i])

    def catalogue(self, labels: list[list[int]], classes: Iterable) -> Catalogue:
        """labels: of each set, -1 where unknown."""
        names, labels = [f"{split}/{i}" for split, i in self.places], np.array(sum(labels, []), np.int64)
        ends = np.cumsum([len(part) for part in self.sets.values()])
        splits = dict(zip(self.sets, np.split(np.arange(len(names)), ends[:-1]), strict=True))
        digest, classes = signature(self.spec, names, labels.tolist()), tuple(map(str, classes))
        return Catalogue(names, image_ids(names), labels, classes, splits, self.spec, self, digest, digest)


def _torchvision(spec: str, name: str) -> Catalogue:
    from torchvision import datasets

    every = {kind: inspect.signature(getattr(datasets, kind).__init__).parameters for kind in datasets.__all__}
    known = {kind: names for kind, names in every.items() if {"train", "split"} & names.keys()}
    if name not in known:
        raise unknown("torchvision data set", name, known)
    root, more = data_root() / "torchvision", {"download": True} if "download" in known[name] else {}
    wanted = ({"train": True}, {"train": False}) if "train" in known[name] else ({"split": "train"}, {"split": "test"})
    try:
        sets = [getattr(datasets, name)(root, **options, **more) for options in wanted]
    except Exception as error:  # downloads fail in many ways
        raise UserError(f"{spec}: torchvision cannot open it in {root} ({first_line(error)})") from error
    labels = []
    for part in sets:
        held = (getattr(part, where, None) for where in ("targets", "labels", "_labels", "_targets"))
        targets = next((some for some in held if some is not None and len(some) == len(part)), None)
        targets = [part[i][1] for i in range(len(part))] if targets is None else targets
        labels.append([int(t) if isinstance(t, int) or getattr(t, "ndim", 1) == 0 else -1 for t in targets])
    classes = getattr(sets[0], "classes", None) or range(1 + max(map(max, labels)))
    draw = functools.partial(_entry, 0)
    return Entries(spec, dict(zip(("train", "test"), sets, strict=True)), draw).catalogue(labels, classes)


def _hugging_face(spec: str, name: str) -> Catalogue:
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
    classes = columns[label].names if label else ()
    return Entries(spec, sets, functools.partial(_entry, image)).catalogue(labels, classes)


def _entry(column: int | str, part: Sequence, i: int) -> object:
    entry = part[i][column]
    return entry["bytes"] or entry["path"] if isinstance(entry, dict) else entry


#: Every kind of source. Help, documents and `A + B` of the paper tier read this table.
FORMATS: dict[str, Format] = {
    "scenes": Format("", None),
    "imagefolder": Format("DIR", of_folder),
    "inaturalist": Format("DIR", _inaturalist),
    "packed": Format("DIR", of_pack),
    "torchvision": Format("NAME", _torchvision, local=False),
    "hf": Format("NAME", _hugging_face, local=False),
}
KINDS = tuple(f"{kind}:{row.place}" if row.place else kind for kind, row in FORMATS.items())


def kind_of(spec: str) -> tuple[str, str]:
    kind, _, place = spec.partition(":")
    if os.path.isdir(spec) and kind not in FORMATS:
        raise UserError(f"unknown data '{spec}': it is a folder, say imagefolder:{spec}")
    if kind not in FORMATS or bool(place) != bool(FORMATS[kind].place):
        raise unknown("data", spec, KINDS)
    return kind, place


def catalogue(spec: str) -> Catalogue:
    """What a source lists, by its name as `open_data` takes it, scenes apart (they are drawn)."""
    kind, place = kind_of(spec)
    if FORMATS[kind].open is None:
        raise UserError("scenes are drawn and not read: there are no files of them; give a source of pictures")
    return FORMATS[kind].open(spec, place)


def open_data(spec: str, image_size: int, *, images_needed: int | None = None) -> Data:
    """Open a source at `image_size` pixels a side, decoding it into the store at the first time.

    `images_needed` matters to scenes alone, which have no end: the training pool holds at least so many."""
    if spec == "scenes":
        return _open_scenes(image_size, images_needed or 0)
    kind, place = kind_of(spec)
    # what is downloaded or loaded is asked only where there is no store of it yet
    found = catalogue(spec) if FORMATS[kind].local else None
    folder = Path(place).expanduser()
    files = () if found or not folder.is_dir() else (path for path in folder.rglob("*") if path.is_file())
    stamp = found.stamp if found else repr(sorted((str(path), path.stat().st_mtime_ns) for path in files))

    prefix, version, where = _named(spec, image_size, stamp)
    store = ensure(prefix, version, lambda: _squares((found or catalogue(spec)).split(), image_size), spec)
    return _data(spec, store, stamp, found.passed if found else (), name=os.path.basename(where))


def open_pictures(spec: str) -> Data:
    """A source at the pictures' own sizes, for fine-tuning at full size: of a folder only names and sizes are read.

    `test` holds every labelled image that is held out: the whole of DIR/val, as ImageNet is scored. There is no val.
    train and test are None where there are no labels."""
    if spec == "scenes":
        return as_pictures(open_data(spec, SCENE_SIZE))
    found = catalogue(spec).split(halve=False)
    splits = {split: found.readable(split) for split, rows in found.splits.items() if found.known(rows)}
    about = (found.classes, None, None, found.digest)
    return Data(spec, spec, None, splits.get("train"), None, None, splits.get("test"), *about, line=found.say())


def open_streamed(spec: str, image_size: int) -> Data:
    """A source for pretraining that decodes its pictures as it goes: its validation pictures alone are stored.

    There is no test split and nothing to probe with; mean and std are None. Scenes are drawn as always."""
    if spec == "scenes":
        return replace(open_data(spec, image_size), probe_train=None, test=None)
    found = catalogue(spec).split()
    prefix, version, _ = _named(spec, image_size, found.stamp)
    held, title = replace(found, splits={"val": found.splits["val"]}), f"validation pictures of {spec}"
    store = ensure(f"val-{prefix}", version, lambda: _squares(held, image_size), title)
    data = _data(spec, store, found.stamp, found.passed, found.readable("train"))
    return replace(data, digest=signature(found.digest, data.digest))


def open_for_training(spec: str, image_size: int, images_needed: int | None = None, *, streamed: bool = False) -> Data:
    if streamed:
        return open_streamed(spec, image_size)
    return open_data(spec, image_size, images_needed=images_needed)


def as_pictures(data: Data) -> Data:
    return replace(data, image_size=None, train=data.probe_train, val=None, probe_train=None, line="")


def _open_scenes(size: int, needed: int) -> Data:
    counts = {"train": max(1, -(-needed // SCENE_BLOCK)) * SCENE_BLOCK, **SCENE_COUNTS}

    def chunks(split: str) -> Iterator[Chunk]:
        seed = SCENE_SPLITS[split]
        for start in range(0, counts[split], _CHUNK):
            index = np.arange(start, min(start + _CHUNK, counts[split]), dtype=np.uint64)
            found = scenes.render(seed, index, size)
            yield Chunk(found.images, index + np.uint64(seed << 40), found.labels, found.masks)

    def plan() -> StorePlan:
        parts = {split: chunks(split) for split in counts}
        return StorePlan(parts, sum(counts.values()), size, scenes.CLASSES, masks=True, reference=SCENE_BLOCK)

    version = signature(STORE_VERSION, scenes.SCENES_VERSION, counts)
    store = ensure(f"scenes-{counts['train']}-{size}px", version, plan, "scenes")
    return _data("scenes", store, block=SCENE_BLOCK)


def _squares(found: Catalogue, size: int) -> StorePlan:
    """The plan of a catalogue's pictures. Sets that are no files are read by one thread."""
    digests: dict[str, list[int]] = {}

    def square(split: str, i: int) -> np.ndarray | Exception:
        try:
            content = found.reader.content(i)  # of a file, detail that the resize throws away is not decoded
            if isinstance(content, bytes):
                digests.setdefault(split, []).append(picture_digest(content))
            return decode.read_square(content, size)
        except Exception as error:  # decoders raise errors of many kinds; each one names its image and is left out
            return error

    def chunks(split: str, rows: np.ndarray) -> Iterator[Chunk]:
        whole, first = 0, []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if found.sizes is not None else 1) as pool:
            for some in (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)):
                done = list(pool.map(functools.partial(square, split), some.tolist()))
                bad = np.array([isinstance(result, Exception) for result in done])
                skipped = [(found.names[i], first_line(done[k])) for k, i in enumerate(some) if bad[k]]
                whole, first = whole + int((~bad).sum()), first or skipped
                good = [result for result in done if isinstance(result, np.ndarray)]
                pixels = np.stack(good) if good else np.empty((0, 3, size, size), np.uint8)
                yield Chunk(pixels, found.ids[some[~bad]], found.labels[some[~bad]], None, skipped)
        if not whole:
            reason = f"no image of its {split} split can be used at {size} px (first: {': '.join(first[0])})"
            raise UserError(f"{found.spec}: {reason}; give other pictures, or a smaller --image-size")

    def notes() -> Iterator[str]:
        yield from found.notes  # asked for when all pictures have been read
        train = set(digests.get("train", ()))
        held = [digest for split, some in digests.items() if split != "train" for digest in some]
        if count := len([digest for digest in held if digest in train]):
            yield f"{count:,} of {len(held):,} held-out pictures have the bytes of a training picture"

    streams = {split: chunks(split, rows) for split, rows in found.splits.items()}
    return StorePlan(streams, sum(map(len, found.splits.values())), size, found.classes, notes())


def _named(spec: str, size: int, stamp: str) -> tuple[str, str, str]:
    kind, place = kind_of(spec)
    folder = os.path.abspath(os.path.expanduser(place))
    where = folder if os.path.isdir(folder) else place
    slug = re.sub(r"[^A-Za-z0-9]+", "_", os.path.basename(where))[:40]
    return f"{slug}-{signature(kind, where)}-{size}px", signature(STORE_VERSION, stamp), where


def _data(
    spec: str,
    store: Store,
    stamp: str = "",
    passed: Iterable[PassedOver] = (),
    train: Split | None = None,
    block: int | None = None,
    name: str | None = None,
) -> Data:
    """What is in a source's store, beside `train`; its line is said."""
    info, skipped, splits = store.info, [tuple(item) for item in store.info["skipped"]], {"train": train}
    for part, (start, end) in info["splits"].items():
        rows, labels = slice(start, end), store.labels[start:end]
        labels = labels if info["classes"] and (labels >= 0).all() else None
        masks = None if store.masks is None else store.masks[rows]
        splits[part] = Split(f"{part} of {spec}", store.images[rows], store.ids[rows], labels, masks, block)
    counts = {s: len(splits[s]) for s in ("train", "val", "test") if s in splits}
    small = "smaller than the image size"
    passed = [*passed, *((name, small if small in reason else "cannot be read", 1) for name, reason in skipped)]
    line = describe(spec, len(info["classes"]), counts, info["notes"], passed)
    say(line, spec, stamp)
    probe = splits.get("probe_train") or (splits["train"] if "test" in splits else None)
    mean, std = (None if train else tuple(info[what]) for what in ("mean", "std"))
    about = (tuple(info["classes"]), mean, std, info["digest"], skipped, line)
    size = info["image_size"]
    return Data(spec, name or spec, size, splits["train"], splits["val"], probe, splits.get("test"), *about)
