"""Images decoded once: a memory-mapped uint8 store at one size, written whole or not at all. No torch here.

A folder in `$SIMMIM_DATA/stores` (else `~/.cache/simmim_lite/stores`): images.npy (N, 3, S, S), ids.npy, labels.npy (-1
= unknown), masks.npy where masks exist, and index.json with everything else."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock

from ..errors import UserError
from ..processes import waiting

#: Part of every store's name: raised when the format or the decoding changes, so that old stores are built again.
STORE_VERSION = 2


class Chunk(NamedTuple):
    """Some images on their way into a store."""

    images: np.ndarray  # uint8 (n, 3, S, S)
    ids: np.ndarray  # uint64 (n,)
    labels: np.ndarray  # int64 (n,), -1 = unknown
    masks: np.ndarray | None = None  # bool (n, S, S)
    skipped: Sequence[tuple[str, str]] = ()  # name and reason of those that are left out


class StorePlan(NamedTuple):
    """What a store is to hold."""

    splits: dict[str, Iterable[Chunk]]
    total: int  # images at most, left-out ones included
    image_size: int  # pixels
    classes: tuple[str, ...]
    notes: Iterable[str] = ()  # how its source was read
    masks: bool = False
    reference: int | None = None  # mean, std and digest see so many first training images; None = all


class Store(NamedTuple):
    """An open store; arrays are memory-mapped or small."""

    images: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    info: dict  # splits, classes, mean, std, digest, skipped, notes


def data_root() -> Path:
    """The folder for stores and downloads: `$SIMMIM_DATA`, else `~/.cache/simmim_lite`. Read here and nowhere else."""
    return Path(os.environ.get("SIMMIM_DATA") or Path.home() / ".cache" / "simmim_lite").expanduser()


def ensure(name: str, version: str, plan: Callable[[], StorePlan], title: str) -> Store:
    """Open the store NAME-VERSION, building it first when there is none."""
    folder = ensure_folder(name, version, lambda empty: _write(empty, plan(), title), title)
    try:
        info = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r")
        masks = np.load(folder / "masks.npy", mmap_mode="r") if info["masks"] else None
        ids, labels = np.load(folder / "ids.npy"), np.load(folder / "labels.npy")
        if not len(images) == len(ids) == len(labels) == info["images"]:
            raise ValueError("its arrays differ in length")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{folder}: damaged store ({error}); delete this folder and run again") from error
    return Store(images, ids, labels, masks, info)


def ensure_folder(name: str, version: str, write: Callable[[Path], object], title: str) -> Path:
    """The folder stores/NAME-VERSION, written first by `write(folder)` where it is not there: whole or not at all.

    One process writes, others wait. Folders of another version are removed. `UserError` where the disk refuses."""
    folder = data_root() / "stores" / f"{name}-{version}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f"{name}.lock", title):
            if folder.is_dir():  # another process has written it meanwhile
                return folder
            for old in folder.parent.glob(f"{glob.escape(name)}-*"):
                shutil.rmtree(old, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.tmp-"))
            try:
                write(temporary)
                os.replace(temporary, folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        mend = "free some space or set SIMMIM_DATA to another folder"
        raise UserError(f"cannot write {folder}: {error.strerror or error}; {mend}") from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    kept = f"decoded pictures are kept in {folder} ({size:,.1f} MB)"
    print(f"{title}: {kept}; delete it at any time, or name another place in SIMMIM_DATA", file=sys.stderr, flush=True)
    return folder


def _write(folder: Path, plan: StorePlan, title: str) -> None:
    """Fill a folder. Plain writes: in a memory map, a full disk ends the process."""
    size, rows, histogram = plan.image_size, 0, np.zeros((3, 256), np.int64)
    digests = {name: hashlib.sha256() for name in ("images", "ids", "labels", "masks")}
    ids, labels, skipped, splits = [], [], [], {}
    kinds = {"images": (np.uint8, (3, size, size))} | ({"masks": (np.bool_, (size, size))} if plan.masks else {})
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in kinds}
        for name, file in files.items():
            _header(file, 0, *kinds[name])
        advance = stack.enter_context(progress(plan.total, title))
        for split, chunks in plan.splits.items():
            start = rows
            for chunk in chunks:
                for name, file in files.items():
                    file.write(np.ascontiguousarray(getattr(chunk, name)).data)
                limited = plan.reference is not None and split == "train"
                counted = max(0, plan.reference - rows) if limited else None
                for name, digest in digests.items():
                    if getattr(chunk, name) is not None:
                        digest.update(np.ascontiguousarray(getattr(chunk, name)[:counted]))
                if split == "train":
                    histogram += levels(chunk.images[:counted])
                ids.append(chunk.ids)
                labels.append(chunk.labels)
                skipped += chunk.skipped
                rows += len(chunk.ids)
                advance(len(chunk.ids) + len(chunk.skipped))
            splits[split] = [start, rows]
        for name, file in files.items():
            file.seek(0)
            _header(file, rows, *kinds[name])
            file.flush()
            os.fsync(file.fileno())
    np.save(folder / "ids.npy", np.concatenate(ids))
    np.save(folder / "labels.npy", np.concatenate(labels))
    mean, std = statistics(histogram) if histogram.any() else (None, None)
    held = {name: end - start for name, (start, end) in splits.items() if name != "train"}
    digest = hashlib.sha256(json.dumps([held, plan.classes, size]).encode())
    digest.update(b"".join(d.digest() for d in digests.values()))
    info = {"images": rows, "image_size": size, "masks": plan.masks, "splits": splits, "classes": list(plan.classes)}
    info |= {"mean": mean, "std": std, "skipped": [list(item) for item in skipped], "notes": list(plan.notes)}
    write_whole(folder / "index.json", json.dumps(info | {"digest": digest.hexdigest()[:16]}, indent=1).encode())


def _header(file: BinaryIO, rows: int, dtype: type, shape: tuple[int, ...]) -> None:
    """The header of a .npy file; numpy pads it so that the number of rows may grow in place."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


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
    return np.stack([np.bincount(images[..., channel, :, :].ravel(), minlength=256) for channel in range(3)])


def statistics(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel in 0..1 units, exact from counts (3, 256); std at least 1/255."""
    values, count = np.arange(256), histogram.sum(1)
    mean = (histogram * values).sum(1) / count
    variance = (histogram * values**2).sum(1) / count - mean**2
    return (mean / 255).tolist(), (np.sqrt(np.maximum(variance, 1)) / 255).tolist()


@contextlib.contextmanager
def progress(total: int, title: str, unit: str = "image") -> Iterator[Callable[[int], object]]:
    """A bar on a terminal or in a notebook; elsewhere its text every ten seconds. Yields advance(n)."""
    from tqdm.auto import tqdm

    pause = 0.1 if sys.stderr.isatty() or "ipykernel" in sys.modules else 10
    options = {"unit": unit, "unit_scale": True, "leave": False, "mininterval": pause, "delay": pause}
    with tqdm(total=total, desc=title, **options) as bar:
        yield bar.update


@contextlib.contextmanager
def locked(path: Path, title: str) -> Iterator[None]:
    """Hold a lock file that one process at a time holds; who has to wait is told so."""
    with waiting(f"{title}: waiting for the process that is building it (lock {path})", 3):
        held = FileLock(path).acquire()
    with held:
        yield
