"""Worker processes end with the process that started them, however that ends. Nothing heavy here."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

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
