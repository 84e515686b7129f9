"""Window attention: the definition, its hand-written backward, and the gradient of the bias on every path."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from random_weights import close, rand
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from simmim_lite.model.attention import reference_attention, sdpa_attention, window_attention


def attention_inputs(batch=2, windows=3, length=4, heads=2, channels=5, masked=True, dtype=torch.float64):
    qkv = rand(batch, windows, length, 3 * heads * channels, dtype=dtype)
    scale = rand(heads, seed=1, dtype=dtype).exp() + 1
    bias = rand(heads, length, length, seed=2, dtype=dtype)
    mask = torch.where(rand(windows, length, length, seed=3) > 0.5, -100.0, 0.0).to(dtype)
    mask.diagonal(dim1=1, dim2=2).zero_()
    return [t.requires_grad_() for t in (qkv, scale, bias)], mask if masked else None, heads


@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_equal_the_definition(masked):
    inputs, mask, heads = attention_inputs(3, 4, 16, 3, 32, masked)
    weights = rand(3, 4, 16, 96, seed=9, dtype=torch.float64)
    expected = reference_attention(inputs[0], heads, *inputs[1:], mask)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    assert close(window_attention(inputs[0], heads, *inputs[1:], mask), expected, 1e-12)
    floats = [t.detach().float().requires_grad_() for t in inputs]
    for function in (window_attention, sdpa_attention):
        out = function(floats[0], heads, *floats[1:], None if mask is None else mask.float())
        assert close(out, expected.float())
        for ours, theirs in zip(torch.autograd.grad((out * weights.float()).sum(), floats), gradients, strict=True):
            assert close(ours, theirs.float())


@pytest.mark.parametrize("masked", [False, True])
def test_the_hand_written_backward_is_the_gradient(masked):
    inputs, mask, heads = attention_inputs(masked=masked)
    assert torch.autograd.gradcheck(lambda qkv, scale, bias: window_attention(qkv, heads, scale, bias, mask), inputs)


def test_attention_in_bfloat16_stays_near_full_precision():
    inputs, mask, heads = attention_inputs(3, 4, 16, 3, 32, True, torch.float32)
    weights = rand(3, 4, 16, 96, seed=9)
    half = inputs[0].detach().bfloat16().requires_grad_()
    out = window_attention(half, heads, *inputs[1:], mask)
    expected = window_attention(inputs[0], heads, *inputs[1:], mask)
    assert out.dtype == torch.bfloat16 and close(out.float(), expected, 0.03)
    ours = torch.autograd.grad((out.float() * weights).sum(), [half, *inputs[1:]])
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == (torch.bfloat16 if a.shape == half.shape else torch.float32)
        assert ((a.float() - b).norm() / b.norm()) < 0.02


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_the_bias_has_the_dtype_of_the_queries(monkeypatch, masked, dtype, autocast):
    """cuDNN reads a float32 mask as if it were bfloat16, without an error."""
    met, kernel = [], F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask, **options):
        met.append((q.dtype, k.dtype, v.dtype, attn_mask.dtype))
        return kernel(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    inputs, mask, heads = attention_inputs(masked=masked, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        out = sdpa_attention(inputs[0].to(dtype), heads, *inputs[1:], mask)
    assert met == [(dtype,) * 4] and out.isfinite().all()


def flex(qkv, heads, scale, bias, mask):
    """The same through flex_attention, the bias as a score_mod."""
    batch, windows = qkv.shape[:2]
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
    q, k = F.normalize(q, dim=-1) * scale[:, None, None], F.normalize(k, dim=-1)

    def score(logit, b, h, i, j):
        return logit + bias[h, i, j] + (0 if mask is None else mask[b % windows, i, j])

    out = flex_attention(q.to(v.dtype), k.to(v.dtype), v, score_mod=score, scale=1.0)
    return out.unflatten(0, (batch, windows)).transpose(2, 3).flatten(3)


def on(backend, *inputs):
    with sdpa_kernel(backend):
        return sdpa_attention(*inputs)


def eager(qkv, heads, *terms):
    return reference_attention(qkv, heads, *(None if t is None else t.to(qkv.dtype) for t in terms))


PATHS = {"eager": eager, "the CPU's own": window_attention, "sdpa": sdpa_attention, "flex": flex}
PATHS |= {f"sdpa {n}": functools.partial(on, getattr(SDPBackend, n)) for n in
          ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")}  # fmt: skip
ALWAYS = ("eager", "the CPU's own", "sdpa", "sdpa MATH")


@pytest.mark.filterwarnings("ignore:.*kernel not used because")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_bias_is_right_on_every_path(path, dtype, masked):
    """Against eager attention in float64. A kernel that cannot do it here says so; none may give another gradient."""
    device = "cuda" if torch.cuda.is_available() and path != "the CPU's own" else "cpu"
    inputs, mask, heads = attention_inputs(3, 4, 16, 3, 32, masked)
    weights = rand(3, 4, 16, 96, seed=9)
    expected = torch.autograd.grad(
        (reference_attention(inputs[0], heads, *inputs[1:], mask) * weights).sum(), inputs[2]
    )
    ours = [t.detach().to(device, dtype if i == 0 else torch.float32).requires_grad_() for i, t in enumerate(inputs)]
    try:
        out = PATHS[path](ours[0], heads, *ours[1:], None if mask is None else mask.to(device, torch.float32))
        found = torch.autograd.grad((out.float() * weights.to(device)).sum(), ours[2])
    except (RuntimeError, NotImplementedError) as error:
        assert path not in ALWAYS and any(w in str(error) for w in ("kernel", "backend", "support")), error
        return
    off = (found[0].cpu().double() - expected[0]).norm() / expected[0].norm()
    assert found[0].dtype == torch.float32 and off < (1e-5 if dtype == torch.float32 else 0.02)
