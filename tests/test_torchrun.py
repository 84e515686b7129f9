"""torchrun itself, killed and signalled, and the same run by other numbers of processes: `make test-all`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from child_processes import PATIENCE, until

from simmim_lite.training.run import Run, read_record, record_path, trunk_folder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
#: Long enough to be stopped in the middle; short enough that rounding has not grown yet: over 600 steps two ways of
#: sharing this run, neither of them disturbed, drift apart by 4e-3, and by less than 2e-6 over 160.
RUN = Run(
    image_size=16, images=24, steps=160, batch_size=8, warmup_steps=100, eval_every=10, val_images=8, val_masks=1,
    probe_labels=0, drop_path=0.1, lr=1e-4,
)  # fmt: skip
#: A checkpoint after every step, where there are 30 s between two else.
HURRY = """
import sys
from simmim_lite.cli import main
from simmim_lite.training import train
train.CHECKPOINT_SECONDS = 0.0
sys.exit(main())
"""


def start(folder: Path, processes: int, *more: str) -> subprocess.Popen:
    """The command line, alone or under torchrun."""
    script = folder.parent / "hurry.py"
    script.write_text(HURRY)
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        words += ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"]
    words += [str(script), "pretrain", "--runs-dir", str(folder), "--device", "cpu", *more]
    default = Run().to_dict()
    for name, value in RUN.to_dict().items():
        if value != default[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipes)


def saved(folder: Path) -> list[int]:
    """The steps of the checkpoints in the trunk."""
    return [int(path.stem.removeprefix("step-")) for path in trunk_folder(folder, RUN).glob("step-*")]


def begun(folder: Path, process: subprocess.Popen, after: int = 0) -> int:
    """The newest checkpoint's step, as soon as it is later than `after`."""
    return max(until(lambda: [step for step in saved(folder) if step > after], process))


def finish(process: subprocess.Popen) -> None:
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, errors


def kill(process: subprocess.Popen) -> None:
    """kill -9 of torchrun and of the processes that it started, as on a machine that goes away."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    for pid in (process.pid, *map(int, found.split())):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def curve(folder: Path) -> np.ndarray:
    return np.array([[p["train_loss"], p["val_loss"]] for p in read_record(record_path(folder, RUN))["curve"]])


def test_killed_again_and_again_on_changing_numbers_of_processes(tmp_path) -> None:
    """DDP on two, FSDP on four, one alone, FSDP on two; three are refused in one line; two finish it."""
    alone, folder, step = tmp_path / "alone", tmp_path / "runs", 0
    finish(start(alone, 1))
    for processes, more in ((2, ()), (4, ("--parallel", "fsdp")), (1, ()), (2, ("--parallel", "fsdp"))):
        process = start(folder, processes, *more)
        step = begun(folder, process, step)
        kill(process)
        assert not record_path(folder, RUN).exists()
    errors = start(folder, 3).communicate(timeout=PATIENCE)[1].partition("Traceback")[0]  # torchrun repeats it below
    assert errors.count("simmim-lite: batch_size 8 does not divide among 3 processes: try 6\n") == 1
    finish(start(folder, 2))
    np.testing.assert_allclose(curve(folder), curve(alone), atol=1e-5, rtol=0)
    assert not list(folder.rglob(".*.*.*")), "nothing half written is left"


@pytest.mark.parametrize(("name", "processes"), [("SIGTERM", 2), ("SIGUSR1", 1)])
def test_a_signal_saves_and_the_same_command_goes_on(name: str, processes: int, tmp_path) -> None:
    """Sent to torchrun, which passes it on. Alone the status is 75; torchrun's own is 1, whatever its processes say."""
    folder = tmp_path / "runs"
    process = start(folder, processes, "--parallel", "fsdp")
    step = begun(folder, process)
    os.kill(process.pid, getattr(signal, name))
    errors = process.communicate(timeout=PATIENCE)[1]
    assert errors.count(f"simmim-lite: {name}: {RUN.key} is saved at step ") == 1, errors
    assert process.returncode == (75 if processes == 1 else 1)
    newest = max(saved(folder))
    assert newest >= step
    again = start(folder, 1)
    assert begun(folder, again, newest) > newest
    kill(again)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--batch-sizes", "8"], "unrecognized arguments: --batch-sizes 8 (see simmim-lite --help)"),
        (["--model", "swinv2_ato"], "unknown model 'swinv2_ato': did you mean 'swinv2_atto'?"),
        (["--data", "imagefolder:/nowhere"], "imagefolder:/nowhere: no such folder"),
        (["--accumulate", "3"], "accumulate 3 does not divide the 4 images of a process"),
    ],
)
def test_misused_it_is_one_line_and_the_last_that_torchrun_prints(words, line, tmp_path) -> None:
    errors = start(tmp_path / "runs", 2, *words).communicate(timeout=PATIENCE)[1]
    said, _, block = errors.partition("Traceback (most recent call last)")
    assert said.count(f"simmim-lite: {line}") == 1
    *_, last, border = block.strip().splitlines()
    assert last.strip().startswith(f"traceback : simmim-lite: {line}") and set(border) == {"="}
    assert block.count("Traceback") == 0
