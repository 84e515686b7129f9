"""Detection and instance segmentation as a task: torchvision's Mask R-CNN behind our encoder and a feature pyramid, and
average precision by pycocotools. Below `SMALL` pixels what costs per image is cut down to what a picture can hold."""

import contextlib
import functools
import io
import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..data.batches import seeded
from ..data.coco import AnnotatedData, CocoSplit, rle
from ..errors import Everywhere
from ..model.sizes import SIZES, Size
from ..model.swin import SwinV2
from .finetune import Task, build_encoder
from .parallel import Group
from .probes import bootstrap
from .tuning import EXAMPLES, SMALL_SIDE, Dense

SMALL = 256  # pixels
RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
SHOWN_SCORE = 0.3  # from which on a detection is among a record's examples
#: A 32 px scene has 252 anchors and two objects at most: a fraction of torchvision's samples and proposals will do.
SMALL_LIMITS = {f"rpn_pre_nms_top_n_{phase}": 64 for phase in ("train", "test")}
SMALL_LIMITS |= {f"rpn_post_nms_top_n_{phase}": 24 for phase in ("train", "test")}
SMALL_LIMITS |= {"rpn_batch_size_per_image": 32, "box_batch_size_per_image": 16, "box_detections_per_img": 10}
_HEADS, _SAMPLERS = 12, 13  # streams of random numbers
RESAMPLES = 200  # of the test images, for the 95 % interval of a score


class Detection(Task):
    """Mask R-CNN as a task (see `Task`); weights: as `build_encoder` takes them. Each process draws and averages the
    regions that it trains on, so another number of processes gives other numbers."""

    kind = "detect"

    def __init__(self, spec: Dense, data: AnnotatedData, weights: dict[str, Tensor] | None, group: Group) -> None:
        super().__init__(spec, data, group, data.train, spec.images)
        self.test = data.test.select(range(len(data.test))[: spec.test_images])
        if all(a["iscrowd"] for objects in self.test.objects for a in objects):
            many = f"none of {len(self.test)} images has an object to find"
            raise Everywhere(f"{self.test.name}: {many}; raise test_images ({spec.test_images})")
        data.name_unseen(self.chosen.tolist())
        self.model = build_detector(spec, data.num_classes, *self.statistics, weights).to(group.device)
        load = functools.partial(training_sample, data.train.select(self.chosen))
        self.batches = self.loader(load, collate=list)

    def batch(self, now: int) -> tuple[int, list[Tensor], list[dict]]:
        """The step, images float32 (3, H, W) in 0..1, and their boxes, labels and masks as torchvision has them."""
        images, targets = [], []
        for image, *known in self.batches.batch(now):
            images.append(self.image(image))
            known = (value.to(self.group.device, non_blocking=True) for value in known)
            targets.append(dict(zip(("boxes", "labels", "masks"), known, strict=True)))
        return now, images, targets

    def loss(self, model: nn.Module, now: int, images: list[Tensor], targets: list[dict]) -> Tensor:
        """The sum of Mask R-CNN's losses (proposals: objectness, box; regions: class, box, mask) on the share."""
        # anchors and proposals are sampled, and short sides and dropped paths drawn, from torch's global generators
        with seeded(self.spec.seed, now, self.group.rank, _SAMPLERS):
            return sum(model(images, targets).values())

    def image(self, pixels: Tensor) -> Tensor:
        """uint8 pixels on the device, in 0..1."""
        return pixels.to(self.group.device, non_blocking=True).float().div_(255)

    def evaluate(self) -> dict:
        """Box and mask AP on the first test images, and examples of small ones."""
        test, group = self.test, self.group
        found = sum(group.gather(detections(self, test, range(group.rank, len(test), group.size))), [])
        found.sort(key=lambda d: d["image_id"])
        parts = {}
        if group.is_main:
            truth = ground_truth(test, self.data.num_classes)
            parts["transfer"] = average_precision(truth, found, n_train=len(self.chosen))
            if max(max(size) for size in test.sizes[:EXAMPLES]) <= SMALL_SIDE:
                parts["examples"] = _examples(test, found)
        return group.broadcast(parts)


def detections(task: Detection, split: CocoSplit, places: range) -> list[dict]:
    """What the network finds in the images at these places, as COCO results; `image_id` is the place. Only images of
    one size go through together, so that no image's result depends on its neighbours."""
    model, spec, device, found = task.model, task.spec, task.group.device, []
    length = max(1, spec.batch_size // task.group.size)
    queue = sorted(places, key=lambda i: (split.sizes[i], i))
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
        for _, alike in itertools.groupby(queue, key=lambda i: split.sizes[i]):
            alike = list(alike)
            for batch in (alike[start : start + length] for start in range(0, len(alike), length)):
                results = model([task.image(torch.from_numpy(split[i].image)) for i in batch])
                for i, result in zip(batch, results, strict=True):
                    masks = (result["masks"][:, 0] > 0.5).byte().cpu().numpy()
                    columns = (result[name].cpu().tolist() for name in ("boxes", "labels", "scores"))
                    for (x0, y0, x1, y1), label, score, mask in zip(*columns, masks, strict=True):
                        one = {"image_id": i, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
                        found.append(one | {"segmentation": rle(mask)})
    return found


def ground_truth(split: CocoSplit, classes: int) -> dict:
    """A split's annotations as a COCO data set whose image ids are places and whose categories are 1 to `classes`."""
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(split.sizes)]
    annotations = [dict(a, image_id=i) for i, objects in enumerate(split.objects) for a in objects]
    return {"images": images, "annotations": annotations, "categories": [{"id": c + 1} for c in range(classes)]}


def training_sample(split: CocoSplit, place: int) -> list[Tensor]:
    """Image, boxes, labels and masks, half of them mirrored (left is right) by a draw from numpy's global generator."""
    image, boxes, labels, masks = map(torch.from_numpy, split[place])
    if np.random.random() < 0.5:
        boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
        image, masks = image.flip(-1), masks.flip(-1)
    return [image, boxes, labels, masks]


def _examples(test: CocoSplit, found: list[dict]) -> list[dict]:
    """The first test images by file, with what was found: class numbers from 0, boxes xyxy in pixels, masks as RLE."""
    shown = []
    for i, file in enumerate(test.files[:EXAMPLES]):
        mine = [d for d in found if d["image_id"] == i and d["score"] >= SHOWN_SCORE]
        boxes = [[round(v, 2) for v in (x, y, x + w, y + h)] for x, y, w, h in (d["bbox"] for d in mine)]
        example = {"file": file, "size": list(test.sizes[i]), "boxes": boxes}
        example |= {"labels": [d["category_id"] - 1 for d in mine], "scores": [round(d["score"], 4) for d in mine]}
        shown.append(example | {"masks": [d["segmentation"]["counts"] for d in mine]})
    return shown


class Anchors(AnchorGenerator):
    """Anchors on the true strides (torchvision guesses them, wrongly where a map was rounded up) of the stages and one
    pooled level above. Their side is 8 strides (32 to 512 px), on small images 2."""

    def __init__(self, size: Size, image_size: int) -> None:
        self.strides = [size.patch_size << level for level in range(len(size.depths) + 1)]
        sizes = tuple(((8 if image_size >= SMALL else 2) * stride,) for stride in self.strides)
        super().__init__(sizes, (RATIOS,) * len(sizes))

    def grid_anchors(self, grid_sizes: list, strides: list) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [(stride, stride) for stride in self.strides])


class Pyramid(nn.Module):
    """Images (B, 3, H, W) -> maps by name, `channels` wide: one a stage of the encoder, and `pool` at half the last."""

    def __init__(self, encoder: SwinV2, channels: int) -> None:
        super().__init__()
        widths = [encoder.embed_dim << s for s in range(len(encoder.depths))]
        self.encoder = encoder
        # the encoder normalises its last map
        self.norms = nn.ModuleList([*map(LayerNorm2d, widths[:-1]), nn.Identity()])
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = zip(self.norms, self.encoder.feature_maps(images), strict=True)
        return self.fpn({str(s): norm(m).contiguous() for s, (norm, m) in enumerate(maps)})


def build_detector(
    spec: Dense, classes: int, mean: tuple, std: tuple, weights: dict[str, Tensor] | None = None
) -> MaskRCNN:
    """The network at step 0, of images (3, H, W) in 0..1, which it resizes to the spec's sides. classes: without the
    background; mean, std: of the input, in 0..1 units; weights: as `build_encoder` takes them."""
    size, encoder, small = SIZES[spec.model], build_encoder(spec, weights), spec.image_size < SMALL
    levels = [str(s) for s in range(len(size.depths))]
    mask_side, samples = (7, 1) if small else (14, 2)
    with seeded(spec.seed, _HEADS):
        model = MaskRCNN(
            Pyramid(encoder, spec.channels),
            min_size=spec.short_sides or spec.image_size,  # one is drawn in training, the last one serves in testing
            max_size=spec.long_side or spec.image_size * 5 // 3,
            image_mean=list(mean),
            image_std=list(std),
            rpn_anchor_generator=Anchors(size, spec.image_size),
            rpn_head=RPNHead(spec.channels, len(RATIOS)),
            box_roi_pool=MultiScaleRoIAlign(levels, 7, samples),
            box_head=TwoMLPHead(spec.channels * 7**2, spec.hidden),
            box_predictor=FastRCNNPredictor(spec.hidden, classes + 1),
            mask_roi_pool=MultiScaleRoIAlign(levels, mask_side, samples),
            mask_head=MaskRCNNHeads(spec.channels, (spec.channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(spec.channels, spec.channels, classes + 1),
            size_divisible=size.final_stride,
            **(SMALL_LIMITS if small else {}),
        )
    # below full precision coordinates lose whole pixels: what boxes are computed from leaves autocast
    for module in (model.backbone, model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor):
        module.register_forward_hook(lambda module, inputs, outputs: tree_map(Tensor.float, outputs))
    return model


def average_precision(truth: dict, found: list[dict], *, n_train: int) -> dict[str, dict]:
    """`box_ap`, `mask_ap` (over IoU .50 to .95), `box_ap50`, `mask_ap50`, in 0..1, with 95 % percentiles of a bootstrap
    over test images. truth: a COCO data set with an object to be found; found: COCO results with bbox and RLE."""
    scores, count = {}, len(truth["images"])
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        judged = judge(truth, found, kind)
        for suffix, at, value, drawn in zip(
            ("ap", "ap50"), ("@[.50:.95]", "@.50"), precisions(judged), resampled_precisions(judged).T, strict=True
        ):
            drawn = drawn[~np.isnan(drawn)]  # a draw may hold no object at all
            scores[f"{name}_{suffix}"] = bootstrap(value, drawn, f"{name} AP{at}", n_train, count)
    return scores


def judge(truth: dict, found: list[dict], kind: str):
    """pycocotools' COCOeval, evaluated and accumulated over all areas; kind is `bbox` or `segm`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # numbered anew: pycocotools takes a match with id 0 for none
    objects = [dict(a, id=i, iscrowd=a.get("iscrowd", 0)) for i, a in enumerate(truth["annotations"], 1)]
    detections = [dict(d, id=i, iscrowd=0, area=d["bbox"][2] * d["bbox"][3]) for i, d in enumerate(found, 1)]
    known, guessed = COCO(), COCO()
    known.dataset, guessed.dataset = dict(truth, annotations=objects), dict(truth, annotations=detections)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known.createIndex()
        guessed.createIndex()
        judged = COCOeval(known, guessed, kind)
        judged.params.areaRng, judged.params.areaRngLbl, judged.params.maxDets = [[0, 1e10]], ["all"], [100]
        judged.evaluate()
        judged.accumulate()
    return judged


def precisions(judged) -> list[float]:
    """AP over all thresholds, and at the first one, of what is accumulated; NaN where there is no object."""
    known = judged.eval["precision"][:, :, :, 0, 0]  # -1: a class without an object
    return [float(part[part > -1].mean()) if (part > -1).any() else np.nan for part in (known, known[:1])]


def resampled_precisions(judged, draws: int = RESAMPLES) -> np.ndarray:
    """`precisions` of resamples of the images: (draws, 2). An image that is drawn twice counts twice."""
    images, each = len(judged.params.imgIds), judged.evalImgs  # a class after the other, its images in order
    classes, out = range(len(judged.params.catIds)), []
    for pick in np.random.default_rng(0).integers(images, size=(draws, images)):
        judged.evalImgs = [each[k * images + i] for k in classes for i in pick]
        with contextlib.redirect_stdout(io.StringIO()):
            judged.accumulate()
        out.append(precisions(judged))
    return np.array(out)
