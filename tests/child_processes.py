"""Processes that tests start, stop and wait for: until a state is reached, however slow the machine is."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 1200  # seconds: as long only takes what hangs


def until(reached: Callable[[], object], process: subprocess.Popen | None = None, patience: float = PATIENCE) -> object:
    """What `reached()` returns as soon as it is true; a process that it depends on must live until then."""
    limit = time.monotonic() + patience
    while not (found := reached()):
        if process is not None and process.poll() is not None and not (found := reached()):
            said = [pipe.read() for pipe in (process.stdout, process.stderr) if pipe]
            raise AssertionError(f"ended with {process.returncode} before its time: {said}")
        if found:
            break
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)
    return found


def interruptible() -> None:
    """`preexec_fn` of a process that is to be interrupted: children inherit it where SIGINT is ignored, as it is in a
    job that a shell script puts into the background, or after `trap '' INT`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


#: Statuses of what Ctrl-C ended. Python kills itself by the signal where it came inside an `exec`, though the exception
#: was caught; a shell says 130 of both.
INTERRUPTED = (130, -signal.SIGINT)


def session(leader: int) -> list[int]:
    """The processes of a session that live, by their numbers: all of a call with `start_new_session=True`."""
    found = subprocess.run(["ps", "-s", str(leader), "-o", "pid=,stat="], capture_output=True, text=True).stdout
    return [int(pid) for pid, state in map(str.split, found.splitlines()) if not state.startswith("Z")]


def lives(pid: int) -> bool:
    """Whether a process lives; one that ended and that nobody has asked about does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal by now; Linux."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


def interrupt(process: subprocess.Popen) -> None:
    """Ctrl-C in the terminal of a process that leads its session."""
    os.killpg(process.pid, signal.SIGINT)
