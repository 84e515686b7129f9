"""Fine-tuning for classification: the pretrained encoder and a linear head, with layer decay (FACTS 4).

The supervised baseline is the same function from a random initialisation, without layer decay.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.sources import Data
from ..model.masking import stream
from ..model.simmim import create_model
from ..model.sizes import SIZES
from .augment import Mixing
from .building import drop_path_noise
from .classifier import Classifier, parameter_groups
from .distributed import Team, team
from .inputs import Arrays, Files
from .loop import work
from .probes import top1
from .starting import load_encoder, pretrained_windows
from .tuning import FineTune

_HEAD = 6  # stream of random numbers


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

    data: at the spec's size, or at the pictures' own for a full-size spec. weights: the pretrained SimMIM's state dict
    for a spec with a start, else None. `UserError` where the source has no labels, or fewer images than asked for.
    """

    kind = "finetune"

    def __init__(self, spec: FineTune, data: Data, weights: dict[str, Tensor] | None, team: Team) -> None:
        mixes = bool(spec.mixup or spec.cutmix)
        self.spec, self.team = spec, team
        self.share = team.pairs(spec.batch_size) if mixes else team.share(spec.batch_size)
        self.input = (
            Files(spec, data, self.share, team) if spec.full_size else Arrays(spec, data, self.share, team.device)
        )
        self.unique = self.input.unique
        self.mixing = Mixing(spec, data.num_classes) if mixes else None
        self.model = build_classifier(spec, data.num_classes, weights).to(team.device)
        self.flops = 6e9 * SIZES[spec.model].gmac(spec.image_size, spec.window_size)

    def groups(self) -> list[dict]:
        """AdamW's groups, with layer decay."""
        return parameter_groups(self.model, self.spec.layer_decay, self.spec.weight_decay)

    def loss(self, net: nn.Module, step: int) -> Tensor:
        """Cross-entropy over this process's share of a step, mixed where the spec says so."""
        images, target = self.input.batch(step)
        if self.mixing is not None:
            images, target = self.mixing(images, target, step)
        logits = net(images, drop_path_noise(self.spec, step, self.model.encoder.depths, self.team, self.share)).float()
        if self.mixing is not None:
            from timm.loss import SoftTargetCrossEntropy

            return SoftTargetCrossEntropy()(logits, target)  # the mix has smoothed it already
        return F.cross_entropy(logits, target, label_smoothing=self.spec.label_smoothing)

    def evaluate(self) -> tuple[dict, str | None]:
        """{"final": top-1 with its interval} on the first test images (all of them for None), and why there is none, or
        None. Each process tests its part. `skipped` names pictures that could not be read, if any."""
        n, us = self.input.n_test, self.team
        rows = slice(n * us.rank // us.size, n * (us.rank + 1) // us.size)
        pooled, readable = self.input.pooled(self.model, rows)
        with torch.no_grad():
            logits = self.model.head(pooled.to(us.device)).cpu()
        finite = bool(logits.isfinite().all())
        mine = (finite, logits.argmax(1).numpy(), readable, self.input.skipped)
        finites, guesses, good, skipped = zip(*us.gather(mine), strict=True)
        if not all(finites):
            return {}, f"the trained network's outputs were not finite; lower lr ({self.spec.lr:g})"
        good = np.concatenate(good)
        if not good.any():
            return {}, f"none of the {n} test images of {self.spec.data} can be read"
        score = top1(np.concatenate(guesses)[good], self.input.test_labels[good], self.unique)
        final = {"top1": score["score"], "low": score["low"], "high": score["high"], "n_test": score["n_test"]}
        left_out = sorted({item for some in skipped for item in some.items()})
        return {"final": final} | ({"skipped": [list(item) for item in left_out]} if left_out else {}), None


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
        return work(
            spec, Classification(spec, data, weights, us), us, digest=data.digest, line=data.line, progress=progress
        )
