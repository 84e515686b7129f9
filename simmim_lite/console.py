"""What a command hears and says: a scheduler's signals, and streams that may be lost."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from .errors import Signalled

#: What schedulers send before they take a machine away, and what a closed terminal sends.
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP")


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
    """From here on, the first signal by which schedulers take a machine away, or a terminal goes, raises `Signalled`;
    more of them change nothing. What is ignored (nohup) stays so. A training hears them itself and saves."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]

    def hear(number: int, _: object) -> None:
        ignore_signals()
        raise Signalled(signal.Signals(number).name)

    for number in numbers:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, hear)


def ignore_signals() -> None:
    """From here on, a scheduler's signals change nothing: this process is at its end."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
