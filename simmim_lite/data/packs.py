"""Packs: a data set in tar shards of the WebDataset layout, with an index that finds any picture. No torch here.

A pack is a folder: shards SPLIT-NNNNN.tar, each picture as KEY.jpg (or KEY.png) and its class number as KEY.cls, KEY
its id in 16 hexadecimal digits; index/*.npy, a row a picture, with offset and length in its shard; and pack.json.
Within a split, pictures lie in the rank order of manifests at seed 0: the first shards hold the 10 % subset, and so on.
`packing` writes them; `verify` says what is wrong with one.
"""

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError, first_line
from ..processes import waiting
from .listing import Parts, image_ids, picture_digest
from .store import progress

FORMAT = 1
SPLITS = ("train", "val", "test")  # as the index numbers them
#: The arrays of the index: name -> dtype.
COLUMNS = {
    "ids": np.uint64,
    "labels": np.int64,  # -1 = unknown
    "split": np.uint8,  # into SPLITS
    "shard": np.int32,  # into the shards that pack.json names
    "offset": np.int64,  # bytes into the shard
    "size": np.int64,  # bytes; 0 = listed by the source, but not readable
    "digest": np.uint64,  # of the picture's bytes
    "names": np.bytes_,  # the source's, of the longest's length
}
_FIELDS = {"format", "spec", "plan", "listed", "pictures", "classes", "digest", "shards", "left_out"}  # of pack.json


@dataclass(frozen=True)
class Pack:
    """An open pack; columns are memory-mapped. A `Reader` of its pictures."""

    folder: Path
    info: dict  # pack.json
    columns: dict[str, np.ndarray]  # COLUMNS

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
        shard = self.folder / self.info["shards"][self.columns["shard"][i]]["name"]
        file = _opened(os.fspath(shard))  # held here: threads may push it out of the cache meanwhile
        content = os.pread(file.fileno(), size, offset)
        if len(content) != size or not size:
            raise OSError(f"{shard} ends before picture {self.name(i)}: run data verify")
        return content

    source = content

    def title(self, i: int) -> str:
        return f"{self.name(i)} in {self.folder}"

    def parts(self) -> Parts:
        """What the pack lists, as its source did."""
        with waiting(f"reading the index of {self.folder}"):
            ids, labels, split, size = (np.asarray(self.columns[c]) for c in ("ids", "labels", "split", "size"))
            splits = {name: np.flatnonzero(split == k) for k, name in enumerate(SPLITS) if (split == k).any()}
            names = [name.decode("utf-8", "surrogateescape") for name in self.columns["names"].tolist()]
            passed = tuple((name, "could not be read when it was packed", 1) for name, _ in self.info["left_out"])
            return Parts(names, ids, labels, tuple(self.info["classes"]), splits, size == 0, passed=passed)


@functools.lru_cache(maxsize=64)
def _opened(path: str) -> io.FileIO:
    """A file of this process; what drops out of the cache closes itself."""
    return open(path, "rb", buffering=0)


def is_pack(folder: str | Path) -> bool:
    return (Path(folder).expanduser() / "pack.json").is_file()


def open_pack(folder: str | Path) -> Pack:
    """The pack in a folder; `UserError`, one line, where there is none, or one whose index is not whole."""
    root, part, columns = Path(folder).expanduser().absolute(), "pack.json", {}
    if not root.is_dir():
        raise UserError(f"packed:{folder}: no such folder; make it with simmim-lite data pack SOURCE {folder}")
    try:
        info = json.loads((root / part).read_text(encoding="utf-8"))
        if missing := _FIELDS - info.keys():
            raise ValueError(f"it has no {min(missing)}")
        if info["format"] != FORMAT or any(Path(shard["name"]).name != shard["name"] for shard in info["shards"]):
            raise ValueError(f"no format {FORMAT}, or a shard outside of the folder")
        ends = {"labels": len(info["classes"]), "split": len(SPLITS), "shard": len(info["shards"])}
        for name, kind in COLUMNS.items():
            part = f"index/{name}.npy"
            columns[name] = column = np.load(root / part, mmap_mode="r")
            if column.shape != (info["listed"],) or not np.issubdtype(column.dtype, kind):
                raise ValueError(f"it holds {column.dtype} {column.shape}")
            if name in ends and (column.min() < -(name == "labels") or column.max() >= ends[name]):
                raise ValueError(f"numbers from {column.min()} to {column.max()}")
    except Exception as error:  # bytes that are not what they should be raise errors of many kinds
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        mend = f"copy the pack again, or make it with simmim-lite data pack SOURCE {folder}"
        raise UserError(f"packed:{folder}: {part} is missing or damaged ({why}); {mend}") from error
    return Pack(root, info, columns)


def index_digest(columns: dict[str, np.ndarray], classes: Iterable[str]) -> str:
    """16 hexadecimal digits of what a pack holds: classes, and every column that does not depend on where it lies."""
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for name in ("ids", "labels", "split", "digest", "names"):
        total.update(np.ascontiguousarray(columns[name]).tobytes())
    return total.hexdigest()[:16]


def verify(folder: str | Path, *, workers: int | None = None) -> list[str]:
    """What is wrong with a pack, `KIND: WHAT` for each picture, id or shard, after reading every byte; [] if nothing.

    `UserError` where the index cannot be read at all.
    """
    pack = open_pack(folder)
    ids, shards = np.asarray(pack.columns["ids"]), pack.info["shards"]
    values, count = np.unique(ids, return_counts=True)
    double = np.isin(ids, values[count > 1])
    wrong = ~double & (ids != image_ids([pack.name(i) for i in range(len(ids))]))
    lines = [f"duplicated id: {int(ids[i]):016x} of {pack.name(i)}" for i in np.flatnonzero(double)]
    lines += [f"wrong id: {int(ids[i]):016x} is not that of {pack.name(i)}" for i in np.flatnonzero(wrong)]
    if index_digest(pack.columns, pack.info["classes"]) != pack.digest:
        lines.append(f"index: its arrays are not those that {pack.folder / 'pack.json'} was written for")
    listed = {shard["name"] for shard in shards}
    lines += [f"extra shard: {path.name}" for path in sorted(pack.folder.glob("*.tar")) if path.name not in listed]
    # threads suffice: reading and hashing let go of the interpreter
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        with progress(sum(shard["pictures"] for shard in shards), f"verify {pack.folder.name}") as advance:
            for k, problems in enumerate(pool.map(functools.partial(_check_shard, pack), range(len(shards)))):
                lines += problems
                advance(shards[k]["pictures"])
    finally:
        pool.shutdown(cancel_futures=True)
    return lines


def _check_shard(pack: Pack, k: int) -> list[str]:
    """What is wrong with a shard, or with what the index says of it."""
    columns, shard = pack.columns, pack.info["shards"][k]
    rows = np.flatnonzero((np.asarray(columns["shard"]) == k) & (np.asarray(columns["size"]) > 0))
    try:
        with (pack.folder / shard["name"]).open("rb", buffering=0) as file:
            same, length = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"], file.tell()
            place = ((i, int(columns["size"][i]), int(columns["offset"][i])) for i in rows)
            contents = ((i, os.pread(file.fileno(), size, offset)) for i, size, offset in place)
            changed = [pack.name(i) for i, content in contents if picture_digest(content) != columns["digest"][i]]
    except FileNotFoundError:
        return [f"missing shard: {shard['name']}"]
    except OSError as error:
        return [f"unreadable shard: {shard['name']} ({error.strerror or error})"]
    if same:
        return [f"index: {name} does not fit {shard['name']}, which is whole" for name in changed]
    lines = [f"changed bytes: {name} in {shard['name']}" for name in changed]
    if length != shard["bytes"] or not changed:
        lines.append(f"damaged shard: {shard['name']} ({length:,} bytes, {shard['bytes']:,} expected)")
    return lines
