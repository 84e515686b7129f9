"""`study --commands`, and the Slurm example's own shell code, with stand-ins for what Slurm sets."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from child_processes import PATIENCE, catches, until
from test_cli import call

from simmim_lite import cli
from simmim_lite.studies import grids, notebooks, workers
from simmim_lite.studies.tiers import LEVELS, RECIPE, TIERS, WHOLE_22K
from simmim_lite.training.run import Run, Runtime, record_path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "slurm" / "array.sbatch"
TINY = replace(
    TIERS["smoke"].recipe, batch_size=8, val_images=8, val_masks=1, probe_labels=0, eval_every=50, images=16
)  # fmt: skip


def read(line: str) -> list[dict]:
    """The runs of a line, each with its runtime and where it is kept, as the command line reads them."""
    parts = (shlex.split(part) for part in line.split(" && "))
    return [vars(cli._parser().parse_args(words[words.index("pretrain") :])) for words in parts]


def fields(kind: type, options: dict) -> object:
    """The run, or the runtime, of options."""
    return kind(**{f.name: options[f.name] for f in dataclasses.fields(kind) if f.name in options})


def test_the_lines_are_the_published_grid_and_leave_out_what_is_finished(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = {"available": LEVELS[-1], "second_available": WHOLE_22K}  # as if a folder with all of them were there
    for module in (grids, notebooks):
        monkeypatch.setattr(module, "images_of", lambda _: held)
    monkeypatch.setattr(grids, "_check_sides", lambda *_: None)
    data = "imagefolder:a b + imagefolder:c"
    words = ["study", "all", "--tier", "paper", "--data", data, "--commands", "--gpus-per-run", "8"]
    printed = call(capsys, *words)[1].splitlines()
    assert not list(tmp_path.iterdir()), "something was started"
    runs = [[fields(Run, one) for one in read(line)] for line in printed]
    assert {run for line in runs for run in line} == set(grids.grid("all", "paper", data=data)) and len(runs) == 21
    for line, text in zip(runs, printed, strict=True):
        assert len({run.trunk_key for run in line}) == 1
        assert [run.steps for run in line] == sorted(run.steps for run in line)
        large, how = line[0].model in ("swinv2_huge", "swinv2_giant"), [fields(Runtime, one) for one in read(text)]
        assert {(one.parallel, one.checkpointing) for one in how} == {("fsdp", True) if large else ("ddp", False)}
    assert all(line.startswith("torchrun --standalone --nproc-per-node=8") for line in printed)
    for run in runs[0]:
        record_path("runs", run).parent.mkdir(parents=True, exist_ok=True)
        record_path("runs", run).write_text("{}")
    rest = call(capsys, *words, "--nodes", "2")[1].splitlines()
    assert [[fields(Run, one) for one in read(line)] for line in rest] == runs[1:]
    assert all(line.startswith("torchrun --nnodes=2 --rdzv-backend=c10d") for line in rest)


def test_a_command_line_is_read_back_as_the_very_run_and_runtime() -> None:
    run, how = Run(subset_seed=3, lr=1 / 3), Runtime(parallel="fsdp", accumulate=4, checkpointing=True, compile=True)
    found = vars(cli._parser().parse_args(workers.pretrain_words(run, how, "a b", "cpu")))
    assert (fields(Run, found), fields(Runtime, found), found["runs_dir"], found["device"]) == (run, how, "a b", "cpu")
    base, giant = (replace(RECIPE, model=f"swinv2_{name}") for name in ("base", "giant"))
    assert workers.runtime_of(base) == Runtime(accumulate=16)
    assert workers.runtime_of(base, 8) == Runtime(accumulate=2)
    assert workers.runtime_of(giant, 8) == Runtime(parallel="fsdp", accumulate=8, checkpointing=True)
    assert workers.runtime_of(Run()) == Runtime()


def element(tmp_path: Path, number: int) -> subprocess.Popen:
    """The script as one element of an array; `scontrol` writes down what it is told."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(tmp_path / "scontrol.log"))}\n')
    (tools / "scontrol").chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "7", "COMMANDS": str(tmp_path / "commands.txt")}
    path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, **slurm, "PATH": path, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", str(SCRIPT)], env=environment, cwd=tmp_path, **pipes)


def test_an_element_ends_with_the_status_of_its_line_and_names_a_line_that_is_not_there(tmp_path) -> None:
    (tmp_path / "commands.txt").write_text("echo one && false && echo two\necho three\n")
    for number, status, output in ((1, 1, "one\n"), (2, 0, "three\n")):
        process = element(tmp_path, number)
        assert (process.communicate(timeout=PATIENCE)[0], process.returncode) == (output, status)
    process = element(tmp_path, 3)
    assert "no line 3 in" in process.communicate(timeout=PATIENCE)[0] and process.returncode == 2
    assert not (tmp_path / "scontrol.log").exists(), "a failure is not queued again"


def test_an_element_that_is_preempted_is_queued_again_and_leaves_the_rest_of_its_line(tmp_path) -> None:
    """What a training makes of the signal is test_parallel's."""
    (tmp_path / "run.sh").write_text('trap "exit 75" USR1\ntouch ready\nwhile :; do sleep 0.02; done\n')
    (tmp_path / "commands.txt").write_text("bash run.sh && echo two\n")
    process = element(tmp_path, 1)
    until(lambda: (tmp_path / "ready").exists() and catches(process.pid, signal.SIGUSR1), process)
    process.send_signal(signal.SIGUSR1)
    assert "two" not in process.communicate(timeout=PATIENCE)[0] and process.returncode == 75
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7_1\n"
