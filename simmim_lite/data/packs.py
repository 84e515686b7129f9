"""Packs: a data set in tar shards of the WebDataset layout, with an index that finds any picture. No torch here.

A pack is a folder: shards SPLIT-NNNNN.tar, each picture as KEY.jpg (or KEY.png) and its class number as KEY.cls, KEY
its id in 16 hexadecimal digits; index/*.npy, a row a picture, with offset and length in its shard; and pack.json.
Within a split, pictures lie in the rank order of manifests at seed 0: the first shards hold the 10 % subset, and so on.
"""

import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..processes import end_with
from . import decode
from .ranking import image_ids
from .splits import Parts

FORMAT = 1
SPLITS = ("train", "val", "test")  # as the index numbers them
#: The arrays of the index: name -> dtype (names are bytes of the longest's length).
COLUMNS = {
    "ids": np.uint64,
    "labels": np.int64,  # -1 = unknown
    "split": np.uint8,  # into SPLITS
    "shard": np.int32,  # into the shards that pack.json names
    "offset": np.int64,  # bytes into the shard
    "size": np.int64,  # bytes; 0 = listed by the source, but not readable
    "digest": np.uint64,  # of the picture's bytes
}
_OPEN = 64  # shards a process keeps open
_NAMED = 20  # of a kind that `verify` names


def picture_digest(content: bytes) -> int:
    """64 bits that change when a picture's bytes do."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Pack:
    """An open pack; columns are memory-mapped."""

    folder: Path
    info: dict  # pack.json
    columns: dict[str, np.ndarray]  # COLUMNS, and names (bytes)

    @property
    def digest(self) -> str:
        """Of everything in it: ids, labels, splits and pictures."""
        return self.info["digest"]

    def name(self, i: int) -> str:
        """The source's name of picture i: a relative path, or SPLIT/NUMBER."""
        return bytes(self.columns["names"][i]).decode("utf-8", "surrogateescape")

    def content(self, i: int) -> bytes:
        """The bytes of picture i: JPEG or PNG. `OSError` where they are not all there."""
        offset, size = int(self.columns["offset"][i]), int(self.columns["size"][i])
        shard = self.info["shards"][self.columns["shard"][i]]["name"]
        file = _opened(os.fspath(self.folder / shard))  # held here: threads may push it out of the cache meanwhile
        found = os.pread(file.fileno(), size, offset)
        if len(found) != size or not size:
            raise OSError(f"{self.folder / shard} ends before picture {self.name(i)}: run data verify")
        return found

    def picture(self, i: int) -> Image.Image:
        """Picture i at the size it was packed at, RGB."""
        return decode.read(self.content(i))

    def title(self, i: int) -> str:
        return f"{self.name(i)} in {self.folder}"

    def parts(self) -> Parts:
        """What the pack lists, as its source did."""
        split = np.asarray(self.columns["split"])
        rows = {name: np.flatnonzero(split == k) for k, name in enumerate(SPLITS) if (split == k).any()}
        names = [name.decode("utf-8", "surrogateescape") for name in self.columns["names"].tolist()]
        ids, labels = np.asarray(self.columns["ids"]), np.asarray(self.columns["labels"])
        left_out = np.asarray(self.columns["size"]) == 0
        passed = tuple((name, "could not be read when it was packed", 1) for name, _ in self.info["left_out"])
        classes = tuple(self.info["classes"])
        return Parts(names, ids, labels, classes, rows.pop("train"), rows, left_out, passed=passed)


@functools.lru_cache(maxsize=_OPEN)
def _opened(path: str) -> io.FileIO:
    """A file of this process; what drops out of the cache closes itself."""
    return open(path, "rb", buffering=0)


def is_pack(folder: str | Path) -> bool:
    return (Path(folder).expanduser() / "pack.json").is_file()


def open_pack(folder: str | Path) -> Pack:
    """The pack in a folder; `UserError`, one line, where there is none, or one whose index is not whole."""
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"packed:{folder}: no such folder; make it with simmim-lite data pack SOURCE {folder}")
    try:
        info = json.loads((root / "pack.json").read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise UserError(f"{root}: a pack of format {info['format']}, this version reads {FORMAT}; pack it again")
        columns = {name: np.load(root / "index" / f"{name}.npy", mmap_mode="r") for name in (*COLUMNS, "names")}
        if {len(column) for column in columns.values()} != {info["listed"]}:
            raise ValueError("its arrays differ in length")
    except FileNotFoundError as error:
        missing = Path(error.filename).relative_to(root)
        raise UserError(
            f"{root}: no {missing} in it, so it is no finished pack; run simmim-lite data pack again to finish it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{root}: its index cannot be read ({error}); delete the folder and pack again") from error
    return Pack(root, info, columns)


def index_digest(columns: dict[str, np.ndarray], classes: Iterable[str]) -> str:
    """16 hexadecimal digits of what a pack holds: classes, and every column that does not depend on where it lies."""
    found = hashlib.sha256(json.dumps(list(classes)).encode())
    for name in ("ids", "labels", "split", "digest", "names"):
        found.update(np.ascontiguousarray(columns[name]).tobytes())
    return found.hexdigest()[:16]


def verify(folder: str | Path, *, workers: int | None = None) -> list[str]:
    """What is wrong with a pack, a line each; [] if nothing. Every byte of it is read once, by several processes."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    from .store import progress

    pack = open_pack(folder)
    shards, found = pack.info["shards"], list(_index_problems(pack))
    there = {path.name for path in pack.folder.glob("*.tar")}
    found += named("missing shard", [shard["name"] for shard in shards if shard["name"] not in there])
    found += named("extra shard", sorted(there - {shard["name"] for shard in shards}))
    wanted = [k for k, shard in enumerate(shards) if shard["name"] in there]
    lines: dict[int, list[str]] = {}
    at_once = max(1, min(len(wanted), workers or os.cpu_count() or 1))
    total = sum(shards[k]["pictures"] for k in wanted)
    pool = ProcessPoolExecutor(at_once, initializer=_begin, initargs=(os.getpid(), pack))
    try:
        with pool, progress(total, f"verify {pack.folder.name}") as advance:
            calls = {pool.submit(_check_shard, k): k for k in wanted}
            for call in as_completed(calls):
                lines[calls[call]] = call.result()
                advance(shards[calls[call]]["pictures"])
    except BrokenProcessPool as error:
        raise UserError("a process that reads was killed (out of memory?): run again with fewer --workers") from error
    return found + [line for k in sorted(lines) for line in lines[k]]


def named(kind: str, items: list[str]) -> list[str]:
    """A line for each of the first twenty, and one for how many more there are."""
    more = len(items) - _NAMED
    return [f"{kind}: {item}" for item in items[:_NAMED]] + ([f"{kind}: {more:,} more"] if more > 0 else [])


def _index_problems(pack: Pack) -> Iterator[str]:
    columns, shards = pack.columns, pack.info["shards"]
    ids = np.asarray(columns["ids"])
    _, first, count = np.unique(ids, return_index=True, return_counts=True)
    double = np.flatnonzero(np.isin(ids, ids[first[count > 1]]))
    yield from named("duplicated id", [f"{int(ids[i]):016x} of {pack.name(i)} (row {i} of the index)" for i in double])
    expected = image_ids([pack.name(i) for i in range(len(ids))])
    other = np.setdiff1d(np.flatnonzero(expected != ids), double)
    yield from named("wrong id", [f"{int(ids[i]):016x} is not that of {pack.name(i)}" for i in other])
    if index_digest(columns, pack.info["classes"]) != pack.info["digest"]:
        yield f"index: its arrays are not those that {pack.folder / 'pack.json'} was written for"
    held = np.bincount(columns["shard"][np.asarray(columns["size"]) > 0], minlength=len(shards))
    for shard, count in zip(shards, held, strict=True):
        if shard["pictures"] != count:
            yield f"index: {count:,} pictures of {shard['name']}, which holds {shard['pictures']:,}"


_pack: Pack | None = None  # of a worker process


def _begin(parent: int, pack: Pack) -> None:
    global _pack
    end_with(parent)
    _pack = pack


def _check_shard(k: int) -> list[str]:
    """In a worker: what is wrong with a shard, read from its first byte to its last."""
    pack, shard = _pack, _pack.info["shards"][k]
    path, columns = pack.folder / shard["name"], pack.columns
    rows = np.flatnonzero((np.asarray(columns["shard"]) == k) & (np.asarray(columns["size"]) > 0))
    wanted = {int(columns["offset"][i]): i for i in rows}
    wrong, seen, double = [], set(), []
    try:
        with path.open("rb") as file:
            stream = Summed(file)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    if member.name in seen:
                        double.append(f"{member.name.partition('.')[0]} twice in {path.name}")
                    seen.add(member.name)
                    i = wanted.pop(member.offset_data, None)
                    if i is None:
                        continue
                    content = tar.extractfile(member).read()
                    if len(content) != columns["size"][i] or picture_digest(content) != columns["digest"][i]:
                        wrong.append(f"{pack.name(i)} in {path.name}, at byte {member.offset_data:,}")
            stream.drain()
        found = named("duplicated id", double) + named("changed bytes", wrong)
        missing = [f"{pack.name(i)}, which the index has at byte {at:,} of {path.name}" for at, i in wanted.items()]
        found += named("missing picture", missing)
        if not found and stream.size != shard["bytes"]:
            found = [f"{path.name}: {stream.size:,} bytes, {shard['bytes']:,} expected"]
        if not found and stream.sum.hexdigest() != shard["sha256"]:
            found = [f"changed bytes: in {path.name}, outside of its pictures (a class, or a header)"]
        return found
    except (OSError, tarfile.TarError, EOFError) as error:
        size = path.stat().st_size if path.exists() else 0
        short = f": {size:,} of {shard['bytes']:,} bytes are there" if size != shard["bytes"] else ""
        return named("changed bytes", wrong) + [
            f"damaged shard: {path.name} cannot be read to its end ({error}){short}"
        ]


class Summed:
    """A file that is read, or written, once from start to end, with the sum of all that went through."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file, self.sum, self.size = file, hashlib.sha256(), 0

    def read(self, n: int) -> bytes:
        found = self.file.read(n)
        self._count(found)
        return found

    def write(self, part: bytes) -> int:
        self._count(part)
        return self.file.write(part)

    def drain(self) -> None:
        """What a reader leaves after the end of the archive."""
        while self.read(1 << 20):
            pass

    def _count(self, part: bytes) -> None:
        self.sum.update(part)
        self.size += len(part)
