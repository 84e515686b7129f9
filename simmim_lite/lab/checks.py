"""Checks of exercises: each prints one line that teaches, and returns True or False. No torch here.

How a check is written (`checks_first.py` has those of notebooks 00 to 03, `checks_studies.py` those of the studies):

    @exercise("count the hidden cells")
    def hidden_cells(answer, grid, ratio):
        '''How many cells of a (rows, columns) grid are hidden at a ratio.'''
        if answer == int(rows * columns * ratio):
            return wrong("you rounded down: the official code rounds up, so ...")
        return verdict(answer == hidden_count(...), "21.6 cells are no whole number, so 22 are hidden.", "...")

and used, as the last line of an exercise's cell: `checks.hidden_cells(answer, (6, 6), 0.6)`. What a check need not care
about: an untouched stub (`None`, `...`, `NotImplemented`, a function that returns one of them or raises
`NotImplementedError`, a list with a gap) prints `not done yet: count the hidden cells`, and an answer that raises an
error prints the error in one line.
"""

import functools
import importlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_HOMES = ("checks_first", "checks_studies", "checks_transfer", "checks_laws", "checks_scale")
_PACKAGES = ("simmim-lite", "torch", "timm", "numpy", "plotly")


@dataclass(frozen=True)
class Verdict:
    """What a check makes of an answer: right or not, and the sentence that says why."""

    passed: bool
    line: str


class NotDone(Exception):
    """The stub is still there."""


class WrongForm(Exception):
    """The answer is not of the form that was asked for; the text says which one is."""


def right(line: str) -> Verdict:
    """The answer is right; the line says what follows from it."""
    return Verdict(True, line)


def wrong(line: str) -> Verdict:
    """The answer is wrong; the line names the case it falls into, and what to look at."""
    return Verdict(False, line)


def verdict(passed: bool, line: str, otherwise: str) -> Verdict:
    """`right(line)` or `wrong(otherwise)`."""
    return right(line) if passed else wrong(otherwise)


def exercise(task: str) -> Callable[[Callable[..., Verdict]], Callable[..., bool]]:
    """Make a check of a function (answer, ...) -> Verdict; `task` says in a few words what there is to do.

    The check prints one line, `right: …`, `not right yet: …` or `not done yet: …`, and returns whether it was right.
    """

    def decorate(judge: Callable[..., Verdict]) -> Callable[..., bool]:
        @functools.wraps(judge)
        def check(answer: object, *given: object, **named: object) -> bool:
            try:
                if untouched(answer):
                    raise NotDone
                found = judge(answer, *given, **named)
                mark = "right" if found.passed else "not right yet"
                passed, line = found.passed, f"{mark}: {found.line}"
            except (NotDone, NotImplementedError):
                passed, line = False, f"not done yet: {task}"
            except WrongForm as error:
                passed, line = False, f"not right yet: {error}"
            except Exception as error:  # the answer's own: whatever a learner's function raises
                what = (str(error).strip().splitlines() or [""])[0]
                passed, line = False, f"not right yet: your answer raised {type(error).__name__}: {what}"
            print(" ".join(line.split()))
            return passed

        check.task = task
        return check

    return decorate


def untouched(answer: object) -> bool:
    """Whether an answer is still a stub: None, `...`, NotImplemented, or a non-empty container that holds one."""
    if answer is None or answer is ... or answer is NotImplemented:
        return True
    if isinstance(answer, Mapping):
        return any(untouched(value) for value in answer.values())
    return isinstance(answer, (list, tuple)) and any(untouched(value) for value in answer)


def call(function: Callable, *arguments: object, **named: object) -> object:
    """What the learner's function returns; an untouched one ends the check as not done yet."""
    if not callable(function):
        raise TypeError(f"a function is wanted here, not {type(function).__name__}")
    result = function(*arguments, **named)
    if untouched(result):
        raise NotDone
    return result


def numbers(answer: object, *names: str) -> tuple[float, ...]:
    """The numbers of an answer, one a name, from a tuple, list or array; anything else ends the check with one line."""
    try:
        found = tuple(float(value) for value in answer)
    except (TypeError, ValueError):
        found = None
    if found is None or len(found) != len(names):
        yours = f"one {type(answer).__name__}" if found is None else f"{len(found)} numbers"
        raise WrongForm(f"{len(names)} numbers are wanted, ({', '.join(names)}): yours is {yours}")
    return found


def near(answer: object, truth: float, relative: float = 0.01, absolute: float = 1e-9) -> bool:
    """Whether a number is within a share of the truth (1 % by default)."""
    return abs(float(answer) - truth) <= max(absolute, relative * abs(truth))


def stamp(*used: Iterable[Mapping]) -> None:
    """Print what this notebook ran on: versions, commit where known, device, and the records (or rows) it used."""
    where = commit()
    versions = ", ".join(f"{name} {v}" for name in _PACKAGES if (v := _version(name)))
    print(f"python {platform.python_version()}, {versions}")
    print(f"commit {where or 'not known: this is no git checkout'}; device {_device()}")
    for line in _records(used):
        print(line)


def commit() -> str | None:
    """The short commit of the checkout the package lies in; None where it is not one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    """The GPU if torch was used and sees one, else the processor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda {torch.cuda.get_device_name()}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu {(models or [platform.processor() or platform.machine()])[0]}"


def _records(used: Iterable[Iterable[Mapping]]) -> list[str]:
    """One line for each group of records or rows: how many, of which data and seeds."""
    lines = []
    for group in used:
        group = [group] if isinstance(group, Mapping) else list(group)
        runs = [one.get("run") or one.get("spec") or one for one in group]
        data = sorted({str(run["data"]) for run in runs if run.get("data")})
        seeds = sorted({run["seed"] for run in runs if run.get("seed") is not None})
        of = f" of {', '.join(data)}" if data else ""
        which = f", seeds {', '.join(map(str, seeds))}" if seeds else ""
        which = f", key {group[0]['key']}" if len(group) == 1 and group[0].get("key") else which
        lines.append(f"records used: {len(group)}{of}{which}")
    return lines


def __getattr__(name: str):
    """The checks of all notebooks, from the files that hold them."""
    if not name.startswith("_"):
        for home in _HOMES:
            try:
                return getattr(importlib.import_module(f".{home}", __package__), name)
            except ModuleNotFoundError as error:
                if error.name != f"{__package__}.{home}":
                    raise
            except AttributeError:
                continue
    raise AttributeError(f"no check is named '{name}'")
