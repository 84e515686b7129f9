"""How a run is executed, as data: what may differ between machines without making it another run. No torch here."""

from dataclasses import dataclass

from ..errors import UserError, unknown

PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Options that change speed and memory, and a run's numbers by rounding alone; they are no part of its key."""

    parallel: str = "ddp"  # over several processes: ddp, a whole model in each; fsdp, a part of it (huge and giant)
    accumulate: int = 1  # parts, one after the other, of a process's share of the batch: gradients add up
    checkpointing: bool = False  # recompute blocks in the backward pass: less memory, about a third more time
    compile: bool = False  # torch.compile, block by block

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise unknown("parallel", self.parallel, PARALLEL)
        if not isinstance(self.accumulate, int) or isinstance(self.accumulate, bool) or self.accumulate < 1:
            raise UserError(f"accumulate is {self.accumulate!r}: give a whole number of at least 1")

    def check_share(self, images: int) -> None:
        """`UserError` where a process's share of the batch does not divide into `accumulate` parts."""
        if images % self.accumulate:
            near = max(k for k in range(1, min(images, self.accumulate) + 1) if images % k == 0)
            raise UserError(
                f"accumulate {self.accumulate} does not divide the {images} images of a process's share: try {near}"
            )
