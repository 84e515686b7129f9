"""AdamW's parameter groups: weight decay on matrices only, and a learning rate that falls with depth."""

from collections.abc import Iterable

from torch import Tensor, nn


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter.

    Biases, norms, the mask token, logit scales and the position-bias MLP are left alone: what the reference code means
    to do, and misses in pretraining because its keywords are matched against a prefixed name (docs/facts.md, 5).
    """
    return parameter.ndim > 1 and not any(word in name for word in ("mask_token", "logit_scale", "cpb_mlp"))


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups for AdamW, with decay and without, from named parameters."""
    parameters = list(parameters)
    return [
        {"params": [p for n, p in parameters if decays(n, p) == kind], "weight_decay": weight_decay if kind else 0.0}
        for kind in (True, False)
    ]


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


def layer_groups(model: nn.Module, depths: tuple[int, ...], layer_decay: float, weight_decay: float) -> list[dict]:
    """AdamW's groups, one a layer id and kind; `scale` = layer_decay ** (last id - id) is for the caller to apply.

    depths: blocks of the encoder's stages. Frozen parameters are in no group.
    """
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
