"""The grids, and the engine that runs what is missing: kills, two processes at once, errors, nothing done twice."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from child_processes import INTERRUPTED, PATIENCE, interrupt, interruptible, session, until

from simmim_lite.errors import UserError, check_writable
from simmim_lite.evidence.records import load
from simmim_lite.processes import deaf_to_interrupts
from simmim_lite.studies import workers
from simmim_lite.studies.engine import study
from simmim_lite.studies.grids import STUDIES, TIERS, claims_of, grid
from simmim_lite.training.run import Run

NUMBERS = ("key", "status", "run", "curve", "final", "transfer")
COMMAND = [
    sys.executable,
    "-m",
    "simmim_lite",
    "study",
    "all",
    "--tier",
    "smoke",
    "--workers",
    "2",
    "--precision",
    "fp32",
    "--no-notebooks",
]


def numbers(folder: Path) -> dict:
    return {r["key"]: {k: r[k] for k in NUMBERS} for r in load(folder)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A smoke study that nothing disturbed, in this process; others below use a pool, and give the same numbers."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, study("all", tier="smoke", workers=1, runs_dir=folder, precision="fp32")


def test_grids_hold_what_the_studies_need() -> None:
    everything = grid("all", "quick")
    assert len(everything) == len(set(everything)) == 5 * (2 * (1 + 2 * 2) + 1)
    for name in STUDIES:
        assert set(grid(name, "quick")) <= set(everything)
    assert set(grid("proxy", "quick")) == set(everything)
    cells = {(r.model, r.images) for r in grid("data-scale", "quick", seeds=1) if r.steps}
    assert cells == {(m, n) for m in TIERS["quick"].models for n in (16, 16384)} | {("swinv2_atto", 1024)}
    assert {r.steps for r in grid("schedule", "quick")} == {0, 250, 500}
    assert {r.images for r in grid("schedule", "quick")} == {16, 1024, 16384}
    assert {r.seed for r in grid("all", "quick", seeds=[7, 9])} == {7, 9}
    assert {r.seed for r in everything} == set(range(200, 205))
    assert {(r.lr, r.eval_every, r.probe_labels, r.probe_test) for r in everything} == {(6e-3, 125, 3000, 4096)}


def test_levels_shrink_to_the_source() -> None:
    assert {r.images for r in grid("data-scale", "quick", available=700)} == {16, 700}
    assert {r.images for r in grid("data-scale", "quick", available=20000)} == {16, 1024, 16384}
    assert {r.images for r in grid("all", "quick", available=30)} == {30}
    assert {r.images for r in grid("all", "quick", available=1025)} == {16, 1025}, "1,024 of 1,025 is no other level"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: grid("datascale", "quick"), "unknown study 'datascale': did you mean 'data-scale'"),
        (lambda: grid("all", "quik"), "unknown tier 'quik': did you mean 'quick'"),
        (lambda: grid("all", "quick", seeds=0), "seeds is 0"),
        (lambda: study(data="scene", runs_dir="unused"), "unknown data 'scene': did you mean 'scenes'"),
        (lambda: study(precision="bf61", runs_dir="unused"), "unknown precision 'bf61'"),
        (lambda: study(workers=-1, runs_dir="unused"), "workers is -1"),
        (lambda: study(seed=1), "unknown field of StudyOptions 'seed': did you mean 'seeds'"),
        (lambda: study(tier="shipped"), "tier shipped trains nothing"),
        (lambda: study(device="tpu", runs_dir="unused"), "unknown device 'tpu'"),
    ],
)
def test_bad_arguments_get_one_line(call, words: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(words)):
        call()


def test_a_finished_study_trains_nothing(finished) -> None:
    folder, result = finished
    assert result.trained == len(result.records) == len(grid("all", "smoke"))
    assert {r["status"] for r in result.records} == {"done"}
    assert result.core_seconds > 0
    again = study("all", tier="smoke", workers=1, runs_dir=folder, precision="fp32")
    assert (again.trained, again.core_seconds) == (0, 0.0)
    assert again.records == result.records
    assert {claim.verdict for claim in again.claims} == {"too small to say"}
    assert {claim.id for claim in again.claims} == claims_of("all")


def test_killed_and_started_again_gives_the_same_numbers(finished, tmp_path) -> None:
    """kill -9 in the middle: no worker lives on, and the second call ends with the numbers of an undisturbed study."""
    process = subprocess.Popen(
        [*COMMAND, "--runs-dir", str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    records = tmp_path / "records"
    until(lambda: list(records.glob("*.json")), process)
    process.kill()
    process.wait()
    until(lambda: not session(process.pid))  # no worker outlives the study
    before = len(list(records.glob("*.json")))
    assert 0 < before < len(grid("all", "smoke"))
    done = subprocess.run([*COMMAND, "--workers", "1", "--runs-dir", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(grid('all', 'smoke')) - before} trained now, 0 failed" in done.stdout
    assert numbers(tmp_path) == numbers(finished[0])
    assert not list(tmp_path.rglob(".*.json.*"))


def test_two_processes_share_the_work(finished, tmp_path) -> None:
    """Started twice on one folder, the two together train every run once."""
    command = [*COMMAND, "--workers", "1", "--runs-dir", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    calls = [subprocess.Popen(command, **pipes) for _ in range(2)]
    outputs = [call.communicate() for call in calls]
    assert [call.returncode for call in calls] == [0, 0], outputs
    trained = [int(re.search(r"(\d+) trained now", out).group(1)) for out, _ in outputs]
    assert sum(trained) == len(grid("all", "smoke"))
    assert [err.count("data: ") for _, err in outputs] == [1, 1], "the data is said once, and not by each worker"
    assert numbers(tmp_path) == numbers(finished[0])


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
    with deaf_to_interrupts():
        found = joblib.Parallel(n_jobs=2, backend="loky", return_as="generator")(map(joblib.delayed(_heard), range(4)))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "we do"
    assert all(deaf and pid != os.getpid() for deaf, pid in found)


def test_one_bad_job_does_not_stop_the_others(tmp_path, monkeypatch) -> None:
    """Every other job is finished first, and the error comes as one line at the end."""
    runs = [Run(images=16, steps=2, batch_size=8, val_images=8, val_masks=1, probe_labels=0, seed=s) for s in (0, 1)]
    blocked = tmp_path / "checkpoints" / runs[0].trunk_key
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(UserError, match=f"cannot write .*{runs[0].trunk_key}"):
        workers.Local("cpu", 1).execute(workers.make_jobs(runs, {}), tmp_path)
    assert [r["run"]["seed"] for r in load(tmp_path)] == [1]


def test_the_writability_check_leaves_nothing_behind(tmp_path) -> None:
    """It is tried where a folder is: two studies that start together do not take the folder from each other."""
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/runs: .*file is no folder"):
        check_writable(tmp_path / "file" / "runs")
