"""Semantic segmentation as a task: UPerNet on the pretrained encoder, trained and scored as ADE20K is (mIoU)."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.ade20k import IGNORED, AdeSplit, flipped_crop, full_view, resize
from ..data.batches import Order, StepLoader, normalise, seeded
from ..data.coco import AnnotatedData
from ..data.manifests import subset
from ..errors import Everywhere
from ..model.sizes import SIZES
from .finetune import TRANSFER_DROP_PATH, build_encoder
from .optim import layer_groups
from .parallel import Team
from .pretrain import drop_path_noise
from .probes import input_statistics
from .scores import areas, run_lengths, segmentation_scores
from .tuning import EXAMPLES, SMALL_SIDE, Dense
from .upernet import UPerNet, enlarge

_HEADS = 12  # stream of random numbers
_PIXELS = 1 << 17  # of a batch of test images; larger images come one at a time
_VIEWS = {"flip": flipped_crop, "scale+crop+colour": full_view}


def build_upernet(spec: Dense, classes: int, weights: dict[str, Tensor] | None = None) -> UPerNet:
    """The network at step 0; weights as `build_encoder` takes them."""
    encoder = build_encoder(spec, weights)
    with seeded(spec.seed, _HEADS):  # heads start the same whatever the encoder starts from
        return UPerNet(encoder, classes, spec.channels, auxiliary=spec.auxiliary > 0)


class Segmentation:
    """Segmentation as a task (kind `segment`).

    weights: the pretrained SimMIM's state dict for a spec with a start, else None. Batch normalisation sees the images
    of one process on CPUs, those of all processes on GPUs (SyncBatchNorm). `UserError` where there are fewer images
    than asked for, and later where an annotation cannot be used.
    """

    kind = "segment"

    def __init__(self, spec: Dense, data: AnnotatedData, weights: dict[str, Tensor] | None, team: Team) -> None:
        self.spec, self.data, self.team = spec, data, team
        synchronised = team.size > 1 and team.device.type == "cuda"
        share = team.share(spec.batch_size)
        if share.stop - share.start < 2 and not synchronised:
            least = f"needs 2 images on each process; give at least {2 * team.size}"
            raise Everywhere(f"batch_size {spec.batch_size}: batch normalisation {least}")
        self.chosen = subset(data.train, spec.images, spec.seed)
        self.unique = len(self.chosen)
        data.name_unseen(self.chosen.tolist(), quiet=not team.is_main)
        self.mean, self.std = input_statistics(data, spec.statistics)
        fill = torch.tensor([round(255 * m) for m in self.mean], dtype=torch.uint8)
        self.loader = StepLoader(
            _Views(data.train, self.chosen, spec, fill),
            Order(data.train.ids[self.chosen], spec.seed, spec.batch_size),
            share,
            spec.steps,
            workers=0 if spec.image_size <= SMALL_SIDE else team.decoders(),
        )
        model = build_upernet(spec, len(data.classes), weights)
        self.strides = model.strides
        encoder = 1e9 * SIZES[spec.model].gmac(spec.image_size, spec.window_size)
        self.flops = 6 * (encoder + model.macs(spec.image_size, spec.image_size))
        self.model = (nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model).to(team.device)

    def groups(self) -> list[dict]:
        """AdamW's groups, with layer decay; norms and heads learn at the full rate."""
        return layer_groups(self.model, self.model.encoder.depths, self.spec.layer_decay, self.spec.weight_decay)

    def batch(self, now: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """The step, images float32 (B, 3, S, S), labels int64 (B, S, S) and drop path's numbers."""
        images, labels = self.loader.batch(now)
        images = normalise(images.numpy(), self.mean, self.std, self.team.device)
        noise = drop_path_noise(self.spec, now, self.model.encoder.depths, self.team, stream=TRANSFER_DROP_PATH)
        return now, images, labels.to(self.team.device, torch.long), noise

    def loss(self, model: nn.Module, now: int, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        """Cross-entropy of the main head and, weighted, of the auxiliary one.

        The mean over the labelled pixels of the whole batch, whichever process has them: gradients are averaged over
        processes, so this one's sum counts `size` times. A batch without a labelled pixel has loss 0.
        """
        with seeded(self.spec.seed, now, self.team.rank):  # dropout
            main, auxiliary = model(images, noise)
        labelled = self.team.sum((labels != IGNORED).sum(dtype=torch.float32))
        total = pixel_loss(main, labels, self.strides[0])
        if auxiliary is not None:
            total = total + self.spec.auxiliary * pixel_loss(auxiliary, labels, self.strides[-2])
        return total * self.team.size / labelled.clamp(min=1)

    @torch.no_grad()
    def evaluate(self) -> tuple[dict, str | None]:
        """{"transfer": {"miou", "pixel_accuracy"}, "examples"} on the first test images; why there is none, or None.

        Whole images at short side `image_size`, logits enlarged to the annotation's own size; one scale, no flip.
        examples, for small images: {"file", "height", "width", "runs"}, the predicted class of each pixel (a place in
        `data.classes`), row by row, as [class, length, ...].
        """
        team, test = self.team, self.data.test
        for buffer in self.model.buffers():  # running statistics: those of the main process, as in its checkpoints
            team.sum(buffer.mul_(int(team.is_main)))
        self.model.eval()
        found, examples = [], []
        count = min(self.spec.test_images or len(test), len(test))
        for places, images, truths in self._tests(range(team.rank, count, team.size)):
            guesses = self._predict(images, truths[0].shape)
            if guesses is None:
                found.append(None)
                break
            for place, guess, truth in zip(places, guesses, truths, strict=True):
                found.append((place, areas(guess, truth, len(self.data.classes), IGNORED)))
                if place < EXAMPLES and max(guess.shape) <= SMALL_SIDE:
                    height, width = guess.shape
                    runs = {"height": height, "width": width, "runs": run_lengths(guess)}
                    examples.append((place, {"file": test.files[place]} | runs))
        self.model.train()
        found, examples = (sum(team.gather(part), []) for part in (found, examples))
        if None in found:
            return {}, f"the trained network's outputs were not finite; lower lr ({self.spec.lr:g})"
        per_image, shown = ([x for _, x in sorted(part, key=lambda item: item[0])] for part in (found, examples))
        return {"transfer": segmentation_scores(np.stack(per_image), self.unique), "examples": shown}, None

    def _tests(self, places: range) -> Iterator[tuple[list[int], Tensor, list[np.ndarray]]]:
        """Test images of equal size together: places, images uint8 (B, 3, H, W) resized, labels as they are."""
        waiting: list[tuple[int, Tensor, np.ndarray]] = []

        def together() -> tuple[list[int], Tensor, list[np.ndarray]]:
            places, images, labels = zip(*waiting, strict=True)
            return list(places), torch.stack(images), list(labels)

        for place in places:
            pixels, labels = self.data.test.load(place)
            image = resize(torch.from_numpy(pixels), None, self.spec.image_size)[0]
            if waiting and (waiting[0][2].shape != labels.shape or (len(waiting) + 1) * image[0].numel() > _PIXELS):
                yield together()
                waiting.clear()
            waiting.append((place, image, labels))
        if waiting:
            yield together()

    def _predict(self, images: Tensor, size: tuple[int, int]) -> np.ndarray | None:
        """Classes uint8 (B, H, W) at a size in pixels; None where an output is not finite."""
        device = self.team.device
        x = normalise(images.numpy(), self.mean, self.std, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            logits = self.model(x)[0]
        if not bool(logits.isfinite().all()):
            return None
        logits = enlarge(logits.float(), self.strides[0], images.shape[-2:])
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear")
        return logits.argmax(1).to(torch.uint8).cpu().numpy()


def pixel_loss(logits: Tensor, labels: Tensor, stride: int) -> Tensor:
    """Cross-entropy summed over labelled pixels; logits at a stride of the labels (B, H, W)."""
    full = enlarge(logits.float(), stride, labels.shape[-2:])
    return F.cross_entropy(full, labels, ignore_index=IGNORED, reduction="sum")


class _Views:
    """Training views by place: image uint8 (3, S, S), labels uint8 (S, S)."""

    def __init__(self, split: AdeSplit, chosen: np.ndarray, spec: Dense, fill: Tensor) -> None:
        self.split, self.chosen, self.size, self.fill = split, chosen, spec.image_size, fill
        self.view = _VIEWS[spec.augment]

    def __call__(self, place: int) -> tuple[Tensor, Tensor]:
        image, labels = map(torch.from_numpy, self.split.load(int(self.chosen[place])))
        return self.view(image, labels, self.size, self.fill)
