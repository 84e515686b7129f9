"""From a Run to a Record: the golden curve, exact resume, shared trunks, deterministic validation, failure."""

import inspect
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from filelock import FileLock
from ranks import context
from safetensors.torch import save
from tiny import numbers, same, stopped

from simmim_lite.data.batches import VAL_SEED, normalise
from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError
from simmim_lite.files import held
from simmim_lite.model.masking import hash_masks
from simmim_lite.model.sizes import SIZES
from simmim_lite.studies import notebooks
from simmim_lite.training import pretrain as module
from simmim_lite.training import train
from simmim_lite.training.callbacks import journal_path, read_journal
from simmim_lite.training.parallel import Group
from simmim_lite.training.pretrain import build, image_losses, pretrain, validation_loss
from simmim_lite.training.probes import input_statistics
from simmim_lite.training.record import Busy, read_record
from simmim_lite.training.run import (
    RECIPE_VERSION,
    Run,
    checkpoints,
    load_final,
    record_path,
    save_final,
    weights_path,
)
from simmim_lite.training.train import decay_groups

SMALL = Run(
    images=48, steps=16, batch_size=16, warmup_steps=4, eval_every=8, val_images=32, val_masks=2, probe_labels=100,
    probe_test=50, drop_path=0.1,
)  # fmt: skip
GOLDEN, CPU = Path(__file__).with_name("golden_curve.json"), torch.device("cpu")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return pretrain(SMALL, runs_dir=folder), load_final(folder, SMALL)


def test_golden_curve() -> None:
    """Ten fp32 steps. If this moves, RECIPE_VERSION has to move with it (and the golden file is written anew)."""
    run = Run(images=64, steps=10, warmup_steps=3, batch_size=32, drop_path=0.1, augment="crop+flip")
    model, batches, losses = build(run).train(), module.make_batches(run, open_data(run.data, run.image_size)), []
    optimiser = module.build_optimiser(model, run)
    for now in range(run.steps):
        noise = module.drop_path_noise(run, now, SIZES[run.model].depths, Group(CPU))
        batch = (*batches.batch(now)[:2], noise)
        losses.append(train.step(model, optimiser, batch, run.lr_at(now), run).item())
    golden = json.loads(GOLDEN.read_text())
    assert golden["recipe_version"] == RECIPE_VERSION
    np.testing.assert_allclose(losses, golden["losses"], atol=1e-4, rtol=0)


def test_notebook_03_takes_the_step_of_the_library() -> None:
    """Word for word; that its loop gives the library's number to the last digit is said in the notebook itself."""
    cells = [cell.source for cell in nbformat.read(notebooks.find("03_one_run"), as_version=4).cells]
    (shown,) = (source for source in cells if source.startswith("def step("))
    header, _, body = inspect.getsource(train.step).partition('update."""\n')
    assert header.startswith("def step(model") and shown.partition("\n")[2] == body.rstrip()


def test_record_says_everything(undisturbed) -> None:
    record = undisturbed[0]
    assert (record["cost"]["images_seen"], record["cost"]["epochs"]) == (256, 256 / 48)
    assert record["cost"]["flops"] == pytest.approx(6e9 * record["model"]["gmac"] * 256)
    assert [(p["step"], p["lr"]) for p in record["curve"]] == [(8, SMALL.lr_at(7)), (16, SMALL.lr_at(15))]
    assert record["curve"][-1]["val_loss"] == record["final"]["val_loss"]
    assert record["curve"][-1]["train_loss"] < record["curve"][0]["train_loss"]
    assert record["where"]["versions"]["torch"] == torch.__version__
    assert record["where"]["data_digest"] == open_data("scenes", 32).digest


def test_the_validation_loss_is_that_of_the_weights_on_disk_and_equals_a_loop_over_images(undisturbed) -> None:
    record, weights = undisturbed
    model, data = build(SMALL).eval(), open_data("scenes", 32)
    model.load_state_dict(weights)
    how = input_statistics(data, "dataset")
    for _ in range(2):
        loss, error = validation_loss(model, data.val, SMALL, *how, CPU)
        assert (loss, error) == (record["final"]["val_loss"], record["final"]["val_loss_se"])
    each = np.zeros((32, 2))
    for i, k in np.ndindex(32, 2):
        cells = hash_masks((4, 4), 0.6, VAL_SEED, data.val.ids[i : i + 1], k)
        mask = torch.from_numpy(cells.repeat(2, 1).repeat(2, 2))
        with torch.no_grad():
            each[i, k] = model(normalise(data.val.images[i : i + 1], *how), mask)
    for masks in ([0], [1], [0, 1]):
        ours = image_losses(model, data.val, SMALL, *how, CPU, masks=masks)
        np.testing.assert_allclose(ours, each[:, masks].mean(1), atol=1e-6)
    assert loss == pytest.approx(each.mean(), abs=1e-6)
    assert error == pytest.approx(np.std(each.mean(1), ddof=1) / 32**0.5, abs=1e-6)


@pytest.mark.parametrize("stop", [3, 15])
def test_interrupted_equals_undisturbed(stop: int, undisturbed, tmp_path) -> None:
    """Stopped after any step, in the trunk or in the tail, and started again: bit for bit the same, whatever the
    caller's number of threads."""
    with stopped(stop):
        pretrain(SMALL, runs_dir=tmp_path)
    assert read_record(record_path(tmp_path, SMALL)) is None
    torch.set_num_threads(2)
    try:
        with stopped(None) as taken:
            again = pretrain(SMALL, runs_dir=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(taken) == SMALL.steps - stop and numbers(again) == numbers(undisturbed[0])
    assert same(load_final(tmp_path, SMALL), undisturbed[1])
    assert not checkpoints(tmp_path, SMALL.key).exists()


def killed(folder) -> None:
    """Ends by kill -9 while a checkpoint of the tail is half written."""
    train.CHECKPOINT_SECONDS, real, count = 0.0, os.fsync, []

    def fsync(handle):
        count.append(1)
        if len(count) == 33:  # of the 17th file: each is synced, and its folder
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = fsync
    pretrain(SMALL, runs_dir=folder, device="cpu")


def test_killed_inside_a_write(undisturbed, tmp_path) -> None:
    process = context.Process(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(checkpoints(tmp_path, SMALL.key).glob(".step-*"))) == 1
    journal, lock = read_journal(journal_path(tmp_path, SMALL.key)), tmp_path / "locks" / f"{SMALL.trunk_key}.lock"
    assert journal.step >= 8 and [p["step"] for p in journal.points if "val_loss" in p] == [8]
    assert lock.exists() and held(lock) is False
    assert len(list(tmp_path.rglob("step-*.pt"))) <= 3, "old checkpoints are not kept"
    assert numbers(pretrain(SMALL, runs_dir=tmp_path)) == numbers(undisturbed[0])
    assert not list(tmp_path.rglob(".*")) and not checkpoints(tmp_path, SMALL.key).exists()


def test_lengths_share_their_trunk_and_a_short_file_of_it_is_passed_over(undisturbed, tmp_path, capsys) -> None:
    """A longer run branches off a shorter one's trunk: fewer steps, the same numbers as on its own."""
    short = replace(SMALL, steps=8)
    for damaged in (False, True):
        folder = tmp_path / str(damaged)
        pretrain(short, runs_dir=folder)
        (path,) = checkpoints(folder, SMALL.trunk_key).iterdir()
        if damaged:
            path.write_bytes(path.read_bytes()[:1000])
        with stopped(None) as taken:
            long = pretrain(SMALL, runs_dir=folder)
        assert len(taken) == 16 - (0 if damaged else short.drop_step)
        assert (f"{path} is passed over" in capsys.readouterr().err) == damaged
        assert numbers(long) == numbers(undisturbed[0]) and same(load_final(folder, SMALL), undisturbed[1])
        assert [p.name for p in checkpoints(folder, SMALL.trunk_key).iterdir()] == ["step-0000014.pt"]


def test_a_relative_folder_is_that_of_the_call(tmp_path, monkeypatch) -> None:
    class Elsewhere:
        def on_train_start(self, trainer) -> None:
            os.chdir(tmp_path / "b")

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    run = replace(SMALL, steps=1, warmup_steps=0, val_images=4, probe_labels=0)
    pretrain(run, runs_dir="runs", callbacks=[Elsewhere()])
    assert record_path(tmp_path / "a" / "runs", run).exists() and not list((tmp_path / "b").iterdir())


def test_finished_runs_run_again_only_for_other_images(tmp_path, monkeypatch, capsys) -> None:
    run = replace(SMALL, steps=0)
    first, path = pretrain(run, runs_dir=tmp_path), record_path(tmp_path, run)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_record", None)
        assert pretrain(run, runs_dir=tmp_path) == first
    first["where"]["data_digest"] = "other"
    path.write_text(json.dumps(first))
    assert pretrain(run, runs_dir=tmp_path)["where"]["data_digest"] != "other"
    assert "made from other images" in capsys.readouterr().err
    lock = tmp_path / "locks" / f"{run.trunk_key}.lock"
    with FileLock(lock), pytest.raises(Busy):
        assert held(lock) is True and held(tmp_path / "none") is False
        pretrain(SMALL, runs_dir=tmp_path, wait=False)
    weights, path = load_final(tmp_path, run), weights_path(tmp_path, run)
    content = path.read_bytes()
    save_final(tmp_path, replace(run, seed=1), weights)
    other = weights_path(tmp_path, replace(run, seed=1)).read_bytes()
    for changed in (content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], other):
        path.write_bytes(changed)
        with pytest.raises(UserError, match="no readable weights .*it was changed since it was written"):
            load_final(tmp_path, run)
    path.write_bytes(save(weights))
    assert same(load_final(tmp_path, run), weights) and "of an earlier version" in capsys.readouterr().err
    path.write_bytes(b"\x10\x00\x00")
    for spec, words in ((SMALL, "no readable weights .*No such file"), (run, "no readable weights")):
        with pytest.raises(UserError, match=words):
            load_final(tmp_path, spec)


@pytest.mark.parametrize(
    ("poison", "run", "reason"),
    [
        (float("nan"), SMALL, "not finite at step 9"),
        (1e4, SMALL, "ran away"),
        (None, replace(SMALL, steps=3), "the validation loss was nan"),
    ],
)
def test_nan_and_divergence_end_in_a_failed_record(poison, run, reason, tmp_path, monkeypatch) -> None:
    real, taken = train.step, []
    monkeypatch.setattr(train, "LOOK", 4)
    if poison is None:
        monkeypatch.setattr(module, "validation_loss", lambda *_: (float("nan"), 0.0))
    else:
        monkeypatch.setattr(train, "step", lambda *a: taken.append(1) or real(*a) * (poison if len(taken) > 9 else 1.0))
    record = pretrain(run, runs_dir=tmp_path)
    assert record["status"] == "failed" and reason in record["reason"]
    assert not {"cost", "curve", "final", "transfer"} & record.keys()
    assert pretrain(run, runs_dir=tmp_path) == record  # it would fail again: it is not tried again


def test_initialisation_is_a_function_of_the_seed_and_weight_decay_acts_on_matrices_only() -> None:
    model, other = build(Run(seed=3)), build(Run(seed=4))
    assert same(model.state_dict(), build(Run(seed=3)).state_dict())
    assert not torch.equal(model.encoder.mask_token, other.encoder.mask_token)
    decayed, free = decay_groups(model.named_parameters(), 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    kinds = {".".join(names[id(p)].split(".")[-2:]) for p in decayed["params"]}
    assert kinds == {"proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "reduction.weight", "0.weight"}
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_a_run_of_another_recipe_is_not_trained_under_its_key(tmp_path) -> None:
    with pytest.raises(UserError, match="is of recipe 99: this version trains 1 alone"):
        pretrain(replace(SMALL, recipe_version=99), runs_dir=tmp_path)
