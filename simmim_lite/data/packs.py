"""Packs: a data set in tar shards of the WebDataset layout, with an index that finds any picture. No torch here.

A folder of shards SPLIT-NNNNN.tar with KEY.jpg (or .png) and KEY.cls, KEY the id in hexadecimal, in the rank order of
manifests at seed 0; index/*.npy, a row a picture; and pack.json, which is written last."""

import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, check_writable, first_line
from ..processes import each, waiting
from . import decode
from .listing import Catalogue, picture_digest, rank
from .store import locked, progress, write_whole

FORMAT = 1
SPLITS = ("train", "val", "test")  # as the index numbers them
#: Arrays of the index. labels: -1 = unknown; split: into SPLITS; shard: into those of pack.json; offset and size: bytes
#: in the shard, size 0 = listed by the source, but not readable; digest: of the picture's bytes; names: the source's.
COLUMNS = ("ids", "labels", "split", "shard", "offset", "size", "digest", "names")


@dataclass(frozen=True)
class Pack:
    """An open pack; columns are memory-mapped. The reader of its pictures (see `Catalogue`)."""

    folder: Path
    info: dict  # pack.json
    columns: dict[str, np.ndarray]  # COLUMNS

    digest = property(lambda self: self.info["digest"])  # of ids, labels, splits and pictures

    def name(self, i: int) -> str:
        return bytes(self.columns["names"][i]).decode("utf-8", "surrogateescape")

    def title(self, i: int) -> str:
        return f"{self.name(i)} in {self.folder}"

    def content(self, i: int) -> bytes:
        """The bytes of picture i: JPEG or PNG. `OSError` where they are not all there."""
        offset, size = int(self.columns["offset"][i]), int(self.columns["size"][i])
        shard = self.folder / self.info["shards"][self.columns["shard"][i]]["name"]
        file = _opened(os.fspath(shard))  # held here: threads may push it out of the cache meanwhile
        content = os.pread(file.fileno(), size, offset)
        if len(content) != size or not size:
            raise OSError(f"{shard} ends before picture {self.name(i)}: run data verify")
        return content


@functools.lru_cache(maxsize=64)
def _opened(path: str) -> io.FileIO:
    return open(path, "rb", buffering=0)


def is_pack(folder: str | Path) -> bool:
    return (Path(folder).expanduser() / "pack.json").is_file()


def open_pack(folder: str | Path) -> Pack:
    """The pack in a folder; `UserError`, one line, where there is none, or one whose index is not whole."""
    root = Path(folder).expanduser().absolute()
    try:
        info = json.loads((root / "pack.json").read_text(encoding="utf-8"))
        columns = {name: np.load(root / "index" / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
        listed = {len(column) for column in columns.values()} == {info["listed"]}
        if info["format"] != FORMAT or not listed or _index_digest(columns, info["classes"]) != info["digest"]:
            raise ValueError("its index is not the one that pack.json was written for")
    except Exception as error:  # bytes that are not what they should be raise errors of many kinds
        mend = f"copy the pack again, or make it with simmim-lite data pack SOURCE {folder}"
        raise UserError(f"packed:{folder}: missing or damaged ({first_line(error)}); {mend}") from error
    return Pack(root, info, columns)


def of_pack(spec: str, place: str) -> Catalogue:
    pack = open_pack(place)
    with waiting(f"reading the index of {pack.folder}"):
        ids, labels, split, size = (np.asarray(pack.columns[c]) for c in ("ids", "labels", "split", "size"))
        splits = {name: np.flatnonzero(split == k) for k, name in enumerate(SPLITS) if (split == k).any()}
        names = [name.decode("utf-8", "surrogateescape") for name in pack.columns["names"].tolist()]
        passed = tuple((name, "could not be read when it was packed", 1) for name, _ in pack.info["left_out"])
        about = {"sizes": size, "left_out": size == 0, "passed": passed}
        parts = (names, ids, labels, tuple(pack.info["classes"]), splits, spec, pack, pack.digest, pack.digest)
        return Catalogue(*parts, **about)


def _index_digest(columns: dict[str, np.ndarray], classes: Iterable[str]) -> str:
    """Of classes, and of every column that does not depend on where a picture lies."""
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for name in ("ids", "labels", "split", "digest", "names"):
        total.update(np.ascontiguousarray(columns[name]).tobytes())
    return total.hexdigest()[:16]


def verify(folder: str | Path, *, workers: int | None = None) -> list[str]:
    """What is wrong with a pack, `KIND: WHAT` for each picture or shard, after reading every byte; [] if nothing."""
    pack = open_pack(folder)
    shards = pack.info["shards"]
    extra = {path.name for path in pack.folder.glob("*.tar")} - {shard["name"] for shard in shards}
    lines = [f"extra shard: {name}" for name in sorted(extra)]
    # threads suffice: reading and hashing let go of the interpreter
    with (
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
        progress(sum(shard["pictures"] for shard in shards), f"verify {pack.folder.name}") as advance,
    ):
        for shard, problems in zip(shards, pool.map(functools.partial(_wrong, pack), range(len(shards))), strict=True):
            lines += problems
            advance(shard["pictures"])
    return lines


def _wrong(pack: Pack, k: int) -> list[str]:
    columns, shard = pack.columns, pack.info["shards"][k]
    rows = np.flatnonzero((np.asarray(columns["shard"]) == k) & (np.asarray(columns["size"]) > 0))
    try:
        with (pack.folder / shard["name"]).open("rb", buffering=0) as file:
            same, length = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"], file.tell()
            place = ((i, int(columns["size"][i]), int(columns["offset"][i])) for i in rows)
            contents = ((i, os.pread(file.fileno(), size, offset)) for i, size, offset in place)
            changed = [pack.name(i) for i, content in contents if picture_digest(content) != columns["digest"][i]]
    except OSError:
        return [f"missing shard: {shard['name']}"]
    if same:
        return [f"index: {name} does not fit {shard['name']}, which is whole" for name in changed]
    lines = [f"changed bytes: {name} in {shard['name']}" for name in changed]
    if length != shard["bytes"] or not changed:
        lines.append(f"damaged shard: {shard['name']} ({length:,} bytes, {shard['bytes']:,} expected)")
    return lines


# --- making one


def pack(
    source: Catalogue,
    out: str | Path,
    *,
    short_side: int = 256,
    quality: int = 90,
    shard_pictures: int = 10_000,
    workers: int | None = None,
) -> Pack:
    """Pack what a source lists (`sources.catalogue(SPEC)`) into a folder.

    Pictures are shrunk to a short side of `short_side` px, smaller ones stay as they are; quality: of JPEG. Ids, labels
    and splits are the source's, so that its manifests draw the same images. What cannot be read is named in pack.json.
    Killed, the same call begins again. `UserError` for what the caller can mend."""
    settings = {"short_side": short_side, "quality": quality, "shard_pictures": shard_pictures}
    for name, least, most in (("short_side", 16, 1 << 16), ("quality", 1, 95), ("shard_pictures", 1, 1 << 30)):
        if not least <= settings[name] <= most:
            raise UserError(f"{name} is {settings[name]}: give a whole number from {least} to {most}")
    root = Path(out).expanduser().absolute()
    begun = root / "plan.json"  # there while a pack is unfinished
    if source.spec.startswith("packed:"):
        raise UserError(f"{source.spec} is a pack already; pack the source that it was made from")
    check_writable(root)
    source.say()
    plan = {"format": FORMAT, "source": source.digest, **settings}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / ".lock", f"pack {root.name}"):
            if is_pack(root) and open_pack(root).info["plan"] != plan:
                raise UserError(f"{root} holds another pack (of {open_pack(root).info['spec']}); give another folder")
            if set(os.listdir(root)) - {".lock"} and not begun.exists() and not is_pack(root):
                raise UserError(f"{root} is not empty: give a folder of its own")
            if not is_pack(root):
                begun.touch()
                for left in root.glob("*.tar"):  # of a process that was ended
                    left.unlink()
                _write(root, source, plan, workers)
            begun.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}; give a folder on another disk") from error
    return open_pack(root)


def _write(root: Path, source: Catalogue, plan: dict, workers: int | None) -> None:
    many, shards = plan["shard_pictures"], []
    for split in (s for s in SPLITS if s in source.splits):
        rows = source.splits[split]
        rows = rows[rank(source.ids[rows], source.labels[rows] if (source.labels[rows] >= 0).all() else None, 0)]
        shards += [(f"{split}-{n // many:05d}.tar", rows[n : n + many]) for n in range(0, len(rows), many)]
    done: list[dict] = [{}] * len(shards)
    with progress(sum(len(rows) for _, rows in shards), f"pack {root.name}") as advance:
        at_once = max(1, min(len(shards), workers or os.cpu_count() or 1))
        for k, done[k] in each(_pack_shard, range(len(shards)), at_once, _begin, root, source, plan, shards):
            advance(len(shards[k][1]))
    order, lengths = np.concatenate([rows for _, rows in shards]), [len(rows) for _, rows in shards]
    split = [SPLITS.index(name.partition("-")[0]) for name, _ in shards]
    columns = {"ids": source.ids[order], "labels": source.labels[order].astype(np.int64)}
    columns["split"] = np.repeat(np.array(split, np.uint8), lengths)
    columns["shard"] = np.repeat(np.arange(len(shards), dtype=np.int32), lengths)
    offset, size, columns["digest"] = np.concatenate([shard["own"] for shard in done]).T
    columns |= {"offset": offset.astype(np.int64), "size": size.astype(np.int64)}
    columns["names"] = np.array([source.names[i].encode("utf-8", "surrogateescape") for i in order])
    left_out = [item for shard in done for item in shard["left_out"]]
    if not columns["size"].any():
        first = ": ".join(left_out[0])
        raise UserError(f"{source.spec}: none of its {len(order):,} pictures can be read (first: {first})")
    info = {"format": FORMAT, "spec": source.spec, "plan": plan, "listed": len(order)}
    info |= {"pictures": int((columns["size"] > 0).sum()), "classes": list(source.classes)}
    info |= {"digest": _index_digest(columns, source.classes), "shards": [shard["about"] for shard in done]}
    (root / "index").mkdir(exist_ok=True)
    for name, column in columns.items():
        np.save(root / "index" / f"{name}.npy", column)
    write_whole(root / "pack.json", (json.dumps(info | {"left_out": left_out}, indent=1) + "\n").encode())


_job: tuple[Path, Catalogue, dict, list]  # of a worker process


def _begin(*job: object) -> None:
    global _job
    _job = job


def _pack_shard(k: int) -> dict:
    """In a worker: a shard, its part of the index, what pack.json says about it, and pictures that are left out."""
    root, source, plan, shards = _job
    name, rows = shards[k]
    own, left_out = np.zeros((len(rows), 3), np.uint64), []  # offset, size, digest
    with tarfile.open(root / name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n, i in enumerate(rows):
            try:
                content, kind = _encoded(source.reader.content(int(i)), plan["short_side"], plan["quality"])
            except Exception as error:  # decoders raise errors of many kinds
                left_out.append([source.names[i], first_line(error)])
                continue
            label = {"cls": str(source.labels[i]).encode()} if source.labels[i] >= 0 else {}
            for ending, data in (label | {kind: content}).items():
                member = tarfile.TarInfo(f"{int(source.ids[i]):016x}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            # the picture is the last of its sample, padded to whole blocks
            own[n] = tar.offset - -(-len(content) // 512) * 512, len(content), picture_digest(content)
    with open(root / name, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"name": name, "pictures": len(rows) - len(left_out), "bytes": file.tell(), "sha256": digest}
    return {"own": own, "about": about, "left_out": left_out}


def _encoded(content: decode.Source, short_side: int, quality: int) -> tuple[bytes, str]:
    """A picture's bytes, and `jpg` or `png`. A JPEG that is small enough, upright, RGB or grey is taken as it is; else
    the picture is shrunk and encoded: as PNG where it was no JPEG and is not shrunk, so that nothing is lost."""
    with decode.opened(content) as image:
        jpeg, small = isinstance(content, bytes) and image.format == "JPEG", min(image.size) <= short_side
        if jpeg and small and image.mode in ("RGB", "L") and decode.turn(image) is None:
            image.load()
            return content, "jpg"
        if not small:
            image.draft(None, (2 * short_side, 2 * short_side))
        image = decode.read(image)
    factor = short_side / min(image.size)
    if factor < 1:
        sides = [max(1, round(side * factor)) for side in image.size]
        image, jpeg = image.resize(sides, Image.Resampling.BICUBIC, reducing_gap=2.0), True
    held = io.BytesIO()
    image.save(held, "JPEG" if jpeg else "PNG", **({"quality": quality} if jpeg else {}))
    return held.getvalue(), "jpg" if jpeg else "png"
