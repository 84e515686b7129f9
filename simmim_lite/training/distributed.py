"""Several processes on one run, as torchrun starts them: who does which share. Alone, nothing here costs anything."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError


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
            raise UserError(f"batch_size {batch_size} does not divide among {self.size} processes: try {near}")
        own = batch_size // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def pairs(self, batch_size: int) -> np.ndarray:
        """As `share`, but both or none of images j and batch_size - 1 - j, in order: int64 (share,).

        Each process can then mix its images with their mirror images as one process mixes the whole batch.
        """
        if batch_size % (2 * self.size):
            near = max(2 * self.size, batch_size // (2 * self.size) * 2 * self.size)
            raise UserError(f"batch_size {batch_size} does not divide into pairs for {self.size} processes: try {near}")
        own = batch_size // (2 * self.size)
        front = np.arange(self.rank * own, (self.rank + 1) * own)
        return np.concatenate([front, batch_size - 1 - front[::-1]])

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
    already is used and left as it is.
    """
    from .pretrain import pick_device

    if world_size() == 1:
        yield Team(pick_device(device))
        return
    place = pick_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    mine = not torch.distributed.is_initialized()
    if mine:
        torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Team(place, torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        if mine:
            torch.distributed.destroy_process_group()
