"""The sizes' arithmetic against docs/facts.md, 1 and against the real networks."""

import pytest
import torch

from simmim_lite.errors import UserError
from simmim_lite.model.simmim import create_model
from simmim_lite.model.sizes import LAPTOP, PAPER, SIZES

# C, heads, backbone parameters, GMAC at 192/12, at 224/14, at 192/12 with the head; docs/facts.md, 7: GFLOP of training
FACTS = {
    "swinv2_small": (96, (3, 6, 12, 24), 48_959_418, 6.74, 9.41, 6.82, 40.9),
    "swinv2_base": (128, (4, 8, 16, 32), 86_893_816, 11.76, 16.32, 11.87, 71.2),
    "swinv2_large": (192, (6, 12, 24, 48), 195_202_932, 25.96, 35.81, 26.13, 156.8),
    "swinv2_huge": (352, (11, 22, 44, 88), 655_210_922, 85.75, 117.58, 86.06, 516.4),
    "swinv2_giant": (448, (14, 28, 56, 112), 1_060_976_996, 138.27, 189.30, 138.66, 832.0),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_parameters_that_sizes_say(name):
    with torch.device("meta"):
        model, size = create_model(name), SIZES[name]
    assert size.name == name and [*LAPTOP, *FACTS] == list(SIZES)
    assert sum(p.numel() for p in model.parameters()) == size.simmim_parameters
    backbone = sum(p.numel() for p in model.encoder.parameters()) - model.encoder.mask_token.numel()
    assert backbone == size.parameters and not list(model.buffers())
    laptop = model.patch_size, model.stride, model.target, model.target_window, model.encoder.layers[0].window
    assert laptop == ((4, 8, "normalized", 7, 4) if name in LAPTOP else (4, 32, "normalized", 47, 12))
    assert [stage.blocks[0].attn.heads for stage in model.encoder.layers] == list(size.heads)
    if name in PAPER:
        width, heads, parameters, *costs, training = FACTS[name]
        assert (size.embed_dim, size.heads, size.depths, size.parameters) == (width, heads, (2, 2, 18, 2), parameters)
        work = size.gmac(192, 12), size.gmac(224, 14), size.gmac(192, 12, head=True)
        assert [round(w, 2) for w in work] == costs and round(6 * work[2], 1) == training


def test_a_laptop_size_costs_what_its_products_and_norms_do():
    """As torch's FlopCounterMode counts them, without the position bias."""
    assert [round(SIZES["swinv2_femto"].gmac(32, 4, head=h) * 1e9) for h in (True, False)] == [14_123_008, 13_729_792]


@pytest.mark.parametrize(
    ("image", "window", "patch", "message"),
    [
        (100, 12, 32, "image_size 100 is no multiple of swinv2_small's final stride 32: try 96"),
        (192, 12, 40, "mask_patch 40 does not divide: .* try one of 4, 8, 12, 16, 24, 32, 48, 64, 96, 192"),
        (192, 49, 32, "window_size 49 is larger than the first stage's map, 48 x 48 tokens .* at most 48"),
        (192, 7, 32, "window_size 7 does not divide stage 1's map of 48 x 48 tokens at 192 px: try one of 2, 3, 6, 12"),
    ],
)
def test_inputs_that_do_not_divide(image, window, patch, message):
    with pytest.raises(UserError, match=message):
        PAPER["swinv2_small"].check_input(image, window, patch)
