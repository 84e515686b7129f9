"""How a run is executed, as data: what may differ between machines without making it another run. No torch here."""

from dataclasses import dataclass
from typing import Annotated

from ..errors import UserError
from .specs import Count, OneOf, Spec

PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True, kw_only=True)
class Runtime(Spec):
    """Options that change speed and memory, and a run's numbers by rounding alone; they are no part of its key."""

    parallel: Annotated[str, OneOf(PARALLEL)] = "ddp"  # ddp, a whole model in each process; fsdp, a part of it
    accumulate: Count = 1  # parts, one after the other, of a process's share of the batch: gradients add up
    checkpointing: bool = False  # recompute blocks in the backward pass: less memory, about a third more time
    compile: bool = False  # torch.compile, block by block

    def check_share(self, images: int) -> None:
        """`UserError` where a process's share of the batch does not divide into `accumulate` parts."""
        if images % self.accumulate:
            near = max(k for k in range(1, min(images, self.accumulate) + 1) if images % k == 0)
            raise UserError(
                f"accumulate {self.accumulate} does not divide the {images} images of a process's share: try {near}"
            )
