"""Fine-tuning for classification: the pretrained encoder and a linear head, with layer decay (FACTS 4).

The supervised baseline is the same function from a random initialisation, without layer decay.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import Batches
from ..data.manifests import subset
from ..data.sources import Data
from ..errors import UserError
from ..model.masking import stream, uniforms
from ..model.simmim import create_model
from ..model.sizes import SIZES
from ..model.swin import SwinV2
from .classifier import Classifier, parameter_groups
from .dense import Dense
from .distributed import Team, team
from .loop import work
from .probes import features, input_statistics, top1
from .starting import load_encoder, pretrained_windows
from .tuning import FineTune

_DROP_PATH, _HEAD = 5, 6  # streams of random numbers


def build_classifier(spec: FineTune, classes: int, weights: dict[str, Tensor] | None = None) -> Classifier:
    """The network at step 0; weights are the pretrained SimMIM's state dict, needed just when the spec has a start."""
    model = create_model(
        spec.model,
        spec.image_size,
        spec.window_size,
        drop_path=spec.drop_path,
        pretrained_window_sizes=pretrained_windows(spec),
        seed=spec.seed,
    )
    load_encoder(model.encoder, spec, weights)
    # the head has a generator of its own: it starts the same whatever the encoder starts from
    return Classifier(model.encoder, classes, torch.Generator().manual_seed(int(stream(spec.seed, _HEAD)[0])))


class Classification:
    """Fine-tuning for classification as a task of the `Loop` (kind `finetune`).

    weights: the pretrained SimMIM's state dict for a spec with a start, else None. `UserError` where the source has no
    labels, or fewer images than asked for.
    """

    kind = "finetune"

    def __init__(self, spec: FineTune, data: Data, weights: dict[str, Tensor] | None, team: Team) -> None:
        train, test = data.probe_train, data.test
        if train is None or test is None or train.labels is None or test.labels is None:
            raise UserError(f"data '{spec.data}' has no labels to fine-tune on: use a source with classes")
        if spec.labels > len(train) and data.train.labels is not None and len(data.train) > len(train):
            train = data.train  # of scenes the pool for probes is the smaller one; no test image is in either
        if spec.labels > len(train):
            raise UserError(
                f"labels {spec.labels}: {spec.data} has {len(train)} labelled images; ask for 1 to {len(train)}"
            )
        self.spec, self.team, self.test = spec, team, test
        chosen = subset(train, spec.labels, spec.seed)
        self.unique = len(chosen)
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
            device=team.device,
            share=team.share(spec.batch_size),
        )
        self.labels = torch.from_numpy(np.asarray(train.labels)[chosen])
        self.model = build_classifier(spec, data.num_classes, weights).to(team.device)
        self.flops = 6e9 * SIZES[spec.model].gmac(spec.image_size, spec.window_size)

    def groups(self) -> list[dict]:
        """AdamW's groups, with layer decay."""
        return parameter_groups(self.model, self.spec.layer_decay, self.spec.weight_decay)

    def loss(self, net: nn.Module, step: int) -> Tensor:
        """Cross-entropy over this process's share of a step."""
        images, _, _ = self.batches.batch(step)
        target = self.labels[torch.from_numpy(self.batches.positions(step)[1])].to(images.device)
        logits = net(images, drop_path_noise(self.spec, step, self.model.encoder, self.team))
        return F.cross_entropy(logits.float(), target, label_smoothing=self.spec.label_smoothing)

    def evaluate(self) -> tuple[dict, str | None]:
        """{"final": top-1 with its interval} on the first test images, and why there is none, or None."""
        n_test = min(self.spec.test_images, len(self.test))
        logits = self.logits(self.test.images[:n_test])
        if not bool(logits.isfinite().all()):
            return {}, f"the trained network's outputs were not finite; lower lr ({self.spec.lr:g})"
        score = top1(logits.argmax(1).numpy(), self.test.labels[:n_test], self.unique)
        return {"final": {"top1": score["score"], "low": score["low"], "high": score["high"], "n_test": n_test}}, None

    def logits(self, images: np.ndarray) -> Tensor:
        """Logits (n, classes) of whole images uint8 (n, 3, S, S), on the CPU."""
        pooled, _ = features(self.model, images, self.mean, self.std, precision=self.spec.precision)
        with torch.no_grad():
            return self.model.head(pooled.to(self.team.device)).cpu()


def drop_path_noise(spec: FineTune | Dense, step: int, encoder: SwinV2, team: Team) -> Tensor:
    """Drop path's numbers (share, blocks, 2) in (0, 1): a function of (seed, step, sample, block)."""
    blocks = sum(encoder.depths)
    samples = np.arange(spec.batch_size)[team.share(spec.batch_size)]
    draws = uniforms(2 * blocks, spec.seed, step, samples, _DROP_PATH)
    return torch.from_numpy(draws).to(team.device).view(-1, blocks, 2)


def finetune(
    spec: FineTune,
    data: Data,
    weights: dict[str, Tensor] | None = None,
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Train a classifier on labelled images, test it once at the end, and return its record (kind `finetune`).

    `progress(step, steps)` is called at each point of the curve. A loss that is not finite ends in a record with status
    `failed` and no numbers. Nothing is written; `transfer` keeps checkpoints and the record.
    """
    with team(device) as us:
        return work(spec, Classification(spec, data, weights, us), us, digest=data.digest, progress=progress)
