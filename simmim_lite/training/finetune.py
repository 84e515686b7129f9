"""Fine-tuning: what all tasks share (`Task`), the encoder they start from, and classification (docs/facts.md, 4)."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from ..data.batches import Batches, Order, Skipped, StepLoader, first_readable, normalise, seeded
from ..data.manifests import subset
from ..data.sources import Split
from ..errors import Everywhere, UserError, first_line
from ..model.masking import stream
from ..model.sizes import PAPER, SIZES
from ..model.swin import SwinV2
from .parallel import Group
from .pretrain import drop_path_noise
from .probes import input_statistics, top1
from .tuning import SMALL_SIDE, FineTune, Transfer

#: Windows of the paper's pretraining, a stage: 12, clamped to the last stage's 6 x 6 map at 192 px (docs/facts.md, 3).
PAPER_WINDOWS = (12, 12, 12, 6)
_DROP_PATH, _HEAD, _MIX = 5, 6, 12  # streams of random numbers


def build_encoder(spec: Transfer, weights: dict[str, Tensor] | None, channels: int | None = None) -> SwinV2:
    """The encoder of a transfer at step 0, its mask token frozen: nothing is hidden. weights: a pretrained SimMIM's
    state dict where the spec has a start. channels: of a picture, by default the run's. Each stage knows the window of
    its pretraining, clamped to its map then."""
    if (weights is None) != (spec.init == "scratch"):
        needed = "no" if spec.init == "scratch" else "the run and its"
        raise UserError(f"{spec.key}: {spec.init} needs {needed} weights")
    size, windows = SIZES[spec.model], None
    if spec.run is not None:
        windows = spec.run.windows
    elif spec.weights is not None:
        windows = spec.weights_windows or usual_windows(spec.model)
    how = {"pretrained_window_sizes": windows, "channels": channels or (spec.run.channels if spec.run else 3)}
    encoder = SwinV2(size.embed_dim, size.depths, spec.window_size, size.patch_size, spec.drop_path, **how)
    encoder.reset_parameters(torch.Generator().manual_seed(spec.seed))
    if weights is not None:
        encoder.load_state_dict({n.removeprefix("encoder."): v for n, v in weights.items() if n.startswith("encoder.")})
    encoder.mask_token.requires_grad_(False)
    return encoder


def usual_windows(model: str) -> tuple[int, ...]:
    """Tokens a side of the windows of a size's stages, as it is pretrained by default."""
    return PAPER_WINDOWS if model in PAPER else (4,) * len(SIZES[model].depths)


def weights_name(path: str | Path) -> str:
    """NAME@DIGEST of a checkpoint file: what a spec holds, so that its key is about the content and not the place."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise UserError(f"cannot read the weights {path} ({error.strerror}); give a checkpoint file") from error
    return f"{Path(path).name}@{digest}"


class Task:
    """What `transfer.work` trains and tests: the `kind` of its record, its `model`, `batch(step)` of this process's
    share, `loss(model, *batch)`, and `evaluate()` (the model is in that mode), the parts of the record that hold its
    scores. images: of the split `train` that it learns from, None = all; data: opened, as `transfer.open_for` does."""

    kind, flops = "", None  # FLOPs of an image, forward and backward; None where they differ

    def __init__(self, spec: Transfer, data, group: Group, train, images: int | None) -> None:
        self.spec, self.data, self.group, self.train = spec, data, group, train
        self.chosen = subset(train, images, spec.seed)
        self.statistics = input_statistics(data, spec.statistics)
        self.depths = SIZES[spec.model].depths

    def loader(self, load: Callable, collate: Callable = default_collate) -> StepLoader:
        """Of this process's share; load: a place among the chosen images -> a sample, which may draw."""
        spec, order = self.spec, Order(self.train.ids[self.chosen], self.spec.seed, self.spec.batch_size)
        workers = 0 if spec.image_size <= SMALL_SIDE else self.group.decoders()
        return StepLoader(load, order, self.group.share(spec.batch_size), spec.steps, workers, collate)

    def noise(self, now: int) -> Tensor:
        """Drop path's numbers, as `SwinV2` takes them."""
        return drop_path_noise(self.spec, now, self.depths, self.group, _DROP_PATH)


class Classifier(nn.Module):
    """An encoder, the mean over its final map, and a linear head: images (B, 3, H, W) -> logits (B, classes)."""

    def __init__(self, encoder: SwinV2, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        # a generator of its own: the head starts the same whatever the encoder starts from
        generator = torch.Generator().manual_seed(int(stream(seed, _HEAD)[0]))
        self.head = nn.Linear(encoder.num_features, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise (B, blocks, 2) in (0, 1): see `SwinV2`."""
        return self.head(self.encoder(images, None, noise).mean((2, 3)))


class Classification(Task):
    """Fine-tuning for classification on labelled images of one size in memory: scenes and small data sets."""

    kind = "finetune"

    def __init__(self, spec: FineTune, data, weights: dict[str, Tensor] | None, group: Group) -> None:
        # of scenes the pool for probes is the smaller one, and no test image is in either
        few = data.probe_train is not None and len(data.probe_train) < min(spec.labels or 0, len(data.train))
        whole = spec.full_size or (few and data.train.labels is not None)
        train, self.test = data.train if whole else data.probe_train, data.test
        if train is None or self.test is None or train.labels is None or self.test.labels is None:
            raise UserError(f"data '{spec.data}' has no labels to fine-tune on: use a source with classes")
        super().__init__(spec, data, group, train, spec.labels)
        encoder = build_encoder(spec, weights, data.channels)
        self.model = Classifier(encoder, data.num_classes, spec.seed).to(group.device)
        size = replace(SIZES[spec.model], channels=data.channels)
        self.flops = 6e9 * size.gmac(spec.image_size, spec.window_size)
        self.mixup, self.skipped = None, Skipped()
        if spec.mixup or spec.cutmix:
            if (share := spec.batch_size // group.size) % 2:
                pairs = f"mixup and cutmix mix images in pairs, and {group.size} processes have {share} each"
                raise Everywhere(f"batch_size {spec.batch_size}: {pairs}; give a multiple of {2 * group.size}")
            from timm.data import Mixup

            how = {"mixup_alpha": spec.mixup, "cutmix_alpha": spec.cutmix, "label_smoothing": spec.label_smoothing}
            self.mixup = Mixup(num_classes=data.num_classes, **how)
        self.begin()

    def begin(self) -> None:
        spec, (mean, std) = self.spec, self.statistics
        options = {name: getattr(spec, name) for name in ("seed", "batch_size", "image_size", "augment")}
        options |= {"mean": mean, "std": std, "device": self.group.device, "share": self.group.share(spec.batch_size)}
        # one cell: nothing is hidden here, and drawing it costs least
        self.batches = Batches(self.train, self.chosen, mask_patch=spec.image_size, **options)
        self.labels = torch.from_numpy(np.asarray(self.train.labels)[self.chosen])

    def images(self, now: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, 3, S, S) and labels int64 (B,) of this process's share of a step, on the device."""
        images, _, _ = self.batches.batch(now)
        return images, self.labels[torch.from_numpy(self.batches.positions(now)[1])].to(images.device)

    def tests(self, rows: range) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Test images of a range, float32 (B, 3, S, S), and their numbers: those that can be read."""
        for some in (rows[start : start + 256] for start in range(0, len(rows), 256)):
            yield normalise(self.test.images[some.start : some.stop], *self.statistics, self.group.device), some

    def batch(self, now: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S), labels (B,) or, where the spec mixes, targets (B, classes), and drop path's numbers."""
        images, target = self.images(now)
        if self.mixup is not None:
            with seeded(self.spec.seed, now, _MIX):  # one mix a step, of image j of a share with its mirror image
                images, target = self.mixup(images, target)
        return images, target, self.noise(now)

    def loss(self, model: nn.Module, images: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Cross-entropy; mixed targets are smoothed already."""
        smoothing = self.spec.label_smoothing if self.mixup is None else 0.0
        return F.cross_entropy(model(images, noise).float(), target, label_smoothing=smoothing)

    def evaluate(self) -> dict:
        """{"final": top-1 with its interval} on the first test images (all of them for None); `skipped` names pictures
        that could not be read, if any. Each process tests its part."""
        group, spec, found = self.group, self.spec, []
        labels = np.asarray(self.test.labels[: spec.test_images])
        rows = range(len(labels) * group.rank // group.size, len(labels) * (group.rank + 1) // group.size)
        with torch.inference_mode():
            for images, some in self.tests(rows):
                with torch.autocast(group.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
                    final = self.model.encoder(images.to(group.device))
                found += zip(some, self.model.head(final.float().mean((2, 3))).argmax(1).tolist(), strict=True)
        found = np.array(sum(group.gather(found), []))
        left_out = sorted({item for part in group.gather(dict(self.skipped)) for item in part.items()})
        if not len(found):
            line = f"none of the {len(labels)} test images of {spec.data} can be read; is the disk there?"
            raise Everywhere(f"{line} Run again to go on from the last checkpoint")
        score = top1(found[:, 1], labels[found[:, 0]], len(self.chosen))
        final = {"top1": score["score"], "low": score["low"], "high": score["high"], "n_test": score["n_test"]}
        return {"final": final} | ({"skipped": [list(item) for item in left_out]} if left_out else {})


class PictureClassification(Classification):
    """The same on pictures of any size, decoded and augmented by worker processes as it goes: data sets at full size.
    One that cannot be read is named on stderr and in the record (`skipped`): in training the next one of the draw
    stands in for it, in testing it is left out of the count."""

    def begin(self) -> None:
        load = functools.partial(_sample, self.train, self.chosen, train_transform(self.spec, *self.statistics))
        self.batches = self.loader(load, _collate)

    def images(self, now: int) -> tuple[Tensor, Tensor]:
        images, labels, problems = self.batches.batch(now)
        self.skipped.note(problems)
        return tuple(x.to(self.group.device, non_blocking=True) for x in (images, labels))

    def tests(self, rows: range) -> Iterator[tuple[Tensor, Sequence[int]]]:
        from timm.data import create_transform

        mean, std = self.statistics  # shorter side to S / .875 pixels (256 of 224), then a centre crop
        how = {"interpolation": "bicubic", "mean": mean, "std": std, "crop_pct": 0.875}
        load = functools.partial(_tests, self.test, create_transform(self.spec.image_size, **how))
        for images, some, problems in DataLoader(rows, 128, num_workers=self.group.decoders(), collate_fn=load):
            self.skipped.note(problems)
            if some:
                yield torch.stack(images), some


def classification(spec: FineTune, *about: object) -> Classification:
    """The task of a spec; about: data, weights and group."""
    return (PictureClassification if spec.full_size else Classification)(spec, *about)


def _sample(split: Split, chosen: np.ndarray, transform: Callable, place: int) -> tuple[Tensor, int, list]:
    image, i, problems = first_readable(split, chosen, place)
    return transform(image), int(split.labels[i]), problems


def _collate(samples: list[tuple]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    images, labels, problems = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), sum(problems, [])


def _tests(split: Split, transform: Callable, rows: list[int]) -> tuple[list[Tensor], list[int], list[tuple[str, str]]]:
    """Test pictures that can be read, their numbers, and (name, reason) of the others."""
    images, good, problems = [], [], []
    for i in rows:
        try:
            images.append(transform(split.picture(i)))
            good.append(i)
        except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
            problems.append((split.title(i), first_line(error)))
    return images, good, problems


def train_transform(spec: FineTune, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """RGB picture of any size -> float32 (3, S, S), normalised: timm's random resized crop, flip, RandAugment, colour
    jitter (which it leaves out beside RandAugment, as the released code did) and random erasing."""
    from timm.data import create_transform
    from timm.data.auto_augment import RandAugment, posterize

    how = {"color_jitter": spec.colour_jitter or None, "auto_augment": spec.rand_augment or None}
    how |= {"interpolation": "bicubic", "mean": mean, "std": std, "re_prob": spec.erasing, "re_count": 1}
    # what is erased is filled with noise, as the released code does
    whole = create_transform(spec.image_size, is_training=True, re_mode="pixel", **how)

    def some_bits(image: Image.Image, bits: int, **_: object) -> Image.Image:
        """timm's may ask for no bits at all: once black, and an error since Pillow 13."""
        return posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)

    for op in (op for part in whole.transforms if isinstance(part, RandAugment) for op in part.ops):
        op.aug_fn = some_bits if op.aug_fn is posterize else op.aug_fn
    return whole
