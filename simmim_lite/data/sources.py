"""Where images come from: every kind of source is a row of `FORMATS`, and is opened to one `Data`. No torch here.

Decoded once into a store at one size (`open_data`), or decoded as training goes (`open_streamed`, `open_pictures`).
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, first_line, unknown
from . import decode, packs, public, scenes
from .catalogue import Catalogue, Reader, of_folder, say, say_layout, squares
from .listing import Parts, Passed, describe, signature
from .store import STORE_VERSION, Chunk, Store, StorePlan, ensure

#: Scenes of each split; the training pool grows by whole blocks, each of which is ranked alone.
SCENE_BLOCK = 16384
SCENE_SPLITS = {"train": 0, "val": 1, "test": 2, "probe_train": 3}  # scene seed, and upper bits of the ids
SCENE_COUNTS = {"val": 2048, "test": 4096, "probe_train": 4096}
SCENE_SIZE = 32  # pixels: scenes have no size of their own; they are drawn as the studies draw them
_CHUNK = 256  # images decoded between two writes
_STAND_INS = 10  # unreadable pictures in a row before training gives up


@dataclass(frozen=True)
class Split:
    """Pictures of one split: arrays of one size, memory-mapped, so that slicing is cheap; or read when asked for."""

    name: str  # "train of imagefolder:DIR", for messages
    images: np.ndarray | None  # uint8 (N, 3, S, S); None where pictures are at their own size, behind a reader
    ids: np.ndarray  # uint64 (N,), unique
    labels: np.ndarray | None  # int64 (N,), or None where they are not known
    masks: np.ndarray | None = None  # bool (N, S, S) of the main object, or None
    block: int | None = None  # images that a manifest ranks together; None = all
    reader: Reader | None = field(default=None, repr=False)
    rows: np.ndarray | None = field(default=None, repr=False)  # the reader's numbers of these pictures; None = all

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, i: int) -> Image.Image:
        """Picture i, RGB, upright; raises whatever its decoder raises."""
        if self.reader is None:
            return Image.fromarray(np.ascontiguousarray(self.images[i].transpose(1, 2, 0)))
        return decode.read(self.reader.source(self._row(i)))

    def title(self, i: int) -> str:
        """What to call picture i in messages."""
        return f"image {self.ids[i]}" if self.reader is None else self.reader.title(self._row(i))

    def _row(self, i: int) -> int:
        return int(i if self.rows is None else self.rows[i])


@dataclass(frozen=True)
class Data:
    """An open source. val and test are in hash-rank order: any first n of them are a class-balanced draw."""

    spec: str
    name: str
    image_size: int | None  # pixels; None where pictures have a size of their own
    train: Split | None  # with a reader where pictures are decoded as training goes
    val: Split | None
    probe_train: Split | None  # labelled; None without labels
    test: Split | None  # labelled, no image of val (but see `open_pictures`); None without labels
    classes: tuple[str, ...]
    mean: tuple[float, float, float] | None  # of the training images, 0..1 units; None where nobody has counted
    std: tuple[float, float, float] | None
    digest: str  # of ids, labels, pixels and masks (of scenes: the first block), or of what is listed
    skipped: list[tuple[str, str]] = field(default_factory=list)  # images left out: name, reason
    line: str = ""  # what there is, how it was read and what was passed over

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def has_masks(self) -> bool:
        return self.train.masks is not None


@dataclass(frozen=True)
class Format:
    """A kind of source, named KIND:PLACE."""

    place: str  # what stands after the colon; empty for scenes
    text: str  # what that is, for help and documents
    open: Callable[[str, str], Catalogue]  # of the whole name and the place
    local: bool = True  # whether listing it needs no download


def _drawn(spec: str, place: str) -> Catalogue:
    raise UserError("scenes are drawn and not read: there are no files of them; give a source of pictures")


def _packed(spec: str, place: str) -> Catalogue:
    pack = packs.open_pack(place)
    return Catalogue(spec, pack.parts(), pack, pack.digest, pack.digest, np.asarray(pack.columns["size"]))


#: Every kind of source. Help, documents and `A + B` of the paper tier read this table.
FORMATS: dict[str, Format] = {
    "scenes": Format("", "drawn pictures, without end", _drawn),
    "imagefolder": Format("DIR", "a folder of pictures, by class and by split or not", of_folder),
    "inaturalist": Format("DIR", "iNaturalist-2018 with its JSON files", public.inaturalist),
    "packed": Format("DIR", "what `simmim-lite data pack` has written", _packed),
    "torchvision": Format("NAME", "a data set of torchvision's, downloaded", public.torchvision, local=False),
    "hf": Format("NAME", "a data set of the Hugging Face hub, downloaded", public.hugging_face, local=False),
}
KINDS = tuple(f"{kind}:{row.place}" if row.place else kind for kind, row in FORMATS.items())


def kind_of(spec: str) -> tuple[str, str]:
    """Kind and place of a source; `UserError` for one that there is not."""
    kind, _, place = spec.partition(":")
    if kind not in FORMATS or (place and not FORMATS[kind].place):
        if os.path.isdir(spec):
            raise UserError(f"unknown data '{spec}': it is a folder, say imagefolder:{spec}")
        raise unknown("data", spec, KINDS)
    if FORMATS[kind].place and not place:
        raise UserError(f"data '{spec}' is incomplete: known are {', '.join(KINDS)}")
    return kind, place


def catalogue(spec: str) -> Catalogue:
    """The catalogue of a source, by its name as `open_data` takes it, scenes apart (they are drawn)."""
    kind, place = kind_of(spec)
    return FORMATS[kind].open(spec, place)


def open_data(spec: str, image_size: int, *, images_needed: int | None = None) -> Data:
    """Open a source at `image_size` pixels a side, decoding it into the store at the first time.

    `images_needed` matters to scenes alone, which have no end: the training pool holds at least so many. `UserError`
    for whatever the caller can mend: an unknown source, an empty folder, images that are all too small, a full disk.
    """
    if spec == "scenes":
        return _open_scenes(image_size, images_needed or 0)
    kind, place = kind_of(spec)
    # what is downloaded or loaded is asked only where there is no store of it yet
    found = catalogue(spec) if FORMATS[kind].local else None
    stamp = found.stamp if found else _files_of(place)

    def plan() -> StorePlan:
        listed = found or catalogue(spec)
        return squares(listed, listed.parts.split(spec), image_size)

    prefix, version, where = _named(spec, image_size, stamp)
    store = ensure(prefix, version, plan, spec)
    return _data(spec, store, stamp, found.parts.passed if found else (), name=os.path.basename(where))


def open_pictures(spec: str) -> Data:
    """A source at the pictures' own sizes, for fine-tuning at full size: of a folder only names and sizes are read.

    `test` holds every labelled image that is held out, in hash-rank order: the whole of DIR/val, as ImageNet is scored
    (DIR/test instead where that is there and labelled), although pretraining takes a half of it for its validation
    loss, which sees no label. There is no val. train and test are None where there are no labels.
    """
    if spec == "scenes":
        return as_pictures(open_data(spec, SCENE_SIZE))
    found = catalogue(spec)
    laid = found.parts.split(spec, halve=False)
    rows = laid.splits
    train, test = (shelved(found, laid, s) if s in rows and laid.known(rows[s]) else None for s in ("train", "test"))
    line = say_layout(found, laid)
    return Data(spec, spec, None, train, None, None, test, laid.classes, None, None, found.digest, line=line)


def open_streamed(spec: str, image_size: int) -> Data:
    """A source for pretraining that decodes its pictures as it goes: of `train` nothing is stored.

    The validation pictures alone are decoded at the first time, as `open_data` has them; there is no test split and
    nothing to probe with. mean and std are None: nobody has counted. Scenes are drawn as always.
    """
    if spec == "scenes":
        return replace(open_data(spec, image_size), probe_train=None, test=None)
    found = catalogue(spec)
    laid = found.parts.split(spec)
    prefix, version, _ = _named(spec, image_size, found.stamp)
    held = replace(laid, splits={split: laid.splits[split] for split in ("train", "val")})
    title = f"validation pictures of {spec}"
    store = ensure(f"val-{prefix}", version, lambda: squares(found, held, image_size, ("val",)), title)
    data = _data(spec, store, found.stamp, found.parts.passed, shelved(found, laid, "train"))
    return replace(data, digest=signature(found.digest, data.digest))


def open_for_training(spec: str, image_size: int, images_needed: int | None = None, *, streamed: bool = False) -> Data:
    """A source as a run takes it: decoded into a store, or as training goes (`streamed`)."""
    if streamed:
        return open_streamed(spec, image_size)
    return open_data(spec, image_size, images_needed=images_needed)


def shelved(found: Catalogue, laid: Parts, split: str) -> Split:
    """A split of a catalogue's pictures at their own size: labels are None where one of them is unknown."""
    rows = laid.splits[split]
    labels = laid.labels[rows] if laid.known(rows) else None
    return Split(f"{split} of {found.spec}", None, laid.ids[rows], labels, reader=found.reader, rows=rows)


def as_pictures(data: Data) -> Data:
    """Scenes as `open_pictures` has a source."""
    return replace(data, image_size=None, train=data.probe_train, val=None, probe_train=None, line="")


def first_readable(split: Split, chosen: np.ndarray, place: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
    """The picture at a place of a draw, or the first one after it that can be read; its number in the split; and those
    that could not (name, reason). `UserError` after ten in a row.

    chosen: the draw, numbers in the split; after its last comes its first again.
    """
    problems = []
    for further in range(_STAND_INS):
        i = int(chosen[(place + further) % len(chosen)])
        try:
            return split.picture(i), i, problems
        except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
            problems.append((split.title(i), first_line(error)))
    raise UserError(
        f"{split.name}: {_STAND_INS} pictures in a row cannot be read (the last: {': '.join(problems[-1])}); is the "
        "disk there? Run again to go on from the last checkpoint"
    )


class LeftOut(dict):
    """Pictures that could not be read, name -> reason. Each is named once on stderr."""

    def note(self, problems: list[tuple[str, str]]) -> None:
        """Take in some more."""
        for name, reason in problems:
            if name not in self:
                self[name] = reason
                print(f"simmim-lite: {name} cannot be read ({reason}); it is left out", file=sys.stderr, flush=True)


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


def _files_of(place: str) -> str:
    """Files of a set that is a folder on this machine, with their times."""
    files = Path(place).expanduser().rglob("*") if os.path.isdir(os.path.expanduser(place)) else ()
    return repr(sorted((str(path), path.stat().st_mtime_ns) for path in files if path.is_file()))


def _named(spec: str, size: int, stamp: str) -> tuple[str, str, str]:
    """The name of a source's store, the signature of what it holds, and the place or name of the source."""
    kind, place = kind_of(spec)
    folder = os.path.abspath(os.path.expanduser(place))
    where = folder if os.path.isdir(folder) else place
    slug = re.sub(r"[^A-Za-z0-9]+", "_", os.path.basename(where))[:40]
    return f"{slug}-{signature(kind, where)}-{size}px", signature(STORE_VERSION, stamp), where


def _data(
    spec: str,
    store: Store,
    stamp: str = "",
    passed: Iterable[Passed] = (),
    train: Split | None = None,
    block: int | None = None,
    name: str | None = None,
) -> Data:
    """What is in a source's store; beside `train`, its validation pictures alone. The source's line is said."""
    info, skipped, splits = store.info, [tuple(item) for item in store.info["skipped"]], {"train": train}
    for part, (start, end) in info["splits"].items():
        rows, labels = slice(start, end), store.labels[start:end]
        labels = labels if info["classes"] and (labels >= 0).all() else None
        masks = None if store.masks is None else store.masks[rows]
        splits[part] = Split(f"{part} of {spec}", store.images[rows], store.ids[rows], labels, masks, block)
    counts = {s: len(splits[s]) for s in ("train", "val", "test") if s in splits}
    line = describe(spec, len(info["classes"]), counts, info["notes"], passed, skipped)
    say(line, spec, stamp)
    probe = splits.get("probe_train") or (splits["train"] if "test" in splits else None)
    mean, std = (None if train else tuple(info[what]) for what in ("mean", "std"))
    about = (tuple(info["classes"]), mean, std, info["digest"], skipped, line)
    size = info["image_size"]
    return Data(spec, name or spec, size, splits["train"], splits["val"], probe, splits.get("test"), *about)
