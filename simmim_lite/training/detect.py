"""Detection and instance segmentation as a task of the `Loop`: Mask R-CNN on boxes and masks in COCO layout."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..data.annotations import AnnotatedData
from ..data.coco import CocoSplit, Sample
from ..data.loading import Order, StepLoader, seeded
from ..data.manifests import subset
from .average_precision import average_precision
from .classifier import parameter_groups
from .dense import EXAMPLES, SMALL_SIDE, Dense
from .detector import build_detector
from .distributed import Team
from .probes import input_statistics

SHOWN_SCORE = 0.3  # from which on a detection is among a record's examples
_SAMPLERS = 13  # stream of random numbers


class Detection:
    """Mask R-CNN as a task of the `Loop` (kind `detect`).

    weights: the pretrained SimMIM's state dict for a spec with a start, else None. `UserError` where the data have
    fewer annotated images than asked for. The regions that are trained on are drawn and averaged by each process alone,
    so another number of processes gives other numbers.
    """

    kind = "detect"
    flops = None  # a region of interest costs what an image's content decides

    def __init__(self, spec: Dense, data: AnnotatedData, weights: dict[str, Tensor] | None, us: Team) -> None:
        self.spec, self.data, self.team = spec, data, us
        chosen = subset(data.train, spec.images, spec.seed)
        self.unique = len(chosen)
        data.name_unseen(chosen.tolist(), quiet=not us.main)
        mean, std = input_statistics(data, spec.statistics)
        self.model = build_detector(spec, data.num_classes, mean, std, weights).to(us.device)
        self.batches = StepLoader(
            _Flipped(data.train.select(chosen)),
            Order(data.train.ids[chosen], spec.seed, spec.batch_size),
            us.share(spec.batch_size),
            spec.steps,
            workers=0 if spec.image_size <= SMALL_SIDE else us.decoders(),
            collate=list,
        )

    def groups(self) -> list[dict]:
        """AdamW's groups, with layer decay below the pyramid and the heads."""
        depths = self.model.backbone.encoder.depths
        return parameter_groups(self.model, self.spec.layer_decay, self.spec.weight_decay, depths)

    def loss(self, net: nn.Module, step: int) -> Tensor:
        """The sum of Mask R-CNN's losses (proposals: objectness, box; regions: class, box, mask) on the share."""
        images, targets = [], []
        for image, boxes, labels, masks in self.batches.batch(step):
            images.append(self._image(image))
            parts = {"boxes": boxes, "labels": labels, "masks": masks}
            targets.append({name: value.to(self.team.device, non_blocking=True) for name, value in parts.items()})
        # anchors and proposals are sampled, and short sides and dropped paths drawn, from torch's global generators
        with seeded(self.spec.seed, step, self.team.rank, _SAMPLERS):
            return sum(net(images, targets).values())

    def evaluate(self) -> tuple[dict, str | None]:
        """Box and mask AP on the first test images, and examples of small ones; why there are none, or None."""
        spec, us = self.spec, self.team
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            return {}, f"the trained network's weights were not finite; lower lr ({spec.lr:g})"
        count = min(spec.test_images or len(self.data.test), len(self.data.test))
        test = self.data.test.select(range(count))
        if all(a["iscrowd"] for objects in test.objects for a in objects):
            return {}, f"{test.name}: none of {count} images has an object to find; raise test_images"
        found = detections(self, test, range(us.rank, count, us.size))
        found = sorted(itertools.chain(*us.gather(found)), key=lambda d: d["image_id"])
        parts = None
        if us.main:
            truth = ground_truth(test, self.data.num_classes)
            parts = {"transfer": average_precision(truth, found, n_train=self.unique)}
            if max(max(size) for size in test.sizes[:EXAMPLES]) <= SMALL_SIDE:
                parts["examples"] = _examples(test, found)
        return us.tell(parts), None

    def _image(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.team.device, non_blocking=True).float().div_(255)


def detections(task: Detection, split: CocoSplit, places: range) -> list[dict]:
    """What the network finds in the images at these places, as COCO results; `image_id` is the place.

    Only images of one size go through together, so that no image's result depends on its neighbours.
    """
    from pycocotools import mask as coco_mask

    model, spec, device = task.model, task.spec, task.team.device
    # by size, so that many go through together
    queue = sorted(places, key=lambda i: (split.sizes[i], i))
    found = []
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
        for batch in _batches(queue, split, max(1, spec.batch_size // task.team.size)):
            results = model([task._image(torch.from_numpy(split[i].image)) for i in batch])
            for i, result in zip(batch, results, strict=True):
                boxes, labels, scores = (result[name].cpu().tolist() for name in ("boxes", "labels", "scores"))
                masks = (result["masks"][:, 0] > 0.5).byte().cpu().numpy()
                for box, label, score, mask in zip(boxes, labels, scores, masks, strict=True):
                    encoded = coco_mask.encode(np.asfortranarray(mask))
                    rle = {"size": [int(s) for s in encoded["size"]], "counts": encoded["counts"].decode()}
                    x0, y0, x1, y1 = box
                    bbox = [x0, y0, x1 - x0, y1 - y0]
                    one = {"image_id": i, "category_id": label, "bbox": bbox, "score": score}
                    found.append(one | {"segmentation": rle})
    model.train()
    return found


def ground_truth(split: CocoSplit, classes: int) -> dict:
    """A split's annotations as a COCO data set whose image ids are places and whose categories are 1 to `classes`."""
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(split.sizes)]
    annotations = [dict(a, image_id=i) for i, objects in enumerate(split.objects) for a in objects]
    return {"images": images, "annotations": annotations, "categories": [{"id": c + 1} for c in range(classes)]}


class _Flipped:
    """load(place): a training sample as tensors, half of them mirrored by a draw from numpy's global generator."""

    def __init__(self, split: CocoSplit) -> None:
        self.split = split

    def __call__(self, place: int) -> tuple[Tensor, ...]:
        sample = self.split[place]
        if np.random.random() < 0.5:
            sample = mirrored(sample)
        return tuple(torch.from_numpy(part) for part in sample)


def mirrored(sample: Sample) -> Sample:
    """A sample as in a mirror: left is right."""
    image, boxes, labels, masks = sample
    boxes = boxes.copy()
    boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
    return Sample(np.ascontiguousarray(image[..., ::-1]), boxes, labels, np.ascontiguousarray(masks[..., ::-1]))


def _batches(queue: list[int], split: CocoSplit, length: int) -> Iterator[list[int]]:
    for _, same in itertools.groupby(queue, key=lambda i: split.sizes[i]):
        same = list(same)
        for start in range(0, len(same), length):
            yield same[start : start + length]


def _examples(test: CocoSplit, found: list[dict]) -> list[dict]:
    """The first test images by file, with what was found: class numbers from 0, boxes xyxy in pixels, masks as RLE."""
    shown = []
    for i, file in enumerate(test.files[:EXAMPLES]):
        mine = [d for d in found if d["image_id"] == i and d["score"] >= SHOWN_SCORE]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (d["bbox"] for d in mine)]
        shown.append(
            {
                "file": file,
                "size": list(test.sizes[i]),
                "boxes": [[round(v, 2) for v in box] for box in boxes],
                "labels": [d["category_id"] - 1 for d in mine],
                "scores": [round(d["score"], 4) for d in mine],
                "masks": [d["segmentation"]["counts"] for d in mine],
            }
        )
    return shown
