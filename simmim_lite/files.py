"""Files written whole or not at all, JSON files that carry a checksum, and locks."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import platform
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from .errors import UserError, remedy_of
from .processes import tell


@contextlib.contextmanager
def writing(path: Path, mend: str = "choose another folder or --runs-dir (what is finished is kept)") -> Iterator[None]:
    """One line where a file or folder cannot be written: a full disk, a read-only folder; mend: what else helps."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except Timeout:  # of a lock; an OSError too
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy_of(error, mend)}") from error


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file whole or not at all: a temporary file beside it, flushed to disk, then renamed over it."""
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}"
    try:
        with writing(path):
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        discard(temporary)  # gone, if all went well


def digest(fields: dict) -> str:
    """Ten hexadecimal digits of plain JSON types: the end of every key, and the checksum of every JSON file."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def sealed(content: dict) -> str:
    """The text of a JSON file that ends with a checksum of the rest. NaN and infinity are refused."""
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read
    return json.dumps(content | {"checksum": digest(content)}, indent=1) + "\n"


def parsed(path: str | Path) -> dict:
    """The object in a JSON file; OSError, or ValueError for whatever else lies there."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def intact(content: dict) -> dict:
    """What a JSON file holds beside its checksum; ValueError where they do not match. Earlier versions wrote none."""
    rest = {name: one for name, one in content.items() if name != "checksum"}
    if "checksum" in content and content["checksum"] != digest(rest):
        raise ValueError("its checksum does not match its content")
    return rest


def entries(folder: str | Path, pattern: str) -> list[Path]:
    """What lies in a folder under names like this, by name; a line where it cannot be read: `glob` says nothing."""
    try:
        return sorted(path for path in Path(folder).iterdir() if path.match(pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; ask its owner, or give another --runs-dir") from error


def discard(*paths: Path) -> None:
    """Delete files that nobody needs; one that cannot be deleted stays, as tidying is not worth a run."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def sync(folder: Path) -> None:
    """Write the names in a folder to the disk: else a power cut may undo a rename. Not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def locked(path: Path, what: str, wait: bool = True, first: float = 0.0) -> Iterator[None]:
    """Hold a lock inside; the system frees it when a process ends, however it ends. Where another has it: `Timeout`, or
    with `wait` a line after `first` seconds and then every minute, with what is waited for, the lock and its holder."""
    with writing(path):
        # a file of another name: one that a lock of the other kind has left behind would count as held
        lock = FileLock(path) if _has_flock(path.parent) else SoftFileLock(f"{path}.held")
        for pause in itertools.chain([first if wait else 0], itertools.repeat(60)):
            try:
                lock.acquire(timeout=pause)
                break
            except Timeout:
                if not wait:
                    raise
                by = path.read_text(errors="replace")[:80] if path.exists() else ""
                held = f"{path} is held by {by or 'another process'}"
                tell(f"waiting for {what} ({held})")
    try:
        with contextlib.suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        lock.release()


def held(lock: str | Path) -> bool | None:
    """Whether a process holds a lock file now; None where that cannot be told."""
    try:
        if Path(lock).exists():
            with locked(Path(lock), "", wait=False):
                pass
        return False
    except Timeout:
        return True
    except UserError:
        return None


def _has_flock(folder: Path) -> bool:
    """Whether files in a folder can be locked by the system: on some shared disks they cannot."""
    try:
        with contextlib.suppress(ImportError), tempfile.TemporaryFile(dir=folder) as file:  # Windows has its own
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
    return True
