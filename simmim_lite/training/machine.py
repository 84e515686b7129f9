"""The machine: its device, one thread on a CPU, what a training cost and where it ran, a scheduler's signals."""

import contextlib
import importlib.metadata
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from ..errors import UserError, unknown

_PACKAGES = ("simmim-lite", "torch", "torchvision", "timm", "numpy")


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; one line for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = device.split(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise unknown("device", device, ("auto", *there))
    if not there[kind]:
        raise UserError(f"device '{device}' is not there: use --device cpu, or install a torch built for it")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or (chosen.index or 0) >= max(1, torch.cuda.device_count() if kind == "cuda" else 1):
        raise UserError(f"device '{device}' is not there: say {kind}, or {kind}:0 for the first")
    return chosen


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[torch.device]:
    """On a CPU, one torch thread inside: sums depend on how they are split, and a Run's numbers must not.

    Several runs at a time use the cores better than several threads a run do (`simmim-lite study`).
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield device
    finally:
        torch.set_num_threads(before)


def timed(call: Callable[[], object], device: str | torch.device) -> float:
    """Seconds of a call, the device's own work counted."""
    kind, started = torch.device(device).type, time.perf_counter()
    call()
    if kind != "cpu":
        getattr(torch, kind).synchronize()
    return time.perf_counter() - started


class Meter:
    """Wall and core seconds and peak memory since it was made, on top of what an interrupted run had spent before."""

    def __init__(self, device: torch.device, spent: dict | None = None) -> None:
        self.device, self.spent = device, spent or {"seconds": 0.0, "core_seconds": 0.0}
        self.started = self.spent.get("started") or now()
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

    def spent_by(self, team) -> dict:
        """As `read`: seconds by the main process's clock, core seconds of all processes. Every process calls it."""
        meters = team.gather(self.read())
        return {**meters[0], "core_seconds": sum(meter["core_seconds"] for meter in meters)}

    def peak_of(self, team) -> int | None:
        """The highest `peak_memory` of all processes; None where one does not know. Every process calls it."""
        peaks = team.gather(self.peak_memory())
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

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {"commit": None, "dirty": None}
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "simmim_lite")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


@cache
def versions() -> dict:
    """Versions of Python and of the packages that numbers depend on; None for one that is not installed."""
    found = {"python": platform.python_version()} | dict.fromkeys(_PACKAGES)
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {"torch": torch.__version__}


@cache
def device_name(device: torch.device) -> str:
    """`cuda NVIDIA H200`, `cpu AMD EPYC`: the kind, then the maker's name for it."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{device.type} {name}"


class Preemption:
    """Inside `with`, SIGTERM and SIGUSR1, which schedulers send before they take a machine away, end nothing: `signal`
    is the name of the one that came, or None. Afterwards they do what they did before.

    Only a process's main thread may handle signals: in another one nothing is changed, and nothing is noticed. One that
    comes twice (from the scheduler and from torchrun) counts once.
    """

    def __init__(self) -> None:
        self.signal, self._before = None, {}

    def __call__(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number).name

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: set by something that is not Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
