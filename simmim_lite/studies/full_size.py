"""The published grid at its own size: recipe, sizes, data levels, lengths, holes (docs/facts.md, 2 and 3). No torch."""

import contextlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..data.sources import FORMATS, catalogue, kind_of
from ..errors import UserError
from ..model.sizes import PAPER
from ..model.sizes import SIZES as BY_NAME
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
#: The recipe as released for base (docs/facts.md, 3). Ours, because the paper's is unknown: bf16, 25,000 validation
#: images (half of ImageNet-1K's) x 4 masks every 12,500 steps, no probes: runs are scored by fine-tuning, as published.
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
#: What a recipe may set by size, and the peak learning rate. Only base's were released; they are our defaults for all,
#: and to be changed here.
BY_SIZE = {model: {"drop_path": 0.1} for model in PAPER}
LR = dict.fromkeys(PAPER, 4e-4)
SIZES = tuple(PAPER)
TWO_SOURCES = "'imagefolder:IMAGENET1K + imagefolder:IMAGENET22K'"
#: Pictures of a source whose sides are looked at before anything starts.
_LOOKED_AT = 16
#: Bytes that backward keeps at least of a token's channel in a block (measured: 23 to 37 numbers of 4 bytes).
_KEPT = 80
_YEAR = 365 * 86400
_STARTS = "|".join(kind + (":" if row.place else r"\b") for kind, row in FORMATS.items())
_PLUS = re.compile(rf"\s*\+\s*(?=(?:{_STARTS}))")


def sources(data: str) -> tuple[str, str | None]:
    """The one or two sources of a `data` parameter: `FIRST` or `FIRST + SECOND`, each as `Run.data` takes it.

    ImageNet-1K comes first, ImageNet-22K second. A plus inside the name of a folder is left alone. `UserError` for
    more than two.
    """
    parts = [part.rstrip("/") or part for part in _PLUS.split(data.strip())]
    if len(parts) > 2:
        raise UserError(f"data '{data}' names {len(parts)} sources: give one, or two as in {TWO_SOURCES}")
    return parts[0], parts[1] if len(parts) > 1 else None


def check_sides(source: str, tier: str, side: int) -> None:
    """`UserError` where every picture that is looked at is smaller than a tier's input. Nothing is downloaded."""
    kind, _ = kind_of(source)
    if kind == "scenes" or not FORMATS[kind].local:
        return
    found = catalogue(source)
    sides = []
    for i in found.train[:: max(1, len(found.train) // _LOOKED_AT)][:_LOOKED_AT]:
        with contextlib.suppress(Exception):  # decoders raise errors of many kinds; training names what it leaves out
            sides.append(min(found.picture(int(i)).size))
    if sides and max(sides) < side:
        raise UserError(
            f"{source} holds pictures of at most {max(sides)} px on their shorter side ({len(sides)} looked at), and "
            f"tier {tier} trains at {side} px: give larger pictures, or another tier"
        )


def check_cpu(runs: Sequence[Run], tier: str, seconds: float) -> None:
    """`UserError` where a processor could not end the runs in a year, or not hold one of them; seconds: of one core."""
    cores = os.cpu_count() or 1
    years, least, there = seconds / cores / _YEAR, min(map(_memory_of, runs)), _memory_there()
    if years > 1 or least > there:
        raise UserError(
            f"tier {tier} cannot run on this machine's processor: about {years:,.0f} years on {cores} cores, and at "
            f"least {_gigabytes(least)} of memory for a step of the smallest size, of which there are "
            f"{_gigabytes(there)}; take a machine with GPUs, or another tier"
        )


def _memory_of(run: Run) -> float:
    """Bytes that a step needs at least in one process: weights, gradients, AdamW's moments, and what backward keeps."""
    size = BY_NAME[run.model]
    stages = zip(size.depths, size.widths, size.stage_grids(run.image_size), strict=True)
    return 16 * size.simmim_parameters + run.batch_size * _KEPT * sum(n * c * grid**2 for n, c, grid in stages)


def _memory_there() -> float:
    """Bytes of memory of this machine, or of the container that this process is in."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


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


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.0f} GB"
