"""What a runs folder is doing: states of runs, and `simmim-lite watch`."""

import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from synthetic_records import record
from test_cli import call

from simmim_lite.lab import monitor
from simmim_lite.lab.monitor import counts, look, text
from simmim_lite.studies.grids import plan_of
from simmim_lite.training import callbacks
from simmim_lite.training.parallel import Group
from simmim_lite.training.run import Run, record_path, write_record

RUN = Run(model="swinv2_femto", images=64, steps=400, eval_every=100)
CURVE = [{"step": s, "images_seen": 64 * s, "train_loss": 0.6, "val_loss": 0.5, "lr": 1e-3} for s in (100, 200)]


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> list[float]:
    """Ages are exact: the clock stands still, however slow the machine is."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def lock(folder, run: Run) -> FileLock:
    (folder / "locks").mkdir(exist_ok=True)
    return FileLock(folder / "locks" / f"{run.trunk_key}.lock")


def started(folder, clock, run: Run = RUN, steps: int = 200, ago: float = 30) -> None:
    """The journal of a run that has done so many steps, 10 s a point, the last of them half a minute ago."""
    clock[0], now = clock[0] - ago - 10 * (steps // 50 + steps // run.eval_every), clock[0]
    written = callbacks.Journal(folder, run)
    written.on_train_start(SimpleNamespace(step=0, curve=[], group=Group(torch.device("cpu"), size=2)))
    for step in range(50, steps + 1, 50):
        clock[0] += 10
        written.point(step, train_loss=0.7 - step / 1000)
        if step % run.eval_every == 0:
            clock[0] += 10
            written.point(step, val_loss=0.6 - step / 1000)
    clock[0] = now


def done(folder, run: Run, **changes: object) -> None:
    made = record(**vars(run), **changes)
    write_record(record_path(folder, run), made | ({"curve": CURVE} if "curve" in made else {}))


def test_states_are_told_by_locks_ages_and_trunks(tmp_path, clock, monkeypatch) -> None:
    started(tmp_path, clock)
    with lock(tmp_path, RUN):
        (seen,) = look(tmp_path).itertuples()
        assert (seen.state, seen.step, seen.key) == ("running", 200, RUN.key)
        assert monitor.last(seen.points, "val_loss") == pytest.approx(0.4)
        assert seen.age == pytest.approx(30) and seen.left == pytest.approx(60 - 30)  # 200 steps took a minute
    (seen,) = look(tmp_path).itertuples()
    assert (seen.state, seen.step, seen.left) == ("stopped", 200, None)
    started(tmp_path, clock, replace(RUN, steps=800), ago=20)
    with lock(tmp_path, RUN):  # of one trunk only the run that wrote last is in progress
        assert {s.run.steps: s.state for s in look(tmp_path).itertuples()} == {400: "stopped", 800: "running"}
    monkeypatch.setattr(callbacks, "this_machine", lambda: "ffffffff")  # another one wrote these
    for ago, state in ((30, "running"), (monitor.PATIENCE + 10, "silent")):
        started(tmp_path / state, clock, ago=ago)
        assert list(look(tmp_path / state)["state"]) == [state]


def test_finished_failed_and_what_is_still_to_do(tmp_path, clock) -> None:
    planned = plan_of("data-scale", "smoke", data="scenes", seeds=1)[0]
    finished, failed, running, *rest = planned
    done(tmp_path, replace(finished, precision="bf16"))
    started(tmp_path, clock, replace(finished, precision="bf16"))  # killed between its record and its journal's end
    done(tmp_path, failed, status="failed", reason="the loss was not finite")
    started(tmp_path, clock, running, steps=0)
    with lock(tmp_path, running):
        found = look(tmp_path, planned)
        assert list(found["state"]) == ["running", "failed", "finished", *["to do"] * len(rest)]
        assert counts(found) == f"{len(planned)} runs: 1 running, 1 failed, 1 finished, {len(rest)} to do"
        assert found["reason"][1] == "the loss was not finite" and found["points"][2] == CURVE
    record_path(tmp_path, RUN).write_text("{")  # the others are shown, and it is named
    notes = []
    assert list(look(tmp_path, planned, notes.append)["key"]) == list(found["key"])
    assert f"{RUN.key}.json: not a readable record" in text(found, notes).split("\n")[-3]


def test_watch(tmp_path, capsys, monkeypatch, clock) -> None:
    started(tmp_path, clock)
    done(tmp_path, replace(RUN, seed=1))
    with lock(tmp_path, RUN):
        status, out, _ = call(capsys, "watch", "--runs-dir", tmp_path)  # in a pipe it is printed once
        header, line, _, total = out.splitlines()
        assert status == 0 and header.split()[:3] == ["run", "state", "step"]
        for word in ("femto, 64 images, seed 0", "running", "200 of 400 (50 %)", "0.5000", "0.4000", "30 s"):
            assert word in line
        assert total == "2 runs: 1 running, 1 finished"
    status, _, err = call(capsys, "watch", "--runs-dir", "none")
    assert status == 2 and "none: no such folder" in err and err.count("\n") == 1
    (tmp_path / "m").mkdir()
    speeds = {f"{model} {p}": 1e-3 for model in ("swinv2_atto", "swinv2_femto") for p in ("fp32", "bf16")}
    (tmp_path / "m" / "machine.json").write_text(json.dumps({"cpu batch 64 size 32": speeds}))
    for more, many in (((), 8 * 11), (("--seeds", 2), 22), (("--seeds", 2, "--models", "swinv2_pico"), 10)):
        out = call(capsys, "watch", "--runs-dir", tmp_path / "m", "--study", "all", "--tier", "quick", *more)[1]
        assert out == f"{many} runs: {many} to do\n", "what the study would take"
    first, *rest = plan_of("schedule", "smoke", data="scenes")[0]
    for run in rest:
        done(tmp_path / "t", run)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(time, "sleep", lambda seconds: seconds and done(tmp_path / "t", first))
    out = call(capsys, "watch", "--runs-dir", tmp_path / "t", "--study", "schedule", "--tier", "smoke")[1]
    before, after = out.split("\x1b[H\x1b[J")[1:]  # drawn in place until all is finished
    assert "1 to do" in before and "to do" not in after
