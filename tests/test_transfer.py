"""Transfer: a run's weights beside the same network without them, each score computed once and kept; every task."""

import dataclasses

import pytest
import torch
from ade_folders import ade_folder
from photos import imagenet
from tiny import (  # noqa: F401 (fixtures)
    ALONE,
    coco,
    detection,
    recipe,
    same,
    segmentation_spec,
    slim,
    stopped,
    tiny_data,
    tiny_spec,
)

from simmim_lite.data import scene_layouts
from simmim_lite.data.ade20k import open_ade20k
from simmim_lite.data.sources import open_pictures
from simmim_lite.errors import UserError
from simmim_lite.training import pretrain as pretrain_module
from simmim_lite.training import transfer as module
from simmim_lite.training.finetune import Classification
from simmim_lite.training.run import Run, load_final, read_record, record_path, weights_path
from simmim_lite.training.segment import Segmentation
from simmim_lite.training.transfer import begin, in_all, run_task, transfer
from simmim_lite.training.tuning import FineTune

RUN = Run(image_size=16, images=32, steps=3, batch_size=8, val_images=8, val_masks=1, probe_labels=40, probe_test=30)


@pytest.fixture
def opened(monkeypatch):
    """Every source is a tiny one; the list of runs and specs that were really computed."""
    data, done = tiny_data(), []
    for where, name in ((module, "open_data"), (pretrain_module, "open_for_training")):
        monkeypatch.setattr(where, name, lambda *a, **k: data)
    probe, work = module.probe_all, module.work
    monkeypatch.setattr(module, "probe_all", lambda m, d, run: done.append(run.steps) or probe(m, d, run))
    monkeypatch.setattr(module, "work", lambda s, *a, **k: done.append(s.init) or work(s, *a, **k))
    return done


def test_transfer_probes_beside_random_initialisation_once(tmp_path, opened, monkeypatch, capsys):
    result = transfer(RUN, "probe", runs_dir=tmp_path)
    assert result["task"] == "probe" and opened == [3, 0]
    assert result["trained"]["run"]["steps"] == 3 and result["baseline"]["run"]["steps"] == 0
    pretrained = read_record(record_path(tmp_path, RUN))
    scores = dict(result["trained"]["transfer"])
    assert scores.pop("attentive")["metric"] == "top-1" and "attentive" not in pretrained["transfer"]
    assert scores == pretrained["transfer"]
    for name in ("linear", "knn", "segment", "attentive"):
        lift = result["trained"]["transfer"][name]["score"] - result["baseline"]["transfer"][name]["score"]
        assert result["lift"][name] == lift
    assert transfer(RUN, "probe", runs_dir=tmp_path) == result and opened == [3, 0]
    kept = sorted(p.name for p in (tmp_path / "transfer").glob("*.json"))
    assert kept == sorted(f"{result[k]['key']}.json" for k in ("trained", "baseline"))
    assert transfer(RUN, "probe", runs_dir=tmp_path, labels=20)["trained"]["transfer"]["knn"]["n_train"] == 20
    assert opened == [3, 0, 3, 0]
    other = dataclasses.replace(tiny_data(n=48), digest="other")  # the images changed
    for where, name in ((module, "open_data"), (pretrain_module, "open_for_training")):
        monkeypatch.setattr(where, name, lambda *a, **k: other)
    again = transfer(RUN, "probe", runs_dir=tmp_path)
    assert again["trained"]["where"]["data_digest"] == "other" and again["lift"] != result["lift"]
    assert "made from other images" in capsys.readouterr().err


def test_transfer_fine_tunes_beside_scratch_once(tmp_path, opened, monkeypatch):
    pretrain_module.pretrain(RUN, runs_dir=tmp_path)
    given, task = [], module.Classification
    monkeypatch.setattr(module, "Classification", lambda s, d, w, team: given.append(w) or task(s, d, w, team))
    options = {"labels": 40, "steps": 4, "batch_size": 8, "test_images": 30}
    result = transfer(RUN, "classify", runs_dir=tmp_path, **options, scratch={"lr": 1e-3})
    assert same(given[0], load_final(tmp_path, RUN)) and given[1] is None
    trained, baseline = result["trained"], result["baseline"]
    assert trained["run"] == RUN.to_dict() and baseline["run"] is None
    assert (trained["spec"]["layer_decay"], baseline["spec"]["layer_decay"]) == (FineTune().layer_decay, 1.0)
    assert (trained["spec"]["lr"], baseline["spec"]["lr"]) == (FineTune().lr, 1e-3)
    assert result["lift"] == {"top1": trained["final"]["top1"] - baseline["final"]["top1"]}
    assert trained["curve"] != baseline["curve"]
    assert transfer(RUN, "classify", runs_dir=tmp_path, **options, scratch={"lr": 1e-3}) == result
    assert opened == ["pretrained", "scratch"]
    # another run of the same size shares the baseline
    other = transfer(dataclasses.replace(RUN, steps=0), "classify", runs_dir=tmp_path, **options, scratch={"lr": 1e-3})
    assert other["baseline"] == baseline and opened == ["pretrained", "scratch", "pretrained"]
    # a file in place of the run's weights, by a name of the hub
    file, asked = weights_path(tmp_path, RUN), []
    monkeypatch.setattr(module.hub, "fetch", lambda name: asked.append(name) or file)
    result = transfer(RUN, "classify", runs_dir=tmp_path, weights="hf://own/weights/atto.safetensors", **options)
    assert asked == ["hf://own/weights/atto.safetensors"]
    assert result["trained"]["run"] is None and result["trained"]["spec"]["weights"].startswith(f"{file.name}@")


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_dense_transfers_beside_scratch(task, coco, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(scene_layouts, "ADE_SPLITS", {"training": (3, 16), "validation": (2, 9)})
    monkeypatch.setattr(pretrain_module, "open_for_training", lambda *a, **k: tiny_data())
    run = dataclasses.replace(RUN, probe_labels=0)
    options = {"steps": 3, "batch_size": 4, "channels": 8, "images": 8, "test_images": 9}
    options |= {"data": coco} if task == "detect" else {}  # else scenes
    result = transfer(run, task, runs_dir=tmp_path, **options, scratch={"lr": 2e-3})
    trained, baseline = result["trained"], result["baseline"]
    assert trained["status"] == baseline["status"] == "done" and trained["run"] == run.to_dict()
    lifts = {"detect": {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}, "segment": {"miou", "pixel_accuracy"}}
    assert set(result["lift"]) == lifts[task] and trained["curve"] != baseline["curve"]
    assert baseline["run"] is None and baseline["spec"]["lr"] == 2e-3 and trained["spec"]["image_size"] == 16
    assert trained["cost"]["unique_images"] == 8
    assert transfer(run, task, runs_dir=tmp_path, **options, scratch={"lr": 2e-3}) == result


@pytest.mark.parametrize("kind", ["classify", "pictures", "detect", "segment"])
def test_a_killed_training_goes_on_bit_for_bit(kind, coco, slim, tmp_path):  # noqa: F811
    """Of every task: what happens in between draws nothing that a step would."""
    pictures, ade = f"imagefolder:{imagenet(tmp_path / 'data')}", ade_folder(tmp_path / "ade", 10, 7)

    def task():
        if kind == "detect":
            return detection(coco, precision="bf16")
        if kind == "segment":
            spec = segmentation_spec(ade)
            return spec, Segmentation(spec, open_ade20k(spec.data, 32), None, ALONE)
        full = recipe(data=pictures, steps=6, image_size=64, window_size=4, batch_size=6)
        spec, data = (full, open_pictures(pictures)) if kind == "pictures" else (tiny_spec(steps=6), tiny_data())
        return spec, Classification(spec, data, None, ALONE)

    states = []
    for stop, folder in ((None, None), (3, tmp_path / "killed"), (None, tmp_path / "killed")):
        spec, own = task()
        training = begin(spec, own, ALONE, "d", folder)
        assert training.step == (3 if states and stop is None else 0)
        with stopped(stop):
            run_task(training, own, folder)
            states.append((training.curve, own.model.state_dict(), own.evaluate()))
        torch.rand(7)
    (curve, weights, found), again = states
    assert again[0] == curve and len(curve) >= 2 and same(again[1], weights) and again[2] == found


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("prob", {}, "unknown task 'prob': did you mean 'probe'"),
        ("classify", {"labls": 3}, "unknown field of classify 'labls': did you mean 'labels'"),
        ("classify", {"scratch": {"stepz": 3}}, "did you mean 'steps'"),
        ("classify", {"labels": -1}, "labels is -1"),
        ("classify", {"scratch": "lr"}, "scratch is 'lr': give a dictionary"),
        ("segment", {"recipe": "upernet-160k", "batch_size": 0}, "batch_size is 0"),
        ("probe", {"labels": -1}, "labels is -1"),
        ("detect", {"recipe": "upernet-160k"}, "unknown recipe of detect 'upernet-160k': known are mask-rcnn-1x"),
        ("classify", {"recipe": "mask-rcnn-1x"}, "unknown recipe of classify 'mask-rcnn-1x'"),
        ("probe", {"steps": 3}, "unknown option of probe 'steps': .*known are labels, test_images"),
        ("probe", {"recipe": "imagenet-100ep"}, "a probe has no recipe"),
    ],
)
def test_wrong_transfers_are_one_line_before_any_work(tmp_path, opened, monkeypatch, task, options, words):
    monkeypatch.setattr(module, "open_for", lambda *a, **k: tiny_data())
    with pytest.raises(UserError, match=words):
        transfer(RUN, task, runs_dir=tmp_path, **options)
    assert opened == [] and not (tmp_path / "records").exists()


def test_what_has_nothing_to_transfer_or_nowhere_to_write_is_one_line(tmp_path, opened, monkeypatch):
    with pytest.raises(UserError, match="labels=3000"):
        transfer(dataclasses.replace(RUN, probe_labels=0), "probe", runs_dir=tmp_path)
    failed = {"status": "failed", "reason": "the training loss was not finite at step 7"}
    monkeypatch.setattr(module, "pretrain", lambda *a, **k: failed)
    with pytest.raises(UserError, match="no weights to transfer: the training loss was not finite at step 7"):
        transfer(RUN, "probe", runs_dir=tmp_path)
    assert not list(tmp_path.glob("transfer/*"))
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "locks").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        transfer(RUN, "probe", runs_dir=tmp_path / "file")


def test_progress_counts_steps_over_all_trainings():
    said = []
    progress = in_all(lambda *p: said.append(p), [10, 0, 4, 4])
    for steps, marks in ((10, (5, 10)), (4, (4,)), (4, (2, 4)), (3, (3,))):
        for now in marks:
            progress(now, steps)
    assert said == [(5, 18), (10, 18), (14, 18), (16, 18), (18, 18), (21, 21)]
