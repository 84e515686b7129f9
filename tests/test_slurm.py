"""`study --commands`, and the Slurm example's own shell code, with stand-ins for what Slurm sets."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from child_processes import PATIENCE, catches, until
from test_cli import call

from simmim_lite import cli
from simmim_lite.errors import UserError
from simmim_lite.evidence.records import load
from simmim_lite.studies import grids, workers
from simmim_lite.studies.tiers import LEVELS, RECIPE, TIERS, WHOLE_22K, StudyOptions
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run, Runtime, record_path
from simmim_lite.verbs import run_of, runtime_of

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "slurm" / "array.sbatch"
TINY = replace(
    TIERS["smoke"].recipe, image_size=16, window_size=2, batch_size=8, val_images=8, val_masks=1, probe_labels=0,
    eval_every=50, images=16,
)  # fmt: skip


def read(line: str) -> list:
    """The runs of a line, each with its runtime, as the command line reads them."""
    parts = (shlex.split(part) for part in line.split(" && "))
    found = [cli._parser().parse_args(words[words.index("pretrain") :]) for words in parts]
    return [(run_of(arguments), runtime_of(arguments)) for arguments in found]


def test_the_lines_are_the_published_grid_and_leave_out_what_is_finished(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = {"available": LEVELS[-1], "second_available": WHOLE_22K}  # as if a folder with all of them were there
    monkeypatch.setattr(grids, "images_of", lambda _: held)
    monkeypatch.setattr("simmim_lite.studies.notebooks.images_of", lambda _: held)
    monkeypatch.setattr(grids, "_check_sides", lambda *_: None)
    data = "imagefolder:a b + imagefolder:c"
    words = ["study", "all", "--tier", "paper", "--data", data, "--commands", "--gpus-per-run", "8"]
    printed = call(capsys, *words)[1].splitlines()
    assert not list(tmp_path.iterdir()), "something was started"
    runs, found = grids.grid("all", "paper", data=data), [read(line) for line in printed]
    assert {run for line in found for run, _ in line} == set(runs) and len(found) == 21
    for line in found:
        assert len({run.trunk_key for run, _ in line}) == 1
        assert [run.steps for run, _ in line] == sorted(run.steps for run, _ in line)
        large = line[0][0].model in ("swinv2_huge", "swinv2_giant")
        assert {(how.parallel, how.checkpointing) for _, how in line} == {("fsdp", True) if large else ("ddp", False)}
    assert all(line.startswith("torchrun --standalone --nproc-per-node=8") for line in printed)
    for run, _ in found[0]:
        record_path("runs", run).parent.mkdir(parents=True, exist_ok=True)
        record_path("runs", run).write_text("{}")
    rest = call(capsys, *words, "--nodes", "2")[1].splitlines()
    assert [[run for run, _ in read(line)] for line in rest] == [[run for run, _ in line] for line in found[1:]]
    # twice the GPUs, half the parts
    for line, before in zip(rest, found[1:], strict=True):
        assert all(a.accumulate == max(1, b.accumulate // 2) for (_, a), (_, b) in zip(read(line), before, strict=True))
    assert all(line.startswith("torchrun --nnodes=2 --rdzv-backend=c10d") for line in rest)


def test_a_command_line_is_read_back_as_the_very_run_and_runtime() -> None:
    for run in (*grids.grid("all", "smoke")[:3], *grids.grid("all", "paper")[:2], Run(subset_seed=3, lr=1 / 3)):
        for runtime in (Runtime(), Runtime(parallel="fsdp", accumulate=4, checkpointing=True, compile=True)):
            words = workers.pretrain_words(run, runs_dir="a b", device="cpu", runtime=runtime)
            found = cli._parser().parse_args(words)
            assert (run_of(found), runtime_of(found), found.runs_dir, found.device) == (run, runtime, "a b", "cpu")
    base, giant = (replace(RECIPE, model=f"swinv2_{name}") for name in ("base", "giant"))
    assert workers.runtime_of(base) == Runtime(accumulate=16)
    assert workers.runtime_of(base, 8) == Runtime(accumulate=2)
    assert workers.runtime_of(giant, 8) == Runtime(parallel="fsdp", accumulate=8, checkpointing=True)
    assert workers.runtime_of(Run()) == Runtime()


def test_wrong_options_are_one_line(capsys) -> None:
    for study, tier, options, line in (
        ("transfer", "smoke", {}, "--commands is about pretraining"),
        ("all", "shipped", {}, "--commands is about pretraining"),
        ("all", "smoke", {"gpus_per_run": 3}, "gpus_per_run 3 does not divide the batch of 16"),
        ("all", "smoke", {"nodes": 0}, "nodes is 0: give a whole number from 1"),
    ):
        with pytest.raises(UserError, match=line):
            workers.lines(study, StudyOptions(tier=tier), **options)
    assert "--nodes is about the lines that --commands prints" in call(capsys, "study", "all", "--nodes", "2")[2]


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


def listening(folder: Path, steps: int) -> int:
    """How many processes of ours train a run of so many steps and have a handler for SIGUSR1 by now."""
    count = 0
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found = words.read_bytes().decode().split("\0")
            if f"--steps={steps}" in found and f"--runs-dir={folder}" in found and "--standalone" not in found:
                count += catches(int(words.parent.name), signal.SIGUSR1)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_element_that_is_preempted_saves_is_queued_again_and_goes_on(processes: int, tmp_path) -> None:
    """The first run of its line is finished and the second one under way when the signal comes."""
    runs, folder = [replace(TINY, steps=steps) for steps in (20, 800)], tmp_path / "runs"
    parts = [workers.pretrain_words(run, runs_dir=str(folder), device="cpu") for run in runs]
    line = " && ".join(f"{workers.launch(processes)} -m simmim_lite {shlex.join(words)}" for words in parts)
    (tmp_path / "commands.txt").write_text(f"{line}\n")
    first = element(tmp_path, 1)
    until(lambda: listening(folder, 800) == processes, first)
    first.send_signal(signal.SIGUSR1)
    said = first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 75 and "is saved at step" in said, said
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7_1\n"
    assert not record_path(folder, runs[1]).exists()
    again = element(tmp_path, 1)
    said = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, said
    found = sorted(load(folder), key=lambda record: record["run"]["steps"])
    assert [(record["key"], record["status"]) for record in found] == [(run.key, "done") for run in runs]
    if processes == 1:
        alone = [pretrain(run, runs_dir=tmp_path / "alone", device="cpu") for run in runs]
        assert [(r["curve"], r["final"]) for r in alone] == [(r["curve"], r["final"]) for r in found]
