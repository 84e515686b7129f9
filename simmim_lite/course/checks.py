"""Checks of the notebooks' exercises (see `grading`), the reader's guess, and the stamp at the end. No torch here."""

import importlib.metadata
import math
import platform
import sys
from collections.abc import Iterable, Mapping

from ..errors import UserError
from ..processes import commit, executed_unseen, in_notebook
from . import graders
from .grading import PLACES, RIGHT, TEXTS, form_of, is_number, one_number

_PACKAGES = ("simmim-lite", "torch", "timm", "numpy", "plotly")


def __getattr__(name: str):
    """A check by its name."""
    if name not in TEXTS:
        raise AttributeError(f"no check is named '{name}'")
    return one_number(name) if "truth" in TEXTS[name] else getattr(graders, name)


def guess(answer: object, wanted: str, low: float, high: float) -> float | None:
    """The reader's prediction as a number from low to high; None for "pass", and where nobody is there to make one.

    *Run All* stops here until there is one: `UserError`, which a notebook shows as one line. wanted: in words."""
    if isinstance(answer, str) and answer.strip().lower() == "pass":
        return None
    if answer is None and (executed_unseen() or not in_notebook()):
        return None
    if answer is None:
        go_on = "then Run > Run Selected Cell and All Below"
        raise UserError(f'your guess first: write {wanted}, or "pass", in place of None in this cell; {go_on}')
    if not is_number(answer):
        raise UserError(f'{wanted}, or "pass", is wanted: your guess is {form_of(answer)}')
    if not low <= answer <= high:
        raise UserError(f'{wanted}, or "pass", is wanted: your guess is {answer:g}, and not from {low:g} to {high:g}')
    return answer


def told(answer: float | None, truth: float | None, unit: str, form: str = ".3g") -> None:
    """Compare a prediction with what came, in words; nothing where there was none."""
    if answer is None or truth is None or math.isnan(truth):
        return
    off = answer - truth
    how = "close" if abs(off) <= 0.05 * abs(truth) else f"{abs(off):{form}} too {'high' if off > 0 else 'low'}"
    print(f"you said {answer:g}, it is {truth:{form}} {unit}: {how}")


def summary(notebook: str) -> None:
    """Print how many exercises of a notebook ("04") were right when they were last checked here, and which are open."""
    right = {place: RIGHT.get(name, False) for name, place in PLACES.items() if place.startswith(notebook)}
    still = ", ".join(place.partition(".")[2] for place, done in right.items() if not done)
    print(f"exercises: {sum(right.values())} of {len(right)} right" + (f"; open: {still}" if still else ""))


def stamp(*used: Mapping | Iterable[Mapping]) -> None:
    """Print what this notebook ran on: versions, commit where known, device, and the records (or rows) it used."""
    installed = {d.name for d in importlib.metadata.distributions()}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if name in installed]
    print(", ".join([f"python {platform.python_version()}", *versions]))
    torch, device = sys.modules.get("torch"), f"cpu {platform.processor() or platform.machine()}"
    if torch is not None and torch.cuda.is_available():  # it is not imported to find out
        device = f"cuda {torch.cuda.get_device_name()}"
    found = commit()["commit"]
    print(f"commit {found[:12] if found else 'not known: this is no git checkout'}; device {device}")
    for group in used:
        group = [group] if isinstance(group, Mapping) else list(group)
        runs = [one.get("run") or one.get("spec") or one for one in group]
        data = sorted({str(run["data"]) for run in runs if run.get("data")})
        seeds = sorted({run["seed"] for run in runs if run.get("seed") is not None})
        which = f", seeds {', '.join(map(str, seeds))}" if seeds else ""
        which = f", key {group[0]['key']}" if len(group) == 1 and group[0].get("key") else which
        of = f" of {', '.join(data)}" if data else ""
        print(f"records used: {len(group)}{of}{which}")
