"""Which images: what a source lists, its splits, the rank that draws subsets, and manifests that state them. No torch.

A manifest is a YAML file: the source, the rule that ranks it (a hash of seed, class and path, so 10 % lies inside 20 %)
and the subsets. `build` fills in the digests and writes the list of paths beside it (NAME.paths.gz)."""

import contextlib
import gzip
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ..errors import UserError, check_writable, listed, unknown
from ..files import write_atomic
from ..model.masking import splitmix64
from ..processes import speaks, told
from . import decode, scenes

SHIPPED = Path(__file__).resolve().parents[2] / "data_manifests"
_FIELDS = {"name", "source", "images", "classes", "rule", "seed", "note", "digest", "subsets"}
_HOLDOUT_SEED = 1  # which tenth of a source without a test split is held out, and how a test split is halved
PassedOver = tuple[str, str]  # name (a folder's ends in a slash), and why


def signature(*parts: object) -> str:
    """12 hexadecimal digits that change when the parts do."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def picture_digest(content: bytes) -> int:
    """64 bits that change when a picture's bytes do."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def image_ids(names: Iterable[str]) -> np.ndarray:
    """Ids of images: a hash of each name (a relative path with forward slashes); uint64 (N,)."""
    return np.fromiter((picture_digest(name.encode("utf-8", "surrogateescape")) for name in names), np.uint64)


def rank(ids: np.ndarray, labels: np.ndarray | None, seed: int, block: int | None = None) -> np.ndarray:
    """Order of a source's images such that every prefix is a class-balanced draw: int64 (N,), indices into `ids`.

    Within a class, images are ordered by a hash of (seed, class, id); the k-th of n of a class then stands at (k + .5)
    / n of the whole. block: each run of so many images is ranked alone, so that a source that grows keeps its draws."""
    ids = np.asarray(ids, np.uint64)
    classes = np.zeros(len(ids), np.int64) if labels is None else np.asarray(labels, np.int64)
    if block and len(ids) > block:
        starts = range(0, len(ids), block)
        return np.concatenate([s + rank(ids[s : s + block], classes[s : s + block], seed) for s in starts])
    key = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ classes.astype(np.uint64))
    hashed = splitmix64(ids ^ key)
    within = np.lexsort((ids, hashed, classes))  # by class, then hash
    counts = np.bincount(classes, minlength=1)
    first = np.cumsum(counts) - counts
    ordered = classes[within]
    place = (np.arange(len(ids)) - first[ordered] + 0.5) / counts[ordered]
    return within[np.lexsort((hashed[within], place))]


@dataclass(frozen=True)
class Split:
    """Pictures of one split: arrays of one size, memory-mapped, so that slicing is cheap; or read when asked for."""

    name: str  # "train of imagefolder:DIR", for messages
    images: np.ndarray | None  # uint8 (N, 3, S, S); None where pictures are at their own size, behind a reader
    ids: np.ndarray  # uint64 (N,), unique
    labels: np.ndarray | None  # int64 (N,), or None where they are not known
    masks: np.ndarray | None = None  # bool (N, S, S) of the main object, or None
    block: int | None = None  # images that `rank` takes together; None = all
    reader: object = field(default=None, repr=False)  # see `Listing`
    rows: np.ndarray | None = field(default=None, repr=False)  # the reader's numbers of these pictures

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, i: int) -> Image.Image:
        """Picture i, RGB, upright; raises as decoders do."""
        if self.reader is None:
            return Image.fromarray(np.ascontiguousarray(self.images[i].transpose(1, 2, 0)))
        return decode.read(self.reader.content(int(self.rows[i])))

    def title(self, i: int) -> str:
        return f"image {self.ids[i]}" if self.reader is None else self.reader.title(int(self.rows[i]))


def check_count(split: Split, n: int | None) -> None:
    """`UserError` where a split does not hold n images."""
    if n is not None and not 0 < n <= len(split):
        raise UserError(f"images {n}: {split.name} holds {len(split)} images; ask for 1 to {len(split)}")


def subset(split: Split, n: int | None, seed: int) -> np.ndarray:
    """The first n images of a split by rank (all of them for None): int64 (n,), indices into the split."""
    check_count(split, n)
    return rank(split.ids, split.labels, seed, split.block)[:n]


@dataclass(frozen=True)
class Listing:
    """The pictures of a source by number: as it lists them, or, after `split`, as training and scoring see them."""

    names: list[str]
    ids: np.ndarray  # uint64 (N,)
    labels: np.ndarray  # int64 (N,) into the classes, -1 where unknown
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]  # train, and val or test where they are there: int64, numbers of pictures
    spec: str = ""
    reader: object = field(default=None, repr=False)  # content(i): bytes of a file, or a picture; title(i): its name
    digest: str = ""  # of what is listed: names, bytes and labels of files; pictures of a pack
    stamp: str = ""  # changes when a picture may have: files' times too
    left_out: np.ndarray | None = None  # bool (N,): known not to be readable; None = nobody has looked
    threaded: bool = True  # whether the reader serves several threads
    notes: tuple[str, ...] = ()  # how the source was read, for its line
    passed: tuple[PassedOver, ...] = ()

    def known(self, rows: np.ndarray) -> bool:
        return bool(self.classes) and bool((self.labels[rows] >= 0).all())

    def ranked(self, rows: np.ndarray, seed: int = _HOLDOUT_SEED) -> np.ndarray:
        return rows[rank(self.ids[rows], self.labels[rows] if self.known(rows) else None, seed)]

    def readable(self, split: str) -> Split:
        """A split at the pictures' own size."""
        rows = self.splits[split]
        labels = self.labels[rows] if self.known(rows) else None
        return Split(f"{split} of {self.spec}", None, self.ids[rows], labels, reader=self.reader, rows=rows)

    def say(self) -> str:
        """Say the line of this source, and return it."""
        counts = {split: len(rows) for split, rows in self.splits.items()}
        line = describe(self.spec, len(self.classes), counts, self.notes, self.passed)
        say(line, self.spec, self.stamp)
        return line

    def split(self, *, halve: bool = True) -> "Listing":
        """The splits that training and scoring see; what is left out takes part in the draw alone.

        A labelled held-out split serves val (first half by hash rank) and test (second half). Without one, a class-
        balanced tenth of train is held out; beside a test split without labels it is test, and that split val. A val
        split without labels is val, and there is no test.
        halve=False: all that is held out with labels is test."""
        own, notes, train = self, list(self.notes), self.splits["train"]
        held = {split: self.splits[split] for split in ("val", "test") if len(self.splits.get(split, ()))}
        scored = next((split for split in ("test", "val") if split in held and self.known(held[split])), None)
        if not scored and self.known(train) and "val" in held:  # ImageNet as it is unpacked: its train stays whole
            mend = "sort it into class folders, or take it away and a part of train is held out"
            notes.append(f"val has no labels, so there is nothing to probe with: {mend}")
        elif not scored and self.known(train) and len(self._tenth(train)) < 2:
            own = replace(self, labels=np.full(len(self.labels), -1), classes=())
            notes.append("labels not used: with one picture a class there is nothing to probe with")
        # a held-out split without labels, or beside a labelled one, is for validation alone
        spare = None if scored == "val" else next((split for split in held if split != scored), None)
        val, test = own.ranked(held[spare]) if spare else None, own.ranked(held[scored]) if scored else None
        if not scored and "val" not in held and (own.known(train) or not held):
            drawn = own._tenth(train)
            train, test = np.setdiff1d(train, drawn), own.ranked(drawn)
            if spare:
                tenth = f"{len(drawn):,} pictures of train are held out as test"
                notes.append(f"{spare} has no labels and serves as val: {tenth}")
        for split in held.keys() - {spare, scored}:
            notes.append(f"{len(held[split]):,} pictures of {split} not used: they have no labels")
        if halve and val is None:
            half = (len(test) + 1) // 2 if own.known(test) else len(test)
            val, test = test[:half], test[half:]
        if halve and len(val) < 2:
            raise UserError(f"{self.spec}: {len(val)} held-out images are too few; give at least 4")
        splits = {"train": train} | ({"val": val} if halve else {})
        if test is not None and len(test) and own.known(test):
            splits["test"] = test
        if self.left_out is not None:
            splits = {split: rows[~self.left_out[rows]] for split, rows in splits.items()}
        return replace(own, splits=splits, notes=tuple(notes))

    def _tenth(self, rows: np.ndarray) -> np.ndarray:
        """A class-balanced tenth of some images, at least 4, without the last one of each class."""
        order, tenth = self.ranked(rows), max(4, round(len(rows) / 10))
        if len(order) < tenth + 1:
            raise UserError(f"{self.spec}: {len(order)} images are too few to hold some of them out; give at least 5")
        _, last = np.unique(self.labels[order][::-1], return_index=True)
        return np.delete(order, len(order) - 1 - last)[:tenth]


# --- the line about a source


def describe(
    title: str, classes: int, counts: Mapping[str, int], notes: Iterable[str] = (), passed: Iterable[PassedOver] = ()
) -> str:
    """The one line about a source: classes, pictures by split, how it was read, what was passed over and why."""
    reasons, passed = defaultdict(list), list(passed)
    for name, reason in passed:
        reasons[reason].append(name)
    pictures = " / ".join(f"{count:,} {split}" for split, count in counts.items())
    said = [f"data: {f'{classes:,} classes' if classes else 'no labels'}, {pictures} pictures of {title}", *notes]
    if passed:
        named = "; ".join(f"{listed(names)}: {reason}" for reason, names in reasons.items())
        said.append(f"{len(passed):,} passed over ({named})")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in "; ".join(said))


_quiet: list[bool] = []  # an item for each `quietly` around
_said: set[tuple[str, str]] = set()  # sources of this process, with what tells their files from others


def say(line: str, spec: str, stamp: str = "") -> None:
    """Print a line, once in a process for a source and its files; the first of torchrun's processes does."""
    if not _quiet and (spec, stamp) not in _said and speaks():
        _said.add((spec, stamp))
        print(line, file=told(), flush=True)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing is said of sources that are opened here."""
    _quiet.append(True)
    try:
        yield
    finally:
        _quiet.pop()


# --- manifests


def read(manifest: str | Path, *, built: bool = False) -> dict:
    """A manifest by path, or by the name of one that the project ships; one line for a file that is none, or that has
    no digests where it has to be built."""
    path = _find(manifest)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        whole = {"name", "source", "seed", "subsets"} <= content.keys() <= _FIELDS
        whole = whole and content.get("rule", "hash") == "hash" and content["source"] in ("imagefolder", "scenes")
        whole = whole and (content["source"] == "imagefolder" or content.get("images") is not None)
        if not whole or any(("fraction" in part) == ("count" in part) for part in content["subsets"]):
            raise ValueError("give name, source, seed (scenes: images), and subsets by fraction or count")
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a manifest ({str(error).splitlines()[0]})") from error
    if built and not content.get("digest"):
        raise UserError(f"{path}: has no digest yet; run manifest build with the folder first")
    return content


def build(manifest: str | Path, source: Listing | None = None, out: str | Path | None = None) -> dict:
    """Rank the training images of a source (None for scenes), fill in counts and digests, write the manifest to `out`
    (default: over itself) with its list of paths beside it, and return it. A count that it already states must hold."""
    content, path = read(manifest), Path(out) if out is not None else _find(manifest)
    check_writable(path)
    images = _images(content, source)
    for what, number in (("images", len(images.ids)), ("classes", len(images.classes))):
        if content.get(what) not in (None, number):
            there = f"{images.spec} holds {number:,} {what} to train on, the manifest expects {content[what]:,}"
            raise UserError(f"{content['name']}: {there}; complete the data, or set {what}: null in {_find(manifest)}")
        content[what] = number
    content["digest"] = _digest(images.ids)
    content["subsets"] = [part | _drawn(part, images, content["seed"]) for part in content["subsets"]]
    if source is not None:
        lines = "\n".join(images.names).encode("utf-8", "surrogateescape")
        write_atomic(path.with_suffix(".paths.gz"), gzip.compress(lines, mtime=0))
    write_atomic(path, yaml.safe_dump(content, sort_keys=False, width=120))
    return content


def verify(manifest: str | Path, source: Listing | None = None) -> list[str]:
    """What differs between a built manifest and a source, a line each (missing, extra); [] if nothing."""
    content, path = read(manifest, built=True), _find(manifest)
    images, paths = _images(content, source), path.with_suffix(".paths.gz")
    if _digest(images.ids) == content["digest"]:
        wrong = [part for part in content["subsets"] if part != part | _drawn(part, images, content["seed"])]
        sizes = [part.get("fraction", part.get("count")) for part in wrong]
        return [f"subset {size}: the rule draws other images than {path} states; build it again" for size in sizes]
    if source is None or not paths.exists():
        return [f"digest differs: {images.spec} holds {len(images.ids):,} images, {path} states {content['images']:,}"]
    names = set(gzip.decompress(paths.read_bytes()).decode("utf-8", "surrogateescape").split("\n"))
    missing, extra = sorted(names.difference(images.names)), sorted(set(images.names) - names)
    return [f"missing: {name}" for name in missing] + [f"extra: {name}" for name in extra]


def _images(content: dict, source: Listing | None) -> Listing:
    """The training images that a manifest speaks of, readable or not, and no others."""
    if (content["source"] == "scenes") != (source is None):
        raise UserError(f"{content['name']}: is about {content['source']}: give a folder of images to that alone")
    if source is None:
        ids = np.arange(content["images"], dtype=np.uint64)
        return Listing([], ids, scenes.labels(0, ids), scenes.CLASSES, {}, "scenes")
    laid = replace(source, left_out=None).split()
    laid.say()
    rows = laid.splits["train"]
    return replace(laid, names=[laid.names[i] for i in rows], ids=laid.ids[rows], labels=laid.labels[rows])


def _drawn(part: dict, images: Listing, seed: int) -> dict:
    """Number of images and digest of a subset."""
    n = part["count"] if "count" in part else round(part["fraction"] * len(images.ids))
    if not 0 < n <= len(images.ids):
        raise UserError(f"a subset of {n:,} images cannot be drawn from {len(images.ids):,}; correct the manifest")
    return {"images": n, "digest": _digest(images.ids[images.ranked(np.arange(len(images.ids)), seed)[:n]])}


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
