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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..processes import waiting
from . import decode
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
        with waiting(f"reading the index of {self.folder}"):
            return self._parts()

    def _parts(self) -> Parts:
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
    part = "pack.json"
    try:
        info = json.loads((root / part).read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise UserError(f"{root}: a pack of format {info['format']}, this version reads {FORMAT}; pack it again")
        _check_info(info)
        columns = {}
        for name in (*COLUMNS, "names"):
            part = f"index/{name}.npy"
            columns[name] = np.load(root / part, mmap_mode="r")
            _check_column(name, columns[name], info)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"{root}: no {part} in it, so it is no finished pack; run simmim-lite data pack again to finish it"
        ) from error
    except PermissionError as error:
        raise UserError(f"{root / part}: {error.strerror}; ask its owner for the right to read it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0][:200]
        raise UserError(
            f"{root / part}: damaged ({why}); copy the pack again, or delete the folder and pack again"
        ) from error
    return Pack(root, info, columns)


def _check_info(info: dict) -> None:
    """`ValueError`, `KeyError` or `TypeError` where pack.json is not what `packing` writes."""
    for shard in info["shards"]:
        name = shard["name"]
        if Path(name).name != name or name.partition("-")[0] not in SPLITS:
            raise ValueError(f"shard {name!r} is no file of this folder")
        if not all(isinstance(shard[number], int) and shard[number] >= 0 for number in ("pictures", "bytes")):
            raise ValueError(f"{name} has {shard['pictures']!r} pictures and {shard['bytes']!r} bytes")
        shard["sha256"].lower()
    for name in ("listed", "pictures"):
        if not isinstance(info[name], int):
            raise ValueError(f"{name} is {info[name]!r}")
    if not all(isinstance(name, str) for name in [info["digest"], *info["classes"]]):
        raise ValueError("its digest or classes are no text")


def _check_column(name: str, column: np.ndarray, info: dict) -> None:
    """`ValueError` where a column of the index has another kind or length than it must, or points nowhere."""
    if column.shape != (info["listed"],) or (column.dtype.kind != "S" if name == "names" else False):
        raise ValueError(f"{column.dtype} {column.shape}, and {info['listed']:,} rows are listed")
    if name in COLUMNS and column.dtype != COLUMNS[name]:
        raise ValueError(f"it holds {column.dtype}, and not {np.dtype(COLUMNS[name])}")
    most = {"labels": len(info["classes"]), "split": len(SPLITS), "shard": len(info["shards"])}
    if name in most or name in ("offset", "size"):
        least, most = (-1 if name == "labels" else 0), most.get(name, 1 << 62)
        wrong = np.flatnonzero((np.asarray(column) < least) | (np.asarray(column) >= most))
        if len(wrong):
            raise ValueError(f"row {wrong[0]:,} is {column[wrong[0]]}, and {least} to {most - 1} can be")


def index_digest(columns: dict[str, np.ndarray], classes: Iterable[str]) -> str:
    """16 hexadecimal digits of what a pack holds: classes, and every column that does not depend on where it lies."""
    found = hashlib.sha256(json.dumps(list(classes)).encode())
    for name in ("ids", "labels", "split", "digest", "names"):
        found.update(np.ascontiguousarray(columns[name]).tobytes())
    return found.hexdigest()[:16]


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
