"""The verbs `manifest`, `data` and `records`: which images there are, checked and packed; others' runs, taken in."""

import argparse
from collections import Counter
from collections.abc import Callable

from .errors import UserError
from .evidence import imported

_NAMED = 20  # of a kind of problem that are named


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs to the command line; verb(name, call, text) makes the parser of one."""
    manifest = verb("manifest", _manifest, "fill in or check the digest of a data set's manifest")
    manifest.add_argument("action", choices=("build", "verify"))
    manifest.add_argument("manifest", help="a YAML file, or the name of one in data_manifests/")
    manifest.add_argument("folder", nargs="?", help="the folder of images, or a pack of it; not needed for scenes")
    manifest.add_argument("--out", help="where build writes the filled-in manifest; in place by default")

    data = verb("data", None, "pack a data set into shards, or check a pack").add_subparsers(
        required=True, metavar="ACTION"
    )
    text = "pack pictures into WebDataset shards with an index, for --data packed:OUT"
    pack = data.add_parser("pack", help=text, description=text)
    pack.add_argument("source", help="imagefolder:DIR, inaturalist:DIR, torchvision:NAME or hf:NAME")
    pack.add_argument("out", help="the folder of the pack")
    pack.add_argument("--short-side", type=int, default=256, help="pixels; larger pictures are shrunk to it (256)")
    pack.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 95 (90)")
    pack.add_argument("--shard-pictures", type=int, default=10_000, metavar="N", help="pictures a shard (10000)")
    pack.add_argument("--workers", type=int, help="processes; one a core by default")
    pack.set_defaults(call=_pack)
    text = "read every byte of a pack, and name what is wrong with it"
    verify = data.add_parser("verify", help=text, description=text)
    verify.add_argument("pack", help="the folder of the pack")
    verify.add_argument("--manifest", help="a built manifest that it has to agree with: a file, or a name")
    verify.add_argument("--workers", type=int, help="processes; one a core by default")
    verify.set_defaults(call=_verify)

    records = verb("records", None, "take in somebody else's runs").add_subparsers(required=True, metavar="ACTION")
    text = "take runs from a CSV file into tables, claims, plots and plans"
    more = f"{imported.help_text()} An example: examples/runs.csv"
    taken = records.add_parser("import", help=text, description=text, epilog=more)
    taken.add_argument("file", help="a CSV file, a line a run; its columns: see below")
    taken.add_argument("--scores", help="percent or share (of 1), where the numbers leave that open")
    taken.add_argument("--runs-dir", default="runs", help="where records are kept (runs)")
    taken.set_defaults(call=_records_import)


def _manifest(arguments: argparse.Namespace) -> None:
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


def _pack(arguments: argparse.Namespace) -> None:
    from .data.packing import Settings, pack

    names = ("short_side", "quality", "shard_pictures")
    settings = Settings(**{name: getattr(arguments, name) for name in names})
    _check_workers(arguments.workers)
    done = pack(arguments.source, arguments.out, settings=settings, workers=arguments.workers)
    left_out, shards = done.info["left_out"], done.info["shards"]
    for name, reason in left_out[:10]:
        print(f"left out {name}: {reason}")
    if len(left_out) > 10:
        print(f"left out {len(left_out) - 10:,} more, all named in {done.folder / 'pack.json'}")
    size = sum(shard["bytes"] for shard in shards) / 1e9
    print(f"{done.info['pictures']:,} pictures in {len(shards):,} shards, {size:.3g} GB, digest {done.digest}")
    print(f"to train on it: --data packed:{arguments.out}")


def _verify(arguments: argparse.Namespace) -> None:
    from .data import manifests, packs

    _check_workers(arguments.workers)
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
    kinds = Counter(line.partition(":")[0] for line in problems)
    printed = Counter()
    for line in problems:
        kind = line.partition(":")[0]
        printed[kind] += 1
        if printed[kind] <= _NAMED:
            print(line)
        elif printed[kind] == kinds[kind]:
            print(f"{kind}: {kinds[kind] - _NAMED:,} more")


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}: give at least 1")


def _records_import(arguments: argparse.Namespace) -> None:
    rows, notes = imported.read(arguments.file, arguments.scores)
    count = imported.import_csv(arguments.file, arguments.runs_dir, arguments.scores)
    for claim in imported.claims(rows):
        print(claim)
    for note in notes:
        print(note)
    where = f"from {arguments.file} into {arguments.runs_dir}"
    print(f"{count} run{'s' * (count > 1)} taken {where}; the studies' notebooks, plan and laws show them")
