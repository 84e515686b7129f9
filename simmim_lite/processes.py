"""Worker processes end with the process that started them, however that ends. Nothing heavy here."""

import os
import threading
import time

_watched: set[int] = set()


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
