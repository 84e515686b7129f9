"""One training by several processes and in parts: the numbers of one process, whatever is shared, saved, interrupted.

Two processes are started once and do everything that two are needed for: pretraining, and a step or more of each task.
What torchrun itself adds is tried with one of its own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ade_folders import ade_folder, save
from child_processes import PATIENCE, until
from random_weights import close
from ranks import run_ranks
from tiny import ALONE, classification, coco, detection, same, segmentation, stopped, tiny_data, tiny_spec, trained  # noqa: F401
from torch import nn

from simmim_lite.errors import Everywhere, Interrupted, UserError
from simmim_lite.model.sizes import SIZES
from simmim_lite.processes import one_thread
from simmim_lite.studies.workers import pretrain_words
from simmim_lite.training import train
from simmim_lite.training.parallel import Group, Parallel, join
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.record import read_record
from simmim_lite.training.run import Run, Runtime, checkpoints, load_final, record_path

ROOT = Path(__file__).resolve().parents[1]
#: Eight steps, a point of the curve after each; the rate drops at 7.
RUN = Run(
    image_size=16, images=24, steps=8, batch_size=8, warmup_steps=4, eval_every=1, val_images=7, val_masks=2,
    probe_labels=40, probe_test=30, drop_path=0.1, augment="crop+flip", lr=1e-3,
)  # fmt: skip
WAYS = {"ddp": Runtime(accumulate=2), "fsdp": Runtime(parallel="fsdp", accumulate=2, checkpointing=True)}
PICTURES = {"steps": 4, "eval_every": 1, "drop_path": 0.3, "test_images": 33}
PICTURES |= {"augment": "timm", "rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25}
#: Long enough to be stopped in the middle; short enough that rounding has not grown yet.
LONG = Run(
    images=24, steps=120, batch_size=8, warmup_steps=100, eval_every=40, val_images=8, val_masks=1, probe_labels=0,
    drop_path=0.1, lr=1e-4,
)  # fmt: skip
#: A checkpoint after every step, where there are 30 s between two else.
HURRY = """
import sys
from simmim_lite.cli import main
from simmim_lite.training import train
train.CHECKPOINT_SECONDS = 0.0
sys.exit(main())
"""


def go(folder, runtime=None, run=RUN, stop=None, kill=None, how=signal.SIGTERM) -> dict | Interrupted | None:
    """The record of a run; with `stop`, none: it ends before that step, with a checkpoint of every step. `kill`: the
    last process gets a signal in that step, and what it ends with is returned."""

    def step(net, *arguments):
        if len(taken) + 1 == kill and net.group.rank == net.group.size - 1:
            os.kill(os.getpid(), how)
        return inner(net, *arguments)

    with stopped(stop) as taken:
        inner, train.step = train.step, step
        try:
            record = pretrain(run, runs_dir=folder, device="cpu", data=tiny_data(size=run.image_size), runtime=runtime)
            return record | {"steps_now": len(taken)}
        except Interrupted as error:
            return error


def losses(record: dict) -> np.ndarray:
    return np.array([[point["train_loss"], point["val_loss"]] for point in record["curve"]])


def assert_close(record: dict, other: dict) -> None:
    """Every training and validation loss within 1e-5, and the probes the same but for a case or two."""
    np.testing.assert_allclose(losses(record), losses(other), atol=1e-5, rtol=0)
    for name, score in record["transfer"].items():
        assert score["score"] == pytest.approx(other["transfer"][name]["score"], abs=0.07)


def classified(group: Group) -> dict:
    """The record of a classification of picture files."""
    data = tiny_data()
    data = replace(data, train=data.probe_train, val=None, probe_train=None)
    return trained(classification(tiny_spec(**PICTURES), data, group=group))


def first_step(folder: str, group: Group = ALONE) -> dict:
    """Loss (the mean over processes) and gradients of step 0 of a segmentation. Nothing depends on which images share a
    process: dropout is off and batch normalisation uses its running statistics."""
    task = segmentation(folder, group=group, drop_path=0.1)
    net = Parallel(task.model, group, loss=task.loss).train()
    for module in task.model.modules():
        if isinstance(module, (nn.Dropout2d, nn.BatchNorm2d)):
            module.eval()
    loss = net(*task.batch(0))
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in task.model.named_parameters() if p.grad is not None}
    return {"loss": group.sum(loss.detach().clone()).item() / group.size, "grads": grads}


def two(folder, coco, ade) -> dict:
    """Everything that two processes are needed for, in one go."""
    done = {}
    for name, how in WAYS.items():
        done[name] = go(folder / name, how)
        go(folder / f"{name}-stopped", how, stop=4)
        if os.environ["RANK"] == "0":  # which says where to go on from
            shutil.copytree(folder / f"{name}-stopped", folder / f"{name}-again")
        done[f"{name}-again"] = go(folder / f"{name}-again", how)
        done[f"{name}-killed"] = str(go(folder / f"{name}-killed", how, kill=3))
    with contextlib.suppress(Everywhere):
        done["odd"] = go(folder / "odd", run=replace(RUN, batch_size=9))
    group = join("cpu")
    with one_thread(group.device):
        done["classified"], done["first step"] = classified(group), first_step(ade, group)
        for name, task in (
            ("segment", segmentation(ade, group=group, steps=2)),
            ("detect", detection(coco, group=group, steps=2, test_images=7)),
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
    return run_ranks(2, two, folder, coco, ade), folder


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_losses_of_one_and_go_on_bit_for_bit_or_alone(way: str, alone, pair) -> None:
    (main, other), folder = pair
    assert_close(main[way], alone[0])
    assert {k: v for k, v in other[way].items() if k != "steps_now"} == read_record(record_path(folder / way, RUN))
    assert main[way]["where"]["processes"] == 2 and "odd" not in main and "odd" not in other
    assert not list(folder.rglob(".*.*.*")), "nothing half written is left"
    again, begun = main[f"{way}-again"], folder / f"{way}-stopped"
    assert again["steps_now"] == RUN.steps - 4
    assert again["curve"] == main[way]["curve"] and again["transfer"] == main[way]["transfer"]
    assert same(load_final(folder / f"{way}-again", RUN), load_final(folder / way, RUN))
    trunk = checkpoints(begun, RUN.trunk_key)
    assert sorted(p.name for p in trunk.iterdir()) == ["step-0000003.pt", "step-0000004.pt"]
    record = go(begun)
    assert record["steps_now"] == RUN.steps - 4
    assert_close(record, alone[0])
    assert [p.name for p in trunk.iterdir()] == ["step-0000007.pt"] and not checkpoints(begun, RUN.key).exists()
    line = f"SIGTERM: {RUN.key} is saved at step 3 of 8; run the same command to go on"
    assert main[f"{way}-killed"] == other[f"{way}-killed"] == line, "a signal to one process saves in all"
    assert [p.stem for p in checkpoints(folder / f"{way}-killed", RUN.trunk_key).iterdir()] == ["step-0000003"]


def test_two_processes_classify_segment_and_detect_as_one(pair, ade) -> None:
    """They are replicas; a split batch has the loss and the gradients of the whole, and all test images are scored."""
    first, second = pair[0]
    with one_thread(ALONE.device):
        whole, found = first_step(ade), classified(ALONE)
    rates = [[point["train_loss"] for point in record["curve"]] for record in (first["classified"], found)]
    assert rates[0] == pytest.approx(rates[1], abs=1e-5)
    assert first["classified"]["final"] == found["final"] and found["final"]["n_test"] == 33
    assert all(first[task] == second[task] and first[task]["status"] == "done" for task in ("segment", "detect"))
    assert first["segment"]["transfer"]["miou"]["n_test"] == len(first["segment"]["examples"]) == 5
    assert first["detect"]["transfer"]["box_ap"]["n_test"] == 7
    split = first["first step"]
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


@pytest.mark.parametrize(
    ("how", "said", "status"),
    [(signal.SIGUSR1, f"SIGUSR1: {RUN.key} is saved", 75), (signal.SIGINT, "stopped", 130)],
)
def test_a_signal_saves_and_the_same_call_goes_on_bit_for_bit_also_in_a_thread(how, said, status, alone, tmp_path):
    """Ctrl-C and a notebook's Stop are one. A notebook's kernel may train in a thread, where no signal can be heard."""
    before = signal.default_int_handler if how == signal.SIGINT else signal.getsignal(how)
    found = signal.signal(how, before)  # a shell may have started the tests deaf to SIGINT
    error = go(tmp_path, kill=3, how=how)
    assert str(error) == f"{said} at step 3 of 8; run the same command to go on" and error.status == status
    assert signal.signal(how, found) == before
    with ThreadPoolExecutor(1) as pool:
        record = pool.submit(go, tmp_path).result()
    assert record["steps_now"] == RUN.steps - 3 and record["curve"] == alone[0]["curve"]
    assert same(load_final(tmp_path, RUN), load_final(alone[1], RUN))


def test_what_cannot_be_is_one_line(tmp_path, monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    for call, words in (
        (lambda: go(tmp_path, Runtime(compile=True)), "^compile: .*no compiler"),
        (lambda: go(tmp_path, Runtime(accumulate=3)), "batch_size 8 does not divide .* in accumulate 3 parts: try 6"),
    ):
        with pytest.raises(UserError, match=words):
            call()


# torchrun itself


def start(folder: Path, processes: int, *more: str) -> subprocess.Popen:
    """The command line under torchrun."""
    script = folder.parent / "hurry.py"
    script.write_text(HURRY)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words += [str(script), *pretrain_words(LONG, Runtime(), str(folder), "cpu")]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*words, *more], env=environment, **pipes)


def saved(folder: Path, process: subprocess.Popen, after: int = 0) -> int:
    """The newest checkpoint's step, as soon as it is later than `after`."""
    trunk = checkpoints(folder, LONG.trunk_key)
    steps = lambda: [n for p in trunk.glob("step-*") if (n := train.step_of(p)) > after]  # noqa: E731
    return max(until(steps, process))


def test_a_signal_to_torchrun_saves_and_one_process_goes_on_and_misuse_is_one_line(tmp_path) -> None:
    """torchrun passes it on; its own status is 1, whatever its processes say, and a line is the last that it prints."""
    folder = tmp_path / "runs"
    process = start(folder, 2)
    step = saved(folder, process)
    process.terminate()
    errors = process.communicate(timeout=PATIENCE)[1]
    assert errors.count(f"simmim-lite: SIGTERM: {LONG.key} is saved at step ") == 1, errors
    assert process.returncode == 1 and saved(folder, process, step - 1) >= step
    runs = [pretrain(LONG, runs_dir=place, device="cpu") for place in (folder, tmp_path / "alone")]
    np.testing.assert_allclose(*map(losses, runs), atol=1e-5, rtol=0)
    assert not list(folder.rglob(".*.*.*")), "nothing half written is left"
    errors = start(tmp_path / "none", 2, "--steps", "ten").communicate(timeout=PATIENCE)[1]
    line, (said, _, block) = "argument --steps: 'ten' is not a whole number", errors.partition("Traceback (most recent")
    assert said.count(f"simmim-lite: {line}") == 1 and block.count("Traceback") == 0
    *_, last, border = block.strip().splitlines()
    assert last.strip().startswith(f"traceback : simmim-lite: {line}") and set(border) == {"="}
