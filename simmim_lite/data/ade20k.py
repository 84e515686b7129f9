"""Semantic segmentation in the layout of ADE20K (SceneParse150): images and, for each, a grey picture of class numbers.

DIR/images/training/*.jpg, DIR/images/validation; DIR/annotations/training/*.png, DIR/annotations/validation, 8-bit
grey: 0 = unlabelled, 1..K = the classes. K comes from DIR/objectInfo150.txt, else from DIR/classes.txt (a name a line),
else it is ADE20K's 150; it is never guessed from the annotations. Annotations are read as of the images as they are
shown, turned upright by their EXIF orientation. No torch here.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from . import decode, scene_layouts
from .annotations import AnnotatedData, say_once
from .listing import image_ids, rank

#: In labels as they are loaded: a pixel without a class, which no loss and no score counts.
IGNORED = 255
ADE_CLASSES = 150
_FOLDERS = {"train": "training", "test": "validation"}
_IMAGES = (".jpg", ".jpeg", ".png")  # and whatever has an annotation
_TEST_SEED = 1  # order of the test images: any first n of them are a random draw
_SMALL_FILE = 4096  # bytes: annotations up to here are in the digest with their content
_SMALL_IMAGE, _KEPT = 1 << 16, 1 << 26  # pixels of an image that is kept decoded; bytes kept by one split
_READ_AHEAD = 64  # annotations


@dataclass(frozen=True)
class AdeSplit:
    """One split: names, ids, and image and labels of each place."""

    name: str  # "training of ade20k:DIR", for messages
    root: Path
    images: tuple[str, ...]  # relative paths
    annotations: tuple[str, ...]
    ids: np.ndarray  # uint64 (N,): hashes of the relative paths
    classes: int
    labels: None = None  # a subset (`manifests.subset`) is drawn without classes
    block: None = None
    _kept: dict = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, place: int) -> np.ndarray:
        """The image alone: uint8 (3, H, W)."""
        return self.load(place)[0]

    def load(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (3, H, W) and labels uint8 (H, W): 0..K-1, `IGNORED` where there is none. Not to be written to.

        Small images are decoded once. `UserError` names the file: unreadable, of another size than its image, not
        8-bit grey, or with a number above K.
        """
        if place in self._kept:
            return self._kept[place]
        numbers = self._numbers(place)
        image = decode.read_annotated(self.root / self.images[place], numbers.shape)
        pair = image, numbers - np.uint8(1)  # wraps 0 around to IGNORED
        if numbers.size <= _SMALL_IMAGE and 4 * numbers.size * (len(self._kept) + 1) <= _KEPT:
            self._kept[place] = pair
        return pair

    def numbers(self, places: Iterable[int]) -> Iterator[set[int]]:
        """The numbers in the annotations at these places: classes from 1, 0 where there is none."""
        places = list(places)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(places), _READ_AHEAD):
                for numbers in pool.map(self._numbers, places[start : start + _READ_AHEAD]):
                    yield set(np.flatnonzero(np.bincount(numbers.ravel())).tolist())

    def _numbers(self, place: int) -> np.ndarray:
        """An annotation as it is stored: uint8 (H, W)."""
        path = self.root / self.annotations[place]
        try:
            with decode.opened(path) as image:
                kind, numbers = _other_kind(image), np.asarray(image)
        except decode.Unreadable as error:
            mend = "replace it, or remove its image and annotation"
            raise UserError(f"{path}: cannot be read ({error}); {mend}") from error
        if kind:
            raise UserError(f"{path}: an annotation of {kind}; give a PNG of 8-bit grey (mode L), a class a pixel")
        if numbers.max() > self.classes:
            raise UserError(
                f"{path}: class {numbers.max()} is out of range: 0 is unlabelled and 1 to {self.classes} are classes; "
                "correct the annotation, or the number of classes in classes.txt"
            )
        return numbers


def open_ade20k(spec: str, image_size: int) -> AnnotatedData:
    """Open `ade20k:DIR`, or `scenes`, which are first written as such a folder at `image_size` pixels a side.

    Images are read when they are asked for. `UserError` for what the caller can mend: no such folder, no images, an
    image without an annotation.
    """
    if spec == "scenes":
        folder = scene_layouts.scenes_as_ade20k(image_size)
        # its name says all that the scenes depend on; bytes of a PNG depend on the library that wrote it
        return dataclasses.replace(_open(spec, folder), digest=hashlib.sha256(folder.name.encode()).hexdigest()[:16])
    kind, _, place = spec.partition(":")
    if kind != "ade20k" or not place:
        raise UserError(f"data '{spec}' has no annotations for segment: give scenes or ade20k:DIR")
    return _open(spec, Path(place).expanduser().absolute())


def _open(spec: str, root: Path) -> AnnotatedData:
    classes = _classes(root)
    digest = hashlib.sha256(repr(classes).encode())
    train, test = (_split(spec, root, folder, len(classes), digest) for folder in _FOLDERS.values())
    return AnnotatedData(spec, train, test, classes, digest.hexdigest()[:16])


def _split(spec: str, root: Path, folder: str, classes: int, digest: "hashlib._Hash") -> AdeSplit:
    images, annotations = (_files(spec, root / kind / folder) for kind in ("images", "annotations"))
    pairs = {name: f"{os.path.splitext(name)[0]}.png" for name in sorted(images)}
    pairs = {a: b for a, b in pairs.items() if os.path.splitext(a)[1].lower() in _IMAGES or b in annotations}
    if not pairs:
        raise UserError(f"{spec}: no images in {root / 'images' / folder} (files that end in {' '.join(_IMAGES)})")
    for kind, there, used in (("images", images, pairs.keys()), ("annotations", annotations, set(pairs.values()))):
        if more := sorted(there.keys() - used):
            say_once(f"{root / kind / folder}: {len(more):,} passed over ({more[0]}{', ...' * (len(more) > 1)})")
    for image, annotation in pairs.items():
        path = root / "annotations" / folder / annotation
        if annotation not in annotations:
            what = f"no such file, the annotation of image {image} is missing"
            raise UserError(f"{path}: {what}; add it, or remove the image")
        size = annotations[annotation]
        digest.update(repr((folder, image, images[image], size)).encode("utf-8", "surrogateescape"))
        if size <= _SMALL_FILE:
            try:
                digest.update(path.read_bytes())
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be read ({error.strerror}); replace it, or remove its image"
                ) from error
    names = list(pairs)
    ids = image_ids([f"{folder}/{name}" for name in names])
    order = rank(ids, None, _TEST_SEED) if folder == _FOLDERS["test"] else np.arange(len(ids))
    return AdeSplit(
        f"{folder} of {spec}",
        root,
        tuple(f"images/{folder}/{names[i]}" for i in order),
        tuple(f"annotations/{folder}/{pairs[names[i]]}" for i in order),
        ids[order],
        classes,
    )


def _files(spec: str, folder: Path) -> dict[str, int]:
    """Bytes of each file of a folder, hidden ones passed over."""
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size for e in entries if e.is_file() and not e.name.startswith(".")}
    except OSError as error:
        mend = "give the folder that holds images/training, images/validation and the same below annotations"
        raise UserError(f"{spec}: cannot read {folder} ({error.strerror}); {mend}") from error


def _classes(root: Path) -> tuple[str, ...]:
    for name, parse in (("objectInfo150.txt", _object_info), ("classes.txt", str.splitlines)):
        try:
            text = (root / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{root / name}: cannot be read ({error}); give a text of UTF-8") from error
        classes = tuple(line.strip() for line in parse(text) if line.strip())
        if not 2 <= len(classes) < IGNORED:
            what = (
                f"give 2 to {IGNORED - 1}, one a line (a background needs its own, as 0 is unlabelled and not scored)"
            )
            raise UserError(f"{root / name}: names {len(classes)} classes; {what}")
        return classes
    return tuple(f"class {k}" for k in range(1, ADE_CLASSES + 1))


def _object_info(text: str) -> list[str]:
    """Names out of ADE20K's table: a heading, then tab-separated number, shares and counts, names; the first name."""
    return [line.split("\t")[-1].split(",")[0] for line in text.splitlines()[1:]]


def _other_kind(image: Image.Image) -> str | None:
    """What an annotation is in place of a PNG of 8-bit grey: its numbers would be others than its classes."""
    if image.mode != "L":
        return f"mode {image.mode}"
    if image.format != "PNG":
        return f"format {image.format}"
    depth = image.tile[0][3]
    return None if depth == "L" else f"grey of {depth.partition(';')[2]} bits"  # those are multiplied, up to 255
