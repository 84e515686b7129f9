"""Blocks: what they are at step 0, drop path, recomputation in the backward pass."""

import copy
import math

import torch
from random_weights import close, rand, random_model

from simmim_lite.model.simmim import create_model


def test_initialisation():
    """docs/facts.md, 5: truncated normal 0.02, logit scale log 10, q and v biases and block norms 0, other norms 1.

    So every block is the identity."""
    model, seen = create_model("swinv2_nano", seed=0), []
    for stage in model.encoder.layers:
        for block in stage.blocks:
            block.register_forward_hook(lambda _m, inputs, out: seen.append(torch.equal(inputs[0], out)))
    with torch.no_grad():
        model.encode(rand(2, 3, 32, 32))
    assert seen == [True] * 4
    for name, p in model.encoder.named_parameters():
        if name.endswith("logit_scale"):
            assert torch.equal(p, torch.full_like(p, math.log(10)))
        elif ".norm1." in name or ".norm2." in name or name.endswith("bias") and "patch_embed.proj" not in name:
            assert not p.any(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif "patch_embed" not in name:
            assert p.abs().max() <= 2 and (p.numel() < 1000 or abs(p.std() / 0.02 - 1) < 0.1), name
    bound = 1 / math.sqrt(48)  # the framework's default for a convolution of 3 x 4 x 4
    for p in model.encoder.patch_embed.proj.parameters():
        assert 0.8 * bound < p.abs().max() <= bound
    for a, b in zip(model.parameters(), create_model("swinv2_nano", seed=0).parameters(), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_drop_path_follows_its_noise():
    """A branch goes where the noise is below the rate; rates rise linearly from 0; what stays is scaled up."""
    model = random_model("swinv2_atto", drop_path=0.6).train()
    blocks = [block for stage in model.encoder.layers for block in stage.blocks]
    assert [round(block.drop_path, 6) for block in blocks] == [0, 0.2, 0.4, 0.6]
    images = rand(3, 3, 32, 32)
    plain = random_model("swinv2_atto").encode(images)
    assert torch.equal(copy.deepcopy(model).eval().encode(images), plain), "in evaluation nothing is dropped"
    kept = model.encoder(images, noise=torch.full((3, 4, 2), 0.99))
    scaled = copy.deepcopy(model).eval()
    for stage in scaled.encoder.layers:
        for block in stage.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight /= 1 - block.drop_path
                norm.bias /= 1 - block.drop_path
    assert close(kept, scaled.encoder(images))
    without = copy.deepcopy(scaled)
    last = without.encoder.layers[1].blocks[1].norm2
    last.weight.zero_()
    last.bias.zero_()
    noise = torch.full((3, 4, 2), 0.99)
    noise[1, 3, 1] = 0.59  # sample 1 loses the last block's MLP
    dropped = model.encoder(images, noise=noise)
    assert close(dropped[1], without.encoder(images)[1]) and close(dropped[[0, 2]], kept[[0, 2]])


def test_recomputing_blocks_changes_no_gradient():
    images, noise = rand(2, 3, 32, 32), torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(4))
    results = []
    for recompute in (False, True):
        model = random_model("swinv2_atto", drop_path=0.5, checkpointing=recompute).train()
        calls = []
        model.encoder.layers[0].blocks[1].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        out = model.encoder(images, noise=noise)
        (out * rand(*out.shape, seed=3)).sum().backward()
        assert len(calls) == 1 + recompute
        results.append([out, *(p.grad for p in model.encoder.parameters() if p.grad is not None)])
    assert all(map(torch.equal, *results)) and len(results[0]) == len(results[1])
