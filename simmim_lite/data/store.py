"""Images decoded once: a memory-mapped uint8 store at one size, written whole or not at all. No torch here.

A store is a folder in `$SIMMIM_DATA/stores` (else `~/.cache/simmim_lite/stores`): images.npy (N, 3, S, S), ids.npy,
labels.npy (-1 = unknown), masks.npy where masks exist, and index.json with everything else (splits, classes, mean, std,
digest, what was left out and why).
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from ..errors import UserError

#: Part of every store's name: raised when the format or the decoding changes, so that old stores are built again.
STORE_VERSION = 2
_NAMED = 10  # images left out that are named on the screen; index.json names all
_T = TypeVar("_T")


@dataclass
class Chunk:
    """Some images on their way into a store, and those that were left out on the way."""

    images: np.ndarray  # uint8 (n, 3, S, S)
    ids: np.ndarray  # uint64 (n,)
    labels: np.ndarray  # int64 (n,), -1 = unknown
    masks: np.ndarray | None = None  # bool (n, S, S)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # name, reason


@dataclass(frozen=True)
class StorePlan:
    """What a store is to hold: chunks by split, in the order of the splits."""

    splits: dict[str, Iterable[Chunk]]
    total: int  # images at most, left-out ones included
    image_size: int  # pixels
    classes: tuple[str, ...]
    notes: Iterable[str] = ()  # how its source was read
    masks: bool = False
    reference: int | None = None  # mean, std and digest see so many first training images; None = all


@dataclass(frozen=True)
class Store:
    """An open store; arrays are memory-mapped or small."""

    folder: Path
    images: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    info: dict  # splits, classes, mean, std, digest, skipped, notes


def data_root() -> Path:
    """The folder for stores and downloads: `$SIMMIM_DATA`, else `~/.cache/simmim_lite`. Read here and nowhere else."""
    return Path(os.environ.get("SIMMIM_DATA") or Path.home() / ".cache" / "simmim_lite").expanduser()


def ensure(name: str, version: str, plan: Callable[[], StorePlan], title: str) -> Store:
    """Open the store NAME-VERSION, building it first when there is none, or a damaged one."""

    def write(folder: Path) -> None:
        wanted, path = plan(), data_root() / "stores" / f"{name}-{version}"
        need = wanted.total * wanted.image_size**2 * (3 + wanted.masks)
        free = shutil.disk_usage(folder).free
        if need > free:
            raise UserError(
                f"cannot write {path}: the store needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some "
                "space or set SIMMIM_DATA to a folder on a larger disk"
            )
        skipped = _write(folder, wanted, title)
        for left, reason in skipped[:_NAMED]:
            print(f"{title}: left out {left}: {reason}", file=sys.stderr)
        if (more := len(skipped) - _NAMED) > 0:
            print(f"{title}: left out {more:,} more, all named in {path / 'index.json'}", file=sys.stderr)

    return ensure_folder(name, version, write, title, open_store)


def ensure_folder(
    name: str, version: str, write: Callable[[Path], object], title: str, opened: Callable[[Path], _T | None]
) -> _T:
    """What `opened` makes of the folder stores/NAME-VERSION, which is written first where that is None.

    `write(folder)` fills a temporary folder beside it, which then takes its name: whole or not at all. One process
    writes, others wait. One of the same name with another version is out of date and is removed, as is what a killed
    process left.
    """
    folder = data_root() / "stores" / f"{name}-{version}"
    found = opened(folder)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f"{name}.lock", title):
            found = opened(folder)  # another process may have written it meanwhile
            if found is None:
                for old in folder.parent.glob(f"{glob.escape(name)}-*"):
                    shutil.rmtree(old, ignore_errors=True)
                _write_whole_folder(folder, write, title)
                found = opened(folder)
    except OSError as error:
        why = f"{error.strerror or error}; free some space or set SIMMIM_DATA to another folder"
        raise UserError(f"cannot write {folder}: {why}") from error
    if found is None:
        raise UserError(f"{folder}: written, but cannot be read back; check the disk, delete it and try again")
    return found


def is_there(folder: Path) -> Path | None:
    """The folder, or None where it is not there: for `ensure_folder`."""
    return folder if folder.is_dir() else None


def open_store(folder: Path) -> Store | None:
    """The store at a folder; None when there is none, or when it is damaged (which is said on stderr)."""
    if not folder.is_dir():
        return None
    try:
        info = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r")
        masks = np.load(folder / "masks.npy", mmap_mode="r") if info["masks"] else None
        ids, labels = np.load(folder / "ids.npy"), np.load(folder / "labels.npy")
        if not len(images) == len(ids) == len(labels) == info["images"]:
            raise ValueError("its arrays differ in length")
    except (OSError, ValueError, KeyError, EOFError) as error:
        print(f"{folder}: damaged store ({error}); building it again", file=sys.stderr)
        return None
    return Store(folder, images, ids, labels, masks, info)


def _write_whole_folder(folder: Path, write: Callable[[Path], object], title: str) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.tmp-"))
    try:
        write(temporary)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    named = f"{size / 1e6:,.0f} MB" if size > 1e6 else f"{size / 1e3:,.0f} kB"
    kept = f"decoded pictures are kept in {folder} ({named})"
    print(f"{title}: {kept}; delete it at any time, or name another place in SIMMIM_DATA", file=sys.stderr, flush=True)


def _write(folder: Path, plan: StorePlan, title: str) -> list[tuple[str, str]]:
    """Fill a folder, and return what was left out."""
    size = plan.image_size
    digests = [hashlib.sha256() for _ in range(4)]
    histogram = np.zeros((3, 256), np.int64)
    ids, labels, skipped, splits = [], [], [], {}
    rows = 0
    arrays = {"images": (np.uint8, (3, size, size))} | ({"masks": (np.bool_, (size, size))} if plan.masks else {})
    with contextlib.ExitStack() as stack:
        files = {name: _ArrayFile(folder / f"{name}.npy", *kind) for name, kind in arrays.items()}
        for file in files.values():
            stack.callback(file.close)
        advance = stack.enter_context(progress(plan.total, title))
        for name, chunks in plan.splits.items():
            start = rows
            for chunk in chunks:
                for array, file in files.items():
                    file.append(getattr(chunk, array))
                limited = plan.reference is not None and name == "train"
                left = max(0, plan.reference - rows) if limited else None
                parts = (chunk.images, chunk.ids, chunk.labels, chunk.masks)
                for digest, part in zip(digests, parts, strict=True):
                    if part is not None:
                        digest.update(np.ascontiguousarray(part[:left]))
                if name == "train":
                    histogram += levels(chunk.images[:left])
                ids.append(chunk.ids)
                labels.append(chunk.labels)
                skipped += chunk.skipped
                rows += len(chunk.ids)
                advance(len(chunk.ids) + len(chunk.skipped))
            splits[name] = [start, rows]
    np.save(folder / "ids.npy", np.concatenate(ids))
    np.save(folder / "labels.npy", np.concatenate(labels))
    mean, std = statistics(histogram) if histogram.any() else (None, None)
    held = {name: end - start for name, (start, end) in splits.items() if name != "train"}
    head = json.dumps([held, plan.classes, size]).encode()
    info = {"images": rows, "image_size": size, "masks": plan.masks, "splits": splits, "classes": list(plan.classes)}
    info |= {"mean": mean, "std": std, "skipped": [list(item) for item in skipped], "notes": list(plan.notes)}
    info["digest"] = hashlib.sha256(head + b"".join(d.digest() for d in digests)).hexdigest()[:16]
    write_whole(folder / "index.json", json.dumps(info, indent=1).encode())
    return skipped


class _ArrayFile:
    """A .npy file that grows row by row; its header gets the number of rows when it is closed.

    Plain writes, not a memory map: a full disk is then an OSError, and not a crash of the process.
    """

    def __init__(self, path: Path, dtype: type, shape: tuple[int, ...]) -> None:
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self.dtype, self.shape, self.rows = np.dtype(dtype), shape, 0
        self._header()

    def append(self, rows: np.ndarray) -> None:
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape:
            raise ValueError(f"rows are {rows.dtype} {rows.shape[1:]}, expected {self.dtype} {self.shape}")
        self.file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> None:
        with self.file:
            self.file.seek(0)
            self._header()  # numpy pads headers so that the number of rows may grow in place
            self.file.flush()
            os.fsync(self.file.fileno())

    def _header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside it, flushed to disk, then renamed over it. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def levels(images: np.ndarray) -> np.ndarray:
    """How often each channel of images uint8 (..., 3, H, W) has each level: int64 (3, 256)."""
    channels = (images[..., channel, :, :].ravel() for channel in range(3))
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])


def statistics(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel in 0..1 units, exact from counts (3, 256); std at least 1/255."""
    values = np.arange(256)
    count = histogram.sum(1)
    mean = (histogram * values).sum(1) / count
    variance = (histogram * values**2).sum(1) / count - mean**2
    return (mean / 255).tolist(), (np.sqrt(np.maximum(variance, 1)) / 255).tolist()


@contextlib.contextmanager
def progress(total: int, title: str, unit: str = "image") -> Iterator[Callable[[int], object]]:
    """A bar on a terminal or in a notebook; elsewhere a line every ten seconds. Yields advance(n)."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=title, unit=unit, unit_scale=True, leave=False) as bar:
            yield bar.update
        return
    started = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= 10:
            last = now
            left = (now - started) * (total - done) / max(1, done)
            print(f"{title}: {done:,} of {total:,} {unit}s, about {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance


@contextlib.contextmanager
def locked(path: Path, title: str) -> Iterator[None]:
    """Hold a lock file that one process at a time holds; who has to wait is told so."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=3)
    except Timeout:
        print(f"{title}: waiting for the process that is building it (lock {path})", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
