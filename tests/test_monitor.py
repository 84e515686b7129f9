"""What a runs folder is doing: states of runs, `simmim-lite watch`, and the monitor of a notebook without one."""

import json
import os
import pty
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from child_processes import PATIENCE
from filelock import FileLock
from test_cli import call

from simmim_lite.errors import UserError
from simmim_lite.lab import monitor as module
from simmim_lite.lab.monitor import Watch, counts
from simmim_lite.studies.grids import plan_of
from simmim_lite.training.journal import Journal, journal_path
from simmim_lite.training.run import Run, new_record, record_path, write_record

RUN = Run(model="swinv2_femto", images=64, steps=400, eval_every=100)
CURVE = [{"step": s, "images_seen": 64 * s, "train_loss": 0.6, "val_loss": 0.5, "lr": 1e-3} for s in (100, 200)]


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> None:
    """Ages are exact: the clock stands still, however slow the machine is."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)


def lock(folder, run: Run) -> FileLock:
    (folder / "locks").mkdir(exist_ok=True)
    return FileLock(folder / "locks" / f"{run.trunk_key}.lock")


def started(folder, run: Run = RUN, steps: int = 200) -> None:
    """The journal of a run that has done so many steps, half a minute ago."""
    journal = Journal(folder, run, device="cpu", processes=2)
    journal.start(0, [])
    for step in range(50, steps + 1, 50):
        journal.point(step, 0.7 - step / 1000)
        if step % run.eval_every == 0:
            journal.validated(step, 0.6 - step / 1000)
    path = journal_path(folder, run.key)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for k, line in enumerate(lines):
        line["time"] = time.time() - 30 - 10 * (len(lines) - 1 - k)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rewrite(folder, run: Run, **changes: object) -> None:
    """Change fields of every line of a journal that have them."""
    path = journal_path(folder, run.key)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | {k: v for k, v in changes.items() if k in line} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def done(folder, run: Run) -> None:
    where = {"device": "cpu", "data_digest": "x"}
    record = new_record(run, status="done", curve=CURVE, where=where)
    write_record(record_path(folder, run), record)


def test_running_and_stopped_are_told_apart_by_the_lock(tmp_path) -> None:
    started(tmp_path)
    with lock(tmp_path, RUN):
        (seen,) = Watch(tmp_path).look()
        assert (seen.state, seen.step) == ("running", 200)
        assert seen.last("val_loss") == pytest.approx(0.4) and seen.last("train_loss") == pytest.approx(0.5)
        assert seen.age == pytest.approx(30)
        assert seen.left == pytest.approx(60 - 30)  # 200 steps took a minute, and half a minute is over
    (seen,) = Watch(tmp_path).look()
    assert (seen.state, seen.step, seen.left) == ("stopped", 200, None)


def test_a_run_of_another_machine_is_silent_after_a_while(tmp_path) -> None:
    started(tmp_path)
    rewrite(tmp_path, RUN, machine="ffffffff")
    assert Watch(tmp_path).look()[0].state == "running"
    rewrite(tmp_path, RUN, time=time.time() - module.PATIENCE - 10)
    (seen,) = Watch(tmp_path).look()
    assert (seen.state, round(seen.age, -1)) == ("silent", 130)


def test_of_one_trunk_only_the_run_that_wrote_last_is_running(tmp_path) -> None:
    started(tmp_path)
    longer = replace(RUN, steps=800)
    started(tmp_path, longer)
    rewrite(tmp_path, longer, time=time.time() - 20)
    with lock(tmp_path, RUN):
        assert {s.run.steps: s.state for s in Watch(tmp_path).look()} == {400: "stopped", 800: "running"}


def test_finished_failed_and_what_is_still_to_do(tmp_path) -> None:
    planned = plan_of("data-scale", "smoke", data="scenes", seeds=1)[0]
    finished, failed, running, *rest = planned
    done(tmp_path, replace(finished, precision="bf16"))
    started(tmp_path, replace(finished, precision="bf16"))  # killed between its record and the end of its journal
    reason = "the loss was not finite"
    record = new_record(failed, status="failed", reason=reason, where={"device": "cpu", "data_digest": "x"})
    write_record(record_path(tmp_path, failed), record)
    started(tmp_path, running, steps=0)
    with lock(tmp_path, running):
        watch = Watch(tmp_path, planned)
        found = watch.look()
        assert [s.state for s in found] == ["running", "failed", "finished", *["to do"] * len(rest)]
        assert counts(found) == f"{len(planned)} runs: 1 running, 1 failed, 1 finished, {len(rest)} to do"
        assert found[1].reason == reason and found[2].points == CURVE
        started(tmp_path, rest[0])  # what is new is seen
        assert sum(s.state == "stopped" for s in watch.look()) == 1
    assert counts([]) == "no runs yet"


def test_a_broken_record_is_named(tmp_path) -> None:
    record_path(tmp_path, RUN).parent.mkdir()
    record_path(tmp_path, RUN).write_text("{")
    with pytest.raises(UserError, match=f"{RUN.key}.json: not a readable record"):
        Watch(tmp_path).look()


def test_watch_once(tmp_path, capsys) -> None:
    started(tmp_path)
    done(tmp_path, replace(RUN, seed=1))
    with lock(tmp_path, RUN):
        status, out, _ = call(capsys, "watch", "--once", "--runs-dir", tmp_path)
        assert status == 0
        header, line, _, total = out.splitlines()
        assert header.split()[:3] == ["run", "state", "step"]
        for word in ("femto, 64 images, seed 0", "running", "200 of 400 (50 %)", "0.5000", "0.4000", " s ago"):
            assert word in line
        assert total == "2 runs: 1 running, 1 finished"
        _, out, _ = call(capsys, "watch", "--runs-dir", tmp_path, "--all", "--study", "schedule", "--tier", "smoke")
        assert "seed 1" in out and "to do" in out.splitlines()[-1]
    _, out, _ = call(capsys, "watch", "--once", "--runs-dir", tmp_path)
    assert "goes on from its last checkpoint when the same command is run again" in out


def test_watch_names_what_is_wrong(tmp_path, capsys) -> None:
    for words, line in (
        (["--runs-dir", tmp_path / "none"], "none: no such folder"),
        (["--every", "0", "--runs-dir", tmp_path], "--every is 0: give seconds above 0"),
        (["--study", "nope", "--runs-dir", tmp_path], "unknown study 'nope'"),
    ):
        status, _, err = call(capsys, "watch", *words)
        assert status == 2 and line in err and err.count("\n") == 1


def test_watch_in_a_terminal_is_drawn_in_place_and_ends_when_all_is_finished(tmp_path) -> None:
    planned = plan_of("schedule", "smoke", data="scenes", seeds=1)[0]
    for run in planned[1:]:
        done(tmp_path, run)
    ours, theirs = pty.openpty()
    words = ["watch", "--runs-dir", str(tmp_path), "--study", "schedule", "--tier", "smoke", "--seeds", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "simmim_lite", *words, "--every", "0.05"], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while said.count(b"\x1b[H\x1b[J") < 3:
        said += os.read(ours, 4096)
    assert b"1 to do" in said
    done(tmp_path, planned[0])
    assert process.wait(PATIENCE) == 0
    os.close(ours)


def test_the_pictures_of_a_notebook(tmp_path) -> None:
    started(tmp_path)
    other = replace(RUN, model="swinv2_atto", target="normalized")
    started(tmp_path, other, steps=100)
    for seed in range(1, 20):
        done(tmp_path, replace(RUN, seed=seed))
    found = Watch(tmp_path).look()
    chart = module.curves(found)
    assert len(chart.data) == 19 + 2 * 2
    assert {t.xaxis for t in chart.data} == {"x", "x2"}, "raw and normalised losses never share an axis"
    assert {t.name.partition(", ")[2] for t in chart.data if "femto" in t.name} == {
        "training, in progress", "validation, in progress", "validation, finished"}  # fmt: skip
    assert max(x for t in chart.data for x in t.x) == 12_800
    table = module.table(found)
    assert table.count("<tr>") == 1 + module._LINES + 1
    assert f"and {21 - module._LINES} more" in table and "200 of 400 (50 %)" in table
    assert len(module.bundles(found)) == 3
    assert module.bundles([]) == [{"text/markdown": "**no runs yet**", "text/plain": "no runs yet"}]


def test_until_ends_the_looking(tmp_path) -> None:
    asked = []
    assert module.monitor(tmp_path, seconds=0.01, until=lambda: len(asked) > 3 or asked.append(1)) is None
    assert len(asked) == 4
