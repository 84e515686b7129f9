"""The grids, and the engine that runs what is missing: kills, two processes at once, errors, nothing done twice."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from child_processes import INTERRUPTED, PATIENCE, interrupt, interruptible, session, until

from simmim_lite import studies
from simmim_lite.errors import UserError, check_writable
from simmim_lite.evidence.records import load
from simmim_lite.studies import engine, workers
from simmim_lite.studies.costs import cost_of
from simmim_lite.studies.engine import study
from simmim_lite.studies.grids import grid, tunings
from simmim_lite.studies.tiers import STUDIES, TIERS, StudyOptions, claims_of
from simmim_lite.training.run import Run

NUMBERS = ("key", "status", "run", "curve", "final", "transfer")
WORDS = "study all --tier smoke --workers 2 --precision fp32 --no-notebooks"
COMMAND = [sys.executable, "-m", "simmim_lite", *WORDS.split()]


def numbers(folder: Path) -> dict:
    return {r["key"]: {k: r[k] for k in NUMBERS} for r in load(folder)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A smoke study that nothing disturbed; others below must give the same numbers."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, study("all", tier="smoke", workers=1, runs_dir=folder, precision="fp32")


def test_grids_hold_what_the_studies_need() -> None:
    everything = grid("all", "quick")
    assert len(everything) == len(set(everything)) == 5 * (2 * (1 + 2 * 2) + 1)
    assert all(set(grid(name, "quick")) <= set(everything) for name in STUDIES)
    cells = {(r.model, r.images) for r in grid("data-scale", "quick", seeds=1) if r.steps}
    assert cells == {(m, n) for m in TIERS["quick"].models for n in (16, 16384)} | {("swinv2_atto", 1024)}
    assert {r.steps for r in grid("schedule", "quick")} == {0, 250, 500}
    assert {r.seed for r in grid("all", "quick", seeds=[7, 9])} == {7, 9}
    assert {r.seed for r in everything} == set(range(200, 205))
    assert {(r.lr, r.eval_every, r.probe_labels, r.probe_test) for r in everything} == {(6e-3, 125, 3000, 4096)}
    for available, images in ((700, {16, 700}), (20_000, {16, 1024, 16384}), (30, {30}), (1025, {16, 1025})):
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


def chosen(tmp_path, *, tier="quick", **options):
    """`engine.choose` on a machine that was measured: a step takes 10 ms."""
    speeds = {f"{model} {p}": 0.01 for model in TIERS["quick"].models for p in ("fp32", "bf16")}
    (tmp_path / "machine.json").write_text(json.dumps({"cpu batch 64 size 32": speeds}))
    counts = {name: options.pop(name, None) for name in ("first_seed", "minutes")}
    same = {"tier": tier, "runs_dir": tmp_path, "workers": 1, "device": "cpu"}
    return engine.choose("all", StudyOptions(**same | options), **counts)


def test_minutes_choose_the_number_of_seeds_and_never_fewer_than_five(tmp_path) -> None:
    assert chosen(tmp_path)[0] == list(range(200, 206))
    each = cost_of(grid("all", "quick", seeds=1), tmp_path)["seconds"]
    for holds, count in ((0.5, 5), (4.5, 5), (6.5, 6), (50, 8)):
        seeds, said = chosen(tmp_path, minutes=(30 + holds * each) / 60)
        assert len(seeds) == count and ("decide too little" in said) == (holds < 5)
    assert len(chosen(tmp_path, workers=2)[0]) == 8
    assert chosen(tmp_path, seeds=2, first_seed=300) == ([300, 301], "")
    assert chosen(tmp_path, tier="smoke") == (None, "") == chosen(tmp_path, tier="shipped")
    assert chosen(tmp_path, tier="laptop")[0] == [200, 201, 202]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda _: grid("datascale", "quick"), "unknown study 'datascale': did you mean 'data-scale'"),
        (lambda _: grid("all", "quik"), "unknown tier 'quik': did you mean 'quick'"),
        (lambda _: grid("all", "quick", seeds=0), "seeds is 0"),
        (lambda _: study(data="scene"), "unknown data 'scene': did you mean 'scenes'"),
        (lambda _: study(precision="bf61"), "unknown precision 'bf61'"),
        (lambda _: study(seed=1), "unknown field of StudyOptions 'seed': did you mean 'seeds'"),
        (lambda _: study(tier="shipped"), "tier shipped trains nothing"),
        (lambda _: study(device="tpu"), "device is 'tpu'"),
        (lambda _: studies.collect("data-scales", tier="quick"), "unknown study 'data-scales'"),
        (lambda _: studies.preview("proxy", tier="huge"), "unknown tier 'huge'"),
        (lambda at: chosen(at, minutes=0.0), "minutes is 0.0: give a number above 0"),
        (lambda at: chosen(at, first_seed=-1), "first_seed is -1"),
        (lambda at: chosen(at, minutes=5.0, seeds=6), "seeds fixes the number"),
        (lambda at: check_writable(at / "file" / "runs"), "file is no folder"),
    ],
)
def test_bad_arguments_get_one_line(call, words: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"(?s)^[^\n]*{re.escape(words)}[^\n]*$"):
        call(tmp_path)


def test_a_finished_study_trains_nothing_and_needs_no_torch(finished) -> None:
    folder, result = finished
    assert result.trained == len(result.records) == len(grid("all", "smoke"))
    assert {r["status"] for r in result.records} == {"done"} and result.core_seconds > 0
    assert {claim.verdict for claim in result.claims} == {"too small to say"}
    assert {claim.id for claim in result.claims} == claims_of("all")
    code = (
        "import sys; from simmim_lite import studies; at = {'runs_dir': sys.argv[1], 'precision': 'fp32'}\n"
        "again = studies.study('all', tier='smoke', **at); studies.preview('schedule', tier='smoke')\n"
        "print(again.trained, len(studies.collect('all', **at)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout.split() == ["0", str(len(result.records)), "False"], done.stderr
    same = {"runs_dir": folder, "precision": "fp32"}
    made = studies.collect("schedule", tier="smoke", workers=1, **same)
    assert [r["key"] for r in made] == [run.key for run in grid("schedule", "smoke")]
    assert studies.collect("schedule", data="imagefolder:elsewhere", runs_dir=folder) == []


def test_killed_and_started_again_gives_the_same_numbers(finished, tmp_path) -> None:
    """kill -9 in the middle: no worker lives on; two that go on together train each missing run once."""
    command = [*COMMAND, "--runs-dir", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    records = tmp_path / "records"
    until(lambda: list(records.glob("*.json")), process)
    process.kill()
    process.wait()
    until(lambda: not session(process.pid))  # no worker outlives the study
    before = len(list(records.glob("*.json")))
    assert 0 < before < len(grid("all", "smoke"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    calls = [subprocess.Popen([*command, "--workers", "1"], **pipes) for _ in range(2)]
    outputs = [call.communicate() for call in calls]
    assert [call.returncode for call in calls] == [0, 0], outputs
    trained = [int(re.search(r"(\d+) trained now, 0 failed", out).group(1)) for out, _ in outputs]
    assert sum(trained) == len(grid("all", "smoke")) - before
    assert [err.count("data: ") for _, err in outputs] == [1, 1], "the data is said once, and not by each worker"
    assert numbers(tmp_path) == numbers(finished[0])
    assert not list(tmp_path.rglob(".*.json.*"))


def test_ctrl_c_is_one_line_and_keeps_what_is_finished(tmp_path) -> None:
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": interruptible}
    process = subprocess.Popen([*COMMAND, "--runs-dir", str(tmp_path)], **options)
    until(lambda: list((tmp_path / "records").glob("*.json")), process)
    interrupt(process)
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode in INTERRUPTED, errors
    assert re.search(r"interrupted: \d+ of \d+ runs are finished and kept", errors)
    assert "Traceback" not in errors
    assert load(tmp_path)


def _heard(_: int) -> tuple[bool, int]:
    """In a worker: whether Ctrl-C is kept from it, and its number."""
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.getpid()


def test_workers_do_not_hear_ctrl_c() -> None:
    """A terminal sends it to them too, and one that still imports would add its traceback to the one line."""
    found = list(workers.in_processes(_heard, range(4), 2))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "we do"
    assert all(deaf and pid != os.getpid() for deaf, pid in found)
    with pytest.raises(UserError, match="a worker process died"):
        list(workers.in_processes(os._exit, [1], 1))


def test_one_bad_job_does_not_stop_the_others(tmp_path) -> None:
    """Every other job is finished first, and the error comes as one line at the end."""
    runs = [Run(images=16, steps=2, batch_size=8, val_images=8, val_masks=1, probe_labels=0, seed=s) for s in (0, 1)]
    blocked = tmp_path / "checkpoints" / runs[0].trunk_key
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(UserError, match=f"cannot write .*{runs[0].trunk_key}"):
        workers.execute(workers.Local("cpu", 1), workers.make_jobs(runs, {}), tmp_path)
    assert [r["run"]["seed"] for r in load(tmp_path)] == [1]
