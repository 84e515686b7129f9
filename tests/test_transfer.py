"""Transfer: a run's weights beside the same network without them, each score computed once and kept; every task."""

import dataclasses
import json

import pytest
import tiny
import torch
from ade_folders import ade_folder
from photos import imagenet
from tiny import coco, numbers, same, slim, stopped, tiny_data, tiny_spec, trained  # noqa: F401 (fixtures)

from simmim_lite.data import scenes
from simmim_lite.data.sources import open_pictures
from simmim_lite.errors import UserError
from simmim_lite.training import pretrain as pretrain_module
from simmim_lite.training import transfer as module
from simmim_lite.training.finetune import build_encoder
from simmim_lite.training.record import read_record
from simmim_lite.training.run import Run, record_path, transfer_path, weights_path
from simmim_lite.training.transfer import transfer
from simmim_lite.training.tuning import Dense, FineTune

RUN = Run(image_size=16, images=32, steps=3, batch_size=8, val_images=8, val_masks=1, probe_labels=40, probe_test=30)


@pytest.fixture
def opened(monkeypatch):
    """Every source is a tiny one; the list of runs and specs that were really computed."""
    done = []
    for where, name in ((module, "open_data"), (pretrain_module, "open_data")):
        monkeypatch.setattr(where, name, lambda *a, **k: tiny_data())
    probe, work = module.probe_all, module.work
    monkeypatch.setattr(module, "probe_all", lambda m, d, run, **k: done.append(run.steps) or probe(m, d, run, **k))
    monkeypatch.setattr(module, "work", lambda task, *a: done.append(task.spec.init) or work(task, *a))
    return done


def test_transfer_probes_beside_random_initialisation_once(tmp_path, opened, monkeypatch, capsys):
    result = transfer(RUN, "probe", runs_dir=tmp_path)
    trained, baseline = result["trained"], result["baseline"]
    assert opened == [3, 0] and (trained["run"]["steps"], baseline["run"]["steps"]) == (3, 0)
    assert trained["transfer"] == read_record(record_path(tmp_path, RUN))["transfer"]
    for name in ("linear", "knn", "segment"):
        assert result["lift"][name] == trained["transfer"][name]["score"] - baseline["transfer"][name]["score"]
    assert transfer(RUN, "probe", runs_dir=tmp_path) == result and opened == [3, 0]
    assert read_record(transfer_path(tmp_path, trained["key"])) == trained
    assert transfer(RUN, "probe", runs_dir=tmp_path, labels=20)["trained"]["transfer"]["knn"]["n_train"] == 20
    with pytest.raises(UserError, match="images 2000: probe_train holds 64 images"):
        transfer(RUN, "probe", runs_dir=tmp_path, labels=2000)
    other = dataclasses.replace(tiny_data(n=48), digest="other")  # the images changed
    for where, name in ((module, "open_data"), (pretrain_module, "open_data")):
        monkeypatch.setattr(where, name, lambda *a, **k: other)
    again = transfer(RUN, "probe", runs_dir=tmp_path)
    assert again["trained"]["where"]["data_digest"] == "other" and again["lift"] != result["lift"]
    assert "made from other images" in capsys.readouterr().err


def test_transfer_fine_tunes_beside_scratch_once(tmp_path, opened, monkeypatch):
    said, options = [], {"labels": 40, "steps": 4, "batch_size": 8, "test_images": 30, "scratch": {"lr": 1e-3}}
    result = transfer(RUN, "classify", runs_dir=tmp_path, progress=lambda *p: said.append(p), **options)
    trained, baseline = result["trained"], result["baseline"]
    assert trained["run"] == RUN.to_dict() and baseline["run"] is None and said == [(3, 11), (7, 11), (11, 11)]
    assert (trained["spec"]["layer_decay"], baseline["spec"]["layer_decay"]) == (FineTune().layer_decay, 1.0)
    assert (trained["spec"]["lr"], baseline["spec"]["lr"]) == (FineTune().lr, 1e-3)
    assert result["lift"] == {"top1": trained["final"]["top1"] - baseline["final"]["top1"]}
    assert trained["curve"] != baseline["curve"]
    assert transfer(RUN, "classify", runs_dir=tmp_path, **options) == result and opened == ["pretrained", "scratch"]
    # another run of the same size shares the baseline
    other = transfer(dataclasses.replace(RUN, steps=0), "classify", runs_dir=tmp_path, **options)
    assert other["baseline"] == baseline and opened == ["pretrained", "scratch", "pretrained"]
    # a file in place of the run's weights, by a name of the hub
    file, asked = weights_path(tmp_path, RUN), []
    monkeypatch.setattr(module, "fetch", lambda name: asked.append(name) or file)
    result = transfer(RUN, "classify", runs_dir=tmp_path, weights="hf://own/weights/atto.safetensors", **options)
    assert asked == ["hf://own/weights/atto.safetensors"] and result["trained"]["run"] is None
    assert result["trained"]["spec"]["weights"].startswith(f"{file.name}@")
    # a file of ours does not tell its windows: the run says which network it is
    wide = dataclasses.replace(RUN, image_size=64, window_size=8)
    own, base = module.specs(wide, "classify", file, scratch={"layer_decay": 0.5})
    assert own.weights_windows == wide.windows == (8, 8) and (own.layer_decay, base.layer_decay) == (0.9, 0.5)
    encoder = build_encoder(own, pretrain_module.build(RUN).state_dict())
    learnt = [stage.blocks[0].attn.pretrained_window for stage in encoder.layers]
    assert learnt == [8, 8] and base.weights_windows is None
    usual = dataclasses.replace(RUN, image_size=32)
    assert module.specs(usual, "classify", file)[0].weights_windows is None


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_dense_transfers_beside_scratch(task, coco, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(scenes, "ADE_SPLITS", {"training": (3, 16), "validation": (2, 9)})
    monkeypatch.setattr(pretrain_module, "open_data", lambda *a, **k: tiny_data())
    run = dataclasses.replace(RUN, probe_labels=0)
    options = {"steps": 3, "batch_size": 4, "channels": 8, "images": 8, "test_images": 9, "scratch": {"lr": 2e-3}}
    options |= {"data": coco} if task == "detect" else {}  # else scenes
    result = transfer(run, task, runs_dir=tmp_path, **options)
    trained, baseline = result["trained"], result["baseline"]
    assert trained["status"] == baseline["status"] == "done" and trained["run"] == run.to_dict()
    lifts = {"detect": {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}, "segment": {"miou", "pixel_accuracy"}}
    assert set(result["lift"]) == lifts[task] and trained["curve"] != baseline["curve"]
    assert baseline["run"] is None and baseline["spec"]["lr"] == 2e-3 and trained["spec"]["image_size"] == 16
    assert trained["cost"]["unique_images"] == 8 and transfer(run, task, runs_dir=tmp_path, **options) == result


@pytest.mark.parametrize("kind", ["classify", "detect", "segment"])
def test_a_killed_training_goes_on_bit_for_bit(kind, coco, slim, tmp_path):  # noqa: F811
    """Of every task: what happens in between draws nothing that a step would."""
    pictures, ade = f"imagefolder:{imagenet(tmp_path / 'data')}", ade_folder(tmp_path / "ade", 10, 7)
    full = tiny.recipe(data=pictures, steps=4, image_size=64, window_size=4, batch_size=6)
    tasks = {
        "classify": lambda: tiny.classification(full, open_pictures(pictures)),
        "detect": lambda: tiny.detection(coco, precision="bf16", steps=4, eval_every=2),
        "segment": lambda: tiny.segmentation(ade, steps=4),
    }
    states = []
    for stop, folder in ((None, tmp_path / "whole"), (2, tmp_path / "killed"), (None, tmp_path / "killed")):
        task = tasks[kind]()
        with stopped(stop) as taken:
            states.append((numbers(trained(task, folder=folder)), task.model.state_dict(), len(taken)))
        torch.rand(7)
    (record, weights, _), (again, same_weights, steps) = states
    assert steps == 2 and again == record and same(same_weights, weights) and len(record["curve"]) >= 2


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("prob", {}, "unknown task 'prob': did you mean 'probe'"),
        ("classify", {"labls": 3}, "unknown field of FineTune 'labls': did you mean 'labels'"),
        ("classify", {"scratch": "lr"}, "scratch is 'lr': give a dictionary"),
        ("detect", {"recipe": "upernet-160k"}, "unknown recipe of detect 'upernet-160k': known are mask-rcnn-1x"),
        ("probe", {"steps": 3}, "a probe takes the run's own weights, labels and test_images alone"),
        ("classify", {"recipe": "imagenet-100ep", "epochs": "x"}, "epochs is 'x'"),
    ],
)
def test_wrong_transfers_are_one_line_before_any_work(tmp_path, opened, monkeypatch, task, options, words):
    monkeypatch.setattr(module, "open_for", lambda *a, **k: tiny_data())
    with pytest.raises(UserError, match=words):
        transfer(RUN, task, runs_dir=tmp_path, **options)
    assert opened == [] and not (tmp_path / "records").exists()


def test_what_has_nothing_to_transfer_is_one_line(tmp_path, opened, monkeypatch):
    failed = {"status": "failed", "reason": "the training loss was not finite at step 7"}
    monkeypatch.setattr(module, "pretrain_once", lambda *a, **k: (failed, True))
    with pytest.raises(UserError, match="no weights to transfer: the training loss was not finite at step 7"):
        transfer(RUN, "probe", runs_dir=tmp_path)
    assert not list(tmp_path.glob("transfer/*"))


def test_keys_tell_specs_apart_and_survive_a_round_trip():
    run = Run(model="swinv2_femto", images=64, precision="bf16", window_size=8)
    pretrained, scratch = FineTune.of(run, steps=50), FineTune.scratch(run, steps=50, layer_decay=0.5)
    assert (pretrained.init, scratch.init, scratch.layer_decay) == ("pretrained", "scratch", 1.0)
    assert pretrained.model == scratch.model == "swinv2_femto" and pretrained.precision == "bf16"
    assert scratch == FineTune.scratch(dataclasses.replace(run, images=512, steps=7), steps=50)
    assert pretrained.key.startswith("femto-scenes-pretrained-l4000-t50-s0-")
    assert FineTune.from_dict(json.loads(json.dumps(pretrained.to_dict()))) == pretrained
    assert FineTune.recipe("imagenet-100ep", 1000, warmup_epochs=0).warmup_steps == 0
    changes = ({"mixup": 0.8}, {"warmup_prefix": False}, {"labels": None}, {"augment": "timm"}, {"seed": 1}, {})
    assert len({spec.key for spec in (pretrained, scratch, *(tiny_spec(**c) for c in changes))}) == 8
    found = [(s.lr, s.channels, s.images) for s in (Dense.of("detect", run), Dense.scratch("detect", run))]
    assert found == [(8e-3, 32, 512), (2e-3, 32, 512)] and Dense.of("detect", run, data="coco:somewhere").channels == 64


def test_the_recipes_are_the_released_ones_and_the_papers():
    spec = FineTune.recipe("imagenet-100ep", 1_281_167, data="imagefolder:DIR")
    assert (spec.steps, spec.warmup_steps) == (62_557, 12_512)  # 100 and 20 epochs of 625.57 steps
    assert spec.lr == pytest.approx(5e-3) and spec.lr_at(0) == pytest.approx(1e-6)  # 1.25e-3, 2.5e-7 per 512
    assert (spec.image_size, spec.window_size, spec.batch_size, spec.layer_decay) == (224, 14, 2048, 0.75)
    assert spec.key.startswith("base-DIR-scratch-lall-t62557-s0-")
    half = FineTune.recipe("imagenet-100ep", 1_281_167, batch_size=1024)
    assert half.lr == pytest.approx(2.5e-3) and half.steps == 125_114
    assert FineTune.recipe("imagenet-100ep", 1000, batch_size=100, epochs=3, warmup_epochs=1).warmup_steps == 10
    for name, epochs, at in (("mask-rcnn-1x", 12, (8, 11)), ("mask-rcnn-3x", 36, (27, 33))):
        spec = Dense.recipe(name, 16_000)
        assert (spec.steps, spec.batch_size, spec.weight_decay, spec.clip_grad) == (epochs * 1000, 16, 0.05, None)
        assert (spec.image_size, spec.long_side, spec.channels, spec.hidden) == (800, 1333, 256, 1024)
        rates = [spec.lr_at(now) for m in at for now in (m * 1000 - 1, m * 1000)]
        assert rates == pytest.approx([1e-4, 1e-5, 1e-5, 1e-6])
        assert spec.lr_at(0) == pytest.approx(1e-7) and spec.lr_at(250) == pytest.approx(1e-4 * 0.5005)
    assert spec.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    spec = Dense.recipe("upernet-160k", 20_210)
    assert (spec.steps, spec.batch_size, spec.warmup_steps, spec.clip_grad) == (160_000, 16, 1500, None)
    assert spec.lr_at(750) == pytest.approx(6e-5 * (1 - 750 / 160_000) * 0.5, rel=1e-5)
    assert spec.lr_at(80_000) == pytest.approx(3e-5) and spec.lr_at(159_999) == pytest.approx(6e-5 / 160_000)
