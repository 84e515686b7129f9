"""What a study costs on GPUs, before anything starts: steps, FLOPs, GPU hours, days, disk. No torch here.

Hours come from images a second that were given or measured, or from an assumption that the reader states and the table
repeats; where there is neither, the table has none.
"""

import argparse
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..evidence.records import flops_text, millions, short
from ..model.sizes import SIZES
from ..training.run import Run
from ..training.specs import read
from . import full_size, speed
from .collecting import cost_of, preview_text
from .grids import TIERS, Tier
from .parameters import StudyOptions, images_of

if TYPE_CHECKING:
    from .cluster import Cluster

#: A validated image against a trained one: forward alone is a third of forward and backward.
_FORWARD = 1 / 3
_STATE = 12  # bytes a parameter in a checkpoint: weight and AdamW's two moments, fp32
_WEIGHT = 4  # bytes a parameter in final weights, fp32
#: Beside the one that each trunk leaves where the rate drops: the one before it, the one that the run went on from, and
#: the newest two of its tail.
_IN_TRAINING = 4
#: An image as JPEG at short side 256, in bytes. An assumption, and printed as one: it depends on the images.
PACKED = 30_000
_HOW = (
    "--images-per-second base=NUMBER (or a FILE.json of a bench), --measure cuda on a machine that has the GPU, or "
    "--assume SHARE@TFLOPS, a share of a peak that you state"
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the runs of one size cost, or all together, as they will be trained: lengths off one trunk share it."""

    name: str
    runs: int
    done: int  # records that are there
    trunks: int
    steps: int  # optimiser steps
    images: int  # images trained on, repeats counted
    flops: float  # 6 x multiply-accumulates, head counted, x images
    hours: float | None  # of one GPU, validation counted; None where no speed is known
    checkpoints: int  # bytes, at most: one trunk in training at a time
    weights: int  # bytes


@dataclass(frozen=True)
class Speed:
    """Images a second of training on one GPU by model; {} where they are unknown, and how they are known, to print."""

    images: Mapping[str, float]
    source: str


def costs(runs: Sequence[Run], speeds: Mapping[str, float], runs_dir: str | Path = "runs") -> list[Cost]:
    """The cost of runs by size, and of all of them as the last; speeds: images a second of one GPU by model, or {}."""
    found = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        shared, size = cost_of(own, runs_dir), SIZES[model]
        trunks = {run.trunk_key for run in own if run.steps}
        seconds = (shared["images"] + _FORWARD * _validated(own)) / speeds[model] if speeds else None
        found.append(
            Cost(
                name=f"{short(model)} ({millions(size.parameters)})",
                runs=len(own),
                done=round(shared["done"]),
                trunks=len(trunks),
                steps=round(shared["steps"]),
                images=round(shared["images"]),
                flops=shared["flops"],
                hours=None if seconds is None else seconds / 3600,
                checkpoints=(len(trunks) + _IN_TRAINING) * _STATE * size.simmim_parameters,
                weights=len(own) * _WEIGHT * size.simmim_parameters,
            )
        )
    names = ("runs", "done", "trunks", "steps", "images", "flops", "weights")
    total = {name: sum(getattr(cost, name) for cost in found) for name in names}
    hours = sum(cost.hours for cost in found) if speeds else None
    # trunks end one after the other: what is in training is counted once, of the largest
    state = [_STATE * SIZES[model].simmim_parameters for model in dict.fromkeys(run.model for run in runs)]
    left = sum(cost.trunks * each for cost, each in zip(found, state, strict=True))
    return [*found, Cost(name="all", hours=hours, checkpoints=left + _IN_TRAINING * max(state), **total)]


def find_speed(
    runs: Sequence[Run],
    *,
    images_per_second: Iterable[str] = (),
    measure: str | None = None,
    assume: str | None = None,
    runs_dir: str | Path = "runs",
) -> Speed:
    """How fast one GPU trains each size of some runs of one recipe, by the way that is asked for.

    images_per_second: texts `base=900`, or one `FILE.json` (`speed.read`). measure: a device of this machine, timed now
    and kept in RUNS_DIR/machine.json. assume: `SHARE@TFLOPS`, as in `0.4@989`. Without any of them what RUNS_DIR's
    machine.json holds at this image size. Sizes without a speed are scaled by their FLOPs. `UserError` for two ways at
    once, and for a text that is none of these.
    """
    run, texts = runs[0], list(images_per_second)
    if sum(map(bool, (texts, measure, assume))) > 1:
        raise UserError("speed is given twice: give one of --images-per-second, --measure and --assume")
    flop = {m: 6e9 * SIZES[m].gmac(run.image_size, run.window_size, head=True) for m in {r.model for r in runs}}
    if assume:
        share, peak = _assumed(assume)
        said = f"assuming {100 * share:g} % of a stated peak of {peak:g} TFLOP/s; nothing was measured"
        return Speed({m: share * peak * 1e12 / each for m, each in flop.items()}, said)
    if texts:
        if len(texts) == 1 and texts[0].endswith(".json"):
            known, device = speed.read(texts[0], run.image_size)
            said = f"by the speed in {texts[0]}, measured on {device}"
        else:
            known, said = speed.checked(speed.parse(texts)), "by the images a second that you gave"
    elif measure:
        known, said = measured_now(runs, measure, runs_dir)
    else:
        known, device = speed.measured(runs_dir, run.image_size)
        said = f"by the speed measured on {device} ({Path(runs_dir) / 'machine.json'})"
    if not known:
        return Speed({}, f"unknown; give {_HOW}")
    every = {m: 6e9 * SIZES[m].gmac(run.image_size, run.window_size, head=True) for m in known if m not in flop} | flop
    guessed = [short(m) for m in SIZES if m in flop and m not in known]
    said += f"; {', '.join(guessed)} scaled by FLOPs" if guessed else ""
    found = speed.scaled(known, every)
    return Speed({m: found[m] for m in flop}, said)


def measured_now(runs: Sequence[Run], device: str, runs_dir: str | Path) -> tuple[dict[str, float], str]:
    """Images a second by model, timed on a device of this machine and kept in RUNS_DIR/machine.json; how they came."""
    side = runs[0].image_size
    known, name = speed.measure(dict.fromkeys(run.model for run in runs), side, device)
    path = speed.keep(runs_dir, known, name, side, "bf16" if device.startswith("cuda") else "fp32")
    return known, f"by the speed measured on {name} just now (kept in {path})"


def rows(found: Sequence[Cost], gpus: int = 1) -> list[dict[str, str]]:
    """Costs as text, a line a size and one of all."""
    days = f"days on {gpus} GPU{'s' * (gpus > 1)}"
    return [
        {
            "model size": cost.name,
            "runs": f"{cost.runs:,}",
            "trunks": f"{cost.trunks:,}",
            "steps": f"{cost.steps:,}",
            "images seen": f"{cost.images:,}",
            "FLOPs": flops_text(cost.flops),
            "GPU hours": "–" if cost.hours is None else _number(cost.hours),
            days: "–" if cost.hours is None else _number(cost.hours / 24 / gpus),
            "checkpoints": bytes_text(cost.checkpoints),
            "weights": bytes_text(cost.weights),
            "done": f"{cost.done:,} of {cost.runs:,}",
        }
        for cost in found
    ]


def text(
    runs: Sequence[Run], *, tier: str, data: str, gpus: int = 1, known: Speed, runs_dir: str | Path = "runs"
) -> str:
    """The table of costs for a terminal, and under it what its numbers rest on."""
    apart = sum(run.steps for run in runs)
    said = [
        f"steps as they will be trained: lengths share their trunk; one by one they would be {apart:,}",
        f"GPU hours: {known.source}" + ("; validation counted, loading not" if known.images else ""),
    ]
    if known.images:
        said.append("images a second of one GPU: " + ", ".join(f"{short(m)} {known.images[m]:,.0f}" for m in _of(runs)))
        if gpus > 1:
            said.append(f"days: {gpus} GPUs are taken to be {gpus} times as fast as one, and never to stand idle")
    said.append(
        "checkpoints, at most: one of each trunk stays where its rate drops, and four more of the one in training"
    )
    axes = TIERS[tier]
    said += [f"images: {line}" for line in _stores(runs, axes)]
    if axes.full_size:
        unknown = [short(m) for m in _of(runs) if m != full_size.RECIPE.model]
        said.append(
            f"recipe: as released for base; drop path and learning rate of {', '.join(unknown)} are unknown in the "
            "paper, and are our defaults (BY_SIZE and LR in studies/full_size.py)"
        )
        if "scenes" in full_size.sources(data):
            said.append(
                "data: none is given, and this is the published grid; a study starts with photographs: "
                f"--data {full_size.TWO_SOURCES}"
            )
        elif held := images_of(data):
            levels = (axes.images, axes.second_images, held.get("available", math.inf), held.get("second_available"))
            said += [f"data: {line}" for line in filter(None, [full_size.left_out(data, *levels)])]
    return "\n".join([preview_text(rows(costs(runs, known.images, runs_dir), gpus)), *said])


def start(runs: Sequence[Run], how: StudyOptions, cluster: "Cluster | None" = None) -> dict[str, float]:
    """Before the missing runs of a full-size tier start: print their cost; seconds of an optimiser step by "MODEL
    PRECISION", timed on the device (of this machine, or of the cluster) where they are not known.

    `UserError` where there is no GPU and device is `auto`: one line with the cost and the remedy, nothing started. So
    for scenes, which have no photographs.
    """
    tier, data, device, runs_dir = how.tier, how.data, how.device, how.runs_dir
    from ..processes import pick_device

    place = cluster.device if cluster else str(pick_device(device))
    known = find_speed(runs, runs_dir=runs_dir)
    if place == "cpu" and device == "auto":
        whole = costs(runs, known.images, runs_dir)[-1]
        hours = f"{_number(whole.hours)} GPU hours" if known.images else "GPU hours unknown"
        raise UserError(
            f"tier {tier} needs GPUs, and this {'cluster' if cluster else 'machine'} has none: "
            f"{whole.runs} runs, {whole.done} of them done, are "
            f"{whole.steps:,} steps, {flops_text(whole.flops)}, {hours}, {bytes_text(whole.checkpoints)} of "
            "checkpoints; --dry-run shows the cost by size"
        )
    if "scenes" in full_size.sources(data):
        raise UserError(f"tier {tier} is about photographs of {runs[0].image_size} px: give --data imagefolder:DIR")
    if place == "cpu":
        models = [[run for run in runs if run.model == model] for model in _of(runs)]
        full_size.check_cpu(runs, tier, sum(cost_of(own, runs_dir)["seconds"] for own in models))
    if not known.images:
        cluster.call(measured_now, runs, place, runs_dir) if cluster else measured_now(runs, place, runs_dir)
        known = find_speed(runs, runs_dir=runs_dir)
    gpus = cluster.gpus if cluster else 1
    if not cluster and place.startswith("cuda"):
        import torch

        gpus = torch.cuda.device_count()
    print(text(runs, tier=tier, data=data, gpus=gpus, known=known, runs_dir=runs_dir), file=sys.stderr, flush=True)
    return {f"{run.model} {run.precision}": run.batch_size / known.images[run.model] for run in runs}


def asked(arguments: argparse.Namespace) -> dict[str, object]:
    """The options of `options` that were given, by name; `UserError` where they are given without --dry-run."""
    found = {name: getattr(arguments, name) for name in ("images_per_second", "measure", "assume")}
    found = {name: value for name, value in found.items() if value}
    if arguments.gpus != "1":
        found["gpus"] = read("gpus", speed.Gpus, arguments.gpus)
    if found and not arguments.dry_run:
        name = next(iter(found)).replace("_", "-")
        raise UserError(f"--{name} is about the cost that --dry-run shows: add --dry-run, or leave it out")
    return found


def bytes_text(count: float) -> str:
    """Bytes to read: `197 MB`, `1.57 TB`, in powers of 1,000."""
    power = max(0, min(5, int(math.log10(max(count, 1)) // 3)))
    return f"{count / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB', 'PB'][power]}"


def _of(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.model for run in runs))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _validated(runs: Sequence[Run]) -> int:
    """Images that the runs of one size are validated on, masks counted: on the curve of each trunk and tail, and at
    the end of each run."""
    families = defaultdict(list)
    for run in runs:
        families[run.trunk_key].append(run)
    count = 0
    for family in families.values():
        longest = max(run.steps for run in family)
        for run in family:
            first = 0 if run.steps == longest else run.drop_step
            points = max(0, run.steps - 1) // run.eval_every - first // run.eval_every
            count += (points + 1) * run.val_images * run.val_masks
    return count


def _stores(runs: Sequence[Run], axes: Tier) -> list[str]:
    """The space of each source's images: decoded at the input's size, or at full size as they are read."""
    most = defaultdict(int)
    for run in runs:
        drawn = axes.full_size and run.data == "scenes"  # no source is given: the published grid
        name = "ImageNet-22K" if run.images in axes.second_images else "ImageNet-1K" if drawn else run.data
        most[name, run.image_size] = max(most[name, run.image_size], run.images or 0)
    said = []
    for (name, side), images in most.items():
        if not axes.full_size:
            said.append(f"{name}, {bytes_text(3 * side**2 * images)} for {images:,} decoded at {side} px")
            continue
        held = max(run.val_images for run in runs)
        packed = f"{bytes_text(PACKED * images)} where {images:,} are packed (assuming {PACKED / 1000:g} kB each)"
        most_held = f"{bytes_text(3 * side**2 * held)} for {held:,} validation images decoded"
        said.append(f"{name}, {packed}, at most {most_held}")
    return said


def _assumed(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"([0-9.]+)@([0-9.]+)", text)
    try:
        share, peak = map(float, found.groups())
    except (AttributeError, ValueError):
        share = peak = math.nan
    if not (0 < share <= 1 and peak > 0):
        raise UserError(f"--assume is '{text}': give SHARE@TFLOPS, as in 0.4@989, a share above 0 and at most 1")
    return share, peak
