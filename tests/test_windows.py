"""Windows, shift and merging as sets: against the network itself, and by hand. Against JavaScript: test_javascript."""

import pytest
import torch
from random_weights import block_outputs, randomise
from reach import steps

from simmim_lite.model.masking import hash_masks, upsample
from simmim_lite.model.swin import SwinV2


@pytest.mark.parametrize(("side", "window", "depths"), [(8, 4, (2, 2)), (16, 4, (3, 2, 2)), (24, 6, (2, 2, 2, 1))])
@pytest.mark.parametrize("seed", [0, 2])
def test_the_sets_are_what_the_network_does(side: int, window: int, depths: tuple, seed: int) -> None:
    """A token has heard of a visible one where its output differs between two pictures under one mask, in float64:
    there the -100 of a shifted window is below rounding."""
    encoder = randomise(SwinV2(32, depths, window), seed).double().eval()
    hidden = upsample(hash_masks((side // 2,) * 2, 0.9, seed, [0], 0, "square" if seed == 2 else "random")[0], 2)
    images = torch.randn(2, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.inference_mode():
        found = block_outputs(encoder, images, torch.from_numpy(hidden).expand(2, -1, -1))
    for output, heard in zip(found, steps(hidden, window, depths), strict=True):
        assert (((output[0] - output[1]).abs().amax(1) > 1e-12).view(heard.shape).numpy() == heard).all()
