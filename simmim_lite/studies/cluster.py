"""The jobs of a study on a Ray cluster: one job a task, started again elsewhere when its node is lost; a job on several
GPUs of a node is its runs under torchrun. A task goes on from the checkpoint that it finds in RUNS_DIR, which all nodes
see. Ray is imported when a cluster is joined.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import UserError, first_line
from ..training.run import Run, write_atomic
from .speed import step_speeds
from .workers import ONE_THREAD, Job, Outcome, do, path_of, pretrain_words, runtime_of, torchrun_words

#: How often a job starts again when its node or its process is lost.
RETRIES = 20
_PATIENCE = 60.0  # seconds that torchrun has to save and end
_STORE_BYTES = 100 * 2**20  # of a cluster that we start: tasks give back a few numbers
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}


class Cluster:
    """A cluster that was joined; see `joined`."""

    def __init__(self, ray, device: str, workers: int, gpus: int, gpus_per_run: int) -> None:
        self._ray = ray
        self.device = device  # cpu or cuda, in each task
        self.workers = workers  # jobs at a time, at most
        self.gpus = gpus  # of the whole cluster
        self.gpus_per_run = gpus_per_run  # 0 on CPUs

    def call(self, function: Callable, *arguments: object) -> object:
        """What a function gives on a node with what a job needs; its `UserError` is raised here."""
        ((_, found),) = self.each({function.__name__: (function, *arguments)})
        if isinstance(found, UserError):
            raise found
        return found

    def each(self, calls: Mapping[str, tuple]) -> Iterator[tuple[str, object]]:
        """(name, what its function gives) of calls by name, as they end, `workers` of them at a time.

        A call whose node or process is lost starts again elsewhere, `RETRIES` times; a `UserError` is given in place of
        a result where it raised or was lost for good.
        """
        ray = self._ray
        task = ray.remote(num_cpus=1, num_gpus=self.gpus_per_run, max_retries=RETRIES)(_here)
        queue, running = list(calls.items()), {}
        try:
            while queue or running:
                while queue and len(running) < self.workers:
                    name, call = queue.pop(0)
                    running[task.remote(os.getcwd(), *call)] = name
                for ended in ray.wait(list(running), timeout=1.0)[0]:  # the timeout lets Ctrl-C in
                    name = running.pop(ended)
                    try:
                        yield name, ray.get(ended)
                    except ray.exceptions.RayTaskError as error:
                        yield name, UserError(first_line(getattr(error, "cause", None) or error))
                    except ray.exceptions.RayError as error:
                        lost = f"its process died on each of {RETRIES + 1} tries ({type(error).__name__})"
                        yield name, UserError(f"{name}: {lost}; what it saved is kept")
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def speeds(self, runs_dir: Path, models: Sequence[str], recipe: Run) -> dict[str, float]:
        """`speed.step_speeds` on one of the nodes; a cluster's nodes are taken to be alike."""
        return self.call(_speeds, runs_dir.absolute(), tuple(models), recipe, self.device)

    def do(self, jobs: Sequence[Job], runs_dir: Path, wait: bool) -> Iterator[Outcome]:
        """The outcomes of jobs, as they end."""
        work, how = (do_on_gpus, self.gpus_per_run) if self.gpus_per_run > 1 else (do, wait)
        calls = {job.name: (work, job, str(runs_dir.absolute()), self.device, how) for job in jobs}
        for name, done in self.each(calls):
            yield Outcome(name, error=str(done)) if isinstance(done, UserError) else done


@contextlib.contextmanager
def joined(
    runs_dir: Path, *, address: str | None, device: str, workers: int | None, gpus_per_run: int | None
) -> Iterator[Cluster]:
    """The cluster at an address, else one that is started on this machine, with one CPU a worker; left at the end.

    device: `auto` takes GPUs where the cluster has any. `UserError`, one line, where there is no cluster at the
    address, where no node has the CPUs and GPUs of a job, and where a node does not see `runs_dir`.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    what = f"joining the Ray cluster at {address}" if address else "starting Ray on this machine"
    print(f"{what}: this takes up to a minute", file=sys.stderr, flush=True)
    import ray

    options = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": _environment()}}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        options["num_cpus"] = workers or os.cpu_count() or 1
    ours = not ray.is_initialized()  # a cluster that the caller has joined already is used
    try:
        if ours:
            ray.init(address=address or "local", **options)
    except Exception as error:  # of many kinds, among them a plain one where a node takes long to start
        raise UserError(f"{what} failed: {first_line(error)}") from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        kind, each, fit = _room([node["Resources"] for node in nodes], device, gpus_per_run)
        _check_folder(ray, nodes, runs_dir)
        gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
        yield Cluster(ray, kind, max(1, min(workers or fit, fit)), gpus, each)
    finally:
        if ours:
            ray.shutdown()


def _room(nodes: Sequence[Mapping[str, float]], device: str, gpus_per_run: int | None) -> tuple[str, int, int]:
    """cpu or cuda, the GPUs of a job, and how many jobs the nodes have room for at a time. nodes: their resources."""
    most = int(max((node.get("GPU", 0) for node in nodes), default=0))
    kind = device.split(":")[0]
    if kind == "auto":
        kind = "cuda" if most or gpus_per_run else "cpu"
    each = 0 if kind == "cpu" else gpus_per_run or 1
    rooms = [min(node.get("CPU", 0), node.get("GPU", 0) // each if each else node.get("CPU", 0)) for node in nodes]
    if not (fit := int(sum(rooms))):
        raise UserError(
            f"a job needs a CPU and {each} GPUs on one node of the Ray cluster, whose largest has {most} GPUs: use "
            "--device cpu, or another --gpus-per-run"
        )
    return kind, each, fit


def _check_folder(ray, nodes: Sequence[Mapping], runs_dir: Path) -> None:
    """`UserError` where a node that takes jobs does not see RUNS_DIR, or cannot run this package."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = runs_dir.absolute() / f".simmim-lite-token-{uuid.uuid4().hex}"
    write_atomic(token, "")
    try:
        for node in (node for node in nodes if node["Resources"].get("CPU", 0)):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(num_cpus=0, scheduling_strategy=there)(_sees)
            if not ray.get(look.remote(str(token))):
                name = node["NodeManagerHostname"]
                raise UserError(f"node {name} does not see {runs_dir}: give a --runs-dir that all nodes share")
    except ray.exceptions.RayTaskError as error:
        raise UserError(f"a node cannot run simmim-lite ({first_line(error)}): install it there as here") from error
    finally:
        token.unlink(missing_ok=True)


def _sees(path: str) -> bool:
    return os.path.exists(path)


def _environment() -> dict[str, str]:
    """Variables of each task: one thread, our own package where it runs from a checkout, the reader's data root."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root)] if (root / "pyproject.toml").exists() else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    kept = {name: os.environ[name] for name in ("SIMMIM_DATA",) if name in os.environ}
    return dict.fromkeys(ONE_THREAD, "1") | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}) | kept


def _here(folder: str, function: Callable, *arguments: object) -> object:
    """In a task: call a function in the folder where the study was started, from which relative paths count."""
    with contextlib.suppress(OSError):  # not there on this node: an absolute RUNS_DIR does not need it
        os.chdir(folder)
    return function(*arguments)


def _speeds(runs_dir: Path, models: Sequence[str], recipe: Run, device: str) -> dict[str, float]:
    """In a task: `step_speeds` in one thread on a CPU."""
    from ..training.machine import one_thread, pick_device

    with one_thread(pick_device(device)):
        return step_speeds(runs_dir, models, recipe, device)


def do_on_gpus(job: Job, runs_dir: str, device: str, processes: int) -> Outcome:
    """The work of one job, in order: runs by torchrun in so many processes, a transfer in this process alone."""
    if not isinstance(job.work[0], Run):
        return do(job, runs_dir, device, True)
    started, trained = time.monotonic(), 0
    for run in job.work:
        path = path_of(run, runs_dir)
        before = path.stat().st_mtime_ns if path.exists() else 0
        try:
            shared = {"runtime": runtime_of(run, processes), "log": job.log}
        except UserError as error:
            return Outcome(job.name, trained, error=f"{run.key}: {error}")
        words = pretrain_words(run, runs_dir=runs_dir, device=device, **shared)
        status, said = _run(torchrun_words(processes, words))
        if status:
            lines = re.findall(r"^(?:\[\w+\]:)?simmim-lite: (.+)$", said, re.M)
            saved = [line for line in lines if "is saved at step" in line]  # torchrun's own status says nothing of it
            last = (saved or lines or [f"{run.key}: torchrun ended with status {status}"])[-1]
            return Outcome(job.name, trained, time.monotonic() - started, error=last, preempted=bool(saved))
        trained += path.stat().st_mtime_ns != before
    return Outcome(job.name, trained, time.monotonic() - started)


def _run(words: list[str]) -> tuple[int, str]:
    """Status and errors of a command that is told to save and end when this process ends or is interrupted."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    before = _end_with_parent if sys.platform == "linux" else None
    with subprocess.Popen(words, preexec_fn=before, **options) as process:
        try:
            said = process.communicate()[1]
        except BaseException:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            process.kill()
            raise
    return process.returncode, said


def _end_with_parent() -> None:
    """SIGTERM when the parent ends, however it ends: a task that is killed leaves nothing on its GPUs."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
