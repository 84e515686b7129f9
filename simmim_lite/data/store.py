"""Images decoded once: a memory-mapped uint8 store at one size, written whole or not at all. No torch here.

A folder in `$SIMMIM_DATA/stores` (else `~/.cache/simmim_lite/stores`): images.npy (N, 3, S, S), ids.npy, labels.npy (-1
= unknown), masks.npy where masks exist, and index.json with everything else."""

import contextlib
import functools
import glob
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm  # a widget would leave an error in a saved notebook

from ..errors import UserError, remedy_of
from ..files import intact, locked, parsed, sealed, sync, write_atomic, writing
from ..processes import tell, told, waiting

#: Part of every store's name: raised when the format or the decoding changes, so that old stores are built again.
STORE_VERSION = 2
_CHUNK = 256  # images decoded between two writes


class Chunk(NamedTuple):
    """Some images on their way into a store."""

    images: np.ndarray  # uint8 (n, C, S, S)
    ids: np.ndarray  # uint64 (n,)
    labels: np.ndarray  # int64 (n,), -1 = unknown
    masks: np.ndarray | None = None  # bool (n, S, S)
    skipped: Sequence[tuple[str, str]] = ()  # name and reason of those that are left out


class StorePlan(NamedTuple):
    """What a store is to hold."""

    rows: dict[str, np.ndarray]  # numbers of images by split
    draw: Callable[[str, np.ndarray], Chunk]  # of a split and some of its numbers
    image_size: int  # pixels
    classes: tuple[str, ...]
    notes: Iterable[str] = ()  # how its source was read; asked for at the end
    masks: bool = False
    channels: int = 3
    reference: int = sys.maxsize  # mean, std and digest see so many first training images


def data_root() -> Path:
    """The folder for stores and downloads: `$SIMMIM_DATA`, else `~/.cache/simmim_lite`. Read here and nowhere else."""
    return Path(os.environ.get("SIMMIM_DATA") or Path.home() / ".cache" / "simmim_lite").expanduser()


def ensure(
    name: str, version: str, plan: Callable[[], StorePlan] | None, title: str, *, verify: bool = True
) -> tuple[dict, dict[str, np.ndarray]]:
    """Open the store NAME-VERSION, building it first when there is none: its index (splits, classes, mean, std, digest,
    skipped, notes), and its arrays by name, the large ones memory-mapped. verify: by their checksums."""
    folder = ensure_folder(name, version, lambda empty: _write(empty, plan(), title), title)
    try:
        info, arrays = intact(parsed(folder / "index.json")), {}
        for array in ("ids", "labels", "images", *["masks"] * info["masks"]):
            arrays[array] = np.load(folder / f"{array}.npy", mmap_mode="r" if array in ("images", "masks") else None)
            if len(arrays[array]) != info["images"]:
                raise ValueError("its arrays differ in length")
        if "crc32" not in info:
            tell(f"{folder}: of an earlier version, without checksums, and taken as it is; now it has them")
            info["crc32"] = {name: zlib.crc32(array) for name, array in arrays.items()}
            with contextlib.suppress(UserError):  # it may be somebody else's
                write_atomic(folder / "index.json", sealed(info))
        with waiting(f"{title}: checking what was decoded"):
            for array, crc in info["crc32"].items() if verify else ():
                path = folder / f"{array}.npy"
                if _crc32(path, path.stat().st_mtime_ns) != crc:
                    raise ValueError(f"{path.name} was changed since it was written")
    except PermissionError as error:
        remedy = remedy_of(error, "set SIMMIM_DATA to another folder").replace("write", "read")
        raise UserError(f"{error.filename or folder}: {error.strerror}; {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{folder}: damaged store ({error}); delete this folder and run again") from error
    return info, arrays


@functools.cache
def _crc32(path: Path, changed: int) -> int:
    """Of an array, read through once in a process, and again where it was changed."""
    return zlib.crc32(np.load(path, mmap_mode="r"))


def is_there(name: str, version: str) -> bool:
    """Whether the store NAME-VERSION has been built."""
    return (data_root() / "stores" / f"{name}-{version}").is_dir()


def ensure_folder(name: str, version: str, write: Callable[[Path], object], title: str) -> Path:
    """The folder stores/NAME-VERSION, filled first by `write(folder)` where it is not there; other versions go."""
    stores = data_root() / "stores"
    folder = stores / f"{name}-{version}"
    if not folder.is_dir():
        mend = "set SIMMIM_DATA to another folder"
        write_folder(folder, write, title, stores / f"{name}.lock", f"{glob.escape(name)}-*", mend)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        kept = f"decoded pictures are kept in {folder} ({size:,.1f} MB)"
        line = f"{title}: {kept}; delete it at any time, or name another place in SIMMIM_DATA"
        print(line, file=told(), flush=True)
    return folder


def write_folder(folder: Path, write: Callable[[Path], object], title: str, lock: Path, others: str, mend: str) -> None:
    """Fill a folder that is not there, or empty, by `write(empty folder)`: whole or not at all.

    One process writes, others wait for its lock. others: which folders beside it go, as a killed process leaves them.
    `UserError` where the disk refuses."""
    with writing(folder, mend), locked(lock, f"the process that is building {title}", first=3):
        if folder.is_dir() and any(folder.iterdir()):  # another process has written it meanwhile
            return
        for other in set(folder.parent.glob(others)) - {folder}:
            shutil.rmtree(other, ignore_errors=True)
        temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
        try:
            temporary.mkdir()
            write(temporary)
            os.replace(temporary, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, plan: StorePlan, title: str) -> None:
    """Fill a folder. Plain writes: in a memory map, a full disk ends the process."""
    size, rows, histogram, skipped, splits = plan.image_size, 0, np.zeros((plan.channels, 256), np.int64), [], {}
    kinds = {"images": (np.uint8, plan.channels, size, size), "ids": (np.uint64,), "labels": (np.int64,)}
    kinds |= {"masks": (np.bool_, size, size)} if plan.masks else {}
    digests = {name: hashlib.sha256() for name in ("images", "ids", "labels", "masks")}
    crc = dict.fromkeys(kinds, 0)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in kinds}
        for name, file in files.items():
            _header(file, 0, *kinds[name])
        bar = stack.enter_context(progress(sum(map(len, plan.rows.values())), title))
        for split, numbers in plan.rows.items():
            start = rows
            for some in np.split(numbers, range(_CHUNK, len(numbers), _CHUNK)):
                chunk = plan.draw(split, some)
                counted = max(0, plan.reference - rows) if split == "train" else None
                for name, (dtype, *_) in kinds.items():
                    array = np.ascontiguousarray(getattr(chunk, name), dtype)
                    files[name].write(array.data)
                    digests[name].update(array[:counted])
                    crc[name] = zlib.crc32(array, crc[name])
                if split == "train":
                    histogram += levels(chunk.images[:counted])
                skipped += [list(item) for item in chunk.skipped]
                rows += len(chunk.ids)
                bar.update(len(some))
            splits[split] = [start, rows]
            if rows == start:
                reason = f"no image of its {split} split can be used at {size} px (such as {': '.join(skipped[-1])})"
                raise UserError(f"{title}: {reason}; give other pictures, or a smaller --image-size")
        for name, file in files.items():
            _header(file, rows, *kinds[name])
            file.flush()
            os.fsync(file.fileno())
    mean, std = statistics(histogram) if histogram.any() else (None, None)
    held = {name: end - start for name, (start, end) in splits.items() if name != "train"}
    digest = hashlib.sha256(json.dumps([held, plan.classes, size]).encode())
    digest.update(b"".join(d.digest() for d in digests.values()))
    info = {"images": rows, "image_size": size, "masks": plan.masks, "splits": splits, "classes": list(plan.classes)}
    info |= {"mean": mean, "std": std, "skipped": skipped, "notes": list(plan.notes), "crc32": crc}
    (folder / "index.json").write_text(sealed(info | {"digest": digest.hexdigest()[:16]}))


def _header(file: BinaryIO, rows: int, dtype: type, *shape: int) -> None:
    """Begin a .npy file; numpy pads its header so that the number of rows may grow in place."""
    file.seek(0)
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def levels(images: np.ndarray) -> np.ndarray:
    """How often each channel of images uint8 (..., C, H, W) has each level: int64 (C, 256)."""
    channels = range(images.shape[-3])
    return np.stack([np.bincount(images[..., channel, :, :].ravel(), minlength=256) for channel in channels])


def statistics(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel in 0..1 units, exact from counts (C, 256); std at least 1/255."""
    values, count = np.arange(256), histogram.sum(1)
    mean = (histogram * values).sum(1) / count
    variance = (histogram * values**2).sum(1) / count - mean**2
    return (mean / 255).tolist(), (np.sqrt(np.maximum(variance, 1)) / 255).tolist()


def progress(total: int, title: str, unit: str = "image") -> tqdm:
    """A bar on a terminal or in a notebook; elsewhere its text every ten seconds."""
    pause = 0.1 if told() is sys.stdout or sys.stderr.isatty() else 10
    options = {"unit": unit, "unit_scale": True, "leave": False, "mininterval": pause, "delay": pause}
    return tqdm(total=total, desc=title, file=told(), **options)
