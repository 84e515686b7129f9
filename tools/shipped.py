"""Long runs that are to be shipped, kept as they come: finished records into the repository, and back at a new start.

A machine can be lost, and `runs/` is ignored by git. From the folder that holds `runs`, with the repository at REPO:

    python REPO/tools/shipped.py fill laptop-scenes     # at a start: what was kept, into runs
    python REPO/tools/shipped.py keep laptop-scenes     # every hour or two: what is finished, out of it; commit it
    python REPO/tools/shipped.py ship laptop-scenes     # at the end: the shipped set, and no partial one

Nothing is printed but counts: nobody looks at a number before all runs are in (docs/settings.md).
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from simmim_lite.errors import UserError
from simmim_lite.evidence import records
from simmim_lite.studies.tiers import TIERS
from simmim_lite.training.run import SCHEMA_VERSION, Run, record_path, transfer_path, write_atomic, write_record

FOLDER = Path(str(records.FOLDER))


def keep(name: str, runs_dir: Path) -> str:
    """Pack the finished records of a runs folder, and those kept before, into partial/NAME.json."""
    path = FOLDER / "partial" / f"{name}.json"
    before, now = kept(path), finished(runs_dir)
    return f"{path}: {pack((before | now).values(), path)} records, {len(now.keys() - before)} of them new"


def fill(name: str, runs_dir: Path) -> str:
    """Write the kept records into a runs folder where they are missing.

    At tier laptop's size, a run whose weights are still to be fine-tuned is left out, and trained again: weights are
    not kept.
    """
    found, start = kept(FOLDER / "partial" / f"{name}.json").values(), TIERS["laptop"].supervised
    cell = start.model, start.images, start.steps
    tuned = {Run.from_dict(r["run"]).key for r in found if r["kind"] == "finetune" and r["run"]}
    count = 0
    for record in found:
        path = transfer_path(runs_dir, record["key"])
        if record["kind"] == "pretrain":
            run = Run.from_dict(record["run"])
            path = record_path(runs_dir, run)
            begun = [run.model, run.images, run.steps, run.image_size] == [*cell, TIERS["laptop"].recipe.image_size]
            if begun and run.key not in tuned:
                continue
        if not path.exists():
            write_record(path, record)
            count += 1
    return f"{runs_dir}: {count} of {len(found)} kept records written; the others are there, or will be made again"


def ship(name: str, runs_dir: Path) -> str:
    """Pack all finished records, and those kept before, as the shipped set NAME; the partial one goes."""
    path, partial = FOLDER / f"{name}.json", FOLDER / "partial" / f"{name}.json"
    count = pack((kept(partial) | finished(runs_dir)).values(), path)
    partial.unlink(missing_ok=True)
    return f"{path}: {count} records"


def pack(records: Iterable[dict], path: str | Path) -> int:
    """Write all finished records as one file; how many. Numbers are kept to seven significant digits, which no table or
    claim can see; shared provenance is written once."""
    found = [record for record in records if record["status"] == "done"]
    if not found:
        raise UserError(f"{path}: no finished records to pack; run a study first")
    where, packed = [], []
    for record in sorted(found, key=lambda r: (r["kind"], r["key"])):
        place = {k: v for k, v in record["where"].items() if k not in ("started", "finished")}
        times = {k: record["where"].get(k) for k in ("started", "finished")}
        if place not in where:
            where.append(place)
        brief = json.loads(json.dumps(record), parse_float=lambda number: float(f"{float(number):.7g}"))
        exact = {k: record[k] for k in ("run", "spec") if k in record}  # they make the key
        packed.append(brief | exact | {"where": where.index(place), "times": times})
    content = {"schema": SCHEMA_VERSION, "where": where, "records": packed}
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    write_atomic(path, text.replace('},{"schema"', '},\n{"schema"') + "\n")
    return len(packed)


def kept(path: Path) -> dict[str, dict]:
    """The records of a partial set by key; none where there is none."""
    return {record["key"]: record for record in records.unpack(json.loads(path.read_text()))} if path.exists() else {}


def finished(runs_dir: Path) -> dict[str, dict]:
    """The finished records of a runs folder by key."""
    return {record["key"]: record for record in records.load(runs_dir) if record["status"] == "done"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("keep", "fill", "ship"))
    parser.add_argument("name", help="the set: laptop-scenes, laptop-cifar10, laptop-photos64")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    given = parser.parse_args()
    try:
        print({"keep": keep, "fill": fill, "ship": ship}[given.action](given.name, given.runs_dir))
    except UserError as error:
        parser.exit(2, f"shipped.py: {error}\n")
