"""Small folders in the layout of ADE20K, drawn by the scenes, for tests."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from simmim_lite.data import scenes
from simmim_lite.data.scenes import class_numbers
from simmim_lite.training.parallel import Group

ALONE = Group(torch.device("cpu"))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def ade_folder(
    root: Path, training: int = 6, validation: int = 3, sizes: tuple[tuple[int, int], ...] = ((32, 32),)
) -> Path:
    """Scenes with 11 classes, cut to the sizes (height, width) in turn, `.jpg` beside `.png`; a tenth unlabelled."""
    for seed, (split, count) in enumerate({"training": training, "validation": validation}.items()):
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            drawn = scenes.render(seed, np.array([i]), max(height, width))
            numbers = class_numbers(drawn, 0)[:height, :width].copy()
            numbers[: max(1, height // 10)] = 0
            pixels = np.ascontiguousarray(drawn.images[0, :, :height, :width].transpose(1, 2, 0))
            save(root / "images" / split / f"ADE_{i:08d}.jpg", pixels)
            save(root / "annotations" / split / f"ADE_{i:08d}.png", numbers)
    (root / "classes.txt").write_text("background\n" + "\n".join(scenes.CLASSES))
    return root
