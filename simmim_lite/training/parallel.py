"""Several processes on one training, as torchrun starts them: ranks, shares of a batch, gradients whole or sharded."""

import atexit
import contextlib
import copy
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from ..errors import Everywhere, UserError, first_line
from ..processes import commit, cores, device_name, now, pick_device, versions
from .run import Runtime

#: How long a process waits for another one, which may wait for a lock, or probe; torchrun sees a dead one at once.
PATIENCE = timedelta(days=2)
_PLAIN = Runtime()


@dataclass(frozen=True)
class Group:
    """The process group of one training: this one's rank and device, and how many there are."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int, parts: int = 1) -> slice:
        """This process's part of a global batch, equal for all; `UserError` where it does not divide, in parts."""
        if batch_size % (least := self.size * parts):
            among = f"{self.size} processes" + f", each in accumulate {parts} parts" * (parts > 1)
            near = max(least, batch_size // least * least)
            raise Everywhere(f"batch_size {batch_size} does not divide among {among}: try {near}")
        own = batch_size // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def decoders(self) -> int:
        """Worker processes that decode for this process: the cores it has for itself, less the one it computes on."""
        here = torch.cuda.device_count() if self.device.type == "cuda" else self.size
        return max(0, min(16, cores() // max(1, min(here, self.size)) - 1))

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true in any process."""
        # between CPUs: a GPU need not finish its step for this
        return self.sum(torch.tensor(flags, dtype=torch.int32)).bool().tolist()

    def broadcast(self, thing: object = None) -> object:
        """The main process's thing (anything that pickles), to all."""
        box = [thing]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, thing: object) -> list:
        """The things of all processes, in the order of their ranks, to all."""
        things: list = [thing] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(things, thing)
        return things

    def on_main(self, act: Callable[[], object]) -> object:
        """What the main process's `act()` returns, to all; all raise the `UserError` that it raises."""
        if self.size == 1:
            return act()
        result = error = None
        try:
            result = act() if self.is_main else None
        except UserError as raised:
            error = raised
        result, line = self.broadcast((result, error and str(error)))
        if line is not None:
            raise Everywhere(line) from error
        return result


def join(device: str = "auto") -> Group:
    """The processes that torchrun started, joined on their devices until they end: NCCL between GPUs, each of its local
    rank, gloo between CPUs. Without torchrun, this process alone."""
    place, size = pick_device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group(place)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        try:
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
        except Exception as error:  # of many kinds, and mostly because another one left, which has said why
            what = f"cannot join the {size} processes of this run ({first_line(error)})"
            raise Everywhere(f"{what}: see what another one says, or check the network between them") from error
        atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())
    return Group(place, torch.distributed.get_rank(), torch.distributed.get_world_size())


class Meter:
    """What a group has spent since it was made, on top of what an interrupted training had spent before."""

    def __init__(self, group: Group, before: dict | None = None) -> None:
        self.group, self.before = group, before or {"seconds": 0.0, "core_seconds": 0.0}
        self.started = self.before.get("started") or now()
        self.wall, self.core = time.perf_counter(), time.process_time()

    def spent(self) -> dict:
        """{"seconds"} by the main process's clock, {"core_seconds"} of all processes, which all call it."""
        meters = self.group.gather((time.perf_counter() - self.wall, time.process_time() - self.core))
        core = self.before["core_seconds"] + sum(core for _, core in meters)
        return {"seconds": self.before["seconds"] + meters[0][0], "core_seconds": core}

    def where(self, data, **more: object) -> dict:
        """The provenance of a record: commit, versions, device, threads, digest of the data, start and end."""
        found = {**commit(), "versions": versions(), "device": device_name(self.group.device)}
        found |= {"threads": torch.get_num_threads(), "data_digest": data.digest}
        found |= {"started": self.started, "finished": now()}
        return found | ({"processes": self.group.size} if self.group.size > 1 else {}) | more


class Parallel(nn.Module):
    """A network whose call on this process's share of a batch is its loss, and whose gradient is that of all of it.
    loss: `loss(model, *batch)`, by default what the model returns. With `accumulate` the gradients of all parts but the
    last are there when the call returns. fsdp: sharded block by block (FSDP2), in full precision."""

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        runtime: Runtime = _PLAIN,
        loss: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.group, self.parts = model, group, runtime.accumulate
        self.sharded = runtime.parallel == "fsdp" and group.size > 1
        self._blank = [copy.deepcopy(model).to("meta")] if self.sharded else []  # in a list: no part of this module
        if runtime.checkpointing:
            model.encoder.checkpointing = True
        if runtime.compile:
            compile_blocks(model, group.device)
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(group.device.type, (group.size,))
            for part in (*_blocks(model), model):
                fully_shard(part, mesh=mesh)
        self.net, self.loss = model, loss or (lambda net, *batch: net(*batch))
        if group.size > 1 and not self.sharded:
            how = {"device_ids": [group.device.index]} if group.device.type == "cuda" else {}
            # DDP orders its buckets anew after the first backward pass, but not with `find_unused_parameters`. On a
            # CPU, where bits are promised, the order of a sum of three or more terms must not depend on where it began.
            how |= {"find_unused_parameters": group.device.type == "cpu" and group.size > 2}
            self.net = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, **how)

    def forward(self, *batch: Tensor) -> Tensor:
        *first, last = zip(*(part.chunk(self.parts) for part in batch), strict=True) if self.parts > 1 else (batch,)
        done = []
        for part in first:
            with self.net.no_sync() if hasattr(self.net, "no_sync") else contextlib.nullcontext():
                loss = self.loss(self.net, *part) / self.parts
                with torch.autocast(loss.device.type, enabled=False):  # the caller is in it
                    loss.backward()
            torch.clear_autocast_cache()  # the next part casts the weights anew
            done.append(loss.detach())
        loss = self.loss(self.net, *last)
        return loss / self.parts + sum(done) if done else loss

    def whole(self) -> nn.Module:
        """The model with all its weights, to validate and probe with: a copy when sharded. Every process calls it."""
        if not self.sharded:
            return self.model
        model = copy.deepcopy(self._blank[0]).to_empty(device=self.group.device)
        state = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in self.model.state_dict().items()}
        model.load_state_dict(state)
        return model

    def gathered(self, value: object) -> object:
        """A sharded tensor, whole, on the main process's CPU; anything else as it is. Every process calls it."""
        if not hasattr(value, "full_tensor"):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.group.is_main else None

    def load(self, weights: dict, state: dict, optimiser: torch.optim.Optimizer) -> None:
        """Load whole tensors of model and optimiser, cut to this process's shards where the model is sharded."""
        own, parameters = self.model.state_dict(), [p for group in optimiser.param_groups for p in group["params"]]
        self.model.load_state_dict({name: _cut(value, own[name]) for name, value in weights.items()})
        moments = {
            i: {k: v if k == "step" else _cut(v, parameters[i]) for k, v in values.items()}
            for i, values in state["state"].items()
        }
        optimiser.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def _cut(value: Tensor, like: Tensor) -> Tensor:
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    # every process has the whole tensor: each takes its part, and none is sent
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """torch.compile for each block's training pass, in place; `UserError` where it does not work."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compilers in between have to say
        why = f"compile: torch.compile does not work here ({first_line(error)[:160]})"
        raise UserError(f"{why}; it needs a C++ compiler; leave the option out") from error
    # the tables that it warns about are a function of sizes alone
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    blocks, config = _blocks(model), torch._dynamo.config
    # one version a width, a shift and a rate of drop path: more than the few that torch allows by default
    config.recompile_limit = max(config.recompile_limit, 2 * len(blocks) + 8)
    for block in blocks:  # validation and probes stay as they are

        def forward(*inputs: Tensor, block=block, plain=block.forward) -> Tensor:
            return (block.compiled if block.training else plain)(*inputs)

        block.compiled, block.forward = torch.compile(block.forward, dynamic=False), forward


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in model.encoder.layers for block in stage.blocks]
