"""Models whose every parameter is random and non-zero: at the default initialisation every block is the identity."""

from collections.abc import Callable, Collection

import torch
from torch import nn

from simmim_lite.model.simmim import SimMIM, create_model
from simmim_lite.model.swin import Block, SwinV2


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, so that activations stay near 1 and attention is not too sharp: rounding would grow in
    it, and it would show that transformers adds its -100 mask twice."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        if name.endswith("logit_scale"):
            p.copy_(1.5 + 0.5 * noise.clamp(-2, 2))
        elif "norm" in name and name.endswith("weight"):
            p.copy_(noise.sign() * (0.5 + torch.rand(p.shape, generator=g)))
        elif p.ndim > 1 and "mask_token" not in name:
            p.copy_(noise / p[0].numel() ** 0.5)
        else:
            p.copy_(0.3 * noise)
        assert (p != 0).all() or p.numel() > 10_000  # a large tensor may draw one 0
    return model


def random_model(name: str = "swinv2_atto", seed: int = 0, **options: object) -> SimMIM:
    """`create_model` with random weights, in evaluation mode."""
    return randomise(create_model(name, **options), seed).eval()


def small_model(
    depths: tuple[int, ...] = (1, 2, 2, 1), width: int = 32, window: int = 12, seed: int = 0, **options: object
) -> SimMIM:
    """Four stages of the paper's form, narrow and shallow, with random weights, in evaluation mode."""
    encoder = SwinV2(embed_dim=width, depths=depths, window_size=window, **options)
    return randomise(SimMIM(encoder, target="raw"), seed).eval()


def blocks_seen(encoder: SwinV2, look: Callable, *inputs: torch.Tensor) -> list:
    """What look(inputs, output) makes of every block in a pass of the encoder."""
    seen = []
    blocks = [module for module in encoder.modules() if isinstance(module, Block)]
    handles = [b.register_forward_hook(lambda _, given, output: seen.append(look(given, output))) for b in blocks]
    encoder(*inputs)
    for handle in handles:
        handle.remove()
    return seen


def block_outputs(encoder: SwinV2, images: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """What every block returns: [(B, tokens, C)], in reading order."""
    return blocks_seen(encoder, lambda given, output: output[:, given[2].place], images, mask)


@torch.no_grad()
def assert_blocks_act(model: SimMIM, images: torch.Tensor) -> None:
    """Every block changes its input by a good part of it."""
    seen = blocks_seen(model.encoder, lambda given, out: ((out - given[0]).norm() / given[0].norm()).item(), images)
    assert len(seen) == sum(model.encoder.depths) and min(seen) > 0.1, seen


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers of a shape, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """max |a - b| is small against the largest |b|, or 1."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1))


def same_weights(a: nn.Module, b: nn.Module, but: Collection[str] = ()) -> bool:
    """Whether two networks have equal tensors, but for some."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if k not in but)
