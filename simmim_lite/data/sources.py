"""Where images come from: scenes, a folder, a pack, or a set of torchvision's or the hub's, opened to one `Data`.

The data root is `$SIMMIM_DATA`, else `~/.cache/simmim_lite`; it is read here and nowhere else.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError, first_line, unknown
from . import decode, scenes
from .listing import signature
from .splits import Layout, Passed, describe
from .store import STORE_VERSION, Chunk, Store, StorePlan, ensure

if TYPE_CHECKING:
    from .catalogue import Catalogue

KINDS = ("scenes", "imagefolder:DIR", "inaturalist:DIR", "packed:DIR", "torchvision:NAME", "hf:NAME")
#: Scenes of each split; the training pool grows by whole blocks, each of which is ranked alone.
SCENE_BLOCK = 16384
SCENE_SPLITS = {"train": 0, "val": 1, "test": 2, "probe_train": 3}  # scene seed, and upper bits of the ids
SCENE_COUNTS = {"val": 2048, "test": 4096, "probe_train": 4096}
_CHUNK = 256  # images decoded between two writes


@dataclass(frozen=True)
class Split:
    """Images of one split; arrays are memory-mapped, so slicing is cheap and reads only what is asked for."""

    name: str  # "train of imagefolder:DIR", for messages
    images: np.ndarray  # uint8 (N, 3, S, S)
    ids: np.ndarray  # uint64 (N,), unique
    labels: np.ndarray | None  # int64 (N,), or None where they are not known
    masks: np.ndarray | None  # bool (N, S, S) of the main object, or None
    block: int | None = None  # images that a manifest ranks together; None = all

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Data:
    """An open source. val and test are in hash-rank order: any first n of them are a class-balanced draw."""

    spec: str
    name: str
    image_size: int  # pixels
    train: Split  # a `pictures.Shelf` where pictures are decoded as training goes (`pictures.open_streamed`)
    val: Split
    probe_train: Split | None  # labelled; None without labels
    test: Split | None  # labelled, no image of val; None without labels
    classes: tuple[str, ...]
    mean: tuple[float, float, float] | None  # of the training images, 0..1 units; None where nobody has counted
    std: tuple[float, float, float] | None
    digest: str  # of ids, labels, pixels and masks (of scenes: the first block, so it does not depend on the pool)
    skipped: list[tuple[str, str]]  # images left out: name, reason
    line: str = ""  # what there is, how it was read and what was passed over

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def has_masks(self) -> bool:
        return self.train.masks is not None


def data_root() -> Path:
    """The folder for stores and downloads: `$SIMMIM_DATA`, else `~/.cache/simmim_lite`."""
    return Path(os.environ.get("SIMMIM_DATA") or Path.home() / ".cache" / "simmim_lite").expanduser()


def downloads() -> Path:
    """Where torchvision keeps what it downloads."""
    return data_root() / "torchvision"


def open_data(spec: str, image_size: int, *, images_needed: int | None = None) -> Data:
    """Open a source at `image_size` pixels a side, decoding it into the store at the first time.

    `images_needed` matters to scenes alone, which have no end: the training pool holds at least so many. `UserError`
    for whatever the caller can mend: an unknown source, an empty folder, images that are all too small, a full disk.
    """
    if spec == "scenes":
        return _open_scenes(image_size, images_needed or 0)
    from .catalogue import catalogue

    kind, name = kind_of(spec)
    # sets of torchvision's and the hub's are downloaded or loaded only where there is no store of them yet
    found = None if kind in ("torchvision", "hf") else catalogue(spec)
    stamp = _files_of(name) if found is None else found.stamp

    def plan() -> StorePlan:
        listed = found or catalogue(spec)
        return _squares(listed, listed.parts.split(spec), image_size)

    prefix, version, where = _named(spec, image_size, stamp)
    store = ensure(data_root() / "stores", prefix, version, plan, spec)
    return _data(spec, os.path.basename(where), store, stamp, found.parts.passed if found else ())


def held_out(found: "Catalogue", layout: Layout, size: int) -> Store:
    """A store of the validation pictures alone, for training that decodes its own as it goes."""
    prefix, version, _ = _named(found.spec, size, found.stamp)
    held = replace(layout, splits={split: layout.splits[split] for split in ("train", "val")})
    title = f"validation pictures of {found.spec}"
    return ensure(
        data_root() / "stores", f"val-{prefix}", version, lambda: _squares(found, held, size, ("val",)), title
    )


_hushed = 0
_said: set[tuple[str, str]] = set()  # sources of this process, with what tells their files from others


def say(line: str, spec: str, stamp: str = "") -> None:
    """Print the line of a source on stderr: once in a process, as long as its files are the same.

    Of processes that torchrun started the first one does, and of a study's the one that started the others (`hushed`).
    """
    if not _hushed and (spec, stamp) not in _said and int(os.environ.get("RANK", "0")) == 0:
        _said.add((spec, stamp))
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Nothing is said of sources that are opened here: another process has said it."""
    global _hushed
    _hushed += 1
    try:
        yield
    finally:
        _hushed -= 1


def kind_of(spec: str) -> tuple[str, str]:
    """Kind and name of a source that is read (all but scenes); `UserError` for one that there is not."""
    kind, _, name = spec.partition(":")
    if kind not in [known.partition(":")[0] for known in KINDS[1:]]:
        if os.path.isdir(spec):
            raise UserError(f"unknown data '{spec}': it is a folder, say imagefolder:{spec}")
        raise unknown("data", spec, KINDS)
    if not name:
        raise UserError(f"data '{spec}' is incomplete: known are {', '.join(KINDS)}")
    return kind, name


def _open_scenes(size: int, needed: int) -> Data:
    blocks = max(1, -(-needed // SCENE_BLOCK))
    counts = {"train": blocks * SCENE_BLOCK, **SCENE_COUNTS}

    def chunks(split: str) -> Iterator[Chunk]:
        seed = SCENE_SPLITS[split]
        for start in range(0, counts[split], _CHUNK):
            index = np.arange(start, min(start + _CHUNK, counts[split]), dtype=np.uint64)
            drawn = scenes.render(seed, index, size)
            yield Chunk(drawn.images, index + np.uint64(seed << 40), drawn.labels, drawn.masks)

    def plan() -> StorePlan:
        parts = {split: chunks(split) for split in counts}
        return StorePlan(parts, sum(counts.values()), size, scenes.CLASSES, masks=True, reference=SCENE_BLOCK)

    version = signature(STORE_VERSION, scenes.SCENES_VERSION, counts)
    store = ensure(data_root() / "stores", f"scenes-{counts['train']}-{size}px", version, plan, "scenes")
    return _data("scenes", "scenes", store, block=SCENE_BLOCK)


def _files_of(name: str) -> str:
    """Files of a set that is a folder on this machine, with their times."""
    files = Path(name).expanduser().rglob("*") if os.path.isdir(os.path.expanduser(name)) else ()
    return repr(sorted((str(path), path.stat().st_mtime_ns) for path in files if path.is_file()))


def _named(spec: str, size: int, stamp: str) -> tuple[str, str, str]:
    """The name of a source's store, the signature of what it holds, and the place or name of the source."""
    kind, name = kind_of(spec)
    folder = os.path.abspath(os.path.expanduser(name))
    where = folder if os.path.isdir(folder) else name
    slug = re.sub(r"[^A-Za-z0-9]+", "_", os.path.basename(where))[:40]
    return f"{slug}-{signature(kind, where)}-{size}px", signature(STORE_VERSION, stamp), where


def _data(
    spec: str, name: str, store: Store, stamp: str = "", passed: Iterable[Passed] = (), block: int | None = None
) -> Data:
    train, val, test, probe_train = (split_of(spec, store, s, block) for s in ("train", "val", "test", "probe_train"))
    info = store.info
    counts = {s: len(part) for s, part in (("train", train), ("val", val), ("test", test)) if part is not None}
    line = describe(spec, len(info["classes"]), counts, info["notes"], passed, info["skipped"])
    say(line, spec, stamp)
    return Data(
        spec=spec,
        name=name,
        image_size=info["image_size"],
        train=train,
        val=val,
        probe_train=probe_train or (train if test is not None else None),
        test=test,
        classes=tuple(info["classes"]),
        mean=tuple(info["mean"]),
        std=tuple(info["std"]),
        digest=info["digest"],
        skipped=[tuple(item) for item in info["skipped"]],
        line=line,
    )


def split_of(spec: str, store: Store, part: str, block: int | None = None) -> Split | None:
    """A split of a source's store; None where there is none."""
    if part not in store.info["splits"]:
        return None
    rows = slice(*store.info["splits"][part])
    labels = store.labels[rows]
    known = bool(store.info["classes"]) and bool((labels >= 0).all())
    masks = None if store.masks is None else store.masks[rows]
    return Split(f"{part} of {spec}", store.images[rows], store.ids[rows], labels if known else None, masks, block)


def _squares(found: "Catalogue", layout: Layout, size: int, parts: Collection[str] | None = None) -> StorePlan:
    """The plan of a catalogue's pictures (parts: of some splits). Sets that are no files are read by one thread."""
    from .catalogue import copies

    threads = _threads() if found.sizes is not None else 1
    notes = (*layout.notes, *copies(found, layout))
    some = {split: rows for split, rows in layout.splits.items() if parts is None or split in parts}
    layout = replace(layout, splits=some, notes=notes)
    return _plan(layout, lambda i: found.square(i, size), size, found.spec, threads)


def _plan(layout: Layout, load: Callable[[int], np.ndarray], size: int, spec: str, threads: int) -> StorePlan:
    def chunks(indices: np.ndarray, split: str) -> Iterator[Chunk]:
        kept, smallest, first = 0, None, None
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(indices), _CHUNK):
                some = indices[start : start + _CHUNK]
                done = list(pool.map(attempt, some) if threads > 1 else map(attempt, some))
                good = [k for k, result in enumerate(done) if isinstance(result, np.ndarray)]
                skipped = []
                for i, result in zip(some, done, strict=True):
                    if isinstance(result, Exception):
                        skipped.append((layout.names[i], first_line(result)))
                        first = first or skipped[0]
                        if isinstance(result, decode.TooSmall):
                            smallest = min(smallest or result.side, result.side)
                kept += len(good)
                pixels = np.stack([done[k] for k in good]) if good else np.empty((0, 3, size, size), np.uint8)
                yield Chunk(pixels, layout.ids[some[good]], layout.labels[some[good]], None, skipped)
        if not kept and smallest is not None:
            raise UserError(
                f"{spec}: every image of its {split} split is smaller than {size} px (the smallest side is {smallest} "
                f"px); use a smaller --image-size, at most {smallest}"
            )
        if not kept:
            raise UserError(f"{spec}: no image of its {split} split can be read (first: {first[0]}: {first[1]})")

    def attempt(i: int) -> "np.ndarray | Exception":
        try:
            return load(int(i))
        except Exception as error:  # decoders raise errors of many kinds; each one names its image and is left out
            return error

    splits = {split: chunks(indices, split) for split, indices in layout.splits.items()}
    return StorePlan(splits, sum(map(len, layout.splits.values())), size, layout.classes, layout.notes)


def _threads() -> int:
    return min(8, os.cpu_count() or 1)
