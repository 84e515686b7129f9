"""What a run is continued and concluded from is known to be whole and to be what is meant: else it is passed over and
named, and no number changes in silence."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic_records import record, tuning
from tiny import ALONE, same, stopped

from simmim_lite import processes
from simmim_lite.cli import main
from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError
from simmim_lite.evidence.records import BEGINNINGS, TRANSFER, load, shipped, shipped_names
from simmim_lite.lab.monitor import look
from simmim_lite.studies.costs import known_speeds, step_speeds
from simmim_lite.studies.engine import study
from simmim_lite.studies.grids import plan_of
from simmim_lite.studies.workers import pretrain_words
from simmim_lite.training.callbacks import journal_path, read_journal
from simmim_lite.training.parallel import Parallel
from simmim_lite.training.pretrain import build, build_optimiser, pretrain
from simmim_lite.training.record import check, read_record
from simmim_lite.training.run import Run, Runtime, checkpoints, record_path, write_record
from simmim_lite.training.train import Trainer, saved

RUN = Run(
    images=48, steps=16, batch_size=16, warmup_steps=4, eval_every=8, val_images=32, val_masks=2, probe_labels=100,
    probe_test=50,
)  # fmt: skip


def rewritten(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage to a checkpoint that leaves a file as torch writes it."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return damage


def as_folder(path: Path) -> None:
    """Mark a part as a folder, as one bit of its entry does: torch would read nothing, and leave what is in memory."""
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    content = bytearray(path.read_bytes())
    content[start + 38] ^= 0x10
    path.write_bytes(content)


def taken(path: Path, seed: int = 0, step: int = 6) -> None:
    """Another checkpoint in place of this one."""
    shutil.copy(checkpoints(path.parents[2], replace(RUN, seed=seed).trunk_key) / f"step-{step:07}.pt", path)


#: Done to a checkpoint that stays a file as torch reads it. tests/test_damage.py has those that do not.
DAMAGES = {
    "a part is a folder": as_folder,
    "another step's": lambda path: taken(path, step=5),
    "another seed's": lambda path: taken(path, seed=1),
    "not a number": rewritten(lambda state: next(iter(state["model"].values())).fill_(math.nan)),
    "another size": rewritten(lambda state: state["model"].update(dict.fromkeys(state["model"], torch.zeros(3)))),
    "no optimiser": rewritten(lambda state: state.pop("optimiser")),
    "an empty optimiser": rewritten(lambda state: state["optimiser"].update(state={})),
    "moments of another size": rewritten(lambda state: state["optimiser"]["state"][0].update(exp_avg=torch.zeros(3))),
    "a list": lambda path: torch.save([], path),
    "a later version": rewritten(lambda state: state.update(version=99)),
}


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """Runs of two seeds that were stopped before their seventh step."""
    folder = tmp_path_factory.mktemp("halfway")
    for seed in (0, 1):
        with stopped(6):
            pretrain(replace(RUN, seed=seed), runs_dir=folder)
    return folder


def resumed(folder: Path) -> Trainer:
    net = Parallel(build(RUN), ALONE)
    trainer = Trainer(RUN, net, build_optimiser(net.model, RUN), open_data("scenes", 32).digest)
    trainer.resume(saved(checkpoints(folder, RUN.trunk_key)))
    return trainer


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_does_not_fit_is_named_and_the_one_before_it_taken(damage, halfway, tmp_path, capsys) -> None:
    shutil.copytree(halfway, tmp_path, dirs_exist_ok=True)
    older, newest = saved(checkpoints(tmp_path, RUN.trunk_key))
    before = torch.load(older, weights_only=True)
    DAMAGES[damage](newest)
    trainer, said = resumed(tmp_path), capsys.readouterr().err
    assert trainer.step == 5 and same(trainer.net.model.state_dict(), before["model"])
    assert said.startswith(f"simmim-lite: checkpoint {newest} is passed over (") and said.count("\n") == 1
    DAMAGES[damage](older) if "step's" not in damage else older.write_bytes(b"")
    trainer = resumed(tmp_path)
    assert trainer.step == 0 and same(trainer.net.model.state_dict(), build(RUN).state_dict())
    trainer.save(newest.parent)
    assert [path.name for path in saved(newest.parent)] == ["step-0000000.pt", older.name, newest.name]


def test_exact_names_count_and_checkpoints_of_before_are_read(halfway, tmp_path, capsys) -> None:
    shutil.copytree(halfway, tmp_path, dirs_exist_ok=True)
    newest = saved(checkpoints(tmp_path, RUN.trunk_key))[-1]
    for name in ("step-0000006.pt.bak", "step-0000007 (copy).pt", "step-abc.pt", "step-٣٣٣٣٣٣٣.pt", "step-9.pt"):
        shutil.copy(newest, newest.with_name(name))
    os.mkfifo(newest.with_name("step-0000008.pt"))
    assert resumed(tmp_path).step == 6 and not capsys.readouterr().err
    rewritten(lambda state: state.pop("key"))(newest)
    for _ in range(2):
        assert resumed(tmp_path).step == 6
    assert capsys.readouterr().err.count("earlier version") == 1


DONE = record(seed=7, scores={"linear": 0.5})
TUNED = tuning(DONE, 0.5)
LATER = "made by a later version .*; use that, or give another --runs-dir"
CHANGED = "not the record that was written .*; restore it, or move it away"


def edited(*where: str | int, to: object) -> Callable[[dict], dict]:
    """A change of one field."""

    def edit(content: dict) -> dict:
        content = inner = json.loads(json.dumps(content))
        for name in where[:-1]:
            inner = inner[name]
        inner[where[-1]] = to
        return content

    return edit


#: What was done to a record, and what its line says.
EDITS = {
    "another seed": (edited("run", "seed", to=8), "key is "),
    "another key": (edited("key", to="x"), "key is x"),
    "its status": (edited("status", to="maybe"), "unknown status 'maybe'"),
    "its kind": (edited("kind", to="poem"), "unknown kind 'poem'"),
    "no run": (edited("run", to=None), "run is None"),
    "no number": (edited("final", "val_loss", to=math.nan), r"final.val_loss is nan"),
    "infinity": (edited("final", "val_loss", to=1e999), r"final.val_loss is inf"),
    "a text": (edited("cost", "seconds", to="long"), "cost.seconds is 'long'"),
    "on its curve": (edited("curve", 1, "val_loss", to=None), r"curve\[1\].val_loss is None"),
    "no score": (edited("transfer", "linear", "score", to=[]), r"transfer.linear.score is \[\]"),
    "no digest": (edited("where", to={}), "where.data_digest is None"),
    "half of it": (lambda content: {"schema": 1, "kind": "pretrain"}, "run is 'missing'"),
    "a default that is left out": (edited("run", to={k: v for k, v in DONE["run"].items() if k != "lr"}), "run.lr is"),
    "no lr": (edited("run", "lr", to={}), "lr is {}"),
    "a later schema": (edited("schema", to=2), LATER),
    "a later field": (edited("run", "colour", to=1), LATER),
    "a later recipe": (edited("run", "recipe_version", to=2), LATER),
    "another number": (edited("final", "val_loss", to=0.2), "checksum"),
}


READERS = (
    lambda folder: [row["key"] for row in load(folder)],
    lambda folder: list(look(folder)["key"]),
    lambda folder: main(["watch", "--runs-dir", str(folder)]),
)


@pytest.mark.parametrize("edit", EDITS)
def test_a_record_is_what_it_says(edit, tmp_path, capsys) -> None:
    """All that read a folder show the other one, and name this one in a line."""
    change, words = EDITS[edit]
    path, other = tmp_path / "records" / f"{DONE['key']}.json", record(seed=9)
    write_record(path.with_name(f"{other['key']}.json"), other)
    write_record(path, DONE)
    assert read_record(path) == DONE
    for content in (json.loads(path.read_text()), DONE)[: 1 + (words != "checksum")]:  # DONE: as it was written before
        path.write_text(json.dumps(change(content)))
        with pytest.raises(UserError, match=words) as error:
            read_record(path)
        assert words == LATER or re.search(CHANGED, str(error.value))
        for read in READERS:
            assert read(tmp_path) == [other["key"]] or read is READERS[-1]
            said = capsys.readouterr()
            assert said.err == f"simmim-lite: passed over: {error.value}\n"
    assert said.out == "1 run: 1 finished\n"


def test_transfers_too_and_a_copy_is_no_second_run(tmp_path, capsys) -> None:
    for made, folder in ((DONE, "records"), (TUNED, "transfer")):
        path = tmp_path / folder / f"{made['key']}.json"
        write_record(path, made)
        assert read_record(path) == made
        shutil.copy(path, path.with_name(f"{path.stem} (copy).json"))
        shutil.copy(path, f"{path}.bak")
    assert load(tmp_path) == [DONE, TUNED]
    assert capsys.readouterr().err.count("(copy).json: not the record that was written (key is") == 2
    for change, words in (
        (edited("final", "top1", to="high"), "final.top1"), (edited("spec", "labels", to=5), "key is"),
        (edited("kind", to="segment"), LATER), (edited("spec", to=None), "spec is None"),
        (edited("spec", "recipe_version", to=9), LATER), (edited("run", "seed", to=1), "key is"),
    ):  # fmt: skip
        path.write_text(json.dumps(change(TUNED)))
        with pytest.raises(UserError, match=words):
            read_record(path)


def test_what_cannot_be_parsed_alone_is_to_be_deleted(tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.json"
    for content in ("", "{", "[]", "null", "\x80", "[" * 100_000, None):
        path.unlink(missing_ok=True)
        path.write_text(content, encoding="latin-1") if content is not None else os.mkfifo(path)
        with pytest.raises(UserError, match="not a readable record .*; delete the file and run again"):
            read_record(path)
    monkeypatch.setattr(os, "stat", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="x.json: Permission denied; ask its owner"):
        read_record(path)


def test_shipped_and_earlier_records_are_as_good(tmp_path, capsys) -> None:
    for name in (*shipped_names(), TRANSFER, BEGINNINGS):
        for made in shipped(name):
            check(made, made["key"])
    assert not capsys.readouterr().err
    for seed in range(2):
        made = record(seed=seed)
        path = record_path(tmp_path, Run.from_dict(made["run"]))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(made))
    for _ in range(2):
        assert len(load(tmp_path)) == 2
    assert capsys.readouterr().err.count("without a checksum, are taken as they are") == 1


@pytest.fixture
def finished(tmp_path) -> list[Path]:
    """The records of a study that is finished."""
    runs, digest = plan_of("data-scale", "smoke", data="scenes")[0], open_data("scenes", 32).digest
    for run in runs:
        made = record(**vars(run), scores={"linear": 0.5})
        write_record(record_path(tmp_path, run), made | {"where": made["where"] | {"data_digest": digest}})
    return [record_path(tmp_path, run) for run in runs]


def test_a_finished_study_in_a_read_only_folder_is_shown(finished, monkeypatch, capsys) -> None:
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(read_only))
    call = ["study", "data-scale", "--tier", "smoke", "--runs-dir", str(finished[0].parents[1])]
    assert main(call) == 0
    said = capsys.readouterr()
    assert f"{len(finished)} runs, 0 trained now" in said.out and "without notebooks: cannot write" in said.out
    run = Run.from_dict(read_record(finished[0])["run"])
    assert main(pretrain_words(run, Runtime(), str(finished[0].parents[1]), "cpu")) == 0
    finished[0].unlink()
    assert main(call) == 2 and "Read-only file system; it is mounted" in capsys.readouterr().err


def test_a_study_names_what_it_cannot_use_shows_the_rest_and_trains_over_nothing(finished, capsys) -> None:
    content = json.dumps(edited("schema", to=2)(json.loads(finished[0].read_text())))
    finished[0].write_text(content)
    result = study("data-scale", tier="smoke", runs_dir=str(finished[0].parents[1]))
    assert (len(result.records), result.trained) == (len(finished) - 1, 0)
    named = f"passed over: {finished[0]}: made by a later version"
    assert capsys.readouterr().err.count(named) == 1
    assert (
        main(["study", "data-scale", "--tier", "smoke", "--runs-dir", str(finished[0].parents[1]), "--commands"]) == 0
    )
    said = capsys.readouterr()
    assert not said.out.strip() and said.err.count(named) == 1
    with pytest.raises(UserError, match=LATER):
        pretrain(Run.from_dict(json.loads(content)["run"]), runs_dir=finished[0].parents[1])
    assert finished[0].read_text() == content


def test_nothing_speaks_to_the_terminal(tmp_path, capsys) -> None:
    made = record(status="failed", reason="\x1b]0;owned\x07\x1b[2J")
    write_record(record_path(tmp_path, Run.from_dict(made["run"])), made)
    (tmp_path / "records" / "\x1b[2J.json").write_text("")
    assert main(["watch", "--runs-dir", str(tmp_path)]) == 0
    assert "\x1b" not in "".join(capsys.readouterr()) and "\x1b" not in str(UserError("\x1b[2J"))


def test_journals_and_measured_speeds_are_read_or_passed_over(tmp_path, capsys, monkeypatch) -> None:
    start = {"version": 1, "run": RUN.to_dict(), "machine": "m", "start": 0, "curve": [], "time": 1.0}
    point = {"step": 3, "train_loss": 0.5, "time": 2.0}
    odd = [{"time": 1.0}, point | {"step": "x"}, point | {"val_loss": "low"}, point | {"time": None}, [], 3, "x", None]
    odd += [start | {"start": "x"}, start | {"curve": [{"step": "x"}]}, start | {"curve": None}]
    path = journal_path(tmp_path, RUN.key)
    path.parent.mkdir()
    lines = [json.dumps(line) for line in (start, *odd, point)]
    path.write_text("\n".join([*lines, "[" * 100_000, '{"a":' * 100_000, ""]))
    os.mkfifo(path.with_name("x.jsonl"))
    assert read_journal(path).points == [point] and list(look(tmp_path)["step"]) == [3]
    monkeypatch.setattr("simmim_lite.training.pretrain.step_seconds", lambda run, _: 0.5)
    path, one = tmp_path / "machine.json", "cpu batch 16 size 32"
    for content in ("[]", "null", '{"x": 1}', f'{{"{one}": {{"swinv2_atto fp32": 0}}}}', "{" * 100_000):
        path.write_text(content)
        processes.tell_once.cache_clear()
        assert known_speeds(tmp_path, RUN) == {} and f"{path} is passed over" in capsys.readouterr().err
        assert len(step_speeds(tmp_path, [RUN.model], RUN, "cpu")) == 2
    path.write_text(path.read_text().replace("0.5", "0.25", 1))
    assert known_speeds(tmp_path, RUN) == {}
