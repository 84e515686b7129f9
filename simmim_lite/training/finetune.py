"""Fine-tuning: the pretrained encoder under a new head. Where a transfer starts, and classification as a task.

The supervised baseline is the same from a random initialisation, without layer decay (docs/facts.md, 4).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.batches import Batches, Order, StepLoader, seeded
from ..data.manifests import subset
from ..data.sources import Data, LeftOut, Split, first_readable
from ..errors import UserError, first_line
from ..model.masking import stream
from ..model.sizes import PAPER, SIZES
from ..model.swin import SwinV2
from .optim import layer_groups
from .parallel import Team
from .pretrain import drop_path_noise
from .probes import features, input_statistics, top1
from .tuning import FineTune, Transfer

#: Windows of the paper's pretraining, a stage: 12, clamped to the last stage's 6 x 6 map at 192 px (docs/facts.md, 3).
PAPER_WINDOWS = (12, 12, 12, 6)
TRANSFER_DROP_PATH = 5  # streams of random numbers: drop path in transfers, the head, mixes
_HEAD, _MIX = 6, 12
_TEST_BATCH = 128


def weights_name(path: str | Path) -> str:
    """NAME@DIGEST of a checkpoint file: what a spec holds, so that its key is about the content and not the place."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise UserError(f"cannot read the weights {path} ({error.strerror}); give a checkpoint file") from error
    return f"{Path(path).name}@{digest}"


def pretrained_windows(spec: Transfer) -> tuple[int, ...] | None:
    """The window that each stage was pretrained at; None without pretraining.

    Windows are clamped to each stage's map, so the last stage may have seen a smaller one (12, 12, 12, 6).
    """
    if spec.run is not None:
        return tuple(min(spec.run.window_size, g) for g in SIZES[spec.model].stage_grids(spec.run.image_size))
    if spec.weights is not None:
        return PAPER_WINDOWS if spec.model in PAPER else (4, 4)
    return None


def build_encoder(spec: Transfer, weights: dict[str, Tensor] | None) -> SwinV2:
    """The encoder of a transfer at step 0, its mask token frozen: nothing is hidden in a transfer.

    weights: a pretrained SimMIM's state dict, needed just when the spec starts from a run or a file.
    """
    wanted = spec.run is not None or spec.weights is not None
    if (weights is None) == wanted:
        raise UserError(f"{spec.key}: {spec.init} needs {'the run and its' if wanted else 'no'} weights")
    size = SIZES[spec.model]
    windows = spec.window_size, size.patch_size, spec.drop_path, pretrained_windows(spec)
    encoder = SwinV2(size.embed_dim, size.depths, *windows)
    encoder.reset_parameters(torch.Generator().manual_seed(spec.seed))
    if weights is not None:
        prefix = "encoder."
        encoder.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    encoder.mask_token.requires_grad_(False)
    return encoder


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
    """Fine-tuning for classification as a task (kind `finetune`).

    data: `Data` at the spec's size, or `Pictures` for a full-size spec. weights: the pretrained SimMIM's state dict for
    a spec with a start, else None. `UserError` where the source has no labels, or fewer images than asked for.
    """

    kind = "finetune"

    def __init__(self, spec: FineTune, data: Data, weights: dict[str, Tensor] | None, team: Team) -> None:
        mixes = bool(spec.mixup or spec.cutmix)
        self.spec, self.team = spec, team
        self.share = team.pairs(spec.batch_size) if mixes else team.share(spec.batch_size)
        self.input = (Files if spec.full_size else Arrays)(spec, data, self.share, team)
        self.unique = self.input.unique
        self.mixing = Mixing(spec, data.num_classes) if mixes else None
        self.model = build_classifier(spec, data.num_classes, weights).to(team.device)
        self.flops = 6e9 * SIZES[spec.model].gmac(spec.image_size, spec.window_size)

    def groups(self) -> list[dict]:
        """AdamW's groups, with layer decay."""
        return layer_groups(self.model, self.model.encoder.depths, self.spec.layer_decay, self.spec.weight_decay)

    def batch(self, now: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S), labels (B,) or, where the spec mixes, targets (B, classes), and drop path's numbers."""
        images, target = self.input.batch(now)
        if self.mixing is not None:
            images, target = self.mixing(images, target, now)
        depths = self.model.encoder.depths
        return images, target, drop_path_noise(self.spec, now, depths, self.team, self.share, TRANSFER_DROP_PATH)

    def loss(self, model: nn.Module, images: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Cross-entropy; mixed targets are smoothed already."""
        logits = model(images, noise).float()
        if self.mixing is None:
            return F.cross_entropy(logits, target, label_smoothing=self.spec.label_smoothing)
        return -(target * logits.log_softmax(-1)).sum(-1).mean()

    def evaluate(self) -> tuple[dict, str | None]:
        """{"final": top-1 with its interval} on the first test images (all of them for None), and why there is none, or
        None. Each process tests its part. `skipped` names pictures that could not be read, if any."""
        n, team = self.input.n_test, self.team
        rows = slice(n * team.rank // team.size, n * (team.rank + 1) // team.size)
        pooled, readable = self.input.pooled(self.model, rows)
        with torch.no_grad():
            logits = self.model.head(pooled.to(team.device)).cpu()
        finite = bool(logits.isfinite().all())
        parts = team.gather((finite, logits.argmax(1).numpy(), readable, self.input.skipped))
        finites, guesses, good, skipped = zip(*parts, strict=True)
        if not all(finites):
            return {}, f"the trained network's outputs were not finite; lower lr ({self.spec.lr:g})"
        good = np.concatenate(good)
        if not good.any():
            return {}, f"none of the {n} test images of {self.spec.data} can be read"
        score = top1(np.concatenate(guesses)[good], self.input.test_labels[good], self.unique)
        final = {"top1": score["score"], "low": score["low"], "high": score["high"], "n_test": score["n_test"]}
        left_out = sorted({item for part in skipped for item in part.items()})
        return {"final": final} | ({"skipped": [list(item) for item in left_out]} if left_out else {}), None


class Labelled:
    """The labelled splits that a classifier is fed from."""

    def __init__(self, spec: FineTune, data: Data, train: Split | None, team: Team) -> None:
        test = data.test
        if train is None or test is None or train.labels is None or test.labels is None:
            raise UserError(f"data '{spec.data}' has no labels to fine-tune on: use a source with classes")
        if (spec.labels or 0) > len(train):
            known = f"{spec.data} has {len(train)} labelled images; ask for 1 to {len(train)}"
            raise UserError(f"labels {spec.labels}: {known}")
        self.spec, self.team, self.train, self.test = spec, team, train, test
        self.chosen = subset(train, spec.labels, spec.seed)
        self.unique, self.n_test = len(self.chosen), min(len(test), spec.test_images or len(test))
        self.test_labels = np.asarray(test.labels[: self.n_test])
        self.mean, self.std = input_statistics(data, spec.statistics)
        self.skipped = LeftOut()


class Arrays(Labelled):
    """Images of one size in memory: scenes and small data sets at laptop size."""

    def __init__(self, spec: FineTune, data: Data, share: slice | np.ndarray, team: Team) -> None:
        train = data.probe_train
        enough = train is None or train.labels is None or (spec.labels or 0) <= len(train)
        if not enough and data.train.labels is not None and len(data.train) > len(train):
            train = data.train  # of scenes the pool for probes is the smaller one; no test image is in either
        super().__init__(spec, data, train, team)
        options = {name: getattr(spec, name) for name in ("seed", "batch_size", "image_size", "augment")}
        options |= {"mean": self.mean, "std": self.std, "device": team.device, "share": share}
        # one cell: nothing is hidden here, and drawing it costs least
        self.batches = Batches(train, self.chosen, mask_patch=spec.image_size, **options)
        self.labels = torch.from_numpy(np.asarray(train.labels)[self.chosen])

    def batch(self, now: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, 3, S, S) and labels int64 (B,) of this process's share of a step, on the device."""
        images, _, _ = self.batches.batch(now)
        return images, self.labels[torch.from_numpy(self.batches.positions(now)[1])].to(images.device)

    def pooled(self, model: Classifier, rows: slice) -> tuple[Tensor, np.ndarray]:
        """Pooled features (n, C) of a range of the test images, on the CPU, and which could be read: bool (n,)."""
        if rows.start == rows.stop:
            return torch.empty(0, model.encoder.num_features), np.empty(0, bool)
        pooled, _ = features(model, self.test.images[rows], self.mean, self.std, precision=self.spec.precision)
        return pooled, np.ones(len(pooled), bool)


class Files(Labelled):
    """Pictures of any size, decoded and augmented by worker processes, step by step: data sets at full size.

    A picture that cannot be read ends nothing: in training the next one of the draw stands in for it, in testing it is
    left out of the count. Each is named once on stderr, and in the record (`skipped`).
    """

    def __init__(self, spec: FineTune, data: Data, share: slice | np.ndarray, team: Team) -> None:
        super().__init__(spec, data, data.train, team)
        self.loader = StepLoader(
            _Training(self.train, self.chosen, train_transform(spec, self.mean, self.std)),
            Order(self.train.ids[self.chosen], spec.seed, spec.batch_size),
            share,
            spec.steps,
            workers=team.decoders(),
            collate=_collate,
        )

    def batch(self, now: int) -> tuple[Tensor, Tensor]:
        """As `Arrays.batch`; `UserError` where picture after picture cannot be read."""
        images, labels, problems = self.loader.batch(now)
        self.skipped.note(problems)
        device = self.team.device
        return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def pooled(self, model: Classifier, rows: slice) -> tuple[Tensor, np.ndarray]:
        """As `Arrays.pooled`."""
        test = _Test(self.test, rows, test_transform(self.spec, self.mean, self.std), self.spec.image_size)
        workers, device = self.team.decoders(), self.team.device
        loader = DataLoader(test, batch_size=_TEST_BATCH, num_workers=workers, collate_fn=_collate)
        pooled, good = [torch.empty(0, model.encoder.num_features)], [np.empty(0, bool)]
        model.eval()
        for images, readable, problems in loader:
            self.skipped.note(problems)
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, self.spec.precision == "bf16"):
                final = model.encode(images.to(device))
            pooled.append(final.float().mean((2, 3)).cpu())
            good.append(readable.numpy().astype(bool))
        return torch.cat(pooled), np.concatenate(good)


@dataclass
class _Training:
    """place -> (image, label, pictures that could not be read)."""

    split: Split
    chosen: np.ndarray
    transform: Callable

    def __call__(self, place: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        image, i, problems = first_readable(self.split, self.chosen, place)
        return self.transform(image), int(self.split.labels[i]), problems


class _Test(Dataset):
    """(image, 1, []) of each picture of a range of a split; (zeros, 0, problem) of one that cannot be read."""

    def __init__(self, split: Split, rows: slice, transform: Callable, size: int) -> None:
        self.split, self.rows, self.transform, self.size = split, range(rows.start, rows.stop), transform, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        try:
            image = self.split.picture(self.rows[k])
        except Exception as error:  # decoders raise errors of many kinds, and all mean the same here
            return torch.zeros(3, self.size, self.size), 0, [(self.split.title(self.rows[k]), first_line(error))]
        return self.transform(image), 1, []


def _collate(samples: list[tuple]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    images, labels, problems = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), [problem for part in problems for problem in part]


def train_transform(spec: FineTune, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """RGB picture of any size -> float32 (3, S, S), normalised; draws from Python's, numpy's and torch's generators.

    timm's own: random resized crop, flip, RandAugment, colour jitter, random erasing. timm leaves colour jitter out
    where there is RandAugment, and so did the released code: the recipe's 0.4 changes nothing.
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

    def some_bits(image: Image.Image, bits: int, **options: object) -> Image.Image:
        """timm's may ask for no bits at all: once black, and an error since Pillow 13."""
        return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)

    for op in (op for part in whole.transforms if isinstance(part, RandAugment) for op in part.ops):
        op.aug_fn = some_bits if op.aug_fn is posterize else op.aug_fn
    return whole


def test_transform(spec: FineTune, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """RGB picture of any size -> float32 (3, S, S), normalised: shorter side to S / test_crop pixels, centre crop."""
    from timm.data import create_transform

    how = {"interpolation": spec.interpolation, "mean": mean, "std": std, "crop_pct": spec.test_crop}
    return create_transform(spec.image_size, **how)


class Mixing:
    """Mixup or cutmix of a whole batch, in timm's batch mode: image j with image B - 1 - j, one mix a step.

    The mix is a function of (seed, step). Each process holds both images of its pairs (`Team.pairs`), so that the mix
    is that of the global batch, whatever the number of processes.
    """

    def __init__(self, spec: FineTune, classes: int) -> None:
        from timm.data import Mixup

        how = {"mixup_alpha": spec.mixup, "cutmix_alpha": spec.cutmix, "label_smoothing": spec.label_smoothing}
        self.seed, self.mixup = spec.seed, Mixup(num_classes=classes, **how)

    def __call__(self, images: Tensor, labels: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), changed in place, and labels (B,) -> images, targets (B, classes), smoothed."""
        with seeded(self.seed, now, _MIX):
            return self.mixup(images, labels)
