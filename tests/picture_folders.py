"""Folders of small pictures by class, a data root of its own, and errors that are one line: for tests of data."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_lite.errors import UserError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def picture(seed: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def fill(folder: Path, count: int, size: tuple[int, int] = (20, 20)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(zlib.crc32(f"{folder.parent.name}/{folder.name}/{i}".encode()), size).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """DIR/train and DIR/test by class: 3 classes of 8 and 4 images."""
    for split, count in (("train", 8), ("test", 4)):
        for name in ("ant", "bee", "cat"):
            fill(tmp_path / "photos" / split / name, count)
    return tmp_path / "photos"


def image_tree(root: Path, classes: int, train: int, val: int, sides: tuple[int, int] = (40, 52)) -> Path:
    """Laid out as ImageNet: `train` and `val` smooth JPEGs of sides in a range, in each of so many classes."""
    rng = np.random.default_rng(0)
    for k in range(classes):
        for split, count in (("train", train), ("val", val)):
            folder = root / split / f"n{k:08d}"
            folder.mkdir(parents=True)
            for n in range(count):
                size = rng.integers(*sides, 2, endpoint=True).tolist()
                coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
                coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{k}_{n}.JPEG", quality=75)
    return root


def one_line(match: str, call, *arguments, **keywords) -> None:
    with pytest.raises(UserError, match=match) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
