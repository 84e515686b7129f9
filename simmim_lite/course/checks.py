"""The checks of all notebooks' exercises (`grading` says how they work), and the stamp at their end. No torch here."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import checks_first, checks_studies
from .grading import TEXTS, one_number

_PACKAGES = ("simmim-lite", "torch", "timm", "numpy", "plotly")


def __getattr__(name: str):
    """A check by its name."""
    if name not in TEXTS:
        raise AttributeError(f"no check is named '{name}'")
    return one_number(name) if "truth" in TEXTS[name] else (vars(checks_first) | vars(checks_studies))[name]


def stamp(*used: Iterable[Mapping]) -> None:
    """Print what this notebook ran on: versions, commit where known, device, and the records (or rows) it used."""
    installed = {d.name for d in importlib.metadata.distributions()}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if name in installed]
    print(", ".join([f"python {platform.python_version()}", *versions]))
    print(f"commit {commit() or 'not known: this is no git checkout'}; device {_device()}")
    for group in used:
        print(_records(group))


def commit() -> str | None:
    """The short commit of the checkout the package lies in; None where it is not one."""
    root = Path(__file__).resolve().parents[2]
    words = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        done = (root / ".git").exists() and subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done else None


def _device() -> str:
    """The GPU if torch was used and sees one, else the processor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda {torch.cuda.get_device_name()}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu {(models or [platform.processor() or platform.machine()])[0]}"


def _records(group: Mapping | Iterable[Mapping]) -> str:
    """One line for a group of records or rows: how many, of which data and seeds."""
    group = [group] if isinstance(group, Mapping) else list(group)
    runs = [one.get("run") or one.get("spec") or one for one in group]
    data = sorted({str(run["data"]) for run in runs if run.get("data")})
    seeds = sorted({run["seed"] for run in runs if run.get("seed") is not None})
    which = f", seeds {', '.join(map(str, seeds))}" if seeds else ""
    which = f", key {group[0]['key']}" if len(group) == 1 and group[0].get("key") else which
    of = f" of {', '.join(data)}" if data else ""
    return f"records used: {len(group)}{of}{which}"
