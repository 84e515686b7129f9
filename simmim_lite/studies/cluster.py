"""The jobs of a study on a Ray cluster: one job a task, started again elsewhere when its node is lost; a job on several
GPUs of a node is its runs under torchrun. A task goes on from the checkpoint that it finds in RUNS_DIR, which all nodes
see. Ray is imported when a cluster is joined."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import Interrupted, Signalled, UserError, first_line
from ..processes import THREADS, cores, ignore_signals
from ..training.run import Run, record_path, write_atomic
from .costs import step_speeds
from .tiers import StudyOptions
from .workers import Job, Outcome, do, launch, pretrain_words, runtime_of

RETRIES = 20  # of a job whose node or process is lost


class Cluster:
    """A cluster that was joined; see `joined`."""

    def __init__(self, ray, device: str, workers: int, gpus: int, gpus_per_run: int) -> None:
        self._ray, self.device = ray, device  # cpu or cuda, in each task
        self.workers = workers  # jobs at a time, at most
        self.gpus, self.gpus_per_run = gpus, gpus_per_run  # of the whole cluster; of a job, 0 on CPUs

    def each(self, calls: Mapping[str, tuple]) -> Iterator[tuple[str, object]]:
        """(name, what its function gives) of calls by name, as they end, `workers` of them at a time.

        A call whose node or process is lost starts again elsewhere, `RETRIES` times; a `UserError` is given in place of
        a result where it raised or was lost for good."""
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
                    except ray.exceptions.RayError as error:
                        yield name, UserError(first_line(getattr(error, "cause", None) or error))
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def speeds(self, runs_dir: Path, models: Sequence[str], recipe: Run) -> dict[str, float]:
        """`costs.step_speeds` on one of the nodes; a cluster's nodes are taken to be alike."""
        ((_, found),) = self.each({"": (step_speeds, runs_dir.absolute(), tuple(models), recipe, self.device)})
        if isinstance(found, UserError):
            raise found
        return found

    def do(self, jobs: Sequence[Job], runs_dir: Path, wait: bool) -> Iterator[Outcome]:
        """The outcomes of jobs, as they end."""
        work, how = (do_on_gpus, self.gpus_per_run) if self.gpus_per_run > 1 else (do, wait)
        calls = {job.name: (work, job, str(runs_dir.absolute()), self.device, how) for job in jobs}
        for name, done in self.each(calls):
            yield Outcome(name, error=f"{name}: {done}") if isinstance(done, UserError) else done


@contextlib.contextmanager
def joined(runs_dir: Path, how: StudyOptions) -> Iterator[Cluster]:
    """The cluster at an address, else one that is started on this machine, with one CPU a worker; left at the end.

    how: its address, device (`auto` takes GPUs where the cluster has any), workers and gpus_per_run. `UserError`, one
    line, where there is no cluster at the address, where no node has the CPUs and GPUs of a job, and where a node does
    not see `runs_dir`."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_enable_metrics_collection"):
        os.environ.setdefault(name, "0")
    what = f"joining the Ray cluster at {how.address}" if how.address else "starting Ray on this machine"
    print(f"{what}: this takes up to a minute", file=sys.stderr, flush=True)
    import ray

    paths = filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")])
    variables = dict.fromkeys(THREADS, "1") | {"PYTHONPATH": os.pathsep.join(paths)}
    variables |= {name: os.environ[name] for name in ("SIMMIM_DATA",) if name in os.environ}
    options = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": variables}}
    if how.address is None:  # tasks give back a few numbers: a small store will do
        options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20, "num_cpus": how.workers or cores()}
    with contextlib.ExitStack() as stack:
        try:
            if not ray.is_initialized():  # a cluster that the caller has joined already is used
                stack.callback(ray.shutdown)
                with _own_signals():
                    ray.init(address=how.address or "local", **options)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            kind, each, fit = _room(nodes, how.device, how.gpus_per_run)
            found = Cluster(ray, kind, min(how.workers or fit, fit), int(sum(n.get("GPU", 0) for n in nodes)), each)
            token = runs_dir.absolute() / f".simmim-lite-token-{uuid.uuid4().hex}"
            write_atomic(token, "")
            look = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(os.path.exists)
            seen = ray.get([look.remote(str(token)) for _ in range(min(fit, 2 * len(nodes)))])
            token.unlink()
            if not all(seen):
                raise UserError(f"a node does not see {runs_dir}: give a --runs-dir that all nodes share")
        except Exception as error:  # Ray's are of many kinds, among them a plain one where a node takes long to start
            raise error if isinstance(error, UserError) else UserError(f"{what} failed: {first_line(error)}") from error
        try:
            yield found
        except (KeyboardInterrupt, Interrupted):
            if Signalled.heard:
                ignore_signals()  # Ray forgets all handlers at its end
            raise


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Inside, Ray takes SIGTERM for itself, and exits by it; afterwards who heard it before does so again."""
    hears = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise Signalled("SIGTERM") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, hears)


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


def _here(folder: str, function: Callable, *arguments: object) -> object:
    """In a task: call a function in the folder where the study was started, from which relative paths count."""
    with contextlib.suppress(OSError):  # not there on this node: an absolute RUNS_DIR does not need it
        os.chdir(folder)
    return function(*arguments)


def do_on_gpus(job: Job, runs_dir: str, device: str, processes: int) -> Outcome:
    """The work of one job, in order: runs by torchrun in so many processes, a transfer in this process alone."""
    if not isinstance(job.work[0], Run):
        return do(job, runs_dir, device, True)
    trained = 0
    for run in job.work:
        path = record_path(runs_dir, run)
        before = path.stat().st_mtime_ns if path.exists() else 0
        try:
            words = pretrain_words(run, runtime_of(run, processes), runs_dir, device, job.log)
        except UserError as error:
            return Outcome(job.name, trained, error=f"{run.key}: {error}")
        torchrun = ["torch.distributed.run", *shlex.split(launch(processes))[1:]]
        command = [sys.executable, "-m", *torchrun, "-m", "simmim_lite", *words]
        first = _end_with_parent if sys.platform == "linux" else None
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=first)
        if done.returncode:
            lines = re.findall(r"^(?:\[\w+\]:)?simmim-lite: (.+)$", done.stderr, re.M)
            saved = [line for line in lines if "is saved at step" in line]  # torchrun's own status says nothing of it
            last = (saved or lines or [f"{run.key}: torchrun ended with status {done.returncode}"])[-1]
            return Outcome(job.name, trained, error=last, preempted=bool(saved))
        trained += path.stat().st_mtime_ns != before
    return Outcome(job.name, trained)


def _end_with_parent() -> None:
    """SIGTERM, on which runs save and end, when the parent ends: a task that is killed leaves nothing on its GPUs."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
