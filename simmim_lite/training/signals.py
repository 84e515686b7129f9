"""SIGTERM and SIGUSR1, which schedulers send before they take a machine away: heard at the next step boundary."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from ..errors import Preempted
from .distributed import Team

_NAMES = ("SIGTERM", "SIGUSR1")


class Ears:
    """`heard` is the name of the signal that came, or None."""

    def __init__(self) -> None:
        self.heard: str | None = None

    def __call__(self, number: int, _: object) -> None:
        self.heard = signal.Signals(number).name


@contextlib.contextmanager
def listening() -> Iterator[Ears]:
    """Inside, the two signals end nothing and are remembered; afterwards they do what they did before.

    Only a process's main thread may handle signals: in another one nothing is changed, and nothing is heard. A signal
    that comes twice (from the scheduler and from torchrun) is heard once.
    """
    ears, before = Ears(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            before[number] = signal.signal(number, ears)
    try:
        yield ears
    finally:
        for number, handler in before.items():
            # None: set by something that is not Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def preempted(ears: Ears, us: Team, key: str, step: int, steps: int) -> Preempted:
    """What all processes raise when one of them has heard a signal and everything is saved."""
    name = next(filter(None, us.gather(ears.heard)))
    return Preempted(f"{name}: {key} is saved at step {step} of {steps}; run the same command to go on")
