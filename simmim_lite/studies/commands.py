"""Runs as command lines: `simmim-lite pretrain` with every field, alone or under torchrun. No torch here."""

import dataclasses
import sys
from collections.abc import Sequence

from ..errors import UserError
from ..training.run import RECIPE_VERSION, Run
from ..training.runtime import Runtime


def pretrain_words(run: Run, *, runs_dir: str, device: str = "auto", runtime: Runtime | None = None) -> list[str]:
    """`pretrain …`, which the command line reads back as this run and this runtime."""
    if run.recipe_version != RECIPE_VERSION:
        raise UserError(f"{run.key} is of recipe {run.recipe_version}: this version runs {RECIPE_VERSION} alone")
    words = ["pretrain"]
    for field in dataclasses.fields(Run):
        name, value = f"--{field.name.replace('_', '-')}", getattr(run, field.name)
        if field.name == "betas":
            words += [name, *map(str, value)]
        elif value is not None and field.name != "recipe_version":  # None is the default where it is allowed
            words.append(f"{name}={value}")
    for field in dataclasses.fields(Runtime):
        value = getattr(runtime or Runtime(), field.name)
        if value != field.default:
            words.append(f"--{field.name}" if value is True else f"--{field.name}={value}")
    return [*words, f"--runs-dir={runs_dir}", f"--device={device}"]


def torchrun_words(processes: int, words: Sequence[str], *, python: str = sys.executable) -> list[str]:
    """A command of ours under torchrun on one machine; SIGUSR1 and SIGTERM reach its processes."""
    launch = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launch, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "-m", "simmim_lite", *words]
