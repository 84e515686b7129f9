"""Runs as command lines: `simmim-lite pretrain` with every field, alone or under torchrun. No torch here."""

import dataclasses
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence

from ..errors import UserError
from ..model.sizes import PAPER
from ..training.run import RECIPE_VERSION, Run, Runtime, record_path
from ..training.specs import Count, checked
from .grids import TIERS, TRANSFER
from .parameters import Study, StudyOptions

#: Images of a part of a batch on one GPU, at 192 px; the rest is accumulated. Ours, and cautious: no GPU was measured.
PART = {"swinv2_small": 256, "swinv2_base": 128, "swinv2_large": 64, "swinv2_huge": 64, "swinv2_giant": 32}
#: Sizes whose blocks are computed again in the backward pass, and that are sharded over several GPUs (FSDP2); ours too.
LARGE = ("swinv2_huge", "swinv2_giant")
_SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"


def runtime_of(run: Run, gpus: int = 1) -> Runtime:
    """How a run is executed on GPUs: by `PART` and `LARGE` for the paper's sizes, plainly for a laptop's.

    `UserError` where the batch does not divide among the GPUs.
    """
    if run.batch_size % gpus:
        raise UserError(f"gpus_per_run {gpus} does not divide the batch of {run.batch_size}: give a divisor of it")
    if run.model not in PAPER:
        return Runtime()
    share, large = run.batch_size // gpus, run.model in LARGE
    parts = next(k for k in range(1, share + 1) if share % k == 0 and share // k <= PART[run.model])
    return Runtime(parallel="fsdp" if large and gpus > 1 else "ddp", accumulate=parts, checkpointing=large)


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


def log_words(log: Sequence[str]) -> list[str]:
    """The options that name who is told of a run while it trains."""
    return [word for name in log for word in ("--log-to", name)]


def torchrun_words(processes: int, words: Sequence[str], *, python: str = sys.executable) -> list[str]:
    """A command of ours under torchrun on one machine; SIGUSR1 and SIGTERM reach its processes."""
    launch = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launch, _SIGNALS, "-m", "simmim_lite", *words]


@checked
def lines(study: Study, how: StudyOptions, *, gpus_per_run: Count = 1, nodes: Count = 1) -> list[str]:
    """A shell line for each trunk of a study whose runs are not all done: its commands, shortest run first, by `&&`.

    gpus_per_run: processes a node, under torchrun where there is more than one process. On several nodes each node runs
    the line, with the first one's name in MASTER_ADDR and a number of the job in JOB. Nothing starts; the source is
    looked at for its levels (`engine.planned`), and precision `auto` is the tier's recipe's.
    """
    if study == TRANSFER or how.tier not in TIERS:
        tiers = ", ".join(TIERS)
        raise UserError(f"--commands is about pretraining at tier {tiers}: not study {study} at tier {how.tier}")
    from .engine import planned

    trunks, precision = defaultdict(list), None if how.precision == "auto" else how.precision
    for run in planned(study, how.tier, data=how.data, seeds=how.seeds, precision=precision)[0]:
        if not record_path(how.runs_dir, run).exists():
            trunks[run.trunk_key].append(run)
    found = []
    for runs in trunks.values():
        commands = []
        for run in sorted(runs, key=lambda run: run.steps):
            words = pretrain_words(
                run, runs_dir=how.runs_dir, device=how.device, runtime=runtime_of(run, gpus_per_run * nodes)
            )
            commands.append(
                f"{_launch(gpus_per_run, nodes)} -m simmim_lite {shlex.join([*words, *log_words(how.log)])}"
            )
        found.append(" && ".join(commands))
    return found


def _launch(gpus: int, nodes: int) -> str:
    if gpus * nodes == 1:
        return "python"
    meet = "--standalone"
    if nodes > 1:
        meet = f'--nnodes={nodes} --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:29500" --rdzv-id="$JOB"'
    return f"torchrun {meet} --nproc-per-node={gpus} {_SIGNALS}"
