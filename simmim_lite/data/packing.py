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
_OWN = ("offset", "size", "digest")  # the columns that only the shard itself knows


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
        source = catalogue(spec)
    say_layout(source)
    plan = {"format": FORMAT, "source": source.digest, **vars(settings)}
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
            _check_room(root, source, settings)
            _write(root, source, settings, plan, workers)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}; give a folder on another disk") from error
    return open_pack(root)


def _check_room(root: Path, source: Catalogue, settings: Settings) -> None:
    """`UserError` where the disk has no room, by the size of a few pictures spread over the source."""
    count = len(source.parts.names)
    spread = np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int))
    size = np.mean([len(_encoded(source, int(i), settings)[0] or b"") for i in spread])
    need, free = 1.05 * count * (size + 2048), shutil.disk_usage(root).free
    if need > free:
        have = f"about {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise UserError(f"cannot pack into {root}: {have}; give a folder on a larger disk")


def _write(root: Path, source: Catalogue, settings: Settings, plan: dict, workers: int | None) -> None:
    """Write the shards, split by split in rank order, then the index, then pack.json, which makes a pack of it all."""
    parts, many, shards = source.parts, settings.shard_pictures, []
    for split in (s for s in SPLITS if s in parts.splits):
        rows = parts.splits[split]
        labels = parts.labels[rows] if (parts.labels[rows] >= 0).all() else None
        rows = rows[rank(parts.ids[rows], labels, 0)]
        shards += [(f"{split}-{n // many:05d}.tar", rows[n : n + many]) for n in range(0, len(rows), many)]
    done: list[dict] = [{}] * len(shards)
    with progress(sum(len(rows) for _, rows in shards), f"pack {root.name}") as advance:
        at_once = max(1, min(len(shards), workers or os.cpu_count() or 1))
        for k, done[k] in each(_pack_shard, range(len(shards)), at_once, _begin, root, source, settings, shards):
            advance(len(shards[k][1]))

    order, lengths = np.concatenate([rows for _, rows in shards]), [len(rows) for _, rows in shards]
    columns = {name: np.concatenate([shard[name] for shard in done]) for name in _OWN}
    columns |= {"ids": parts.ids[order], "labels": parts.labels[order].astype(np.int64)}
    split = [SPLITS.index(name.partition("-")[0]) for name, _ in shards]
    columns["split"] = np.repeat(np.array(split, np.uint8), lengths)
    columns["shard"] = np.repeat(np.arange(len(shards), dtype=np.int32), lengths)
    columns["names"] = np.array([parts.names[i].encode("utf-8", "surrogateescape") for i in order])
    left_out = [item for shard in done for item in shard["left_out"]]
    if not columns["size"].any():
        first = ": ".join(left_out[0])
        raise UserError(f"{source.spec}: none of its {len(order):,} pictures can be read (first: {first})")
    info = {
        "format": FORMAT,
        "spec": source.spec,
        "plan": plan,
        "listed": len(order),
        "pictures": int((columns["size"] > 0).sum()),
        "classes": list(parts.classes),
        "digest": index_digest(columns, parts.classes),
        "shards": [shard["about"] for shard in done],
        "left_out": left_out,
    }
    (root / "index").mkdir(exist_ok=True)
    for name, column in columns.items():
        held = io.BytesIO()
        np.save(held, column)
        write_whole(root / "index" / f"{name}.npy", held.getvalue())
    write_whole(root / "pack.json", (json.dumps(info, indent=1) + "\n").encode())
    (root / _PLAN).unlink(missing_ok=True)


_job: tuple[Path, Catalogue, Settings, list]  # of a worker process


def _begin(*job: object) -> None:
    global _job
    _job = job


def _pack_shard(k: int) -> dict:
    """In a worker: write a shard; its columns, what pack.json says about it, and left-out pictures (name, reason)."""
    import webdataset

    root, source, settings, shards = _job
    (name, rows), parts = shards[k], source.parts
    columns = {column: np.zeros(len(rows), COLUMNS[column]) for column in _OWN}
    left_out = []
    with open(root / name, "wb") as file:
        options = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}  # the same bytes each time
        with webdataset.TarWriter(file, **options) as tar:
            for n, i in enumerate(rows):
                content, kind = _encoded(source, int(i), settings)
                if content is None:
                    left_out.append([parts.names[i], kind])
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
    with open(root / name, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"name": name, "pictures": len(rows) - len(left_out), "bytes": file.tell(), "sha256": digest}
    return {**columns, "about": about, "left_out": left_out}


def _encoded(source: Catalogue, i: int, settings: Settings) -> tuple[bytes | None, str]:
    """A picture's bytes and whether they are `jpg` or `png`; or None and why it cannot be read.

    A JPEG that is small enough, upright, RGB or grey is taken as it is. Else the picture is shrunk and encoded: as PNG
    where it was no JPEG and is not shrunk, so that nothing is lost, as JPEG in all other cases.
    """
    try:
        content, jpeg = source.reader.content(i), False
        if content is None:
            image = source.picture(i)
        else:
            with decode.opened(content) as image:
                jpeg, small = image.format == "JPEG", min(image.size) <= settings.short_side
                if jpeg and small and image.mode in ("RGB", "L") and decode.turn(image) is None:
                    image.load()
                    return content, "jpg"
                if not small:
                    image.draft(None, (2 * settings.short_side, 2 * settings.short_side))
                image = decode.read(image)
        factor = settings.short_side / min(image.size)
        if factor < 1:
            sides = [max(1, round(side * factor)) for side in image.size]
            image, jpeg = image.resize(sides, Image.Resampling.BICUBIC, reducing_gap=2.0), True
        held = io.BytesIO()
        image.save(held, "JPEG" if jpeg else "PNG", **({"quality": settings.quality} if jpeg else {}))
        return held.getvalue(), "jpg" if jpeg else "png"
    except Exception as error:  # decoders raise errors of many kinds
        return None, first_line(error)
