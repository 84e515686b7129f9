"""Swin V2's windowed cosine attention (docs/facts.md, 5): one exact function, written for the device it runs on."""

import math
import threading

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def window_attention(qkv: Tensor, heads: int, scale: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(scale * cos(q, k) + bias + mask) v inside every window.

    qkv (B, nW, L, 3C) with q, k, v side by side; scale (heads,); bias (heads, L, L); mask (nW, L, L) or None, added.
    Returns (B, nW, L, C) in qkv's dtype.
    """
    if qkv.device.type == "cpu":
        return _CpuAttention.apply(qkv, heads, scale, bias, mask)
    return sdpa_attention(qkv, heads, scale, bias, mask)


def reference_attention(qkv: Tensor, heads: int, scale: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """The same, as the paper writes it: the definition that the fast paths are tested against."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale[:, None, None] + bias
    if mask is not None:
        logits = logits + mask[:, None]
    return (logits.softmax(-1) @ v).transpose(2, 3).flatten(3)


def sdpa_attention(qkv: Tensor, heads: int, scale: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """On a GPU: the framework's fused kernel. Bias and mask are one additive term, never copied for each image:
    without a mask it is the same for all windows, with one the windows count as heads and only the batch is broadcast.
    """
    batch, windows = qkv.shape[:2]
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(*((1, 2) if mask is None else (2, 3)))
    per_head = scale if mask is None else scale.repeat(windows)
    q = F.normalize(q.float(), dim=-1) * per_head[:, None, None]
    k = F.normalize(k.float(), dim=-1)
    term = bias if mask is None else (bias + mask[:, None]).flatten(0, 1)
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=term[None].to(v.dtype), scale=1.0)
    return out.view(batch, windows, heads, *out.shape[-2:]).transpose(2, 3).flatten(3)


class _CpuAttention(torch.autograd.Function):
    """On a CPU: few passes over the L x L logits, each in place, and a backward that reuses the probabilities.

    The framework's attention needs a slow general path as soon as the bias wants a gradient; plain matrix products with
    a hand-written backward are faster, in bf16 most of all.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, heads: int, scale: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            batch, windows, length, width = qkv.shape
            n, channels = batch * windows, width // (3 * heads)
            # heads outermost: one contiguous copy that every product below reads without another
            parts = qkv.view(n, length, 3, heads, channels).permute(2, 3, 0, 1, 4)
            q, k, v = parts.contiguous().view(3, heads * n, length, channels)
            per_head = scale.to(q.dtype)[:, None, None].expand(heads, n * length, 1).reshape(heads * n, length, 1)
            q_inv, k_inv = _inverse_norm(q).mul_(per_head), _inverse_norm(k)
            qn, kn = q * q_inv, k * k_inv  # the scale goes with q
            p = torch.bmm(qn, kn.transpose(1, 2))
            term = bias[:, None, None] if mask is None else bias[:, None, None] + mask
            p = _softmax(p, term, (heads, batch, windows, length, length))
            out = torch.bmm(p, v).view(heads, n, length, channels)
            ctx.save_for_backward(qn, kn, v, p, q_inv, k_inv, scale, bias)
            ctx.shape = (batch, windows, heads)
            return out.permute(1, 2, 0, 3).reshape(batch, windows, length, heads * channels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        qn, kn, v, p, q_inv, k_inv, scale, bias = ctx.saved_tensors
        batch, windows, heads = ctx.shape
        n, length, channels = batch * windows, p.shape[-1], v.shape[-1]
        with torch.autocast("cpu", enabled=False):
            grad = grad.view(n, length, heads, channels).permute(2, 0, 1, 3).reshape(-1, length, channels)
            d = grad.new_empty(3, heads * n, length, channels)
            torch.bmm(p.transpose(1, 2), grad, out=d[2])
            dp = torch.bmm(grad, v.transpose(1, 2))
            if length < 32 and p.dtype == torch.bfloat16:
                # rows shorter than a vector: the reduced kernel is ten times slower
                ds = torch._softmax_backward_data(dp.float(), p.float(), -1, torch.float32).to(p.dtype)
            else:
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype, grad_input=dp)  # in place
            # a product with ones is the fastest exact sum over windows there is here
            dbias = torch.bmm(ds.new_ones(heads, 1, n), ds.view(heads, n, -1)).view_as(bias).to(bias.dtype)
            dq = torch.bmm(ds, kn)  # with respect to qn = scale * q / |q|
            dk = torch.bmm(ds.transpose(1, 2), qn)
            # only what is across q counts, and <dq, qn> is the scale times its own gradient
            along = (dq * qn).sum(-1, keepdim=True, dtype=scale.dtype)
            dscale = along.view(heads, -1).sum(1) / scale
            along = (along.view(heads, -1) / scale.square()[:, None]).to(qn.dtype).view(-1, length, 1)
            torch.mul(torch.addcmul(dq, qn, along, value=-1), q_inv, out=d[0])
            along = (dk * kn).sum(-1, keepdim=True, dtype=scale.dtype).to(kn.dtype)
            torch.mul(torch.addcmul(dk, kn, along, value=-1), k_inv, out=d[1])
            dqkv = d.view(3, heads, n, length, channels).permute(2, 3, 0, 1, 4).reshape(batch, windows, length, -1)
        return dqkv, None, dscale, dbias, None


def _softmax(logits: Tensor, term: Tensor, shape: tuple[int, ...]) -> Tensor:
    """softmax(logits + term) over the last dimension in full precision; term broadcasts to shape. In logits' dtype."""
    if logits.dtype == term.dtype:
        total = logits.view(shape).add_(term)
        return torch._softmax(total, -1, False, out=total).view_as(logits)
    # in a buffer that is used again: for tensors of this size fresh memory costs more than the arithmetic
    total = _scratch(shape, term.dtype).copy_(logits.view(shape)).add_(term)
    return torch._softmax(total, -1, False, out=total).to(logits.dtype).view_as(logits)


_local = threading.local()


def _scratch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A buffer of this thread, at least as large as any asked for before; contents undefined."""
    size = math.prod(shape)
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
        with torch.inference_mode(False):  # one that training can write to as well
            buffer = _local.buffer = torch.empty(size, dtype=dtype)
    return buffer[:size].view(shape)


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / max(|x|, 1e-12) over the last dimension, kept: the factor of `F.normalize`."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12).reciprocal_()
