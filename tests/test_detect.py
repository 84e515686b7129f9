"""Mask R-CNN on Swin V2: its steps, resuming, several processes, scores and learning."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from child_processes import PATIENCE
from detecting import SMALL, US, detection, folder  # noqa: F401 (fixtures)

from simmim_lite.data import coco
from simmim_lite.data.coco import decode_mask, open_coco
from simmim_lite.errors import UserError
from simmim_lite.model.simmim import create_model
from simmim_lite.training import loop as loop_module
from simmim_lite.training.dense import Dense
from simmim_lite.training.detect import detections, mirrored
from simmim_lite.training.distributed import Team
from simmim_lite.training.loop import Loop, work
from simmim_lite.training.run import Run
from simmim_lite.training.transfer import transfer


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
    done = subprocess.run([*launch, str(path), folder], capture_output=True, text=True, timeout=PATIENCE)
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
    mask = decode_mask({"size": first["size"], "counts": first["masks"][0]}, (32, 32))
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
