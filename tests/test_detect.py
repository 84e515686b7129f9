"""Mask R-CNN on Swin V2: levels, anchors, precision, steps, what is found and scored, and the full-size recipes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ALONE, NARROW, coco, detection, narrow, same  # noqa: F401 (fixtures)
from torchvision.models.detection.image_list import ImageList

from simmim_lite.data import coco as coco_module
from simmim_lite.data import scenes
from simmim_lite.data.coco import decode_mask, open_coco
from simmim_lite.errors import UserError
from simmim_lite.model import sizes
from simmim_lite.model.simmim import create_model
from simmim_lite.training.detect import Anchors, Pyramid, build_detector, detections, mirrored
from simmim_lite.training.parallel import Team
from simmim_lite.training.run import Run
from simmim_lite.training.transfer import once, work
from simmim_lite.training.tuning import Dense


def test_where_it_starts_and_how_fast_layers_learn(coco):  # noqa: F811
    run = Run(model="swinv2_atto", images=64, steps=1)
    weights = {k: torch.rand_like(v) for k, v in create_model("swinv2_atto", 32, 4).state_dict().items()}
    _, scratch = detection(coco)
    _, task = detection(coco, weights, run=run, layer_decay=0.5)
    for name, value in task.model.state_dict().items():
        inside = name.removeprefix("backbone.encoder.")
        expected = weights["encoder." + inside] if inside != name else scratch.model.state_dict()[name]
        assert torch.equal(value, expected), name
    _, other = detection(coco, seed=1)
    assert not torch.equal(other.model.rpn.head.conv[0][0].weight, scratch.model.rpn.head.conv[0][0].weight)
    with pytest.raises(UserError, match="needs the run and its weights"):
        detection(coco, run=run)
    scale = {name: g["scale"] for g in task.groups() for name in g["names"]}
    decay = {name: g["weight_decay"] for g in task.groups() for name in g["names"]}
    assert set(scale) == {n for n, p in task.model.named_parameters() if p.requires_grad}
    table = {"patch_embed.proj.weight": 5, "layers.0.blocks.0.attn.qkv.weight": 4, "layers.1.blocks.1.norm2.bias": 1}
    table |= {"layers.0.blocks.1.mlp.fc1.weight": 3, "layers.0.downsample.reduction.weight": 3, "norm.weight": 0}
    assert all(scale[f"backbone.encoder.{name}"] == 0.5**i for name, i in table.items())
    heads = [n for n in scale if not n.startswith("backbone.encoder.")]
    assert {scale[n] for n in heads} == {1.0} and any(n.startswith("backbone.fpn") for n in heads)
    assert decay["roi_heads.box_head.fc6.weight"] == 0.05 and decay["roi_heads.box_head.fc6.bias"] == 0
    assert decay["backbone.encoder.layers.0.blocks.0.attn.logit_scale"] == 0


def test_a_level_a_stage_and_the_pool():
    pyramid = Pyramid(create_model("swinv2_atto", 32, 4).encoder, 16)
    shapes = {name: tuple(m.shape) for name, m in pyramid(torch.rand(2, 3, 32, 48)).items()}
    assert shapes == {"0": (2, 16, 8, 12), "1": (2, 16, 4, 6), "pool": (2, 16, 2, 3)}
    assert len(pyramid.norms) == 1  # the encoder normalises its last map itself


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
        area = (here[:, 2:] - here[:, :2]).prod(1)
        assert ((area / side**2 - 1).abs() < 0.15).all()  # corners are whole pixels


def test_full_size_is_the_standard_one(narrow):  # noqa: F811
    model = build_detector(Dense.recipe("mask-rcnn-1x", 100, model=NARROW.name), 80, (0,) * 3, (1,) * 3)
    assert model.transform.min_size == (800,) and model.transform.max_size == 1333
    rpn, roi = model.rpn, model.roi_heads
    assert (rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"]) == (1000, 1000)
    assert (rpn.fg_bg_sampler.batch_size_per_image, roi.fg_bg_sampler.batch_size_per_image) == (256, 512)
    assert roi.box_head.fc6.weight.shape == (1024, 256 * 49) and roi.box_predictor.cls_score.out_features == 81
    assert roi.mask_roi_pool.output_size == (14, 14) and len(roi.mask_head) == 4 and roi.detections_per_img == 100
    assert rpn.head.cls_logits.out_channels == 3


def test_the_recipes_are_the_papers_and_laptop_defaults_are_for_scenes():
    for name, epochs, at in (("mask-rcnn-1x", 12, (8, 11)), ("mask-rcnn-3x", 36, (27, 33))):
        spec = Dense.recipe(name, 16_000)
        assert (spec.steps, spec.batch_size, spec.weight_decay, spec.clip_grad) == (epochs * 1000, 16, 0.05, None)
        assert (spec.image_size, spec.longest, spec.channels, spec.hidden) == (800, 1333, 256, 1024)
        rates = [spec.lr_at(now) for m in at for now in (m * 1000 - 1, m * 1000)]
        assert rates == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6])
        assert spec.lr_at(0) == pytest.approx(1e-7) and spec.lr_at(250) == pytest.approx(1e-4 * 0.5005)
    assert Dense.recipe("mask-rcnn-3x", 100).short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    spec = Dense.recipe("upernet-160k", 20_210)
    assert (spec.steps, spec.batch_size, spec.warmup_steps, spec.clip_grad) == (160_000, 16, 1500, None)
    assert spec.lr_at(0) == pytest.approx(6e-5 * 1e-6)
    assert spec.lr_at(750) == pytest.approx(6e-5 * (1 - 750 / 160_000) * 0.5, rel=1e-5)
    assert spec.lr_at(80_000) == pytest.approx(3e-5) and spec.lr_at(159_999) == pytest.approx(6e-5 / 160_000)
    run = Run()
    assert (Dense.of("detect", run).channels, Dense.scratch("detect", run).images) == (32, 512)
    assert (Dense.of("segment", run).batch_size, Dense.of("detect", run).batch_size) == (32, 16)
    elsewhere = Dense.of("detect", run, data="coco:somewhere")
    assert (elsewhere.channels, elsewhere.images) == (64, None)


def test_a_mirror_image_has_its_boxes_around_its_masks(coco):  # noqa: F811
    split = open_coco(coco, 32).train
    for i in range(6):
        sample = split[i]
        turned = mirrored(sample)
        assert np.array_equal(turned.image[:, :, 0], sample.image[:, :, -1])
        for (x0, y0, x1, y1), mask in zip(turned.boxes, turned.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
        assert all(np.array_equal(a, b) for a, b in zip(mirrored(turned), sample, strict=True))


def test_a_step_is_a_function_of_seed_and_step(coco):  # noqa: F811
    _, task = detection(coco)
    task.model.train()
    first = task.loss(task.model, *task.batch(3)).item()
    torch.rand(5), np.random.rand(3)
    other = task.loss(task.model, *task.batch(4)).item()
    assert task.loss(task.model, *task.batch(3)).item() == first != other
    turned = [task.loader.batch(now)[0][0].numpy() for now in range(6)]
    plain = [task.loader.dataset.load.split[int(task.loader.order.positions(s)[1][0])].image for s in range(6)]
    alike = [np.array_equal(a, b) for a, b in zip(turned, plain, strict=True)]
    assert any(alike) and not all(alike)  # some are mirrored
    assert all(np.array_equal(a[..., ::-1], b) for a, b, s in zip(turned, plain, alike, strict=True) if not s)


def test_below_full_precision_coordinates_are_not(coco):  # noqa: F811
    """A box at 1,333 px has no whole pixels in bf16."""
    _, task = detection(coco)
    with torch.autocast("cpu", torch.bfloat16):
        maps = task.model.backbone(torch.rand(1, 3, 32, 32))
        rpn = task.model.rpn.head(list(maps.values()))
        boxes = task.model.roi_heads.box_predictor(torch.rand(2, 32))
    assert {t.dtype for t in [*maps.values(), *rpn[0], *rpn[1], *boxes]} == {torch.float32}


def test_the_loss_falls(coco):  # noqa: F811
    spec, task = detection(coco, steps=40, eval_every=10, lr=3e-3, warmup_steps=5, images=8, drop_path=0.0)
    record = work(spec, task, ALONE, digest="d")
    curve = [p["train_loss"] for p in record["curve"]]
    assert record["status"] == "done" and curve[-1] < 0.6 * curve[0]
    assert record["cost"]["unique_images"] == 8 and record["cost"]["flops"] is None


def test_what_is_found_does_not_depend_on_who_looks(coco):  # noqa: F811
    _, task = detection(coco)
    split = task.data.test
    together = detections(task, split, range(12))
    assert len(together) > 12 and task.model.training and {d["image_id"] for d in together} == set(range(12))
    apart = [*detections(task, split, range(0, 12, 2)), *detections(task, split, range(1, 12, 2))]
    apart.sort(key=lambda d: d["image_id"])
    assert [d["category_id"] for d in apart] == [d["category_id"] for d in together]
    assert np.allclose([d["bbox"] for d in apart], [d["bbox"] for d in together], atol=1e-4)
    assert all(d["segmentation"]["size"] == [32, 32] and 1 <= d["category_id"] <= 10 for d in together)


def test_the_truth_scores_one(coco):  # noqa: F811
    """Boxes and masks of the ground truth, put in the place of the network's, are found to be perfect."""
    _, task = detection(coco)
    split, order = task.data.test, list(range(12))

    class Knows(torch.nn.Module):
        def forward(self, images):
            samples = [split[order.pop(0)] for _ in images]
            return [
                {
                    "boxes": torch.from_numpy(s.boxes),
                    "labels": torch.from_numpy(s.labels),
                    "scores": torch.full((len(s.labels),), 0.9),
                    "masks": torch.from_numpy(s.masks)[:, None].float(),
                }
                for s in samples
            ]

    task.model = Knows()
    parts, reason = task.evaluate()
    assert reason is None and {s["score"] for s in parts["transfer"].values()} == {1.0}
    assert [e["file"] for e in parts["examples"]] == split.files[:6]
    first, known = parts["examples"][0], split[0]
    assert first["labels"] == (known.labels - 1).tolist() and np.allclose(first["boxes"], known.boxes)
    mask = decode_mask({"size": first["size"], "counts": first["masks"][0]}, (32, 32))
    assert np.array_equal(mask, known.masks[0])


def test_scores_that_cannot_be_are_a_reason(coco):  # noqa: F811
    _, task = detection(coco)
    task.data.test.objects[:] = [[] for _ in task.data.test.objects]
    assert "none of 12 images has an object" in task.evaluate()[1]
    coco_module._open.cache_clear()
    _, task = detection(coco)
    with torch.no_grad():
        task.model.rpn.head.cls_logits.bias.fill_(torch.nan)
    assert task.evaluate() == ({}, "the trained network's weights were not finite; lower lr (0.001)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 99}, "images 99: train of coco:.* holds 24 images; ask for 1 to 24"),
        ({"augment": "scale+crop+colour"}, "unknown augment .*known are flip, scale"),
        ({"short_sides": (24, 32)}, "go with augment scale"),
        ({"short_sides": (32, 24), "augment": "scale"}, "end with image_size 32"),
        ({"long_side": 24}, "long_side is 24: give at least image_size, 32, or None"),
        ({"data": "ade20k:DIR"}, "data 'ade20k:DIR' has no annotations for detect: give scenes or coco:DIR"),
        ({"batch_size": 3, "team": Team(torch.device("cpu"), 0, 2)}, "does not divide among 2 processes: try 2"),
    ],
)
def test_wrong_specs_are_one_line(coco, options, words):  # noqa: F811
    with pytest.raises(UserError, match=words):
        detection(coco, **options)


def test_a_recipe_takes_a_step(narrow, tmp_path):  # noqa: F811
    """The full-size path at 800 x 1333: only the network is narrower and the batch one image."""
    root = tmp_path / "coco"
    scenes.write_coco(root, train=3, val=1, size=96)
    for part in ("train", "val"):  # pictures in the ratio 5 to 3, and masks their boxes as polygons
        path = root / "annotations" / f"instances_{part}2017.json"
        content = json.loads(path.read_text())
        for row in content["images"]:
            picture, wide = root / f"{part}2017" / row["file_name"], Image.new("RGB", (160, 96))
            wide.paste(Image.open(picture))
            wide.save(picture)
            row["width"] = 160
        for row in content["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        path.write_text(json.dumps(content))
    data = open_coco(f"coco:{root}", 800)
    spec = Dense.recipe("mask-rcnn-3x", len(data.train), model=NARROW.name, data=data.spec, steps=1, batch_size=1)
    record, computed = once(spec, runs_dir=tmp_path / "runs", device="cpu")
    assert computed and record["status"] == "done", record["reason"]
    assert record["spec"]["precision"] == "bf16" and np.isfinite(record["curve"][0]["train_loss"])
    for score in ("box_ap", "mask_ap", "box_ap50", "mask_ap50"):
        assert 0 <= record["transfer"][score]["score"] <= 1 and record["transfer"][score]["n_test"] == 1
    assert "examples" not in record  # larger pictures are not kept in a record
