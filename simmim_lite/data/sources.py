"""Where images come from: every kind of source is a row of `FORMATS`, and is opened to one `Data`. No torch here.

Decoded once into a store at one size (`open_data`), or decoded as training goes (`open_streamed`, `open_pictures`).
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import UserError, first_line, unknown
from . import decode, public, scenes
from .folders import of_folder
from .listing import (  # noqa: F401 (others take them from here)
    Catalogue,
    Data,
    LeftOut,
    Parts,
    Passed,
    Split,
    describe,
    first_readable,
    hushed,
    picture_digest,
    say,
    signature,
)
from .packs import of_pack
from .scenes import SCENE_BLOCK, SCENE_COUNTS, SCENE_SPLITS
from .store import STORE_VERSION, Chunk, Store, StorePlan, ensure

SCENE_SIZE = 32  # pixels: scenes have no size of their own; they are drawn as the studies draw them
_CHUNK = 256  # images decoded between two writes


@dataclass(frozen=True)
class Format:
    """A kind of source, named KIND:PLACE."""

    place: str  # what stands after the colon; empty for scenes
    open: Callable[[str, str], Catalogue]  # of the whole name and the place
    local: bool = True  # whether listing it needs no download


def _drawn(spec: str, place: str) -> Catalogue:
    raise UserError("scenes are drawn and not read: there are no files of them; give a source of pictures")


#: Every kind of source. Help, documents and `A + B` of the paper tier read this table.
FORMATS: dict[str, Format] = {
    "scenes": Format("", _drawn),
    "imagefolder": Format("DIR", of_folder),
    "inaturalist": Format("DIR", public.inaturalist),
    "packed": Format("DIR", of_pack),
    "torchvision": Format("NAME", public.torchvision, local=False),
    "hf": Format("NAME", public.hugging_face, local=False),
}
KINDS = tuple(f"{kind}:{row.place}" if row.place else kind for kind, row in FORMATS.items())


def kind_of(spec: str) -> tuple[str, str]:
    """Kind and place of a source; `UserError` for one that there is not."""
    kind, _, place = spec.partition(":")
    if os.path.isdir(spec) and kind not in FORMATS:
        raise UserError(f"unknown data '{spec}': it is a folder, say imagefolder:{spec}")
    if kind not in FORMATS or bool(place) != bool(FORMATS[kind].place):
        raise unknown("data", spec, KINDS)
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
        return _squares(listed, listed.parts.split(spec), image_size)

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
    splits = {s: _readable(found, laid, s) for s, rows in laid.splits.items() if laid.known(rows)}
    about = (laid.classes, None, None, found.digest)
    return Data(spec, spec, None, splits.get("train"), None, None, splits.get("test"), *about, line=found.say(laid))


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
    store = ensure(f"val-{prefix}", version, lambda: _squares(found, held, image_size, ("val",)), title)
    data = _data(spec, store, found.stamp, found.parts.passed, _readable(found, laid, "train"))
    return replace(data, digest=signature(found.digest, data.digest))


def open_for_training(spec: str, image_size: int, images_needed: int | None = None, *, streamed: bool = False) -> Data:
    """A source as a run takes it: decoded into a store, or as training goes (`streamed`)."""
    if streamed:
        return open_streamed(spec, image_size)
    return open_data(spec, image_size, images_needed=images_needed)


def as_pictures(data: Data) -> Data:
    """Scenes as `open_pictures` has a source."""
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


def _squares(found: Catalogue, laid: Parts, size: int, only: Iterable[str] = ()) -> StorePlan:
    """The plan of a catalogue's pictures (only: of some splits). Sets that are no files are read by one thread."""
    digests: dict[str, list[int]] = {}

    def square(split: str, i: int) -> np.ndarray | Exception:
        try:
            content = found.reader.content(i)  # of a file, detail that the resize throws away is not decoded
            if content is not None:
                digests.setdefault(split, []).append(picture_digest(content))
            return decode.read_square(found.picture(i) if content is None else content, size)
        except Exception as error:  # decoders raise errors of many kinds; each one names its image and is left out
            return error

    def chunks(split: str, rows: np.ndarray) -> Iterator[Chunk]:
        whole, first = 0, []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if found.sizes is not None else 1) as pool:
            for some in (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)):
                done = list(pool.map(functools.partial(square, split), some.tolist()))
                bad = np.array([isinstance(result, Exception) for result in done])
                skipped = [(laid.names[i], first_line(done[k])) for k, i in enumerate(some) if bad[k]]
                whole, first = whole + int((~bad).sum()), first or skipped
                good = [result for result in done if isinstance(result, np.ndarray)]
                pixels = np.stack(good) if good else np.empty((0, 3, size, size), np.uint8)
                yield Chunk(pixels, laid.ids[some[~bad]], laid.labels[some[~bad]], None, skipped)
        if not whole:
            reason = f"no image of its {split} split can be used at {size} px (first: {': '.join(first[0])})"
            raise UserError(f"{found.spec}: {reason}; give other pictures, or a smaller --image-size")

    def notes() -> Iterator[str]:
        """Asked for when all pictures have been read."""
        yield from laid.notes
        train = set(digests.get("train", ()))
        held = [digest for split, some in digests.items() if split != "train" for digest in some]
        if count := len([digest for digest in held if digest in train]):
            yield f"{count:,} of {len(held):,} held-out pictures have the bytes of a training picture"

    splits = {split: rows for split, rows in laid.splits.items() if not only or split in only}
    streams = {split: chunks(split, rows) for split, rows in splits.items()}
    return StorePlan(streams, sum(map(len, splits.values())), size, laid.classes, notes())


def _readable(found: Catalogue, laid: Parts, split: str) -> Split:
    """A split of a catalogue's pictures at their own size: labels are None where one of them is unknown."""
    rows = laid.splits[split]
    labels = laid.labels[rows] if laid.known(rows) else None
    return Split(f"{split} of {found.spec}", None, laid.ids[rows], labels, reader=found.reader, rows=rows)


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
    small = "smaller than the image size"
    passed = [*passed, *((name, small if small in reason else "cannot be read", 1) for name, reason in skipped)]
    line = describe(spec, len(info["classes"]), counts, info["notes"], passed)
    say(line, spec, stamp)
    probe = splits.get("probe_train") or (splits["train"] if "test" in splits else None)
    mean, std = (None if train else tuple(info[what]) for what in ("mean", "std"))
    about = (tuple(info["classes"]), mean, std, info["digest"], skipped, line)
    size = info["image_size"]
    return Data(spec, name or spec, size, splits["train"], splits["val"], probe, splits.get("test"), *about)
