"""What the verbs of the command line do. What is heavy is imported when called."""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import Everywhere, UserError, check_writable
from .evidence import imported
from .model.sizes import PAPER
from .processes import import_torch, waiting
from .training import specs
from .training.run import Run, Runtime
from .training.tuning import Dense, FineTune, Probe

_NAMED = 20  # of a kind of problem that are named


def speaks() -> bool:
    """Whether this process says something for all of its run."""
    from .training import parallel

    return parallel.speaks()


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of steps, to be told (done, in all): how much there is to do is known when it is first told."""
    from .data.store import progress

    with contextlib.ExitStack() as stack:
        bar = {}

        def report(done: int, steps: int) -> None:
            if not bar:
                bar.update(advance=stack.enter_context(progress(steps, title, "step")), done=0)
            bar["advance"](done - bar["done"])
            bar["done"] = done

        yield report


def pretrain(arguments: argparse.Namespace) -> None:
    """`simmim-lite pretrain`."""
    import_torch()
    from .training.film import film_path
    from .training.machine import pick_device
    from .training.pretrain import pretrain as train
    from .training.run import record_path

    run, runtime = run_of(arguments), runtime_of(arguments)
    pick_device(arguments.device)
    options = {"runs_dir": arguments.runs_dir, "device": arguments.device, "film": arguments.film}
    with _bar(run.key) as report:  # it is told in the process that speaks
        record = train(run, progress=report, runtime=runtime, log=arguments.log, **options)
    if record["status"] == "failed":
        raise Everywhere(f"{run.key} failed: {record['reason']} (its record is {record_path(arguments.runs_dir, run)})")
    if not speaks():
        return
    final = record["final"]
    print(f"validation loss {final['val_loss']:.4f} +- {final['val_loss_se']:.4f} (standard error over images)")
    for name, score in record["transfer"].items():
        print(f"{name:8s} {score['metric']} {score['score']:.4f} [{score['low']:.4f}, {score['high']:.4f}]")
    film = film_path(arguments.runs_dir, run)
    if arguments.film:
        none = "none, the run was finished before; delete its record to film it"
        print(f"film: {film if film.exists() else none}")
    print(f"record: {record_path(arguments.runs_dir, run)}")


def runtime_of(arguments: argparse.Namespace) -> Runtime:
    return Runtime(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Runtime)})


def run_of(arguments: argparse.Namespace, **defaults: object) -> Run:
    """The run of the options that were given; defaults: of fields that were not, in place of Run's own."""
    names = {f.name for f in dataclasses.fields(Run)}
    return Run(**{**defaults, **{name: value for name, value in vars(arguments).items() if name in names}})


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
    with _bar(f"{arguments.task}, pretrained and from scratch") as report:
        result = transferred(
            _network(arguments),
            arguments.task,
            runs_dir=arguments.runs_dir,
            device=arguments.device,
            weights=arguments.weights,
            recipe=arguments.recipe,
            progress=report,
            **options,
        )
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
    from .data import manifests

    if arguments.action == "build":
        content = manifests.build(arguments.manifest, arguments.folder, arguments.out)
        print(f"{content['name']}: {content['images']} images, digest {content['digest']}")
        return
    differences = manifests.verify(arguments.manifest, arguments.folder)
    _name(differences)
    if differences:
        raise UserError(f"{arguments.manifest}: {len(differences):,} differences from {arguments.folder}; see above")
    print(f"{arguments.manifest}: as the manifest says")


def pack(arguments: argparse.Namespace) -> None:
    """`simmim-lite data pack`."""
    from .data import packing

    names = ("short_side", "quality", "shard_pictures")
    settings = packing.Settings(**{name: getattr(arguments, name) for name in names})
    specs.value("workers", specs.Count | None, arguments.workers)
    done = packing.pack(arguments.source, arguments.out, settings=settings, workers=arguments.workers)
    left_out, shards = done.info["left_out"], done.info["shards"]
    for name, reason in left_out[:10]:
        print(f"left out {name}: {reason}")
    if len(left_out) > 10:
        print(f"left out {len(left_out) - 10:,} more, all named in {done.folder / 'pack.json'}")
    size = sum(shard["bytes"] for shard in shards) / 1e9
    print(f"{done.info['pictures']:,} pictures in {len(shards):,} shards, {size:.3g} GB, digest {done.digest}")
    print(f"to train on it: --data packed:{arguments.out}")


def verify(arguments: argparse.Namespace) -> None:
    """`simmim-lite data verify`."""
    from .data import manifests, packs

    specs.value("workers", specs.Count | None, arguments.workers)
    if arguments.manifest:
        manifests.built(arguments.manifest)  # before all bytes are read
    problems = packs.verify(arguments.pack, workers=arguments.workers)
    if arguments.manifest:
        problems += manifests.verify(arguments.manifest, arguments.pack)
    _name(problems)
    if problems:
        what = f"{len(problems):,} problem{'s' * (len(problems) > 1)}"
        raise UserError(f"{arguments.pack}: {what}, see above; get it from where it was copied, or pack it again")
    print(f"{arguments.pack}: every byte is as it was packed")


def _name(problems: list[str]) -> None:
    """Print the first twenty of each kind, what stands before the colon, and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for line in problems:
        kinds.setdefault(line.partition(":")[0], []).append(line)
    for kind, lines in kinds.items():
        more = [f"{kind}: {len(lines) - _NAMED:,} more"] if len(lines) > _NAMED else []
        print(*lines[:_NAMED], *more, sep="\n")


def records_import(arguments: argparse.Namespace) -> None:
    """`simmim-lite records import`."""
    rows, notes = imported.read(arguments.file, arguments.scores)
    count = imported.import_csv(arguments.file, arguments.runs_dir, arguments.scores)
    for claim in imported.claims(rows):
        print(claim)
    for note in notes:
        print(note)
    where = f"from {arguments.file} into {arguments.runs_dir}"
    print(f"{count} run{'s' * (count > 1)} taken {where}; the studies' notebooks and plan show them")


def gallery(arguments: argparse.Namespace) -> None:
    """`simmim-lite gallery`."""
    from .studies.site import make_gallery

    check_writable(arguments.out)
    for path in make_gallery(arguments.out):
        print(path)


def site(arguments: argparse.Namespace) -> None:
    """`simmim-lite site`."""
    from .lab import explorer, mask_lab
    from .studies.site import IN_A_FRAME, build

    check_writable(arguments.out)
    lab, runs = mask_lab.MaskLab(), explorer.show().static_html()
    print(build(arguments.out, lambda path: lab.write_html(path, "The mask lab", before=IN_A_FRAME), runs))


def convert(arguments: argparse.Namespace) -> None:
    """`simmim-lite weights convert`."""
    import_torch()
    from .model import weights
    from .model.hub import check_target, is_hub
    from .model.simmim import create_model

    source, target, layout = arguments.source, arguments.target, arguments.layout
    sides = {"img_size": arguments.image_size, "window_size": arguments.window_size}
    if layout != "hf" and any(sides.values()):
        raise UserError("--image-size and --window-size go into the config.json of layout hf: leave them out")
    check_target(target, layout, weights.LAYOUTS, source)
    if not is_hub(source) and not Path(source).exists():
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
    from .model.inspection import lines

    print("\n".join(lines(arguments.source)))
