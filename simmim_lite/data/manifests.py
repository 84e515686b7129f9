"""Which images a data set holds: subsets by rule, nested, checked against the disk by digest. No torch here.

A manifest is a YAML file: where the images are, how many, the rule that ranks them (a hash of seed, class and path, so
10 % lies inside 20 % lies inside 50 %) and the subsets. `build` fills in the digests and writes the list of paths
beside the manifest (NAME.paths.gz); with that list `verify` can say which file differs, and not only that one does.
"""

import gzip
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from ..errors import UserError, check_writable, unknown
from ..processes import waiting
from . import packs, scenes
from .catalogue import say_layout
from .listing import picture_digest, rank
from .sources import catalogue
from .store import write_whole

SHIPPED = Path(__file__).resolve().parents[2] / "data_manifests"
_FIELDS = {"name", "source", "images", "classes", "rule", "seed", "note", "digest", "subsets"}


def check_count(split, n: int | None) -> None:
    """`UserError` where a `Split` does not hold n images."""
    if n is not None and not 0 < n <= len(split):
        raise UserError(f"images {n}: {split.name} holds {len(split)} images; ask for 1 to {len(split)}")


def subset(split, n: int | None, seed: int) -> np.ndarray:
    """The first n images of a `Split` by rank (all of them for None): int64 (n,), indices into the split."""
    check_count(split, n)
    return rank(split.ids, split.labels, seed, split.block)[:n]


def read(manifest: str | Path) -> dict:
    """A manifest by path, or by the name of one that the project ships; one line for a file that is none."""
    path = _find(manifest)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable manifest ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or not {"name", "source", "seed", "subsets"} <= content.keys():
        raise UserError(f"{path}: not a manifest; it needs at least name, source, seed and subsets")
    for name in content:
        if name not in _FIELDS:
            raise unknown(f"field in {path}:", name, sorted(_FIELDS))
    if content.get("rule", "hash") != "hash" or content["source"] not in ("imagefolder", "scenes"):
        raise UserError(f"{path}: rule must be hash, and source imagefolder or scenes")
    if content["source"] == "scenes" and not isinstance(content.get("images"), int):
        raise UserError(f"{path}: scenes have no end; images must state how many of them are ranked")
    for part in content["subsets"]:
        if not isinstance(part, dict) or ("fraction" in part) == ("count" in part):
            raise UserError(f"{path}: each subset needs either a fraction or a count, found {part}")
    return content


def build(manifest: str | Path, folder: str | Path | None = None, out: str | Path | None = None) -> dict:
    """Rank the images of a folder (none for scenes), fill in counts and digests, write the manifest to `out` (default:
    over itself) with its list of paths beside it, and return it. A count that the manifest already states must hold."""
    content, path = read(manifest), Path(out) if out is not None else _find(manifest)
    check_writable(path)
    with waiting(f"listing the pictures of {folder}"):
        found = _population(content, folder)
    for what, number in (("images", len(found.names)), ("classes", found.classes)):
        expected = content.get(what)
        if expected is not None and expected != number:
            raise UserError(
                f"{content['name']}: {found.where} holds {number:,} {what} to train on, the manifest expects "
                f"{expected:,}; complete the data, or set {what}: null in {_find(manifest)}"
            )
        content[what] = number
    content["digest"] = _digest(found.ids)
    content["subsets"] = [
        part | dict(zip(("images", "digest"), _drawn(part, found, content["seed"]), strict=True))
        for part in content["subsets"]
    ]
    try:
        if folder is not None:
            lines = "\n".join(found.names).encode("utf-8", "surrogateescape")
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
    """What differs between a built manifest and a folder, a line each (missing, extra, duplicated); [] if nothing."""
    content, path = built(manifest), _find(manifest)
    with waiting(f"listing the pictures of {folder}"):
        found = _population(content, folder)
    if _digest(found.ids) == content["digest"]:
        lines = []
        for part in content["subsets"]:
            images, digest = _drawn(part, found, content["seed"])
            if (images, digest) != (part.get("images"), part.get("digest")):
                size = part.get("fraction", part.get("count"))
                lines.append(f"subset {size}: the rule draws other images than {path} states; build it again")
        return lines
    if folder is None or not _list_path(path).exists():
        return [f"digest differs: {found.where} holds {len(found.names):,} images, {path} states {content['images']:,}"]
    listed = gzip.decompress(_list_path(path).read_bytes()).decode("utf-8", "surrogateescape").split("\n")
    missing, extra = sorted(set(listed) - set(found.names)), sorted(set(found.names) - set(listed))
    copies = _copies(extra, found)
    lines = [f"missing: {name}" for name in missing]
    lines += [f"extra: {name}" for name in extra if name not in copies]
    return lines + [f"duplicated: {name} has the content of {of}" for name, of in copies.items()]


@dataclass(frozen=True)
class _Population:
    """The training images a manifest speaks of."""

    where: str
    names: list[str]
    ids: np.ndarray
    labels: np.ndarray | None
    classes: int
    sizes: Sequence[int] = ()  # bytes of each picture
    content: Callable[[str], bytes] | None = None  # the bytes of the picture of a name


def _population(content: dict, folder: str | Path | None) -> _Population:
    if content["source"] == "scenes":
        if folder is not None:
            raise UserError(f"{content['name']}: scenes are drawn, not read; leave out the folder {folder}")
        ids = np.arange(content["images"], dtype=np.uint64)
        names = [str(i) for i in ids]
        return _Population("scenes", names, ids, scenes.labels(0, ids), len(scenes.CLASSES))
    if folder is None:
        raise UserError(f"{content['name']}: is about a folder of images; give the folder")
    found = catalogue(f"{'packed' if packs.is_pack(folder) else 'imagefolder'}:{folder}")
    laid = replace(found.parts, left_out=None).split(found.spec)  # what it lists, readable or not
    say_layout(found, laid)
    labels = laid.labels[laid.train] if laid.classes else None
    rows = {laid.names[i]: int(i) for i in laid.train}
    sizes = found.sizes[laid.train].tolist()

    def content(name: str) -> bytes:
        try:
            return found.reader.content(rows[name])
        except OSError:  # of a pack, what could not be read when it was packed: a copy of none
            return name.encode("utf-8", "surrogateescape")

    return _Population(str(folder), list(rows), laid.ids[laid.train], labels, len(laid.classes), sizes, content)


def _drawn(part: dict, found: _Population, seed: int) -> tuple[int, str]:
    """Number of images and digest of a subset."""
    n = part["count"] if "count" in part else round(part["fraction"] * len(found.ids))
    if not 0 < n <= len(found.ids):
        raise UserError(f"{found.where}: a subset of {n:,} images cannot be drawn from {len(found.ids):,}")
    return n, _digest(found.ids[rank(found.ids, found.labels, seed)[:n]])


def _digest(ids: np.ndarray) -> str:
    return hashlib.sha256(np.sort(ids).astype("<u8").tobytes()).hexdigest()[:16]


def _copies(extra: list[str], found: _Population) -> dict[str, str]:
    """Which of the extra files have the content of another file of the folder, and of which."""
    sizes = dict(zip(found.names, found.sizes, strict=True))
    suspects = {sizes[name] for name in extra}
    first, copies = {}, {}
    # known files first, so that the extra file is the one called a copy
    for name in sorted((n for n in found.names if sizes[n] in suspects), key=lambda n: (n in set(extra), n)):
        digest = picture_digest(found.content(name))
        if name in set(extra) and digest in first:
            copies[name] = first[digest]
        first.setdefault(digest, name)
    return copies


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
