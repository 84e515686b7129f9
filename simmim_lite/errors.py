"""The one exception a reader is meant to see: a line that names the value, the file and the remedy."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the caller can mend. The command line prints it as one line and exits with status 2."""


class Interrupted(UserError):
    """Stopped by the caller; the line says what is kept. The command line exits with status 130."""


def unknown(what: str, value: object, known: Iterable[str]) -> UserError:
    """A `UserError` for a name that does not exist, with the nearest name that does."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {what} '{value}': {hint}known are {', '.join(known)}")
