"""Mask R-CNN on Swin V2: levels, anchors, precision, steps, what is found; average precision against pycocotools."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import NARROW, coco, detection, narrow, trained  # noqa: F401 (fixtures)
from torchvision.models.detection.image_list import ImageList

from simmim_lite.data import scenes
from simmim_lite.data.coco import decode_mask, open_coco
from simmim_lite.errors import UserError
from simmim_lite.model import sizes
from simmim_lite.model.simmim import create_model
from simmim_lite.training.detect import (
    Anchors,
    Pyramid,
    average_precision,
    build_detector,
    ground_truth,
    judge,
    precisions,
    resampled_precisions,
    training_sample,
)
from simmim_lite.training.parallel import Group
from simmim_lite.training.transfer import once
from simmim_lite.training.tuning import Dense


def test_a_level_a_stage_and_the_pool_in_full_precision(coco):  # noqa: F811
    """A box at 1,333 px has no whole pixels in bf16."""
    pyramid = Pyramid(create_model("swinv2_atto", 32, 4).encoder, 16)
    shapes = {name: tuple(m.shape) for name, m in pyramid(torch.rand(2, 3, 32, 48)).items()}
    assert shapes == {"0": (2, 16, 8, 12), "1": (2, 16, 4, 6), "pool": (2, 16, 2, 3)}
    model = detection(coco).model
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.backbone(torch.rand(1, 3, 32, 32))
        rpn = model.rpn.head(list(maps.values()))
        boxes = model.roi_heads.box_predictor(torch.rand(2, 32))
    assert {t.dtype for t in [*maps.values(), *rpn[0], *rpn[1], *boxes]} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "image_size", "height", "width", "sides"),
    [("swinv2_atto", 32, 32, 32, (8, 16, 32)), ("swinv2_base", 800, 800, 1344, (32, 64, 128, 256, 512))],
)
def test_anchors_of_a_scene_and_of_full_size(name, image_size, height, width, sides):
    """Centres are multiples of the true strides, also where the pooled map was rounded up (25 x 42 to 13 x 21)."""
    anchors = Anchors(sizes.SIZES[name], image_size)
    assert tuple(s for (s,) in anchors.sizes) == sides
    strides = [4 << level for level in range(len(sides))]
    maps = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides]
    boxes = anchors(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]
    parts = boxes.split([3 * m[0, 0].numel() for m in maps])
    for stride, side, m, here in zip(strides, sides, maps, parts, strict=True):
        centre = (here[:, :2] + here[:, 2:]) / 2
        last = [(m.shape[3] - 1) * stride, (m.shape[2] - 1) * stride]
        assert (centre % stride == 0).all() and centre.max(0).values.tolist() == last
        assert (((here[:, 2:] - here[:, :2]).prod(1) / side**2 - 1).abs() < 0.15).all()  # corners are whole pixels


def test_full_size_is_the_standard_one(narrow):  # noqa: F811
    model = build_detector(Dense.recipe("mask-rcnn-1x", 100, model=NARROW.name), 80, (0,) * 3, (1,) * 3)
    assert model.transform.min_size == (800,) and model.transform.max_size == 1333
    rpn, roi = model.rpn, model.roi_heads
    assert (rpn.fg_bg_sampler.batch_size_per_image, roi.fg_bg_sampler.batch_size_per_image) == (256, 512)
    assert roi.box_head.fc6.weight.shape == (1024, 256 * 49) and roi.box_predictor.cls_score.out_features == 81
    assert roi.mask_roi_pool.output_size == (14, 14) and len(roi.mask_head) == 4 and roi.detections_per_img == 100


def test_half_of_the_samples_are_mirrored_and_boxes_stay_around_their_masks(coco):  # noqa: F811
    split = open_coco(coco, 32).train
    np.random.seed(0)
    turned = []
    for i in range(12):
        image, boxes, _, masks = (x.numpy() for x in training_sample(split, i))
        turned.append(not np.array_equal(image, split[i].image))
        assert np.array_equal(image, split[i].image[..., :: -1 if turned[-1] else 1])
        for (x0, y0, x1, y1), mask in zip(boxes, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
    assert any(turned) and not all(turned)


def test_a_step_is_a_function_of_seed_and_step_and_the_loss_falls(coco):  # noqa: F811
    task = detection(coco, steps=24, eval_every=6, lr=4e-3, warmup_steps=3, images=4, drop_path=0.0)
    task.model.train()
    first = task.loss(task.model, *task.batch(3)).item()
    other = task.loss(task.model, *task.batch(4)).item()
    assert task.loss(task.model, *task.batch(3)).item() == first != other
    record = trained(task)
    curve = [p["train_loss"] for p in record["curve"]]
    assert record["status"] == "done" and curve[-1] < 0.7 * curve[0]
    assert record["cost"]["unique_images"] == 4


def test_the_truth_scores_one(coco):  # noqa: F811
    """Boxes and masks of the ground truth, put in the place of the network's, are found to be perfect."""
    task = detection(coco)
    split, order = task.data.test, list(range(12))

    class Knows(torch.nn.Module):
        def forward(self, images):
            samples = [map(torch.from_numpy, split[order.pop(0)]) for _ in images]
            return [
                {"boxes": boxes, "labels": labels, "scores": torch.full((len(labels),), 0.9), "masks": masks[:, None]}
                for _, boxes, labels, masks in samples
            ]

    task.model = Knows()
    parts = task.evaluate()
    assert {s["score"] for s in parts["transfer"].values()} == {1.0}
    assert [e["file"] for e in parts["examples"]] == split.files[:6]
    first, known = parts["examples"][0], split[0]
    assert first["labels"] == (known.labels - 1).tolist() and np.allclose(first["boxes"], known.boxes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"short_sides": (24, 32)}, "go with augment scale"),
        ({"data": "ade20k:DIR"}, "data 'ade20k:DIR' has no annotations for detect: give scenes or coco:DIR"),
        ({"batch_size": 3, "group": Group(torch.device("cpu"), 0, 2)}, "does not divide among 2 processes: try 2"),
    ],
)
def test_wrong_specs_are_one_line(coco, options, words):  # noqa: F811
    with pytest.raises(UserError, match=words):
        detection(coco, **options)


def test_a_recipe_takes_a_step(narrow, tmp_path):  # noqa: F811
    """The full-size path at 800 px: only the network is narrower and the batch one image."""
    scenes.write_coco(tmp_path / "coco", train=2, val=1, size=96)
    small = {"model": NARROW.name, "channels": 32, "hidden": 64, "steps": 1, "batch_size": 1}
    spec = Dense.recipe("mask-rcnn-3x", 2, data=f"coco:{tmp_path / 'coco'}", **small)
    record, computed = once(spec, runs_dir=tmp_path / "runs", device="cpu")
    assert computed and record["status"] == "done", record["reason"]
    assert all(0 <= score["score"] <= 1 and score["n_test"] == 1 for score in record["transfer"].values())
    assert "examples" not in record  # larger pictures are not kept in a record


# average precision


def random_case(coco, seed):
    """The annotations of 24 scenes, some of them crowds, and detections near them: (truth, found)."""
    data, rng, found = open_coco(coco, 32), np.random.default_rng(seed), []
    truth = ground_truth(data.train, data.num_classes)
    for a in truth["annotations"]:
        a["iscrowd"] = int(rng.random() < 0.2)
        for _ in range(rng.integers(0, 4)):
            mask = np.roll(decode_mask(a["segmentation"], (32, 32)), rng.integers(-2, 3, 2), (0, 1))
            encoded = coco_mask.encode(np.asfortranarray(mask))
            one = {"image_id": a["image_id"], "bbox": coco_mask.toBbox(encoded).tolist()}
            one["category_id"] = a["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 4))
            one["segmentation"] = encoded | {"counts": encoded["counts"].decode()}
            found.append(one | {"score": float(np.round(rng.random(), 1))})  # equal ones happen
    return truth, found


def test_equals_pycocotools_on_random_predictions(coco):  # noqa: F811
    truth, found = random_case(coco, 0)
    scores = average_precision(truth, found, n_train=9)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        with contextlib.redirect_stdout(io.StringIO()):  # as its documentation has it
            known = COCO()
            known.dataset = truth | {"annotations": [dict(a, id=i + 1) for i, a in enumerate(truth["annotations"])]}
            known.createIndex()
            judged = COCOeval(known, known.loadRes([dict(d) for d in found]), kind)
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        ap, ap50 = judged.stats[:2]
        assert scores[f"{name}_ap"]["score"] == pytest.approx(ap, abs=1e-12) and 0.05 < ap < 0.9
        assert scores[f"{name}_ap50"]["score"] == pytest.approx(ap50, abs=1e-12)
    box = scores["box_ap"]
    assert (box["n_train"], box["n_test"], box["metric"]) == (9, 24, "box AP@[.50:.95]")
    assert 0 <= box["low"] <= box["score"] <= box["high"] <= 1


def test_an_image_drawn_twice_counts_twice(coco):  # noqa: F811
    """A resample equals pycocotools on a data set in which the images are really there so often."""
    truth, found = random_case(coco, 7)
    # scores of their own: the order of equal ones is that of the images, which differs between the two
    found = [dict(d, score=s) for d, s in zip(found, np.random.default_rng(1).random(len(found)), strict=True)]
    drawn = resampled_precisions(judge(truth, found, "bbox"), 3)
    picks = np.random.default_rng(0).integers(24, size=(3, 24))
    for draw, pick in zip(drawn, picks, strict=True):
        images, annotations, guesses = [], [], []
        for place, i in enumerate(pick.tolist()):
            images.append(truth["images"][i] | {"id": place})
            annotations += [a | {"image_id": place} for a in truth["annotations"] if a["image_id"] == i]
            guesses += [d | {"image_id": place} for d in found if d["image_id"] == i]
        judged = judge(truth | {"images": images, "annotations": annotations}, guesses, "bbox")
        assert draw == pytest.approx(precisions(judged), abs=1e-12)
