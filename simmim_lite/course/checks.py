"""The checks of all notebooks' exercises (`grading` says how they work), and the stamp at their end. No torch here."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Mapping

from ..processes import commit
from . import graders
from .grading import TEXTS, one_number

_PACKAGES = ("simmim-lite", "torch", "timm", "numpy", "plotly")


def __getattr__(name: str):
    """A check by its name."""
    if name not in TEXTS:
        raise AttributeError(f"no check is named '{name}'")
    return one_number(name) if "truth" in TEXTS[name] else getattr(graders, name)


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
