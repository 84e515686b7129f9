"""SimMIM on one screen: embed, hide, encode, reconstruct, and the L1 loss of what was hidden (arXiv 2111.09886)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, unknown
from .sizes import LAPTOP, SIZES, nearest_size, odd_quarter
from .swin import SwinV2, reset_convolution


class SimMIM(nn.Module):
    """A backbone with a mask token, and one linear layer back to pixels.

    target: `raw`, the pixels as they come in, or `normalized`, each pixel against its window of `target_window` pixels
    (odd; docs/facts.md, 5). The head is a 1x1 convolution to 3 * stride^2 channels and a pixel shuffle, colour-major.
    """

    def __init__(
        self, encoder: SwinV2, patch_size: int = 4, target: str = "normalized", target_window: int = 47
    ) -> None:
        super().__init__()
        if target not in ("raw", "normalized"):
            raise unknown("target", target, ("raw", "normalized"))
        self.encoder, self.patch_size, self.target, self.target_window = encoder, patch_size, target, target_window
        self.stride = patch_size << (len(encoder.depths) - 1)
        self.channels = encoder.patch_embed.proj.in_channels
        head = nn.Conv2d(encoder.num_features, self.channels * self.stride**2, 1)
        self.decoder = nn.Sequential(head, nn.PixelShuffle(self.stride))

    def forward(self, images: Tensor, mask: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scalar loss of images (B, 3, H, W), mean/std-normalised, with mask (B, H/p, W/p), 1 or True = hidden."""
        return self.loss(self.reconstruct(images, mask, noise), images, mask)

    def reconstruct(self, images: Tensor, mask: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) predictions, in the space of the target, for every pixel, hidden or not."""
        height, width = images.shape[-2:]  # nothing is padded (docs/facts.md, 5)
        if height % self.stride or width % self.stride:
            raise UserError(f"images of {height} x {width} px: SimMIM needs sides that are multiples of {self.stride}")
        features = self.encoder(images, mask, noise)
        head, shuffle = self.decoder
        # a 1x1 convolution is a linear layer over channels, and faster as one
        pixels = F.linear(features.permute(0, 2, 3, 1), head.weight.flatten(1), head.bias)
        return shuffle(pixels.permute(0, 3, 1, 2))

    def encode(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, 8C, H/32, W/32) for four stages; a hidden pixel never reaches them."""
        return self.encoder(images, mask)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: bool = False) -> Tensor:
        """sum(|target - prediction| * mask) / (sum(mask) + 1e-5) / 3, every pixel counted once; 0 for an empty mask (3:
        the channels).

        per_image: (B,) with each image's own sums instead of one scalar.
        """
        pixels = mask.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2).unsqueeze(1).float()
        error = (self.make_target(images) - prediction.float()).abs() * pixels
        over = (1, 2, 3) if per_image else (0, 1, 2, 3)
        return error.sum(over) / (pixels.sum(over) + 1e-5) / self.channels

    def make_target(self, images: Tensor) -> Tensor:
        """What is predicted, in full precision: the images or their local normalisation."""
        images = images.float()
        return images if self.target == "raw" else normalize_locally(images, self.target_window)


@torch.no_grad()
def normalize_locally(images: Tensor, window: int = 47) -> Tensor:
    """(x - mean) / sqrt(var + 1e-6) over the in-image pixels of the odd window around each pixel (docs/facts.md, 5).

    images (B, 3, H, W) -> same. The variance is unbiased and clamped at 0. Box sums are two products with a band
    matrix: exact, and some twenty times faster than pooling 47 x 47 pixels.
    """
    if window < 3 or window % 2 == 0:
        raise UserError(f"target_window is {window}: give an odd number of at least 3")
    with torch.autocast(images.device.type, enabled=False):
        # the variance does not depend on the level; near 0 the difference of squares keeps its digits
        images = images.float() - images.float().mean((2, 3), keepdim=True)
        mean, variance = local_statistics(images, window)
        return (images - mean) / (variance + 1e-6).sqrt()


def local_statistics(images: Tensor, window: int, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of images (B, 3, H, W) in the odd window around each pixel, over pixels in the image,
    or those that count: (B, 1, H, W) of 0 and 1. Where none does, both are 0."""
    # bands (side, side), 1 where two positions are at most window // 2 apart
    rows, columns = (images.new_ones(side, side).tril(window // 2).triu(-(window // 2)) for side in images.shape[2:])
    count = rows.sum(1)[:, None] * columns.sum(1)
    if counted is not None:
        images, count = images * counted, (rows @ counted @ columns).clamp_min(1)
    mean, square = ((rows @ x @ columns) / count for x in (images, images.square()))
    return mean, ((square - mean.square()) * (count / (count - 1).clamp_min(1))).clamp_min(0)


def create_model(
    name: str,
    img_size: int | None = None,
    window_size: int | None = None,
    *,
    target: str = "normalized",
    target_window: int | None = None,
    drop_path: float = 0.0,
    pretrained_window_sizes: tuple[int, ...] | None = None,
    checkpointing: bool = False,
    channels: int = 3,
    seed: int | None = None,
) -> SimMIM:
    """A SimMIM by name (`simmim_lite.SIZES`), by default at 192 px, window 12, or 32 px, window 4 for a laptop size.

    img_size in pixels is checked to divide, and any other size that does can be fed later. target_window: the odd
    number nearest to a quarter of the side by default (47 at 192 px). seed: initialise from a generator of its own, so
    that equal seeds give equal weights.
    """
    if name not in SIZES:
        raise unknown("model", name, SIZES, nearest_size)
    size = SIZES[name]
    img_size = img_size or (32 if name in LAPTOP else 192)
    window_size = window_size or (4 if name in LAPTOP else 12)
    size.check_input(img_size, window_size, size.final_stride)
    shape = (size.embed_dim, size.depths, window_size, size.patch_size)
    encoder = SwinV2(*shape, drop_path, pretrained_window_sizes, checkpointing, channels)
    model = SimMIM(encoder, size.patch_size, target, target_window or odd_quarter(img_size))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        encoder.reset_parameters(generator)
        reset_convolution(model.decoder[0], generator)
    return model
