"""Views of an image and its labels for segmentation: resized, cropped, flipped, its colours distorted.

Random draws come from torch's global generator, which `loading.StepLoader` seeds for each sample.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from .ade20k import IGNORED

LONGEST = 4  # a long side is at most so many short ones: the field's 2,048 at 512
RATIOS = (0.5, 2.0)  # of the size, in full-size training
CATEGORY_SHARE = 0.75  # a crop in which one class has so much of what is labelled is drawn again ...
_TRIES = 10  # ... so often
_BRIGHTNESS, _FACTORS, _HUE = 32.0, (0.5, 1.5), 0.1  # levels; contrast and saturation; turns


def flipped_crop(image: Tensor, labels: Tensor, size: int, fill: Tensor) -> tuple[Tensor, Tensor]:
    """The laptop's view: short side `size`, a random square of it, flipped half of the time."""
    return _flip(*_crop(*resize(image, labels, size), size, fill, tries=1))


def full_view(image: Tensor, labels: Tensor, size: int, fill: Tensor) -> tuple[Tensor, Tensor]:
    """The field's view at full size: size times .5 to 2, a square of `size` with a limit on its commonest class,
    flipped half of the time, colours distorted.

    image uint8 (3, H, W), labels uint8 (H, W) -> (3, size, size), (size, size); what lies outside the image is `fill`
    uint8 (3,) and `IGNORED`.
    """
    low, high = RATIOS
    image, labels = resize(image, labels, size * _uniform(low, high))
    image, labels = _flip(*_crop(image, labels, size, fill, tries=_TRIES))
    return distort(image), labels


def resize(image: Tensor, labels: Tensor | None, size: float) -> tuple[Tensor, Tensor | None]:
    """Short side `size`, unless the long one would be above `LONGEST` x `size`; labels by the nearest pixel."""
    height, width = image.shape[-2:]
    factor = min(size / min(height, width), LONGEST * size / max(height, width))
    sides = [max(1, round(height * factor)), max(1, round(width * factor))]
    if sides == [height, width]:
        return image, labels
    image = TF.resize(image, sides, antialias=True)
    if labels is not None:
        labels = TF.resize(labels[None], sides, TF.InterpolationMode.NEAREST_EXACT)[0]
    return image, labels


def distort(image: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of an image uint8 (3, H, W), each changed half of the time.

    As the field's photometric distortion: 32 levels of brightness, contrast (before or after the other two) and
    saturation times .5 to 1.5, a tenth of a turn of hue.
    """
    if _coin():
        image = _levels(image + _uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = _coin()
    for contrast in (contrast_first, None, not contrast_first):
        if contrast and _coin():
            image = _levels(image * _uniform(*_FACTORS))
        if contrast is None:
            if _coin():
                image = TF.adjust_saturation(image, _uniform(*_FACTORS))
            if _coin():
                image = TF.adjust_hue(image, _uniform(-_HUE, _HUE))
    return image


def _crop(image: Tensor, labels: Tensor, size: int, fill: Tensor, tries: int) -> tuple[Tensor, Tensor]:
    """A random square of `size`, or as much of it as there is, padded below and to the right."""
    height, width = labels.shape
    for left_over in reversed(range(tries)):
        top, left = _below(height - size + 1), _below(width - size + 1)
        part = labels[top : top + size, left : left + size]
        if not left_over or _mixed(part):
            break
    image = image[:, top : top + size, left : left + size]
    pad = (0, size - part.shape[1], 0, size - part.shape[0])
    if any(pad):
        outside = F.pad(torch.zeros_like(part, dtype=torch.bool), pad, value=True)
        image = torch.where(outside, fill[:, None, None], F.pad(image, pad))
        part = F.pad(part, pad, value=IGNORED)
    return image, part


def _mixed(labels: Tensor) -> bool:
    """Whether no class has too large a share of what is labelled."""
    count = torch.bincount(labels[labels != IGNORED].flatten())
    return bool((count > 0).sum() > 1 and count.max() < CATEGORY_SHARE * count.sum())


def _flip(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (image.flip(-1), labels.flip(-1)) if _coin() else (image, labels)


def _levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _coin() -> bool:
    return torch.rand(()).item() < 0.5


def _below(n: int) -> int:
    """A whole number from 0 to n - 1; 0 for an n below 1."""
    return int(torch.randint(max(1, n), ()))
