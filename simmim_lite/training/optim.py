"""AdamW's parameter groups: weight decay on matrices only, and not on what sets attention's shape."""

from collections.abc import Iterable

from torch import Tensor, nn


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter.

    Biases, norms, the mask token, logit scales and the position-bias MLP are left alone: what the reference code means
    to do, and misses in pretraining because its keywords are matched against a prefixed name (FACTS 5).
    """
    return parameter.ndim > 1 and not any(word in name for word in ("mask_token", "logit_scale", "cpb_mlp"))


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups for AdamW, with decay and without, from named parameters."""
    parameters = list(parameters)
    return [
        {"params": [p for n, p in parameters if decays(n, p) == kind], "weight_decay": weight_decay if kind else 0.0}
        for kind in (True, False)
    ]
