"""Mask R-CNN on Swin V2: its network, its steps, resuming, several processes, the full-size recipes, and learning."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from simmim_lite.data import coco, scene_layouts
from simmim_lite.data.coco import decode, open_coco
from simmim_lite.errors import UserError
from simmim_lite.model import sizes
from simmim_lite.model.simmim import create_model
from simmim_lite.training import loop as loop_module
from simmim_lite.training.dense import Dense
from simmim_lite.training.detect import Detection, detections, mirrored
from simmim_lite.training.detector import Anchors, Pyramid, build_detector
from simmim_lite.training.distributed import Team
from simmim_lite.training.loop import Loop, work
from simmim_lite.training.run import Run
from simmim_lite.training.transfer import once, transfer

US = Team(torch.device("cpu"))
SMALL = {"task": "detect", "channels": 16, "hidden": 32, "batch_size": 4, "test_images": 12, "eval_every": 3}
NARROW = sizes.Size("swinv2_narrow", 32, (1, 1, 2, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few scenes in COCO layout."""
    path = tmp_path_factory.mktemp("coco")
    scene_layouts.write_coco(path, train=24, val=12, size=32)
    return f"coco:{path}"


def detection(folder, weights=None, us=US, **options):
    spec = Dense(**{**SMALL, "data": folder, "steps": 6, **options})
    return spec, Detection(spec, open_coco(folder, 32), weights, us)


@pytest.fixture
def narrow(monkeypatch):
    """A four-stage size of 32 channels, so that the full-size path runs in seconds."""
    monkeypatch.setitem(sizes.SIZES, NARROW.name, NARROW)


# the network


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


def test_where_it_starts(folder):
    run = Run(model="swinv2_atto", images=64, steps=1)
    weights = {k: torch.rand_like(v) for k, v in create_model("swinv2_atto", 32, 4).state_dict().items()}
    _, scratch = detection(folder)
    _, pretrained = detection(folder, weights, run=run, lr=1e-4)
    for name, value in pretrained.model.state_dict().items():
        inside = name.removeprefix("backbone.encoder.")
        expected = weights["encoder." + inside] if inside != name else scratch.model.state_dict()[name]
        assert torch.equal(value, expected), name
    assert not pretrained.model.backbone.encoder.mask_token.requires_grad
    _, other = detection(folder, seed=1)
    assert not torch.equal(other.model.rpn.head.conv[0][0].weight, scratch.model.rpn.head.conv[0][0].weight)
    with pytest.raises(UserError, match="needs the run and its weights"):
        detection(folder, run=run)


def test_layers_learn_more_slowly_the_deeper_they_are(folder):
    run = Run(model="swinv2_atto", images=64, steps=1)
    weights = create_model("swinv2_atto", 32, 4).state_dict()
    _, job = detection(folder, weights, run=run, layer_decay=0.5)
    scale = {name: g["scale"] for g in job.groups() for name in g["names"]}
    decay = {name: g["weight_decay"] for g in job.groups() for name in g["names"]}
    assert set(scale) == {n for n, p in job.model.named_parameters() if p.requires_grad}
    table = {
        "patch_embed.proj.weight": 0.5**5,
        "layers.0.blocks.0.attn.qkv.weight": 0.5**4,
        "layers.0.blocks.1.mlp.fc1.weight": 0.5**3,
        "layers.0.downsample.reduction.weight": 0.5**3,
        "layers.1.blocks.1.norm2.bias": 0.5,
        "norm.weight": 1.0,
    }
    for name, expected in table.items():
        assert scale[f"backbone.encoder.{name}"] == expected
    heads = [n for n in scale if not n.startswith("backbone.encoder.")]
    assert {scale[n] for n in heads} == {1.0} and any(n.startswith("backbone.fpn") for n in heads)
    assert decay["roi_heads.box_head.fc6.weight"] == 0.05 and decay["roi_heads.box_head.fc6.bias"] == 0
    assert decay["backbone.encoder.layers.0.blocks.0.attn.logit_scale"] == 0


# steps


def test_a_mirror_image_has_its_boxes_around_its_masks(folder):
    split = open_coco(folder, 32).train
    for i in range(6):
        sample = split[i]
        turned = mirrored(sample)
        assert np.array_equal(turned.image[:, :, 0], sample.image[:, :, -1])
        for (x0, y0, x1, y1), mask in zip(turned.boxes, turned.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
        assert all(np.array_equal(a, b) for a, b in zip(mirrored(turned), sample, strict=True))


def test_a_step_is_a_function_of_seed_and_step(folder):
    _, job = detection(folder)
    job.model.train()
    first = job.loss(job.model, 3).item()
    torch.rand(5), np.random.rand(3)
    other = job.loss(job.model, 4).item()
    assert job.loss(job.model, 3).item() == first != other
    turned = [job.batches.batch(step)[0][0] for step in range(6)]
    plain = [job.batches.samples.load.split[int(job.batches.order.positions(s)[1][0])].image for s in range(6)]
    same = [np.array_equal(a.numpy(), b) for a, b in zip(turned, plain, strict=True)]
    assert any(same) and not all(same)  # some are mirrored
    assert all(np.array_equal(a.numpy()[..., ::-1], b) for a, b, s in zip(turned, plain, same, strict=True) if not s)


def test_a_killed_training_goes_on_bit_for_bit(folder, tmp_path, monkeypatch):
    spec, whole = detection(folder, precision="bf16")
    expected = Loop(spec, whole, US, folder=None, data_digest="d")
    curve, _ = expected.run()
    monkeypatch.setattr(loop_module, "CHECKPOINT_SECONDS", 0)
    _, half = detection(folder, precision="bf16")
    killed = Loop(spec, half, US, folder=tmp_path, data_digest="d")

    def kill(step, steps):
        if step == 3:
            killed.save()
            raise KeyboardInterrupt

    killed.progress = kill
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    _, rest = detection(folder, precision="bf16")
    resumed = Loop(spec, rest, US, folder=tmp_path, data_digest="d")
    assert resumed.step == 3
    assert resumed.run()[0] == curve
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name


def test_the_loss_falls(folder):
    spec, job = detection(folder, steps=40, eval_every=10, lr=3e-3, warmup_steps=5, images=8, drop_path=0.0)
    record = work(spec, job, US, digest="d")
    curve = [p["train_loss"] for p in record["curve"]]
    assert record["status"] == "done" and curve[-1] < 0.6 * curve[0]
    assert record["cost"]["unique_images"] == 8 and record["cost"]["flops"] is None


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from simmim_lite.data.coco import open_coco
from simmim_lite.training.dense import Dense
from simmim_lite.training.detect import Detection
from simmim_lite.training.distributed import team
from simmim_lite.training.loop import work
spec = Dense(task="detect", data=sys.argv[1], steps=2, batch_size=4, channels=16, hidden=32, test_images=7)
data = open_coco(spec.data, 32)
with team("cpu") as us:
    job = Detection(spec, data, None, us)
    before = sum(p.double().sum().item() for p in job.model.parameters())
    record = work(spec, job, us, digest=data.digest)
    after = [sum(p.double().sum().item() for p in job.model.parameters()), record["transfer"]["box_ap"]["n_test"]]
    said = us.gather(after)
    if us.main:
        print("processes", us.size, said[0] == said[1], said[0][0] != before, record["status"], said[0][1])
"""


def test_two_processes_hold_the_same_network(folder, tmp_path):
    path = tmp_path / "two.py"
    path.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(path), folder], capture_output=True, text=True, timeout=120)
    assert "processes 2 True True done 7" in done.stdout, done.stderr[-2000:]


# evaluation


def test_what_is_found_does_not_depend_on_who_looks(folder):
    _, job = detection(folder)
    split = job.data.test
    together = detections(job, split, range(12))
    assert len(together) > 12 and job.model.training
    assert {d["image_id"] for d in together} == set(range(12))
    apart = [*detections(job, split, range(0, 12, 2)), *detections(job, split, range(1, 12, 2))]
    apart.sort(key=lambda d: d["image_id"])
    assert [d["category_id"] for d in apart] == [d["category_id"] for d in together]
    assert np.allclose([d["bbox"] for d in apart], [d["bbox"] for d in together], atol=1e-4)
    assert all(d["segmentation"]["size"] == [32, 32] and 1 <= d["category_id"] <= 10 for d in together)


def test_the_truth_scores_one(folder, monkeypatch):
    """Boxes and masks of the ground truth, put in the place of the network's, are found to be perfect."""
    _, job = detection(folder)
    split, order = job.data.test, []

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

    job.model = Knows()
    order.extend(range(12))
    parts, reason = job.evaluate()
    assert reason is None and {s["score"] for s in parts["transfer"].values()} == {1.0}
    assert [e["file"] for e in parts["examples"]] == split.files[:6]
    first, known = parts["examples"][0], split[0]
    assert first["labels"] == (known.labels - 1).tolist() and np.allclose(first["boxes"], known.boxes)
    mask = decode({"size": first["size"], "counts": first["masks"][0]}, (32, 32))
    assert np.array_equal(mask, known.masks[0])


def test_scores_that_cannot_be_are_a_reason(folder):
    _, job = detection(folder)
    job.data.test.objects[:] = [[] for _ in job.data.test.objects]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "data", dataclasses.replace(job.data, test=job.data.test))
        assert "none of 12 images has an object" in job.evaluate()[1]
    coco._open.cache_clear()
    _, job = detection(folder)
    with torch.no_grad():
        job.model.rpn.head.cls_logits.bias.fill_(torch.nan)
    assert job.evaluate() == ({}, "the trained network's weights were not finite; lower lr (0.001)")


# the whole path


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


def test_a_transfer_of_a_run_beside_scratch(folder, tmp_path):
    run = Run(model="swinv2_atto", images=32, steps=2, batch_size=8, val_images=8, val_masks=1, probe_labels=0)
    options = {k: v for k, v in SMALL.items() if k != "task"} | {"data": folder, "steps": 3}
    result = transfer(run, "detect", runs_dir=tmp_path, device="cpu", **options, scratch={"lr": 2e-3})
    assert set(result["lift"]) == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}
    assert result["trained"]["run"] == run.to_dict() and result["baseline"]["run"] is None
    assert result["baseline"]["spec"]["lr"] == 2e-3
    kept = [json.loads(p.read_text()) for p in (tmp_path / "transfer").glob("*.json")]
    assert sorted(r["key"] for r in kept) == sorted(result[k]["key"] for k in ("trained", "baseline"))
    assert transfer(run, "detect", runs_dir=tmp_path, device="cpu", **options, scratch={"lr": 2e-3}) == result


def test_laptop_defaults_are_for_scenes():
    run = Run()
    assert (Dense.of("detect", run).channels, Dense.scratch("detect", run).images) == (32, 512)
    elsewhere = Dense.of("detect", run, data="coco:somewhere")
    assert (elsewhere.channels, elsewhere.images) == (64, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 99}, "images 99: train of coco:.* holds 24 images; ask for 1 to 24"),
        ({"augment": "scale+crop+colour"}, "unknown augment .*known are flip, scale"),
        ({"short_sides": (24, 32)}, "go with augment scale"),
        ({"short_sides": (32, 24), "augment": "scale"}, "end with image_size 32"),
        ({"batch_size": 3, "us": Team(torch.device("cpu"), 0, 2)}, "does not divide among 2 processes: try 2"),
    ],
)
def test_wrong_specs_are_one_line(folder, options, words):
    with pytest.raises(UserError, match=words):
        detection(folder, **options)
