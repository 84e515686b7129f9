"""Where images come from: every kind of source is a row of `FORMATS`, and is opened to one `Data`. No torch here.

Decoded once into a store at one size, or decoded as training goes.
"""

import functools
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, first_line, unknown
from ..processes import cores, waiting
from . import decode, scenes
from .coco import id_order, one_line
from .folders import Files, Stacks, of_folder, scan
from .manifests import Listing, PassedOver, Split, describe, image_ids, picture_digest, say, signature
from .packs import of_pack
from .scenes import SCENE_BLOCK, SCENE_COUNTS, SCENE_SPLITS
from .store import STORE_VERSION, Chunk, StorePlan, data_root, ensure, is_there

SCENE_SIZE = 32  # pixels: scenes have no size of their own; they are drawn as the studies draw them


@dataclass(frozen=True)
class Data:
    """An open source. val and test are in hash-rank order: any first n of them are a class-balanced draw."""

    spec: str
    train: Split | None  # with a reader where pictures are decoded as training goes
    val: Split | None
    probe_train: Split | None  # labelled; None without labels
    test: Split | None  # labelled, no image of val (but see `open_pictures`); None without labels
    classes: tuple[str, ...]
    mean: tuple[float, float, float] | None  # of the training images, 0..1 units; None where nobody has counted
    std: tuple[float, float, float] | None
    digest: str  # of ids, labels, pixels and masks (of scenes: the first block), or of what is listed
    line: str = ""  # what there is, how it was read and what was passed over

    num_classes = property(lambda self: len(self.classes))
    channels = property(lambda self: 3 if self.val is None or self.val.images is None else self.val.images.shape[1])


# --- kinds of sources


def _inaturalist(spec: str, place: str) -> Listing:
    """iNaturalist-2018 as torchvision lays it out: one tree of train and val, told apart by the official JSON files."""
    root = Path(place).expanduser().absolute()
    tree = next((name for name in ("2018", "train_val2018") if (root / name).is_dir()), None)
    if tree is None:
        raise UserError(f"{spec}: neither 2018/ nor train_val2018/ in it; unpack train_val2018.tar.gz there")
    listed, bytes_of, _, _, passed, _ = scan(root / tree, spec)
    there = {f"{tree}/{name}": size for name, size in zip(listed, bytes_of.tolist(), strict=True)}
    category_of, known, ends = {}, {}, [0]
    with one_line(root, "get the JSON files (github.com/visipedia/inat_comp) and train_val2018.tar.gz again"):
        for file in ("train2018.json", "val2018.json"):
            content = json.loads((root / file).read_bytes())
            known |= {c["id"]: str(c["id"] if c.get("name") is None else c["name"]) for c in content["categories"]}
            files = {image["id"]: image["file_name"].partition("/")[2] for image in content["images"]}
            rows = content["annotations"]
            category_of |= {f"{tree}/{files[row['image_id']]}": row["category_id"] for row in rows}
            ends.append(ends[-1] + len(rows))
            if not rows or len(category_of) < ends[-1]:
                raise ValueError(f"{file} lists no images, or one twice")
        names, trained = list(category_of), {*list(category_of.values())[: ends[1]]}
        number = {c: k for k, c in enumerate(sorted(trained, key=id_order))}
        # a KeyError names a picture that is not on the disk, or a category that is not described or not trained on
        sizes, classes = [there[name] for name in names], tuple(known[c] for c in number)
        labels = np.array([number[c] for c in category_of.values()], np.int64)
    odd = [(name, "in no train2018.json or val2018.json") for name in there if name not in category_of]
    splits = {"train": np.arange(ends[1]), "val": np.arange(*ends[1:])}
    digest = signature(list(zip(names, sizes, strict=True)), labels.tolist(), classes)
    about = {"digest": digest, "stamp": digest, "passed": tuple(sorted([*passed, *odd]))}
    return Listing(names, image_ids(names), labels, classes, splits, spec, Files(root, names), **about)


class Entries:
    """The reader of sets without files, one set after the other; column: where an entry has its picture."""

    def __init__(self, spec: str, sets: dict[str, Sequence], column: int | str) -> None:
        self.spec, self.sets, self.column = spec, sets, column
        self.places = [(split, i) for split, part in sets.items() for i in range(len(part))]

    def content(self, i: int) -> Image.Image:
        split, index = self.places[i]
        picture = self.sets[split][index][self.column]
        return decode.read(picture["bytes"] or picture["path"] if isinstance(picture, dict) else picture)

    def title(self, i: int) -> str:
        return "{} {}/{}".format(self.spec, *self.places[i])

    def listing(self, labels: list[list[int]], classes: Iterable) -> Listing:
        """labels: of each set, -1 where unknown."""
        names, labels = [f"{split}/{i}" for split, i in self.places], np.array(sum(labels, []), np.int64)
        ends = np.cumsum([len(part) for part in self.sets.values()])
        splits = dict(zip(self.sets, np.split(np.arange(len(names)), ends[:-1]), strict=True))
        digest, classes = signature(self.spec, names, labels.tolist()), tuple(map(str, classes))
        parts = (names, image_ids(names), labels, classes, splits, self.spec, self, digest, digest)
        return Listing(*parts, threaded=False)


def _torchvision_name(name: str) -> None:
    """`UserError` where torchvision has no such data set. It is not imported, which takes seconds."""
    known = Path(find_spec("torchvision").origin).with_name("datasets").joinpath("__init__.py").read_text()
    if name not in (names := re.findall(r'"(\w+)"', known)):
        raise unknown("torchvision data set", name, names)


def _torchvision(spec: str, name: str) -> Listing:
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
    return Entries(spec, {"train": sets[0], "test": sets[1]}, 0).listing(labels, classes)


def _hugging_face(spec: str, name: str) -> Listing:
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
    return Entries(spec, sets, image).listing(labels, columns[label].names if label else ())


@dataclass(frozen=True)
class Format:
    """A kind of source, named KIND:PLACE."""

    place: str  # what stands after the colon; empty for scenes
    open: Callable[[str, str], Listing] | None  # of the whole name and the place; None for what is drawn
    local: bool = True  # whether listing it needs no download
    check: Callable[[str], object] = bool  # of the place, before anything is downloaded


#: Every kind of source. Help, documents and `A + B` of the paper tier read this table.
FORMATS: dict[str, Format] = {
    "scenes": Format("", None),
    "plankton": Format("", None),
    "imagefolder": Format("DIR", of_folder),
    "stacks": Format("DIR", functools.partial(of_folder, reader=Stacks)),
    "inaturalist": Format("DIR", _inaturalist),
    "packed": Format("DIR", of_pack),
    "torchvision": Format("NAME", _torchvision, local=False, check=_torchvision_name),
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


def listing(spec: str) -> Listing:
    """What a source lists, by its name as `open_data` takes it, scenes apart (they are drawn)."""
    kind, place = kind_of(spec)
    if FORMATS[kind].open is None:
        raise UserError(f"{kind} are drawn and not read: there are no files of them; give a source of pictures")
    with waiting(f"listing the pictures of {spec}"):
        return FORMATS[kind].open(spec, place)


# --- opening them


def open_data(spec: str, image_size: int, *, images_needed: int | None = None, streamed: bool = False) -> Data:
    """Open a source at `image_size` pixels a side, decoding it into the store at the first time.

    images_needed: scenes have no end; their training pool holds at least so many. streamed: only validation pictures
    are stored, training pictures are decoded as training goes; no test, nothing to probe with, no mean and std."""
    if spec in scenes.LOOKS:
        data = _open_drawn(spec, image_size, images_needed or 0)
        return replace(data, probe_train=None, test=None) if streamed else data
    found, stamp, name, version = _store(spec, image_size, streamed)

    def plan() -> StorePlan:
        laid = (found or listing(spec)).split()
        return _squares(replace(laid, splits={"val": laid.splits["val"]}) if streamed else laid, image_size)

    store = ensure(name, version, plan, f"{'validation pictures of ' * streamed}{spec}")
    train = found.split().readable("train") if streamed else None
    data = _data(spec, store, stamp, found.passed if found else (), train)
    return replace(data, digest=signature(found.digest, data.digest)) if streamed else data


def stored(spec: str, image_size: int) -> Data | None:
    """A source as `open_data` gives it, if its pictures have been decoded at this size; the store is not read through.
    None else, and of what is drawn."""
    if spec in scenes.LOOKS:
        return None
    found, stamp, name, version = _store(spec, image_size)
    store = is_there(name, version) and ensure(name, version, None, spec, verify=False)
    return _data(spec, store, stamp, found.passed if found else ()) if store else None


def _store(spec: str, image_size: int, streamed: bool = False) -> tuple[Listing | None, str, str, str]:
    """What a source lists (None where that would load it), its stamp, and name and version of its store."""
    kind, place = kind_of(spec)
    # what is downloaded or loaded is asked only where there is no store of it yet
    found = listing(spec) if streamed or FORMATS[kind].local else None
    folder = os.path.abspath(os.path.expanduser(place))
    where = folder if os.path.isdir(folder) else place
    files = () if found or where != folder else (path for path in Path(folder).rglob("*") if path.is_file())
    stamp = found.stamp if found else repr(sorted((str(path), path.stat().st_mtime_ns) for path in files))
    slug = re.sub(r"[^A-Za-z0-9]+", "_", os.path.basename(where))[:40]
    name = f"{'val-' * streamed}{slug}-{signature(kind, where)}-{image_size}px"
    return found, stamp, name, signature(STORE_VERSION, stamp)


def open_pictures(spec: str) -> Data:
    """A source at the pictures' own sizes, for fine-tuning at full size: of a folder only names and sizes are read.

    `test` holds every labelled image that is held out: the whole of DIR/val, as ImageNet is scored. There is no val.
    train and test are None where there are no labels."""
    if spec in scenes.LOOKS:
        drawn = open_data(spec, SCENE_SIZE)
        return replace(drawn, train=drawn.probe_train, val=None, probe_train=None, line="")
    found = listing(spec).split(halve=False)
    splits = {split: found.readable(split) for split, rows in found.splits.items() if found.known(rows)}
    about = (found.classes, None, None, found.digest, found.say())
    return Data(spec, splits.get("train"), None, None, splits.get("test"), *about)


def _open_drawn(look: str, size: int, needed: int) -> Data:
    counts = {"train": max(1, -(-needed // SCENE_BLOCK)) * SCENE_BLOCK, **SCENE_COUNTS}

    def draw(split: str, index: np.ndarray) -> Chunk:
        seed = SCENE_SPLITS[split]
        found = scenes.render(seed, index, size, look)
        return Chunk(found.images, index + np.uint64(seed << 40), found.labels, found.masks)

    rows = {split: np.arange(count, dtype=np.uint64) for split, count in counts.items()}
    plan = StorePlan(rows, draw, size, scenes.LOOKS[look], masks=True, reference=SCENE_BLOCK)
    name, version = f"{look}-{counts['train']}-{size}px", signature(STORE_VERSION, scenes.SCENES_VERSION, counts)
    return _data(look, ensure(name, version, lambda: plan, look))


def _squares(found: Listing, size: int) -> StorePlan:
    """The plan of a listing's pictures."""
    digests: dict[str, list[int]] = {split: [] for split in found.splits}
    read, channels, said = decode.read_square, 3, ()
    if isinstance(found.reader, Stacks):
        ends = found.reader.ends(found.ranked(found.splits["train"]))
        read, channels = functools.partial(decode.stack_square, ends=ends), len(ends)
        said = (f"values of its channels from {', '.join(f'{a:g} to {b:g}' for a, b in ends)} become 0 to 255",)
    threads = min(8, cores()) if found.threaded else 1

    def square(split: str, i: int) -> np.ndarray:
        content = found.reader.content(i)  # of a file, detail that the resize throws away is not decoded
        if isinstance(content, bytes):
            digests[split].append(picture_digest(content))
        return read(content, size)

    def draw(split: str, rows: np.ndarray) -> Chunk:
        done = decode.each(functools.partial(square, split), rows.tolist(), threads)
        good = rows[[not isinstance(result, Exception) for result in done]]
        skipped = [(found.names[i], first_line(e)) for i, e in zip(rows, done, strict=True) if isinstance(e, Exception)]
        pixels = np.array([result for result in done if isinstance(result, np.ndarray)], np.uint8)
        return Chunk(pixels.reshape(-1, channels, size, size), found.ids[good], found.labels[good], None, skipped)

    def notes() -> Iterator[str]:
        yield from (*found.notes, *said)  # asked for when all pictures have been read
        train, held = set(digests.pop("train", ())), sum(digests.values(), [])
        if count := len([digest for digest in held if digest in train]):
            yield f"{count:,} of {len(held):,} held-out pictures have the bytes of a training picture"

    return StorePlan(found.splits, draw, size, found.classes, notes(), channels=channels)


def _data(
    spec: str, store: tuple[dict, dict], stamp: str = "", passed: Iterable[PassedOver] = (), train: Split | None = None
) -> Data:
    """What is in a source's store, beside `train`; its line is said."""
    (info, arrays), splits, small = store, {"train": train}, "smaller than the image size"
    block = SCENE_BLOCK if spec in scenes.LOOKS else None
    for split, (start, end) in info["splits"].items():
        part = {name: array[start:end] for name, array in arrays.items()}
        part["labels"] = part["labels"] if info["classes"] and (part["labels"] >= 0).all() else None
        splits[split] = Split(f"{split} of {spec}", **part, block=block)
    counts = {split: len(splits[split]) for split in ("train", "val", "test") if split in splits}
    skipped = [(name, small if small in reason else "cannot be read") for name, reason in info["skipped"]]
    line = describe(spec, len(info["classes"]), counts, info["notes"], [*passed, *skipped])
    say(line, spec, stamp)
    probe = splits.get("probe_train") or (splits["train"] if "test" in splits else None)
    mean, std = (None if train else tuple(info[what]) for what in ("mean", "std"))
    about = (tuple(info["classes"]), mean, std, info["digest"], line)
    return Data(spec, splits["train"], splits["val"], probe, splits.get("test"), *about)
