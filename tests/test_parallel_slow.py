"""Teams of four, deep networks, and torchrun itself, killed and signalled: `make test-all`."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from child_processes import PATIENCE, until
from teams import run_team
from test_parallel import DDP, FSDP, RUN, alone, assert_close, go, losses  # noqa: F401

from simmim_lite.training.run import Run, load_final, read_record, record_path, trunk_folder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
#: As deep as the giant, at 64 px; few steps.
DEEP = Run(
    model="swinv2_small", image_size=64, window_size=4, mask_patch=32, images=24, steps=3, batch_size=4, lr=1e-4,
    warmup_steps=2, eval_every=1, val_images=6, val_masks=1, probe_labels=0, drop_path=0.1, mask_ratio=0.6,
)  # fmt: skip
#: Long enough to be stopped in the middle; short enough that rounding has not grown yet: over 600 steps two ways of
#: sharing this run, neither of them disturbed, drift apart by 4e-3, and by less than 2e-6 over 160.
LONG = Run(
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


def four(folder) -> dict:
    """As many processes as a small node has GPUs."""
    done = {}
    for name, how in (("ddp", replace(DDP, accumulate=2)), ("fsdp", replace(FSDP, accumulate=1))):
        done[name] = go(folder / name, how)
        go(folder / f"{name}-again", how, stop=18)
        done[f"{name}-again"] = go(folder / f"{name}-again", how)
        go(folder / f"{name}-two", how, stop=5)
    return done


def on_two(folder) -> dict:
    """What four had begun, the other way."""
    return {name: go(folder / f"{name}-two", how) for name, how in (("ddp", FSDP), ("fsdp", DDP))}


def test_four_processes_give_the_losses_of_one_and_go_on_bit_for_bit_or_on_two(alone, tmp_path) -> None:
    """Sums of four depend on their order, which must not depend on where the processes began."""
    done = run_team(4, four, tmp_path)[0]
    for way in ("ddp", "fsdp"):
        assert_close(done[way], alone[0])
        assert done[f"{way}-again"]["steps_now"] == RUN.steps - 18
        assert done[f"{way}-again"]["curve"] == done[way]["curve"]
    for record in run_team(2, on_two, tmp_path)[0].values():
        assert record["steps_now"] == RUN.steps - 5
        assert_close(record, alone[0])


def deep(folder) -> list[dict]:
    half = replace(DEEP, precision="bf16")
    return [go(folder / "full", FSDP, DEEP), go(folder / "fsdp", FSDP, half), go(folder / "ddp", DDP, half)]


def test_a_network_as_deep_as_the_giant(tmp_path) -> None:
    """Sharded, recomputed, in two parts: fp32 as one process; bf16 as close to DDP's as rounding lets it."""
    full, fsdp, ddp = run_team(2, deep, tmp_path)[0]
    np.testing.assert_allclose(losses(full), losses(go(tmp_path / "alone", run=DEEP)), atol=1e-5, rtol=0)
    half = replace(DEEP, precision="bf16")
    own = losses(go(tmp_path / "half", run=half))
    assert np.abs(own - losses(full)).max() > 1e-5, "bf16 is another precision"
    for record in (fsdp, ddp):
        np.testing.assert_allclose(losses(record), own, atol=5e-3, rtol=0)
    assert {str(w.dtype) for w in load_final(tmp_path / "fsdp", half).values()} == {"torch.float32"}


def test_compiled_blocks_give_the_same_losses(tmp_path) -> None:
    """Two steps of a network without drop path: each variant of a block takes seconds to compile."""
    short = replace(RUN, steps=2, drop_path=0.0, probe_labels=0)
    plain, fast = go(tmp_path / "plain", run=short), go(tmp_path / "fast", replace(DDP, compile=True), short)
    np.testing.assert_allclose(losses(fast), losses(plain), atol=1e-4, rtol=0)


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
    for name, value in LONG.to_dict().items():
        if value != default[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipes)


def saved(folder: Path, process: subprocess.Popen, after: int = 0) -> int:
    """The newest checkpoint's step, as soon as it is later than `after`."""
    steps = lambda: [int(p.stem.removeprefix("step-")) for p in trunk_folder(folder, LONG).glob("step-*")]  # noqa: E731
    return max(until(lambda: [step for step in steps() if step > after], process))


def kill(process: subprocess.Popen) -> None:
    """kill -9 of torchrun and of the processes that it started, as on a machine that goes away."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    for pid in (process.pid, *map(int, found.split())):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def test_killed_again_and_again_on_changing_numbers_of_processes(tmp_path) -> None:
    """DDP on two, FSDP on four, one alone, FSDP on two; three are refused in one line; two finish it."""
    alone, folder, step = tmp_path / "alone", tmp_path / "runs", 0  # noqa: F811
    for processes, more in ((2, ()), (4, ("--parallel", "fsdp")), (1, ()), (2, ("--parallel", "fsdp"))):
        process = start(folder, processes, *more)
        step = saved(folder, process, step)
        kill(process)
        assert not record_path(folder, LONG).exists()
    errors = start(folder, 3).communicate(timeout=PATIENCE)[1].partition("Traceback")[0]  # torchrun repeats it below
    assert errors.count("simmim-lite: batch_size 8 does not divide among 3 processes: try 6\n") == 1
    for place, processes in ((alone, 1), (folder, 2)):
        process = start(place, processes)
        errors = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, errors
    curves = [losses(read_record(record_path(place, LONG))) for place in (folder, alone)]
    np.testing.assert_allclose(*curves, atol=1e-5, rtol=0)
    assert not list(folder.rglob(".*.*.*")), "nothing half written is left"


@pytest.mark.parametrize(("name", "processes"), [("SIGTERM", 2), ("SIGUSR1", 1)])
def test_a_signal_saves(name: str, processes: int, tmp_path) -> None:
    """Sent to torchrun, which passes it on. Alone the status is 75; torchrun's own is 1, whatever its processes say."""
    folder = tmp_path / "runs"
    process = start(folder, processes, "--parallel", "fsdp")
    step = saved(folder, process)
    os.kill(process.pid, getattr(signal, name))
    errors = process.communicate(timeout=PATIENCE)[1]
    assert errors.count(f"simmim-lite: {name}: {LONG.key} is saved at step ") == 1, errors
    assert process.returncode == (75 if processes == 1 else 1) and saved(folder, process) >= step


def test_misused_it_is_one_line_and_the_last_that_torchrun_prints(tmp_path) -> None:
    for words, line in (
        (["--model", "swinv2_ato"], "unknown model 'swinv2_ato': did you mean 'swinv2_atto'?"),
        (["--data", "imagefolder:/nowhere"], "imagefolder:/nowhere: no such folder"),
    ):
        errors = start(tmp_path / "runs", 2, *words).communicate(timeout=PATIENCE)[1]
        said, _, block = errors.partition("Traceback (most recent call last)")
        assert said.count(f"simmim-lite: {line}") == 1 and block.count("Traceback") == 0
        *_, last, border = block.strip().splitlines()
        assert last.strip().startswith(f"traceback : simmim-lite: {line}") and set(border) == {"="}
