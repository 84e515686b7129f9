"""Packs: a data set in tar shards of the WebDataset layout, with an index that finds any picture. No torch here.

A folder of shards SPLIT-NNNNN.tar with KEY.jpg (or .png) and KEY.cls, KEY the id in hexadecimal, in the rank order of
manifests at seed 0; index/*.npy, a row a picture; and pack.json."""

import functools
import glob
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import UserError, first_line
from ..files import intact, parsed, sealed
from ..processes import cores
from . import decode
from .manifests import Listing, picture_digest
from .store import progress, write_folder

FORMAT = 1
QUALITY, SHARD = 90, 10_000  # of JPEGs; pictures in a shard
SPLITS = ("train", "val", "test")  # as the index numbers them
#: Arrays of the index. labels: -1 = unknown; split: into SPLITS; shard: into those of pack.json; offset and size: bytes
#: in the shard, size 0 = listed by the source, but not readable; digest: of the picture's bytes; names: the source's.
COLUMNS = ("ids", "labels", "split", "shard", "offset", "size", "digest", "names")


@dataclass(frozen=True)
class Pack:
    """An open pack; columns are memory-mapped. The reader of its pictures (see `Listing`)."""

    folder: Path
    info: dict  # pack.json
    columns: dict[str, np.ndarray]  # COLUMNS

    digest = property(lambda self: self.info["digest"])  # of ids, labels, splits and pictures

    def name(self, i: int) -> str:
        return bytes(self.columns["names"][i]).decode("utf-8", "surrogateescape")

    def title(self, i: int) -> str:
        return f"{self.name(i)} in {self.folder}"

    def content(self, i: int) -> bytes:
        """The bytes of picture i: JPEG or PNG. `OSError` where they are not all there."""
        offset, size = int(self.columns["offset"][i]), int(self.columns["size"][i])
        shard = self.folder / self.info["shards"][self.columns["shard"][i]]["name"]
        file = _opened(os.fspath(shard))  # held here: threads may push it out of the cache meanwhile
        content = os.pread(file.fileno(), size, offset)
        if len(content) != size or not size:
            raise OSError(f"{shard} ends before picture {self.name(i)}: run data verify")
        if picture_digest(content) != self.columns["digest"][i]:
            raise OSError(f"{shard} has other bytes than those of picture {self.name(i)}: run data verify")
        return content


@functools.lru_cache(maxsize=64)
def _opened(path: str) -> io.FileIO:
    return open(path, "rb", buffering=0)


def is_pack(folder: str | Path) -> bool:
    return (Path(folder).expanduser() / "pack.json").is_file()


def open_pack(folder: str | Path) -> Pack:
    """The pack in a folder; `UserError`, one line, where there is none, or one whose index is not whole."""
    root = Path(folder).expanduser().absolute()
    try:
        info = intact(parsed(root / "pack.json"))
        columns = {name: np.load(root / "index" / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
        listed = {len(column) for column in columns.values()} == {info["listed"]}
        if info["format"] != FORMAT or not listed or _index_digest(columns, info["classes"]) != info["digest"]:
            raise ValueError("its index is not the one that pack.json was written for")
        names = [shard["name"] for shard in info["shards"]]
        if odd := [name for name in names if not re.fullmatch(r"(train|val|test)-[0-9]{5,}\.tar", name)]:
            raise ValueError(f"{odd[0]!r} is no name of a shard")
        shard = columns["shard"]
        if len(shard) and not 0 <= shard.min() <= shard.max() < len(names):
            raise ValueError(f"its index names shards beyond its {len(names)}")
    except Exception as error:  # bytes that are not what they should be raise errors of many kinds
        mend = f"copy the pack again, or make it with simmim-lite data pack SOURCE {folder}"
        raise UserError(f"packed:{folder}: missing or damaged ({first_line(error)}); {mend}") from error
    return Pack(root, info, columns)


def of_pack(spec: str, place: str) -> Listing:
    pack = open_pack(place)
    ids, labels, split, size = (np.asarray(pack.columns[c]) for c in ("ids", "labels", "split", "size"))
    splits = {name: np.flatnonzero(split == k) for k, name in enumerate(SPLITS) if (split == k).any()}
    names = [name.decode("utf-8", "surrogateescape") for name in pack.columns["names"].tolist()]
    passed = tuple((name, "could not be read when it was packed") for name, _ in pack.info["left_out"])
    parts = (names, ids, labels, tuple(pack.info["classes"]), splits, spec, pack, pack.digest, pack.digest)
    return Listing(*parts, left_out=size == 0, passed=passed)


def _index_digest(columns: dict[str, np.ndarray], classes: Iterable[str]) -> str:
    """Of classes, and of every column that does not depend on where a picture lies."""
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for name in ("ids", "labels", "split", "digest", "names"):
        total.update(np.ascontiguousarray(columns[name]).tobytes())
    return total.hexdigest()[:16]


def verify(folder: str | Path) -> list[str]:
    """What is wrong with a pack, `KIND: WHAT` for each picture or shard, after reading every byte; [] if nothing."""
    pack, lines = open_pack(folder), []
    shards = pack.info["shards"]
    # threads suffice: reading and hashing let go of the interpreter
    with ThreadPoolExecutor(cores()) as pool, progress(len(shards), "verify", "shard") as bar:
        for problems in pool.map(functools.partial(_wrong, pack), range(len(shards))):
            lines += problems
            bar.update()
    return lines


def _wrong(pack: Pack, k: int) -> list[str]:
    columns, shard = pack.columns, pack.info["shards"][k]
    rows = np.flatnonzero((np.asarray(columns["shard"]) == k) & (np.asarray(columns["size"]) > 0))
    try:
        with (pack.folder / shard["name"]).open("rb", buffering=0) as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
            contents = ((i, os.pread(file.fileno(), columns["size"][i], columns["offset"][i])) for i in rows)
            changed = [pack.name(i) for i, content in contents if picture_digest(content) != columns["digest"][i]]
    except OSError:
        return [f"missing shard: {shard['name']}"]
    lines = [f"changed bytes: {name} in {shard['name']}, or its place in the index" for name in changed]
    return lines if same or changed else [f"damaged shard: {shard['name']}, beside its pictures"]


# --- making one


def pack(source: Listing, out: str | Path, *, short_side: int = 256) -> Pack:
    """Pack what a source lists (`sources.listing(SPEC)`) into a folder.

    Pictures are shrunk to a short side of `short_side` px, smaller ones stay as they are. Ids, labels and splits are
    the source's, so that its manifests draw the same images. What cannot be read is named in pack.json. Killed, the
    same call begins again. `UserError` for what the caller can mend."""
    root = Path(out).expanduser().absolute()
    plan = {"format": FORMAT, "source": source.digest, "short_side": short_side}
    plan |= {"quality": QUALITY, "shard_pictures": SHARD}
    if source.spec.startswith("packed:"):
        raise UserError(f"{source.spec} is a pack already; pack the source that it was made from")
    if short_side < 16:
        raise UserError(f"short_side is {short_side}: give 16 pixels or more")
    if is_pack(root) and open_pack(root).info["plan"] != plan:
        raise UserError(f"{root} holds another pack (of {open_pack(root).info['spec']}); give another folder")
    if not is_pack(root) and root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root} is not empty: give a folder of its own")
    source.say()
    lock, mend = root.with_name(f".{root.name}.lock"), "give a folder on another disk"
    write = functools.partial(_write, source=source, plan=plan)
    write_folder(root, write, f"pack {root.name}", lock, f"{glob.escape(root.name)}.tmp-*", mend)
    return open_pack(root)


def _write(root: Path, source: Listing, plan: dict) -> None:
    parts, shards, left_out = [], [], []
    with progress(sum(map(len, source.splits.values())), "pack") as bar:
        for k, split in ((k, split) for k, split in enumerate(SPLITS) if split in source.splits):
            rows = source.ranked(source.splits[split], 0)
            for n, start in enumerate(range(0, len(rows), SHARD)):
                some, path = rows[start : start + SHARD], root / f"{split}-{n:05d}.tar"
                own, bad = _write_shard(path, source, some, plan["short_side"], bar)
                parts.append((some, np.full(len(some), k, np.uint8), np.full(len(some), len(shards), np.int32), *own))
                left_out += bad
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    about = {"name": path.name, "pictures": len(some) - len(bad), "bytes": file.tell()}
                    shards.append(about | {"sha256": digest})
    order, split, shard, offset, size, digest = map(np.concatenate, zip(*parts, strict=True))
    if not size.any():
        first = ": ".join(left_out[0])
        raise UserError(f"{source.spec}: none of its {len(order):,} pictures can be read (first: {first})")
    columns = {"ids": source.ids[order], "labels": source.labels[order].astype(np.int64), "split": split}
    columns |= {"shard": shard, "offset": offset, "size": size, "digest": digest}
    columns["names"] = np.array([source.names[i].encode("utf-8", "surrogateescape") for i in order])
    info = {"format": FORMAT, "spec": source.spec, "plan": plan, "listed": len(order)}
    info |= {"pictures": int((size > 0).sum()), "classes": list(source.classes)}
    info |= {"digest": _index_digest(columns, source.classes), "shards": shards, "left_out": left_out}
    (root / "index").mkdir()
    for name, column in columns.items():
        np.save(root / "index" / f"{name}.npy", column)
    (root / "pack.json").write_text(sealed(info))


def _write_shard(path: Path, source: Listing, rows: np.ndarray, side: int, bar: tqdm) -> tuple:
    """A shard of pictures; where each lies (offset, size, digest) and those that are left out (name, reason)."""
    offset, size, digest = (np.zeros(len(rows), kind) for kind in (np.int64, np.int64, np.uint64))
    left_out, threads, chunks = [], cores() if source.threaded else 1, np.split(rows, range(256, len(rows), 256))
    lists = (decode.each(lambda i: _encoded(source.reader.content(i), side), c.tolist(), threads) for c in chunks)
    done = itertools.chain.from_iterable(lists)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n, (i, result) in enumerate(zip(rows, done, strict=True)):
            bar.update()
            if isinstance(result, Exception):
                left_out.append([source.names[i], first_line(result)])
                continue
            content, kind = result
            label = {"cls": str(source.labels[i]).encode()} if source.labels[i] >= 0 else {}
            for ending, data in (label | {kind: content}).items():
                member = tarfile.TarInfo(f"{int(source.ids[i]):016x}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            # the picture is the last of its sample, padded to whole blocks
            offset[n], size[n] = tar.offset - -(-len(content) // 512) * 512, len(content)
            digest[n] = picture_digest(content)
    return (offset, size, digest), left_out


def _encoded(content: decode.Source, short_side: int) -> tuple[bytes, str]:
    """A picture's bytes, and `jpg` or `png`. A JPEG that is small enough, upright, RGB or grey is taken as it is; else
    the picture is shrunk and encoded: as PNG where it was no JPEG and is not shrunk, so that nothing is lost."""
    held = io.BytesIO()
    with decode.opened(content) as image:
        jpeg, small = isinstance(content, bytes) and image.format == "JPEG", min(image.size) <= short_side
        if jpeg and small and image.mode in ("RGB", "L") and decode.turn(image) is None:
            image.load()
            return content, "jpg"
        if not small:
            image.draft(None, (2 * short_side, 2 * short_side))
        image = decode.read(image)
    factor = short_side / min(image.size)
    if factor < 1:
        sides = [max(1, round(side * factor)) for side in image.size]
        image, jpeg = image.resize(sides, Image.Resampling.BICUBIC, reducing_gap=2.0), True
    image.save(held, "JPEG" if jpeg else "PNG", **({"quality": QUALITY} if jpeg else {}))
    return held.getvalue(), "jpg" if jpeg else "png"
