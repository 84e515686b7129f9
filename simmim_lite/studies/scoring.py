"""Our validation loss of a checkpoint file, on a folder of images: the number that a run's record would hold.

The protocol of the published losses is not known (crop, masks, raw or normalised target), so only the order of
checkpoints may be compared with the published table, never the numbers.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..evidence import published
from ..processes import import_torch
from ..training.run import Run
from .tiers import BY_SIZE, RECIPE


@dataclass(frozen=True)
class Scored:
    """The validation loss of one checkpoint."""

    source: str  # file, or hf:// name
    loss: float  # mean absolute error of hidden pixels
    error: float  # standard error over images
    images: int
    masks: int  # an image
    target: str  # raw | normalized


def score(
    sources: Sequence[str | os.PathLike], *, run: Run, device: str = "auto", precision: str | None = None
) -> list[Scored]:
    """The validation loss of checkpoints of one size, in the order given, each as a record of `run` would have it.

    sources: files in any layout that `load_weights` reads, or names like hf://zdaxie/SimMIM/PATH. run: model, input,
    masks, target, data, and how many validation images (`val_images`) and masks an image (`val_masks`); with ImageNet's
    statistics no training image is read. precision: None = the run's. The same weights give the same number on every
    call. `UserError`, one line, for a checkpoint without mask token or reconstruction head.
    """
    import_torch()
    from ..data.sources import open_data
    from ..model.weights import is_hub, load_weights
    from ..processes import one_thread, pick_device
    from ..training.pretrain import build, validation_loss
    from ..training.probes import input_statistics

    for source in sources:  # all of them, before the first is scored
        if not is_hub(source) and not Path(source).exists():
            raise UserError(f"{source}: no such file; give a file of weights, or hf://OWNER/REPOSITORY/PATH")
    place, run = pick_device(device), replace(run, precision=precision or run.precision)
    stored = run.data == "scenes" or run.statistics == "dataset"
    opened = open_data(run.data, run.image_size, streamed=not stored)
    split, statistics = opened.val, input_statistics(opened, run.statistics)
    found = []
    with one_thread(place):
        for source in sources:
            model = build(run)
            load_weights(model, source, head=True)
            loss, error = validation_loss(model.to(place), split, run, *statistics, place)
            found.append(Scored(str(source), loss, error, min(run.val_images, len(split)), run.val_masks, run.target))
    return found


def show(arguments: argparse.Namespace) -> None:
    """Print the losses that the options ask for, lowest first, and the published order of that size."""
    run = recipe(arguments.model, arguments.data)
    run = replace(run, val_images=arguments.images, val_masks=arguments.masks, target=arguments.target or run.target)
    found = score(arguments.source, run=run, device=arguments.device, precision=arguments.precision)
    print("\n".join(lines(found, arguments.model)))


def recipe(model: str, data: str) -> Run:
    """A Run at whose input a size was pretrained: tier paper's, or of a laptop size the studies'."""
    return replace(RECIPE, model=model, data=data) if model in BY_SIZE else Run(model=model, data=data)


def lines(found: Sequence[Scored], model: str) -> list[str]:
    """Losses as text, lowest first, and the published losses of that size in the same order, if there are any."""
    one, rows = found[0], sorted((r for r in published.rows() if r["model"] == model), key=lambda r: r["val_loss"])
    shown = f"{one.images:,} images x {one.masks} masks, {one.target} target"
    said = [f"validation loss, {shown} (standard error over images)"]
    said += [f"{s.loss:.4f} ± {s.error:.4f}  {s.source}" for s in sorted(found, key=lambda s: s.loss)]
    if rows:
        said += ["", f"published losses of {model}, lowest first ({published.SOURCE})"]
        said += [f"{r['val_loss']:.4f}  {r['dataset']}, {r['steps']:,} iterations" for r in rows]
        said += ["", "the protocol of the published losses is unknown: compare the order alone, never the numbers"]
    return said
