"""A study on a Ray cluster: the numbers of the local engine, one line for what is wrong, nodes that are lost."""

import contextlib
import importlib.util
import re
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from child_processes import until
from tiny_notebooks import write_notebook

from simmim_lite import cli
from simmim_lite.errors import UserError
from simmim_lite.evidence.records import load
from simmim_lite.studies import cluster, commands, notebooks, workers
from simmim_lite.studies.engine import train_missing
from simmim_lite.studies.grids import TIERS, grid
from simmim_lite.training.run import Run, Runtime, read_record, record_path, weights_path

NUMBERS = ("key", "status", "run", "curve", "final", "transfer")
TINY = replace(
    TIERS["smoke"].recipe, image_size=16, window_size=2, batch_size=8, val_images=8, val_masks=1, probe_labels=0,
    eval_every=50, images=16,
)  # fmt: skip


def numbers(folder: Path) -> dict:
    return {r["key"]: {k: r[k] for k in NUMBERS} for r in load(folder)}


def weights(folder: Path, runs: list[Run]) -> dict[str, bytes]:
    return {run.key: weights_path(folder, run).read_bytes() for run in runs}


@pytest.fixture
def short_folder(monkeypatch):
    """Ray's own files, in a short path: its sockets have at most 107 characters."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("runs", [grid("all", "smoke")[:3], grid("all", "paper")[:2], [Run(subset_seed=3, lr=1 / 3)]])
def test_a_command_line_is_read_back_as_the_very_run(runs) -> None:
    from simmim_lite.verbs import run_of, runtime_of

    for run in runs:
        for runtime in (Runtime(), Runtime(parallel="fsdp", accumulate=4, checkpointing=True, compile=True)):
            words = commands.pretrain_words(run, runs_dir="a b", device="cpu", runtime=runtime)
            read = cli._parser().parse_args(words)
            assert (run_of(read), runtime_of(read), read.runs_dir, read.device) == (run, runtime, "a b", "cpu")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"engine": "rey"}, "unknown engine 'rey': did you mean 'ray'"),
        ({"address": "host:6379"}, "address is about a Ray cluster: add --engine ray"),
        ({"gpus_per_run": 2}, "gpus_per_run is about a Ray cluster"),
        ({"engine": "ray", "gpus_per_run": 0}, "gpus_per_run is 0: give a whole number from 1"),
    ],
)
def test_wrong_options_are_one_line(options: dict, line: str, tmp_path) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        train_missing("all", tier="smoke", runs_dir=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_pip_command_is_given(tmp_path, monkeypatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more))
    with pytest.raises(UserError, match=re.escape('engine ray needs ray: pip install "simmim-lite[ray]"')):
        train_missing("all", tier="smoke", engine="ray", runs_dir=tmp_path)


def test_gpus_that_no_node_has_are_one_line() -> None:
    nodes = [{"Resources": {"CPU": 8.0, "GPU": 4.0}}, {"Resources": {"CPU": 2.0}}]
    assert cluster._device("auto", None, nodes) == ("cuda", 1)
    assert cluster._device("auto", None, nodes[1:]) == ("cpu", 0)
    assert (cluster._fit(nodes, 2), cluster._fit(nodes, 0)) == (2, 10)
    with pytest.raises(UserError, match="needs 8 GPUs on one node of the Ray cluster, and its largest node has 4"):
        cluster._device("auto", 8, nodes)
    with pytest.raises(UserError, match="needs 1 GPUs on one node of the Ray cluster, and it has none"):
        cluster._device("cuda", None, nodes[1:])


def test_a_local_cluster_gives_the_numbers_of_the_local_engine(tmp_path, short_folder, capsys) -> None:
    """Two trunks and a job that fails: its line comes at the end, the others are finished, the rest is quiet."""
    runs = [replace(TINY, steps=steps, seed=seed) for seed in (0, 1) for steps in (4, 8)]
    bad = replace(TINY, steps=4, seed=2)
    for folder in ("local", "ray"):
        blocked = tmp_path / folder / "checkpoints" / bad.trunk_key
        blocked.parent.mkdir(parents=True)
        blocked.write_text("a file where a folder should be")
    jobs = workers.make_jobs([*runs, bad], {})
    with pytest.raises(UserError, match=f"cannot write .*{bad.trunk_key}"):
        workers.Local("cpu", 1).execute(jobs, tmp_path / "local")
    capsys.readouterr()
    options = {"address": None, "device": "auto", "workers": 1, "gpus_per_run": None}
    good = write_notebook(tmp_path / "good.ipynb", ["print(x + 1)"], parameters="x = 1")
    wrong = write_notebook(tmp_path / "wrong.ipynb", ["1 / 0"])
    copies = [notebooks.Copy(good, {"x": 4}, "good-x=4"), notebooks.Copy.of(wrong, {})]
    with cluster.joined(tmp_path / "ray", **options) as found:
        with pytest.raises(UserError, match=f"cannot write .*{bad.trunk_key}"):
            found.execute(jobs, tmp_path / "ray")
        # notebooks are tasks too; the cluster that is joined already is used
        executed, failures = notebooks.execute(copies, tmp_path / "out", engine="ray")
    assert list(executed) == ["good-x=4"] and '"5\\n"' in executed["good-x=4"].read_text()
    assert failures["wrong"].startswith("wrong, cell [2]: ZeroDivisionError")
    assert len(numbers(tmp_path / "ray")) == 4
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "local")
    assert weights(tmp_path / "ray", runs) == weights(tmp_path / "local", runs)
    assert not list((tmp_path / "ray").glob(".simmim-lite-token*"))
    said = capsys.readouterr().err
    assert said.startswith("starting Ray on this machine: this takes up to a minute\n")
    assert "5 runs to train in 1 process" in said


@pytest.mark.slow
def test_a_job_on_several_devices_is_its_runs_under_torchrun(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = replace(TINY, steps=4)
    (job,) = workers.make_jobs([run], {})
    done = cluster.do_on_gpus(job, str(tmp_path), "cpu", 2)
    assert (done.trained, done.error) == (1, "")
    (record,) = load(tmp_path)
    assert record["key"] == run.key and record["where"]["processes"] == 2
    assert cluster.do_on_gpus(job, str(tmp_path), "cpu", 2).trained == 0
    (bad,) = workers.make_jobs([replace(run, batch_size=1)], {})
    assert "batch" in cluster.do_on_gpus(bad, str(tmp_path), "cpu", 2).error


def holders(lock: Path) -> set[int]:
    """The processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.resolve() == lock.resolve():
                found.add(int(link.parts[2]))
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the node of a run by the files it holds")
def test_a_node_is_killed_in_the_middle_and_the_study_ends_with_the_same_records(
    tmp_path, short_folder, monkeypatch
) -> None:
    """Two nodes; the one whose job has finished its first run, and is in its second, is lost with its workers."""
    from ray.cluster_utils import Cluster

    small = replace(TIERS["smoke"], models=("swinv2_atto",), images=(16,), lengths=(60, 600), seeds=2, recipe=TINY)
    monkeypatch.setitem(TIERS, "smoke", small)
    monkeypatch.chdir(tmp_path)
    runs = grid("schedule", "smoke")
    options = {"tier": "smoke", "precision": "fp32"}
    train_missing("schedule", runs_dir=tmp_path / "local", workers=1, **options)

    killed = {}
    node = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    with contextlib.ExitStack() as stack:
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
        stack.callback(nodes.shutdown)
        found = {}
        for _ in range(2):
            added = nodes.add_node(num_cpus=1, **node)
            found[added.all_processes["raylet"][0].process.pid] = added

        def kill() -> None:
            run, pid = until(at_work)
            killed.update(run=run, at=time.time(), done=set(load_keys()))
            nodes.remove_node(found[parent(pid)], allow_graceful=False)

        def at_work() -> tuple[Run, int] | None:
            """A run that is finished, and the process that is at the longer one of its trunk."""
            short = [run for run in runs if run.steps == 60 and record_path("ray", run).exists()]
            held = ((run, holders(Path("ray/locks") / f"{run.trunk_key}.lock")) for run in short)
            return next(((run, pid) for run, pids in held for pid in pids), None)

        def load_keys() -> list[str]:
            return [record["key"] for record in load("ray")]

        killer = threading.Thread(target=kill)
        killer.start()
        done = train_missing("schedule", runs_dir="ray", engine="ray", address=nodes.address, device="cpu", **options)
        killer.join()
    short = killed["run"]
    (long,) = (run for run in runs if run.trunk_key == short.trunk_key and run.steps == 600)
    assert short.key in killed["done"] and long.key not in killed["done"], "killed in the middle"
    assert done.trained == len(runs)
    assert numbers(Path("ray")) == numbers(tmp_path / "local")
    assert weights(Path("ray"), runs) == weights(tmp_path / "local", runs)
    written = {run.key: record_path("ray", run).stat().st_mtime for run in runs}
    assert all(written[key] < killed["at"] for key in killed["done"]), "a run was done twice"
    assert written[long.key] > killed["at"]
    assert long_started(long) < killed["at"], "it did not go on from its checkpoint"


def long_started(run: Run) -> float:
    """When the work on a run's trunk began, in all its tries."""
    return datetime.fromisoformat(read_record(record_path("ray", run))["where"]["started"]).timestamp()
