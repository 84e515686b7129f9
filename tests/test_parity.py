"""Swin V2 and SimMIM against timm and transformers on the same weights, every parameter random and non-zero.

A difference is measured as max |a - b| / max(1, max |b|): absolute where values are of size 1, relative where larger.
"""

import math

import numpy as np
import pytest
import timm
import torch
from random_weights import assert_blocks_act, close, random_model, small_model
from timm.models.swin_transformer_v2 import SwinTransformerV2
from transformers import Swinv2Config, Swinv2ForMaskedImageModeling

from simmim_lite.model.layouts import to_hf, to_timm
from simmim_lite.model.masking import MaskGenerator
from simmim_lite.model.weights import save_weights

MOVED = {"pretrained_window_sizes": (12, 12, 12, 6)}  # from 192 px, window 12 to 224 px, window 14 (docs/facts.md, 4)
SETTINGS = [(192, 12, {}), (224, 14, MOVED)]


def images(side, batch=1, seed=5):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def twin_of(model, side, window, kind, pretrained_window_sizes=(0, 0, 0, 0)):
    """timm's or transformers' network of the same form with the same weights."""
    depths, heads = model.encoder.depths, [stage.blocks[0].attn.heads for stage in model.encoder.layers]
    same = {"embed_dim": model.encoder.embed_dim, "depths": list(depths), "num_heads": heads, "window_size": window}
    same["pretrained_window_sizes"] = list(pretrained_window_sizes)
    if kind == "timm":
        twin, state = SwinTransformerV2(img_size=side, num_classes=0, **same), to_timm(model.state_dict())
    else:
        config = Swinv2Config(image_size=side, encoder_stride=model.stride, **same)
        twin, state = Swinv2ForMaskedImageModeling(config), to_hf(model.state_dict())
    twin.load_state_dict(state, strict=True)
    return twin.eval()


def timm_features(twin, x):
    return twin.forward_features(x).permute(0, 3, 1, 2)


@torch.no_grad()
@pytest.mark.parametrize(("side", "window", "moved"), SETTINGS)
def test_the_maps_of_all_stages_equal_timm(side, window, moved):
    model, x = small_model(window=window, **moved), images(side)
    assert_blocks_act(model, x)
    twin = twin_of(model, side, window, "timm", **moved)
    maps = model.encoder.feature_maps(x)
    assert maps[-1].shape == (1, 256, side // 32, side // 32) and maps[-1].abs().max() > 1
    theirs = twin.forward_intermediates(x, norm=True, intermediates_only=True)
    for ours, other in zip([*maps, model.encode(x)], [*theirs, timm_features(twin, x)], strict=True):
        assert close(ours, other)


@torch.no_grad()
@pytest.mark.parametrize(("side", "window", "moved"), SETTINGS)
def test_features_and_reconstruction_equal_transformers(side, window, moved):
    model, generator = small_model(window=window, **moved), MaskGenerator(side, seed=3)
    x, mask = images(side, batch=2), torch.from_numpy(np.stack([generator() for _ in range(2)]))
    twin = twin_of(model, side, window, "hf", **moved)
    out = twin(x, bool_masked_pos=mask.flatten(1))
    features = twin.swinv2(x, bool_masked_pos=mask.flatten(1)).last_hidden_state
    assert close(model.encode(x, mask).flatten(2).transpose(1, 2), features)
    assert close(model.reconstruct(x, mask), out.reconstruction)
    assert abs(model(x, mask) / out.loss - 1) < 1e-5  # the raw target is the images
    unmasked = twin.swinv2(x).last_hidden_state
    assert close(model.encode(x).flatten(2).transpose(1, 2), unmasked) and (unmasked - features).abs().max() > 0.1


def test_gradients_equal_timm():
    """Through every parameter: relative to each gradient's own largest entry."""
    model, x = small_model(depths=(2, 1, 2, 1), window=4), images(64, batch=2)
    twin = twin_of(model, 64, 4, "timm")
    weights = torch.randn(2, 256, 2, 2, generator=torch.Generator().manual_seed(1))
    (model.encode(x) * weights).sum().backward()
    (timm_features(twin, x) * weights).sum().backward()
    ours = to_timm({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    theirs = {k: p.grad for k, p in twin.named_parameters()}
    assert ours.keys() == theirs.keys()
    for key, grad in theirs.items():
        assert grad.abs().max() > 0, key
        assert (ours[key] - grad).abs().max() <= 1e-4 * grad.abs().max(), key


@torch.no_grad()
def test_the_logit_scale_is_clamped_as_in_timm():
    model, x, found = small_model(depths=(1, 1), window=4), images(32), []
    for scale in (9.0, math.log(100)):
        for layer in model.encoder.layers:
            layer.blocks[0].attn.logit_scale.fill_(scale)
        found.append(model.encode(x))
        assert close(found[-1], timm_features(twin_of(model, 32, 4, "timm", (0, 0)), x))
    assert torch.equal(*found)


@torch.no_grad()
def test_a_file_goes_out_to_timm(tmp_path):
    x, source = images(64), small_model(window=4, seed=7)
    twin = twin_of(small_model(window=4, seed=8), 64, 4, "timm")
    timm.models.load_checkpoint(twin, str(save_weights(source, tmp_path / "timm.pth", "timm")), strict=True)
    assert close(source.encode(x), timm_features(twin, x))


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (lambda: random_model("swinv2_femto", img_size=48, window_size=6), 48),
        (lambda: small_model(window=14, seed=7, **MOVED), 224),
    ],
)
@torch.no_grad()
def test_a_folder_goes_out_to_transformers(make, side, tmp_path):
    """As a user opens it there: every tensor is found, and the reconstruction is ours."""
    model, x, grid = make(), images(side), side // 4
    save_weights(model, tmp_path / "hf", "hf", image_size=side)
    how = {"local_files_only": True, "output_loading_info": True}
    twin, told = Swinv2ForMaskedImageModeling.from_pretrained(tmp_path / "hf", **how)
    assert not any(told.values()), told
    mask = torch.arange(grid**2).view(1, grid, grid) % 3 == 0
    assert close(model.reconstruct(x, mask), twin.eval()(x, bool_masked_pos=mask.flatten(1)).reconstruction)
