"""Transfer: a run's weights beside the same network without them, each score computed once and kept."""

import dataclasses

import pytest
import torch
from test_finetune import tiny_data

from simmim_lite.errors import UserError
from simmim_lite.training import pretrain as pretrain_module
from simmim_lite.training import transfer as transfer_module
from simmim_lite.training.checkpoint import load_final, weights_path
from simmim_lite.training.finetune import FineTune
from simmim_lite.training.run import Run, read_record, record_path
from simmim_lite.training.transfer import transfer


@pytest.fixture
def opened(monkeypatch):
    """Every source is a tiny one; the list of runs and specs that were really computed."""
    data, done = tiny_data(), []
    for module, name in ((transfer_module, "open_data"), (pretrain_module, "open_for_training")):
        monkeypatch.setattr(module, name, lambda *a, **k: data)
    probe, work = transfer_module.probe_all, transfer_module.work
    monkeypatch.setattr(transfer_module, "probe_all", lambda m, d, run: done.append(run.steps) or probe(m, d, run))
    monkeypatch.setattr(transfer_module, "work", lambda s, *a, **k: done.append(s.init) or work(s, *a, **k))
    return done


RUN = Run(image_size=16, images=32, steps=3, batch_size=8, val_images=8, val_masks=1, probe_labels=40, probe_test=30)


def test_transfer_probes_beside_random_initialisation_once(tmp_path, opened):
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


def test_transfer_fine_tunes_beside_scratch_once(tmp_path, opened):
    options = {"labels": 40, "steps": 4, "batch_size": 8, "test_images": 30}
    result = transfer(RUN, "classify", runs_dir=tmp_path, **options, scratch={"lr": 1e-3})
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


def test_transfer_uses_the_final_weights(tmp_path, opened, monkeypatch):
    pretrain_module.pretrain(RUN, runs_dir=tmp_path)
    given, task = [], transfer_module.Classification
    monkeypatch.setattr(transfer_module, "Classification", lambda s, d, w, us: given.append(w) or task(s, d, w, us))
    transfer(RUN, "classify", runs_dir=tmp_path, labels=20, steps=1, batch_size=4, test_images=5)
    final = load_final(tmp_path, RUN)
    assert given[1] is None and set(given[0]) == set(final)
    assert all(torch.equal(given[0][k], final[k]) for k in final)


def test_transfer_runs_again_when_the_images_changed(tmp_path, opened, monkeypatch, capsys):
    first = transfer(RUN, "probe", runs_dir=tmp_path)
    other = dataclasses.replace(tiny_data(n=48), digest="other")
    for module, name in ((transfer_module, "open_data"), (pretrain_module, "open_for_training")):
        monkeypatch.setattr(module, name, lambda *a, **k: other)
    second = transfer(RUN, "probe", runs_dir=tmp_path)
    assert second["trained"]["where"]["data_digest"] == "other" and second["lift"] != first["lift"]
    assert "made from other images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("prob", {}, "unknown task 'prob': did you mean 'probe'"),
        ("classify", {"labls": 3}, "unknown field of classify 'labls': did you mean 'labels'"),
        ("classify", {"scratch": {"stepz": 3}}, "did you mean 'steps'"),
        ("classify", {"labels": -1}, "labels is -1"),
        ("classify", {"scratch": "lr"}, "scratch is 'lr': give a dictionary"),
        ("detect", {"recipe": "mask-rcnn-1x", "batch_size": 0}, "batch_size is 0"),
        ("probe", {"labels": -1}, "labels is -1"),
        ("detect", {"recipe": "upernet-160k"}, "unknown recipe of detect 'upernet-160k': known are mask-rcnn-1x"),
        ("classify", {"recipe": "mask-rcnn-1x"}, "unknown recipe of classify 'mask-rcnn-1x'"),
        ("probe", {"steps": 3}, "unknown option of probe 'steps': .*known are labels, test_images"),
    ],
)
def test_wrong_transfers_are_one_line_before_any_work(tmp_path, opened, task, options, words):
    with pytest.raises(UserError, match=words):
        transfer(RUN, task, runs_dir=tmp_path, **options)
    assert opened == [] and not (tmp_path / "records").exists()


def test_a_failed_run_has_nothing_to_transfer(tmp_path, opened, monkeypatch):
    failed = {"status": "failed", "reason": "the training loss was not finite at step 7"}
    monkeypatch.setattr(transfer_module, "pretrain", lambda *a, **k: failed)
    with pytest.raises(UserError, match="no weights to transfer: the training loss was not finite at step 7"):
        transfer(RUN, "probe", runs_dir=tmp_path)
    assert not list((tmp_path / "transfer").glob("*")) if (tmp_path / "transfer").exists() else True


def test_transfer_without_probe_labels_says_what_to_give(tmp_path, opened):
    with pytest.raises(UserError, match="labels=3000"):
        transfer(dataclasses.replace(RUN, probe_labels=0), "probe", runs_dir=tmp_path)


def test_transfer_into_a_folder_that_cannot_be_written_is_one_line(tmp_path, opened):
    (tmp_path / "locks").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        transfer(RUN, "probe", runs_dir=tmp_path)


def test_weights_may_have_a_name_of_the_hub(tmp_path, opened, monkeypatch):
    run, asked = RUN, []
    pretrain_module.pretrain(run, runs_dir=tmp_path)
    file = weights_path(tmp_path, run)
    monkeypatch.setattr(transfer_module.hub, "fetch", lambda name: asked.append(name) or file)
    options = {"labels": 20, "steps": 2, "batch_size": 4, "test_images": 5}
    result = transfer(run, "classify", runs_dir=tmp_path, weights="hf://own/weights/atto.safetensors", **options)
    assert asked == ["hf://own/weights/atto.safetensors"]
    assert result["trained"]["run"] is None and result["trained"]["spec"]["weights"].startswith(f"{file.name}@")
