"""Makes packs (`packs`): pictures shrunk and encoded by several processes, a shard at a time. No torch here."""

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
from .catalogue import Catalogue, catalogue, say_layout
from .packs import COLUMNS, FORMAT, SPLITS, Pack, Summed, index_digest, is_pack, open_pack, picture_digest
from .ranking import rank
from .store import locked, progress, write_whole

_SAMPLE = 48  # pictures encoded beforehand, to know how much room all of them take
_PLAN = "plan.json"  # what an unfinished pack is going to be


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
    left out, and named in pack.json. Killed, the same call goes on after the last whole shard, and ends with the same
    bytes. `UserError`, one line, for a folder that holds something else, and a disk without room.
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
            _begin_plan(root, plan)
            (root / "columns").mkdir(exist_ok=True)
            shards = _shards(found, settings)
            _pack_missing(root, found, settings, shards, workers)
            _finish(root, found, plan, shards)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}; give a folder on another disk") from error
    return open_pack(root)


def _begin_plan(root: Path, plan: dict) -> None:
    path = root / _PLAN
    _remove_unfinished(root)
    if path.exists():
        if json.loads(path.read_text()) != plan:
            raise UserError(
                f"{root} holds an unfinished pack of other settings or pictures: delete it, or give another"
            )
        return
    write_whole(path, json.dumps(plan).encode())


def _remove_unfinished(root: Path) -> None:
    """What a process that was ended has left."""
    for unfinished in root.glob(".*.tar.*"):
        unfinished.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Shard:
    name: str
    split: int
    rows: np.ndarray  # of the catalogue


def _shards(found: Catalogue, settings: Settings) -> list[_Shard]:
    """Which pictures go where: split by split, in rank order."""
    parts, shards = found.parts, []
    for k, split in enumerate(SPLITS):
        rows = parts.train if split == "train" else parts.held.get(split, np.empty(0, np.int64))
        labels = parts.labels[rows] if len(rows) and (parts.labels[rows] >= 0).all() else None
        rows = rows[rank(parts.ids[rows], labels, 0)]
        for n, start in enumerate(range(0, len(rows), settings.shard_pictures)):
            shards.append(_Shard(f"{split}-{n:05d}.tar", k, rows[start : start + settings.shard_pictures]))
    return shards


def _pack_missing(root: Path, found: Catalogue, settings: Settings, shards: list[_Shard], workers: int | None) -> None:
    missing = [k for k, shard in enumerate(shards) if not _column_file(root, shard).exists()]
    _check_room(root, found, settings, sum(len(shards[k].rows) for k in missing))
    total = sum(len(shard.rows) for shard in shards)
    at_once = max(1, min(len(missing), workers or os.cpu_count() or 1))
    job, kept = (root, found, settings, shards), f"whole shards are kept in {root}"
    try:
        with progress(total, f"pack {root.name}") as advance:
            advance(total - sum(len(shards[k].rows) for k in missing))
            for k, _ in each(_pack_shard, missing, at_once, _begin, *job, kept=kept):
                advance(len(shards[k].rows))
    finally:
        _remove_unfinished(root)


def _check_room(root: Path, found: Catalogue, settings: Settings, pictures: int) -> None:
    """`UserError` where the disk has no room, by the size of a few pictures spread over the source."""
    spread = np.linspace(0, len(found.parts.names) - 1, _SAMPLE).astype(int)
    sizes = [len(content) for i in np.unique(spread) if (content := _encoded(found, int(i), settings)[0])]
    if not sizes:
        return
    need, free = 1.05 * pictures * (np.mean(sizes) + 2048), shutil.disk_usage(root).free
    if need > free:
        raise UserError(
            f"cannot pack into {root}: about {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; give a "
            "folder on a larger disk"
        )


_job: tuple[Path, Catalogue, Settings, list[_Shard]] | None = None  # of a worker process


def _begin(*job: object) -> None:
    global _job
    _job = job


def _pack_shard(k: int) -> None:
    """In a worker: write a shard, then its columns, both whole or not at all."""
    import webdataset

    root, found, settings, shards = _job
    shard, parts = shards[k], found.parts
    columns = {name: np.zeros(len(shard.rows), kind) for name, kind in COLUMNS.items() if name in _OWN}
    reasons, path = [], root / shard.name
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            stream = Summed(file)
            options = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}  # the same bytes each time
            with webdataset.TarWriter(stream, **options) as tar:
                for n, i in enumerate(shard.rows):
                    content, kind = _encoded(found, int(i), settings)
                    if content is None:
                        reasons.append((n, kind))
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
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    said = {"sha256": stream.sum.hexdigest(), "bytes": stream.size, "left_out": reasons}
    held = io.BytesIO()
    np.savez(held, said=np.frombuffer(json.dumps(said).encode(), np.uint8), **columns)
    write_whole(_column_file(root, shard), held.getvalue())


_OWN = ("offset", "size", "digest")  # the columns that only the shard itself knows


def _encoded(found: Catalogue, i: int, settings: Settings) -> tuple[bytes | None, str]:
    """A picture's bytes and whether they are `jpg` or `png`; or None and why it cannot be read.

    A JPEG that is small enough, upright, RGB or grey is taken as it is. Else the picture is shrunk and encoded: as PNG
    where it was no JPEG and is not shrunk, so that nothing is lost, as JPEG in all other cases.
    """
    try:
        content = found.content(i)
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


def _finish(root: Path, found: Catalogue, plan: dict, shards: list[_Shard]) -> None:
    """Write the index, then pack.json, which makes a pack of the folder; then what is no longer needed goes."""
    order, parts = np.concatenate([shard.rows for shard in shards]), found.parts
    own = [dict(np.load(_column_file(root, shard))) for shard in shards]
    columns = {name: np.concatenate([each[name] for each in own]) for name in _OWN}
    columns |= {"ids": parts.ids[order], "labels": parts.labels[order].astype(np.int64)}
    lengths = [len(shard.rows) for shard in shards]
    columns["split"] = np.repeat(np.array([shard.split for shard in shards], np.uint8), lengths)
    columns["shard"] = np.repeat(np.arange(len(shards), dtype=np.int32), lengths)
    columns["names"] = np.array([parts.names[i].encode("utf-8", "surrogateescape") for i in order])
    if not columns["size"].any():
        raise UserError(f"{found.spec}: none of its {len(order):,} pictures can be read; see {root}")
    said = [json.loads(bytes(each["said"])) for each in own]
    starts = np.cumsum([0, *lengths])
    left_out = [
        [parts.names[order[start + n]], reason]
        for start, each in zip(starts, said, strict=False)
        for n, reason in each["left_out"]
    ]
    info = {
        "format": FORMAT,
        "spec": found.spec,
        "plan": plan,
        "listed": len(order),
        "pictures": int((columns["size"] > 0).sum()),
        "classes": list(parts.classes),
        "digest": index_digest(columns, parts.classes),
        "shards": [
            {"name": s.name, "pictures": len(s.rows) - len(e["left_out"]), "bytes": e["bytes"], "sha256": e["sha256"]}
            for s, e in zip(shards, said, strict=True)
        ],
        "left_out": left_out,
    }
    (root / "index").mkdir(exist_ok=True)
    for name, column in columns.items():
        held = io.BytesIO()
        np.save(held, column)
        write_whole(root / "index" / f"{name}.npy", held.getvalue())
    write_whole(root / "pack.json", (json.dumps(info, indent=1) + "\n").encode())
    shutil.rmtree(root / "columns", ignore_errors=True)
    (root / _PLAN).unlink(missing_ok=True)


def _column_file(root: Path, shard: _Shard) -> Path:
    """It is there when its shard is whole."""
    return root / "columns" / f"{shard.name}.npz"
