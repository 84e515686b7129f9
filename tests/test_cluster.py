"""A study on a Ray cluster: the numbers of the local engine, one line for what is wrong, nodes that are lost."""

import contextlib
import importlib.util
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from child_processes import until
from picture_folders import one_line
from test_engine import numbers
from test_slurm import TINY
from tiny_notebooks import write_notebook

from simmim_lite.evidence.records import load
from simmim_lite.studies import cluster, notebooks, workers
from simmim_lite.studies.engine import study
from simmim_lite.studies.grids import grid
from simmim_lite.studies.tiers import TIERS, StudyOptions
from simmim_lite.training.record import read_record
from simmim_lite.training.run import Run, record_path, weights_path


def weights(folder: Path, runs: list[Run]) -> dict[str, bytes]:
    return {run.key: weights_path(folder, run).read_bytes() for run in runs}


@pytest.fixture
def short_folder(monkeypatch):
    """Ray's own files, in a short path: its sockets have at most 107 characters."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_wrong_options_are_one_line(tmp_path, monkeypatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0}]
    assert cluster._room(nodes, "auto", None) == ("cuda", 1, 4) and cluster._room(nodes, "cuda", 2) == ("cuda", 2, 2)
    assert cluster._room(nodes, "cpu", None) == ("cpu", 0, 10) == cluster._room([{"CPU": 10}], "auto", None)
    one_line("a job needs a CPU and . GPUs on one node", cluster._room, nodes, "auto", 8)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more))
    line = r'engine ray needs ray: pip install "simmim-lite\[ray\]"'
    one_line(line, study, "all", tier="smoke", engine="ray", runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_local_cluster_gives_the_numbers_of_the_local_engine(tmp_path, short_folder) -> None:
    """A trunk and a job that fails: its line comes at the end, the others are finished; notebooks are tasks too."""
    runs, bad = [replace(TINY, steps=steps) for steps in (4, 8)], replace(TINY, steps=4, seed=2)
    for folder in ("local", "ray"):
        blocked = tmp_path / folder / "checkpoints" / bad.trunk_key
        blocked.parent.mkdir(parents=True)
        blocked.write_text("a file where a folder should be")
    jobs, line = workers.make_jobs([*runs, bad], {}), f"cannot write .*{bad.trunk_key}"
    one_line(line, workers.execute, workers.Local("cpu", 1), jobs, tmp_path / "local")
    good = write_notebook(tmp_path / "good.ipynb", ["print(x + 1)"], parameters="x = 1")
    hears = signal.getsignal(signal.SIGTERM)
    with cluster.joined(tmp_path / "ray", StudyOptions(engine="ray", workers=1)) as found:
        assert signal.getsignal(signal.SIGTERM) == hears  # a study stops by it
        one_line(line, workers.execute, found, jobs, tmp_path / "ray")
        # the cluster that is joined already is used
        executed, _ = notebooks.execute([notebooks.Copy(good, {"x": 4}, "four")], tmp_path / "out", engine="ray")
    assert list(executed) == ["four"] and '"5\\n"' in executed["four"].read_text()
    assert len(numbers(tmp_path / "ray")) == 2
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "local")
    assert weights(tmp_path / "ray", runs) == weights(tmp_path / "local", runs)


@pytest.mark.slow
def test_a_job_on_several_devices_is_its_runs_under_torchrun(tmp_path) -> None:
    run = replace(TINY, steps=4)
    done = cluster.do_on_gpus(*workers.make_jobs([run], {}), str(tmp_path), "cpu", 2)
    assert (done.trained, done.error) == (1, "")
    (record,) = load(tmp_path)
    assert record["key"] == run.key and record["where"]["processes"] == 2
    assert cluster.do_on_gpus(*workers.make_jobs([run], {}), str(tmp_path), "cpu", 2).trained == 0


def holders(lock: Path) -> set[int]:
    """The processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.resolve() == lock.resolve():
                found.add(int(link.parts[2]))
    return found


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
    runs, options = grid("schedule", "smoke"), {"tier": "smoke", "precision": "fp32"}
    study("schedule", runs_dir=tmp_path / "local", workers=1, **options)

    killed, found = {}, {}
    node = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    with contextlib.ExitStack() as stack:
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
        stack.callback(nodes.shutdown)
        for _ in range(2):
            added = nodes.add_node(num_cpus=1, **node)
            found[added.all_processes["raylet"][0].process.pid] = added

        def at_work() -> tuple[Run, int] | None:
            """A run that is finished, and the process that is at the longer one of its trunk."""
            short = [run for run in runs if run.steps == 60 and record_path("ray", run).exists()]
            held = ((run, holders(Path("ray/locks") / f"{run.trunk_key}.lock")) for run in short)
            return next(((run, pid) for run, pids in held for pid in pids), None)

        def kill() -> None:
            run, pid = until(at_work)
            killed.update(run=run, at=time.time(), done={record["key"] for record in load("ray")})
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            nodes.remove_node(found[parent], allow_graceful=False)

        killer = threading.Thread(target=kill)
        killer.start()
        study("schedule", runs_dir="ray", engine="ray", address=nodes.address, device="cpu", **options)
        killer.join()
    short = killed["run"]
    (long,) = (run for run in runs if run.trunk_key == short.trunk_key and run.steps == 600)
    assert short.key in killed["done"] and long.key not in killed["done"], "killed in the middle"
    assert len(numbers(Path("ray"))) == len(runs) and numbers(Path("ray")) == numbers(tmp_path / "local")
    assert weights(Path("ray"), runs) == weights(tmp_path / "local", runs)
    assert all(record_path("ray", r).stat().st_mtime < killed["at"] for r in runs if r.key in killed["done"]), "twice"
    begun = datetime.fromisoformat(read_record(record_path("ray", long))["where"]["started"]).timestamp()
    assert begun < killed["at"] < record_path("ray", long).stat().st_mtime, "it did not go on from its checkpoint"
