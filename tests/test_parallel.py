"""One training by several processes and in parts: the numbers of one process, whatever is shared, saved, interrupted.

Two processes are started once and do everything that two are needed for: pretraining, and a step or more of each task.
"""

import contextlib
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ade_folders import ade_folder, save
from random_weights import close
from teams import run_team
from tiny import ALONE, classification, coco, detection, same, segmentation, stopped, tiny_data, tiny_spec, trained  # noqa: F401
from torch import nn

from simmim_lite.data.sources import as_pictures
from simmim_lite.errors import Everywhere, Preempted, UserError
from simmim_lite.model.sizes import SIZES
from simmim_lite.processes import one_thread
from simmim_lite.training import train
from simmim_lite.training.parallel import Parallel, Team, join
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run, Runtime, load_final, read_record, record_path, tail_folder, trunk_folder

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
    "pictures": {**BASE, "augment": "timm", "rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25},
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
    np.testing.assert_allclose(losses(record), losses(other), atol=1e-5, rtol=0)
    for name, score in record["transfer"].items():
        assert score["score"] == pytest.approx(other["transfer"][name]["score"], abs=0.07)


def classified(folder: Path, team: Team) -> dict[str, dict]:
    """Losses and score of each case."""
    found = {}
    for name, fields in CASES.items():
        spec = tiny_spec(**{k: v for k, v in fields.items() if k != "stop"})
        for stop in dict.fromkeys([fields.get("stop"), None]):
            data = as_pictures(tiny_data()) if spec.full_size else tiny_data()
            with stopped(stop):
                record = trained(classification(spec, data, team=team), data, folder=folder / name)
                found[name] = {"losses": [p["train_loss"] for p in record["curve"]], "final": record["final"]}
    return found


def first_step(folder: str, team: Team = ALONE) -> dict:
    """Loss (the mean over processes) and gradients of step 0 of a segmentation. Nothing depends on which images share a
    process: dropout is off and batch normalisation uses its running statistics."""
    task = segmentation(folder, team=team, drop_path=0.1)
    net = Parallel(task.model, team, loss=task.loss).train()
    for module in task.model.modules():
        if isinstance(module, (nn.Dropout2d, nn.BatchNorm2d)):
            module.eval()
    loss = net(*task.batch(0))
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in task.model.named_parameters() if p.grad is not None}
    return {"loss": team.mean(loss.detach().clone()).item(), "grads": grads}


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
    with contextlib.suppress(Everywhere):
        done["odd"] = go(folder / "odd", run=replace(RUN, batch_size=9))
    team = join("cpu")
    with one_thread(team.device):
        done["classified"], done["first step"] = classified(folder / "classified", team), first_step(ade, team)
        for name, task in (
            ("segment", segmentation(ade, team=team, steps=2)),
            ("detect", detection(coco, team=team, steps=2, test_images=7)),
        ):
            record = trained(task)
            done[name] = {part: record[part] for part in ("status", "curve", "transfer", "examples")}
            done[name]["weights"] = [p.double().sum().item() for p in task.model.parameters()]
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
    assert_close(main[way], alone[0])
    assert {k: v for k, v in other[way].items() if k != "steps_now"} == read_record(record_path(folder / way, RUN))
    assert main[way]["where"]["processes"] == 2 and "odd" not in main and "odd" not in other
    assert set(load_final(folder / way, RUN)) == set(load_final(alone[1], RUN))
    assert not list(folder.rglob(".*.*.*")), "nothing half written is left"


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_interrupted_it_goes_on_as_many_bit_for_bit_or_alone(way: str, alone, pair) -> None:
    (main, other), folder = pair
    again, begun = main[f"{way}-again"], folder / f"{way}-stopped"
    assert again["steps_now"] == RUN.steps - 9
    assert again["curve"] == main[way]["curve"] and again["transfer"] == main[way]["transfer"]
    assert same(load_final(folder / f"{way}-again", RUN), load_final(folder / way, RUN))
    assert sorted(p.name for p in trunk_folder(begun, RUN).iterdir()) == ["step-0000008.pt", "step-0000009.pt"]
    record = go(begun)
    assert record["steps_now"] == RUN.steps - 9
    assert_close(record, alone[0])
    assert [p.name for p in trunk_folder(begun, RUN).iterdir()] == ["step-0000017.pt"]
    assert not tail_folder(begun, RUN).exists()
    line = f"SIGTERM: {RUN.key} is saved at step 6 of 20; run the same command to go on"
    assert main[f"{way}-killed"] == other[f"{way}-killed"] == line, "a signal to one process saves in all"
    assert [p.stem for p in trunk_folder(folder / f"{way}-killed", RUN).iterdir()] == ["step-0000006"]


def test_two_processes_classify_as_one(pair, tmp_path) -> None:
    """Flips, drop path and timm's draws are functions of numbers. A killed one goes on bit for bit."""
    with one_thread(ALONE.device):
        found = classified(tmp_path, ALONE)
    pairs = pair[0][0]["classified"]
    for case in ("flip", "pictures"):
        assert pairs[case]["losses"] == pytest.approx(found[case]["losses"], abs=1e-5)
        assert pairs[case]["final"] == found[case]["final"] and found[case]["final"]["n_test"] == 33
    assert found["killed"] == found["flip"] and pairs["killed"] == pairs["flip"]


def test_two_processes_segment_and_detect(pair, ade) -> None:
    """They are replicas; a split batch has the loss and the gradients of the whole, and all test images are scored."""
    first, second = pair[0]
    assert all(first[task] == second[task] and first[task]["status"] == "done" for task in ("segment", "detect"))
    assert first["segment"]["transfer"]["miou"]["n_test"] == len(first["segment"]["examples"]) == 5
    assert first["detect"]["transfer"]["box_ap"]["n_test"] == 7
    whole, split = first_step(ade), first["first step"]
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-5) and split["loss"] == second["first step"]["loss"]
    grads = whole["grads"].items()
    assert all(close(torch.from_numpy(split["grads"][n]), torch.from_numpy(grad), 1e-5) for n, grad in grads)


def test_every_split_of_a_batch_gives_the_same_losses_and_only_training_is_compiled(alone, tmp_path, monkeypatch):
    record = go(tmp_path / "parts", Runtime(accumulate=8))
    assert_close(record, alone[0])
    assert record["key"] == alone[0]["key"] and record["where"]["runtime"]["accumulate"] == 8
    calls = []
    compiled = lambda function, **_: lambda *inputs: calls.append(1) or function(*inputs)  # noqa: E731
    monkeypatch.setattr(torch, "compile", compiled)
    assert go(tmp_path / "compiled", Runtime(compile=True))["curve"] == alone[0]["curve"]
    assert len(calls) == 1 + RUN.steps * sum(SIZES[RUN.model].depths)


def test_a_signal_saves_and_the_same_call_goes_on_bit_for_bit_also_in_a_thread(alone, tmp_path) -> None:
    """A notebook's kernel or a server may train in a thread, where signals cannot be handled."""
    before = signal.getsignal(signal.SIGUSR1)
    line = go(tmp_path, kill=6, how=signal.SIGUSR1)
    assert line == f"SIGUSR1: {RUN.key} is saved at step 6 of 20; run the same command to go on"
    assert signal.getsignal(signal.SIGUSR1) == before and Preempted(line).status == 75
    with ThreadPoolExecutor(1) as pool:
        record = pool.submit(go, tmp_path).result()
    assert record["steps_now"] == RUN.steps - 6 and record["curve"] == alone[0]["curve"]
    assert same(load_final(tmp_path, RUN), load_final(alone[1], RUN))


def test_what_cannot_be_is_one_line(tmp_path, monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    team = Team(torch.device("cpu"), 0, 2)
    for call, words in (
        (lambda: go(tmp_path, Runtime(compile=True)), "^compile: .*no compiler"),
        (lambda: go(tmp_path, Runtime(accumulate=3)), "accumulate 3 does not divide the 8 images"),
        (lambda: Runtime(parallel="fdsp"), "unknown parallel 'fdsp': did you mean 'fsdp'"),
        (lambda: team.share(9), "batch_size 9 does not divide among 2 processes: try 8"),
    ):
        with pytest.raises(UserError, match=words):
            call()
