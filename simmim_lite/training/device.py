"""Where a run computes: the device that is asked for, and one thread on a CPU."""

import contextlib
from collections.abc import Iterator

import torch

from ..errors import UserError, unknown


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; one line for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise unknown("device", device, ("auto", "cpu", "cuda", "mps"))
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
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
