"""Swin Transformer V2 (arXiv 2111.09883), as in docs/facts.md, 5, for 2 to 4 stages and any input that a task brings.

Inside a stage tokens lie in *window order*: each window's tokens side by side. An unshifted block then needs no
partition at all, a shifted one a single reordering, which is what makes this file faster than a literal reading.
"""

import math
from collections import OrderedDict
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .attention import window_attention
from .sizes import CPB_HIDDEN, HEAD_DIM, MLP_RATIO

MIXED = -100.0  # added where a shifted window mixes regions that are not neighbours (docs/facts.md, 5)
PADDED = -1e4  # added where a key is padding: its probability is exactly 0


class Layout:
    """Where each token of an (H, W) map lies when windows of `window` tokens, shifted by `shift`, are side by side.

    `order` (T,): raster number, in the padded map, of the token at each place; `place` its inverse; `mask` (nW, L, L)
    additive or None, kept as its few different windows; `size` the padded (Hp, Wp).
    """

    def __init__(self, height: int, width: int, window: tuple[int, int], shift: tuple[int, int]) -> None:
        (wh, ww), (sh, sw) = window, shift
        self.size = hp, wp = -(-height // wh) * wh, -(-width // ww) * ww
        self.windows = (hp // wh) * (wp // ww)

        def split(grid: Tensor) -> Tensor:  # roll, then (nW, L)
            rolled = grid.roll((-sh, -sw), (0, 1))
            return rolled.view(hp // wh, wh, wp // ww, ww).transpose(1, 2).reshape(-1, wh * ww)

        self.order = split(torch.arange(hp * wp).view(hp, wp)).flatten()
        self.place = self.order.argsort()
        rows, columns = torch.arange(hp), torch.arange(wp)
        # after the roll the last window along a shifted side holds two regions: before and after the seam
        region = 2 * ((rows >= sh) | (sh == 0)).long()[:, None] + ((columns >= sw) | (sw == 0)).long()[None]
        pad = (rows >= height)[:, None] | (columns >= width)[None]
        # all windows but those along two sides are alike: a whole map of 200 x 334 tokens has five kinds, not 476
        kinds, self.which = split(2 * region + pad).unique(dim=0, return_inverse=True)
        regions = kinds // 2
        masks = torch.where(regions[:, :, None] == regions[:, None], 0.0, MIXED)
        masks = masks.masked_fill(kinds[:, None, :] % 2 == 1, PADDED)
        self.masks = masks if bool((masks != 0).any()) else None

    @property
    def mask(self) -> Tensor | None:
        return None if self.masks is None else self.masks.index_select(0, self.which)


class _Reorder(torch.autograd.Function):
    """x[:, index] for a permutation: the gradient is a gather by the inverse, not a scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.index_select(1, ctx.inverse), None, None


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # what is kept must serve training too
def stage_layouts(
    height: int, width: int, window: int, device: torch.device
) -> tuple[tuple[int, int], list[Layout], tuple]:
    """Window (clamped to the map), the unshifted and the shifted Layout, and the orders from one to the other.

    The shift is half the window, and 0 along a side that is not larger than the window.
    """
    clamped = (min(window, height), min(window, width))
    shift = tuple(0 if side <= window else w // 2 for side, w in zip((height, width), clamped, strict=True))
    plain, shifted = layouts = [Layout(height, width, clamped, by) for by in ((0, 0), shift)]
    for layout in layouts:
        vars(layout).update({name: x.to(device) for name, x in vars(layout).items() if isinstance(x, Tensor)})
    orders = plain.place[shifted.order], shifted.place[plain.order]
    return clamped, layouts, orders if any(shift) else ()


def log_coordinates(window: tuple[int, int], pretrained: int | None = None) -> Tensor:
    """Log-spaced relative coordinates (2h - 1, 2w - 1, 2): sign(x) log2(|x| + 1) / 3, x = offset / (W_pre - 1) * 8.

    W_pre is the window of pretraining if given, else the own one along each side (docs/facts.md, 5).
    """
    sides = [torch.arange(1 - w, w, dtype=torch.float32) * 8 / max(1, (pretrained or w) - 1) for w in window]
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)
    return grid.sign() * (grid.abs() + 1).log2() / 3


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # what is kept must serve training too
def _bias_tables(
    window: tuple[int, int], pretrained: int | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates along the sides (2h - 1,), (2w - 1,), and the number of each pair's offset (L * L,)."""
    height, width = window
    grid = log_coordinates(window, pretrained)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    index = (y[:, None] - y + height - 1) * (2 * width - 1) + x[:, None] - x + width - 1
    return grid[:, 0, 0].to(device), grid[0, :, 1].to(device), index.flatten().to(device)


class WindowAttention(nn.Module):
    """Cosine attention with a continuous position bias, inside each window."""

    def __init__(self, width: int, pretrained_window: int | None = None) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.pretrained_window = pretrained_window
        self.logit_scale = nn.Parameter(torch.full((self.heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, CPB_HIDDEN), nn.ReLU(), nn.Linear(CPB_HIDDEN, self.heads, bias=False))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def position_bias(self, window: tuple[int, int]) -> Tensor:
        """(heads, L, L): 16 sigmoid(MLP(log-spaced offset)), in full precision."""
        y, x, index = _bias_tables(window, self.pretrained_window, self.qkv.weight.device)
        first, _, last = self.cpb_mlp
        with torch.autocast(y.device.type, enabled=False):
            # the grid of offsets is a product of its sides, so the first layer is a sum of two short ones
            rows, columns = first.weight[:, :1] * y + first.bias[:, None], first.weight[:, 1:] * x
            hidden = (rows[:, :, None] + columns[:, None, :]).relu_().flatten(1)
            table = 16 * torch.sigmoid(last.weight.to(hidden.dtype) @ hidden)
            length = window[0] * window[1]
            return table.index_select(1, index).view(self.heads, length, length)

    def forward(self, x: Tensor, window: tuple[int, int], layout: Layout) -> Tensor:
        """x (B, T, C) in the layout's order -> (B, T, C)."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(1, (layout.windows, -1))
        scale = self.logit_scale.clamp(max=math.log(100)).exp().flatten()
        x = window_attention(qkv, self.heads, scale, self.position_bias(window), layout.mask)
        return self.proj(x.flatten(1, 2))


class Block(nn.Module):
    """x + LN(attention(x)), then x + LN(MLP(x)): residual post-norm, whose norms start at zero."""

    def __init__(self, width: int, drop_path: float, pretrained_window: int | None) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.attn = WindowAttention(width, pretrained_window)
        self.norm1 = nn.LayerNorm(width)
        wide = MLP_RATIO * width
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(width, wide), act=nn.GELU(), fc2=nn.Linear(wide, width)))
        self.norm2 = nn.LayerNorm(width)

    def drop(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Drop path: a sample's branch is left out where its noise (B,) in (0, 1) is below the rate, else scaled up."""
        if not self.training or self.drop_path == 0:
            return x
        noise = torch.rand(len(x), device=x.device) if noise is None else noise
        return x * ((noise >= self.drop_path).to(x.dtype) / (1 - self.drop_path))[:, None, None]

    def forward(self, x: Tensor, window: tuple[int, int], layout: Layout, noise: Tensor | None = None) -> Tensor:
        """x (B, T, C) in the layout's order; noise (B, 2) or None."""
        first, second = (None, None) if noise is None else noise.unbind(1)
        x = x + self.drop(self.norm1(self.attn(x, window, layout)), first)
        return x + self.drop(self.norm2(self.mlp(x)), second)


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width; an odd side is padded with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H/2, W/2, 2C), in the order (row, column) even-even, odd-even, even-odd, odd-odd."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.norm(self.reduction(x))


class Stage(nn.Module):
    """Blocks of one resolution, every second one shifted."""

    def __init__(
        self, width: int, window: int, drop_path: list[float], pretrained_window: int | None, merge: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(Block(width, rate, pretrained_window) for rate in drop_path)
        self.downsample = PatchMerging(width) if merge else nn.Identity()

    def forward(self, x: Tensor, noise: Tensor | None, recompute: bool) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); noise (B, blocks, 2) or None."""
        height, width = x.shape[1:3]
        window, layouts, orders = stage_layouts(height, width, self.window, x.device)
        hp, wp = layouts[0].size
        if (hp, wp) != (height, width):
            x = F.pad(x, (0, 0, 0, wp - width, 0, hp - height))
        x = _Reorder.apply(x.flatten(1, 2), layouts[0].order, layouts[0].place)
        for i, block in enumerate(self.blocks):
            layout = layouts[i % 2 if orders else 0]
            if orders and i:
                x = _Reorder.apply(x, orders[1 - i % 2], orders[i % 2])
            inputs = (x, window, layout, None if noise is None else noise[:, i])
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute and self.training else block(*inputs)
        x = _Reorder.apply(x, layout.place, layout.order).unflatten(1, (hp, wp))
        return x[:, :height, :width]


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm: (B, 3, H, W) -> (B, H/p, W/p, C); sides that do not divide are padded."""

    def __init__(self, patch_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch_size
        if any(pad := (0, -x.shape[3] % p, 0, -x.shape[2] % p)):
            x = F.pad(x, pad)
        # a convolution whose stride is its side is a linear layer over patches, and faster as one
        x = x.unflatten(2, (-1, p)).unflatten(4, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.norm(F.linear(x, self.proj.weight.flatten(1), self.proj.bias))


class SwinV2(nn.Module):
    """The backbone. Images of any size go in; pretraining itself demands sides that divide (`SimMIM` checks).

    window_size: tokens a side, clamped to each stage's map. pretrained_window_sizes: one a stage, for a model that
    moves to another window (12, 12, 12, 6 at 224 px, window 14). drop_path: rate of the last block, linear
    from 0. checkpointing: recompute blocks in the backward pass to save memory. channels: of a picture.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 18, 2),
        window_size: int = 12,
        patch_size: int = 4,
        drop_path: float = 0.0,
        pretrained_window_sizes: tuple[int, ...] | None = None,
        checkpointing: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.embed_dim, self.depths, self.checkpointing = embed_dim, tuple(depths), checkpointing
        self.patch_embed = PatchEmbed(patch_size, embed_dim, channels)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        rates = [drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for s, depth in enumerate(depths):
            pretrained = (pretrained_window_sizes[s] or None) if pretrained_window_sizes else None
            own, rates = rates[:depth], rates[depth:]
            self.layers.append(Stage(embed_dim << s, window_size, own, pretrained, merge=s + 1 < len(depths)))
        self.num_features = embed_dim << (len(depths) - 1)
        self.norm = nn.LayerNorm(self.num_features)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal of 0.02 for linear layers and the mask token; block norms zero (docs/facts.md, 5)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Conv2d):
                reset_convolution(module, generator)
            elif isinstance(module, Block):
                for parameter in (*module.norm1.parameters(), *module.norm2.parameters()):
                    parameter.zero_()
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)

    def feature_maps(self, x: Tensor, mask: Tensor | None = None, noise: Tensor | None = None) -> list[Tensor]:
        """Each stage's output before its merge, the last one normalised: [(B, C_s, H_s, W_s)]."""
        x, maps = self.hide(self.patch_embed(x), mask), []
        parts = [None] * len(self.layers) if noise is None else noise.split(self.depths, 1)
        for stage, part in zip(self.layers, parts, strict=True):
            maps.append(stage(x, part, self.checkpointing))
            x = stage.downsample(maps[-1])
        return [m.permute(0, 3, 1, 2) for m in (*maps[:-1], self.norm(x))]

    def hide(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Replace the hidden ones of (B, h, w, C) tokens by the mask token; mask (B, h, w), True or 1 = hidden."""
        if mask is None:
            return tokens
        if mask.shape != (wanted := tokens.shape[:3]):
            raise UserError(f"mask of shape {tuple(mask.shape)}: these images need {tuple(wanted)}, one value a token")
        return torch.where(mask.bool()[..., None], self.mask_token.to(tokens.dtype), tokens)

    def forward(self, x: Tensor, mask: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W), mask (B, H/4, W/4) or None -> (B, 8C, H/32, W/32) for four stages.

        noise (B, blocks, 2) in (0, 1): the numbers drop path compares with its rates; drawn from torch when None.
        """
        return self.feature_maps(x, mask, noise)[-1]


def reset_convolution(module: nn.Conv2d, generator: torch.Generator | None = None) -> None:
    """The framework's default for a convolution, from a generator of one's own."""
    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(module.weight[0].numel())
    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
