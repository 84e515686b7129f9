"""This machine: devices, versions, child processes, torchrun's error files, signals, streams, what is said, what lasts.

Nothing heavy here: torch is imported when it is asked for."""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from datetime import UTC, datetime
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TextIO

from .errors import Signalled, UserError, printable, unknown

#: What schedulers send before they take a machine away, and what a closed terminal sends.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def pick_device(device: str = "auto"):
    """A torch.device: `auto` is the GPU where there is one, else the CPU; one line for a device that is not there."""
    import torch

    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    kind, _, index = device.partition(":")
    if kind not in there:
        raise unknown("device", device, ("auto", *there))
    if (":" in device and not index.isdecimal()) or int(index or 0) >= there[kind]:
        raise UserError(f"device '{device}' is not there: use --device cpu, or install a torch built for it")
    return torch.device(device)


def has_driver() -> bool:
    """Whether there may be a GPU that torch takes, as far as one can tell without it."""
    return any(map(shutil.which, ("nvidia-smi", "rocm-smi")))


@contextlib.contextmanager
def one_thread(device) -> Iterator:
    """On a CPU, one torch thread inside: sums depend on how they are split, and a Run's numbers must not."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else before)
    try:
        yield device
    finally:
        torch.set_num_threads(before)


def timed(call: Callable[[], object], device) -> float:
    """Seconds of a call, the device's own work counted."""
    import torch

    kind, started = torch.device(device).type, time.perf_counter()
    call()
    if kind != "cpu":
        getattr(torch, kind).synchronize()
    return time.perf_counter() - started


@cache
def device_name(device) -> str:
    """`cuda NVIDIA H200`, `cpu AMD EPYC`: the kind, then the maker's name for it."""
    import torch

    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu" and cpuinfo.exists():
        models = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        name = next((line.split(":", 1)[1].strip() for line in models), name)
    return f"{device.type} {name}"


@cache
def versions() -> dict:
    """Versions of Python and of the packages that numbers depend on; None for one that is not installed."""
    import torch

    names = ("simmim-lite", "torch", "torchvision", "timm", "numpy")
    found = {"python": platform.python_version(), **dict.fromkeys(names)}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {"torch": torch.__version__}


@cache
def commit() -> dict:
    """{"commit", "dirty"} of the checkout this package lies in; None and None where it is not one."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            changed = git("status", "--porcelain", "--untracked-files=no", "--", "simmim_lite")
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    return {"commit": None, "dirty": None}


def cores() -> int:
    """The cores that this process may use: what an affinity or a container leaves of the machine's."""
    import joblib

    return joblib.cpu_count()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started inside never hear what a terminal or a scheduler sends to all of a group, but for
    SIGTERM: who started them ends them by that. What comes meanwhile is heard here afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # Python 3.11 unblocks the signal where it starts this by the way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def each(function: Callable, items: Collection, workers: int, threads: int = 1, grace: float = 0.0) -> Iterator:
    """What a function makes of items, as they end, in new processes of so many threads, which end with this one. One
    that is killed is one line. grace: seconds that SIGTERM gives them to save, when this process is interrupted."""
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    how = {"env": dict.fromkeys(THREADS, str(threads)), "initializer": _end_with, "initargs": (os.getpid(),)}
    with deaf_to_interrupts():
        pool, left = ProcessPoolExecutor(workers := min(workers, len(items)), **how), iter(items)
    try:
        with deaf_to_interrupts():  # no more calls than workers: of others loky knows nothing when it kills
            calls = {pool.submit(function, item) for item in itertools.islice(left, workers)}
        while calls:
            for call in wait(calls, return_when=FIRST_COMPLETED).done:
                calls.remove(call)
                yield call.result()
                calls |= {pool.submit(function, item) for item in itertools.islice(left, 1)}
        pool.shutdown()
    except BrokenProcessPool as error:
        died = "a worker process died (out of memory?)"
        raise UserError(f"{died}: what is finished is kept; run again with --workers 1") from error
    except BaseException as error:
        if isinstance(error, Signalled):
            ignore_signals()
        if grace:
            with deaf_to_interrupts():
                for process in list(pool._processes.values()):
                    process.terminate()
                wait(calls, timeout=grace)
        pool.shutdown(wait=False, kill_workers=True)
        raise


def _end_with(parent: int) -> None:
    """In a worker: end it when `parent` is gone, so that what is killed leaves nothing running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    forgive_streams()


class Forgiving:
    """A stream of this process that may be lost, on a full disk or with its reader: what cannot be said is not worth a
    run. `lost` is the error, or None."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.lost = stream, None
        with contextlib.suppress(AttributeError, OSError):
            stream.reconfigure(errors="replace")  # in a locale that has not every letter

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, call: Callable, *given: str) -> None:
        try:
            call(*given)
        except (OSError, ValueError) as error:
            self.lost = self.lost or error
            with contextlib.suppress(OSError, ValueError):  # nor may what is left in it fail at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def forgive_streams() -> None:
    """From here on, output that cannot be written ends nothing; closed streams are open, and lead nowhere."""
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:  # else the next file that is opened would be stdout
        pass
    os.close(handle)
    for handle, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(stream or os.fdopen(handle, "w", closefd=False)))


def hear_signals() -> None:
    """From here on, a signal by which schedulers take a machine away, or a terminal goes, raises `Signalled`, again and
    again until `ignore_signals`. What is ignored (nohup) stays so. A training hears them itself and saves."""

    def hear(number: int, _: object) -> None:
        def unless_ignored() -> None:
            if signal.getsignal(number) is hear:
                os.kill(os.getpid(), number)

        again = threading.Timer(1.0, unless_ignored)  # what is raised in a destructor is lost
        again.daemon = True
        again.start()
        Signalled.heard = signal.Signals(number).name
        raise Signalled(Signalled.heard)

    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, hear)


def ignore_signals() -> None:
    """From here on, a scheduler's signals change nothing: this process is at its end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def tell(line: str) -> None:
    """Print a line on stderr."""
    print(f"simmim-lite: {printable(line)}", file=sys.stderr, flush=True)


@cache
def tell_once(line: str) -> None:
    """Print a line on stderr, once in a process; in those of a pool it has been said where they were started."""
    if multiprocessing.current_process().name == "MainProcess":
        tell(line)


def speaks() -> bool:
    """Whether this process is the one that writes to the screen: the first that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def first_to_say(line: str, may: bool = True) -> bool:
    """Whether this process is to print a line, if it may: the first of those that torchrun started here that has it.
    The line is left for torchrun in any case, which prints it as the cause, at its end."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/LOCAL_RANK/error.json
    if not path:
        return may
    more = {"py_callstack": line, "timestamp": str(int(time.time()))}
    Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": more}}))
    said = Path(path).parents[1] / f"said-{hashlib.sha256(line.encode()).hexdigest()[:12]}"
    try:
        return may and said.touch(exist_ok=False) is None
    except FileExistsError:
        return False


@contextlib.contextmanager
def waiting(text: str, seconds: float = 5.0) -> Iterator[None]:
    """Say what is waited for, where the block takes longer than some seconds."""
    timer = threading.Timer(seconds, print, [f"simmim-lite: {text}"], {"file": told(), "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def import_torch() -> None:
    """The first import of torch, which takes long on a slow disk: said where it does."""
    with waiting("importing torch"):
        import torch  # noqa: F401


def told() -> TextIO:
    """Where progress is written: what goes to stderr is a red box in a notebook."""
    return sys.stdout if in_notebook() and not executed_unseen() else sys.stderr


def again() -> str:
    """How what was stopped goes on, in words."""
    cell = "cell again to go on, by Run > Run Selected Cell and All Below"
    return f"run the {cell if told() is sys.stdout else 'same command to go on'}"


def executed_unseen() -> bool:
    """Whether nbclient runs this kernel (papermill, nbconvert): it alone keeps the history in memory."""
    return getattr(getattr(_shell(), "history_manager", None), "hist_file", None) == ":memory:"


def in_notebook() -> bool:
    """Whether a kernel is there that can show figures."""
    return getattr(_shell(), "kernel", None) is not None


def _shell() -> object:
    """IPython's shell, where there is one; it is not imported to find out."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
