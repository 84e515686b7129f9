"""The grids, and the engine that runs what is missing: kills, two processes at once, errors, nothing done twice."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from child_processes import INTERRUPTED, PATIENCE, interruptible, session, until
from picture_folders import image_tree

from simmim_lite import studies
from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.evidence.records import load
from simmim_lite.model.sizes import LAPTOP
from simmim_lite.processes import each
from simmim_lite.studies import costs, engine
from simmim_lite.studies.costs import cost_of
from simmim_lite.studies.engine import study
from simmim_lite.studies.grids import beginnings, grid, plan_of, planned, tunings
from simmim_lite.studies.tiers import STUDIES, TIERS, StudyOptions, claim_ids
from simmim_lite.training.run import PRECISIONS, Run

WORDS = "study data-scale --tier smoke --workers 1 --precision fp32 --no-notebooks"
COMMAND = [sys.executable, "-m", "simmim_lite", *WORDS.split()]
TINY = {"batch_size": 8, "val_images": 8, "val_masks": 1, "probe_labels": 0}
SWEEP = [Run(images=16, eval_every=20, lr=lr, steps=t, **TINY) for lr in (1e-3, 2e-3, 4e-3) for t in (30, 60)]
SCRIPT = (
    "import json, sys; from simmim_lite import Run, study\n"
    "runs = [Run.from_dict(fields) for fields in json.loads(sys.argv[1])]\n"
    "print(study('all', runs, tier='smoke', precision='fp32', runs_dir=sys.argv[2], workers=int(sys.argv[3])).trained)"
)


def numbers(folder: Path) -> dict:
    return {record["key"]: tiny.numbers(record) for record in load(folder)}


def measured(folder: Path, batch: int = 16, side: int = 32) -> Path:
    """A folder of runs on a machine that was measured: a step takes 10 ms."""
    speeds = {f"{model} {p}": 0.01 for model in LAPTOP for p in ("fp32", "bf16")}
    (folder / "machine.json").write_text(json.dumps({f"cpu batch {batch} size {side}": speeds}))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep over a field of Run that nothing disturbed; others below must give the same numbers."""
    folder = measured(tmp_path_factory.mktemp("finished"))
    return folder, study("all", SWEEP, tier="smoke", workers=1, runs_dir=folder, precision="fp32")


def test_grids_hold_what_the_studies_need() -> None:
    everything = grid("all", "quick")
    assert len(everything) == len(set(everything)) == 5 * (2 * (1 + 2 * 2) + 1)
    assert all(set(grid(name, "quick")) <= set(everything) for name in STUDIES)
    cells = {(r.model, r.images) for r in grid("data-scale", "quick", seeds=1) if r.steps}
    assert cells == {(m, n) for m in TIERS["quick"].models for n in (16, 16384)} | {("swinv2_atto", 1024)}
    assert {r.seed for r in grid("all", "quick", seeds=[7, 9])} == {7, 9}
    assert {r.seed for r in everything} == set(range(200, 205))
    assert {(r.lr, r.eval_every, r.probe_labels, r.probe_test) for r in everything} == {(6e-3, 125, 3000, 4096)}
    for available, images in ((700, {16, 700}), (20_000, {16, 1024, 16384}), (30, {30})):
        assert {r.images for r in grid("all", "quick", available=available)} == images


@pytest.mark.parametrize(
    ("data", "lengths", "probes"),
    [("scenes", (250, 500, 1000, 2000), (4096, 4096)), ("imagefolder:x", (500, 1000, 2000, 4000), (10_000, 5000))],
)
def test_the_laptop_grid_is_one_factorial(data, lengths, probes) -> None:
    """What is frozen (docs/settings.md): sizes, levels, lengths and recipe, and the four trainings of C8 a seed."""
    runs = grid("all", "laptop", data=data, seeds=range(101, 107), precision="bf16")
    sizes, levels = ("swinv2_atto", "swinv2_femto"), (16, 64, 256, 1024, 16384)
    cells = {(m, n, t, s) for m in sizes for n in levels for t in lengths for s in range(101, 107)}
    assert len(cells) == 240 and {(r.model, r.images, r.steps, r.seed) for r in runs if r.steps} == cells
    assert {(r.model, r.seed) for r in runs if not r.steps} == {(m, s) for m in sizes for s in range(101, 107)}
    recipe = {(r.lr, r.precision, r.eval_every, r.probe_labels, r.probe_test) for r in runs}
    assert recipe == {(6e-3, "bf16", 125, *probes)}
    tuned = tunings("all", "laptop", data=data, seeds=[101])
    assert [(t.run and (t.run.images, t.run.steps), t.labels, t.steps) for t in tuned] == [
        ((1024, 1000), 4000, 600), (None, 16384, 1600), (None, 4000, 1600), (None, 16384, 600)
    ]  # fmt: skip
    assert tunings("all", "laptop", labelled=0) == [] == tunings("schedule", "laptop") == tunings("all", "quick")
    assert [t.labels for t in tunings("all", "laptop", labelled=900, seeds=1)] == [225, 900, 225, 900]
    pico = grid("model-size", "laptop-pico", data=data, seeds=[101])
    assert [(r.images, r.steps) for r in pico] == [(16384, 0), *((n, lengths[-1]) for n in (16, 1024, 16384))]


def chosen(tmp_path, *, tier="quick", first_seed=None, side=32, **options):
    same = {"tier": tier, "runs_dir": measured(tmp_path, 64, side), "workers": 1, "device": "cpu"}
    return engine.choose("all", StudyOptions(**same | options), first_seed=first_seed)


def test_minutes_choose_the_number_of_seeds_and_never_fewer_than_five(tmp_path, monkeypatch) -> None:
    assert chosen(tmp_path)[0].seeds == tuple(range(200, 206))
    one = cost_of(grid("all", "quick", seeds=1), tmp_path)["seconds"]
    for holds, count in ((4.5, 5), (6.5, 6), (50, 8)):
        how, said = chosen(tmp_path, minutes=(30 + holds * one) / 60)
        assert len(how.seeds) == count and ("decide too little" in said) == (holds < 5)
    how, said = chosen(tmp_path, seeds=2, first_seed=300)
    assert (how.seeds, said) == ((300, 301), "")
    on_gpu = (tmp_path / "machine.json").read_text().replace("cpu batch", "cuda batch")
    (tmp_path / "machine.json").write_text(on_gpu)  # one process there, also where all is known
    how = StudyOptions(runs_dir=tmp_path, minutes=(30 + 6.5 * one) / 60)
    monkeypatch.setattr(engine, "pick_device", lambda: "cuda")
    assert engine.choose("all", how)[1].count(" in 1 process") == 1
    slower = json.loads(on_gpu) | {"cpu batch 64 size 32": {f"{m} {p}": 0.1 for m in LAPTOP for p in PRECISIONS}}
    (tmp_path / "machine.json").write_text(json.dumps(slower))
    assert "decide too little" in engine.choose("all", replace(how, device="cpu", workers=1))[1]
    monkeypatch.setattr(engine, "pick_device", lambda: "cpu")  # the GPU that was measured is not here now
    assert "decide too little" in engine.choose("all", replace(how, workers=1))[1]
    places = [costs.table(grid("all", "quick"), "quick", tmp_path, device).columns[4] for device in ("auto", "cpu")]
    assert places == ["time on one GPU", "time on one core"]
    assert all(chosen(tmp_path, tier=tier)[0].seeds is None for tier in ("smoke", "shipped"))
    with pytest.raises(UserError, match="minutes is 5: the seeds of tier paper do not go by the time; give seeds"):
        chosen(tmp_path, tier="paper", minutes=5)
    assert chosen(tmp_path, tier="laptop")[0].seeds == (200, 201, 202)


def test_tier_gpu_takes_the_largest_grid_that_the_time_holds(tmp_path) -> None:
    found = {}
    for minutes in (400, 60, 3):
        how, said = chosen(tmp_path, tier="gpu", minutes=minutes, side=64)
        seconds = cost_of(grid("all", how.axes, data=how.data, seeds=how.seeds), tmp_path)["seconds"]
        assert seconds + 30 < 60 * minutes and f"up to {how.axes.lengths[-1]:,} steps" in said
        found[minutes] = len(how.seeds), how.axes.models, how.axes.images, how.axes.lengths[-1]
    assert found[400] == (8, ("swinv2_femto", "swinv2_pico", "swinv2_nano"), (64, 1024, 16384), 20_000)
    assert found[3] == (1, ("swinv2_atto", "swinv2_femto"), (64, 16384), 2000) and len({*found.values()}) == 3
    few = image_tree(tmp_path / "few", 2, 70, 4, (64, 70))
    line = chosen(tmp_path, tier="gpu", minutes=400, side=64, data=f"imagefolder:{few}")[1]
    assert "on 2 levels of images" in line, "of 64 and all 140, not the tier's four"
    how, said = chosen(tmp_path, tier="gpu", minutes=0.6, side=64, models=("swinv2_nano",), lengths=(6, 3))
    assert (how.axes.models, how.axes.lengths) == (("swinv2_nano",), (3, 6)) and "holds 0" in said


def test_levels_are_those_of_the_pictures_that_can_be_read(tmp_path, monkeypatch) -> None:
    """Notebooks, `watch` and a study ask for the same runs, whoever opens the source first."""
    monkeypatch.setenv("SIMMIM_DATA", str(tmp_path / "store"))
    folder = image_tree(tmp_path / "own", 2, 20, 4)
    next((folder / "train").rglob("*.JPEG")).write_bytes(b"")
    same = {"tier": "smoke", "data": f"imagefolder:{folder}", "runs_dir": tmp_path / "runs"}
    assert {run.images for run in planned("all", "smoke", data=same["data"])[0]} == {16, 40}
    found = studies.axes(**same)
    how = StudyOptions(**same)
    opened = plan_of("all", how.axes, data=how.data, **engine._opened(how, 64)[1], precision="bf16")[0]
    assert found.images == (16, 39) and set(found.runs) == {run for run in opened if run.steps}
    assert planned("all", "smoke", data=same["data"])[0] == opened
    assert [engine.filled(Run(images=n), 179).images for n in (100, 180, 300)] == [100, 179, 300]
    before, own = beginnings("smoke", data="scenes", foreign=same["data"])
    assert {run.images for run in before} == {39} and {run.data for run in own} == {"scenes"}


@pytest.mark.slow
def test_tier_gpu_runs_on_a_processor_in_minutes(tmp_path, capsys) -> None:
    """From the measured step to the verdicts and the report's claims, in the smallest of its grids."""
    words = ["--tier", "gpu", "--hours", "0.05", "--device", "cpu", "--no-notebooks", "--runs-dir", str(tmp_path)]
    assert main(["study", "all", *words]) == 0
    out = capsys.readouterr().out
    runs = [record["run"] for record in load(tmp_path)]
    assert "of atto, femto up to" in out and " 0 failed" in out
    assert {(run["image_size"], run["mask_patch"], run["window_size"]) for run in runs} == {(64, 8, 8)}


def test_precision_is_that_of_the_largest_size_that_is_trained(tmp_path) -> None:
    """Of the runs that are given: what a study has made at it is not made again from a notebook."""
    speeds = {f"{model} {p}": 0.01 for model in LAPTOP for p in ("fp32", "bf16")} | {"swinv2_nano bf16": 0.001}
    how = StudyOptions(tier="gpu", runs_dir=tmp_path)
    assert [engine._precision(how, speeds, models) for models in ((), ("swinv2_femto",))] == ["bf16", "fp32"]


def test_axes_take_the_place_of_a_tiers_own() -> None:
    given = {"models": ("swinv2_pico", "swinv2_atto"), "images": (64, 32), "lengths": (40, 20)}
    cells = {(m, n) for m in ("swinv2_atto", "swinv2_pico") for n in (32, 64)}
    axes = StudyOptions(tier="quick", image_size=64, batch_size=128, **given).axes
    runs = grid("all", axes, seeds=1)
    assert {(r.model, r.images, r.steps) for r in runs if r.steps} == {(*cell, t) for cell in cells for t in (20, 40)}
    assert {(r.image_size, r.batch_size, r.lr, r.eval_every) for r in runs} == {(64, 128, 1.2e-2, 10)}
    runs = plan_of("transfer", axes, precision="fp32")[0]
    assert {(r.model, r.images, r.steps) for r in runs if r.steps} == {(*cell, 40) for cell in cells}
    paper = StudyOptions(tier="paper", models=("swinv2_base",), batch_size=1024).axes
    assert {(r.model, r.lr, r.steps) for r in grid("data-scale", paper)} == {("swinv2_base", 2e-4, 500_000)}
    assert grid("all", StudyOptions(tier="quick").axes) == grid("all", "quick")


def test_a_finished_study_trains_nothing_and_needs_no_torch(finished) -> None:
    folder, result = finished
    assert result.trained == len(result.records) == len(SWEEP) and result.core_seconds > 0
    assert [r["key"] for r in result.records] == [run.key for run in SWEEP]
    assert {claim.id for claim in result.claims} == claim_ids("all")
    code = SCRIPT + (
        "\nfrom simmim_lite import studies; studies.preview('schedule', tier='smoke')\n"
        "print(len(studies.train(runs, runs_dir=sys.argv[2])), 'torch' in sys.modules)"
    )
    words = [json.dumps([run.to_dict() for run in SWEEP]), str(folder), "1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.split() == ["0", str(len(SWEEP)), "False"], done.stderr
    assert len(studies.collect("schedule", runs_dir=folder)) == len(SWEEP)


def test_killed_and_started_again_gives_the_same_numbers(finished, tmp_path) -> None:
    """kill -9 in the middle: no worker lives on; two that go on together train each missing run once."""
    words = [json.dumps([run.to_dict() for run in SWEEP]), str(measured(tmp_path))]
    command = [sys.executable, "-c", SCRIPT, *words]
    process = subprocess.Popen([*command, "1"], stderr=subprocess.DEVNULL, start_new_session=True)
    records = tmp_path / "records"
    until(lambda: list(records.glob("*.json")), process)
    process.kill()
    process.wait()
    until(lambda: not session(process.pid))  # no worker outlives the study
    before = len(list(records.glob("*.json")))
    assert 0 < before < len(SWEEP)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    other = subprocess.Popen([*command, "1"], **pipes)
    until(lambda: list((tmp_path / "running").glob("*")), other)
    own = study("all", SWEEP, tier="smoke", workers=1, runs_dir=tmp_path, precision="fp32").trained
    out, errors = other.communicate()
    assert other.returncode == 0, errors
    assert own + int(out) == len(SWEEP) - before
    assert errors.count("data: ") == 1, "the data is said once, and not by each worker"
    assert numbers(tmp_path) == numbers(finished[0])
    assert not list(tmp_path.rglob(".*.json.*"))


@pytest.mark.parametrize(
    ("number", "to", "statuses"),
    [
        (signal.SIGINT, os.killpg, INTERRUPTED),
        (signal.SIGTERM, os.kill, (75,)),
        pytest.param(signal.SIGHUP, os.killpg, (75,), marks=pytest.mark.slow),
    ],
)
def test_a_stopped_study_says_one_line_saves_and_leaves_no_process(number, to, statuses, tmp_path) -> None:
    """Told to all of its processes, or to the first alone; told again, it is the same."""
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": interruptible}
    process = subprocess.Popen([*COMMAND, "--runs-dir", str(measured(tmp_path))], **options)
    until(lambda: list((tmp_path / "records").glob("*.json")) and list((tmp_path / "running").glob("*")), process)
    for _ in range(1 if number == signal.SIGINT else 2):
        to(process.pid, number)
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode in statuses, errors
    said = "stopped" if number == signal.SIGINT else signal.Signals(number).name
    assert len(re.findall(rf"{said}: \d+ of \d+ runs are finished and kept", errors)) == 1, errors
    assert "Traceback" not in errors and load(tmp_path)
    until(lambda: not session(process.pid))


def _heard(_: int) -> tuple[bool, int]:
    """In a worker: whether Ctrl-C is kept from it, and its number."""
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.getpid()


def test_workers_do_not_hear_ctrl_c() -> None:
    """A terminal sends it to them too, and one that still imports would add its traceback to the one line."""
    found = list(each(_heard, range(2), 2))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "we do"
    assert all(deaf and pid != os.getpid() for deaf, pid in found)
    with pytest.raises(UserError, match="a worker process died"):
        list(each(os._exit, [1], 1))
