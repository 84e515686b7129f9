"""What is wrong with a pack (`packs`): every byte of it is read, and what differs is named. No torch here."""

import functools
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..processes import each, waiting
from .packs import SPLITS, Pack, index_digest, open_pack, picture_digest
from .ranking import image_ids
from .store import progress

_BLOCK = 512  # bytes: a tar's headers have one, and what follows them is filled up to whole ones


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
    total = sum(shards[k]["pictures"] for k in wanted)
    again = any(line.startswith("index: ") for line in found)  # whole shards are the measure then
    with progress(total, f"verify {pack.folder.name}") as advance:
        for k, found_there in each(functools.partial(_check_shard, again=again), wanted, at_once, _begin, pack):
            lines[k] = found_there
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


def _check_shard(k: int, again: bool) -> list[str]:
    """In a worker: what is wrong with a shard, or with what the index says of it.

    again: compare the pictures of a whole shard with the index too, which else its digest answers for.
    """
    shard = _pack.info["shards"][k]
    name, path = shard["name"], _pack.folder / shard["name"]
    try:
        with path.open("rb", buffering=0) as file:
            there, length = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            other = [s["name"] for s in _pack.info["shards"] if s["sha256"] == there]
            if other and name not in other:
                return [f"damaged shard: {name} has the content of {other[0]}"]
            found = list(_differences(file, k, again or name not in other))
    except OSError as error:
        return [f"unreadable shard: {name} ({error.strerror or error})"]
    if name in other:  # whole, so it is the index that is wrong
        rows = sorted({int(d.row) for d in found if d.row is not None and d.sure})
        return [f"index: row {i}, {_pack.name(i)}, does not fit {name}, which is whole" for i in rows]
    if length == shard["bytes"]:
        # a header that is valid, though not as we write it, counts where nothing else explains the sum
        sure = [d for d in found if d.sure] or found
        return [f"changed bytes: {d.text}" for d in sure] or [f"index: the sum of {name} is of other bytes"]
    lost = _lost(found, k)
    line = f"damaged shard: {name} has {length:,} bytes, {shard['bytes']:,} expected"
    if lost:
        first = f"{_pack.name(lost[0])}, at byte {int(_pack.columns['offset'][lost[0]]):,}"
        line += (
            f"; from {first}, on, {len(lost):,} of its {shard['pictures']:,} pictures are not where the index has them"
        )
    return [f"changed bytes: {d.text}" for d in found if d.sure and d.row not in (None, *lost)] + [line]


@dataclass(frozen=True)
class _Difference:
    """Bytes of a shard that are not what they have to be."""

    text: str
    row: int | None  # of the index: the picture that they belong to
    sure: bool = True  # False: a valid header of the right file, though not as `packing` writes it


def _lost(found: list[_Difference], k: int) -> list[int]:
    """The pictures from which on to the shard's end all are bad, if any: it was cut there, or moved."""
    bad, rows = {d.row for d in found}, _rows(k).tolist()
    whole = [n for n, i in enumerate(rows) if i not in bad]
    return rows[whole[-1] + 1 :] if whole else rows


def _rows(k: int) -> np.ndarray:
    """The pictures of a shard, in the order in which they lie there."""
    columns = _pack.columns
    rows = np.flatnonzero((np.asarray(columns["shard"]) == k) & (np.asarray(columns["size"]) > 0))
    return rows[np.argsort(columns["offset"][rows], kind="stable")]


def _differences(file: io.FileIO, k: int, pictures: bool) -> Iterator[_Difference]:
    """A shard against what the index makes of it: each header, class, picture and filling byte."""
    name, columns, end = _pack.info["shards"][k]["name"], _pack.columns, 0
    for i in _rows(k):
        title, start, size = _pack.name(i), int(columns["offset"][i]), int(columns["size"][i])
        end = start + size + -size % _BLOCK
        for at, wanted, what in _around(i, title, start, size):
            got = os.pread(file.fileno(), len(wanted[0]), max(0, at))
            if got not in wanted:
                which, sure = _which(got, wanted, at)
                yield _Difference(f"{which} of {name}, in {what}", i, sure)
        content = os.pread(file.fileno(), size, start) if pictures else b""
        if pictures and (len(content) != size or picture_digest(content) != columns["digest"][i]):
            yield _Difference(f"{title} in {name}, at byte {start:,}", i)
    rest = bytes(min(max(0, _pack.info["shards"][k]["bytes"] - end), 1 << 20))
    got = os.pread(file.fileno(), len(rest), end)
    if got != rest:
        try:
            more = f": {tarfile.TarInfo.frombuf(got[:_BLOCK], 'utf-8', 'surrogateescape').name} stands there"
        except tarfile.TarError:
            more = ""
        yield _Difference(f"{_which(got, [rest], end)[0]} of {name}, after its last picture{more}", None)


def _around(i: int, title: str, start: int, size: int) -> Iterator[tuple[int, list[bytes], str]]:
    """(at, the bytes that may stand there, what they are) of all that belongs to a picture but itself."""
    # where the index has a wrong id, the shard's is that of the name, and `_index_problems` has said so
    keys = {f"{int(key):016x}" for key in (_pack.columns["ids"][i], image_ids([title])[0])}
    if (label := int(_pack.columns["labels"][i])) >= 0:
        text = str(label).encode()
        headers = [_header(f"{key}.cls", len(text)) for key in keys]
        yield start - 3 * _BLOCK, headers, f"the header of the class of {title}"
        yield start - 2 * _BLOCK, [text.ljust(_BLOCK, b"\0")], f"the class of {title}"
    headers = [_header(f"{key}.{kind}", size) for key in keys for kind in ("jpg", "png")]
    yield start - _BLOCK, headers, f"the header of {title}"
    yield start + size, [bytes(-size % _BLOCK)], f"what fills up the last block of {title}"


def _header(name: str, size: int) -> bytes:
    """The header that `packing` writes for a file in a shard."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _which(got: bytes, wanted: list[bytes], at: int) -> tuple[str, bool]:
    """Which bytes are not those wanted, by the nearest of them, and whether that is a fault for sure."""
    nearest = min(wanted, key=lambda block: sum(map(int.__ne__, block, got)))
    wrong = [n for n, (a, b) in enumerate(zip(nearest, got, strict=False)) if a != b] or [len(got)]
    first, last = at + wrong[0], at + wrong[-1]
    return f"byte {first:,}" if first == last else f"bytes {first:,} to {last:,}", not _same_file(got, nearest)


def _same_file(*headers: bytes) -> bool:
    """Whether two headers are valid, and of one name and size."""
    try:
        a, b = (tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape") for block in headers)
    except tarfile.TarError:
        return False
    return (a.name, a.size) == (b.name, b.size)
