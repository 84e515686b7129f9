"""Several processes on one run, as torchrun starts them: who does which share. Alone, nothing here costs anything."""

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import Everywhere, UserError, first_line
from ..processes import said_by_another
from .device import pick_device

#: How long a process waits for another one: the main one may wait for a lock, or probe, for hours. torchrun sees a dead
#: process at once, whatever this is.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Team:
    """The processes of one run: this one's number and device, and how many there are."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """This process's part of a global batch, equal for all; `UserError` where it does not divide."""
        if batch_size % self.size:
            near = max(self.size, batch_size // self.size * self.size)
            raise Everywhere(f"batch_size {batch_size} does not divide among {self.size} processes: try {near}")
        own = batch_size // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def pairs(self, batch_size: int) -> np.ndarray:
        """As `share`, but both or none of images j and batch_size - 1 - j, in order: int64 (share,).

        Each process can then mix its images with their mirror images as one process mixes the whole batch.
        """
        if batch_size % (2 * self.size):
            near = max(2 * self.size, batch_size // (2 * self.size) * 2 * self.size)
            line = f"batch_size {batch_size} does not divide into pairs for {self.size} processes: try {near}"
            raise Everywhere(line)
        own = batch_size // (2 * self.size)
        front = np.arange(self.rank * own, (self.rank + 1) * own)
        return np.concatenate([front, batch_size - 1 - front[::-1]])

    def decoders(self) -> int:
        """Worker processes that decode for this process: the cores it has for itself, less the one it computes on."""
        affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        here = torch.cuda.device_count() if self.device.type == "cuda" else self.size
        return max(0, min(16, cores // max(1, min(here, self.size)) - 1))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are averaged over all processes; the model itself when alone."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, in place."""
        return self.sum(value).div_(self.size)

    def tell(self, thing: object = None) -> object:
        """What the main process says (anything that pickles), to all."""
        if self.size == 1:
            return thing
        box = [thing]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def lead(self, act: Callable[[], object]) -> object:
        """What the main process's `act()` returns, to all; all raise the `UserError` that it raises."""
        if self.size == 1:
            return act()
        said = error = None
        if self.main:
            try:
                said = act()
            except UserError as raised:
                error = raised
        said, line = self.tell((said, None if error is None else str(error)))
        if line is not None:
            raise Everywhere(line) from error
        return said

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true in any process."""
        if self.size == 1:
            return list(flags)
        # between CPUs where they have a channel of their own: a GPU need not finish its step for this
        here = "cpu" if "cpu" in torch.distributed.get_backend_config() else self.device
        found = torch.tensor(flags, dtype=torch.uint8, device=here)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def gather(self, thing: object) -> list:
        """What every process has to say, in the order of their numbers, for all."""
        if self.size == 1:
            return [thing]
        said: list = [None] * self.size
        torch.distributed.all_gather_object(said, thing)
        return said


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process is the one that writes to the screen: the first that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def team(device: str = "auto") -> Iterator[Team]:
    """The processes that torchrun started, joined on their devices: NCCL between GPUs, gloo between CPUs.

    Each takes the GPU of its local number. Without torchrun, this process alone. A group that the caller has set up
    already is used. The processes stay joined until they end: a second group at the same address would meet what is
    left of the first.
    """
    if world_size() == 1:
        yield Team(pick_device(device))
        return
    place = pick_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        try:
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
        except Exception as error:  # of many kinds, and mostly because another one left, which has said why
            if line := said_by_another():
                raise UserError(line.removeprefix("simmim-lite: ")) from error
            what = f"cannot join the {world_size()} processes of this run ({first_line(error)})"
            raise Everywhere(f"{what}: check the network between them") from error
        atexit.register(_leave)
    yield Team(place, torch.distributed.get_rank(), torch.distributed.get_world_size())


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
