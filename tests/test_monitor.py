"""What a runs folder is doing: states of runs, `simmim-lite watch`, and the monitor of a notebook without one."""

import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from filelock import FileLock
from test_cli import call

from simmim_lite.errors import UserError
from simmim_lite.lab import monitor
from simmim_lite.lab.monitor import counts, look
from simmim_lite.studies.grids import plan_of
from simmim_lite.training.callbacks import Journal, journal_path
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


def started(folder, run: Run = RUN, steps: int = 200, ago: float = 30, **changes: object) -> None:
    """The journal of a run that has done so many steps, half a minute ago; changes: of fields of its lines."""
    journal = Journal(folder, run, device="cpu", processes=2)
    journal.on_train_start(SimpleNamespace(step=0, curve=[]))
    for step in range(50, steps + 1, 50):
        journal.point(step, train_loss=0.7 - step / 1000)
        if step % run.eval_every == 0:
            journal.point(step, val_loss=0.6 - step / 1000)
    path = journal_path(folder, run.key)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for k, line in enumerate(lines):
        line |= {"time": time.time() - ago - 10 * (len(lines) - 1 - k)} | {
            n: v for n, v in changes.items() if n in line
        }
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def done(folder, run: Run, **changes: object) -> None:
    about = {"status": "done", "curve": CURVE, "where": {"device": "cpu", "data_digest": "x"}} | changes
    write_record(record_path(folder, run), new_record(run, **about))


def test_states_are_told_by_locks_ages_and_trunks(tmp_path) -> None:
    started(tmp_path)
    with lock(tmp_path, RUN):
        (seen,) = look(tmp_path).itertuples()
        assert (seen.state, seen.step, seen.key) == ("running", 200, RUN.key)
        assert monitor.last(seen.points, "val_loss") == pytest.approx(0.4)
        assert seen.age == pytest.approx(30) and seen.left == pytest.approx(60 - 30)  # 200 steps took a minute
    (seen,) = look(tmp_path).itertuples()
    assert (seen.state, seen.step, seen.left) == ("stopped", 200, None)
    longer = replace(RUN, steps=800)
    started(tmp_path, longer, ago=20)
    with lock(tmp_path, RUN):  # of one trunk only the run that wrote last is in progress
        assert {s.run.steps: s.state for s in look(tmp_path).itertuples()} == {400: "stopped", 800: "running"}
    for ago, state in ((30, "running"), (monitor.PATIENCE + 10, "silent")):
        started(tmp_path / state, ago=ago, machine="ffffffff")
        assert list(look(tmp_path / state)["state"]) == [state]


def test_finished_failed_and_what_is_still_to_do(tmp_path) -> None:
    planned = plan_of("data-scale", "smoke", data="scenes", seeds=1)[0]
    finished, failed, running, *rest = planned
    done(tmp_path, replace(finished, precision="bf16"))
    started(tmp_path, replace(finished, precision="bf16"))  # killed between its record and the end of its journal
    done(tmp_path, failed, status="failed", reason="the loss was not finite", curve=[])
    started(tmp_path, running, steps=0)
    with lock(tmp_path, running):
        found = look(tmp_path, planned)
        assert list(found["state"]) == ["running", "failed", "finished", *["to do"] * len(rest)]
        assert counts(found) == f"{len(planned)} runs: 1 running, 1 failed, 1 finished, {len(rest)} to do"
        assert found["reason"][1] == "the loss was not finite" and found["points"][2] == CURVE
        started(tmp_path, rest[0])  # what is new is seen
        assert (look(tmp_path, planned)["state"] == "stopped").sum() == 1
    record_path(tmp_path, RUN).write_text("{")
    with pytest.raises(UserError, match=f"{RUN.key}.json: not a readable record"):
        look(tmp_path)


def test_watch(tmp_path, capsys, monkeypatch) -> None:
    started(tmp_path)
    done(tmp_path, replace(RUN, seed=1))
    with lock(tmp_path, RUN):
        status, out, _ = call(capsys, "watch", "--once", "--runs-dir", tmp_path)
        header, line, _, total = out.splitlines()
        assert status == 0 and header.split()[:3] == ["run", "state", "step"]
        for word in ("femto, 64 images, seed 0", "running", "200 of 400 (50 %)", "0.5000", "0.4000", "30 s"):
            assert word in line
        assert total == "2 runs: 1 running, 1 finished"
        _, out, _ = call(capsys, "watch", "--runs-dir", tmp_path, "--all", "--study", "schedule", "--tier", "smoke")
        assert "seed 1" in out and "to do" in out.splitlines()[-1]
    _, out, _ = call(capsys, "watch", "--once", "--runs-dir", tmp_path)
    assert "goes on from its last checkpoint when the same command is run again" in out
    wrong = (
        (["--runs-dir", tmp_path / "none"], "none: no such folder"),
        (["--every", "0", "--runs-dir", tmp_path], "above 0"),
    )
    for words, line in (*wrong, (["--study", "nope", "--runs-dir", tmp_path], "unknown study 'nope'")):
        status, _, err = call(capsys, "watch", *words)
        assert status == 2 and line in err and err.count("\n") == 1
    first, *rest = plan_of("schedule", "smoke", data="scenes", seeds=1)[0]
    for run in rest:
        done(tmp_path / "t", run)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(time, "sleep", lambda seconds: seconds and done(tmp_path / "t", first))
    words = ["--study", "schedule", "--tier", "smoke", "--seeds", "1"]
    _, out, _ = call(capsys, "watch", "--runs-dir", tmp_path / "t", *words)
    before, after = out.split("\x1b[H\x1b[J")[1:]  # drawn in place until all is finished
    assert "1 to do" in before and "to do" not in after


def test_the_pictures_of_a_notebook(tmp_path) -> None:
    started(tmp_path)
    started(tmp_path, replace(RUN, model="swinv2_atto", target="normalized"), steps=100)
    for seed in range(1, 20):
        done(tmp_path, replace(RUN, seed=seed))
    found = look(tmp_path)
    chart = monitor.curves(found)
    assert len(chart.data) == 19 + 2 * 2 and max(x for t in chart.data for x in t.x) == 12_800
    assert {t.xaxis for t in chart.data} == {"x", "x2"}, "raw and normalised losses never share an axis"
    curves = {"training, in progress", "validation, in progress", "validation, finished"}
    assert {t.name.partition(", ")[2] for t in chart.data if "femto" in t.name} == curves
    said, table, _ = monitor.bundles(found)
    assert table["text/html"].count("<tr") == 1 + 21 and "200 of 400 (50 %)" in table["text/html"]
    empty = {"text/markdown": "**no runs yet**", "text/plain": "no runs yet"}
    assert monitor.bundles(look(tmp_path / "none")) == [empty]
    asked = []
    assert monitor.monitor(tmp_path, until=lambda: len(asked) > 3 or asked.append(1)) is None and len(asked) == 4
