"""What a classifier is fed: images decoded once at the input's size, or pictures decoded anew at their own size."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.batches import Batches
from ..data.loading import Order, StepLoader
from ..data.manifests import subset
from ..data.sources import Data, LeftOut, Shelf, Split, first_readable
from ..errors import UserError, first_line
from . import augment
from .classifier import Classifier
from .distributed import Team
from .probes import features, input_statistics
from .tuning import FineTune

_TEST_BATCH = 128


class Arrays:
    """Images of one size in memory: scenes and small data sets at laptop size."""

    def __init__(self, spec: FineTune, data: Data, share: slice | np.ndarray, device: torch.device) -> None:
        train, test = _labelled(spec, data.probe_train, data.test)
        if (spec.labels or 0) > len(train) and data.train.labels is not None and len(data.train) > len(train):
            train = data.train  # of scenes the pool for probes is the smaller one; no test image is in either
        chosen = _chosen(spec, train)
        self.spec, self.test, self.n_test, self.unique = spec, test, _tested(spec, len(test)), len(chosen)
        self.test_labels = np.asarray(test.labels[: self.n_test])
        self.mean, self.std = input_statistics(data, spec.statistics)
        self.batches = Batches(
            train,
            chosen,
            seed=spec.seed,
            batch_size=spec.batch_size,
            image_size=spec.image_size,
            mean=self.mean,
            std=self.std,
            augment=spec.augment,
            mask_patch=spec.image_size,  # one cell: nothing is hidden here, and drawing it costs least
            device=device,
            share=share,
        )
        self.labels = torch.from_numpy(np.asarray(train.labels)[chosen])
        self.skipped: dict[str, str] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, 3, S, S) and labels int64 (B,) of this process's share of a step, on the device."""
        images, _, _ = self.batches.batch(step)
        return images, self.labels[torch.from_numpy(self.batches.positions(step)[1])].to(images.device)

    def pooled(self, model: Classifier, rows: slice) -> tuple[Tensor, np.ndarray]:
        """Pooled features (n, C) of a range of the test images, on the CPU, and which could be read: bool (n,)."""
        if rows.start == rows.stop:
            return torch.empty(0, model.encoder.num_features), np.empty(0, bool)
        pooled, _ = features(model, self.test.images[rows], self.mean, self.std, precision=self.spec.precision)
        return pooled, np.ones(len(pooled), bool)


class Files:
    """Pictures of any size, decoded and augmented by worker processes, step by step: data sets at full size.

    A picture that cannot be read ends nothing: in training the next one of the draw stands in for it, in testing it is
    left out of the count. Each is named once on stderr, and in the record (`skipped`).
    """

    def __init__(self, spec: FineTune, data: Data, share: slice | np.ndarray, team: Team) -> None:
        train, test = _labelled(spec, data.train, data.test)
        chosen = _chosen(spec, train)
        self.mean, self.std = input_statistics(data, spec.statistics)
        self.spec, self.team, self.test = spec, team, test
        self.n_test, self.unique = _tested(spec, len(test)), len(chosen)
        self.test_labels = np.asarray(test.labels[: self.n_test])
        self.loader = StepLoader(
            _Training(train, chosen, augment.train_transform(spec, self.mean, self.std)),
            Order(train.ids[chosen], spec.seed, spec.batch_size),
            share,
            spec.steps,
            workers=team.decoders(),
            collate=_collate,
        )
        self.skipped = LeftOut()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """As `Arrays.batch`; `UserError` where picture after picture cannot be read."""
        images, labels, problems = self.loader.batch(step)
        self.skipped.note(problems)
        device = self.team.device
        return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def pooled(self, model: Classifier, rows: slice) -> tuple[Tensor, np.ndarray]:
        """As `Arrays.pooled`."""
        transform = augment.test_transform(self.spec, self.mean, self.std)
        loader = DataLoader(
            _Test(self.test, rows, transform, self.spec.image_size),
            batch_size=_TEST_BATCH,
            num_workers=self.team.decoders(),
            collate_fn=_collate,
        )
        device, pooled, good = self.team.device, [], []
        model.eval()
        for images, readable, problems in loader:
            self.skipped.note(problems)
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, self.spec.precision == "bf16"):
                final = model.encode(images.to(device))
            pooled.append(final.float().mean((2, 3)).cpu())
            good.append(readable.numpy().astype(bool))
        if not pooled:
            return torch.empty(0, model.encoder.num_features), np.empty(0, bool)
        return torch.cat(pooled), np.concatenate(good)


class _Training:
    """place -> (image, label, pictures that could not be read)."""

    def __init__(self, shelf: Shelf, chosen: np.ndarray, transform: Callable) -> None:
        self.shelf, self.chosen, self.transform = shelf, chosen, transform

    def __call__(self, place: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        image, i, problems = first_readable(self.shelf, self.chosen, place)
        return self.transform(image), int(self.shelf.labels[i]), problems


class _Test(Dataset):
    """(image, 1, []) of each picture of a range of a split; (zeros, 0, problem) of one that cannot be read."""

    def __init__(self, shelf: Shelf, rows: slice, transform: Callable, size: int) -> None:
        self.shelf, self.rows, self.transform, self.size = shelf, range(rows.start, rows.stop), transform, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> tuple[Tensor, int, list[tuple[str, str]]]:
        image, reason = _read(self.shelf, self.rows[k])
        if image is None:
            return torch.zeros(3, self.size, self.size), 0, [(self.shelf.title(self.rows[k]), reason)]
        return self.transform(image), 1, []


def _read(shelf: Shelf, i: int) -> tuple:
    """A picture and None, or None and the reason: decoders raise errors of many kinds, and all mean the same here."""
    try:
        return shelf.picture(i), None
    except Exception as error:
        return None, first_line(error)


def _collate(samples: list[tuple]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    images, labels, problems = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), [problem for some in problems for problem in some]


def _labelled(spec: FineTune, train: Split | Shelf | None, test: Split | Shelf | None) -> tuple:
    if train is None or test is None or train.labels is None or test.labels is None:
        raise UserError(f"data '{spec.data}' has no labels to fine-tune on: use a source with classes")
    return train, test


def _chosen(spec: FineTune, train: Split | Shelf) -> np.ndarray:
    if spec.labels is not None and spec.labels > len(train):
        raise UserError(
            f"labels {spec.labels}: {spec.data} has {len(train)} labelled images; ask for 1 to {len(train)}"
        )
    return subset(train, spec.labels, spec.seed)


def _tested(spec: FineTune, there: int) -> int:
    return there if spec.test_images is None else min(spec.test_images, there)
