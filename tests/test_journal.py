"""The journal of a run in progress: what it says, what a kill leaves, what a resumed run makes of it; the writers."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from child_processes import PATIENCE, until
from filelock import FileLock

from simmim_lite.errors import UserError
from simmim_lite.training import journal as module
from simmim_lite.training import pretrain as training
from simmim_lite.training.journal import Journal, held, journal_path, read_journal
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run
from simmim_lite.training.writers import check_writers

RUN = Run(
    images=32, steps=60, batch_size=16, warmup_steps=4, eval_every=20, val_images=32, val_masks=1, probe_labels=60,
    probe_test=30,
)  # fmt: skip
#: A process that trains until it is killed.
ENDLESS = """
import sys
from simmim_lite.training import pretrain as training
from simmim_lite.training.run import Run
training.CHECKPOINT_SECONDS = 0.0
training.pretrain(Run.from_dict(__import__("json").loads(sys.argv[1])), runs_dir=sys.argv[2], log=sys.argv[3:])
"""


class Stop(Exception):
    """Ends a run in the middle."""


def stopping(at: int):
    def progress(step: int, steps: int) -> None:
        if step >= at:
            raise Stop

    return progress


def numbers(record: dict) -> dict:
    return {k: record[k] for k in ("key", "status", "run", "curve", "final", "transfer")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    record = pretrain(RUN, runs_dir=folder)
    assert not list((folder / "running").iterdir()), "the record has it all"
    return record


def test_what_it_says_and_that_a_resumed_run_goes_on_in_it(undisturbed, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(module, "EVERY", 0.0)
    path = journal_path(tmp_path, RUN.key)
    before = time.time()
    with pytest.raises(Stop):
        pretrain(RUN, runs_dir=tmp_path, progress=stopping(50))
    first = read_journal(path)
    assert (first.run, first.start, first.step, first.processes) == (RUN, 0, 40, 1)
    assert first.pid == os.getpid() and before <= first.time <= time.time()
    assert [p["step"] for p in first.points if "val_loss" in p] == [20, 40]
    assert [p["step"] for p in first.points if "train_loss" in p] == [20, 25, 40]
    assert all(p["images_seen"] == 16 * p["step"] for p in first.points)
    assert first.last("images_per_second") > 0 and first.last("lr") == RUN.lr_at(39)
    with path.open("ab") as file:
        file.write(b'{"step": 60, "val_lo')  # what a kill leaves
    assert read_journal(path) == first
    seen = []
    record = pretrain(RUN, runs_dir=tmp_path, progress=lambda *_: seen.append(read_journal(path)))
    assert numbers(record) == numbers(undisturbed), "a journal changes no number"
    assert seen[0].start == 49 and [p["step"] for p in seen[0].points if "val_loss" in p] == [20, 40]
    assert not path.exists()


def test_points_that_are_taken_again_are_dropped_and_a_branch_shows_its_trunk(tmp_path) -> None:
    path = journal_path(tmp_path, RUN.key)
    journal = Journal(tmp_path, RUN, device="cpu")
    journal.start(0, [])
    for step in (10, 20, 30):
        journal.point(step, 1.0)
    journal.validated(20, 0.7)
    trunk = {"step": 20, "images_seen": 320, "train_loss": 0.9, "val_loss": 0.7, "lr": 0.1}
    Journal(tmp_path, RUN, device="cpu").start(20, [trunk])
    story = read_journal(path)
    assert [p["step"] for p in story.points] == [10, 20, 20] and story.step == 20
    other = replace(RUN, steps=80)
    Journal(tmp_path, other, device="cpu").start(20, [trunk])
    assert read_journal(journal_path(tmp_path, other.key)).points == [trunk]


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"notes\n", b'{"start": 0, "version": 99}\n', b'{"step": 1}\n[1]\n3\n']
)
def test_what_is_no_journal_is_none(content: bytes, tmp_path) -> None:
    assert read_journal(tmp_path / "nothing") is None
    (tmp_path / "file").write_bytes(content)
    assert read_journal(tmp_path / "file") is None


def test_a_full_disk_is_named_once_and_costs_nothing_but_the_journal(
    undisturbed, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    real = Path.open

    def full(self, mode="r", *rest, **options):
        if self.suffix == ".jsonl" and "a" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    assert numbers(pretrain(RUN, runs_dir=tmp_path)) == numbers(undisturbed)
    said = [line for line in capsys.readouterr().err.splitlines() if "jsonl" in line]
    assert len(said) == 1 and "No space left on device; the run goes on" in said[0]


def test_a_run_that_fails_leaves_none(tmp_path) -> None:
    record = pretrain(replace(RUN, lr=9.0, clip_grad=1e9, steps=100), runs_dir=tmp_path)
    assert record["status"] == "failed" and not list((tmp_path / "running").iterdir())


def killed_in_the_middle(folder: Path, *log: str, env: dict | None = None) -> Run:
    """A run of its own process, killed -9 when its journal has some points."""
    run = replace(RUN, steps=100_000, warmup_steps=5)
    words = [sys.executable, "-c", ENDLESS, json.dumps(run.to_dict()), str(folder), *log]
    process = subprocess.Popen(words, env=os.environ | (env or {}))
    try:
        until(lambda: (story := read_journal(journal_path(folder, run.key))) and story.step >= 60, process)
        assert held(folder / "locks" / f"{run.trunk_key}.lock") is True
        return run
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_kill_9_leaves_a_readable_journal_and_a_free_lock(tmp_path) -> None:
    run = killed_in_the_middle(tmp_path)
    story = read_journal(journal_path(tmp_path, run.key))
    assert story.step >= 60 and story.last("val_loss") > 0
    assert held(tmp_path / "locks" / f"{run.trunk_key}.lock") is False
    with pytest.raises(Stop):
        pretrain(run, runs_dir=tmp_path, progress=stopping(story.step + 20))
    again = read_journal(journal_path(tmp_path, run.key))
    assert 0 < again.start <= story.step + 1 and again.pid == os.getpid()
    assert [p["step"] for p in again.points] == sorted(p["step"] for p in again.points)


def test_a_lock_that_is_held_and_one_that_is_not(tmp_path) -> None:
    assert held(tmp_path / "none.lock") is False and not (tmp_path / "none.lock").exists()
    with FileLock(tmp_path / "a.lock"):
        assert held(tmp_path / "a.lock") is True
    assert held(tmp_path / "a.lock") is False


# --- writers --------------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars by name, as TensorBoard's own reader has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_run_back_also_when_it_was_interrupted(undisturbed, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 1e9)  # so the second part begins at the start
    with pytest.raises(Stop):
        pretrain(RUN, runs_dir=tmp_path, progress=stopping(50), log=["tensorboard"])
    record = pretrain(RUN, runs_dir=tmp_path, log=["tensorboard"])
    assert numbers(record) == numbers(undisturbed)
    found = scalars(tmp_path / "tensorboard" / RUN.key)
    curve = {p["step"]: p["val_loss"] for p in record["curve"]}
    assert dict(found["val_loss"]) == pytest.approx(curve) and len(found["val_loss"]) == len(curve)
    assert [step for step, _ in found["train_loss"]] == [20, 25, 40, 50, 60]
    assert found["probe/linear"] == [(60, pytest.approx(record["transfer"]["linear"]["score"]))]
    assert {"lr", "images_per_second"} <= set(found)


def test_wandb_offline(undisturbed, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    record = pretrain(RUN, runs_dir=tmp_path, log=["wandb"])
    assert numbers(record) == numbers(undisturbed)
    (left,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = left.read_bytes()
    assert RUN.key.encode() in content and b"val_loss" in content and b"probe/linear" in content


def test_who_cannot_be_told_is_named_before_anything_is_trained(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="unknown log 'tensorbord': did you mean 'tensorboard'"):
        pretrain(RUN, runs_dir=tmp_path, log=["tensorbord"])
    with pytest.raises(UserError, match="give a list"):
        pretrain(RUN, runs_dir=tmp_path, log="wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="tensorboard is not installed; pip install tensorboard"):
        pretrain(RUN, runs_dir=tmp_path, log=["tensorboard"])
    assert not list(tmp_path.iterdir())


def test_wandb_does_not_ask_who_you_are(tmp_path, monkeypatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    code = "from simmim_lite.training.writers import check_writers\ncheck_writers(['wandb'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
    assert "nobody is logged in here; run `wandb login`, or set WANDB_MODE=offline" in done.stderr
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_writers(["wandb"])


def test_a_writer_that_breaks_is_named_once_and_left_out(undisturbed, tmp_path, monkeypatch, capsys) -> None:
    from simmim_lite.training.writers import TensorBoard

    def broken(self, point: dict) -> None:
        raise RuntimeError("the server is gone\nand more")

    monkeypatch.setattr(TensorBoard, "point", broken)
    assert numbers(pretrain(RUN, runs_dir=tmp_path, log=["tensorboard"])) == numbers(undisturbed)
    said = [line for line in capsys.readouterr().err.splitlines() if "tensorboard" in line]
    assert said == ["simmim-lite: tensorboard is left out (RuntimeError: the server is gone); the run goes on"]


def test_a_study_tells_of_its_runs_too(tmp_path, capsys) -> None:
    from test_cli import call

    words = ["study", "schedule", "--tier", "smoke", "--seeds", "1", "--workers", "1", "--no-notebooks"]
    status, _, err = call(capsys, *words, "--runs-dir", tmp_path, "--log-to", "tensorbord")
    assert status == 2 and "unknown log 'tensorbord'" in err and not list(tmp_path.iterdir())
    status, out, _ = call(capsys, *words, "--runs-dir", tmp_path, "--log-to", "tensorboard", "--commands")
    assert status == 0 and out.splitlines()[0].endswith("--log-to tensorboard")
    status, _, err = call(capsys, *words, "--runs-dir", tmp_path, "--log-to", "tensorboard")
    assert status == 0, err
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")}
    trained = {key for key, record in records.items() if record["run"]["steps"]}
    assert trained and trained == {path.name for path in (tmp_path / "tensorboard").iterdir()}


@pytest.mark.slow
def test_under_torchrun_the_main_process_alone_tells(tmp_path) -> None:
    words = ["--images", "32", "--steps", "40", "--batch-size", "16", "--val-images", "32", "--probe-labels", "0"]
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "simmim_lite", "pretrain"]
    command = [sys.executable, *start, *words, "--device", "cpu", "--log-to", "tensorboard", "--runs-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert len(list(folder.iterdir())) == 1 and scalars(folder)["val_loss"][-1][0] == 40
    assert not list((tmp_path / "running").iterdir())
