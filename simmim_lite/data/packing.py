"""Makes packs (`packs`): pictures shrunk and encoded by several processes, a shard at a time. No torch here."""

import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, check_writable, first_line
from ..processes import each, waiting
from . import decode
from .catalogue import Catalogue, say_layout
from .listing import picture_digest, rank
from .packs import COLUMNS, FORMAT, SPLITS, Pack, index_digest, is_pack, open_pack
from .sources import catalogue
from .store import locked, progress, write_whole

_SAMPLE = 48  # pictures encoded beforehand, to know how much room all of them take
_PLAN = "plan.json"  # there while a pack is unfinished: what it is going to be


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are kept."""

    short_side: int = 256  # pixels; larger pictures are shrunk to it, smaller ones stay as they are
    quality: int = 90  # of JPEG, 1 to 95
    shard_pictures: int = 10_000

    def __post_init__(self) -> None:
        for name, least, most in (("short_side", 16, 1 << 16), ("quality", 1, 95), ("shard_pictures", 1, 1 << 30)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name} is {getattr(self, name)}: give a whole number from {least} to {most}")


@dataclass(frozen=True)
class _Job:
    root: Path
    found: Catalogue
    settings: Settings
    shards: list[tuple[str, np.ndarray]]  # name and pictures of each: split by split, in rank order


def pack(spec: str, out: str | Path, *, settings: Settings | None = None, workers: int | None = None) -> Pack:
    """Pack a source (`imagefolder:DIR`, `inaturalist:DIR`, `torchvision:NAME`, `hf:NAME`) into a folder.

    Ids, labels, classes and splits are the source's, so that its manifests draw the same images. What cannot be read is
    left out, and named in pack.json. Killed, the same call begins again. `UserError`, one line, for a folder that holds
    something else, and a disk without room.
    """
    settings, root = settings or Settings(), Path(out).expanduser().absolute()
    try:
        import webdataset  # noqa: F401 (workers write with it)
    except ImportError as error:
        raise UserError('packs are written by the package webdataset: pip install "simmim-lite[pack]"') from error
    if spec.startswith("packed:"):
        raise UserError(f"{spec} is a pack already; pack the source that it was made from")
    check_writable(root)
    begun = is_pack(root) or (root / _PLAN).exists()
    if ":" in spec and root.is_dir() and not begun and set(os.listdir(root)) - {".lock"}:
        raise UserError(f"{root} is not empty: give a folder of its own")
    with waiting(f"listing the pictures of {spec}"):
        found = catalogue(spec)
    say_layout(found)
    plan = {"format": FORMAT, "source": found.digest, **vars(settings)}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / ".lock", f"pack {root.name}"):
            if is_pack(root):
                done = open_pack(root)
                if done.info["plan"] != plan:
                    raise UserError(f"{root} holds another pack (of {done.info['spec']}); give another folder")
                return done
            for left in (*root.glob("*.tar"), *root.glob(".*.tar.*")):  # of a process that was ended
                left.unlink()
            write_whole(root / _PLAN, json.dumps(plan).encode())
            job = _Job(root, found, settings, _shards(found, settings))
            _check_room(job)
            _finish(job, plan, _packed(job, workers))
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}; give a folder on another disk") from error
    return open_pack(root)


def _shards(found: Catalogue, settings: Settings) -> list[tuple[str, np.ndarray]]:
    parts, shards, many = found.parts, [], settings.shard_pictures
    for split in SPLITS:
        rows = parts.splits.get(split, np.empty(0, np.int64))
        labels = parts.labels[rows] if len(rows) and (parts.labels[rows] >= 0).all() else None
        rows = rows[rank(parts.ids[rows], labels, 0)]
        shards += [(f"{split}-{n // many:05d}.tar", rows[n : n + many]) for n in range(0, len(rows), many)]
    return shards


def _check_room(job: _Job) -> None:
    """`UserError` where the disk has no room, by the size of a few pictures spread over the source."""
    count = sum(len(rows) for _, rows in job.shards)
    spread = np.linspace(0, len(job.found.parts.names) - 1, _SAMPLE).astype(int)
    sizes = [len(content) for i in np.unique(spread) if (content := _encoded(job.found, int(i), job.settings)[0])]
    need, free = 1.05 * count * (np.mean(sizes or [0]) + 2048), shutil.disk_usage(job.root).free
    if need > free:
        raise UserError(
            f"cannot pack into {job.root}: about {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; give a "
            "folder on a larger disk"
        )


def _packed(job: _Job, workers: int | None) -> list[tuple[dict[str, np.ndarray], dict]]:
    """What `_pack_shard` returns of every shard, written by several processes."""
    at_once = max(1, min(len(job.shards), workers or os.cpu_count() or 1))
    done: dict[int, tuple] = {}
    with progress(sum(len(rows) for _, rows in job.shards), f"pack {job.root.name}") as advance:
        for k, done[k] in each(_pack_shard, range(len(job.shards)), at_once, _begin, job):
            advance(len(job.shards[k][1]))
    return [done[k] for k in sorted(done)]


_job: _Job | None = None  # of a worker process


def _begin(job: _Job) -> None:
    global _job
    _job = job


class _Summed:
    """A file that is written once from start to end, with the sum of all that went through."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file, self.sum, self.size = file, hashlib.sha256(), 0

    def write(self, part: bytes) -> int:
        self.sum.update(part)
        self.size += len(part)
        return self.file.write(part)


_OWN = ("offset", "size", "digest")  # the columns that only the shard itself knows


def _pack_shard(k: int) -> tuple[dict[str, np.ndarray], dict]:
    """In a worker: write a shard; its columns, and its sha256, bytes and left-out pictures (number, reason)."""
    import webdataset

    (name, rows), parts = _job.shards[k], _job.found.parts
    columns = {column: np.zeros(len(rows), COLUMNS[column]) for column in _OWN}
    left_out = []
    with open(_job.root / name, "wb") as file:
        stream = _Summed(file)
        options = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}  # the same bytes each time
        with webdataset.TarWriter(stream, **options) as tar:
            for n, i in enumerate(rows):
                content, kind = _encoded(_job.found, int(i), _job.settings)
                if content is None:
                    left_out.append((n, kind))
                    continue
                sample = {"__key__": f"{int(parts.ids[i]):016x}", kind: content}
                if parts.labels[i] >= 0:
                    sample["cls"] = str(parts.labels[i]).encode()
                tar.write(sample)
                # the picture is the last of its sample, padded to whole blocks
                columns["offset"][n] = tar.tarstream.offset - -(-len(content) // 512) * 512
                columns["size"][n], columns["digest"][n] = len(content), picture_digest(content)
        file.flush()
        os.fsync(file.fileno())
    return columns, {"sha256": stream.sum.hexdigest(), "bytes": stream.size, "left_out": left_out}


def _encoded(found: Catalogue, i: int, settings: Settings) -> tuple[bytes | None, str]:
    """A picture's bytes and whether they are `jpg` or `png`; or None and why it cannot be read.

    A JPEG that is small enough, upright, RGB or grey is taken as it is. Else the picture is shrunk and encoded: as PNG
    where it was no JPEG and is not shrunk, so that nothing is lost, as JPEG in all other cases.
    """
    try:
        content = found.reader.content(i)
        if content is None:
            return _written(found.picture(i), settings, jpeg=False)
        with decode.opened(content) as image:
            jpeg, small = image.format == "JPEG", min(image.size) <= settings.short_side
            if jpeg and small and image.mode in ("RGB", "L") and decode.turn(image) is None:
                image.load()
                return content, "jpg"
            if not small:
                image.draft(None, (2 * settings.short_side, 2 * settings.short_side))
            return _written(decode.read(image), settings, jpeg=jpeg)
    except Exception as error:  # decoders raise errors of many kinds
        return None, first_line(error)


def _written(image: Image.Image, settings: Settings, jpeg: bool) -> tuple[bytes, str]:
    factor = settings.short_side / min(image.size)
    if factor < 1:
        sides = [max(1, round(side * factor)) for side in image.size]
        image, jpeg = image.resize(sides, Image.Resampling.BICUBIC, reducing_gap=2.0), True
    held = io.BytesIO()
    if jpeg:
        image.save(held, "JPEG", quality=settings.quality)
    else:
        image.save(held, "PNG")
    return held.getvalue(), "jpg" if jpeg else "png"


def _finish(job: _Job, plan: dict, done: list[tuple[dict[str, np.ndarray], dict]]) -> None:
    """Write the index, then pack.json, which makes a pack of the folder."""
    names, rows = zip(*job.shards, strict=True)
    order, parts, lengths = np.concatenate(rows), job.found.parts, list(map(len, rows))
    own, about = zip(*done, strict=True)
    split = [SPLITS.index(name.partition("-")[0]) for name in names]
    columns = {column: np.concatenate([some[column] for some in own]) for column in _OWN}
    columns |= {"ids": parts.ids[order], "labels": parts.labels[order].astype(np.int64)}
    columns["split"] = np.repeat(np.array(split, np.uint8), lengths)
    columns["shard"] = np.repeat(np.arange(len(names), dtype=np.int32), lengths)
    columns["names"] = np.array([parts.names[i].encode("utf-8", "surrogateescape") for i in order])
    left_out = [[parts.names[some[n]], why] for some, of in zip(rows, about, strict=True) for n, why in of["left_out"]]
    if not columns["size"].any():
        first = ": ".join(left_out[0])
        raise UserError(f"{job.found.spec}: none of its {len(order):,} pictures can be read (first: {first})")
    info = {
        "format": FORMAT,
        "spec": job.found.spec,
        "plan": plan,
        "listed": len(order),
        "pictures": int((columns["size"] > 0).sum()),
        "classes": list(parts.classes),
        "digest": index_digest(columns, parts.classes),
        "shards": [
            {"name": name, "pictures": n - len(of["left_out"]), "bytes": of["bytes"], "sha256": of["sha256"]}
            for name, n, of in zip(names, lengths, about, strict=True)
        ],
        "left_out": left_out,
    }
    (job.root / "index").mkdir(exist_ok=True)
    for name, column in columns.items():
        held = io.BytesIO()
        np.save(held, column)
        write_whole(job.root / "index" / f"{name}.npy", held.getvalue())
    write_whole(job.root / "pack.json", (json.dumps(info, indent=1) + "\n").encode())
    shutil.rmtree(job.root / "columns", ignore_errors=True)  # of an older version that was ended
    (job.root / _PLAN).unlink(missing_ok=True)
