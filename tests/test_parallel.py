"""One training by several processes and in parts: the numbers of one process, whatever is shared, saved, interrupted.

Two processes are started once and do everything that two are needed for: pretraining, and a step or more of each task.
"""

import contextlib
import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ade_folders import ade_folder, save
from random_weights import close
from teams import run_team
from tiny import ALONE, coco, detection, same, segmentation_spec, stopped, tiny_data, tiny_spec  # noqa: F401
from torch import nn

from simmim_lite import cli
from simmim_lite.data.ade20k import open_ade20k
from simmim_lite.data.sources import as_pictures
from simmim_lite.errors import Everywhere, Preempted, UserError
from simmim_lite.model.sizes import SIZES
from simmim_lite.processes import one_thread
from simmim_lite.training import train
from simmim_lite.training.finetune import Classification
from simmim_lite.training.parallel import Team, join
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run, Runtime, load_final, read_record, record_path, tail_folder, trunk_folder
from simmim_lite.training.segment import Segmentation
from simmim_lite.training.train import Preemption
from simmim_lite.training.transfer import begin, run_task, work

#: Twenty steps, a point of the curve after each; the rate drops at 17.
RUN = Run(
    image_size=16, images=24, steps=20, batch_size=8, warmup_steps=4, eval_every=1, val_images=7, val_masks=2,
    probe_labels=40, probe_test=30, drop_path=0.1, augment="crop+flip", lr=1e-3,
)  # fmt: skip
DDP, FSDP = Runtime(), Runtime(parallel="fsdp", accumulate=2, checkpointing=True)
BASE = {"steps": 6, "eval_every": 1, "drop_path": 0.3, "test_images": 33}
#: Classification; `stop`: the step before which it is killed and gone on with.
CASES = {
    "flip": BASE,
    "killed": {**BASE, "stop": 3},
    "mixed": {**BASE, "mixup": 0.8, "cutmix": 1.0},
    "pictures": {**BASE, "augment": "timm", "rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25, "cutmix": 1.0},
    "bf16": {**BASE, "precision": "bf16"},
}


def go(folder, runtime=DDP, run=RUN, stop=None, kill=None, how=signal.SIGTERM) -> dict | str | None:
    """The record of a run; with `stop`, none: it ends before that step, with a checkpoint of every step. `kill`: the
    last process gets a signal in that step, and the line that it ends with is returned."""

    def step(net, *arguments):
        if len(taken) + 1 == kill and net.team.rank == net.team.size - 1:
            os.kill(os.getpid(), how)
        return inner(net, *arguments)

    with stopped(stop) as taken:
        inner, train.step = train.step, step
        try:
            record = pretrain(run, runs_dir=folder, device="cpu", data=tiny_data(size=run.image_size), runtime=runtime)
            return record | {"steps_now": len(taken)}
        except Preempted as error:
            return str(error)


def losses(record: dict) -> np.ndarray:
    return np.array([[point["train_loss"], point["val_loss"]] for point in record["curve"]])


def assert_close(record: dict, other: dict) -> None:
    """Every training and validation loss within 1e-5, and the probes the same but for a case or two."""
    assert losses(record).shape == (RUN.steps, 2)
    np.testing.assert_allclose(losses(record), losses(other), atol=1e-5, rtol=0)
    assert record["final"]["val_loss_se"] == pytest.approx(other["final"]["val_loss_se"], abs=1e-5)
    for name, score in record["transfer"].items():
        assert score["score"] == pytest.approx(other["transfer"][name]["score"], abs=0.07)


def same_weights(folder, other) -> bool:
    return same(load_final(folder, RUN), load_final(other, RUN))


def classified(folder: Path, team: Team) -> dict[str, dict]:
    """Losses, weights and score of each case."""
    found = {}
    for name, fields in CASES.items():
        spec = tiny_spec(**{k: v for k, v in fields.items() if k != "stop"})
        for stop in dict.fromkeys([fields.get("stop"), None]):
            data = as_pictures(tiny_data()) if spec.full_size else tiny_data()
            task = Classification(spec, data, None, team)
            training = begin(spec, task, team, "tiny", folder / name)
            with stopped(stop):
                run_task(training, task, folder / name)
                weights = float(sum(p.detach().double().abs().sum() for p in task.model.parameters()))
                curve = [p["train_loss"] for p in training.curve]
                found[name] = {"losses": curve, "weights": weights, **task.evaluate()[0]}
    return found


def segmented(folder: str, team: Team = ALONE) -> dict:
    """Loss (the mean over processes) and gradients of step 0. Nothing depends on which images share a process: dropout
    is off and batch normalisation uses its running statistics."""
    task = Segmentation(segmentation_spec(folder, drop_path=0.1), open_ade20k(f"ade20k:{folder}", 32), None, team)
    net = begin(task.spec, task, team, "").net.train()
    for module in task.model.modules():
        if isinstance(module, (nn.Dropout2d, nn.BatchNorm2d)):
            module.eval()
    loss = net(*task.batch(0))
    loss.backward()
    grads = {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}
    return {"loss": team.mean(loss.detach().clone()).item(), "grads": {k: v.numpy() for k, v in grads.items()}}


def trained(spec, task, team: Team) -> dict:
    """The record's scores, and whether the processes hold one network, which has changed."""
    before = sum(p.double().sum().item() for p in task.model.parameters())
    record = work(spec, task, team, digest="d")
    sums = team.gather(sum(p.double().sum().item() for p in task.model.parameters()))
    parts = {name: record[name] for name in ("status", "curve", "transfer", "examples")}
    return parts | {"same": len(set(sums)) == 1, "moved": sums[0] != before}


def two(folder, coco, ade) -> dict:
    """Everything that two processes are needed for, in one go."""
    done = {"ddp": go(folder / "ddp"), "parts": go(folder / "parts", Runtime(accumulate=2))}
    done["fsdp"] = go(folder / "fsdp", FSDP)
    for name, how in (("ddp", DDP), ("fsdp", FSDP)):
        go(folder / f"{name}-stopped", how, stop=9)
        if os.environ["RANK"] == "0":  # which says where to go on from
            shutil.copytree(folder / f"{name}-stopped", folder / f"{name}-again")
        done[f"{name}-again"] = go(folder / f"{name}-again", how)
        done[f"{name}-killed"] = go(folder / f"{name}-killed", how, kill=6)
    done["handler"] = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with contextlib.suppress(Everywhere):
        go(folder / "odd", run=replace(RUN, batch_size=9))
        done["odd"] = "taken"
    team = join("cpu")
    with one_thread(team.device):
        done["classified"] = classified(folder / "classified", team)
        done["segmented"] = segmented(ade, team)
        spec = segmentation_spec(ade, steps=2)
        task = Segmentation(spec, open_ade20k(spec.data, 32), None, team)
        done["segment"] = trained(spec, task, team)
        done["detect"] = trained(*detection(coco, team=team, steps=2, test_images=7), team)
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return go(folder), folder


@pytest.fixture(scope="module")
def ade(tmp_path_factory) -> str:
    """Images that differ in how much of them is labelled."""
    folder = ade_folder(tmp_path_factory.mktemp("ade"), 4, 5)
    labels = np.zeros((32, 32), np.uint8)
    labels[:4] = 1
    save(folder / "annotations/training/ADE_00000001.png", labels)
    return str(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, coco, ade):  # noqa: F811
    folder = tmp_path_factory.mktemp("two")
    return run_team(2, two, folder, coco, ade), folder


@pytest.mark.parametrize("way", ["ddp", "parts", "fsdp"])
def test_two_processes_give_the_losses_of_one(way: str, alone, pair) -> None:
    (main, other), folder = pair
    assert main[way]["status"] == "done"
    assert_close(main[way], alone[0])
    assert {k: v for k, v in other[way].items() if k != "steps_now"} == read_record(record_path(folder / way, RUN))
    assert main[way]["where"]["processes"] == 2
    assert set(load_final(folder / way, RUN)) == set(load_final(alone[1], RUN))
    assert not list(folder.rglob(".*.*.*")), "nothing half written is left"


@pytest.mark.parametrize(("way", "kind"), [("ddp", ".pt"), ("fsdp", ".shards")])
def test_interrupted_it_goes_on_as_many_bit_for_bit_or_alone(way: str, kind: str, alone, pair) -> None:
    (main, other), folder = pair
    again, begun = main[f"{way}-again"], folder / f"{way}-stopped"
    assert again["steps_now"] == RUN.steps - 9
    assert again["curve"] == main[way]["curve"] and again["transfer"] == main[way]["transfer"]
    assert same_weights(folder / f"{way}-again", folder / way)
    assert sorted(p.name for p in trunk_folder(begun, RUN).iterdir()) == [f"step-000000{s}{kind}" for s in (8, 9)]
    record = go(begun)
    assert record["steps_now"] == RUN.steps - 9
    assert_close(record, alone[0])
    assert [p.name for p in trunk_folder(begun, RUN).iterdir()] == ["step-0000017.pt"]
    assert not tail_folder(begun, RUN).exists()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_signal_to_one_process_saves_in_all(way: str, pair) -> None:
    (main, other), folder = pair
    line = f"SIGTERM: {RUN.key} is saved at step 6 of 20; run the same command to go on"
    assert main[f"{way}-killed"] == other[f"{way}-killed"] == line
    assert [p.stem for p in trunk_folder(folder / f"{way}-killed", RUN).iterdir()] == ["step-0000006"]
    assert main["handler"] and other["handler"], "afterwards the signal does what it did before"
    assert "odd" not in main and "odd" not in other


def test_damaged_shards_are_named_and_passed_over(alone, pair, tmp_path, capsys) -> None:
    """A short file, a missing one, a missing index: the step before is taken."""
    for i, name in enumerate(("__0_0.distcp", "__1_0.distcp", ".metadata", "state.pt")):
        folder = tmp_path / str(i)
        shutil.copytree(pair[1] / "fsdp-killed", folder)
        (path,) = trunk_folder(folder, RUN).iterdir()
        damaged = path / name
        if i % 2:
            damaged.unlink()
        else:
            damaged.write_bytes(damaged.read_bytes()[:100])
        assert go(folder, stop=1) is None
        assert f"{path} is passed over" in capsys.readouterr().err


@pytest.fixture(scope="module")
def classified_alone(tmp_path_factory):
    with one_thread(ALONE.device):
        return classified(tmp_path_factory.mktemp("classified"), ALONE)


def test_two_processes_classify_as_one(classified_alone, pair) -> None:
    """Flips, drop path, mixes and timm's draws are functions of numbers; the pairs of mixup stay on one process. A
    killed one goes on bit for bit."""
    pairs = pair[0][0]["classified"]
    for case in ("flip", "mixed", "pictures"):
        one, two = classified_alone[case], pairs[case]
        assert len(one["losses"]) == 6 and two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)
        assert two["final"] == one["final"] and one["final"]["n_test"] == 33
    for found in (classified_alone, pairs):
        assert found["killed"] == found["flip"]
        half, full = found["bf16"]["losses"], found["flip"]["losses"]
        assert half != full and half == pytest.approx(full, rel=0.05)
    assert pairs["bf16"]["losses"] == pytest.approx(classified_alone["bf16"]["losses"], rel=0.01)


def test_two_processes_segment_and_detect(pair, ade) -> None:
    """They are replicas; a split batch has the loss and the gradients of the whole, and all test images are scored."""
    first, second = pair[0]
    assert first["segment"] == second["segment"] and first["segment"]["status"] == "done"
    assert first["segment"]["transfer"]["miou"]["n_test"] == 5 and len(first["segment"]["examples"]) == 5
    assert first["detect"] == second["detect"] and first["detect"]["transfer"]["box_ap"]["n_test"] == 7
    assert all(first[task]["same"] and first[task]["moved"] for task in ("segment", "detect"))
    whole = segmented(ade)
    assert first["segmented"]["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert first["segmented"]["loss"] == second["segmented"]["loss"]
    for name, grad in whole["grads"].items():
        assert close(torch.from_numpy(first["segmented"]["grads"][name]), torch.from_numpy(grad), 1e-5)


def test_every_split_of_a_batch_gives_the_same_losses(alone, tmp_path) -> None:
    record = go(tmp_path, Runtime(accumulate=8))
    assert_close(record, alone[0])
    assert record["key"] == alone[0]["key"] and record["where"]["runtime"]["accumulate"] == 8


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_the_same_call_goes_on_bit_for_bit(name: str, alone, tmp_path) -> None:
    before = signal.getsignal(getattr(signal, name))
    line = go(tmp_path, kill=6, how=getattr(signal, name))
    assert line == f"{name}: {RUN.key} is saved at step 6 of 20; run the same command to go on"
    assert signal.getsignal(getattr(signal, name)) == before and Preempted(line).status == 75
    record = go(tmp_path)
    assert record["steps_now"] == RUN.steps - 6 and record["curve"] == alone[0]["curve"]
    assert same_weights(tmp_path, alone[1])


def test_a_run_in_a_thread_leaves_signals_alone(alone, tmp_path) -> None:
    """A notebook's kernel or a server may train in a thread, where signals cannot be handled."""
    found = []
    thread = threading.Thread(target=lambda: found.append(go(tmp_path)))
    thread.start()
    thread.join()
    assert found[0]["curve"] == alone[0]["curve"]
    with ThreadPoolExecutor(1) as pool, Preemption() as preemption:
        assert pool.submit(lambda: Preemption().__enter__().signal).result() is None
        assert signal.getsignal(signal.SIGTERM) is preemption


def test_a_signal_in_a_fine_tuning_saves_it_too(tmp_path, monkeypatch) -> None:
    def tuned(folder=None, signals=()):
        spec = tiny_spec(steps=5, eval_every=1)
        task = Classification(spec, tiny_data(), None, ALONE)
        loss = task.loss
        task.loss = lambda *a: [os.kill(os.getpid(), s) for s in signals if training.step == 2] and None or loss(*a)
        training = begin(spec, task, ALONE, "tiny", folder)
        run_task(training, task, folder)
        return training.curve

    with pytest.raises(Preempted, match=f"SIGTERM: {tiny_spec(steps=5, eval_every=1).key} is saved at step 3 of 5"):
        tuned(tmp_path, [signal.SIGTERM])
    assert tuned(tmp_path) == tuned()


def test_only_training_is_compiled(alone, tmp_path, monkeypatch) -> None:
    """Validation and probes are those of the plain network, so the same weights give the same number."""
    calls = []
    compiled = lambda function, **_: lambda *inputs: calls.append(1) or function(*inputs)  # noqa: E731
    monkeypatch.setattr(torch, "compile", compiled)
    assert go(tmp_path, Runtime(compile=True))["curve"] == alone[0]["curve"]
    assert len(calls) == 1 + RUN.steps * sum(SIZES[RUN.model].depths)


def test_what_cannot_be_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="^compile: there is no C\\+\\+ compiler here; install one"):
        go(tmp_path, Runtime(compile=True))
    with pytest.raises(UserError, match="accumulate 3 does not divide the 8 images of a process's share: try 2"):
        go(tmp_path, Runtime(accumulate=3))
    with pytest.raises(UserError, match="unknown parallel 'fdsp': did you mean 'fsdp'"):
        Runtime(parallel="fdsp")
    with pytest.raises(UserError, match="batch_size 9 does not divide among 2 processes: try 8"):
        Team(torch.device("cpu"), 0, 2).share(9)
    with pytest.raises(UserError, match="batch_size 18 does not divide into pairs for 4 processes: try 16"):
        Team(torch.device("cpu"), 0, 4).pairs(18)


def test_pairs_stay_together() -> None:
    for size in (1, 2, 4):
        shares = [Team(torch.device("cpu"), rank, size).pairs(16) for rank in range(size)]
        assert sorted(np.concatenate(shares)) == list(range(16))
        assert all((share + share[::-1] == 15).all() for share in shares)


def test_the_command_line_takes_the_options(capsys, tmp_path) -> None:
    words = ["pretrain", "--images", "16", "--steps", "2", "--batch-size", "8", "--image-size", "16", "--val-images"]
    words += ["8", "--val-masks", "1", "--probe-labels", "0", "--device", "cpu", "--runs-dir", str(tmp_path)]
    assert cli.main([*words, "--accumulate", "2", "--checkpointing", "--parallel", "fsdp"]) == 0
    record = json.loads(Path(capsys.readouterr().out.split("record: ")[1].strip()).read_text())
    expected = {"parallel": "fsdp", "accumulate": 2, "checkpointing": True, "compile": False}
    assert record["where"]["runtime"] == expected
    for more, line in ((["--accumulate", "3"], "accumulate 3 does not divide"), (["--parallel", "x"], "known are ddp")):
        assert cli.main([*words, "--seed", "1", *more]) == 2
        errors = capsys.readouterr().err
        assert line in errors and errors.count("\n") == 1
