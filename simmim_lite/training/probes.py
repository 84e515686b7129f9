"""What frozen features are good for: a ridge linear probe, k nearest neighbours, and a linear segmentation probe. Equal
features, equal scores."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import normalise
from ..data.manifests import subset
from ..data.sources import Data
from ..errors import UserError
from ..model.simmim import SimMIM
from .run import Run

PROBE_SEED = 20220609  # draws the labelled images, the same ones for every run whatever its seed
PENALTIES = tuple(10.0**e for e in range(-5, 2))  # ridge penalties per training row
NEIGHBOURS, TEMPERATURE = 20, 0.07  # the usual protocol (Wu et al. 2018, DINO)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ROWS = 8192  # rows of the ridge in float64 at a time: memory stays flat, caches stay warm


@torch.inference_mode()
def features(
    model: nn.Module, images: np.ndarray, mean: tuple, std: tuple, *, batch=256, precision="fp32", maps=False
) -> tuple[Tensor, Tensor | None]:
    """Features of whole images uint8 (n, 3, H, W), fp32, on the CPU: the final map's mean (n, C), and if asked for the
    maps (n, C, h, w). mean and std in 0..1 units. Nothing is hidden; evaluation mode, which is left as it was."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    pooled, kept = [], []
    for start in range(0, len(images), batch):
        x = normalise(images[start : start + batch], mean, std, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            final = model.encode(x).float()
        pooled.append(final.mean((2, 3)).cpu())
        kept += [final.cpu()] if maps else []
    model.train(was_training)
    return torch.cat(pooled), torch.cat(kept) if maps else None


def input_statistics(data: Data, statistics: str) -> tuple[tuple, tuple]:
    """Mean and standard deviation of the input, in 0..1 units: the `dataset`'s own, or `imagenet`'s."""
    if statistics == "dataset" and data.mean is None:
        raise UserError(f"statistics dataset: {data.spec} is not decoded before it is used; give imagenet")
    return (data.mean, data.std) if statistics == "dataset" else (IMAGENET_MEAN, IMAGENET_STD)


def probe_all(model: SimMIM, data: Data, run: Run) -> dict:
    """The scores that a run's data allow, {"linear", "knn", "segment"}, see `score`: trained on `run.probe_labels`
    images of `data.probe_train`, the same ones for every run, tested on the first `run.probe_test` of `data.test`."""
    train, test = data.probe_train, data.test
    there = bool(run.probe_labels) and train is not None and test is not None
    labelled = there and train.labels is not None and test.labels is not None
    masked = there and train.masks is not None and test.masks is not None
    if not labelled and not masked:
        return {}
    chosen = np.sort(subset(train, min(run.probe_labels, len(train)), PROBE_SEED))
    n_test = min(run.probe_test, len(test))
    how = {"precision": run.precision, "maps": masked}
    statistics = input_statistics(data, run.statistics)
    x_train, maps_train = features(model, train.images[chosen], *statistics, **how)
    x_test, maps_test = features(model, test.images[:n_test], *statistics, **how)
    scores = {}
    if labelled:
        sets = x_train, np.asarray(train.labels[chosen]), x_test, np.asarray(test.labels[:n_test])
        scores |= {"linear": ridge_probe(*sets), "knn": knn_probe(*sets)}
    if masked:
        scores["segment"] = segmentation_probe(maps_train, train.masks[chosen], maps_test, test.masks[:n_test])
    return scores


def fit_ridge(x: Tensor, targets: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Ridge from features (n, C) to +-1 for boolean targets (n, K): features -> float64 outputs (n, K), and the mean
    squared leave-one-out error of each of PENALTIES, by which one is chosen. Features are standardised, constant ones
    left at 0; the intercept is not penalised. With eigenvectors V and eigenvalues s of the Gram matrix, the residual of
    row i when left out is its residual over 1 - h_i, h_i = 1/n + sum_j (x_i V)_j^2 / (s_j + n * penalty)."""
    n = len(x)
    mean = x.mean(0, dtype=torch.float64)
    chunks = [slice(start, start + _ROWS) for start in range(0, n, _ROWS)]
    variance = sum((x[c].double() - mean).square().sum(0) for c in chunks) / n
    scale = variance.sqrt()
    # a feature that moves by rounding alone is constant
    scale = torch.where(scale > 1e-6 * (mean.abs() + scale.max()), scale, torch.inf)
    centre = 2 * targets.mean(0, dtype=torch.float64) - 1

    def rows(c: slice) -> tuple[Tensor, Tensor]:
        return (x[c].double() - mean) / scale, 2.0 * targets[c] - 1 - centre

    gram = x.new_zeros((x.shape[1], x.shape[1]), dtype=torch.float64)
    cross = x.new_zeros((x.shape[1], targets.shape[1]), dtype=torch.float64)
    for c in chunks:
        z, y = rows(c)
        gram.addmm_(z.T, z)
        cross.addmm_(z.T, y)
    values, vectors = torch.linalg.eigh(gram)
    cross = vectors.T @ cross
    shrink = 1 / (values.clamp_min(0) + n * torch.tensor(PENALTIES, dtype=torch.float64)[:, None])  # (penalties, C)
    press = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for c in chunks:
        z, y = rows(c)
        z = z @ vectors
        left = 1 - 1 / n - z.square() @ shrink.T
        for i, factor in enumerate(shrink):
            press[i] += ((y - z @ (factor[:, None] * cross)).square().sum(1) / left[:, i].square()).sum()
    best = int(press.argmin())
    weight = vectors @ (shrink[best][:, None] * cross)
    return lambda x: ((x.double() - mean) / scale) @ weight + centre, press / (n * targets.shape[1])


def ridge_probe(x_train: Tensor, y_train: np.ndarray, x_test: Tensor, y_test: np.ndarray) -> dict:
    """Linear probe: one-vs-all ridge on pooled features (n, C), integer labels (n,) -> top-1, 95 % interval."""
    ridge, _ = fit_ridge(x_train, F.one_hot(torch.as_tensor(y_train)).bool())
    return top1(ridge(x_test).argmax(1).numpy(), y_test, len(y_train))


def knn_probe(x_train: Tensor, y_train: np.ndarray, x_test: Tensor, y_test: np.ndarray) -> dict:
    """The NEIGHBOURS training images nearest by cosine vote with weight exp(cosine / TEMPERATURE): as `ridge_probe`."""
    labels, bank, guess = torch.as_tensor(y_train), F.normalize(x_train, dim=1), []
    for x in F.normalize(x_test, dim=1).split(1024):
        near, index = (x @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
        votes = x.new_zeros(len(x), int(labels.max()) + 1)
        guess.append(votes.scatter_add_(1, labels[index], ((near - 1) / TEMPERATURE).exp()).argmax(1))
    return top1(torch.cat(guess).numpy(), y_test, len(y_train))


def segmentation_probe(maps_train: Tensor, masks_train: np.ndarray, maps_test: Tensor, masks_test: np.ndarray) -> dict:
    """One linear decoder for all tokens, from maps (n, C, h, w) to the pixels each token stands for, masks bool
    (n, H, W): a ridge to +-1, foreground above 0. Mean IoU over the test images with its 95 % interval."""
    n, _, h, w = maps_test.shape
    height, width = masks_test.shape[1:]
    if height % h or width % w:
        raise UserError(f"masks of {height} x {width} px do not divide into the {h} x {w} tokens of the final map")

    def tokens(maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])

    def pixels(masks: np.ndarray) -> Tensor:
        cells = torch.from_numpy(np.array(masks)).view(-1, h, height // h, w, width // w)
        return cells.transpose(2, 3).reshape(len(masks) * h * w, -1)

    ridge, _ = fit_ridge(tokens(maps_train), pixels(masks_train))
    guess, truth = ridge(tokens(maps_test)) > 0, pixels(masks_test)
    both, union = ((x.view(n, -1).sum(1)) for x in (guess & truth, guess | truth))
    iou = torch.where(union > 0, both / union.clamp_min(1), 1.0).double()  # nothing there and nothing found is right
    mean, half = float(iou.mean()), 1.96 * float(iou.std()) / math.sqrt(n) if n > 1 else 1.0
    return score(mean, (max(0.0, mean - half), min(1.0, mean + half)), "IoU", len(maps_train), n)


def top1(guess: np.ndarray, labels: np.ndarray, n_train: int) -> dict:
    """Share of right guesses (n,) with its 95 % Wilson interval, as records hold it."""
    from scipy.stats import binomtest

    n, correct = len(labels), int((np.asarray(guess) == np.asarray(labels)).sum())
    return score(correct / n, binomtest(correct, n).proportion_ci(method="wilson"), "top-1", n_train, n)


def bootstrap(value: float, resampled: np.ndarray, *about: object) -> dict:
    """A score as records hold it, with 95 % percentiles of what it is on resamples of the test images."""
    return score(value, np.quantile(resampled, (0.025, 0.975)).tolist(), *about)


def score(value: float, ends: Sequence[float], metric: str, n_train: int, n_test: int) -> dict:
    """A score as records hold it: rounding, or a class that few images hold, must not leave it outside its interval."""
    low, high = min(ends[0], value), max(ends[1], value)
    return {"score": value, "low": low, "high": high, "metric": metric, "n_train": n_train, "n_test": n_test}
