"""A folder laid out as ImageNet's: train/CLASS/NAME.JPEG and val/CLASS/NAME.JPEG, of pictures made in no time."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def image_tree(root: Path, classes: int, train: int, val: int, sides: tuple[int, int] = (40, 52)) -> Path:
    """`train` and `val` small JPEGs in each of so many classes: a colour of the class, and a wave of the picture."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: sides[1], : sides[1]] / sides[1]
    for k in range(classes):
        for split, count in (("train", train), ("val", val)):
            folder = root / split / f"n{k:08d}"
            folder.mkdir(parents=True)
            for n in range(count):
                height, width = rng.integers(*sides, 2, endpoint=True)
                colour = np.array([37 * k % 256, 91 * k % 256, 53 * k % 256])
                a, b, c = rng.uniform(-9, 9, 3)
                wave = 60 * np.sin(a * rows + b * columns + c)[:height, :width, None]
                pixels = (colour + wave).clip(0, 255).astype(np.uint8)
                held = io.BytesIO()
                Image.fromarray(pixels).save(held, "JPEG", quality=75)
                (folder / f"{k}_{n}.JPEG").write_bytes(held.getvalue())
    return root
