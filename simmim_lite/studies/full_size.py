"""The published grid at its own size: recipe, sizes, data levels, lengths and holes (FACTS 2 and 3). No torch here."""

import re

from ..errors import UserError
from ..model.sizes import PAPER
from ..training.run import PICTURE_CROP, Run

#: Unique images: ImageNet-1K at 10, 20, 50 and 100 %, drawn as `data_manifests/` draws them (rule hash, seed 0).
LEVELS = (128_117, 256_233, 640_584, 1_281_167)
#: All of ImageNet-22K: a data set of its own, from the second source.
WHOLE_22K = 14_197_122
#: Optimiser steps (iterations) at a batch of 2,048.
LENGTHS = (125_000, 250_000, 500_000)
#: Cells of (size, images) that were never published: 5 sizes x 5 data sets x 3 lengths less these = 63 runs.
HOLES = frozenset(
    {
        ("swinv2_small", WHOLE_22K),
        ("swinv2_huge", LEVELS[0]),
        ("swinv2_giant", LEVELS[0]),
        ("swinv2_giant", LEVELS[1]),
    }
)
#: The recipe as released for base (FACTS 3). Ours, because the paper's is unknown: bf16, 25,000 validation images (half
#: of ImageNet-1K's) x 4 masks every 12,500 steps, and no probes: runs are scored by fine-tuning, as published.
RECIPE = Run(
    model="swinv2_base",
    batch_size=2048,
    image_size=192,
    window_size=12,
    mask_patch=32,
    mask_ratio=0.6,
    target="normalized",
    target_window=47,
    augment=PICTURE_CROP,
    statistics="imagenet",
    lr=4e-4,  # 1e-4 per 512 images
    warmup_steps=6_250,  # from lr / 200 = 2e-6
    weight_decay=0.05,
    betas=(0.9, 0.999),
    clip_grad=5.0,
    drop_path=0.1,
    precision="bf16",
    subset_seed=0,  # the manifests'
    eval_every=12_500,
    val_images=25_000,
    val_masks=4,
    probe_labels=0,
)
#: What a recipe may set by size. Only base's was released; it is our default for all, and to be changed here.
BY_SIZE = {
    "swinv2_small": {"drop_path": 0.1},  # unknown in the paper; our default
    "swinv2_base": {"drop_path": 0.1},  # as released
    "swinv2_large": {"drop_path": 0.1},  # unknown in the paper; our default
    "swinv2_huge": {"drop_path": 0.1},  # unknown in the paper; our default
    "swinv2_giant": {"drop_path": 0.1},  # unknown in the paper; our default
}
LR = {
    "swinv2_small": 4e-4,  # unknown in the paper; our default
    "swinv2_base": 4e-4,  # as released
    "swinv2_large": 4e-4,  # unknown in the paper; our default
    "swinv2_huge": 4e-4,  # unknown in the paper; our default
    "swinv2_giant": 4e-4,  # unknown in the paper; our default
}
SIZES = tuple(PAPER)
TWO_SOURCES = "'imagefolder:IMAGENET1K + imagefolder:IMAGENET22K'"
_PLUS = re.compile(r"\s*\+\s*(?=scenes\b|(?:imagefolder|inaturalist|packed|torchvision|hf):)")


def sources(data: str) -> tuple[str, str | None]:
    """The one or two sources of a `data` parameter: `FIRST` or `FIRST + SECOND`, each as `Run.data` takes it.

    ImageNet-1K comes first, ImageNet-22K second. A plus inside the name of a folder is left alone. `UserError` for
    more than two.
    """
    parts = [part.rstrip("/") or part for part in _PLUS.split(data.strip())]
    if len(parts) > 2:
        raise UserError(f"data '{data}' names {len(parts)} sources: give one, or two as in {TWO_SOURCES}")
    return parts[0], parts[1] if len(parts) > 1 else None


def left_out(
    data: str, levels: tuple[int, ...], second: tuple[int, ...], available: int, more: int | None = None
) -> str:
    """What the images that are there cannot fill, in one line; empty when they fill every level.

    levels, second: images of the levels of the first and of the second source; available, more: images that these hold
    to train on, more = None without a second source.
    """
    first, other = sources(data)
    said = []
    short = [n for n in levels if n > available / 0.99]
    if short:
        near = [n for n in levels if available / 2 < n <= available] if available < levels[-1] else []
        named = _listed(sorted({*near, *short}))
        said.append(f"{first} holds {available:,} training images: in place of {named} all of them are taken")
    for n in second:
        if other is None and available < 0.99 * n:
            said.append(f"the level of {n:,} images is left out, a second source has it: --data {TWO_SOURCES}")
        elif other is not None and more < 0.99 * n:
            said.append(f"{other} holds {more:,} training images: in place of {n:,} all of them are taken")
    return "; ".join(said)


def _listed(numbers: list[int]) -> str:
    texts = [f"{n:,}" for n in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
