"""The jobs of a study on a Ray cluster: one job a task, started again elsewhere when its node is lost; a job on several
GPUs of a node is its runs under torchrun.

A task goes on from the checkpoint that it finds in RUNS_DIR, a folder that all nodes see. Ray is imported when a
cluster is joined.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import UserError, first_line
from ..training.run import Run, write_atomic
from .commands import log_words, pretrain_words, runtime_of, torchrun_words
from .speed import step_speeds
from .workers import Job, Outcome, Progress, do, in_turns, settle

#: How often a job starts again when its node or its process is lost.
RETRIES = 20
_PATIENCE = 60.0  # seconds that torchrun has to save and end
_STORE_BYTES = 100 * 2**20  # of a cluster that we start: tasks give back a few numbers
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}


class Cluster:
    """A cluster that was joined; see `joined`."""

    def __init__(self, ray, device: str, workers: int, gpus: int, gpus_per_run: int) -> None:
        self._ray = ray
        self.device = device  # cpu or cuda, in each task
        self.workers = workers  # jobs at a time, at most
        self.gpus = gpus  # of the whole cluster
        self.gpus_per_run = gpus_per_run  # 0 on CPUs
        self._needs = {"num_cpus": 1, "num_gpus": gpus_per_run, "max_retries": RETRIES}

    def call(self, function: Callable, *arguments: object) -> object:
        """What a function gives on a node with what a job needs; its `UserError` is raised here."""
        ((_, found),) = self.each({"": (function, *arguments)})
        if isinstance(found, UserError):
            raise found
        return found

    def each(self, calls: dict[str, tuple]) -> Iterator[tuple[str, object]]:
        """(name, what its function gives) of calls by name, as they end, `workers` of them at a time.

        A call whose node or process is lost starts again elsewhere, `RETRIES` times; a `UserError` is given in place of
        a result where it raised or was lost for good.
        """
        ray, errors = self._ray, self._ray.exceptions
        task = ray.remote(**self._needs)(_here)
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
                    except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
                        why = f"died on each of {RETRIES + 1} tries ({type(error).__name__}; out of memory?)"
                        yield name, UserError(f"{name}: its process {why}; what it saved is kept")
                    except errors.RayError as error:
                        yield name, UserError(first_line(getattr(error, "cause", None) or error))
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def speeds(self, runs_dir: Path, models: Sequence[str], recipe: Run) -> dict[str, float]:
        """`speed.step_speeds` on one of the nodes; a cluster's nodes are taken to be alike."""
        return self.call(_speeds, runs_dir.absolute(), tuple(models), recipe, self.device)

    def execute(self, jobs: list[Job], runs_dir: Path, what: str = "runs to train") -> tuple[int, float]:
        """Do the jobs; as `workers.Local`, but runs are counted by their records: a lost node cannot count."""
        with Progress(jobs, runs_dir, self.workers, what) as progress:
            outcomes = in_turns(jobs, progress, lambda some, wait: self._do(some, str(runs_dir.absolute()), wait))
        return len(progress.finished()), settle(outcomes)[1]

    def _do(self, jobs: Sequence[Job], runs_dir: str, wait: bool) -> Iterator[Outcome]:
        how = (do_on_gpus, self.gpus_per_run) if self.gpus_per_run > 1 else (do, wait)
        calls = {job.name: (how[0], job, runs_dir, self.device, how[1]) for job in jobs}
        for name, done in self.each(calls):
            yield Outcome(name, error=str(done)) if isinstance(done, UserError) else done


@contextlib.contextmanager
def joined(
    runs_dir: Path, *, address: str | None, device: str, workers: int | None, gpus_per_run: int | None
) -> Iterator[Cluster]:
    """The cluster at an address, else one that is started on this machine, with one CPU a worker; left at the end.

    device: `auto` takes GPUs where the cluster has any. `UserError`, one line, where there is no cluster at the
    address, where it has not the GPUs that are asked for, and where a node does not see `runs_dir` or has another
    version of this package or of torch.
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
        where = f"no Ray cluster at {address}" if address else "Ray does not start"
        raise UserError(f"{where}: {first_line(error)}") from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        device, gpus_per_run = _device(device, gpus_per_run, nodes)
        fit = _fit(nodes, gpus_per_run)
        _check_nodes(ray, nodes, runs_dir)
        gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
        yield Cluster(ray, device, max(1, min(workers or fit, fit)), gpus, gpus_per_run)
    finally:
        if ours:
            ray.shutdown()


def _device(device: str, gpus_per_run: int | None, nodes: Sequence[dict]) -> tuple[str, int]:
    """cpu or cuda, and the GPUs of a job; `UserError` where no node has them."""
    most = int(max((node["Resources"].get("GPU", 0) for node in nodes), default=0))
    kind = device.split(":")[0]
    if kind == "auto":
        kind = "cuda" if most or gpus_per_run else "cpu"
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device '{device}' is not for a cluster: use auto, cpu or cuda")
    if kind == "cpu":
        if gpus_per_run is not None:
            raise UserError(f"--gpus-per-run {gpus_per_run} and --device cpu contradict each other: leave one out")
        return kind, 0
    wanted = gpus_per_run or 1
    if wanted > most:
        has = f"its largest node has {most}" if most else "it has none"
        raise UserError(f"a job needs {wanted} GPUs on one node of the Ray cluster, and {has}: use --device cpu")
    return kind, wanted


def _fit(nodes: Sequence[dict], gpus_per_run: int) -> int:
    """Jobs that the nodes have room for at a time."""
    fit = 0
    for resources in (node["Resources"] for node in nodes):
        room = int(resources.get("CPU", 0))
        fit += min(room, int(resources.get("GPU", 0)) // gpus_per_run) if gpus_per_run else room
    if not fit:
        raise UserError("the Ray cluster has no CPU to give to a job: start its nodes with --num-cpus")
    return fit


def _check_nodes(ray, nodes: Sequence[dict], runs_dir: Path) -> None:
    """Each node that takes jobs sees RUNS_DIR and has our version: asked by a small task on each."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = runs_dir.absolute() / f".simmim-lite-token-{uuid.uuid4().hex}"
    write_atomic(token, "")
    try:
        looks = {}
        for node in nodes:
            if node["Resources"].get("CPU", 0):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                look = ray.remote(num_cpus=0, scheduling_strategy=there)(_look)
                looks[look.remote(str(token))] = node["NodeManagerHostname"]
        for look, host in looks.items():
            try:
                name, seen, version = ray.get(look)
            except (ray.exceptions.NodeDiedError, ray.exceptions.ActorUnschedulableError):
                continue  # lost meanwhile
            except ray.exceptions.RayError as error:
                line = (str(error).strip().splitlines() or [""])[-1]
                raise UserError(f"node {host} cannot run simmim-lite ({line}): install it there as here") from error
            if not seen:
                raise UserError(f"node {name} does not see {runs_dir}: give a --runs-dir that all nodes share")
            if version != _version():
                raise UserError(f"node {name} has {version}, here it is {_version()}: install the same on all nodes")
    finally:
        token.unlink(missing_ok=True)


def _look(token: str) -> tuple[str, bool, str]:
    """On a node: its name, whether it sees a file, and what is installed."""
    return socket.gethostname(), os.path.exists(token), _version()


def _version() -> str:
    """This package by the digest of its files, and torch."""
    root, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"simmim-lite {found.hexdigest()[:8]} with torch {importlib.metadata.version('torch')}"


def _environment() -> dict[str, str]:
    """Variables of each task: one thread, our own package where it runs from a checkout, the reader's data root."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root)] if (root / "pyproject.toml").exists() else []
    paths += [path for path in (os.environ.get("PYTHONPATH"),) if path]
    found = dict.fromkeys(_ONE_THREAD, "1")
    if paths:
        found["PYTHONPATH"] = os.pathsep.join(paths)
    return found | {name: os.environ[name] for name in ("SIMMIM_DATA",) if name in os.environ}


def _here(folder: str, function: Callable, *arguments: object) -> object:
    """In a task: call a function in the folder where the study was started, from which relative paths count."""
    if os.path.isdir(folder):
        os.chdir(folder)
    else:
        print(f"simmim-lite: {folder} is not on this node; relative paths count from {os.getcwd()}", file=sys.stderr)
    return function(*arguments)


def _speeds(runs_dir: Path, models: Sequence[str], recipe: Run, device: str) -> dict[str, float]:
    """In a task: `step_speeds` in one thread on a CPU."""
    from ..processes import one_thread, pick_device

    with one_thread(pick_device(device)):
        return step_speeds(runs_dir, list(models), recipe, device)


def do_on_gpus(job: Job, runs_dir: str, device: str, processes: int) -> Outcome:
    """The work of one job, in order: runs by torchrun in so many processes, a transfer in this process alone."""
    if not isinstance(job.work[0], Run):
        return do(job, runs_dir, device, True)
    started, trained = time.monotonic(), 0
    for run in job.work:
        try:
            runtime = runtime_of(run, processes)
        except UserError as error:
            return Outcome(job.name, trained, time.monotonic() - started, error=f"{run.key}: {error}")
        before = _changed(job, run, runs_dir)
        words = pretrain_words(run, runs_dir=runs_dir, device=device, runtime=runtime)
        words += log_words(job.log)
        status, said = _run(torchrun_words(processes, words))
        if status:
            lines = re.findall(r"^(?:\[\w+\]:)?simmim-lite: (.+)$", said, re.M)
            saved = [line for line in lines if "is saved at step" in line]  # torchrun's own status says nothing of it
            last = (saved or lines or [f"{run.key}: torchrun ended with status {status}"])[-1]
            return Outcome(job.name, trained, time.monotonic() - started, error=last, preempted=bool(saved))
        trained += _changed(job, run, runs_dir) != before
    return Outcome(job.name, trained, time.monotonic() - started)


def _changed(job: Job, run: Run, runs_dir: str) -> int:
    """When the record of a run was written; 0 where there is none."""
    path = job.paths(Path(runs_dir))[job.work.index(run)]
    return path.stat().st_mtime_ns if path.exists() else 0


def _run(words: list[str]) -> tuple[int, str]:
    """Status and errors of a command that is told to save and end when this process ends or is interrupted."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        words, preexec_fn=_end_with_parent if sys.platform == "linux" else None, **options
    ) as process:
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
