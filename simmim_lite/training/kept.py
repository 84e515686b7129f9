"""Records on disk are made once: found there, or made by one process while others wait."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from .distributed import Team
from .run import cannot_write, current_record, remove_unfinished


class Digested(Protocol):
    """Data as a record knows it."""

    spec: str
    digest: str
    line: str  # what was said of it when it was opened


class Busy(Exception):
    """Another process holds the lock, and the caller did not want to wait."""


def kept(
    path: Path, lock: Path, data: Digested, make: Callable[[], dict], *, wait: bool = True, us: Team | None = None
) -> tuple[dict, bool]:
    """`made_once` for all processes of a team: the main one looks and locks, all of them make, if it must be made."""
    if us is None or us.size == 1:
        return made_once(path, lock, data, make, wait=wait)
    if not us.main:
        record = us.tell()
        if record is None:
            make()
            record = us.tell()
            return record, True
        return record, False

    def lead() -> dict:
        us.tell(None)
        return make()

    record, made = made_once(path, lock, data, lead, wait=True)
    us.tell(record)
    return record, made


def made_once(
    path: Path, lock: Path, data: Digested, make: Callable[[], dict], *, wait: bool = True
) -> tuple[dict, bool]:
    """The record at `path` if it was made from the images that `data` holds now, else what `make()` writes there.

    Returns the record and whether this call made it. `lock` is a file that one process at a time holds; it is free
    again when that process ends, however it ends. Another waits, or raises `Busy` with `wait=False`.
    """
    record = current_record(path, data.digest)
    if record is not None:
        return record, False
    holder = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            holder.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise Busy(lock.stem) from None
            print(f"simmim-lite: another process works on {lock.stem}; waiting for it", file=sys.stderr)
            holder.acquire()
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        record = current_record(path, data.digest)  # the process that was waited for may have made it
        if record is not None:
            return record, False
        if path.exists():
            why = f"was made from other images than {data.spec} holds now; it runs again"
            print(f"simmim-lite: {path.name} {why}", file=sys.stderr)
        remove_unfinished(path.parent, path.name)
        return make(), True
    finally:
        holder.release()
