"""The verb `study`, and runs as command lines: `simmim-lite pretrain` with every field. No torch here."""

import argparse
import dataclasses
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, check_writable
from ..model.sizes import PAPER
from ..training.run import RECIPE_VERSION, Run, Runtime, record_path
from ..training.specs import Count, checked, value
from . import parameters
from .grids import STUDIES, TIERS, TRANSFER, claims_of
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
    looked at for its levels (`planned`), and precision `auto` is the tier's recipe's.
    """
    if study == TRANSFER or how.tier not in TIERS:
        tiers = ", ".join(TIERS)
        raise UserError(f"--commands is about pretraining at tier {tiers}: not study {study} at tier {how.tier}")
    from .transfer_grid import planned

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


def show(arguments: argparse.Namespace) -> None:
    """`simmim-lite study`: train what is missing, print the claims, run the notebooks, write the report."""
    from . import costs
    from .engine import choose

    name, on = value("study", Study, arguments.name), costs.asked(arguments)
    known = [f.name for f in dataclasses.fields(StudyOptions)]
    options = {name: getattr(arguments, name) for name in known if hasattr(arguments, name)}
    gpus = options.pop("gpus_per_run") if arguments.commands else None  # of a command, whoever starts it
    how = StudyOptions(**options)
    start = not (arguments.commands or arguments.dry_run)
    parameters.images_of(how.data)  # a source that is not there is no cost table, and no line to run
    if arguments.nodes != 1 and not arguments.commands:
        raise UserError("--nodes is about the lines that --commands prints: add --commands, or leave it out")
    _copies(arguments, how)  # a wrong parameter fails before anything is measured or trained
    counts = {"first_seed": arguments.first_seed, "minutes": arguments.minutes}
    chosen, said = choose(name, how, measure=start, **counts)  # before anything is seen
    how = dataclasses.replace(how, seeds=chosen)
    if said and not arguments.commands:
        print(said, flush=True)
    planned, reason = _copies(arguments, how)
    if arguments.commands:
        return print("\n".join(lines(name, how, gpus_per_run=1 if gpus is None else gpus, nodes=arguments.nodes)))
    if arguments.dry_run:
        from .collecting import dry_run

        return print(dry_run(name, how, on))
    check_writable(how.runs_dir, "choose another --runs-dir")
    claims, failed = _shipped(name) if how.tier == "shipped" else _train(name, how)
    sys.stdout.flush()
    if not planned:
        return print(f"without notebooks: {reason}; the report is made of them")
    from . import notebooks, report

    runs = Path(how.runs_dir)
    where = {name: getattr(how, name) for name in ("workers", "engine", "address", "device")}
    executed, failures = notebooks.execute(planned, runs / "notebooks", **where)
    if executed:
        print(f"executed notebooks: {runs / 'notebooks'}")
    print(f"report: {report.write(runs / 'notebooks', runs / 'report', claims, failed)}")
    notebooks.raise_first(failures)


def _train(name: str, how: StudyOptions) -> tuple[list, list[dict]]:
    """Train what is missing, and print what came of it; the claims, and the records of failed runs."""
    from . import engine

    result = engine.study(name, **vars(how))
    failed = [record for record in result.records if record["status"] == "failed"]
    print("".join(f"{claim}\n" for claim in result.claims), end="")
    print(
        f"{len(result.records)} runs, {result.trained} trained now, {len(failed)} failed; "
        f"{result.core_seconds:.0f} core-seconds in {result.wall_seconds:.0f} s"
    )
    return result.claims, failed


def _shipped(name: str) -> tuple[list, list]:
    """Print what the shipped records say; the notebooks show it beside the reader's own runs."""
    from ..evidence import records as evidence
    from ..evidence.claims import claims

    for of in [evidence.TRANSFER] if name == TRANSFER else evidence.shipped_names():
        records = evidence.shipped(of)
        print(f"shipped records {of}: {len(records)}")
        print("".join(f"{claim}\n" for claim in claims(records) if claim.id in claims_of(name)), end="")
    return [], []


def _copies(arguments: argparse.Namespace, how: StudyOptions) -> tuple[list, str]:
    """The notebooks of a study with their parameters, checked; or none, and why there are none."""
    from . import notebooks

    if arguments.no_notebooks:
        return [], "--no-notebooks"
    if missing := notebooks.not_installed():
        return [], f"not installed: {missing}; {notebooks.HOW_TO_GET}, and run the same command again"
    studies = STUDIES if arguments.name == "all" else (arguments.name,)
    try:
        paths = [notebooks.find(notebooks.NOTEBOOKS[study]) for study in studies]
    except UserError as error:
        return [], str(error)
    given = {"tier": how.tier, "data": how.data, "runs_dir": how.runs_dir, "workers": how.workers or 0}
    given["seeds"] = list(how.seeds) if isinstance(how.seeds, tuple) else how.seeds or 0
    if (how.device, how.precision) != ("auto", "auto"):  # notebooks train on auto: let them train nothing
        given["tier"] = "shipped"
    texts = dict(arguments.parameter)
    return [notebooks.Copy(path, given | parameters.from_text(path, texts), path.stem) for path in paths], ""
