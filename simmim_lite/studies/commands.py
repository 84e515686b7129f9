"""Runs as command lines, exactly: for a scheduler, a task on several GPUs, and a reader to copy. No torch here."""

import argparse
import dataclasses
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..model.sizes import PAPER
from ..training.run import Run
from ..training.runtime import Runtime
from ..training.writers import check_writers

#: Images of a part of a batch on one GPU, at 192 px; the rest is accumulated. Ours, and cautious: no GPU was measured.
PART = {"swinv2_small": 256, "swinv2_base": 128, "swinv2_large": 64, "swinv2_huge": 64, "swinv2_giant": 32}
#: Sizes whose blocks are computed again in the backward pass, and that are sharded over several GPUs (FSDP2).
LARGE = ("swinv2_huge", "swinv2_giant")
TORCHRUN = "torchrun --standalone --nproc-per-node={gpus} -m simmim_lite"


def runtime_of(run: Run, gpus: int = 1) -> Runtime:
    """How a run is executed on GPUs: by default for a laptop's sizes, by `PART` and `LARGE` for the paper's.

    `UserError` where the batch does not divide among the GPUs.
    """
    if run.batch_size % gpus:
        raise UserError(f"gpus_per_run {gpus} does not divide the batch of {run.batch_size}: give a divisor of it")
    if run.model not in PAPER:
        return Runtime()
    share, large = run.batch_size // gpus, run.model in LARGE
    parts = next(k for k in range(1, share + 1) if share % k == 0 and share // k <= PART[run.model])
    return Runtime(parallel="fsdp" if large and gpus > 1 else "ddp", accumulate=parts, checkpointing=large)


def pretrain_words(run: Run, runs_dir: str | Path, runtime: Runtime | None = None, device: str = "auto") -> list[str]:
    """The words after `simmim-lite` that train exactly this run: every field that is not its default."""
    words, default = ["pretrain"], Run()
    for field in dataclasses.fields(Run):
        value = getattr(run, field.name)
        if field.name != "recipe_version" and value != getattr(default, field.name):
            text = ",".join(map(repr, value)) if field.name == "betas" else str(value)
            words += [_option(field.name), text]
    for field in dataclasses.fields(Runtime):
        value = getattr(runtime or Runtime(), field.name)
        if value != field.default:
            words += [_option(field.name)] if value is True else [_option(field.name), str(value)]
    words += ["--device", device] if device != "auto" else []
    return [*words, "--runs-dir", str(runs_dir)]


def log_words(log: Sequence[str]) -> list[str]:
    """The options that name who is told of a run while it trains."""
    return [word for name in log for word in ("--log-to", name)]


def lines(runs: Sequence[Run], runs_dir: str | Path, gpus: int = 1, log: Sequence[str] = ()) -> list[str]:
    """A line a trunk: the commands of its runs that are not there yet, shortest first, so that they share it.

    log: who is told of them (`--log-to`).
    """
    families = defaultdict(list)
    for run in runs:
        families[run.trunk_key].append(run)
    found = []
    program = TORCHRUN.format(gpus=gpus) if gpus > 1 else "simmim-lite"
    for family in families.values():
        words = [
            f"{program} {shlex.join([*pretrain_words(run, runs_dir, runtime_of(run, gpus)), *log_words(log)])}"
            for run in sorted(family, key=lambda run: run.steps)
            if not (Path(runs_dir) / "records" / f"{run.key}.json").exists()
        ]
        if words:
            found.append(" && ".join(words))
    return found


def show(arguments: argparse.Namespace) -> None:
    """`study … --commands`: print the lines, and start nothing."""
    from .engine import opened_plan

    check_writers(arguments.log)
    runs, tasks = opened_plan(arguments.name, arguments.tier, arguments.data, arguments.seeds, arguments.precision)
    for line in lines(runs, arguments.runs_dir, arguments.gpus_per_run, arguments.log):
        print(line)
    if tasks:
        what = f"{len(tasks)} transfers are left to the study itself: run it when these are finished"
        print(f"simmim-lite: {what}", file=sys.stderr)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
