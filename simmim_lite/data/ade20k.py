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

from ..errors import UserError
from . import annotations, decode, scene_layouts
from .annotations import AnnotatedData, AnnotatedSplit, say_once
from .listing import image_ids, listed, rank

#: In labels as they are loaded: a pixel without a class, which no loss and no score counts.
IGNORED = 255
ADE_CLASSES = 150
_IMAGES = (".jpg", ".jpeg", ".png")  # and whatever has an annotation
_TEST_SEED = 1  # order of the test images: any first n of them are a random draw
_SMALL_FILE = 4096  # bytes: annotations up to here are in the digest with their content
_SMALL_IMAGE, _KEPT = 1 << 16, 1 << 26  # pixels of an image that is kept decoded; bytes kept by one split
_READ_AHEAD = 64  # annotations


@dataclass(frozen=True)
class AdeSplit(AnnotatedSplit):
    """One split: image and labels of each place."""

    classes: int = ADE_CLASSES
    _cache: dict = field(default_factory=dict, init=False, repr=False)

    @property
    def images(self) -> list[str]:
        """Paths of the images; an annotation's is the same, below `annotations` and with `.png`."""
        return self.files

    def pixels(self, place: int) -> np.ndarray:
        """The image alone: uint8 (3, H, W)."""
        return self.load(place)[0]

    def load(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (3, H, W) and labels uint8 (H, W): 0..K-1, `IGNORED` where there is none. Not to be written to.

        Small images are decoded once. `UserError` names the file: unreadable, of another size than its image, not
        8-bit grey, or with a number above K.
        """
        if place in self._cache:
            return self._cache[place]
        numbers = self._numbers(place)
        image = decode.read_annotated(self.folder / self.files[place], numbers.shape)
        pair = image, numbers - np.uint8(1)  # wraps 0 around to IGNORED
        if numbers.size <= _SMALL_IMAGE and 4 * numbers.size * (len(self._cache) + 1) <= _KEPT:
            self._cache[place] = pair
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
        path = self.folder / _annotation(self.files[place])
        try:
            with decode.opened(path) as image:
                # grey of other depths is multiplied by Pillow, up to 255
                good = (image.mode, image.format) == ("L", "PNG") and image.tile[0][3] == "L"
                kind, numbers = f"{image.format} of mode {image.mode}", np.asarray(image)
        except decode.Unreadable as error:
            raise UserError(f"{path}: cannot be read ({error}); replace it, or remove its image") from error
        if not good:
            raise UserError(f"{path}: an annotation of {kind}; give a PNG of 8-bit grey, a class a pixel")
        if numbers.max() > self.classes:
            known = f"0 is unlabelled and 1 to {self.classes} are classes, by classes.txt"
            raise UserError(f"{path}: class {numbers.max()} is out of range: {known}; correct one of them")
        return numbers


def _annotation(image: str) -> str:
    """The path of an image's annotation: images/training/a.jpg -> annotations/training/a.png."""
    return f"annotations/{os.path.splitext(image)[0].partition('/')[2]}.png"


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
    train, test = (_split(spec, root, part, len(classes), digest) for part in ("training", "validation"))
    return AnnotatedData(spec, train, test, classes, digest.hexdigest()[:16])


def _split(spec: str, root: Path, part: str, classes: int, digest: "hashlib._Hash") -> AdeSplit:
    there: dict[str, int] = {}  # path -> bytes
    try:
        for folder in (f"images/{part}", f"annotations/{part}"):
            sizes = annotations.lengths(root / folder)
            there |= {f"{folder}/{name}": sizes[name] for name in sorted(sizes) if not name.startswith(".")}
    except OSError as error:
        mend = "give the folder that holds images/training, images/validation and the same below annotations"
        raise UserError(f"{spec}: cannot read {root / folder} ({error.strerror}); {mend}") from error
    files = [path for path in there if path.startswith("images/")]
    files = [path for path in files if path.lower().endswith(_IMAGES) or _annotation(path) in there]
    if not files:
        raise UserError(f"{spec}: no images in {root / 'images' / part} (files that end in {' '.join(_IMAGES)})")
    if more := sorted(there.keys() - {*files, *map(_annotation, files)}):
        say_once(f"{root}: {len(more):,} passed over ({listed(more)})")
    for image in files:
        annotation = _annotation(image)
        if annotation not in there:
            what = f"no such file, the annotation of image {os.path.basename(image)} is missing"
            raise UserError(f"{root / annotation}: {what}; add it, or remove the image")
        about = (part, image.removeprefix(f"images/{part}/"), there[image], there[annotation])
        digest.update(repr(about).encode("utf-8", "surrogateescape"))
        if there[annotation] <= _SMALL_FILE:
            try:
                digest.update((root / annotation).read_bytes())
            except OSError as error:
                mend = "replace it, or remove its image"
                raise UserError(f"{root / annotation}: cannot be read ({error.strerror}); {mend}") from error
    split = AdeSplit(
        f"{part} of {spec}", root, files, image_ids([f.removeprefix("images/") for f in files]), classes=classes
    )
    return split.select(rank(split.ids, None, _TEST_SEED)) if part == "validation" else split


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
            what = f"give 2 to {IGNORED - 1}, one a line; a background needs its own, as 0 is unlabelled"
            raise UserError(f"{root / name}: names {len(classes)} classes; {what}")
        return classes
    return tuple(f"class {k}" for k in range(1, ADE_CLASSES + 1))


def _object_info(text: str) -> list[str]:
    """Names out of ADE20K's table: a heading, then tab-separated number, shares and counts, names; the first name."""
    return [line.split("\t")[-1].split(",")[0] for line in text.splitlines()[1:]]
