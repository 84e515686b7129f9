"""The journal of a run in progress: what it says, what a kill leaves, what a resumed run makes of it; the writers."""

import errno

import pytest
from tiny import numbers, stopped

from simmim_lite.errors import UserError
from simmim_lite.training import callbacks as module
from simmim_lite.training.callbacks import check_writers, journal_path, read_journal
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run

RUN = Run(
    images=32, steps=40, batch_size=16, warmup_steps=4, eval_every=20, val_images=32, val_masks=1, probe_labels=60,
    probe_test=30,
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    record = pretrain(RUN, runs_dir=folder)
    assert not list((folder / "running").iterdir()), "the record has it all"
    return record


def test_a_resumed_run_goes_on_in_it_and_the_writers_read_back(undisturbed, tmp_path, monkeypatch) -> None:
    """TensorBoard by its own reader, Weights & Biases offline; neither, nor the journal, changes a number."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    path, log = journal_path(tmp_path, RUN.key), ["tensorboard", "wandb"]
    with stopped(30):
        pretrain(RUN, runs_dir=tmp_path, log=log)
    first = read_journal(path)
    assert (first.run, first.start, first.step, first.machine) == (RUN, 0, 25, module.this_machine())
    assert [p["step"] for p in first.points if "val_loss" in p] == [20]
    assert [p["step"] for p in first.points if "train_loss" in p] == [20, 25]
    assert all(p["images_seen"] == 16 * p["step"] for p in first.points)
    assert first.points[-1]["images_per_second"] > 0 and first.points[-1]["lr"] == RUN.lr_at(24)
    with path.open("ab") as file:
        file.write(b'{"step": 40, "val_lo')  # what a kill leaves
    assert read_journal(path) == first
    for content in (b"", b"notes\n", b'{"start": 0, "version": 99}\n', b'{"step": 1}\n[1]\n3\n'):
        (tmp_path / "file").write_bytes(content)
        assert read_journal(tmp_path / "file") is read_journal(tmp_path / "nothing") is None
    with path.open("ab") as file:
        file.write(b'ss": 1.0}\n')  # a point behind the checkpoint is taken again
    seen = []
    record = pretrain(RUN, runs_dir=tmp_path, progress=lambda *_: seen.append(read_journal(path)), log=log)
    assert numbers(record) == numbers(undisturbed) and not path.exists()
    assert seen[0].start == 30 and [p["step"] for p in seen[0].points if "val_loss" in p] == [20]
    events = EventAccumulator(str(tmp_path / "tensorboard" / RUN.key))
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["val_loss"] == [(p["step"], pytest.approx(p["val_loss"])) for p in undisturbed["curve"]]
    assert {"lr", "images_per_second", "train_loss"} <= set(found)
    content = b"".join(left.read_bytes() for left in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert RUN.key.encode() in content and b"val_loss" in content


def test_trouble_is_named_once_and_costs_no_number(undisturbed, tmp_path, monkeypatch, capsys) -> None:
    """A full disk, and a writer that breaks."""

    def broken(error: Exception) -> None:
        raise error

    full, gone = OSError(errno.ENOSPC, "No space left on device"), RuntimeError("gone\nand more")
    monkeypatch.setitem(module.WRITERS, "journal", lambda *_: broken(full))
    monkeypatch.setitem(module.WRITERS, "tensorboard", lambda *_: (lambda line: broken(gone), None))
    assert numbers(pretrain(RUN, runs_dir=tmp_path, log=["tensorboard"])) == numbers(undisturbed)
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "No space left on device); the run goes on" in line]) == 1
    assert len([line for line in lines if "tensorboard is left out (RuntimeError: gone)" in line]) == 1


def test_who_cannot_be_told_is_named_before_anything_is_trained(tmp_path, monkeypatch) -> None:
    for log in (["tensorbord"], "tensorboard"):
        with pytest.raises(UserError, match="unknown log 't.*known are tensorboard, wandb"):
            pretrain(RUN, runs_dir=tmp_path, log=log)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="tensorboard is not installed; pip install tensorboard"):
        check_writers(["tensorboard"])
    assert not list(tmp_path.glob("r*"))
