"""One run by several processes and in parts: the numbers of one process, whatever is shared, saved or interrupted."""

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
from teams import run_team
from test_finetune import tiny_data, tiny_spec

from simmim_lite import cli
from simmim_lite.errors import Everywhere, Preempted, UserError
from simmim_lite.model.sizes import SIZES
from simmim_lite.training import pretrain as module
from simmim_lite.training.checkpoint import load_final, tail_folder, trunk_folder
from simmim_lite.training.distributed import Team
from simmim_lite.training.finetune import Classification
from simmim_lite.training.loop import Loop
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run, read_record, record_path
from simmim_lite.training.runtime import Runtime
from simmim_lite.training.signals import listening

pytestmark = pytest.mark.xdist_group("two processes of a pretraining")  # its processes are started once

#: Twenty steps, a point of the curve after each; the rate drops at 17.
RUN = Run(
    image_size=16, images=24, steps=20, batch_size=8, warmup_steps=4, eval_every=1, val_images=7, val_masks=2,
    probe_labels=40, probe_test=30, drop_path=0.1, augment="crop+flip", lr=1e-3,
)  # fmt: skip
DDP, FSDP = Runtime(), Runtime(parallel="fsdp", accumulate=2, checkpointing=True)

ALONE = Team(torch.device("cpu"))


class Gone(BaseException):
    """What stops a run in a test: nobody catches it."""


def go(folder, runtime=DDP, run=RUN, stop=None, kill=None, how=signal.SIGTERM, seconds=0.0) -> dict | str | None:
    """The record of a run; with `stop`, none: it ends before that step, with a checkpoint of every step. `kill`: the
    last process gets a signal in that step, and the line that it ends with is returned."""
    real, interval = module.training_step, module.CHECKPOINT_SECONDS
    count = [0]

    def counted(net, optimiser, images, mask, *rest):
        count[0] += 1
        if count[0] - 1 == stop:
            raise Gone
        if count[0] == kill and net.team.rank == net.team.size - 1:
            os.kill(os.getpid(), how)
        return real(net, optimiser, images, mask, *rest)

    module.training_step = counted
    module.CHECKPOINT_SECONDS = seconds if stop else interval
    try:
        record = pretrain(run, runs_dir=folder, device="cpu", data=tiny_data(size=run.image_size), runtime=runtime)
        return record | {"steps_now": count[0]}
    except Gone:
        return None
    except Preempted as error:
        return str(error)
    finally:
        module.training_step, module.CHECKPOINT_SECONDS = real, interval


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
    a, b = load_final(folder, RUN), load_final(other, RUN)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return go(folder), folder


def two(folder) -> dict:
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
    try:
        go(folder / "odd", run=replace(RUN, batch_size=9))
    except Everywhere as error:
        done["odd"] = str(error)
    return done


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return run_team(2, two, folder), folder


@pytest.mark.parametrize("way", ["ddp", "parts", "fsdp"])
def test_two_processes_give_the_losses_of_one(way: str, alone, pair) -> None:
    (main, other), folder = pair
    assert main[way]["status"] == "done"
    assert_close(main[way], alone[0])
    assert {k: v for k, v in other[way].items() if k != "steps_now"} == read_record(record_path(folder / way, RUN))
    assert main[way]["where"]["processes"] == 2
    assert set(load_final(folder / way, RUN)) == set(load_final(alone[1], RUN))
    assert not list(folder.rglob(".*.*.*")), "nothing half written is left"


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_interrupted_and_resumed_by_as_many_is_bit_for_bit(way: str, pair) -> None:
    (main, _), folder = pair
    again = main[f"{way}-again"]
    assert again["steps_now"] == RUN.steps - 9
    assert_close(again, main[way])
    assert again["curve"] == main[way]["curve"] and again["transfer"] == main[way]["transfer"]
    assert same_weights(folder / f"{way}-again", folder / way)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_interrupted_in_two_goes_on_alone(way: str, alone, pair) -> None:
    folder = pair[1] / f"{way}-stopped"
    kind = ".shards" if way == "fsdp" else ".pt"
    assert [p.name for p in sorted(trunk_folder(folder, RUN).iterdir())] == [
        f"step-000000{step}{kind}" for step in (8, 9)
    ]
    record = go(folder)
    assert record["steps_now"] == RUN.steps - 9
    assert_close(record, alone[0])
    assert [p.name for p in trunk_folder(folder, RUN).iterdir()] == ["step-0000017.pt"]
    assert not tail_folder(folder, RUN).exists()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_signal_to_one_process_saves_in_all(way: str, pair) -> None:
    (main, other), folder = pair
    line = f"SIGTERM: {RUN.key} is saved at step 6 of 20; run the same command to go on"
    assert main[f"{way}-killed"] == other[f"{way}-killed"] == line
    assert [p.stem for p in trunk_folder(folder / f"{way}-killed", RUN).iterdir()] == ["step-0000006"]
    assert main["handler"] and other["handler"], "afterwards the signal does what it did before"


def test_a_batch_that_does_not_divide_is_one_line(pair) -> None:
    assert pair[0][0]["odd"] == pair[0][1]["odd"] == "batch_size 9 does not divide among 2 processes: try 8"


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
        record = go(folder, stop=1)
        assert record is None
        assert f"{path} is passed over" in capsys.readouterr().err


@pytest.mark.parametrize("accumulate", [2, 8])
def test_every_split_of_a_batch_gives_the_same_losses(accumulate: int, alone, tmp_path) -> None:
    record = go(tmp_path, Runtime(accumulate=accumulate))
    assert_close(record, alone[0])
    assert record["key"] == alone[0]["key"]
    assert record["where"]["runtime"]["accumulate"] == accumulate


def test_a_split_that_does_not_divide_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="accumulate 3 does not divide the 8 images of a process's share: try 2"):
        go(tmp_path, Runtime(accumulate=3))
    with pytest.raises(UserError, match="unknown parallel 'fdsp': did you mean 'fsdp'"):
        Runtime(parallel="fdsp")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_the_same_call_goes_on_bit_for_bit(name: str, alone, tmp_path) -> None:
    before = signal.getsignal(getattr(signal, name))
    line = go(tmp_path, kill=6, how=getattr(signal, name))
    assert line == f"{name}: {RUN.key} is saved at step 6 of 20; run the same command to go on"
    assert signal.getsignal(getattr(signal, name)) == before
    assert Preempted(line).status == 75
    record = go(tmp_path)
    assert record["steps_now"] == RUN.steps - 6
    assert record["curve"] == alone[0]["curve"]
    assert same_weights(tmp_path, alone[1])


def test_a_run_in_a_thread_leaves_signals_alone(alone, tmp_path) -> None:
    """A notebook's kernel or a server may train in a thread, where signals cannot be handled."""
    found = []

    def work() -> None:
        found.append(go(tmp_path))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0]["curve"] == alone[0]["curve"]
    with ThreadPoolExecutor(1) as pool, listening() as ears:
        inside = pool.submit(lambda: listening().__enter__().heard).result()
        assert inside is None and signal.getsignal(signal.SIGTERM) is ears


def test_a_signal_in_a_fine_tuning_saves_it_too(tmp_path, monkeypatch) -> None:
    spec = tiny_spec(steps=5, eval_every=1)
    undisturbed = Loop(spec, Classification(spec, tiny_data(), None, ALONE), ALONE, folder=None, data_digest="tiny")
    expected = undisturbed.run()
    real = Loop.advance

    def signalled(loop, net):
        if loop.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(loop, net)

    monkeypatch.setattr(Loop, "advance", signalled)
    again = {"folder": tmp_path, "data_digest": "tiny"}
    with pytest.raises(Preempted, match=f"SIGTERM: {spec.key} is saved at step 3 of 5"):
        Loop(spec, Classification(spec, tiny_data(), None, ALONE), ALONE, **again).run()
    assert Loop(spec, Classification(spec, tiny_data(), None, ALONE), ALONE, **again).run() == expected


def test_only_training_is_compiled(alone, tmp_path, monkeypatch) -> None:
    """Validation and probes are those of the plain network, so the same weights give the same number."""
    calls = []

    def compile(function, **options):
        return lambda *inputs: calls.append(1) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compile)
    record = go(tmp_path, Runtime(compile=True))
    assert record["curve"] == alone[0]["curve"]
    assert len(calls) == 1 + RUN.steps * sum(SIZES[RUN.model].depths)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path) -> None:
    """Two steps of a network without drop path: each variant of a block takes seconds to compile."""
    short = replace(RUN, steps=2, drop_path=0.0, probe_labels=0)
    plain, fast = go(tmp_path / "plain", run=short), go(tmp_path / "fast", Runtime(compile=True), short)
    np.testing.assert_allclose(losses(fast), losses(plain), atol=1e-4, rtol=0)
    assert set(load_final(tmp_path / "fast", short)) == set(load_final(tmp_path / "plain", short))


def test_compiling_without_a_compiler_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="^compile: there is no C\\+\\+ compiler here; install one"):
        go(tmp_path, Runtime(compile=True))


def test_the_command_line_takes_the_options(capsys, tmp_path) -> None:
    words = ["pretrain", "--images", "16", "--steps", "2", "--batch-size", "8", "--image-size", "16", "--val-images"]
    words += ["8", "--val-masks", "1", "--probe-labels", "0", "--device", "cpu", "--runs-dir", str(tmp_path)]
    assert cli.main([*words, "--accumulate", "2", "--checkpointing", "--parallel", "fsdp"]) == 0
    record = json.loads(Path(capsys.readouterr().out.split("record: ")[1].strip()).read_text())
    assert record["where"]["runtime"] == {
        "parallel": "fsdp", "accumulate": 2, "checkpointing": True, "compile": False,
    }  # fmt: skip
    for more, line in ((["--accumulate", "3"], "accumulate 3 does not divide"), (["--parallel", "x"], "known are ddp")):
        assert cli.main([*words, "--seed", "1", *more]) == 2
        errors = capsys.readouterr().err
        assert line in errors and errors.count("\n") == 1
