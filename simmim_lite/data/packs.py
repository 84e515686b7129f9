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
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..processes import each, waiting
from .listing import Parts, image_ids, picture_digest
from .store import progress

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
_BLOCK = 512  # bytes: a tar's headers have one, and what follows them is filled up to whole ones


@dataclass(frozen=True)
class Pack:
    """An open pack; columns are memory-mapped. A `Reader` of its pictures."""

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
        shard = self.folder / self.info["shards"][self.columns["shard"][i]]["name"]
        file = _opened(os.fspath(shard))  # held here: threads may push it out of the cache meanwhile
        found = os.pread(file.fileno(), size, offset)
        if len(found) != size or not size:
            raise OSError(f"{shard} ends before picture {self.name(i)}: run data verify")
        return found

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
        again = "run simmim-lite data pack again to finish it"
        raise UserError(f"{root}: no {part} in it, so it is no finished pack; {again}") from error
    except PermissionError as error:
        raise UserError(f"{root / part}: {error.strerror}; ask its owner for the right to read it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0][:200]
        mend = "copy the pack again, or delete the folder and pack again"
        raise UserError(f"{root / part}: damaged ({why}); {mend}") from error
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
    if not all(isinstance(info[name], int) for name in ("listed", "pictures")):
        raise ValueError(f"it lists {info['listed']!r} and has {info['pictures']!r} pictures")
    if not all(isinstance(name, str) for name in [info["digest"], *info["classes"]]):
        raise ValueError("its digest or classes are no text")


def _check_column(name: str, column: np.ndarray, info: dict) -> None:
    """`ValueError` where a column of the index has another kind or length than it must, or points nowhere."""
    if column.shape != (info["listed"],) or (name == "names" and column.dtype.kind != "S"):
        raise ValueError(f"{column.dtype} {column.shape}, and {info['listed']:,} rows are listed")
    if name in COLUMNS and column.dtype != COLUMNS[name]:
        raise ValueError(f"it holds {column.dtype}, and not {np.dtype(COLUMNS[name])}")
    most = {"labels": len(info["classes"]), "split": len(SPLITS), "shard": len(info["shards"])}
    most |= dict.fromkeys(("offset", "size"), 1 << 62)
    if name in most:
        least = -1 if name == "labels" else 0
        wrong = np.flatnonzero((np.asarray(column) < least) | (np.asarray(column) >= most[name]))
        if len(wrong):
            raise ValueError(f"row {wrong[0]:,} is {column[wrong[0]]}, and {least} to {most[name] - 1} can be")


def index_digest(columns: dict[str, np.ndarray], classes: Iterable[str]) -> str:
    """16 hexadecimal digits of what a pack holds: classes, and every column that does not depend on where it lies."""
    found = hashlib.sha256(json.dumps(list(classes)).encode())
    for name in ("ids", "labels", "split", "digest", "names"):
        found.update(np.ascontiguousarray(columns[name]).tobytes())
    return found.hexdigest()[:16]


# --- verifying


def verify(folder: str | Path, *, workers: int | None = None) -> list[str]:
    """What is wrong with a pack, `KIND: WHAT` for each picture, byte or row; [] if nothing.

    Every byte is read, by several processes. What differs in a shard is told apart from an index that is wrong about a
    shard whose own sum is right. `UserError` where the index cannot be read at all.
    """
    pack = open_pack(folder)
    with waiting(f"comparing the index of {pack.folder}"):
        shards, found = pack.info["shards"], list(_index_problems(pack))
    there = {path.name for path in pack.folder.glob("*.tar") if path.is_file()}
    found += [f"missing shard: {shard['name']}" for shard in shards if shard["name"] not in there]
    found += [f"extra shard: {name}" for name in sorted(there - {shard["name"] for shard in shards})]
    wanted = [k for k, shard in enumerate(shards) if shard["name"] in there]
    lines: dict[int, list[str]] = {}
    at_once = max(1, min(len(wanted), workers or os.cpu_count() or 1))
    with progress(sum(shards[k]["pictures"] for k in wanted), f"verify {pack.folder.name}") as advance:
        for k, lines[k] in each(_check_shard, wanted, at_once, _begin, pack):
            advance(shards[k]["pictures"])
    return found + [line for k in sorted(lines) for line in lines[k]]


def _index_problems(pack: Pack) -> Iterator[str]:
    columns, shards = pack.columns, pack.info["shards"]
    ids = np.asarray(columns["ids"])
    _, first, count = np.unique(ids, return_index=True, return_counts=True)
    double = np.flatnonzero(np.isin(ids, ids[first[count > 1]]))
    for i in double:
        yield f"duplicated id: {int(ids[i]):016x} of {pack.name(i)} (row {i} of the index)"
    expected = image_ids([pack.name(i) for i in range(len(ids))])
    for i in np.setdiff1d(np.flatnonzero(expected != ids), double):
        yield f"wrong id: {int(ids[i]):016x} is not that of {pack.name(i)}"
    if index_digest(columns, pack.info["classes"]) != pack.info["digest"]:
        yield f"index: its arrays are not those that {pack.folder / 'pack.json'} was written for"
    of = np.array([SPLITS.index(shard["name"].partition("-")[0]) for shard in shards])
    for i in np.flatnonzero(of[columns["shard"]] != columns["split"]):
        yield f"index: row {i}, {pack.name(i)}, is of split {SPLITS[columns['split'][i]]} in a shard of another"
    held = np.bincount(columns["shard"][np.asarray(columns["size"]) > 0], minlength=len(shards))
    for shard, count in zip(shards, held, strict=True):
        if shard["pictures"] != count:
            yield f"index: {count:,} pictures of {shard['name']}, which holds {shard['pictures']:,}"


_pack: Pack | None = None  # of a worker process


def _begin(pack: Pack) -> None:
    global _pack
    _pack = pack


def _check_shard(k: int) -> list[str]:
    """In a worker: what is wrong with a shard, or with what the index says of it."""
    columns, shard = _pack.columns, _pack.info["shards"][k]
    rows = np.flatnonzero((np.asarray(columns["shard"]) == k) & (np.asarray(columns["size"]) > 0))
    rows = rows[np.argsort(columns["offset"][rows], kind="stable")].tolist()  # in the order in which they lie there
    name, expected = shard["name"], shard["bytes"]
    try:
        with (_pack.folder / name).open("rb", buffering=0) as file:
            there, length = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            changed = [i for i in rows if _differs(file, i)]
            if there == shard["sha256"]:  # so it is the index that is wrong
                return [
                    f"index: row {i}, {_pack.name(i)}, does not fit {name}, which is whole" for i in sorted(changed)
                ]
            for other in _pack.info["shards"]:
                if other["sha256"] == there:
                    return [f"damaged shard: {name} has the content of {other['name']}"]
            found = [(i, f"{_pack.name(i)} in {name}, at byte {int(columns['offset'][i]):,}") for i in changed]
            for i, at, wanted, what in _beside(file, rows, expected):
                got = os.pread(file.fileno(), len(wanted), max(0, at))
                if got != wanted:
                    found.append((i, f"{_which(got, wanted, at)} of {name}, {what}"))
    except OSError as error:
        return [f"unreadable shard: {name} ({error.strerror or error})"]
    if length == expected:
        return [f"changed bytes: {text}" for _, text in found] or [f"index: the sum of {name} is of other bytes"]
    bad = {i for i, _ in found}
    good = [n for n, i in enumerate(rows) if i not in bad]
    lost = rows[good[-1] + 1 :] if good else rows  # where all are bad to the end, it was cut there, or moved
    lines = [f"changed bytes: {text}" for i, text in found if i not in lost and i is not None]
    line = f"damaged shard: {name} has {length:,} bytes, {expected:,} expected"
    if lost:
        first = f"{_pack.name(lost[0])}, at byte {int(columns['offset'][lost[0]]):,}"
        line += f"; from {first}, on, {len(lost):,} of its {len(rows):,} pictures are not where the index has them"
    return [*lines, line]


def _differs(file: io.FileIO, i: int) -> bool:
    """Whether picture i is not what stands where the index has it."""
    content = os.pread(file.fileno(), int(_pack.columns["size"][i]), int(_pack.columns["offset"][i]))
    return len(content) != _pack.columns["size"][i] or picture_digest(content) != _pack.columns["digest"][i]


def _beside(file: io.FileIO, rows: list[int], length: int) -> Iterator[tuple[int | None, int, bytes, str]]:
    """(row, at, bytes that have to stand there, what they are) of all in a shard that is no picture."""
    end = 0
    for i in rows:
        title, key = _pack.name(i), f"{int(_pack.columns['ids'][i]):016x}"
        start, size, label = (int(_pack.columns[c][i]) for c in ("offset", "size", "labels"))
        if label >= 0:
            text = str(label).encode()
            yield i, start - 3 * _BLOCK, _header(f"{key}.cls", len(text)), f"in the header of the class of {title}"
            yield i, start - 2 * _BLOCK, text.ljust(_BLOCK, b"\0"), f"in the class of {title}"
        kind = "png" if b".png" in os.pread(file.fileno(), _BLOCK, max(0, start - _BLOCK)) else "jpg"
        yield i, start - _BLOCK, _header(f"{key}.{kind}", size), f"in the header of {title}"
        yield i, start + size, bytes(-size % _BLOCK), f"in what fills up the last block of {title}"
        end = start + size + -size % _BLOCK
    yield None, end, bytes(min(max(0, length - end), 1 << 20)), "after its last picture"


def _header(name: str, size: int) -> bytes:
    """The header that `packing` writes for a file in a shard."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _which(got: bytes, wanted: bytes, at: int) -> str:
    """Which bytes are not those wanted."""
    wrong = [n for n, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b] or [len(got)]
    first, last = at + wrong[0], at + wrong[-1]
    return f"byte {first:,}" if first == last else f"bytes {first:,} to {last:,}"
