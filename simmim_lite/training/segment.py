"""Semantic segmentation as a task: UPerNet (arXiv 1807.10221) on the pretrained encoder, as the Swin papers use it,
trained and scored as ADE20K is (mIoU)."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn
from torchvision.models.convnext import LayerNorm2d

from ..data.ade20k import IGNORED, AdeSplit, flipped_crop, full_view, resize
from ..data.batches import normalise, seeded
from ..data.coco import AnnotatedData
from ..errors import Everywhere
from ..model.sizes import SIZES
from ..model.swin import SwinV2
from .finetune import Task, build_encoder
from .parallel import Group
from .probes import bootstrap
from .tuning import EXAMPLES, SMALL_SIDE, Dense

BINS = (1, 2, 3, 6)  # cells a side of the pooled maps
_HEADS = 12  # stream of random numbers
RESAMPLES = 500  # of the test images, for the 95 % interval of a score


class UPerNet(nn.Module):
    """Images (B, 3, H, W) -> logits (B, classes, h, w) at the encoder's first stride, for two stages or more. Maps of
    each stage but the last (which the encoder normalises) pass a LayerNorm of their own. auxiliary: whether there is a
    plain head on the last stage but one, of half the channels, which serves training alone."""

    def __init__(self, encoder: SwinV2, classes: int, channels: int, *, auxiliary: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        *lower, last = widths = [encoder.embed_dim << s for s in range(len(encoder.depths))]
        self.norms = nn.ModuleList([*map(LayerNorm2d, lower), nn.Identity()])
        self.pools = nn.ModuleList(_conv(last, channels, 1) for _ in BINS)
        self.pooled = _conv(last + len(BINS) * channels, channels, 3)
        self.laterals = nn.ModuleList(_conv(width, channels, 1) for width in lower)
        self.smooths = nn.ModuleList(_conv(channels, channels, 3) for _ in lower)
        self.fuse = _conv(len(widths) * channels, channels, 3)
        self.classifier = _classifier(channels, classes)
        half = max(1, channels // 2)
        self.auxiliary = nn.Sequential(_conv(widths[-2], half, 3), _classifier(half, classes)) if auxiliary else None

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits at the first stage's stride, and in training those of the auxiliary head at the last but one's. noise:
        see `SwinV2`."""
        maps = [norm(m) for norm, m in zip(self.norms, self.encoder.feature_maps(images, None, noise), strict=True)]
        logits = self.classifier(self.pyramid(maps))
        return logits, self.auxiliary(maps[-2]) if self.training and self.auxiliary is not None else None

    def pyramid(self, maps: list[Tensor]) -> Tensor:
        """Maps [(B, C_s, H_s, W_s)] of the stages -> (B, channels, H_1, W_1)."""
        *lower, last = maps
        pooled = [
            F.interpolate(pool(F.adaptive_avg_pool2d(last, bins)), last.shape[-2:], mode="bilinear")
            for bins, pool in zip(BINS, self.pools, strict=True)
        ]
        levels = [self.pooled(cat([last, *pooled], 1))]
        for lateral, m in zip(reversed(self.laterals), reversed(lower), strict=True):
            levels.insert(0, lateral(m) + enlarge(levels[0], 2, m.shape[-2:]))
        smooth = [conv(level) for conv, level in zip(self.smooths, levels, strict=False)]
        full = levels[0].shape[-2:]
        return self.fuse(cat([enlarge(x, 1 << s, full) for s, x in enumerate([*smooth, levels[-1]])], 1))


def enlarge(maps: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) bilinearly `factor` times as large, cut to `size` (H, W): what is cut off is the pad that a map
    of an odd side got below and to the right before it was halved."""
    if factor > 1:
        maps = F.interpolate(maps, scale_factor=factor, mode="bilinear")
    return maps[..., : size[0], : size[1]]


def _conv(inputs: int, outputs: int, side: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _classifier(inputs: int, classes: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(nn.Dropout2d(0.1), conv)


class Segmentation(Task):
    """Segmentation as a task (see `Task`); weights: as `build_encoder` takes them. Batch normalisation sees the images
    of one process on CPUs, those of all processes on GPUs (SyncBatchNorm)."""

    kind = "segment"

    def __init__(self, spec: Dense, data: AnnotatedData, weights: dict[str, Tensor] | None, group: Group) -> None:
        synchronised = group.size > 1 and group.device.type == "cuda"
        share = group.share(spec.batch_size)
        if share.stop - share.start < 2 and not synchronised:
            least = f"needs 2 images on each process; give at least {2 * group.size}"
            raise Everywhere(f"batch_size {spec.batch_size}: batch normalisation {least}")
        super().__init__(spec, data, group, data.train, spec.images)
        data.name_unseen(self.chosen.tolist())
        fill = torch.tensor([round(255 * m) for m in self.statistics[0]], dtype=torch.uint8)
        self.batches = self.loader(functools.partial(training_view, data.train, self.chosen, spec, fill))
        encoder = build_encoder(spec, weights)
        with seeded(spec.seed, _HEADS):  # heads start the same whatever the encoder starts from
            model = UPerNet(encoder, len(data.classes), spec.channels, auxiliary=spec.auxiliary > 0)
        self.strides = [SIZES[spec.model].patch_size << s for s in range(len(self.depths))]  # pixels a side of a token
        self.model = (nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model).to(group.device)

    def batch(self, now: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """The step, images float32 (B, 3, S, S), labels int64 (B, S, S) and drop path's numbers."""
        images, labels = self.batches.batch(now)
        images = normalise(images.numpy(), *self.statistics, self.group.device)
        return now, images, labels.to(self.group.device, torch.long), self.noise(now)

    def loss(self, model: nn.Module, now: int, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        """Cross-entropy of the main head and, weighted, of the auxiliary one: the mean over the labelled pixels of the
        whole batch (gradients are averaged over processes, so this one's sum counts `size` times); 0 without any."""
        with seeded(self.spec.seed, now, self.group.rank):  # dropout
            main, auxiliary = model(images, noise)
        labelled = self.group.sum((labels != IGNORED).sum(dtype=torch.float32))
        total = pixel_loss(main, labels, self.strides[0])
        if auxiliary is not None:
            total = total + self.spec.auxiliary * pixel_loss(auxiliary, labels, self.strides[-2])
        return total * self.group.size / labelled.clamp(min=1)

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Scores on the first test images, whole at short side `image_size`, logits enlarged to the annotation's size;
        of small ones `examples`, the predicted class of each pixel as `run_lengths` has it."""
        group, test, found = self.group, self.data.test, []
        for buffer in self.model.buffers():  # running statistics: those of the main process, as in its checkpoints
            group.sum(buffer.mul_(int(group.is_main)))
        for place in range(len(test))[: self.spec.test_images][group.rank :: group.size]:
            pixels, truth = test.load(place)
            guess = self.predict(resize(torch.from_numpy(pixels), None, self.spec.image_size)[0], truth.shape)
            shown = []
            if place < EXAMPLES and max(guess.shape) <= SMALL_SIDE:
                about = {"file": test.files[place], "height": guess.shape[0], "width": guess.shape[1]}
                shown = [about | {"runs": run_lengths(guess)}]
            found.append((place, areas(guess, truth, len(self.data.classes)), shown))
        _, tables, shown = zip(*sorted(sum(group.gather(found), []), key=lambda item: item[0]), strict=True)
        return {"transfer": segmentation_scores(np.stack(tables), len(self.chosen)), "examples": sum(shown, [])}

    def predict(self, image: Tensor, size: tuple[int, int]) -> np.ndarray:
        """Classes uint8 (H, W) at a size in pixels of an image uint8 (3, h, w)."""
        device = self.group.device
        x = normalise(image[None].numpy(), *self.statistics, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            logits = self.model(x)[0]
        logits = enlarge(logits.float(), self.strides[0], image.shape[-2:])
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear")
        return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def training_view(split: AdeSplit, chosen: np.ndarray, spec: Dense, fill: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """A training view by its place in the draw: image uint8 (3, S, S), labels uint8 (S, S)."""
    image, labels = map(torch.from_numpy, split.load(int(chosen[place])))
    return (flipped_crop if spec.augment == "flip" else full_view)(image, labels, spec.image_size, fill)


def pixel_loss(logits: Tensor, labels: Tensor, stride: int) -> Tensor:
    """Cross-entropy summed over labelled pixels; logits at a stride of the labels (B, H, W)."""
    full = enlarge(logits.float(), stride, labels.shape[-2:])
    return F.cross_entropy(full, labels, ignore_index=IGNORED, reduction="sum")


def segmentation_scores(per_image: np.ndarray, n_train: int) -> dict[str, dict]:
    """{"miou", "pixel_accuracy"} from `areas` int64 (n, 3, classes) of n images, with 95 % percentiles of a bootstrap
    over them, whose seed is fixed."""
    n = len(per_image)
    # how often each resample drew each image; a product with the areas then sums all resamples at once
    draws = np.random.default_rng(20220610).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    resampled = (draws.astype(np.float64) @ per_image.reshape(n, -1)).reshape(RESAMPLES, *per_image.shape[1:])
    metrics, total = (("miou", "mIoU", miou), ("pixel_accuracy", "pixel accuracy", pixel_accuracy)), per_image.sum(0)
    return {name: bootstrap(float(of(total)), of(resampled), metric, n_train, n) for name, metric, of in metrics}


def areas(guess: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Labelled pixels of each class in one image (H, W), int64 (3, classes): rightly found, found, there."""
    known = labels != IGNORED
    guess, labels = guess[known], labels[known]
    return np.stack([np.bincount(x, minlength=classes) for x in (guess[guess == labels], guess, labels)])


def miou(total: np.ndarray) -> np.ndarray:
    """Mean IoU (...,) from areas (..., 3, classes) summed over images: over the classes that occur, in truth or in a
    prediction, as the field's tools do; 0 where no pixel is labelled."""
    both = total[..., 0, :]
    union = total[..., 1, :] + total[..., 2, :] - both
    return (both / np.maximum(union, 1)).sum(-1) / np.maximum((union > 0).sum(-1), 1)


def pixel_accuracy(total: np.ndarray) -> np.ndarray:
    """Share of labelled pixels that are right (...,) from areas (..., 3, classes) summed over images."""
    return total[..., 0, :].sum(-1) / np.maximum(total[..., 2, :].sum(-1), 1)


def run_lengths(classes: np.ndarray) -> list[int]:
    """A map of class numbers (H, W), row by row, as [class, length, class, length, ...]."""
    flat = classes.reshape(-1).astype(np.int64)
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    return np.stack([flat[starts], np.diff(starts, append=len(flat))], 1).reshape(-1).tolist()
