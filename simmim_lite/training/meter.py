"""What a run cost and where it ran: seconds, memory, commit, versions, device."""

import importlib.metadata
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from .distributed import Team

_PACKAGES = ("simmim-lite", "torch", "torchvision", "timm", "numpy")


class Meter:
    """Wall and core seconds and peak memory since it was made, on top of what an interrupted run had spent before."""

    def __init__(self, device: torch.device, spent: dict | None = None) -> None:
        self.device, self.spent = device, spent or {"seconds": 0.0, "core_seconds": 0.0}
        self.started = (spent or {}).get("started") or now()
        self.wall, self.core = time.perf_counter(), time.process_time()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict:
        """{"seconds", "core_seconds"} so far."""
        return {
            "seconds": self.spent["seconds"] + time.perf_counter() - self.wall,
            "core_seconds": self.spent["core_seconds"] + time.process_time() - self.core,
        }

    def peak_memory(self) -> int | None:
        """Bytes: the device's peak on a GPU, the process's on a CPU; None where the system does not say."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:  # Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def spent_by(self, us: Team) -> dict:
        """As `read`: seconds by the main process's clock, core seconds of all processes. Every process calls it."""
        meters = us.gather(self.read())
        return {**meters[0], "core_seconds": sum(meter["core_seconds"] for meter in meters)}

    def peak_of(self, us: Team) -> int | None:
        """The highest `peak_memory` of all processes; None where one does not know. Every process calls it."""
        peaks = us.gather(self.peak_memory())
        return None if None in peaks else max(peaks)

    def where(self, data_digest: str, data_line: str = "") -> dict:
        """The provenance of a record: commit, versions, device, threads, data, start and end.

        data_line: what was said of the data when it was opened (`sources.Data.line`); older records have none.
        """
        return {
            **commit(),
            "versions": versions(),
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "data_digest": data_digest,
            **({"data_line": data_line} if data_line else {}),
            "started": self.started,
            "finished": now(),
        }


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def commit() -> dict:
    """{"commit", "dirty"} of the checkout this package lies in; None and None where it is not one."""
    root = Path(__file__).resolve().parents[2]
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root:
            return {"commit": None, "dirty": None}
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "simmim_lite")
        return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


@cache
def versions() -> dict:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__
    return found


@cache
def device_name(device: torch.device) -> str:
    """`cuda NVIDIA H200`, `cpu AMD EPYC`: the kind, then the maker's name for it."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{device.type} {name}"
