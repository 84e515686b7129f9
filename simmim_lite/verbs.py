"""What the verbs of the command line do. What is heavy is imported when called."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import Everywhere, UserError, check_writable
from .evidence import published
from .model.sizes import PAPER
from .processes import import_torch, speaks, waiting
from .studies.parameters import Study, StudyOptions
from .studies.tiers import NAMED, STUDIES, TRANSFER, claims_of
from .training import specs
from .training.run import Run, Runtime
from .training.tuning import Dense, FineTune, Probe

_NAMED = 20  # of a kind of problem that are named


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of steps, to be told (done, in all): how much there is to do is known when it is first told."""
    from .data.store import progress

    with contextlib.ExitStack() as stack:
        told = []

        def report(done: int, steps: int) -> None:
            if not told:  # in the process that speaks
                told.extend([stack.enter_context(progress(steps, title, "step")), 0])
            told[0](done - told[1])
            told[1] = done

        yield report


def run_of(arguments: argparse.Namespace, **defaults: object) -> Run:
    """The run of the options that were given; defaults: of fields that were not, in place of Run's own."""
    names = {f.name for f in dataclasses.fields(Run)}
    return Run(**{**defaults, **{name: value for name, value in vars(arguments).items() if name in names}})


def runtime_of(arguments: argparse.Namespace) -> Runtime:
    """How the options say that a run is executed."""
    return Runtime(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Runtime)})


def pretrain(arguments: argparse.Namespace) -> None:
    """`simmim-lite pretrain`."""
    import_torch()
    from .processes import pick_device
    from .training.callbacks import film_path
    from .training.pretrain import pretrain as train
    from .training.run import record_path

    run, runtime = run_of(arguments), runtime_of(arguments)
    check_writable(arguments.runs_dir, "choose another --runs-dir")
    pick_device(arguments.device)
    options = {name: getattr(arguments, name) for name in ("runs_dir", "device", "film", "log")}
    with _bar(run.key) as report:
        record = train(run, progress=report, runtime=runtime, **options)
    path = record_path(arguments.runs_dir, run)
    if record["status"] == "failed":
        raise Everywhere(f"{run.key} failed: {record['reason']} (its record is {path})")
    if not speaks():
        return
    final = record["final"]
    print(f"validation loss {final['val_loss']:.4f} +- {final['val_loss_se']:.4f} (standard error over images)")
    for name, score in record["transfer"].items():
        print(f"{name:8s} {score['metric']} {score['score']:.4f} [{score['low']:.4f}, {score['high']:.4f}]")
    if arguments.film:
        film = film_path(arguments.runs_dir, run)
        print(f"film: {film if film.exists() else 'none, the run was finished before; delete its record to film it'}")
    print(f"record: {path}")


def study(arguments: argparse.Namespace) -> None:
    """`simmim-lite study`: train what is missing, print the claims, run the notebooks, write the report."""
    from .studies import costs, engine, grids, notebooks, report, workers
    from .studies.speed import Gpus

    name, gpus = specs.value("study", Study, arguments.name), specs.read("gpus", Gpus, arguments.gpus)
    speed = {name: getattr(arguments, name) for name in ("images_per_second", "measure", "assume")}
    if not arguments.dry_run and (gpus != 1 or any(speed.values())):
        raise UserError("--gpus and a GPU's speed are about the cost that --dry-run shows: add it, or leave them out")
    if arguments.nodes != 1 and not arguments.commands:
        raise UserError("--nodes is about the lines that --commands prints: add --commands, or leave it out")
    known = [f.name for f in dataclasses.fields(StudyOptions)]
    options = {name: getattr(arguments, name) for name in known if hasattr(arguments, name)}
    each = options.pop("gpus_per_run") if arguments.commands else None  # of a command, whoever starts it
    how = StudyOptions(**options)
    grids.images_of(how.data)  # a source that is not there is no cost table, and no line to run
    _copies(arguments, how)  # a wrong parameter fails before anything is measured or trained
    counts = {"first_seed": arguments.first_seed, "minutes": arguments.minutes}
    chosen, said = engine.choose(name, how, measure=not (arguments.commands or arguments.dry_run), **counts)
    how = dataclasses.replace(how, seeds=chosen)
    if arguments.commands:
        each = 1 if each is None else each
        return print("\n".join(workers.lines(name, how, gpus_per_run=each, nodes=arguments.nodes)))
    print(said, end="\n" if said else "", flush=True)
    if arguments.dry_run:
        return print(costs.dry_run(name, how, gpus, **speed))
    check_writable(how.runs_dir, "choose another --runs-dir")
    found = _claims(name, how)
    sys.stdout.flush()
    copies, reason = _copies(arguments, how)
    if not copies:
        return print(f"without notebooks: {reason}; the report is made of them")
    runs, where = Path(how.runs_dir), {n: getattr(how, n) for n in ("workers", "engine", "address", "device")}
    executed, failures = notebooks.execute(copies, runs / "notebooks", **where)
    if executed:
        print(f"executed notebooks: {runs / 'notebooks'}")
    print(f"report: {report.write(runs / 'notebooks', runs / 'report', *found)}")
    notebooks.raise_first(failures)


def _claims(name: str, how: StudyOptions) -> tuple[list, list[dict]]:
    """Train what is missing, or at tier shipped nothing, and print what came of it; claims, and records of failures."""
    from .evidence import records as evidence
    from .evidence.claims import claims
    from .studies import engine

    if how.tier == "shipped":  # the notebooks show it beside the reader's own runs
        for of in [evidence.TRANSFER] if name == TRANSFER else evidence.shipped_names():
            records = evidence.shipped(of)
            print(f"shipped records {of}: {len(records)}")
            print("".join(f"{claim}\n" for claim in claims(records) if claim.id in claims_of(name)), end="")
        return [], []
    result = engine.study(name, **vars(how))
    failed = [record for record in result.records if record["status"] == "failed"]
    print("".join(f"{claim}\n" for claim in result.claims), end="")
    print(
        f"{len(result.records)} runs, {result.trained} trained now, {len(failed)} failed; "
        f"{result.core_seconds:.0f} core-seconds in {result.wall_seconds:.0f} s"
    )
    return result.claims, failed


def _copies(arguments: argparse.Namespace, how: StudyOptions) -> tuple[list, str]:
    """The notebooks of a study with their parameters, checked; or none, and why there are none."""
    from .studies import notebooks

    if arguments.no_notebooks:
        return [], "--no-notebooks"
    if missing := notebooks.not_installed():
        return [], f"not installed: {missing}; pip install papermill ipykernel, and run the same command again"
    given = {"tier": how.tier, "data": how.data, "runs_dir": how.runs_dir, "workers": how.workers or 0}
    given["seeds"] = list(how.seeds) if isinstance(how.seeds, tuple) else how.seeds or 0
    if (how.device, how.precision) != ("auto", "auto"):  # notebooks train on auto: let them train nothing
        given["tier"] = "shipped"
    try:
        studies = STUDIES if arguments.name == "all" else (arguments.name,)
        paths = [notebooks.find(NAMED[name].notebook) for name in studies]
    except UserError as error:
        return [], str(error)
    return [notebooks.Copy.of(path, given | dict(arguments.parameter)) for path in paths], ""


def plan(arguments: argparse.Namespace) -> None:
    """`simmim-lite plan`."""
    from .studies import planner
    from .studies.speed import Gpus

    names = ("budget_flops", "budget_gpu_hours", "measure", "sizes", "target", "law", "runs_dir")
    options = {name: getattr(arguments, name) for name in names}
    options["images_per_second"] = dict(text.partition("=")[::2] for text in arguments.images_per_second)
    found = planner.plan(arguments.images, gpus=specs.read("gpus", Gpus, arguments.gpus), **options)
    if arguments.json:
        return print(json.dumps(dataclasses.asdict(found), indent=1))
    print("\n".join(planner.lines(found)))


def _network(arguments: argparse.Namespace) -> Run:
    """A run that says which network is transferred, and on which data; its own weights are used if no file is given.

    The paper's networks come from a file at the paper's input, where no other is given (docs/facts.md, 3).
    """
    if arguments.weights and getattr(arguments, "model", None) in PAPER:
        return run_of(arguments, image_size=192, window_size=12, mask_patch=32, statistics="imagenet")
    return run_of(arguments)


def fields_of(texts: list[str], kind: type) -> dict[str, object]:
    """NAME=VALUE texts as fields of a spec, each read as its type; names that there are not are left to the spec."""
    hints, found = {f.name: f.type for f in dataclasses.fields(kind)}, {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UserError(f"'{text}' sets no field: write NAME=VALUE, as in lr=1e-3")
        found[name] = specs.read(name, hints.get(name, str), value)
    return found


def transfer(arguments: argparse.Namespace) -> None:
    """`simmim-lite transfer`."""
    import_torch()
    from .training.run import transfer_path
    from .training.transfer import scores
    from .training.transfer import transfer as transferred

    kind = {"probe": Probe, "classify": FineTune}.get(arguments.task, Dense)
    options = fields_of(arguments.set, kind)
    if arguments.scratch_set:
        options["scratch"] = fields_of(arguments.scratch_set, kind)
    options |= {name: getattr(arguments, name) for name in ("runs_dir", "device", "weights", "recipe")}
    with _bar(f"{arguments.task}, pretrained and from scratch") as report:
        result = transferred(_network(arguments), arguments.task, progress=report, **options)
    if not speaks():
        return
    trained, baseline = scores(result["trained"]), scores(result["baseline"])
    for name, lift in result["lift"].items():
        print(f"{name:9s} pretrained {trained[name]:.4f}   without {baseline[name]:.4f}   lift {lift:+.4f}")
    for which in ("trained", "baseline"):
        if result[which]["status"] == "failed":
            raise UserError(f"the {which} network's {arguments.task} failed: {result[which]['reason']}")
        print(f"record: {transfer_path(arguments.runs_dir, result[which]['key'])}")


def manifest(arguments: argparse.Namespace) -> None:
    """`simmim-lite manifest`."""
    from .data import manifests, packs, sources

    build, folder = arguments.action == "build", arguments.folder
    manifests.read(arguments.manifest, built=not build)  # before pictures are listed
    check_writable(arguments.out or ".")
    source = folder and sources.listing(f"{'packed' if packs.is_pack(folder) else 'imagefolder'}:{folder}")
    if build:
        content = manifests.build(arguments.manifest, source, arguments.out)
        return print(f"{content['name']}: {content['images']} images, digest {content['digest']}")
    _name(manifests.verify(arguments.manifest, source), f"{arguments.manifest} and {folder}")
    print(f"{arguments.manifest}: as the manifest says")


def pack(arguments: argparse.Namespace) -> None:
    """`simmim-lite data pack`."""
    from .data import packs, sources

    check_writable(arguments.out)
    done = packs.pack(sources.listing(arguments.source), arguments.out, short_side=arguments.short_side)
    left_out, shards = done.info["left_out"], done.info["shards"]
    if left_out:
        names = ", ".join(f"{name} ({reason})" for name, reason in left_out[:_NAMED])
        print(f"left out {len(left_out):,}, named in {done.folder / 'pack.json'}: {names}")
    size = sum(shard["bytes"] for shard in shards) / 1e9
    print(f"{done.info['pictures']:,} pictures in {len(shards):,} shards, {size:.3g} GB, digest {done.digest}")
    print(f"to train on it: --data packed:{arguments.out}")


def verify(arguments: argparse.Namespace) -> None:
    """`simmim-lite data verify`."""
    from .data import manifests, packs, sources

    if arguments.manifest:
        manifests.read(arguments.manifest, built=True)  # before all bytes are read
    problems = packs.verify(arguments.pack)
    if arguments.manifest:
        problems += manifests.verify(arguments.manifest, sources.listing(f"packed:{arguments.pack}"))
    _name(problems, arguments.pack)
    print(f"{arguments.pack}: every byte is as it was packed")


def _name(problems: list[str], where: str) -> None:
    """Print the first twenty problems of each kind, what stands before the colon; `UserError` where there are any."""
    for kind in dict.fromkeys(line.partition(":")[0] for line in problems):
        lines = [line for line in problems if line.partition(":")[0] == kind]
        print(*lines[:_NAMED], *[f"{kind}: {len(lines) - _NAMED:,} more"][: len(lines) > _NAMED], sep="\n")
    if problems:
        what = f"{len(problems):,} problem{'s' * (len(problems) > 1)}, see above"
        raise UserError(f"{where}: {what}; get the files from where they were copied, or make them again")


def records_import(arguments: argparse.Namespace) -> None:
    """`simmim-lite records import`."""
    from .evidence.claims import claims_of

    rows, notes = published.read_csv(arguments.file, arguments.scores)
    count = published.import_csv(arguments.file, arguments.runs_dir, arguments.scores)
    print(*claims_of(rows), *notes, sep="\n")
    where = f"from {arguments.file} into {arguments.runs_dir}"
    print(f"{count} run{'s' * (count > 1)} taken {where}; the studies' notebooks and plan show them")


def convert(arguments: argparse.Namespace) -> None:
    """`simmim-lite weights convert`."""
    import_torch()
    from .model import weights
    from .model.simmim import create_model

    source, target, layout = arguments.source, arguments.target, arguments.layout
    sides = {"img_size": arguments.image_size, "window_size": arguments.window_size}
    if layout != "hf" and any(sides.values()):
        raise UserError("--image-size and --window-size go into the config.json of layout hf: leave them out")
    weights.check_target(target, layout, source)
    if not weights.is_hub(source) and not Path(source).exists():
        raise UserError(f"{source}: no such file; give the weights to convert")
    with waiting(f"reading {source}"):
        model = create_model(arguments.model, **sides)
        loaded = weights.load_weights(model, source)
    # what the file does not hold is random here: nobody is to take it for trained
    weights.save_weights(model, target, layout=layout, image_size=arguments.image_size, without=loaded.kept)
    alone = ", the backbone alone" if loaded.kept or layout == "timm" else ""
    print(f"written: {target} ({layout}{alone})")


def show_weights(arguments: argparse.Namespace) -> None:
    """`simmim-lite weights show`."""
    import_torch()
    from .model.weights import show

    print("\n".join(show(arguments.source)))
