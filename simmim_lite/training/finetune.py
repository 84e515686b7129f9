"""Classification as a task: the pretrained encoder under a new head (docs/facts.md, 4)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.batches import Batches, Order, Skipped, StepLoader, first_readable, normalise, seeded
from ..data.manifests import subset
from ..data.sources import Data, Split
from ..errors import UserError, first_line
from ..model.masking import stream
from ..model.sizes import SIZES
from ..model.swin import SwinV2
from .parallel import Team
from .pretrain import TRANSFER_DROP_PATH, build_encoder, drop_path_noise
from .probes import input_statistics, top1
from .train import Failed, layer_groups
from .tuning import FineTune

_HEAD, _MIX = 6, 12  # streams of random numbers: the head, mixes


class Classifier(nn.Module):
    """An encoder, the mean over its final map, and a linear head: images (B, 3, H, W) -> logits (B, classes)."""

    def __init__(self, encoder: SwinV2, classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise (B, blocks, 2) in (0, 1): see `SwinV2`."""
        return self.head(self.encode(images, noise).mean((2, 3)))

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The final map (B, C, h, w)."""
        return self.encoder(images, None, noise)


def build_classifier(spec: FineTune, classes: int, weights: dict[str, Tensor] | None = None) -> Classifier:
    """The network at step 0; weights as `build_encoder` takes them."""
    # the head has a generator of its own: it starts the same whatever the encoder starts from
    generator = torch.Generator().manual_seed(int(stream(spec.seed, _HEAD)[0]))
    return Classifier(build_encoder(spec, weights), classes, generator)


class Classification:
    """Fine-tuning for classification as a task (kind `finetune`; see `transfer.work`). data: at the spec's size, or as
    `open_pictures` has it for a full-size spec; weights: as `build_encoder` takes them."""

    kind = "finetune"

    def __init__(self, spec: FineTune, data: Data, weights: dict[str, Tensor] | None, team: Team) -> None:
        self.spec, self.team, self.mixup = spec, team, None
        if spec.mixup or spec.cutmix:
            from timm.data import Mixup

            how = {"mixup_alpha": spec.mixup, "cutmix_alpha": spec.cutmix, "label_smoothing": spec.label_smoothing}
            self.mixup = Mixup(num_classes=data.num_classes, **how)
        self.input = (Files if spec.full_size else Arrays)(spec, data, team)
        self.unique = len(self.input.chosen)
        self.model = build_classifier(spec, data.num_classes, weights).to(team.device)
        self.flops = 6e9 * SIZES[spec.model].gmac(spec.image_size, spec.window_size)

    def groups(self) -> list[dict]:
        """AdamW's groups, with layer decay."""
        return layer_groups(self.model, self.model.encoder.depths, self.spec.layer_decay, self.spec.weight_decay)

    def batch(self, now: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S), labels (B,) or, where the spec mixes, targets (B, classes), and drop path's numbers."""
        images, target = self.input.batch(now)
        if self.mixup is not None:
            with seeded(self.spec.seed, now, _MIX):  # one mix a step, of image j of a share with its mirror image
                images, target = self.mixup(images, target)
        noise = drop_path_noise(self.spec, now, self.model.encoder.depths, self.team, TRANSFER_DROP_PATH)
        return images, target, noise

    def loss(self, model: nn.Module, images: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Cross-entropy; mixed targets are smoothed already."""
        logits = model(images, noise).float()
        if self.mixup is None:
            return F.cross_entropy(logits, target, label_smoothing=self.spec.label_smoothing)
        return -(target * logits.log_softmax(-1)).sum(-1).mean()

    def evaluate(self) -> dict:
        """{"final": top-1 with its interval} on the first test images (all of them for None); `skipped` names pictures
        that could not be read, if any. Each process tests its part."""
        team, device, half = self.team, self.team.device, self.spec.precision == "bf16"
        labels = self.input.test_labels
        rows = range(len(labels) * team.rank // team.size, len(labels) * (team.rank + 1) // team.size)
        finite, guesses, good = True, [], []
        self.model.eval()
        with torch.inference_mode():
            for images, readable in self.input.tests(rows):
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    final = self.model.encode(images.to(device))
                logits = self.model.head(final.float().mean((2, 3)))
                finite = finite and bool(logits.isfinite().all())
                guesses += logits.argmax(1).tolist()
                good += readable
        self.model.train()
        finites, guesses, good, skipped = zip(*team.gather((finite, guesses, good, self.input.skipped)), strict=True)
        if not all(finites):
            raise Failed(f"the trained network's outputs were not finite; lower lr ({self.spec.lr:g})")
        good = np.array(sum(good, []), bool)
        if not good.any():
            raise Failed(f"none of the {len(labels)} test images of {self.spec.data} can be read")
        score = top1(np.array(sum(guesses, []))[good], labels[good], self.unique)
        final = {"top1": score["score"], "low": score["low"], "high": score["high"], "n_test": score["n_test"]}
        left_out = sorted({item for part in skipped for item in part.items()})
        return {"final": final} | ({"skipped": [list(item) for item in left_out]} if left_out else {})


class Arrays:
    """Labelled images of one size in memory: scenes and small data sets at laptop size."""

    def __init__(self, spec: FineTune, data: Data, team: Team) -> None:
        self.spec, self.team, self.train, test = spec, team, self.labelled(spec, data), data.test
        if self.train is None or test is None or self.train.labels is None or test.labels is None:
            raise UserError(f"data '{spec.data}' has no labels to fine-tune on: use a source with classes")
        if (spec.labels or 0) > len(self.train):
            known = f"{spec.data} has {len(self.train)} labelled images; ask for 1 to {len(self.train)}"
            raise UserError(f"labels {spec.labels}: {known}")
        self.test, self.chosen = test, subset(self.train, spec.labels, spec.seed)
        self.test_labels = np.asarray(test.labels[: spec.test_images])
        self.statistics, self.skipped = input_statistics(data, spec.statistics), Skipped()
        self.begin(team.share(spec.batch_size))

    def labelled(self, spec: FineTune, data: Data) -> Split | None:
        """The split to train on; of scenes the pool for probes is the smaller one, and no test image is in either."""
        few = data.probe_train is not None and len(data.probe_train) < min(spec.labels or 0, len(data.train))
        return data.train if few and data.train.labels is not None else data.probe_train

    def begin(self, share: slice) -> None:
        spec, (mean, std) = self.spec, self.statistics
        options = {name: getattr(spec, name) for name in ("seed", "batch_size", "image_size", "augment")}
        options |= {"mean": mean, "std": std, "device": self.team.device, "share": share}
        # one cell: nothing is hidden here, and drawing it costs least
        self.batches = Batches(self.train, self.chosen, mask_patch=spec.image_size, **options)
        self.labels = torch.from_numpy(np.asarray(self.train.labels)[self.chosen])

    def batch(self, now: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, 3, S, S) and labels int64 (B,) of this process's share of a step, on the device."""
        images, _, _ = self.batches.batch(now)
        return images, self.labels[torch.from_numpy(self.batches.positions(now)[1])].to(images.device)

    def tests(self, rows: range) -> Iterator[tuple[Tensor, list[bool]]]:
        """Test images of a range, float32 (B, 3, S, S), and which could be read."""
        for start in range(rows.start, rows.stop, 256):
            images = self.test.images[start : min(start + 256, rows.stop)]
            yield normalise(images, *self.statistics, self.team.device), [True] * len(images)


class Files(Arrays):
    """Pictures of any size, decoded and augmented by worker processes, step by step: data sets at full size. One that
    cannot be read is named on stderr and in the record (`skipped`): in training the next one of the draw stands in for
    it, in testing it is left out of the count."""

    def labelled(self, spec: FineTune, data: Data) -> Split | None:
        return data.train

    def begin(self, share: slice) -> None:
        load = _Pictures(self.train, self.chosen, train_transform(self.spec, *self.statistics))
        order = Order(self.train.ids[self.chosen], self.spec.seed, self.spec.batch_size)
        workers = self.team.decoders()
        self.loader = StepLoader(load, order, share, self.spec.steps, workers=workers, collate=_collate)

    def batch(self, now: int) -> tuple[Tensor, Tensor]:
        images, labels, problems = self.loader.batch(now)
        self.skipped.note(problems)
        device = self.team.device
        return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def tests(self, rows: range) -> Iterator[tuple[Tensor, list[bool]]]:
        from timm.data import create_transform

        mean, std = self.statistics  # shorter side to S / test_crop pixels, then a centre crop
        how = {"interpolation": self.spec.interpolation, "mean": mean, "std": std, "crop_pct": self.spec.test_crop}
        test = _Tests(self.test, np.array(rows), create_transform(self.spec.image_size, **how), self.spec.image_size)
        for images, readable, problems in DataLoader(test, 128, num_workers=self.team.decoders(), collate_fn=_collate):
            self.skipped.note(problems)
            yield images, readable.bool().tolist()


class _Pictures:
    """place -> (image, label, pictures that could not be read)."""

    def __init__(self, split: Split, chosen: np.ndarray, transform: Callable) -> None:
        self.split, self.chosen, self.transform = split, chosen, transform

    def __call__(self, place: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        image, i, problems = first_readable(self.split, self.chosen, place)
        return self.transform(image), int(self.split.labels[i]), problems


class _Tests(_Pictures):
    """(image, 1, []) of each chosen picture; (zeros, 0, problem) of one that cannot be read."""

    def __init__(self, split: Split, chosen: np.ndarray, transform: Callable, size: int) -> None:
        super().__init__(split, chosen, transform)
        self.size = size

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, k: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        i = int(self.chosen[k])
        try:
            return self.transform(self.split.picture(i)), 1, []
        except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
            return torch.zeros(3, self.size, self.size), 0, [(self.split.title(i), first_line(error))]


def _collate(samples: list[tuple]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    images, labels, problems = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), sum(problems, [])


def train_transform(spec: FineTune, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """RGB picture of any size -> float32 (3, S, S), normalised: timm's random resized crop, flip, RandAugment, colour
    jitter (which it leaves out beside RandAugment, as the released code did) and random erasing."""
    from timm.data import create_transform
    from timm.data.auto_augment import RandAugment, posterize

    how = {"color_jitter": spec.colour_jitter or None, "auto_augment": spec.rand_augment or None}
    how |= {"interpolation": spec.interpolation, "mean": mean, "std": std, "re_prob": spec.erasing, "re_count": 1}
    # what is erased is filled with noise, as the released code does
    whole = create_transform(spec.image_size, is_training=True, re_mode="pixel", **how)

    def some_bits(image: Image.Image, bits: int, **options: object) -> Image.Image:
        """timm's may ask for no bits at all: once black, and an error since Pillow 13."""
        return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)

    for op in (op for part in whole.transforms if isinstance(part, RandAugment) for op in part.ops):
        op.aug_fn = some_bits if op.aug_fn is posterize else op.aug_fn
    return whole
