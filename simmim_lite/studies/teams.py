"""A job on several GPUs of one machine: each of its runs under torchrun, in processes that end with ours."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from ..errors import UserError
from ..training.run import Run
from .commands import log_words, pretrain_words, runtime_of, torchrun_words
from .workers import Job, Outcome, do

_PATIENCE = 60.0  # seconds that torchrun has to save and end


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
