"""The one exception a reader is meant to see: a line that names the value, the file and the remedy."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Something the caller can mend. The command line prints it as one line and exits with `status`."""

    status = 2
    everywhere = False  # whether all processes of a run raise it, so that one of them says it for all

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # names of files and of classes may hold line breaks


class Everywhere(UserError):
    """Raised by all processes of a run at once."""

    everywhere = True


class Interrupted(UserError):
    """Stopped by the caller; the line says what is kept."""

    status = 130


class Preempted(Interrupted):
    """Stopped by SIGTERM or SIGUSR1 with everything saved: the same command goes on. The status is EX_TEMPFAIL."""

    status = 75
    everywhere = True


def unknown(what: str, value: object, known: Iterable[str]) -> UserError:
    """A `UserError` for a name that does not exist, with the nearest name that does."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {what} '{value}': {hint}known are {', '.join(known)}")


def check_writable(path: str | Path) -> None:
    """`UserError` where a file or folder of that name cannot be made: to be asked for before long work, not after."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    other = place != Path(path).absolute()
    if other and not place.is_dir() or not os.access(place, os.W_OK):
        why = "is no folder" if other and not place.is_dir() else "may not be written"
        raise UserError(f"cannot write {path}: {place} {why}; choose another place")


def first_line(error: Exception) -> str:
    """What went wrong, in at most a line; of a library's error its kind too, as the text alone may say little."""
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
