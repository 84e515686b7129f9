"""Mask R-CNN on Swin V2: levels, anchors, precision, and the full-size recipes."""

import json

import numpy as np
import pytest
import torch
from detecting import NARROW, detection, folder, narrow  # noqa: F401 (fixtures)
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from simmim_lite.data import scene_layouts
from simmim_lite.data.coco import open_coco
from simmim_lite.model import sizes
from simmim_lite.model.simmim import create_model
from simmim_lite.training.dense import Dense
from simmim_lite.training.detector import Anchors, Pyramid, build_detector
from simmim_lite.training.transfer import once


def test_a_level_a_stage_and_the_pool():
    pyramid = Pyramid(create_model("swinv2_atto", 32, 4).encoder, 16)
    maps = pyramid(torch.rand(2, 3, 32, 48))
    shapes = {name: tuple(m.shape) for name, m in maps.items()}
    assert shapes == {"0": (2, 16, 8, 12), "1": (2, 16, 4, 6), "pool": (2, 16, 2, 3)}
    assert len(pyramid.norms) == 1  # the encoder normalises its last map itself


def test_anchors_of_a_scene_and_of_full_size():
    """Centres are multiples of the true strides, also where the pooled map was rounded up (25 x 42 to 13 x 21)."""
    for size, image_size, height, width, sides in (
        (sizes.SIZES["swinv2_atto"], 32, 32, 32, (8, 16, 32)),
        (sizes.SIZES["swinv2_base"], 800, 800, 1344, (32, 64, 128, 256, 512)),
    ):
        anchors = Anchors(size, image_size)
        assert tuple(s for (s,) in anchors.sizes) == sides
        strides = [4 << level for level in range(len(sides))]
        maps = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides]
        boxes = anchors(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]
        at = 0
        for stride, side, m in zip(strides, sides, maps, strict=True):
            here = boxes[at : at + 3 * m[0, 0].numel()]
            at += len(here)
            centre = (here[:, :2] + here[:, 2:]) / 2
            assert (centre % stride == 0).all() and centre.max(0).values.tolist() == [
                (m.shape[3] - 1) * stride,
                (m.shape[2] - 1) * stride,
            ]
            area = (here[:, 2:] - here[:, :2]).prod(1)
            assert ((area / side**2 - 1).abs() < 0.15).all()  # corners are whole pixels
        assert at == len(boxes)


def test_full_size_is_the_standard_one(narrow):
    model = build_detector(Dense.recipe("mask-rcnn-1x", 100, model=NARROW.name), 80, (0,) * 3, (1,) * 3)
    assert model.transform.min_size == (800,) and model.transform.max_size == 1333
    rpn, roi = model.rpn, model.roi_heads
    assert (rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"]) == (1000, 1000)
    assert (rpn.fg_bg_sampler.batch_size_per_image, roi.fg_bg_sampler.batch_size_per_image) == (256, 512)
    assert roi.box_head.fc6.weight.shape == (1024, 256 * 49) and roi.box_predictor.cls_score.out_features == 81
    assert roi.mask_roi_pool.output_size == (14, 14) and len(roi.mask_head) == 4 and roi.detections_per_img == 100
    assert rpn.head.cls_logits.out_channels == 3


def test_the_recipes_are_the_papers():
    for name, epochs, at in (("mask-rcnn-1x", 12, (8, 11)), ("mask-rcnn-3x", 36, (27, 33))):
        spec = Dense.recipe(name, 16_000)
        assert (spec.steps, spec.batch_size, spec.weight_decay, spec.clip_grad) == (epochs * 1000, 16, 0.05, None)
        assert (spec.image_size, spec.longest, spec.channels, spec.hidden) == (800, 1333, 256, 1024)
        rates = [spec.lr_at(step) for m in at for step in (m * 1000 - 1, m * 1000)]
        assert rates == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6])
        assert spec.lr_at(0) == pytest.approx(1e-7) and spec.lr_at(250) == pytest.approx(1e-4 * 0.5005)
    assert Dense.recipe("mask-rcnn-3x", 100).short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def test_below_full_precision_coordinates_are_not(folder):
    """A box at 1,333 px has no whole pixels in bf16."""
    _, job = detection(folder)
    with torch.autocast("cpu", torch.bfloat16):
        maps = job.model.backbone(torch.rand(1, 3, 32, 32))
        rpn = job.model.rpn.head(list(maps.values()))
        boxes = job.model.roi_heads.box_predictor(torch.rand(2, 32))
    found = [*maps.values(), *rpn[0], *rpn[1], *boxes]
    assert {t.dtype for t in found} == {torch.float32}


def widen(folder):
    """Scenes become pictures in the ratio 5 to 3, so 800 x 1333 px when resized, and masks their boxes as polygons."""
    for part in ("train", "val"):
        path = folder / "annotations" / f"instances_{part}2017.json"
        content = json.loads(path.read_text())
        for row in content["images"]:
            picture = folder / f"{part}2017" / row["file_name"]
            wide = Image.new("RGB", (160, 96))
            wide.paste(Image.open(picture))
            wide.save(picture)
            row["width"] = 160
        for row in content["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["mask-rcnn-1x", "mask-rcnn-3x"])
def test_a_recipe_takes_a_step(narrow, tmp_path, name):
    """The full-size path at 800 x 1333: only the network is narrower and the batch one image."""
    scene_layouts.write_coco(tmp_path / "coco", train=3, val=1, size=96)
    widen(tmp_path / "coco")
    data = open_coco(f"coco:{tmp_path / 'coco'}", 800)
    spec = Dense.recipe(name, len(data.train), model=NARROW.name, data=data.spec, steps=1, batch_size=1)
    record, computed = once(spec, runs_dir=tmp_path / "runs", device="cpu")
    assert computed and record["status"] == "done", record["reason"]
    assert record["spec"]["precision"] == "bf16" and np.isfinite(record["curve"][0]["train_loss"])
    for score in ("box_ap", "mask_ap", "box_ap50", "mask_ap50"):
        assert 0 <= record["transfer"][score]["score"] <= 1 and record["transfer"][score]["n_test"] == 1
    assert "examples" not in record  # larger pictures are not kept in a record
