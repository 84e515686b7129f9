"""Swin V2's windows, shift, padding, merges and coordinates against a network written slowly."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from random_weights import close, rand, random_model, randomise

from simmim_lite.model.swin import SwinV2


def slow_attention(attn, x, window, shifted):
    """Official order of things: pad, roll, cut windows, forbid what the roll brought together; x (H, W, C)."""
    height, width, c = x.shape
    wh, ww = min(window, height), min(window, width)
    sh, sw = (0 if side <= window else w // 2 for side, w in ((height, wh), (width, ww))) if shifted else (0, 0)
    hp, wp = math.ceil(height / wh) * wh, math.ceil(width / ww) * ww

    def region(at, side, w, shift):
        return 0 if shift == 0 or at < side - w else 1 if at < side - shift else 2

    groups = {}
    for y in range(hp):
        for z in range(wp):
            ry, rz = (y - sh) % hp, (z - sw) % wp  # where the roll puts it
            regions = (region(ry, hp, wh, sh), region(rz, wp, ww, sw))
            groups.setdefault((ry // wh, rz // ww), []).append((y, z, ry, rz, regions))
    out, weight = torch.zeros_like(x), attn.qkv.weight
    spans = [max(1, (attn.pretrained_window or w) - 1) for w in (wh, ww)]
    for tokens in groups.values():
        real = [t for t in tokens if t[0] < height and t[1] < width]  # padding is nobody's key, and no result
        values = torch.stack([x[t[0], t[1]] for t in real])
        offsets = [[[(a[2] - b[2]) / spans[0], (a[3] - b[3]) / spans[1]] for b in real] for a in real]
        offsets = torch.tensor(offsets)
        coordinates = torch.sign(offsets) * torch.log2(1 + 8 * offsets.abs()) / math.log2(8)
        bias = 16 * torch.sigmoid(attn.cpb_mlp(coordinates))  # (L, L, heads)
        apart = torch.tensor([[0.0 if a[4] == b[4] else -100.0 for b in real] for a in real])
        q, k, v = (values @ weight[part * c : part * c + c].t() for part in range(3))
        q, v, parts = q + attn.q_bias, v + attn.v_bias, []
        for h in range(c // 32):
            at = slice(32 * h, 32 * h + 32)
            cosine = F.normalize(q[:, at], dim=1) @ F.normalize(k[:, at], dim=1).t()
            scale = attn.logit_scale[h].clamp(max=math.log(100)).exp()
            parts.append((cosine * scale + bias[..., h] + apart).softmax(1) @ v[:, at])
        for t, row in zip(real, attn.proj(torch.cat(parts, 1)), strict=True):
            out[t[0], t[1]] = row
    return out


def slow_encode(encoder, image, mask=None):
    """image (3, H, W), mask (h, w) -> (C, h', w')."""
    p = encoder.patch_embed.patch_size
    image = F.pad(image, (0, -image.shape[2] % p, 0, -image.shape[1] % p))
    x = encoder.patch_embed.norm(encoder.patch_embed.proj(image[None])[0].permute(1, 2, 0))
    if mask is not None:
        x = torch.where(mask[..., None], encoder.mask_token[0], x)
    for stage in encoder.layers:
        for i, block in enumerate(stage.blocks):
            x = x + block.norm1(slow_attention(block.attn, x, stage.window, i % 2 == 1))
            x = x + block.norm2(block.mlp.fc2(F.gelu(block.mlp.fc1(x))))
        if stage is not encoder.layers[-1]:
            x = F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, x.shape[0] % 2))
            corners = [x[row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x = stage.downsample.norm(stage.downsample.reduction(torch.cat(corners, -1)))
    return encoder.norm(x).permute(2, 0, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("height", "width", "window", "depths", "pretrained"),
    [
        (32, 32, 4, (2, 2), None),  # nothing to pad
        (64, 16, 6, (2, 2), None),  # window clamped and unshifted along one side only
        (50, 70, 4, (2, 2), None),  # padded in pixels, windows and merge
        (33, 47, 3, (2, 2, 2), None),  # odd maps, odd window
        (24, 40, 4, (2, 2), (3, 2)),  # moved from other windows
        (64, 85, 12, (2, 1), None),  # 512 x 683 as in segmentation, an eighth
    ],
)
def test_the_network_equals_the_slow_one(height, width, window, depths, pretrained):
    encoder = randomise(SwinV2(32, depths, window, pretrained_window_sizes=pretrained)).eval()
    image = rand(1, 3, height, width)
    mask = rand(1, math.ceil(height / 4), math.ceil(width / 4), seed=1) > 0.3
    for hidden in (None, mask):
        assert close(encoder(image, hidden)[0], slow_encode(encoder, image[0], None if hidden is None else hidden[0]))


def test_layouts_that_are_kept_belong_to_a_size_and_outlive_inference_mode():
    model, images = random_model(), [rand(1, 3, *size) for size in ((32, 32), (48, 32), (50, 70), (32, 32))]
    others = [copy.deepcopy(model) for _ in images]
    with torch.inference_mode():
        found = [model.encode(x) for x in images]
    for x, other, expected in zip(images, others, found, strict=True):
        assert torch.equal(other.encode(x), expected) and torch.equal(model.encode(x), expected)
    model.encode(images[1]).sum().backward()
    assert model.encoder.layers[0].blocks[0].attn.cpb_mlp[0].weight.grad.abs().max() > 0
