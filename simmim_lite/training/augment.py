"""timm's own augmentation, with draws that are functions of numbers, as `data.loading.seeded` makes them.

Of an image: random resized crop, flip, RandAugment, colour jitter, random erasing, by `timm.data.create_transform`, as
in the released code. Of a batch: mixup and cutmix, by `timm.data.Mixup`.
"""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from ..data.loading import seeded
from .tuning import FineTune

_MIX = 12  # stream of random numbers


def train_transform(spec: FineTune, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """RGB picture of any size -> float32 (3, S, S), normalised; draws from Python's, numpy's and torch's generators.

    timm leaves colour jitter out where there is RandAugment, and so did the released code: the recipe's 0.4 changes
    nothing.
    """
    from timm.data import create_transform
    from timm.data.auto_augment import RandAugment, posterize

    whole = create_transform(
        spec.image_size,
        is_training=True,
        color_jitter=spec.colour_jitter or None,
        auto_augment=spec.rand_augment or None,
        interpolation=spec.interpolation,
        mean=mean,
        std=std,
        re_prob=spec.erasing,
        re_mode="pixel",  # noise: what the released code fills the box with
        re_count=1,
    )
    for part in whole.transforms:
        for op in part.ops if isinstance(part, RandAugment) else ():
            if op.aug_fn is posterize:
                op.aug_fn = _posterize
    return whole


def _posterize(image: Image.Image, bits: int, **options: object) -> Image.Image:
    """timm's, which may ask for no bits at all: once black, and an error since Pillow 13."""
    from timm.data.auto_augment import posterize

    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


def test_transform(spec: FineTune, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """RGB picture of any size -> float32 (3, S, S), normalised: shorter side to S / test_crop pixels, centre crop."""
    from timm.data import create_transform

    return create_transform(
        spec.image_size, interpolation=spec.interpolation, mean=mean, std=std, crop_pct=spec.test_crop
    )


class Mixing:
    """Mixup or cutmix of a whole batch, in timm's batch mode: image j with image B - 1 - j, one mix a step.

    The mix is a function of (seed, step). Each process holds both images of its pairs (`Team.pairs`), so that the mix
    is that of the global batch, whatever the number of processes.
    """

    def __init__(self, spec: FineTune, classes: int) -> None:
        from timm.data import Mixup

        self.seed = spec.seed
        self.mixup = Mixup(
            mixup_alpha=spec.mixup,
            cutmix_alpha=spec.cutmix,
            label_smoothing=spec.label_smoothing,
            num_classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), changed in place, and labels (B,) -> images, targets (B, classes), smoothed."""
        with seeded(self.seed, step, _MIX):
            return self.mixup(images, labels)
