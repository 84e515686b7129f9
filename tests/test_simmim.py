"""SimMIM's target, loss and head against loop-written specifications, and that hidden pixels stay hidden."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_weights import rand, random_model, small_model

from simmim_lite.errors import UserError
from simmim_lite.model.masking import MaskGenerator
from simmim_lite.model.simmim import SimMIM, normalize_locally
from simmim_lite.model.swin import SwinV2


def bare(target="raw", window=47, patch=4):
    """Only target and loss are used: the smallest network there is."""
    return SimMIM(SwinV2(32, (1,), 2, patch_size=patch), patch, target, window)


def test_normalised_target_equals_the_official_poolings():
    """At 192 px, window 47: average pooling without the padding, as the official code does it; full precision."""
    images = rand(1, 3, 192, 192).requires_grad_()

    def pool(x):
        return F.avg_pool2d(x, 47, 1, 23, count_include_pad=False)

    n = F.avg_pool2d(torch.ones(1, 1, 192, 192), 47, 1, 23, count_include_pad=True) * 47**2
    mean = pool(images)
    variance = ((pool(images**2) - mean**2) * n / (n - 1)).clamp(min=0)
    with torch.autocast("cpu", torch.bfloat16):
        target = normalize_locally(images, 47)
    assert target.dtype == torch.float32 and not target.requires_grad
    assert torch.allclose(target, (images - mean) / (variance + 1e-6) ** 0.5, atol=1e-4)
    assert [round(n[0, 0, y, x].item()) for y, x in ((96, 96), (0, 0), (0, 96), (96, 191))] == [2209, 576, 1128, 1128]
    assert torch.equal(bare("normalized", 47).make_target(images), target)
    assert torch.equal(bare("raw").make_target(images), images)


def slow_loss(prediction, target, mask, patch):
    total = count = 0.0
    for b in range(len(mask)):
        for y, x in itertools.product(range(mask.shape[1] * patch), range(mask.shape[2] * patch)):
            if mask[b, y // patch, x // patch]:
                count += 1
                total += (target[b, :, y, x] - prediction[b, :, y, x]).abs().sum().item()
    return total / (count + 1e-5) / 3


@pytest.mark.parametrize(("batch", "rows", "columns", "patch"), [(1, 1, 1, 2), (2, 3, 4, 4), (3, 4, 2, 2)])
@pytest.mark.parametrize("target", ["raw", "normalized"])
def test_loss_equals_the_slow_one(batch, rows, columns, patch, target):
    model, shape = bare(target, 7, patch), (batch, 3, rows * patch, columns * patch)
    images, prediction, mask = rand(*shape), rand(*shape, seed=1), rand(batch, rows, columns, seed=2) > 0
    expected = model.make_target(images)
    loss, each = model.loss(prediction, images, mask), model.loss(prediction, images, mask, per_image=True)
    slow = [slow_loss(prediction[[b]], expected[[b]], mask[[b]], patch) for b in range(batch)]
    assert loss.shape == () and loss.item() == pytest.approx(slow_loss(prediction, expected, mask, patch), rel=1e-4)
    assert each.tolist() == pytest.approx(slow, rel=1e-4, abs=1e-6)
    for other in (mask.float(), mask.long()):
        assert torch.equal(model.loss(prediction, images, other), loss)


@torch.no_grad()
def test_a_masked_pixel_never_changes_encode():
    model, side = small_model(), 192
    images = rand(2, 3, side, side)
    mask = torch.from_numpy(np.stack([MaskGenerator(side, model.stride, 4, 0.6, seed=s)() for s in (0, 1)]))
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].bool()
    features, output = model.encode(images, mask), model.reconstruct(images, mask)
    for wild in (rand(*images.shape, seed=1) * 1e6, torch.full_like(images, -1e30)):
        changed = torch.where(pixels, wild, images)
        assert torch.equal(model.encode(changed, mask), features)
        assert torch.equal(model.reconstruct(changed, mask), output)
    visible = torch.where(pixels, images, images + 0.1)
    assert not torch.allclose(model.encode(visible, mask), features, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: random_model()(rand(1, 3, 36, 40), torch.zeros(1, 9, 10)), "36 x 40 px: .* multiples of 8"),
        (lambda: random_model()(rand(1, 3, 32, 32), torch.zeros(1, 4, 4)), "these images need .1, 8, 8."),
        *((lambda w=w: normalize_locally(rand(1, 3, 8, 8), w), f"target_window is {w}: give") for w in (46, 1, -3)),
    ],
)
def test_errors(call, words):
    with pytest.raises(UserError, match=words):
        call()
