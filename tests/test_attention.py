"""Window attention: its forward against a literal one, its hand-written backward against autograd."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from random_weights import close, rand, random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from simmim_lite.model import swin
from simmim_lite.model.attention import reference_attention, sdpa_attention, window_attention


def attention_inputs(batch=2, windows=3, length=4, heads=2, channels=5, masked=True, dtype=torch.float64):
    qkv = rand(batch, windows, length, 3 * heads * channels, dtype=dtype)
    scale = rand(heads, seed=1, dtype=dtype).exp() + 1
    bias = rand(heads, length, length, seed=2, dtype=dtype)
    mask = torch.where(rand(windows, length, length, seed=3) > 0.5, -100.0, 0.0).to(dtype)
    mask.diagonal(dim1=1, dim2=2).zero_()
    return [t.requires_grad_() for t in (qkv, scale, bias)], mask if masked else None, heads


def literal_attention(qkv, heads, scale, bias, mask):
    """The same, one query of one head at a time."""
    batch, windows, length, width = qkv.shape
    channels = width // 3 // heads
    out = torch.zeros(batch, windows, length, width // 3, dtype=qkv.dtype)
    for b in range(batch):
        for w in range(windows):
            for h in range(heads):
                q, k, v = (
                    qkv[b, w, :, (3 * 0 + part) * heads * channels :][:, h * channels :][:, :channels]
                    for part in range(3)
                )
                for i in range(length):
                    logits = torch.stack([q[i] @ k[j] / (q[i].norm() * k[j].norm()) for j in range(length)]) * scale[h]
                    logits = logits + bias[h, i] + (0 if mask is None else mask[w, i])
                    share = logits.exp() / logits.exp().sum()
                    out[b, w, i, h * channels : (h + 1) * channels] = share @ v
    return out


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_literal_one(masked):
    (qkv, scale, bias), mask, heads = attention_inputs(masked=masked)
    with torch.no_grad():
        expected = literal_attention(qkv, heads, scale, bias, mask)
        for function in (reference_attention, window_attention):
            assert close(function(qkv, heads, scale, bias, mask), expected, 1e-12)
        floats = [t.float() for t in (qkv, scale, bias)]
        fused = sdpa_attention(floats[0], heads, *floats[1:], None if mask is None else mask.float())
        assert close(fused, expected.float())


@pytest.mark.parametrize("masked", [False, True])
def test_the_hand_written_backward_is_the_gradient(masked):
    inputs, mask, heads = attention_inputs(masked=masked)
    assert torch.autograd.gradcheck(lambda qkv, scale, bias: window_attention(qkv, heads, scale, bias, mask), inputs)


@pytest.mark.parametrize("function", [window_attention, sdpa_attention])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_autograd_through_the_reference(masked, function):
    inputs, mask, heads = attention_inputs(3, 4, 16, 3, 32, masked, torch.float32)
    weights = rand(3, 4, 16, 96, seed=9)
    grads = []
    for f in (function, reference_attention):
        grads.append(torch.autograd.grad((f(inputs[0], heads, *inputs[1:], mask) * weights).sum(), inputs))
    for ours, expected in zip(*grads, strict=True):
        assert close(ours, expected)


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


def test_gradients_of_a_whole_network_equal_those_through_the_reference(monkeypatch):
    model = random_model("swinv2_atto").train()
    images, mask = rand(2, 3, 32, 32), torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.6
    losses, grads = [], []
    for function in (window_attention, reference_attention):
        monkeypatch.setattr(swin, "window_attention", function)
        losses.append(model(images, mask))
        grads.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    assert torch.allclose(*losses, rtol=1e-6)
    for (name, p), a, b in zip(model.named_parameters(), *grads, strict=True):
        assert b.abs().max() > 0 and a.shape == p.shape
        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), name


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
