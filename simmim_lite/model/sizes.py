"""The Swin V2 sizes: parameters and multiply-accumulates in closed form (docs/facts.md, 1). No torch here."""

import re
from dataclasses import dataclass

from ..errors import UserError, unknown
from ..errors import nearest as alike

HEAD_DIM = 32
MLP_RATIO = 4
CPB_HIDDEN = 512  # width of the MLP that turns log-spaced offsets into a position bias


@dataclass(frozen=True)
class Size:
    """A Swin V2 by name: width of the first stage, blocks a stage, side of a patch in pixels."""

    name: str
    embed_dim: int
    depths: tuple[int, ...] = (2, 2, 18, 2)
    patch_size: int = 4
    channels: int = 3  # of a picture

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage: doubled by every merge."""
        return tuple(self.embed_dim << s for s in range(len(self.depths)))

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage, 32 channels each."""
        return tuple(w // HEAD_DIM for w in self.widths)

    @property
    def final_stride(self) -> int:
        """Pixels a side that one token of the last stage stands for (32 for four stages of patch 4)."""
        return self.patch_size << (len(self.depths) - 1)

    @property
    def parameters(self) -> int:
        """Backbone parameters, mask token and heads not counted; independent of the window (docs/facts.md, 1)."""
        embed = self.channels * self.patch_size**2 * self.embed_dim + 3 * self.embed_dim
        blocks = 0
        for depth, width, heads in zip(self.depths, self.widths, self.heads, strict=True):
            attention = 4 * width * width + 3 * width + heads
            position = 3 * CPB_HIDDEN + CPB_HIDDEN * heads
            mlp = 2 * MLP_RATIO * width * width + (MLP_RATIO + 1) * width
            blocks += depth * (attention + position + mlp + 4 * width)  # and two LayerNorms
        merges = sum(8 * w * w + 4 * w for w in self.widths[:-1])
        return embed + blocks + merges + 2 * self.widths[-1]

    @property
    def simmim_parameters(self) -> int:
        """Parameters in pretraining: backbone, mask token and the linear head (a 1x1 convolution with bias)."""
        pixels = self.channels * self.final_stride**2
        return self.parameters + self.embed_dim + self.widths[-1] * pixels + pixels

    def stage_grids(self, image_size: int) -> list[int]:
        """Tokens a side at each stage of a square image."""
        return [image_size // self.patch_size >> s for s in range(len(self.depths))]

    def gmac(self, image_size: int, window_size: int, *, head: bool = False) -> float:
        """Multiply-accumulates an image in billions: norms counted, softmax and bias MLP not (docs/facts.md, 1).

        `head=True` adds the linear reconstruction head.
        """
        grids = self.stage_grids(image_size)
        total = grids[0] ** 2 * self.embed_dim * (self.channels * self.patch_size**2 + 1)
        for stage, (depth, width, grid) in enumerate(zip(self.depths, self.widths, grids, strict=True)):
            window = min(window_size, grid)
            linear = (4 + 2 * MLP_RATIO) * width * width + 2 * width
            total += depth * grid**2 * (linear + 2 * window**2 * width)
            if stage + 1 < len(grids):
                # a merge maps 4 x width to 2 x width at a quarter of the tokens, then normalises them
                total += (grid // 2) ** 2 * (8 * width * width + 2 * width)
        total += grids[-1] ** 2 * self.widths[-1]
        if head:
            total += grids[-1] ** 2 * self.widths[-1] * self.channels * self.final_stride**2
        return total / 1e9

    def check_input(self, image_size: int, window_size: int, mask_patch: int) -> None:
        """Raise `UserError` when a pretraining input does not divide; each line names the value and what would do."""
        stride = self.final_stride
        if image_size % stride or image_size < stride:
            wrong = f"image_size {image_size} is no multiple of {self.name}'s final stride {stride}"
            raise UserError(f"{wrong}: try {max(stride, round(image_size / stride) * stride)}")
        if image_size % mask_patch or mask_patch % self.patch_size:
            fits = [str(p) for p in range(self.patch_size, image_size + 1, self.patch_size) if image_size % p == 0]
            wanted = f"it must divide image_size {image_size} and be a multiple of the model's patch {self.patch_size}"
            raise UserError(f"mask_patch {mask_patch} does not divide: {wanted}; try one of {', '.join(fits)}")
        grids = self.stage_grids(image_size)
        if window_size > grids[0]:
            wrong = f"window_size {window_size} is larger than the first stage's map, {grids[0]} x {grids[0]} tokens"
            raise UserError(f"{wrong} at {image_size} px: use a window_size of at most {grids[0]}")
        for stage, grid in enumerate(grids, 1):
            if grid % min(window_size, grid):
                fits = ", ".join(str(w) for w in range(2, grids[0] + 1) if all(g % min(w, g) == 0 for g in grids))
                there = f"stage {stage}'s map of {grid} x {grid} tokens at {image_size} px"
                raise UserError(f"window_size {window_size} does not divide {there}: try one of {fits}")


def odd_quarter(side: int) -> int:
    """The odd number nearest to side / 4 (47 at 192 px, the lower of two equally near), at least 3."""
    return min(range(3, max(4, side), 2), key=lambda w: abs(w - side / 4))


#: The laptop ladder doubles the width at a fixed depth, as the paper's ladder does; its final stride is 8 px.
_LAPTOP = {"swinv2_atto": 32, "swinv2_femto": 64, "swinv2_pico": 128, "swinv2_nano": 256}  # widths of first stages
_PAPER = {"swinv2_small": 96, "swinv2_base": 128, "swinv2_large": 192, "swinv2_huge": 352, "swinv2_giant": 448}
LAPTOP = {name: Size(name, width, (2, 2)) for name, width in _LAPTOP.items()}
PAPER = {name: Size(name, width) for name, width in _PAPER.items()}
#: Every size by its name: four for a laptop, five of the paper.
SIZES: dict[str, Size] = LAPTOP | PAPER

#: What else the sizes are called, by the first letter and by the nearest: Swin's tiny is as wide as small.
_ALSO = {"s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant", "t": "small", "tiny": "small"}
_ALSO |= {"xs": "nano", "mini": "nano", "micro": "pico", "m": "base", "medium": "base", "xl": "huge", "xlarge": "huge"}


def nearest_size(name: str) -> str | None:
    """The size that was meant by a name that is none (`swin_tiny`, `SwinV2-B`, `bse`), or None."""
    own = {short(size): size for size in SIZES}
    words = re.findall(r"[a-z]+", re.sub(r"swin(v2)?|transformer", " ", name.lower()))
    for word in words:
        if meant := word if word in own else _ALSO.get(word):
            return own[meant]
    return next((own[near] for word in words if (near := alike(word, own, 0.6))), None)


def full_name(name: str) -> str:
    """The name of a size that may be given without `swinv2_`; `UserError` with the nearest if there is none."""
    full = name if name in SIZES else f"swinv2_{name}"
    if full not in SIZES:
        meant = nearest_size(name)
        raise unknown("size", name, map(short, SIZES), lambda _: meant and short(meant))
    return full


def short(name: str) -> str:
    """A model's name without its family: `atto`."""
    return name.removeprefix("swinv2_")
