"""One network trained by a team: gradients averaged over processes and over parts of a batch, whole or sharded."""

import contextlib
import copy
import shutil
import warnings

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.simmim import SimMIM
from ..model.swin import Block
from .distributed import Team
from .optim import decays
from .runtime import Runtime


class Parallel:
    """A SimMIM and how its gradients come about; alone, whole and in one part, nothing is added to the plain steps.

    The batch is always the global one: each process takes its share (`Team.share`), in `runtime.accumulate` parts. All
    images hide equally many pixels, so the mean over parts and processes is the loss of FACTS 5 over the whole batch.

    fsdp: matrices are sharded over the processes, block by block (FSDP2's `fully_shard`), and in bf16 they travel in
    bf16, which is what autocast makes of them anyway. All that autocast keeps in full precision (norms, logit scales,
    the position-bias MLP, the mask token), and the biases, lie whole in each process: well under 1 % of the weights.
    """

    def __init__(
        self, model: SimMIM, team: Team | None = None, runtime: Runtime | None = None, precision: str = "fp32"
    ) -> None:
        runtime = runtime or Runtime()
        self.model, self.precision = model, precision
        self.team = team or Team(next(model.parameters()).device)
        self.parts = runtime.accumulate
        self.sharded = runtime.parallel == "fsdp" and self.team.size > 1
        self._blank = copy.deepcopy(model).to("meta") if self.sharded else None
        if runtime.checkpointing:
            model.encoder.checkpointing = True
        if runtime.compile:
            compile_blocks(model, self.team.device)
        self._everywhere = shard(model, self.team.device, precision) if self.sharded else []
        self.net = model if self.sharded else self.team.wrap(model)
        # DDP puts its buckets in another order after the first backward pass. The order of a sum of three or more
        # terms must not depend on where this process began, so on a CPU, where bits are promised, one pass is for that.
        self._unsettled = self.net is not model and self.team.device.type == "cpu" and self.team.size > 2

    def backward(self, images: Tensor, mask: Tensor, noise: Tensor | None) -> Tensor:
        """From this process's share of a batch to the global gradient, in `.grad`; the global loss, on the device."""
        if self._unsettled:
            self._unsettled = False
            self.backward(images, mask, noise)
            self.model.zero_grad()
        parts = [images.chunk(self.parts), mask.chunk(self.parts)]
        parts.append([None] * self.parts if noise is None else noise.chunk(self.parts))
        losses = []
        for i, part in enumerate(zip(*parts, strict=True)):
            with self._local() if i + 1 < self.parts else contextlib.nullcontext():
                with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self.net(*part) / self.parts
                loss.backward()
                losses.append(loss.detach())
        self._average_small()
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return self.team.mean(loss)

    def clip(self, norm: float) -> None:
        """Scale the gradient so that its global norm, over all processes' shards, is at most `norm`."""
        if not self.sharded:
            nn.utils.clip_grad_norm_(self.model.parameters(), norm)
            return
        small = set(self._everywhere)
        kinds = [p for p in self.model.parameters() if p not in small], self._everywhere
        norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds]
        total = torch.stack([norms[0].full_tensor(), norms[1]]).norm()
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, norm, total)

    def whole(self) -> SimMIM:
        """The model with all its weights, to validate and probe with: a copy when sharded. Every process calls it."""
        if not self.sharded:
            return self.model
        model = copy.deepcopy(self._blank).to_empty(device=self.team.device)
        model.load_state_dict({name: _whole(value) for name, value in self.model.state_dict().items()})
        return model

    def _local(self) -> contextlib.AbstractContextManager:
        """Gradients that only add up here. Shards are reduced part by part: a whole gradient is what fsdp avoids."""
        ddp = isinstance(self.net, nn.parallel.DistributedDataParallel)
        return self.net.no_sync() if ddp else contextlib.nullcontext()

    def _average_small(self) -> None:
        """Average what fsdp leaves alone, in one message."""
        if self._everywhere:
            grads = [p.grad for p in self._everywhere if p.grad is not None]
            flat = self.team.mean(torch.cat([g.flatten() for g in grads]))
            for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(mean.view_as(grad))


def shard(model: SimMIM, device: torch.device, precision: str) -> list[nn.Parameter]:
    """Shard the matrices of each block, then what is left of the model, in place; the parameters that stay whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    everywhere = [p for name, p in model.named_parameters() if not decays(name, p)]
    low = torch.bfloat16 if precision == "bf16" else None  # the shards themselves, and the sums, stay in fp32
    options = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False),
        "ignored_params": set(everywhere),
    }
    for block in _blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)
    return everywhere


def compile_blocks(model: SimMIM, device: torch.device) -> None:
    """torch.compile for each block's training pass, in place; validation and probes stay as they are.

    `UserError` where it does not work: it needs a C++ compiler (and on a GPU, Triton).
    """
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        raise UserError("compile: there is no C++ compiler here; install one (g++, clang++), or leave the option out")
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compilers in between have to say
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"compile: torch.compile does not work here ({reason[:160]}); leave the option out") from error
    # the tables that it warns about are a function of sizes alone
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    blocks = _blocks(model)
    config = torch._dynamo.config
    # one version a width, a shift and a rate of drop path: more than the few that torch allows by default
    config.recompile_limit = max(config.recompile_limit, 2 * len(blocks) + 8)
    for block in blocks:
        block.forward = _compiled(block)


def _compiled(block: Block):
    plain, fast = block.forward, torch.compile(block.forward, dynamic=False)
    return lambda *inputs: (fast if block.training else plain)(*inputs)


def _blocks(model: SimMIM) -> list[Block]:
    return [block for stage in model.encoder.layers for block in stage.blocks]


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value
