"""Semantic segmentation in the layout of ADE20K (SceneParse150), and the views to train on.

DIR/images/training/*.jpg and validation; DIR/annotations/training/*.png and validation, 8-bit grey: 0 = unlabelled,
1..K = the classes, by DIR/objectInfo150.txt, else DIR/classes.txt (a name a line), else ADE20K's 150."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ..errors import UserError, listed
from . import coco, decode, scenes
from .coco import AnnotatedData, AnnotatedSplit
from .manifests import image_ids, rank, say

#: In labels as they are loaded: a pixel without a class, which no loss and no score counts.
IGNORED = 255
ADE_CLASSES = 150
_IMAGES = (".jpg", ".jpeg", ".png")  # and whatever has an annotation
_TEST_SEED = 1  # order of the test images: any first n of them are a random draw
_SMALL_IMAGE = 1 << 12  # pixels: images up to here, as scenes are, are decoded once
_SMALL_FILE = 4096  # bytes: annotations up to here are in the digest with their content

LONGEST = 4  # a long side is at most so many short ones: the field's 2,048 at 512
RATIOS = (0.5, 2.0)  # of the size, in full-size training
CATEGORY_SHARE = 0.75  # a crop in which one class has so much of what is labelled is drawn again ...
_TRIES = 10  # ... so often
_BRIGHTNESS, _FACTORS, _HUE = 32.0, (0.5, 1.5), 0.1  # levels; contrast and saturation; turns


@dataclass(frozen=True)
class AdeSplit(AnnotatedSplit):
    """One split: image and labels of each place. An annotation's path is its image's, below `annotations`, `.png`."""

    classes: int = ADE_CLASSES
    _cache: dict = field(default_factory=dict, init=False, repr=False)

    def pixels(self, place: int) -> np.ndarray:
        return self.load(place)[0]

    def load(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (3, H, W) and labels uint8 (H, W): 0..K-1, `IGNORED` where there is none. Not to be written to.
        `UserError` names a file that is unreadable, of another size, not 8-bit grey, or with a number above K."""
        if place in self._cache:
            return self._cache[place]
        numbers = self._numbers(place)
        pair = decode.read_annotated(self.folder / self.files[place], numbers.shape), numbers - np.uint8(1)  # 0 wraps
        if numbers.size <= _SMALL_IMAGE:
            self._cache[place] = pair
        return pair

    def numbers(self, places: Iterable[int]) -> Iterator[set[int]]:
        return (set(np.flatnonzero(np.bincount(self._numbers(place).ravel())).tolist()) for place in places)

    def _numbers(self, place: int) -> np.ndarray:
        """An annotation as it is stored: uint8 (H, W)."""
        path = self.folder / _annotation(self.files[place])
        try:
            with decode.opened(path) as image:
                # grey of other depths is multiplied by Pillow, up to 255
                if (image.mode, image.format) != ("L", "PNG") or image.tile[0][3] != "L":
                    raise decode.Unreadable(f"{image.format} of mode {image.mode}, not a PNG of 8-bit grey")
                numbers = np.asarray(image)
        except decode.Unreadable as error:
            raise UserError(f"{path}: no annotation ({error}); replace it, or remove its image") from error
        if numbers.max() > self.classes:
            known = f"0 is unlabelled and 1 to {self.classes} are classes, by classes.txt"
            raise UserError(f"{path}: class {numbers.max()} is out of range: {known}; correct one of them")
        return numbers


def _annotation(image: str) -> str:
    return f"annotations/{os.path.splitext(image)[0].partition('/')[2]}.png"


def open_ade20k(spec: str, image_size: int) -> AnnotatedData:
    """Open `ade20k:DIR`, or `scenes`, which are first written as such a folder at `image_size` pixels a side.
    `UserError` for a folder without images, or an image without annotation."""
    root = coco.annotated_folder(spec, "ade20k", image_size, scenes.write_ade20k, scenes.ADE_SPLITS)
    classes = _classes(root)
    digest = hashlib.sha256(repr(classes).encode())
    train, test = (_split(spec, root, part, len(classes), digest) for part in ("training", "validation"))
    if spec == "scenes":  # the folder's name says all that they depend on; bytes of a PNG depend on who wrote it
        digest = hashlib.sha256(root.name.encode())
    test = test.select(rank(test.ids, None, _TEST_SEED))
    return AnnotatedData(spec, train, test, classes, digest.hexdigest()[:16])


def _split(spec: str, root: Path, part: str, classes: int, digest: "hashlib._Hash") -> AdeSplit:
    with coco.one_line(spec, "make it readable"):
        there = coco.lengths(root, (f"images/{part}", f"annotations/{part}"))
        there = {path: there[path] for path in sorted(there) if not os.path.basename(path).startswith(".")}
        files = [path for path in there if path.startswith("images/")]
        files = [path for path in files if path.lower().endswith(_IMAGES) or _annotation(path) in there]
        if not files:
            raise UserError(f"{spec}: no images in {root / 'images' / part}; give a folder in ADE20K's layout")
        if more := sorted(there.keys() - {*files, *map(_annotation, files)}):
            say(f"{root}: {len(more):,} passed over ({listed(more)})", str(root), repr(more))
        for image in files:
            annotation = _annotation(image)
            if annotation not in there:
                raise UserError(f"{root / annotation}: no such file; add it, or remove its image {image}")
            about = (part, image.removeprefix(f"images/{part}/"), there[image], there[annotation])
            digest.update(repr(about).encode("utf-8", "surrogateescape"))
            if there[annotation] <= _SMALL_FILE:
                digest.update((root / annotation).read_bytes())
    ids = image_ids([file.removeprefix("images/") for file in files])
    return AdeSplit(f"{part} of {spec}", root, files, ids, classes=classes)


def _classes(root: Path) -> tuple[str, ...]:
    """Names of the classes: out of ADE20K's table (tab-separated, the first name of the last column), or a text."""
    table, text = root / "objectInfo150.txt", root / "classes.txt"
    path = table if table.is_file() else text
    if not path.is_file():
        return tuple(f"class {k}" for k in range(1, ADE_CLASSES + 1))
    with coco.one_line(path, "give a text of UTF-8"):
        lines = path.read_text(encoding="utf-8").splitlines()
    lines = [line.split("\t")[-1].split(",")[0] for line in lines[1:]] if path == table else lines
    classes = tuple(line.strip() for line in lines if line.strip())
    if not 2 <= len(classes) < IGNORED:
        what = f"give 2 to {IGNORED - 1}, one a line; a background needs its own, as 0 is unlabelled"
        raise UserError(f"{path}: names {len(classes)} classes; {what}")
    return classes


# --- views; random draws come from torch's global generator, which `batches.StepLoader` seeds for each sample


def flipped_crop(image: Tensor, labels: Tensor, size: int, fill: Tensor) -> tuple[Tensor, Tensor]:
    """The laptop's view: short side `size`, a random square of it, flipped half of the time."""
    return _view(*resize(image, labels, size), size, fill, tries=1)


def full_view(image: Tensor, labels: Tensor, size: int, fill: Tensor) -> tuple[Tensor, Tensor]:
    """The field's view at full size: size times .5 to 2, a square of `size` with a limit on its commonest class,
    flipped half of the time, colours distorted. uint8 (3, H, W), (H, W) -> (3, size, size), (size, size); what lies
    outside the image is `fill` uint8 (3,) and `IGNORED`."""
    image, labels = resize(image, labels, size * _uniform(*RATIOS))
    image, labels = _view(image, labels, size, fill, tries=_TRIES)
    return distort(image), labels


def resize(image: Tensor, labels: Tensor | None, size: float) -> tuple[Tensor, Tensor | None]:
    """Short side `size`, unless the long one would be above `LONGEST` x `size`; labels by the nearest pixel."""
    height, width = image.shape[-2:]
    factor = min(size / min(height, width), LONGEST * size / max(height, width))
    sides = [max(1, round(height * factor)), max(1, round(width * factor))]
    image = TF.resize(image, sides, antialias=True)
    if labels is not None:
        labels = TF.resize(labels[None], sides, TF.InterpolationMode.NEAREST_EXACT)[0]
    return image, labels


def distort(image: Tensor) -> Tensor:
    """The field's photometric distortion of an image uint8 (3, H, W), each half of the time: 32 levels of brightness,
    contrast (before or after the other two) and saturation times .5 to 1.5, a tenth of a turn of hue."""
    if _coin():
        image = (image + _uniform(-_BRIGHTNESS, _BRIGHTNESS)).round().clamp(0, 255).to(torch.uint8)
    contrast_first = _coin()
    for contrast in (contrast_first, None, not contrast_first):
        if contrast and _coin():
            image = (image * _uniform(*_FACTORS)).round().clamp(0, 255).to(torch.uint8)
        if contrast is None:
            if _coin():
                image = TF.adjust_saturation(image, _uniform(*_FACTORS))
            if _coin():
                image = TF.adjust_hue(image, _uniform(-_HUE, _HUE))
    return image


def _view(image: Tensor, labels: Tensor, size: int, fill: Tensor, tries: int) -> tuple[Tensor, Tensor]:
    """A random square of `size`, or as much of it as there is, padded below and to the right, and flipped by a coin."""
    for left_over in reversed(range(tries)):
        top, left = (int(torch.randint(max(1, side - size + 1), ())) for side in labels.shape)
        part = labels[top : top + size, left : left + size]
        count = torch.bincount(part[part != IGNORED].flatten())
        mixed = (count > 0).sum() > 1 and count.max() < CATEGORY_SHARE * count.sum()
        if not left_over or mixed:  # no class has too large a share of what is labelled
            break
    image = image[:, top : top + size, left : left + size]
    pad = (0, size - part.shape[1], 0, size - part.shape[0])
    if any(pad):
        outside = F.pad(torch.zeros_like(part, dtype=torch.bool), pad, value=True)
        image = torch.where(outside, fill[:, None, None], F.pad(image, pad))
        part = F.pad(part, pad, value=IGNORED)
    return (image.flip(-1), part.flip(-1)) if _coin() else (image, part)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _coin() -> bool:
    return torch.rand(()).item() < 0.5
