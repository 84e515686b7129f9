"""UPerNet: shapes for two and four stages and for odd sides, its arithmetic, and gradients everywhere."""

import pytest
import torch
import torch.nn.functional as F
from random_weights import close, rand, randomise
from torch.utils.flop_counter import FlopCounterMode

from simmim_lite.model.swin import SwinV2
from simmim_lite.training.segment import UPerNet, enlarge


def network(depths=(1, 1), window=4, channels=8, classes=5, **options):
    return randomise(UPerNet(SwinV2(32, depths, window), classes, channels, **options))


@pytest.mark.parametrize(
    ("depths", "height", "width", "stage", "second"),
    [
        ((1, 1), 33, 50, (9, 13), (9, 13)),
        ((1, 1, 1, 1), 64, 64, (16, 16), (4, 4)),
        ((1, 1, 1, 1), 128, 171, (32, 43), (8, 11)),  # 512 x 683, a quarter
    ],
)
def test_shapes(depths, height, width, stage, second):
    net = network(depths, 12).train()
    main, auxiliary = net(rand(2, 3, height, width))
    assert main.shape == (2, 5, *stage) and auxiliary.shape == (2, 5, *second) and main.isfinite().all()
    full = enlarge(main, net.strides[0], (height, width))
    assert full.shape[-2:] == enlarge(auxiliary, net.strides[-2], (height, width)).shape[-2:] == (height, width)
    with torch.no_grad():
        assert net.eval()(rand(2, 3, height, width))[1] is None


def test_the_pyramid_is_the_papers():
    """Against the same written out, with the four levels' names."""
    net = network((1, 1, 1, 1)).eval()
    c2, c3, c4, c5 = maps = [rand(2, 32 << s, 16 >> s, 16 >> s, seed=s) for s in range(4)]
    with torch.no_grad():
        pools = [F.adaptive_avg_pool2d(c5, b) for b in (1, 2, 3, 6)]
        up = [F.interpolate(net.pools[i](p), (2, 2), mode="bilinear") for i, p in enumerate(pools)]
        p5 = net.pooled(torch.cat([c5, *up], 1))
        twice = torch.nn.Upsample(scale_factor=2, mode="bilinear")
        p4 = net.laterals[2](c4) + twice(p5)
        p3 = net.laterals[1](c3) + twice(p4)
        p2 = net.laterals[0](c2) + twice(p3)
        levels = [net.smooths[0](p2), net.smooths[1](p3), net.smooths[2](p4), p5]
        same = [F.interpolate(x, (16, 16), mode="bilinear") for x in levels]
        assert close(net.pyramid(maps), net.fuse(torch.cat(same, 1)), 1e-5)


def test_enlarging_is_exact_where_sides_divide_and_aligned_where_not():
    maps = rand(1, 2, 5, 7)
    assert torch.equal(enlarge(maps, 1, (5, 7)), maps)
    assert close(enlarge(maps, 4, (20, 28)), F.interpolate(maps, (20, 28), mode="bilinear"))
    wide = enlarge(torch.arange(7.0).expand(1, 1, 5, 7), 4, (18, 26))[0, 0, 0]
    assert wide.shape == (26,) and wide[13].item() == pytest.approx((13.5 / 4) - 0.5)  # where its pixel is


@pytest.mark.parametrize(("depths", "side"), [((1, 1), 32), ((1, 1, 1, 1), 96)])
def test_macs_are_those_of_the_convolutions(depths, side):
    net = network(depths).train()
    with FlopCounterMode(display=False) as counter:
        net(rand(2, 3, side, side))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert net.macs(side, side) == counted / 2 / 2  # two images, and two operations each


def test_parameters_at_full_size_by_hand():
    """150 classes, 512 channels, widths 96 to 768 (Swin-T, S): heads of 31.5 M and .92 M parameters."""
    with torch.device("meta"):
        net = UPerNet(SwinV2(96, (1, 1, 1, 1), 12), 150, 512)
    pooling = 4 * (768 * 512 + 2 * 512) + 9 * (768 + 4 * 512) * 512 + 2 * 512
    pyramid = (96 + 192 + 384) * 512 + 3 * 2 * 512 + 3 * (9 * 512 * 512 + 2 * 512)
    fusion = 9 * 4 * 512 * 512 + 2 * 512 + 512 * 150 + 150
    auxiliary = 9 * 384 * 256 + 2 * 256 + 256 * 150 + 150
    norms = 2 * (96 + 192 + 384)
    encoder, total = (sum(p.numel() for p in module.parameters()) for module in (net.encoder, net))
    assert total - encoder - norms == pooling + pyramid + fusion + auxiliary == 31_497_366 + 923_798


@pytest.mark.parametrize("auxiliary", [True, False])
def test_every_parameter_learns(auxiliary):
    net = network(auxiliary=auxiliary).train()
    main, second = net(rand(2, 3, 32, 32))
    assert (second is None) is not auxiliary
    (main.square().sum() + (second.square().sum() if auxiliary else 0)).backward()
    still = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert still == {"encoder.mask_token"}
