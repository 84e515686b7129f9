"""Window attention: the definition, its hand-written backward, and the gradient of the bias on every path."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from random_weights import close, rand
from torch.nn.attention import SDPBackend, sdpa_kernel

from simmim_lite.model.attention import reference_attention, sdpa_attention, window_attention


def attention_inputs(batch=3, windows=4, length=16, heads=3, channels=32, masked=True, dtype=torch.float64):
    qkv = rand(batch, windows, length, 3 * heads * channels, dtype=dtype)
    scale = rand(heads, seed=1, dtype=dtype).exp() + 1
    bias = rand(heads, length, length, seed=2, dtype=dtype)
    mask = torch.where(rand(windows, length, length, seed=3) > 0.5, -100.0, 0.0).to(dtype)
    mask.diagonal(dim1=1, dim2=2).zero_()
    return [t.requires_grad_() for t in (qkv, scale, bias)], mask if masked else None, heads


@pytest.mark.parametrize("masked", [False, True])
def test_the_hand_written_backward_is_the_gradient(masked):
    inputs, mask, heads = attention_inputs(2, 3, 4, 2, 5, masked)
    assert torch.autograd.gradcheck(lambda qkv, scale, bias: window_attention(qkv, heads, scale, bias, mask), inputs)


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, True), (torch.bfloat16, False)])
def test_the_bias_has_the_dtype_of_the_queries(monkeypatch, dtype, autocast):
    """cuDNN reads a float32 mask as if it were bfloat16, without an error."""
    met, kernel = [], F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask, **options):
        met.append((q.dtype, k.dtype, v.dtype, attn_mask.dtype))
        return kernel(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    inputs, mask, heads = attention_inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        out = sdpa_attention(inputs[0].to(dtype), heads, *inputs[1:], mask)
    assert met == [(dtype,) * 4] and out.isfinite().all()


def on(backend, *inputs):
    with sdpa_kernel(backend):
        return sdpa_attention(*inputs)


def eager(qkv, heads, *terms):
    return reference_attention(qkv, heads, *(None if t is None else t.to(qkv.dtype) for t in terms))


PATHS = {"eager": eager, "the CPU's own": window_attention, "sdpa": sdpa_attention}
PATHS |= {f"sdpa {n}": functools.partial(on, getattr(SDPBackend, n)) for n in
          ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")}  # fmt: skip
ALWAYS = ("eager", "the CPU's own", "sdpa", "sdpa MATH")


@pytest.mark.filterwarnings("ignore:.*kernel not used because")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_right_on_every_path(path, dtype, masked):
    """Against the definition in float64. A kernel that cannot do it here says so; none may give another gradient."""
    device = "cuda" if torch.cuda.is_available() and path != "the CPU's own" else "cpu"
    inputs, mask, heads = attention_inputs(masked=masked)
    weights = rand(3, 4, 16, 96, seed=9)
    values = reference_attention(inputs[0], heads, *inputs[1:], mask)
    expected = [values, *torch.autograd.grad((values * weights).sum(), inputs)]
    ours = [t.detach().to(device, dtype if i == 0 else torch.float32).requires_grad_() for i, t in enumerate(inputs)]
    try:
        out = PATHS[path](ours[0], heads, *ours[1:], None if mask is None else mask.to(device, torch.float32))
        found = [out, *torch.autograd.grad((out.float() * weights.to(device)).sum(), ours)]
    except (RuntimeError, NotImplementedError) as error:
        assert path not in ALWAYS and any(w in str(error) for w in ("kernel", "backend", "support")), error
        return
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    for a, b in zip(found, expected, strict=True):
        off = (a.detach().cpu().double() - b).norm() / b.norm()
        assert off < (1e-5 if dtype == torch.float32 else 0.03)
    assert dtype != torch.float32 or close(out.detach().cpu().double(), values)
