"""Records as they are read: what each kind must say, and of what; one maker at a time. No torch here."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from filelock import Timeout

from ..errors import UserError
from ..files import discard, intact, locked, parsed
from ..processes import tell, tell_once
from .run import SCHEMA_VERSION, Run
from .specs import Count, OneOf, Spec, Whole, value
from .tuning import Dense, FineTune, Probe

#: What each kind of record is of. Its file is called by the key of that.
KINDS = {"pretrain": Run, "finetune": FineTune, "detect": Dense, "segment": Dense, "probe": Probe}
#: What of a finished record is read, by kind: numbers are finite. `...`: of each name that is there.
_SCORES = {"transfer": {...: {"score": float, "n_train": Count | None}}}
_COST = {"images_seen": Whole, "unique_images": Count}
_COST |= dict.fromkeys(("epochs", "flops", "seconds", "core_seconds"), float | None)
_FINISHED = {
    "pretrain": {
        "cost": _COST,
        "model": {"parameters": Count},
        "curve": [{"step": Whole, "train_loss": float, "val_loss": float, "lr": float}],
        "final": {"val_loss": float, "val_loss_se": float | None, "train_loss": float | None},
    }
    | _SCORES,
    "finetune": {"cost": {"unique_images": Count | None}, "final": {"top1": float}},
} | dict.fromkeys(("detect", "segment", "probe"), _SCORES)


class Later(UserError):
    """Made by a later version of this package."""


class Busy(Exception):
    """Another process holds the lock, and the caller did not want to wait."""


def check(record: dict, key: str) -> None:
    """`UserError`, naming the field, for what is no whole record of this key; `Later` where a later version made it."""
    if value("schema", Count, record.get("schema")) > SCHEMA_VERSION:
        raise Later(f"schema {record['schema']}")
    kind = value("kind", Annotated[str, OneOf(KINDS)], record.get("kind"))
    run = value("run", dict if kind == "pretrain" else dict | None, record.get("run", "missing"))
    made = None if run is None else _made("run", Run, run)
    if kind != "pretrain":
        spec = value("spec", dict, record.get("spec"))
        if kind == "probe":
            spec = {"labels": spec.get("probe_labels"), "test_images": spec.get("probe_test")}
        made = _made("spec", KINDS[kind], {**spec, "run": made})
    if isinstance(made, Dense) and made.task != kind:
        raise UserError(f"kind is {kind}, and spec.task {made.task}")
    if not key == record.get("key") == made.key:
        raise UserError(f"key is {record.get('key')}, and {made.key} that of its run or spec")
    status = value("status", Annotated[str, OneOf(("done", "failed"))], record.get("status"))
    _fits("", {"where": {"data_digest": str}}, record)
    _fits("", _FINISHED[kind] if status == "done" else {"reason": str}, record)


def _made(name: str, kind: type[Spec], fields: dict) -> Spec:
    """A spec of a record from its fields."""
    known = {field.name for field in dataclasses.fields(kind)}
    if later := sorted(map(str, fields.keys() - known)):
        raise Later(f"{name}.{later[0]}")
    for version in known & {"recipe_version", "version"}:  # the default is this version's
        if value(f"{name}.{version}", Count, fields.get(version)) > getattr(kind, version):
            raise Later(f"{name}.{version} {fields[version]}")
    made = run_of(fields) if kind is Run else kind.from_dict(fields)
    if missing := sorted(made.to_dict().keys() - fields.keys()):
        raise UserError(f"{name}.{missing[0]} is missing")
    return made


def run_of(fields: dict) -> Run:
    """`Run.from_dict`, once for each run: a notebook reads the same records many times."""
    return _run(json.dumps(fields))


@functools.lru_cache(4096)
def _run(text: str) -> Run:
    return Run.from_dict(json.loads(text))


def _fits(at: str, form: object, held: object) -> None:
    """`UserError`, naming the place, where something is not as its form has it."""
    if isinstance(form, dict):
        value(at, dict, held)
        for name, part in form.items():
            for one in held if name is ... else (name,):
                _fits(f"{at}.{one}".lstrip("."), part, held.get(one))
    elif isinstance(form, list):
        for place, one in enumerate(value(at, list, held)):
            _fits(f"{at}[{place}]", form[0], one)
    elif not (form is float and isinstance(held, float) and math.isfinite(held)):  # most are: the quick way
        value(at, form, held)


def read_record(path: str | Path) -> dict | None:
    """The record at a path, or None when there is none; one line when the file is no record, or another one's."""
    path = Path(path)
    try:
        record = parsed(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; ask its owner, or give another --runs-dir") from error
    except ValueError as error:
        raise UserError(f"{path}: not a readable record ({error}); delete the file and run again") from error
    try:
        check(record, path.stem)
        if "checksum" not in record:
            tell_once(f"{path.parent}: records of an earlier version, without a checksum, are taken as they are")
        return intact(record)
    except Later as error:
        what = f"made by a later version ({error}); use that, or give another --runs-dir"
    except (ValueError, RecursionError) as error:
        what = f"not the record that was written ({str(error).partition(': give')[0]}); restore it, or move it away"
    raise UserError(f"{path}: {what}")


def usable(paths: Iterable[str | Path], say: Callable[[str], object] = tell) -> list[dict]:
    """The records at these paths that are there and can be read; of every other one, `say` gets a line."""
    found = []
    for path in paths:
        try:
            found.append(read_record(path))
        except UserError as error:
            say(f"passed over: {error}")
    return [record for record in found if record]


def current_record(path: str | Path, data_digest: str) -> dict | None:
    """The record at a path if it was made from the images of this digest, else None."""
    record = read_record(path)
    return record if record is not None and record["where"]["data_digest"] == data_digest else None


def made_once(path: Path, name: str, data, make: Callable, group, wait: bool = True) -> tuple[dict, bool]:
    """The record at `path` if it was made from the images that `data` holds now, else what `make()`, which all of a
    group call, writes there; and whether this call made it. name: of a lock that one process at a time holds until it
    ends, however it ends; another waits, or raises `Busy` with `wait=False`."""
    with contextlib.ExitStack() as stack:
        record = current_record(path, data.digest) if group.is_main else None
        if group.is_main and record is None:
            try:
                lock, what = path.parents[1] / "locks" / f"{name}.lock", f"another process that works on {name}"
                stack.enter_context(locked(lock, what, wait or group.size > 1))
            except Timeout:
                raise Busy(name) from None
            discard(*path.parent.glob(f".{path.name}.*"))  # left by a write that was killed
            record = current_record(path, data.digest)  # the process that was waited for may have made it
            if record is None and path.exists():
                tell(f"{path.name} was made from other images than {data.spec} holds now; it runs again")
        if (record := group.broadcast(record)) is not None:
            return record, False
        return group.broadcast(make()), True
