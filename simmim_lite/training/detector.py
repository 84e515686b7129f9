"""Mask R-CNN on Swin V2: torchvision's detection library behind our encoder and a feature pyramid.

Full size is the standard one (256 channels, anchors of 32 to 512 px). Below `SMALL` pixels everything that costs per
image is cut down to what a small picture can hold: see `limits`.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..data.loading import seeded
from ..model.sizes import SIZES, Size
from ..model.swin import SwinV2
from .dense import Dense
from .starting import build_encoder

#: Images of a shorter side below this many pixels get the small settings.
SMALL = 256
RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
_HEADS = 12  # stream of random numbers


def limits(image_size: int) -> dict:
    """What of Mask R-CNN depends on the image's size: counts an image, and regions of interest.

    At full size torchvision's defaults, which are the standard. A 32 px scene has 252 anchors and two objects at most,
    so a fraction of the samples and proposals says the same.
    """
    if image_size >= SMALL:
        return {}
    return {
        "rpn_pre_nms_top_n_train": 64,
        "rpn_pre_nms_top_n_test": 64,
        "rpn_post_nms_top_n_train": 24,
        "rpn_post_nms_top_n_test": 24,
        "rpn_batch_size_per_image": 32,
        "box_batch_size_per_image": 16,
        "box_detections_per_img": 10,
    }


def anchor_sizes(size: Size, image_size: int) -> tuple[tuple[int], ...]:
    """Side of the anchors in pixels, a level of the pyramid: 8 strides (32 to 512), on small images 2."""
    strides = 8 if image_size >= SMALL else 2
    return tuple((strides * stride,) for stride in level_strides(size))


def level_strides(size: Size) -> list[int]:
    """Pixels a side of a cell of each level of the pyramid: one a stage, and one pooled level above."""
    return [size.patch_size << level for level in range(len(size.depths) + 1)]


class Anchors(AnchorGenerator):
    """Anchors on the true strides: torchvision's own are guessed from sides, and wrong where a map was rounded up."""

    def __init__(self, size: Size, image_size: int) -> None:
        sizes = anchor_sizes(size, image_size)
        super().__init__(sizes, (RATIOS,) * len(sizes))
        self.strides = level_strides(size)

    def grid_anchors(self, grid_sizes: list, strides: list) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [(stride, stride) for stride in self.strides])


class Pyramid(nn.Module):
    """Images (B, 3, H, W) -> maps by name, `channels` wide: one a stage of the encoder, and `pool` at half the last."""

    def __init__(self, encoder: SwinV2, channels: int) -> None:
        super().__init__()
        widths = [encoder.embed_dim << s for s in range(len(encoder.depths))]
        self.encoder = encoder
        # the encoder normalises its last map itself
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.encoder.feature_maps(images)
        for s, norm in enumerate(self.norms):
            maps[s] = norm(maps[s].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fpn(OrderedDict((str(s), m.contiguous()) for s, m in enumerate(maps)))


def build_detector(
    spec: Dense, classes: int, mean: tuple, std: tuple, weights: dict[str, Tensor] | None = None
) -> MaskRCNN:
    """The network at step 0. classes: without the background; mean, std: of the input, in 0..1 units.

    weights: the pretrained SimMIM's state dict, needed just when the spec has a start. It takes a list of images
    (3, H, W) in 0..1 and resizes them to the spec's sides. The heads start the same whatever the encoder starts from.
    """
    size = SIZES[spec.model]
    encoder = build_encoder(spec, weights)
    levels = [str(s) for s in range(len(size.depths))]
    small = spec.image_size < SMALL
    mask_side, samples = (7, 1) if small else (14, 2)
    with seeded(spec.seed, _HEADS):
        model = MaskRCNN(
            Pyramid(encoder, spec.channels),
            min_size=spec.short_sides or spec.image_size,  # one is drawn in training, the last one serves in testing
            max_size=spec.longest,
            image_mean=list(mean),
            image_std=list(std),
            rpn_anchor_generator=Anchors(size, spec.image_size),
            rpn_head=RPNHead(spec.channels, len(RATIOS)),
            box_roi_pool=MultiScaleRoIAlign(levels, 7, samples),
            box_head=TwoMLPHead(spec.channels * 7**2, spec.hidden),
            box_predictor=FastRCNNPredictor(spec.hidden, classes + 1),
            mask_roi_pool=MultiScaleRoIAlign(levels, mask_side, samples),
            mask_head=MaskRCNNHeads(spec.channels, (spec.channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(spec.channels, spec.channels, classes + 1),
            size_divisible=size.final_stride,
            **limits(spec.image_size),
        )
    # below full precision coordinates lose whole pixels: what boxes are computed from leaves autocast
    for module in (model.backbone, model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor):
        module.register_forward_hook(_full_precision)
    return model


def _full_precision(module: nn.Module, inputs: tuple, outputs: object) -> object:
    if isinstance(outputs, dict):
        return OrderedDict((name, value.float()) for name, value in outputs.items())
    if isinstance(outputs, (tuple, list)):
        return type(outputs)(_full_precision(module, inputs, value) for value in outputs)
    return outputs.float()
