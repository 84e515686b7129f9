"""The jobs of a study on many machines: each a task of Ray, with its GPUs, done again elsewhere when a node is lost.

What a task had done before its node was lost is in its checkpoint, in a runs folder that all nodes see.
"""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import Interrupted, UserError
from ..training.run import Run, read_record, write_atomic
from . import commands
from .estimate import Progress
from .workers import Job, Outcome, do, raise_errors

#: How often a task is done again when its process or its node is lost; a run that kills its machine ends with that.
RETRIES = 20
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_STORE = 100 << 20  # bytes of Ray's object store: tasks hand over a few numbers


@dataclass(frozen=True)
class Cluster:
    """Where tasks go. address: of a running cluster (`auto`, HOST:PORT, ray://…); None = this machine alone."""

    address: str | None = None
    gpus_per_run: int = 1

    def __post_init__(self) -> None:
        if self.gpus_per_run < 1:
            raise UserError(f"gpus_per_run is {self.gpus_per_run}: give at least 1")

    @contextlib.contextmanager
    def joined(self, workers: int | None = None) -> Iterator[object]:
        """Ray, joined to the cluster, or started on this machine and ended afterwards; inside another one, that one."""
        with _joined(self, workers or os.cpu_count() or 1) as ray:
            yield ray

    def device(self, asked: str) -> str:
        """The device of its runs: as asked for, else GPUs where it has any."""
        if asked != "auto":
            return asked
        with self.joined() as ray:
            return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def execute(
    jobs: list[Job],
    runs_dir: Path,
    device: str,
    workers: int,
    what: str = "runs to train",
    cluster: Cluster | None = None,
) -> tuple[int, float]:
    """As `workers.execute`. On CPUs a task takes one; on GPUs it takes `gpus_per_run`, under torchrun where several."""
    cluster, runs_dir = cluster or Cluster(), Path(runs_dir).absolute()
    on_gpus = not device.startswith("cpu")
    for job in jobs:
        for item in job.work:
            if isinstance(item, Run):
                commands.runtime_of(item, cluster.gpus_per_run)  # a batch that does not divide is said now
    with cluster.joined(workers) as ray:
        there = int(ray.cluster_resources().get("GPU", 0))
        if on_gpus and there < cluster.gpus_per_run:
            raise UserError(
                f"the cluster has {there} GPUs, a run on {device} takes {cluster.gpus_per_run}: give --device cpu, "
                "fewer --gpus-per-run, or the --address of another cluster"
            )
        at_once = there // cluster.gpus_per_run if on_gpus else workers
        with Progress({job.name: (job.paths(runs_dir), job.seconds) for job in jobs}, max(1, at_once), what) as shown:
            outcomes = _results(ray, jobs, runs_dir, device, cluster, shown, what)
    raise_errors(outcomes)
    return sum(o.trained for o in outcomes), sum(o.core_seconds for o in outcomes)


def call_all(functions: Sequence[tuple], cluster: Cluster, workers: int) -> Iterator[object]:
    """(function, arguments…) of each as a task of its own; the results as they come, or the error in place of one.

    The functions are named ones of this package.
    """
    with cluster.joined(workers) as ray:
        left = [_submit(ray, 0, _call, os.getcwd(), *words) for words in functions]
        while left:
            [ready], left = ray.wait(left)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                yield UserError(f"a task was lost {RETRIES} times: {_first(error)}")


def _call(cwd: str, function: Callable, *arguments: object) -> object:
    os.chdir(cwd)
    return function(*arguments)


def _submit(ray, gpus: int, *call: object) -> object:
    """A function of this package and its arguments as a task. Its process need not find the package by itself: what it
    is handed is unpacked after its path is set. (Ray's own way, a runtime environment, takes seconds a process.)"""

    def go(path: list[str], variables: dict[str, str], packed: bytes) -> object:
        import os
        import pickle
        import sys

        os.environ.update(variables)
        sys.path[:0] = [place for place in path if place not in sys.path]
        function, *arguments = pickle.loads(packed)
        return function(*arguments)

    root = str(Path(__file__).resolve().parents[2])
    path = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = dict.fromkeys(_THREADS, "1") | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}
    if "SIMMIM_DATA" in os.environ:
        variables["SIMMIM_DATA"] = os.path.abspath(os.environ["SIMMIM_DATA"])
    task = ray.remote(go).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)
    return task.remote(path, variables, pickle.dumps(call))


def _results(ray, jobs: list[Job], runs_dir: Path, device: str, cluster: Cluster, shown: Progress, what: str) -> list:
    token = runs_dir / f".cluster-{uuid.uuid4().hex}"
    write_atomic(token, "")
    outcomes: list[Outcome] = []
    try:
        left = {}
        for job in jobs:
            several = cluster.gpus_per_run if isinstance(job.work[0], Run) else 1
            gpus = 0 if device.startswith("cpu") else several
            seen = (str(runs_dir), os.getcwd(), token.name, _versions())
            left[_submit(ray, gpus, _task, job, device, max(1, gpus), seen)] = job
        while left:
            [ready], _ = ray.wait(list(left))
            job = left.pop(ready)
            try:
                outcomes.append(ray.get(ready))
            except ray.exceptions.RayError as error:
                line = f"{job.name} was lost {RETRIES} times ({_first(error)}); finished runs are kept in {runs_dir}"
                outcomes.append(Outcome(job.name, error=line))
    except KeyboardInterrupt:
        for task in left:
            ray.cancel(task, force=True)
        raise Interrupted(
            f"interrupted: {len(shown.finished())} of {len(shown.costs)} {what.split()[0]} are finished and kept in "
            f"{runs_dir}; run the same command to go on"
        ) from None
    finally:
        token.unlink(missing_ok=True)
    return outcomes


def _task(job: Job, device: str, processes: int, seen: tuple[str, str, str, dict]) -> Outcome:
    """On a node: the work of one job, after a look whether this node is like the one that asks."""
    runs_dir, cwd, token, versions = seen
    node = os.uname().nodename
    if not (Path(runs_dir) / token).exists() or not os.path.isdir(cwd):
        line = f"{runs_dir} and {cwd} are not seen on node {node}: run from a folder on a disk that all nodes share"
        return Outcome(job.name, error=line)
    for name, version in _versions().items():
        if versions[name] != version:
            line = f"node {node} has {name} {version}, this machine {versions[name]}: install the same on all of them"
            return Outcome(job.name, error=line)
    os.chdir(cwd)  # relative names of sources count from there
    if processes > 1:
        return _under_torchrun(job, Path(runs_dir), device, processes)
    return do(job, runs_dir, device, True, os.getpid())


def _under_torchrun(job: Job, runs_dir: Path, device: str, processes: int) -> Outcome:
    """The runs of a job by several processes of this node, one after the other."""
    outcome = Outcome(job.name)
    for run in job.work:
        if read_record(job.paths(runs_dir)[job.work.index(run)]) is None:
            words = commands.pretrain_words(run, runs_dir, commands.runtime_of(run, processes), device)
            words += commands.log_words(job.log)
            start = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={processes}",
                "-m",
                "simmim_lite",
            ]
            done = subprocess.run([sys.executable, *start, *words], capture_output=True, text=True)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if line.startswith("simmim-lite: ")]
                line = said[-1].removeprefix("simmim-lite: ") if said else f"torchrun ended with {done.returncode}"
                return replace(outcome, error=f"{run.key}: {line}")
            record = read_record(job.paths(runs_dir)[job.work.index(run)])
            seconds = record["cost"]["core_seconds"] if record["status"] == "done" else 0
            outcome = replace(outcome, trained=outcome.trained + 1, core_seconds=outcome.core_seconds + seconds)
    return outcome


@contextlib.contextmanager
def _joined(cluster: Cluster, workers: int) -> Iterator[object]:
    """Ray, joined to a cluster, or started on this machine and ended afterwards; one that is joined already is used."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError('--engine ray needs the package ray: pip install "simmim-lite[ray]"') from error
    ours = not ray.is_initialized()
    if ours:
        options = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": True}
        if cluster.address is None:
            options |= {"num_cpus": max(1, workers), "include_dashboard": False, "object_store_memory": _STORE}
        else:
            _check_address(cluster.address)
        try:
            ray.init(cluster.address, **options)
        except Exception as error:  # of many libraries
            where = f"no cluster at {cluster.address}" if cluster.address else "Ray does not start here"
            raise UserError(f"--engine ray: {where} ({_first(error)})") from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Fail in seconds where nobody listens: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"--engine ray: no cluster at {address} ({reason}); give the --address it prints"
            ) from error


def _versions() -> dict[str, str]:
    """What must be the same on all nodes for numbers to be the same."""
    import importlib.metadata

    from ..training.run import RECIPE_VERSION

    return {"torch": importlib.metadata.version("torch"), "recipe version": str(RECIPE_VERSION)}


def _first(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:200]
