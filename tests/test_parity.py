"""Swin V2 and SimMIM against timm and transformers on the same weights, every parameter random and non-zero.

A difference is measured as max |a - b| / max(1, max |b|): absolute where values are of size 1, relative where larger.
"""

import math

import numpy as np
import pytest
import timm
import torch
import transformers
from random_weights import assert_blocks_act, random_model, small_model
from timm.models.swin_transformer_v2 import SwinTransformerV2
from transformers import Swinv2Config, Swinv2ForMaskedImageModeling

from simmim_lite.model.layouts import hf_block_names, to_hf, to_timm
from simmim_lite.model.masking import MaskGenerator
from simmim_lite.model.weights import load_weights, save_weights

TOLERANCE = 1e-5
MOVED = {"pretrained_window_sizes": (12, 12, 12, 6)}  # from 192 px, window 12 to 224 px, window 14 (docs/facts.md, 4)
SETTINGS = [(192, 12, {}), (224, 14, MOVED)]
#: What transformers is met, in the names of its tests: its version, and what it calls the query of a block.
MET = f"transformers {transformers.__version__}, {hf_block_names()['attn.query']}"


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp_min(1)).item()


def images(side, batch=1, seed=5):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def official_masks(side, batch):
    generator = MaskGenerator(side, seed=3)
    return torch.from_numpy(np.stack([generator() for _ in range(batch)]))


def heads(model):
    return [stage.blocks[0].attn.heads for stage in model.encoder.layers]


def timm_twin(model, side, window, pretrained_window_sizes=(0, 0, 0, 0)):
    twin = SwinTransformerV2(
        img_size=side,
        window_size=window,
        embed_dim=model.encoder.embed_dim,
        depths=model.encoder.depths,
        num_heads=heads(model),
        num_classes=0,
        pretrained_window_sizes=pretrained_window_sizes,
    )
    twin.load_state_dict(to_timm(model.state_dict()), strict=True)
    return twin.eval()


def hf_twin(model, side, window, pretrained_window_sizes=(0, 0, 0, 0)):
    config = Swinv2Config(
        image_size=side,
        window_size=window,
        embed_dim=model.encoder.embed_dim,
        depths=list(model.encoder.depths),
        num_heads=heads(model),
        encoder_stride=model.stride,
        pretrained_window_sizes=list(pretrained_window_sizes),
    )
    twin = Swinv2ForMaskedImageModeling(config)
    twin.load_state_dict(to_hf(model.state_dict()), strict=True)
    return twin.eval()


@torch.no_grad()
@pytest.mark.parametrize(("side", "window", "moved"), SETTINGS)
def test_features_equal_timm(side, window, moved):
    model = small_model(window=window, **moved)
    x = images(side)
    features = model.encode(x)
    assert_blocks_act(model, x)
    assert features.shape == (1, 256, side // 32, side // 32) and features.abs().max() > 1
    twin = timm_twin(model, side, window, **moved)
    assert difference(features, twin.forward_features(x).permute(0, 3, 1, 2)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("met", [MET])
@pytest.mark.parametrize(("side", "window", "moved"), SETTINGS)
def test_features_and_reconstruction_equal_transformers(side, window, moved, met):
    model = small_model(window=window, **moved)
    x, mask = images(side, batch=2), official_masks(side, 2)
    assert 0 < mask.sum() < mask.numel()
    assert_blocks_act(model, x)
    twin = hf_twin(model, side, window, **moved)
    out = twin(x, bool_masked_pos=mask.flatten(1), output_hidden_states=True)
    features = twin.swinv2(x, bool_masked_pos=mask.flatten(1)).last_hidden_state
    ours = model.encode(x, mask)
    assert difference(ours.flatten(2).transpose(1, 2), features) < TOLERANCE
    assert difference(model.reconstruct(x, mask), out.reconstruction) < TOLERANCE
    assert abs(model(x, mask) / out.loss - 1) < TOLERANCE  # the raw target is the images
    unmasked = twin.swinv2(x).last_hidden_state
    assert difference(model.encode(x).flatten(2).transpose(1, 2), unmasked) < TOLERANCE
    assert (unmasked - features).abs().max() > 0.1


@torch.no_grad()
def test_stage_maps_equal_timm():
    model = small_model()
    x = images(192)
    maps = timm_twin(model, 192, 12).forward_intermediates(x, norm=True, intermediates_only=True)
    for ours, theirs in zip(model.encoder.feature_maps(x), maps, strict=True):
        assert difference(ours, theirs) < TOLERANCE


def test_gradients_equal_timm():
    """Through every parameter: relative to each gradient's own largest entry."""
    model = small_model(depths=(2, 1, 2, 1), window=4)
    twin = timm_twin(model, 64, 4)
    x = images(64, batch=2)
    weights = torch.randn(2, 256, 2, 2, generator=torch.Generator().manual_seed(1))
    (model.encode(x) * weights).sum().backward()
    (twin.forward_features(x).permute(0, 3, 1, 2) * weights).sum().backward()
    ours = to_timm({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    theirs = {k: p.grad for k, p in twin.named_parameters()}
    assert ours.keys() == theirs.keys()
    for key, grad in theirs.items():
        assert grad.abs().max() > 0, key
        assert (ours[key] - grad).abs().max() <= 1e-4 * grad.abs().max(), key


@torch.no_grad()
def test_the_logit_scale_is_clamped_as_in_timm():
    model = small_model(depths=(1, 1), window=4)
    for layer in model.encoder.layers:
        layer.blocks[0].attn.logit_scale.fill_(9.0)
    x = images(32)
    clamped = model.encode(x)
    assert difference(clamped, timm_twin(model, 32, 4).forward_features(x).permute(0, 3, 1, 2)) < TOLERANCE
    for layer in model.encoder.layers:
        layer.blocks[0].attn.logit_scale.fill_(math.log(100))
    assert torch.equal(model.encode(x), clamped)


def test_weights_come_in_from_timm_and_transformers():
    """The other way round: their random weights, loaded here, give their features."""
    x = images(64)
    source = small_model(window=4, seed=7)
    for twin, features in (
        (timm_twin(source, 64, 4), lambda t: t.forward_features(x).permute(0, 3, 1, 2)),
        (hf_twin(source, 64, 4), lambda t: t.swinv2(x).last_hidden_state.transpose(1, 2).unflatten(2, (2, 2))),
    ):
        model = small_model(window=4, seed=8)
        load_weights(model, twin.state_dict())
        with torch.no_grad():
            assert difference(model.encode(x), features(twin)) < TOLERANCE


def test_files_go_out_to_timm_and_transformers(tmp_path):
    """As a user would open them there."""
    x, source = images(64), small_model(window=4, seed=7)
    features = source.encode(x)
    twin = timm_twin(small_model(window=4, seed=8), 64, 4)
    timm.models.load_checkpoint(twin, str(save_weights(source, tmp_path / "timm.pth", "timm")), strict=True)
    assert difference(features, twin.forward_features(x).permute(0, 3, 1, 2)) < TOLERANCE


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (lambda: random_model("swinv2_atto"), 32),
        (lambda: random_model("swinv2_femto", img_size=48, window_size=6), 48),
        (lambda: small_model(window=12, seed=7), 192),
        (lambda: small_model(window=14, seed=7, **MOVED), 224),
    ],
)
@torch.no_grad()
def test_a_folder_goes_out_to_transformers(make, side, tmp_path, recwarn):
    """As a user opens it there: every tensor is found, and the reconstruction is ours."""
    model = make()
    save_weights(model, tmp_path / "hf", "hf", image_size=side)
    twin, told = Swinv2ForMaskedImageModeling.from_pretrained(
        tmp_path / "hf", local_files_only=True, output_loading_info=True
    )
    assert not any(told.values()), told
    x, grid = images(side), side // 4
    mask = torch.arange(grid**2).view(1, grid, grid) % 3 == 0
    theirs = twin.eval()(x, bool_masked_pos=mask.flatten(1)).reconstruction
    assert difference(model.reconstruct(x, mask), theirs) < TOLERANCE
