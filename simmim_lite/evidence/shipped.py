"""Records that come with the package: real runs of tier laptop, one JSON a source, with provenance. No torch here."""

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from ..errors import UserError, unknown
from ..training.run import SCHEMA_VERSION, write_atomic

_FOLDER = files(__package__) / "shipped_records"


#: Seeds that were looked at while rules and grids were made: runs of these are design data, and decide nothing.
DESIGN_SEEDS = range(101)
#: The set of the transfer study: pretraining runs, and every task from them and from scratch.
TRANSFER = "transfer-scenes"


def names() -> list[str]:
    """The sets of the four studies that are shipped: `laptop-scenes`, `laptop-cifar10`."""
    return [name for name in _all() if name != TRANSFER]


def beside(data: str) -> list[dict]:
    """The records that are shown beside runs on this data: of scenes, else of photographs; [] where none are there."""
    name = "laptop-scenes" if data == "scenes" else "laptop-cifar10"
    return records(name) if name in names() else []


def _all() -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in _FOLDER.iterdir() if path.name.endswith(".json"))


def is_design(name: str) -> bool:
    """Whether a set is of seeds that were looked at while the rules were made (docs/settings.md)."""
    return any(record["run"] and record["run"]["seed"] in DESIGN_SEEDS for record in _read(name))


def records(name: str) -> list[dict]:
    """The records of a shipped set (of `names()`, or TRANSFER), as `records.load` gives those of a runs folder.

    `UserError` for an unknown name.
    """
    return list(_read(name))


@cache
def _read(name: str) -> tuple[dict, ...]:
    if name not in _all():
        raise unknown("shipped set", name, _all())
    return tuple(unpack(json.loads((_FOLDER / f"{name}.json").read_text())))


def unpack(packed: dict) -> list[dict]:
    """The records of a file that `pack` has written, each with its own provenance again."""
    found = []
    for record in packed["records"]:
        times = record.pop("times")
        found.append({**record, "where": packed["where"][record["where"]] | times})
    return found


def pack(records: Iterable[dict], path: str | Path) -> int:
    """Write all finished records (runs and transfers, as `records.load` gives them) as one file; how many.

    Numbers are kept to seven significant digits, which no table or claim can see; everything else is kept as it is.
    Provenance that many records share is written once.
    """
    found = [record for record in records if record["status"] == "done"]
    if not found:
        raise UserError(f"{path}: no finished records to pack; run a study first")
    where: list[dict] = []
    packed = []
    for record in sorted(found, key=lambda r: (r["kind"], r["key"])):
        place = {k: v for k, v in record["where"].items() if k not in ("started", "finished")}
        times = {k: record["where"].get(k) for k in ("started", "finished")}
        if place not in where:
            where.append(place)
        packed.append(_rounded(record) | {"where": where.index(place), "times": times})
    content = {"schema": SCHEMA_VERSION, "where": where, "records": packed}
    write_atomic(
        path, json.dumps(content, allow_nan=False, separators=(",", ":")).replace('},{"schema"', '},\n{"schema"') + "\n"
    )
    return len(packed)


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {k: v if k == "run" or k == "spec" else _rounded(v) for k, v in value.items()}  # they make the key
    return [_rounded(v) for v in value] if isinstance(value, list) else value
