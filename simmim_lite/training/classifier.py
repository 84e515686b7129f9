"""The network of fine-tuning: an encoder, a linear head, and a learning rate that falls with depth (FACTS 4)."""

import torch
from torch import Tensor, nn

from ..model.swin import SwinV2
from .optim import decays


class Classifier(nn.Module):
    """An encoder, the mean over its final map, and a linear head: images (B, 3, H, W) -> logits (B, classes)."""

    def __init__(self, encoder: SwinV2, classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise (B, blocks, 2) in (0, 1): see `SwinV2`."""
        return self.head(self.encode(images, noise).mean((2, 3)))

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The final map (B, C, h, w)."""
        return self.encoder(images, None, noise)


def layer_id(name: str, depths: tuple[int, ...]) -> int:
    """Depth of a parameter: 0 for the patch embedding to sum(depths) + 1 for final norm and heads.

    The encoder's own are those below a module called `encoder`; everything else is a head's.
    """
    first, *rest = name.rpartition("encoder.")[2].split(".")
    if first in ("patch_embed", "mask_token"):
        return 0
    if first != "layers":
        return sum(depths) + 1
    stage, part = int(rest[0]), rest[1]
    before = sum(depths[:stage])
    # a merge shares the id of its stage's last block
    return before + (int(rest[2]) + 1 if part == "blocks" else depths[stage])


def parameter_groups(
    model: nn.Module, layer_decay: float, weight_decay: float, depths: tuple[int, ...] | None = None
) -> list[dict]:
    """AdamW's groups, one a layer id and kind; `scale` = layer_decay ** (last id - id) is for the caller to apply.

    depths: of the encoder, by default those of `model.encoder`. Frozen parameters are in no group.
    """
    depths = depths or model.encoder.depths
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        i, decay = layer_id(name, depths), decays(name, parameter)
        fresh = {"params": [], "names": [], "weight_decay": weight_decay if decay else 0.0}
        group = groups.setdefault((i, decay), fresh | {"scale": layer_decay ** (sum(depths) + 1 - i)})
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
