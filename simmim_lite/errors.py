"""The one exception a reader is meant to see: a line that names the value, the file and the remedy."""

import difflib
import errno
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


class UserError(ValueError):
    """Something the caller can mend. The command line prints it as one line and exits with `status`."""

    status = 2
    everywhere = False  # whether all processes of a run raise it, so that one of them says it for all

    def __str__(self) -> str:
        # names of files and of classes may hold line breaks, and what a terminal takes for a command
        return printable(" ".join(super().__str__().splitlines()))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of the traceback (IPython asks for it)."""
        return [str(self)]


class Everywhere(UserError):
    """Raised by all processes of a run at once."""

    everywhere = True


class Interrupted(UserError):
    """Stopped by the caller; the line says what is kept."""

    status = 130


class Preempted(Interrupted):
    """Stopped by a scheduler's signal with everything saved: the same command goes on. The status is EX_TEMPFAIL."""

    status = 75
    everywhere = True


class Signalled(KeyboardInterrupt):
    """What a scheduler's signal raises where no training is there to save: its name is the message."""

    heard = ""  # the name of the last one: some libraries make a plain KeyboardInterrupt of it


def stopped(by: KeyboardInterrupt, kept: str) -> Interrupted:
    """The line on Ctrl-C, a notebook's Stop or a scheduler's signal. kept: what is kept, and what to do."""
    name = str(by) if isinstance(by, Signalled) else Signalled.heard
    return Preempted(f"{name}: {kept}") if name else Interrupted(f"stopped: {kept}")


def unknown(
    what: str, value: object, known: Iterable[str], near: Callable[[str], str | None] | None = None
) -> UserError:
    """A `UserError` for a name that does not exist, with the nearest that does, by `near` or else by its spelling."""
    known = list(known)
    meant = (near or (lambda name: nearest(name, known)))(str(value))
    hint = f"did you mean '{meant}'? " if meant else ""
    shown = " ".join(str(value).split())[:60]
    return UserError(f"unknown {what} '{shown}': {hint}known are {', '.join(known)}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name that is spelt most alike, if any is; cutoff: from 0, none is too far, to 1."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def check_writable(path: str | Path, remedy: str = "choose another place") -> None:
    """`UserError` where a file or folder of that name cannot be made: to be asked for before long work, not after.

    Tried in the nearest folder that is there, and nothing is left in it."""
    path = Path(path).absolute()
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    if not place.is_dir() and place != path:
        raise UserError(f"cannot write {path}: {place} is no folder; {remedy}")
    try:
        tempfile.TemporaryFile(dir=place if place.is_dir() else place.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {place}: {error.strerror}; {remedy_of(error, remedy)}") from error


def remedy_of(error: OSError, else_: str) -> str:
    """What helps against an error of the operating system: of a full disk, of rights, of limits, else as given."""
    return _REMEDIES.get(error.errno, "{}").format(else_)


_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there, or {}")
_REMEDIES |= dict.fromkeys((errno.EACCES, errno.EPERM), "ask its owner for the right to write there, or {}")
_REMEDIES |= {errno.EROFS: "it is mounted read-only: {}", errno.ENAMETOOLONG: "the name is too long: {}"}
_REMEDIES |= dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)")
_REMEDIES |= {errno.EIO: "the disk or the network fails: see its log, or {}", errno.ENOMEM: "free some memory"}


def readable(error: BaseException) -> UserError | None:
    """The line on an error that the caller can mend; None for one that shows a fault of ours."""
    if isinstance(error, KeyboardInterrupt):
        return stopped(error, "what is finished is kept, run the same command again")
    signs = ("allocate memory", "out of memory", "failed to map segment")
    memory = isinstance(error, ImportError | OSError | RuntimeError) and any(sign in str(error) for sign in signs)
    if memory or isinstance(error, MemoryError):
        return UserError(f"too little memory ({first_line(error)}): free some, or give fewer --workers")
    if isinstance(error, OSError):
        return UserError(f"{first_line(error)}; {remedy_of(error, 'see that it is there, and may be used')}")
    return error if isinstance(error, UserError) else None


def printable(text: str) -> str:
    """A text without what a terminal takes for a command."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def first_line(error: Exception) -> str:
    """What went wrong, in at most a line; of a library's error its kind too, as the text alone may say little."""
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
