"""Which images a data set holds: subsets by rule, nested, checked against the disk by digest. No torch here.

A manifest is a YAML file: the source, the rule that ranks it (a hash of seed, class and path, so 10 % lies inside 20 %)
and the subsets. `build` fills in the digests and writes the list of paths beside it (NAME.paths.gz)."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from ..errors import UserError, check_writable, unknown
from ..processes import waiting
from . import packs, scenes
from .listing import Split, rank
from .sources import catalogue
from .store import write_whole

SHIPPED = Path(__file__).resolve().parents[2] / "data_manifests"
_FIELDS = {"name", "source", "images", "classes", "rule", "seed", "note", "digest", "subsets"}


def check_count(split: Split, n: int | None) -> None:
    """`UserError` where a split does not hold n images."""
    if n is not None and not 0 < n <= len(split):
        raise UserError(f"images {n}: {split.name} holds {len(split)} images; ask for 1 to {len(split)}")


def subset(split: Split, n: int | None, seed: int) -> np.ndarray:
    """The first n images of a split by rank (all of them for None): int64 (n,), indices into the split."""
    check_count(split, n)
    return rank(split.ids, split.labels, seed, split.block)[:n]


def read(manifest: str | Path) -> dict:
    """A manifest by path, or by the name of one that the project ships; one line for a file that is none."""
    path = _find(manifest)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not {"name", "source", "seed", "subsets"} <= content.keys() <= _FIELDS:
            raise ValueError(f"it needs name, source, seed and subsets, and may have {', '.join(sorted(_FIELDS))}")
        if content.get("rule", "hash") != "hash" or content["source"] not in ("imagefolder", "scenes"):
            raise ValueError("rule must be hash, and source imagefolder or scenes")
        if content["source"] == "scenes" and not isinstance(content.get("images"), int):
            raise ValueError("scenes have no end: images must state how many of them are ranked")
        if any(("fraction" in part) == ("count" in part) for part in content["subsets"]):
            raise ValueError("each subset needs either a fraction or a count")
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a manifest ({str(error).splitlines()[0]})") from error
    return content


def build(manifest: str | Path, folder: str | Path | None = None, out: str | Path | None = None) -> dict:
    """Rank the images of a folder (none for scenes), fill in counts and digests, write the manifest to `out` (default:
    over itself) with its list of paths beside it, and return it. A count that the manifest already states must hold."""
    content, path = read(manifest), Path(out) if out is not None else _find(manifest)
    check_writable(path)
    names, ids, labels, classes = _population(content, folder)
    for what, number in (("images", len(names)), ("classes", classes)):
        if content.get(what) not in (None, number):
            there = f"{folder or 'scenes'} holds {number:,} {what} to train on, the manifest expects {content[what]:,}"
            raise UserError(f"{content['name']}: {there}; complete the data, or set {what}: null in {_find(manifest)}")
        content[what] = number
    content["digest"] = _digest(ids)
    content["subsets"] = [part | _drawn(part, ids, labels, content["seed"]) for part in content["subsets"]]
    try:
        if folder is not None:
            lines = "\n".join(names).encode("utf-8", "surrogateescape")
            write_whole(_list_path(path), gzip.compress(lines, mtime=0))
        write_whole(path, yaml.safe_dump(content, sort_keys=False, width=120).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error
    return content


def built(manifest: str | Path) -> dict:
    """As `read`, of a manifest that has its digests; `UserError` for one that has none yet."""
    content = read(manifest)
    if not content.get("digest"):
        raise UserError(f"{_find(manifest)}: has no digest yet; run manifest build with the folder first")
    return content


def verify(manifest: str | Path, folder: str | Path | None = None) -> list[str]:
    """What differs between a built manifest and a folder, a line each (missing, extra); [] if nothing."""
    content, path = built(manifest), _find(manifest)
    names, ids, labels, _ = _population(content, folder)
    if _digest(ids) == content["digest"]:
        drawn = [part | _drawn(part, ids, labels, content["seed"]) for part in content["subsets"]]
        sizes = [part.get("fraction", part.get("count")) for part in content["subsets"] if part not in drawn]
        return [f"subset {size}: the rule draws other images than {path} states; build it again" for size in sizes]
    if folder is None or not _list_path(path).exists():
        return [
            f"digest differs: {folder or 'scenes'} holds {len(names):,} images, {path} states {content['images']:,}"
        ]
    listed = gzip.decompress(_list_path(path).read_bytes()).decode("utf-8", "surrogateescape").split("\n")
    missing, extra = sorted(set(listed) - set(names)), sorted(set(names) - set(listed))
    return [f"missing: {name}" for name in missing] + [f"extra: {name}" for name in extra]


def _population(content: dict, folder: str | Path | None) -> tuple[list[str], np.ndarray, np.ndarray | None, int]:
    """Names, ids and labels of the training images that a manifest speaks of, and the number of their classes."""
    if (content["source"] == "scenes") != (folder is None):
        raise UserError(f"{content['name']}: is about {content['source']}: give a folder of images to that alone")
    if folder is None:
        ids = np.arange(content["images"], dtype=np.uint64)
        return [str(i) for i in ids], ids, scenes.labels(0, ids), len(scenes.CLASSES)
    with waiting(f"listing the pictures of {folder}"):
        found = catalogue(f"{'packed' if packs.is_pack(folder) else 'imagefolder'}:{folder}")
    laid = replace(found, left_out=None).split()  # what it lists, readable or not
    laid.say()
    labels = laid.labels[laid.train] if laid.classes else None
    return [laid.names[i] for i in laid.train], laid.ids[laid.train], labels, len(laid.classes)


def _drawn(part: dict, ids: np.ndarray, labels: np.ndarray | None, seed: int) -> dict:
    """Number of images and digest of a subset."""
    n = part["count"] if "count" in part else round(part["fraction"] * len(ids))
    if not 0 < n <= len(ids):
        raise UserError(f"a subset of {n:,} images cannot be drawn from {len(ids):,}; correct the manifest")
    return {"images": n, "digest": _digest(ids[rank(ids, labels, seed)[:n]])}


def _digest(ids: np.ndarray) -> str:
    return hashlib.sha256(np.sort(ids).astype("<u8").tobytes()).hexdigest()[:16]


def _find(manifest: str | Path) -> Path:
    path = Path(manifest).expanduser()
    if path.is_file():
        return path
    shipped = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
    if str(manifest) in shipped:
        return SHIPPED / f"{manifest}.yaml"
    raise unknown("manifest", manifest, shipped)


def _list_path(path: Path) -> Path:
    return path.with_suffix(".paths.gz")
