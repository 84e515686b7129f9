"""A study by tasks of Ray: the records of the local engine, also when a node is killed in the middle."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_engine import numbers
from tiny_notebooks import write_notebook

from simmim_lite.cli import _parser, main
from simmim_lite.errors import UserError
from simmim_lite.studies import commands, notebooks
from simmim_lite.studies.cluster import Cluster
from simmim_lite.studies.commands import pretrain_words, runtime_of
from simmim_lite.studies.engine import study, train_missing
from simmim_lite.studies.full_size import RECIPE
from simmim_lite.studies.grids import grid
from simmim_lite.training.run import Run, read_record, record_path
from simmim_lite.training.runtime import Runtime
from simmim_lite.verbs import run_of
from simmim_lite.verbs import runtime_of as runtime_given

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster as LocalCluster  # noqa: E402

MEMORY, PLAIN = 80 << 20, {"include_dashboard": False}
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, **PLAIN})
    place = made.head_node.get_session_dir_path()
    made.second = made.add_node(num_cpus=1, object_store_memory=MEMORY)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def test_a_study_and_notebooks_on_two_nodes(cluster, tmp_path) -> None:
    """Records equal those of the local engine; then two notebooks, one of which fails, by the same cluster."""
    options = {"tier": "smoke", "precision": "fp32", "device": "cpu"}
    study("data-scale", runs_dir=tmp_path / "local", workers=2, **options)
    where = Cluster(cluster.address)
    done = study("data-scale", runs_dir=tmp_path / "ray", cluster=where, **options)
    assert done.trained == len(done.records) > 4
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "local")
    assert _weights(tmp_path / "ray") == _weights(tmp_path / "local")
    assert train_missing("data-scale", runs_dir=tmp_path / "ray", cluster=where, **options).trained == 0
    assert not list((tmp_path / "ray").glob(".cluster-*"))

    good = write_notebook(tmp_path / "good.ipynb", ["print(x + 1)"], parameters="x = 1")
    bad = write_notebook(tmp_path / "bad.ipynb", ["1 / 0"])
    executed, failures = notebooks.execute({good: {"x": 4}, bad: {}}, tmp_path / "out", cluster=where)
    assert list(executed) == ["good"] and '"5\\n"' in executed["good"].read_text()
    assert "ZeroDivisionError" in failures["bad"]


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("weights/*") if not path.name.startswith(".")}


@pytest.mark.slow
def test_a_node_is_killed_in_the_middle(cluster, tmp_path) -> None:
    """Its job is done again on the other node, from its checkpoint; nothing is done twice."""
    options = {"tier": "smoke", "precision": "fp32", "device": "cpu"}
    study("all", runs_dir=tmp_path / "local", workers=2, **options)
    folder, seen, lost = tmp_path / "ray", {}, []

    def kill() -> None:
        """As soon as a record is there: jobs of both nodes are at work."""
        while not list(folder.glob("records/*.json")):
            time.sleep(0.005)
        seen.update({path: path.stat().st_mtime_ns for path in folder.glob("records/*.json")})
        cluster.remove_node(cluster.second, allow_graceful=False)
        lost.append(time.monotonic())

    thread = threading.Thread(target=kill)
    thread.start()
    done = study("all", runs_dir=folder, cluster=Cluster(cluster.address), **options)
    ended = time.monotonic()
    thread.join()
    assert lost and lost[0] < ended
    assert {record["status"] for record in done.records} == {"done"}
    assert numbers(folder) == numbers(tmp_path / "local")
    assert _weights(folder) == _weights(tmp_path / "local")
    assert seen and all(path.stat().st_mtime_ns == when for path, when in seen.items())


def test_what_a_cluster_cannot_do_is_said(tmp_path, monkeypatch, capsys) -> None:
    command = ["study", "proxy", "--tier", "smoke", "--runs-dir", str(tmp_path), "--no-notebooks"]
    assert main([*command, "--engine", "slurm"]) == 2
    assert main([*command, "--address", "auto"]) == 2
    assert main([*command, "--engine", "ray", "--gpus-per-run", "0"]) == 2
    assert main([*command, "--engine", "ray", "--address", "127.0.0.1:1"]) == 2
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*command, "--engine", "ray", "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("simmim-lite: ")]
    parts = ["unknown engine 'slurm'", "add it, or leave", "gpus_per_run is 0", "no cluster at 127.0.0.1:1", "[ray]"]
    assert all(part in line for line, part in zip(said, parts, strict=True)), said


RUNS = [
    Run(),
    replace(RECIPE, data="packed:/data/1k + x", model="swinv2_giant", images=1_281_167, steps=125_000, lr=2.5e-4),
    Run(model="swinv2_femto", images=64, subset_seed=3, target="normalized", target_window=9, precision="bf16", seed=4),
]


@pytest.mark.parametrize("run", RUNS)
def test_a_command_is_the_run(run: Run) -> None:
    """Parsed back by the command line's own parser."""
    runtime = Runtime(parallel="fsdp", accumulate=4, checkpointing=True)
    words = shlex.split(shlex.join(pretrain_words(run, "a folder/runs", runtime, "cpu")))
    arguments = _parser().parse_args(words)
    assert run_of(arguments) == run and run_of(arguments).key == run.key
    assert runtime_given(arguments) == runtime
    assert (arguments.runs_dir, arguments.device) == ("a folder/runs", "cpu")


def test_defaults_of_execution_at_full_size() -> None:
    base, giant = (replace(RECIPE, model=f"swinv2_{name}") for name in ("base", "giant"))
    assert runtime_of(base) == Runtime(accumulate=16)
    assert runtime_of(base, 8) == Runtime(accumulate=2)
    assert runtime_of(giant, 8) == Runtime(parallel="fsdp", accumulate=8, checkpointing=True)
    assert runtime_of(Run()) == Runtime()
    with pytest.raises(UserError, match="gpus_per_run 3 does not divide the batch of 2048"):
        runtime_of(base, 3)
    assert all(2048 % (8 * runtime_of(r, 8).accumulate) == 0 for r in grid("all", "paper"))


def test_lines_share_trunks_and_leave_out_what_is_done(tmp_path) -> None:
    runs = grid("all", "paper", data="packed:A + packed:B")
    lines = commands.lines(runs, "runs", 8)
    assert len(lines) == 21 and sum(line.count(" pretrain ") for line in lines) == 63
    for line in lines:
        steps = [int(part.split("--steps ")[1].split()[0]) for part in line.split(" && ")]
        assert steps == sorted(steps) and part_of(line).startswith("torchrun --standalone --nproc-per-node=8 -m simmim")
    path = record_path(tmp_path, runs[0])
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    left = commands.lines(runs, tmp_path, 8)
    assert sum(line.count(" pretrain ") for line in left) == 62


def part_of(line: str) -> str:
    return line.split(" && ")[0]


@pytest.mark.slow
def test_the_slurm_script_saves_and_queues_itself_again(tmp_path) -> None:
    """Its own shell code, with stand-ins for Slurm: an element is preempted, queued again, and finishes its line."""
    root = Path(__file__).resolve().parents[1]
    script = root / "examples" / "slurm" / "array.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    run = Run(image_size=16, images=24, steps=4000, batch_size=8, val_images=8, val_masks=1, probe_labels=0)
    program = f"{sys.executable} -m simmim_lite"
    words = shlex.join(pretrain_words(run, tmp_path / "runs", None, "cpu"))
    (tmp_path / "commands.txt").write_text(f"false\n{program} {words}\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tools / "scontrol").chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "77",
        "COMMANDS": str(tmp_path / "commands.txt"), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    process = subprocess.Popen(["bash", str(script)], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(12)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert (tmp_path / "asked").read_text() == "requeue 77\n", errors
    assert "saved at step" in errors and read_record(record_path(tmp_path / "runs", run)) is None
    again = subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert read_record(record_path(tmp_path / "runs", run))["status"] == "done"
    last = subprocess.run(["bash", str(script)], env={**environment, "SLURM_ARRAY_TASK_ID": "9"}, cwd=tmp_path)
    assert last.returncode == 0  # no such line: nothing to do
