"""UPerNet (arXiv 1807.10221) on a Swin V2, as the Swin papers use it: pyramid pooling, a feature pyramid, fusion."""

import torch.nn.functional as F
from torch import Tensor, cat, nn

from ..model.swin import SwinV2

BINS = (1, 2, 3, 6)  # cells a side of the pooled maps
DROPOUT = 0.1  # of whole channels, before each classifier


class UPerNet(nn.Module):
    """Images (B, 3, H, W) -> logits (B, classes, h, w) at the encoder's first stride.

    Maps of each stage but the last (which the encoder normalises) pass a LayerNorm of their own. Works for any number
    of stages from two. auxiliary: whether there is a second, plain head on the last stage but one, which serves
    training alone. channels: of the pyramid; the auxiliary head has half of them, as at 512 and 256.
    """

    def __init__(self, encoder: SwinV2, classes: int, channels: int, *, auxiliary: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        *lower, last = widths = [encoder.embed_dim << s for s in range(len(encoder.depths))]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in lower)
        self.pools = nn.ModuleList(_conv(last, channels, 1) for _ in BINS)
        self.pooled = _conv(last + len(BINS) * channels, channels, 3)
        self.laterals = nn.ModuleList(_conv(width, channels, 1) for width in lower)
        self.smooths = nn.ModuleList(_conv(channels, channels, 3) for _ in lower)
        self.fuse = _conv(len(widths) * channels, channels, 3)
        self.classifier = _classifier(channels, classes)
        half = max(1, channels // 2)
        self.auxiliary = nn.Sequential(_conv(widths[-2], half, 3), _classifier(half, classes)) if auxiliary else None

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a side that a token of each stage stands for."""
        return tuple(self.encoder.patch_embed.patch_size << s for s in range(len(self.encoder.depths)))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits at the first stage's stride, and in training those of the auxiliary head at the last but one's.

        noise (B, blocks, 2) in (0, 1): see `SwinV2`.
        """
        maps = self.encoder.feature_maps(images, None, noise)
        maps = [
            *(norm(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, m in zip(self.norms, maps, strict=False)),
            maps[-1],
        ]
        logits = self.classifier(self.pyramid(maps))
        return logits, self.auxiliary(maps[-2]) if self.training and self.auxiliary is not None else None

    def pyramid(self, maps: list[Tensor]) -> Tensor:
        """Maps [(B, C_s, H_s, W_s)] of the stages -> (B, channels, H_1, W_1)."""
        last = maps[-1]
        pooled = [
            F.interpolate(pool(F.adaptive_avg_pool2d(last, bins)), last.shape[-2:], mode="bilinear")
            for bins, pool in zip(BINS, self.pools, strict=True)
        ]
        top = self.pooled(cat([last, *pooled], 1))
        levels = [top]
        for lateral, m in zip(reversed(self.laterals), reversed(maps[:-1]), strict=True):
            top = lateral(m) + enlarge(top, 2, m.shape[-2:])
            levels.insert(0, top)
        smooth = [conv(level) for conv, level in zip(self.smooths, levels, strict=False)]
        full = levels[0].shape[-2:]
        return self.fuse(cat([enlarge(x, 1 << s, full) for s, x in enumerate([*smooth, levels[-1]])], 1))

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the heads' convolutions on one image in training; the encoder's are not in it."""
        sides = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        areas = [h * w for h, w in sides]
        total = sum(bins**2 * _weights(pool) for bins, pool in zip(BINS, self.pools, strict=True))
        total += areas[-1] * _weights(self.pooled) + areas[0] * (_weights(self.fuse) + _weights(self.classifier))
        for area, lateral, smooth in zip(areas, self.laterals, self.smooths, strict=False):
            total += area * (_weights(lateral) + _weights(smooth))
        return total + (areas[-2] * _weights(self.auxiliary) if self.auxiliary is not None else 0)


def enlarge(maps: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) bilinearly `factor` times as large, cut to `size` (H, W).

    A map of an odd side was padded by one below and to the right before it was halved: what is cut off is that pad.
    """
    if factor > 1:
        maps = F.interpolate(maps, scale_factor=factor, mode="bilinear")
    return maps[..., : size[0], : size[1]]


def _conv(inputs: int, outputs: int, side: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _classifier(inputs: int, classes: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(nn.Dropout2d(DROPOUT), conv)


def _weights(module: nn.Module) -> int:
    """Weights of the convolutions in a module: its multiply-accumulates a pixel."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))
