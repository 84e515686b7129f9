"""From a Run to a Record: the golden curve, exact resume, shared trunks, deterministic validation, failure."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError
from simmim_lite.training import checkpoint
from simmim_lite.training import pretrain as module
from simmim_lite.training.checkpoint import load_final, tail_folder, trunk_folder
from simmim_lite.training.kept import Busy
from simmim_lite.training.optim import decay_groups
from simmim_lite.training.pretrain import build, make_batches, pretrain
from simmim_lite.training.probes import input_statistics
from simmim_lite.training.run import RECIPE_VERSION, Run, read_record, record_path
from simmim_lite.training.validate import image_losses, validation_loss

SMALL = Run(
    images=48, steps=24, batch_size=16, warmup_steps=4, eval_every=8, val_images=64, val_masks=2, probe_labels=100,
    probe_test=50, drop_path=0.1,
)  # fmt: skip
GOLDEN = Path(__file__).with_name("golden_curve.json")


def numbers(record: dict) -> dict:
    """What must not depend on when and in how many pieces a run was made."""
    return {k: record[k] for k in ("key", "status", "run", "curve", "final", "transfer")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return pretrain(SMALL, runs_dir=folder), load_final(folder, SMALL)


def test_golden_curve() -> None:
    """Ten fp32 steps. If this moves, RECIPE_VERSION has to move with it (and the golden file is written anew)."""
    run = Run(images=64, steps=10, warmup_steps=3, batch_size=32, drop_path=0.1, augment="crop+flip")
    data = open_data(run.data, run.image_size)
    training = module._Training(run, Path("unused"), torch.device("cpu"), data, None)
    batches = make_batches(run, data)
    training.model.train()
    losses = []
    for training.step in range(run.steps):
        losses.append(training.advance(*batches.batch(training.step)[:2]).item())
    golden = json.loads(GOLDEN.read_text())
    assert golden["recipe_version"] == RECIPE_VERSION
    np.testing.assert_allclose(losses, golden["losses"], atol=1e-4, rtol=0)


def test_record_says_everything(undisturbed) -> None:
    record, weights = undisturbed
    assert record["status"] == "done"
    assert record["cost"]["images_seen"] == 24 * 16
    assert record["cost"]["epochs"] == 8
    assert record["cost"]["flops"] == pytest.approx(6e9 * record["model"]["gmac"] * 384)
    assert [p["step"] for p in record["curve"]] == [8, 16, 24]
    assert [p["lr"] for p in record["curve"]] == [SMALL.lr_at(7), SMALL.lr_at(15), SMALL.lr_at(23)]
    assert record["curve"][-1]["val_loss"] == record["final"]["val_loss"]
    assert record["curve"][-1]["train_loss"] < record["curve"][0]["train_loss"]
    assert set(record["transfer"]) == {"linear", "knn", "segment"}
    where = record["where"]
    assert where["versions"]["torch"] == torch.__version__
    assert where["data_digest"] == open_data("scenes", 32).digest
    assert where["data_line"].startswith("data: 10 classes, ") and where["data_line"].endswith("pictures of scenes")
    assert set(weights) == set(build(SMALL).state_dict())
    assert read_record("nowhere") is None


def test_weights_on_disk_give_the_recorded_loss(undisturbed) -> None:
    record, weights = undisturbed
    model = build(SMALL)
    model.load_state_dict(weights)
    data = open_data("scenes", 32)
    mean, std = input_statistics(data, "dataset")
    for _ in range(2):
        loss, error = validation_loss(model, data.val, SMALL, mean, std, torch.device("cpu"))
        assert (loss, error) == (record["final"]["val_loss"], record["final"]["val_loss_se"])
    other, _ = validation_loss(model, data.val, SMALL, mean, std, torch.device("cpu"), target="normalized")
    assert other != pytest.approx(loss, abs=0.01)
    assert model.target == "raw"


def test_validation_loss_equals_a_loop_over_images(undisturbed) -> None:
    from simmim_lite.data.batches import VAL_SEED, normalise
    from simmim_lite.model.masking import hash_masks

    record, weights = undisturbed
    model = build(SMALL).eval()
    model.load_state_dict(weights)
    val = open_data("scenes", 32).val
    mean, std = input_statistics(open_data("scenes", 32), "dataset")
    each = []
    for i in range(64):
        image = normalise(val.images[i : i + 1], mean, std)
        losses = []
        for k in range(2):
            cells = hash_masks((4, 4), 0.6, VAL_SEED, val.ids[i : i + 1], k)
            mask = torch.from_numpy(cells.repeat(2, 1).repeat(2, 2))
            with torch.no_grad():
                losses.append(model(image, mask).item())
        each.append(losses)
    for masks in ([0], [1], [0, 1]):
        ours = image_losses(model, val, SMALL, mean, std, torch.device("cpu"), masks=masks)
        np.testing.assert_allclose(ours, np.array(each)[:, masks].mean(1), atol=1e-6)
    each = np.mean(each, 1)
    assert record["final"]["val_loss"] == pytest.approx(np.mean(each), abs=1e-6)
    assert record["final"]["val_loss_se"] == pytest.approx(np.std(each, ddof=1) / 8, abs=1e-6)


@pytest.mark.parametrize("stop", [3, 8, 20, 23])
def test_interrupted_equals_undisturbed(stop: int, undisturbed, tmp_path, monkeypatch) -> None:
    """Stopped after any step, in the trunk or in the tail, and started again: bit for bit the same."""
    record, weights = undisturbed
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    real = module.training_step

    def dying(model, optimiser, images, mask, run, lr, noise):
        if dying.steps == stop:
            raise MemoryError
        dying.steps += 1
        return real(model, optimiser, images, mask, run, lr, noise)

    dying.steps = 0
    monkeypatch.setattr(module, "training_step", dying)
    with pytest.raises(MemoryError):
        pretrain(SMALL, runs_dir=tmp_path)
    assert read_record(record_path(tmp_path, SMALL)) is None
    counted = []

    def counting(*arguments):
        counted.append(1)
        return real(*arguments)

    monkeypatch.setattr(module, "training_step", counting)
    again = pretrain(SMALL, runs_dir=tmp_path)
    assert len(counted) == SMALL.steps - stop
    assert numbers(again) == numbers(record)
    for name, tensor in load_final(tmp_path, SMALL).items():
        assert torch.equal(tensor, weights[name]), name
    assert not tail_folder(tmp_path, SMALL).exists()


def test_killed_inside_a_write(undisturbed, tmp_path) -> None:
    """kill -9 while a checkpoint of the tail is half written: nothing of it is left at the end."""
    code = f"""
import os, signal
from simmim_lite.training import pretrain, run
from simmim_lite.training.run import Run
pretrain.CHECKPOINT_SECONDS = 0.0
real, count = os.fsync, []
def fsync(handle):
    count.append(1)
    if len(count) == 24:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
run.os.fsync = fsync
pretrain.pretrain(Run.from_dict({SMALL.to_dict()!r}), runs_dir={str(tmp_path)!r}, device="cpu")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tail_folder(tmp_path, SMALL).glob(".step-*"))) == 1
    assert len(list(tmp_path.rglob("step-*.pt"))) <= 3, "old checkpoints are not kept"
    again = pretrain(SMALL, runs_dir=tmp_path)
    assert numbers(again) == numbers(undisturbed[0])
    assert not list(tmp_path.rglob(".*"))
    assert not tail_folder(tmp_path, SMALL).exists()


def test_numbers_do_not_depend_on_the_callers_threads(undisturbed, tmp_path) -> None:
    torch.set_num_threads(2)
    try:
        assert numbers(pretrain(SMALL, runs_dir=tmp_path)) == numbers(undisturbed[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_lengths_share_their_trunk(undisturbed, tmp_path, monkeypatch) -> None:
    """A longer run branches off a shorter one's trunk: fewer steps, the same numbers as on its own."""
    record, weights = undisturbed
    steps, real = [], module.training_step
    monkeypatch.setattr(module, "training_step", lambda *a: steps.append(1) or real(*a))
    short = replace(SMALL, steps=12)
    pretrain(short, runs_dir=tmp_path)
    long = pretrain(SMALL, runs_dir=tmp_path)
    assert len(steps) == 12 + 24 - short.drop_step
    assert numbers(long) == numbers(record)
    assert all(torch.equal(t, weights[n]) for n, t in load_final(tmp_path, SMALL).items())
    assert sorted(p.name for p in trunk_folder(tmp_path, SMALL).iterdir()) == ["step-0000021.pt"]


def test_finished_runs_are_not_run_again(undisturbed, tmp_path, monkeypatch) -> None:
    first = pretrain(replace(SMALL, steps=0), runs_dir=tmp_path)
    monkeypatch.setattr(module, "_Training", None)
    assert pretrain(replace(SMALL, steps=0), runs_dir=tmp_path) == first


def test_other_images_under_the_same_name_run_again(tmp_path, capsys) -> None:
    run = replace(SMALL, steps=0)
    pretrain(run, runs_dir=tmp_path)
    path = record_path(tmp_path, run)
    record = read_record(path)
    record["where"]["data_digest"] = "other"
    path.write_text(json.dumps(record))
    again = pretrain(run, runs_dir=tmp_path)
    assert again["where"]["data_digest"] != "other"
    assert "made from other images" in capsys.readouterr().err


def test_truncated_checkpoint_is_named_and_passed_over(undisturbed, tmp_path, monkeypatch, capsys) -> None:
    pretrain(replace(SMALL, steps=12), runs_dir=tmp_path)
    (path,) = trunk_folder(tmp_path, SMALL).iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    assert numbers(pretrain(SMALL, runs_dir=tmp_path)) == numbers(undisturbed[0])
    assert f"{path} is passed over" in capsys.readouterr().err


def test_truncated_weights_get_one_line(undisturbed, tmp_path) -> None:
    with pytest.raises(UserError, match="no weights of this run"):
        load_final(tmp_path, SMALL)
    path = checkpoint.weights_path(tmp_path, SMALL)
    path.parent.mkdir()
    path.write_bytes(b"\x10\x00\x00")
    with pytest.raises(UserError, match="not readable weights"):
        load_final(tmp_path, SMALL)


@pytest.mark.parametrize(("poison", "reason"), [(float("nan"), "not finite at step 9"), (1e4, "ran away")])
def test_nan_and_divergence_end_in_a_failed_record(poison: float, reason: str, tmp_path, monkeypatch) -> None:
    real = module.training_step
    monkeypatch.setattr(module, "_LOOK", 4)

    def poisoned(model, optimiser, images, mask, run, lr, noise):
        loss = real(model, optimiser, images, mask, run, lr, noise)
        poisoned.step += 1
        return loss * poison if poisoned.step > 9 else loss

    poisoned.step = 0
    monkeypatch.setattr(module, "training_step", poisoned)
    record = pretrain(SMALL, runs_dir=tmp_path)
    assert record["status"] == "failed"
    assert reason in record["reason"]
    assert not {"cost", "curve", "final", "transfer"} & record.keys()
    assert pretrain(SMALL, runs_dir=tmp_path) == record  # it would fail again: it is not tried again


@pytest.mark.parametrize("loss", [float("nan"), 1e4])
def test_weights_ruined_by_the_last_step(loss: float, tmp_path, monkeypatch) -> None:
    """The training losses were sound, the validation loss is not: failed, with a reason and without a number."""
    monkeypatch.setattr(module, "validation_loss", lambda *_: (loss, 0.0))
    record = pretrain(replace(SMALL, steps=6), runs_dir=tmp_path)
    assert record["status"] == "failed"
    assert "the validation loss was" in record["reason"]
    assert "final" not in record


def test_a_short_run_that_diverges_is_failed(tmp_path) -> None:
    record = pretrain(replace(SMALL, steps=3, lr=9.9, warmup_steps=0), runs_dir=tmp_path)
    assert record["status"] == "failed", record["final"]


def test_a_held_run_is_busy(tmp_path) -> None:
    lock = tmp_path / "locks" / f"{SMALL.trunk_key}.lock"
    lock.parent.mkdir()
    with FileLock(lock), pytest.raises(Busy):
        pretrain(SMALL, runs_dir=tmp_path, wait=False)


def test_random_initialisation_is_a_function_of_the_seed() -> None:
    one, same, other = build(Run(seed=3)), build(Run(seed=3)), build(Run(seed=4))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(one.encoder.mask_token, other.encoder.mask_token)
    assert not torch.equal(one.decoder[0].weight, other.decoder[0].weight)


def test_weight_decay_acts_on_matrices_only() -> None:
    model = build(Run())
    decayed, free = decay_groups(model.named_parameters(), 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    kinds = {n.split(".")[-2] + "." + n.split(".")[-1] for n in (names[id(p)] for p in decayed["params"])}
    assert kinds == {"proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "reduction.weight", "0.weight"}
    assert not any("cpb_mlp" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(names)
