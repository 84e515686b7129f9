"""What the verbs of the command line do. Torch, and all that needs it, is imported when called."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .data import manifests, packs
from .data.scenes import LOOKS
from .data.sources import listing, open_data
from .data.store import progress
from .errors import Everywhere, UserError, check_writable
from .evidence import diagnose as diagnosis
from .evidence import published, records
from .evidence.claims import claims, claims_of
from .model.sizes import PAPER
from .processes import import_torch, one_thread, pick_device, speaks, waiting
from .studies import costs, engine, grids, notebooks, planner, report, workers
from .studies.tiers import BY_SIZE, NAMED, RECIPE, STUDIES, TRANSFER, StudyName, StudyOptions, claim_ids
from .training import specs
from .training.callbacks import film_path
from .training.run import Run, Runtime, record_path, transfer_path
from .training.tuning import Dense, FineTune, Probe

_NAMED = 20  # problems that are named


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of steps, to be told (done, in all): how much there is to do is known when it is first told."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def bar(steps: int):  # in the process that speaks
            return stack.enter_context(progress(steps, title, "step"))

        yield lambda done, steps: bar(steps).update(done - bar(steps).n)


def pretrain(*, runs_dir: str, device: str, film: int, log: list[str], **fields: object) -> None:
    """`simmim-lite pretrain`; fields: of the run, and of its runtime."""
    import_torch()
    from .training.pretrain import pretrain as train

    runtime = Runtime(**{field.name: fields.pop(field.name) for field in dataclasses.fields(Runtime)})
    run = Run(**fields)
    if not record_path(runs_dir, run).exists():
        check_writable(runs_dir, "choose another --runs-dir")
    pick_device(device)
    with _bar(run.key) as bar:
        record = train(run, progress=bar, runtime=runtime, runs_dir=runs_dir, device=device, film=film, log=log)
    path = record_path(runs_dir, run)
    if record["status"] == "failed":
        raise Everywhere(f"{run.key} failed: {record['reason']} (its record is {path})")
    if not speaks():
        return
    final = record["final"]
    print(f"validation loss {final['val_loss']:.4f} +- {final['val_loss_se']:.4f} (standard error over images)")
    for name, score in record["transfer"].items():
        print(f"{name:8s} {score['metric']} {score['score']:.4f} [{score['low']:.4f}, {score['high']:.4f}]")
    if film:
        there = film_path(runs_dir, run)
        print(f"film: {there if there.exists() else 'none, the run was finished before; delete its record to film it'}")
    print(f"record: {path}")


def study(
    name: str, *, parameter: list, no_notebooks: bool, commands: bool, nodes: int, dry_run: bool, gpus: int,
    first_seed: int | None, hours: float | None, images_per_second: list, assume: str, **options: object
) -> None:  # fmt: skip
    """`simmim-lite study`: train what is missing, print the claims, run the notebooks, write the report."""
    name = specs.value("study", StudyName, name)
    speed = {"images_per_second": images_per_second, "assume": assume}
    if not dry_run and (gpus != 1 or any(speed.values()) and not commands):
        raise UserError("--gpus and a GPU's speed are about the cost that --dry-run shows: add it, or leave them out")
    if nodes != 1 and not commands:
        raise UserError(f"--nodes is {nodes}, which is about --commands: add it, or leave it out")
    each = options.pop("gpus_per_run") if commands else None  # of a command, whoever starts it
    how = StudyOptions.of_texts(options, parameter, hours)
    grids.images_of(how.data)  # a source that is not there is no cost table, and no line to run
    wanted = dict(parameter)
    if wanted or not no_notebooks:
        _copies(name, how, wanted)  # a wrong parameter fails before anything is measured or trained
    counts = {"first_seed": first_seed, "measure": not (commands or dry_run), "gpus": gpus}
    how, said = engine.choose(name, how, **counts, **speed)
    if commands:
        if any(speed.values()) and not said:
            raise UserError("a GPU's speed chooses seeds or a grid, and here both are given: leave it out")
        guessed = said and not any(speed.values()) and not costs.known_speeds(how.runs_dir, how.axes.recipe, how.device)
        guess = f" (a guess: nothing is measured in {how.runs_dir}; --images-per-second tells)" * bool(guessed)
        print(said + guess, end="\n" if said else "", file=sys.stderr)
        return print("\n".join(workers.lines(name, how, gpus_per_run=1 if each is None else each, nodes=nodes)))
    print(said, end="\n" if said else "", flush=True)
    if dry_run:
        return print(costs.dry_run(name, how, gpus, **speed))
    found = _claims(name, how)
    sys.stdout.flush()
    # those of the study are in how by now, and may have been chosen since
    copies, reason = [], "--no-notebooks"
    if not no_notebooks:
        copies, reason = _copies(name, how, {k: text for k, text in wanted.items() if not hasattr(how, k)})
    try:
        check_writable(how.runs_dir, "what is finished is shown above")
    except UserError as error:
        copies, reason = [], reason or str(error)
    if not copies:
        return print(f"without notebooks: {reason}; the report is made of them")
    folder, where = Path(how.runs_dir), {n: getattr(how, n) for n in ("workers", "engine", "address", "device")}
    executed, failures = notebooks.execute(copies, folder / "notebooks", **where)
    print(f"executed notebooks: {folder / 'notebooks'}\n" if executed else "", end="")
    print(f"report: {report.write(folder / 'notebooks', folder / 'report', *found)}")
    notebooks.raise_first(failures)


def _claims(name: str, how: StudyOptions) -> tuple[list, list[dict]]:
    """Train what is missing, or at tier shipped nothing, and print what came of it; claims, and records of failures."""
    if how.tier == "shipped":  # the notebooks show it beside the reader's own runs
        for of in [records.TRANSFER] if name == TRANSFER else records.shipped_names():
            shipped = records.shipped(of)
            about = [f"{claim}\n" for claim in claims(shipped) if claim.id in claim_ids(name)]
            print(f"shipped records {of}: {len(shipped)}", *about, sep="\n", end="" if about else "\n")
        return [], []
    result = engine.study(name, **vars(how))
    failed = [record for record in result.records if record["status"] == "failed"]
    print("".join(f"{claim}\n" for claim in result.claims), end="")
    counts = f"{len(result.records)} runs, {result.trained} trained now, {len(failed)} failed"
    print(f"{counts}; {result.core_seconds:.0f} core-seconds in {result.wall_seconds:.0f} s")
    return result.claims, failed


def _copies(name: str, how: StudyOptions, parameters: dict) -> tuple[list, str]:
    """The notebooks of a study with their parameters, checked; or none, and why there are none."""
    try:
        paths = [notebooks.find(NAMED[one].notebook) for one in (STUDIES if name == "all" else (name,))]
    except UserError as error:
        return [], str(error)
    options, found = {name: one for name, one in vars(how).items() if one is not None}, []
    for path in paths:
        known = notebooks.parameters(path)
        given = {name: one for name, one in options.items() if name in known} | parameters
        found.append(notebooks.Copy.of(path, given))
    return found, ""


def diagnose(
    log: str | None, loss: str | None, weights: str | None, bands: str | None, out: str, device: str, **fields: object
) -> None:
    """`simmim-lite diagnose`: a log, a checkpoint's reconstructions, or both."""
    if not log and not weights:
        raise UserError("nothing to look at: give a log, or --weights FILE --data DIR --model SIZE")
    if log:
        print(diagnosis.text(diagnosis.diagnose(log, loss), log))
    if weights:
        run = Run(**fields)
        three = specs.read("bands", tuple[int, int, int], bands) if bands else [k % run.channels + 1 for k in range(3)]
        if not all(1 <= band <= run.channels for band in three):
            raise UserError(f"bands is {bands}: give three of 1 to {run.channels}, as in 1,1,1")
        import_torch()
        from .lab.pictures import reconstructed

        check_writable(png := Path(out).with_suffix(".png"))
        said = reconstructed(weights, run, device, png, [band - 1 for band in three])
        said += f"; the mean colour buys about {diagnosis.TABLE['level']['l1']} (L1, standard deviations)"
        print(f"{weights}: {said}\n{png}, and {png.with_suffix('.html')}")


def plan(images: int, **options: object) -> None:
    """`simmim-lite plan`."""
    print("\n".join(planner.lines(planner.plan(images, **options))))


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


def transfer(
    *, task: str, set: list[str], scratch_set: list[str], runs_dir: str, weights: str | None, **options: object
) -> None:
    """`simmim-lite transfer`. The paper's networks come from a file at the paper's input, where no other is given."""
    import_torch()
    from .training.transfer import scores
    from .training.transfer import transfer as transferred

    kind = {"probe": Probe, "classify": FineTune}.get(task, Dense)
    given = {name: options.pop(name) for name in ("device", "recipe")} | {"runs_dir": runs_dir, "weights": weights}
    given |= fields_of(set, kind) | ({"scratch": fields_of(scratch_set, kind)} if scratch_set else {})
    released = weights and options.get("model") in PAPER  # docs/facts.md, 3
    about = {"image_size": 192, "window_size": 12, "mask_patch": 32, "statistics": "imagenet"} if released else {}
    with _bar(f"{task}, pretrained and from scratch") as bar:
        result = transferred(Run(**about | options), task, progress=bar, **given)
    if not speaks():
        return
    trained, baseline = scores(result["trained"]), scores(result["baseline"])
    for name, lift in result["lift"].items():
        print(f"{name:9s} pretrained {trained[name]:.4f}   without {baseline[name]:.4f}   lift {lift:+.4f}")
    for which in ("trained", "baseline"):
        if result[which]["status"] == "failed":
            raise UserError(f"the {which} network's {task} failed: {result[which]['reason']}")
        print(f"record: {transfer_path(runs_dir, result[which]['key'])}")


def manifest(action: str, manifest: str, folder: str | None, out: str | None) -> None:
    """`simmim-lite manifest`."""
    build = action == "build"
    manifests.read(manifest, built=not build)  # before pictures are listed
    check_writable(out or ".")
    source = folder and listing(f"{'packed' if packs.is_pack(folder) else 'imagefolder'}:{folder}")
    if build:
        content = manifests.build(manifest, source, out)
        return print(f"{content['name']}: {content['images']} images, digest {content['digest']}")
    _name(manifests.verify(manifest, source), f"{manifest} and {folder}")
    print(f"{manifest}: as the manifest says")


def pack(source: str, out: str, *, short_side: int) -> None:
    """`simmim-lite data pack`."""
    check_writable(out)
    done = packs.pack(listing(source), out, short_side=short_side)
    left_out, shards = done.info["left_out"], done.info["shards"]
    if left_out:
        names = ", ".join(f"{name} ({reason})" for name, reason in left_out[:_NAMED])
        print(f"left out {len(left_out):,}, named in {done.folder / 'pack.json'}: {names}")
    size = sum(shard["bytes"] for shard in shards) / 1e9
    print(f"{done.info['pictures']:,} pictures in {len(shards):,} shards, {size:.3g} GB, digest {done.digest}")
    print(f"to train on it: --data packed:{out}")


def verify(pack: str, manifest: str | None) -> None:
    """`simmim-lite data verify`."""
    if manifest:
        manifests.read(manifest, built=True)  # before all bytes are read
    problems = packs.verify(pack)
    if manifest:
        problems += manifests.verify(manifest, listing(f"packed:{pack}"))
    _name(problems, pack)
    print(f"{pack}: every byte is as it was packed")


def _name(problems: list[str], where: str) -> None:
    """Print the first twenty problems of each kind, what stands before the colon; `UserError` where there are any."""
    for kind in dict.fromkeys(line.partition(":")[0] for line in problems):
        lines = [line for line in problems if line.partition(":")[0] == kind]
        print(*lines[:_NAMED], *[f"{kind}: {len(lines) - _NAMED:,} more"][: len(lines) > _NAMED], sep="\n")
    if problems:
        what = f"{len(problems):,} problem{'s' * (len(problems) > 1)}, see above"
        raise UserError(f"{where}: {what}; get the files from where they were copied, or make them again")


def records_import(file: str, scores: str | None, runs_dir: str) -> None:
    """`simmim-lite records import`."""
    rows, notes = published.import_csv(file, runs_dir, scores)
    print(*claims_of(rows), *notes, sep="\n")
    many = f"{len(rows)} run{'s' * (len(rows) > 1)}"
    print(f"{many} taken from {file} into {runs_dir}; the studies' notebooks and plan show them")


def convert(
    source: str, target: str, *, model: str, layout: str, image_size: int | None, window_size: int | None
) -> None:
    """`simmim-lite weights convert`."""
    import_torch()
    from .model import weights
    from .model.simmim import create_model

    if layout != "hf" and (image_size or window_size):
        raise UserError("--image-size and --window-size go into the config.json of layout hf: leave them out")
    weights.check_target(target, layout, source)
    with waiting(f"reading {source}"):
        network, there = create_model(model, image_size, window_size), weights.windows_of(source)
        if there and len(there) == len(network.encoder.layers) and there[0] != network.encoder.layers[0].window:
            network = create_model(model, image_size, window_size, pretrained_window_sizes=there)
        loaded = weights.load_weights(network, source)
    # what the file does not hold is random here: nobody is to take it for trained
    weights.save_weights(network, target, layout=layout, image_size=image_size, without=loaded.kept)
    alone = ", the backbone alone" if loaded.kept or layout == "timm" else ""
    print(f"written: {target} ({layout}{alone})")


def show_weights(source: str) -> None:
    """`simmim-lite weights show`."""
    import_torch()
    from .model.weights import show

    print("\n".join(show(source)))


def score_weights(source: list[str], *, model: str, data: str, images: int, device: str) -> None:
    """`simmim-lite weights score`: our losses, lowest first, and the published ones of that size, in the same order.

    The protocol of the published losses is unknown (crop, masks, target): only the order may be compared."""
    own = {"model": model, "data": data, "val_images": images, "precision": "fp32"}
    run = dataclasses.replace(RECIPE if model in BY_SIZE else Run(), **own)
    found = scores_of(source, run, device)
    print(f"validation loss, at most {images:,} images x {run.val_masks} masks, {run.target} target (± standard error)")
    for loss, error, name in sorted(found):
        print(f"{loss:.4f} ± {error:.4f}  {name}")
    if rows := sorted((r for r in published.rows() if r["model"] == model), key=lambda r: r["val_loss"]):
        print(f"\npublished losses of {model}, lowest first ({published.SOURCE})")
        print(*(f"{r['val_loss']:.4f}  {r['dataset']}, {r['steps']:,} iterations" for r in rows), sep="\n")
        print("\nthe protocol of the published losses is unknown: compare the order alone, never the numbers")


def scores_of(sources: Sequence[str | Path], run: Run, device: str = "auto") -> list[tuple[float, float, str]]:
    """Validation loss, its standard error over images, and name of checkpoints (files, or hf://…) as the record of
    `run` would have them: model, input, masks, target, data, `val_images` and `val_masks` count."""
    import_torch()
    from .model.weights import is_hub, load_weights
    from .training.pretrain import build, validation_loss
    from .training.probes import input_statistics

    for source in sources:  # all of them, before the first is scored
        if not is_hub(source) and not Path(source).exists():
            raise UserError(f"{source}: no such file; give a file of weights, or hf://OWNER/REPOSITORY/PATH")
    place, found = pick_device(device), []
    stored = run.data in LOOKS or run.statistics == "dataset"
    opened = open_data(run.data, run.image_size, streamed=not stored)
    statistics = input_statistics(opened, run.statistics)
    with one_thread(place):
        for source in sources:
            model = build(run)
            load_weights(model, source, head=True)
            found.append((*validation_loss(model.to(place), opened.val, run, *statistics, place), str(source)))
    return found
