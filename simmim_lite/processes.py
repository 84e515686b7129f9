"""Child processes that end with their parent, torchrun's error files, and a line on stderr for what takes long.

Nothing heavy here.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import Interrupted, UserError

_watched: set[int] = set()


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started inside never hear Ctrl-C, which a terminal sends to all of a group: who started them
    ends them, and none that is still importing adds its traceback to the one line. One that comes meanwhile is heard
    here afterwards. Where SIGINT is ignored (a job in a shell script's background), it stays so.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # Python 3.11 unblocks the signal where it starts this by the way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with(parent: int) -> None:
    """End this process when `parent`, which started it, is gone: what is killed leaves nothing running."""
    if parent in _watched or os.getpid() == parent:
        return
    _watched.add(parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def first_to_say(line: str, may: bool = True) -> bool:
    """Whether this process is to print a line, if it may: the first that has it of those that torchrun started here.

    The line is left for torchrun in any case, which prints it as the cause, at the end of all that it prints.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/LOCAL_RANK/error.json
    if not path:
        return may
    more = {"py_callstack": line, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": more}}))
        try:
            if may:
                (Path(path).parents[1] / f"said-{hashlib.sha256(line.encode()).hexdigest()[:12]}").touch(exist_ok=False)
        except FileExistsError:
            return False
    return may


def said_by_another() -> str:
    """The line that another process of the same torchrun, on this machine, ended with; empty where none did."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    for left in Path(path).parents[1].glob("*/error.json") if path else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(left.read_text())["message"]["message"]
    return ""


@contextlib.contextmanager
def waiting(text: str, seconds: float = 5.0) -> Iterator[None]:
    """Say on stderr what is waited for, where the block takes longer than some seconds."""

    def say() -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody listens
            print(f"simmim-lite: {text}", file=sys.stderr, flush=True)

    timer = threading.Timer(seconds, say)
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


def each(
    function: Callable, items: Iterable, workers: int, begin: Callable, *job: object, kept: str = ""
) -> Iterator[tuple[object, object]]:
    """(item, what a function makes of it), as they end, in processes that `begin(*job)` prepares.

    They end with this one, and at Ctrl-C, which is one line: `Interrupted`. kept: what that line, and the one for a
    process that was killed, says is kept.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(), begin, job))
    again = f"{kept and f'{kept}; '}run the same command again"
    try:
        with deaf_to_interrupts():
            calls = {pool.submit(function, item): item for item in items}
        for call in as_completed(calls):
            yield calls[call], call.result()
    except BrokenProcessPool as error:
        raise UserError(f"a process was killed (out of memory?): {again} with fewer --workers") from error
    except BaseException as error:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted: {again}") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int, begin: Callable, job: tuple) -> None:
    end_with(parent)
    begin(*job)
