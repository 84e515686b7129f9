"""Logs as people have them: read, the fault they show named first, and healthy ones let be."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.evidence import diagnose
from simmim_lite.evidence.diagnose import of_text, read
from simmim_lite.lab.mask_lab import FOLDER, shipped_network

STEPS = 200


def curve(first: float, last: float, *, noise: float = 0.02, seed: int = 0, steps: int = STEPS) -> np.ndarray:
    """Losses that fall as trainings do, fast at first."""
    share = np.exp(-np.linspace(0, 6, steps))
    return (last + (first - last) * share) * (1 + noise * np.random.default_rng(seed).standard_normal(steps))


def official(losses, lr=2e-4, **_: object) -> str:
    """As SimMIM's own trainer prints it, fifty lines an epoch."""
    lines = ["[2026-01-01 10:00:00 main] (main_simmim.py 60): INFO Start training"]
    for i, loss in enumerate(losses):
        now = lr[i] if np.ndim(lr) else lr
        head = f"Train: [{i // 50}/100][{i % 50 * 100}/5000]\teta 1:00:00 lr {now:.6f}\ttime 0.5 (0.5)"
        tail = f"loss {loss:.4f} ({loss:.4f})\tgrad_norm 1.2 (1.3)\tmem 9000MB"
        lines.append(f"[2026-01-01 10:00:00 main] (main_simmim.py 150): INFO {head}\t{tail}")
    return "\n".join(lines)


def mae(losses, **_: object) -> str:
    rows = ({"train_lr": 1e-4, "train_loss": loss, "epoch": i} for i, loss in enumerate(losses))
    return "\n".join(json.dumps(row) for row in rows)


def state(losses, val=(), **_: object) -> str:
    history = [{"loss": loss, "learning_rate": 1e-4, "epoch": i / 10, "step": 10 * i} for i, loss in enumerate(losses)]
    history += [{"eval_loss": loss, "step": 10 * i * (len(losses) // len(val))} for i, loss in enumerate(val)]
    return json.dumps({"global_step": 10 * len(losses), "log_history": history})


def table(losses, val=(), **_: object) -> str:
    every = len(losses) // max(1, len(val))
    rows = [f"{i},{loss},{val[i // every] if len(val) and i % every == 0 else ''}" for i, loss in enumerate(losses)]
    return "\n".join(["step,train loss,val_loss", *rows])


def journal(losses, **_: object) -> str:
    rows = [{"version": 1, "start": 0, "curve": [], "time": 1.0}]
    rows += [{"step": i + 1, "train_loss": loss, "lr": 1e-3, "time": 2.0} for i, loss in enumerate(losses)]
    return "\n".join(json.dumps(row) for row in rows)


RISING = np.r_[curve(0.8, 0.5, steps=20, noise=0)[:8], np.linspace(0.55, 0.7, 12)]
DROP = np.where(np.arange(STEPS) < 175, 2e-4, 2e-5)
BROKEN = np.r_[curve(0.9, 0.6)[:120], [math.nan] * 80]
#: name of the file, its text, what comes first.
LOGS = {
    "flat official": ("log_rank0.txt", official(curve(0.81, 0.80)), "flat from the start"),
    "flat json": ("log.txt", mae(curve(1.0, 0.995)), "flat from the start"),
    "NaN official": ("log_rank0.txt", official(BROKEN), "not a number"),
    "NaN csv": ("metrics.csv", table(BROKEN), "not a number"),
    "runs away": ("trainer_state.json", state(np.r_[curve(0.9, 0.5)[:100], np.linspace(0.5, 1.4, 100)]), "runs away"),
    "pixels of 255": ("log.txt", mae(curve(1900.0, 700.0)), "pixels not normalised"),
    "pixels of 1": ("metrics.csv", table(curve(0.22, 0.12)), "target not in standard deviations"),
    "noise": ("log_rank0.txt", official(curve(1.3, 1.25)), "noise level"),
    "leak": ("trainer_state.json", state(curve(0.8, 0.04)), "too good to be true"),
    "leak journal": ("run.jsonl", journal(curve(0.8, 0.05)), "too good to be true"),
    "rising csv": ("metrics.csv", table(curve(0.8, 0.3), RISING), "rising validation"),
    "rising state": ("trainer_state.json", state(curve(0.8, 0.3), RISING), "rising validation"),
    "drop": ("log_rank0.txt", official(curve(0.8, 0.45, noise=0), DROP), "nothing gained at the drop"),
    "healthy official": ("log_rank0.txt", official(np.where(DROP < 1e-4, 0.96, 1) * curve(0.8, 0.47), DROP), None),
    "healthy mae": ("log.txt", mae(curve(1.0, 0.45)), None),
    "healthy csv": ("metrics.csv", table(curve(0.8, 0.4), curve(0.8, 0.42, steps=20, noise=0)), None),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_shows_its_fault_first_and_a_healthy_one_none(name: str, tmp_path) -> None:
    file, text, cause = LOGS[name]
    (tmp_path / file).write_text(text)
    found = diagnose.diagnose(tmp_path / file)
    assert [one.name for one in found.findings[:1]] == ([cause] if cause else []), found.findings
    assert found.verdict == ("sick" if cause else "healthy") and len(found.points) >= STEPS
    for one in found.findings:
        assert one.sure in diagnose.TABLE["sure"] and "{" not in one.says and one.next


@pytest.mark.parametrize("losses", [curve(0.8, 0.5)[:9], [0.8] * 3, curve(0.8, 0.78, noise=0, steps=15)])
def test_nothing_is_called_sick_on_little_evidence(losses, tmp_path) -> None:
    (tmp_path / "m.csv").write_text(table(losses))
    found = diagnose.diagnose(tmp_path / "m.csv")
    assert found.verdict == "too short to say" or {one.sure for one in found.findings} == {"possible"}


def test_folders_tensorboard_and_records(tmp_path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "tb"))
    for step, loss in enumerate(curve(0.8, 0.5, steps=60)):
        writer.add_scalar("train_loss", loss, step)
    writer.close()
    layout, points = read(tmp_path / "tb")
    assert layout == "TensorBoard" and len(points) == 60 and abs(points[0].train - 0.8) < 0.1
    for name, tag in (("train", "train_loss"), ("val", "val_loss")):
        writer = SummaryWriter(str(tmp_path / "two" / name))
        writer.add_scalar(tag, 0.5, 1)
        writer.close()
    assert read(tmp_path / "two")[1] == [(1.0, 0.5, 0.5, None)], "a folder a tag is one run"
    with pytest.raises(UserError, match="several logs have train losses, .*tb and .*train: give the folder of one run"):
        read(tmp_path)
    states = {k: {"log_history": [{"step": k, "loss": 0.5}, {"step": k, "train_runtime": 9, "train_loss": 0.7}]}
              for k in (500, 1000)}  # fmt: skip
    for k, state in states.items():
        (tmp_path / "hf" / f"checkpoint-{k}").mkdir(parents=True)
        (tmp_path / "hf" / f"checkpoint-{k}" / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "hfs" / "other" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "hfs" / "other" / "checkpoint-9" / "trainer_state.json").write_text(json.dumps(states[500]))
    shutil.copytree(tmp_path / "hf", tmp_path / "hfs" / "one")
    with pytest.raises(UserError, match="several logs, .*: give one"):
        read(tmp_path / "hfs")
    assert read(tmp_path / "hf")[1] == [(1000.0, 0.5, None, None)], "the furthest, and no mean of the whole run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text(mae(curve(1.0, 0.5)))
    assert read(tmp_path / "run")[0] == "JSON lines"
    curves = {"kind": "pretrain", "curve": [{"step": 10, "train_loss": 0.7, "val_loss": 0.6, "lr": 1e-3}]}
    assert of_text(json.dumps(curves))[1] == [(10.0, 0.7, 0.6, 1e-3)]
    (tmp_path / "tuned.json").write_text(json.dumps(curves | {"kind": "finetune"}))
    with pytest.raises(UserError, match="a record without a curve of pretraining losses"):
        read(tmp_path / "tuned.json")


def test_what_cannot_be_read_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "x.csv").write_text("time,accuracy\n1,2\n")
    (tmp_path / "empty").mkdir()
    for path, words in (
        ("x.csv", "looked for columns step:"),
        ("empty", "no log in this folder"),
        ("no.txt", "No such file"),
    ):
        with pytest.raises(UserError, match=words):
            read(tmp_path / path)
    assert main(["diagnose", str(tmp_path / "x.csv")]) == 2 and capsys.readouterr().err.count("\n") == 1
    (tmp_path / "log.txt").write_text(mae(curve(1.0, 0.45)))
    assert main(["diagnose", str(tmp_path / "log.txt")]) == 0
    said = capsys.readouterr().out
    assert "healthy" in said and "the mean colour buys about 1," in said


@pytest.mark.parametrize("name, target, most", [("scenes", "raw", 0.4), ("photos-normalised", "normalized", 0.9)])
def test_a_checkpoint_is_looked_at(name, target, most, tmp_path, capsys) -> None:
    about = shipped_network(name).about
    words = f"diagnose --weights {FOLDER / name}.safetensors --model {about['model']} --target {target}"
    words += f" --image-size {about['side']} --window-size {about['window']} --out {tmp_path}/x.png"
    assert main(words.split()) == 0
    said = capsys.readouterr().out
    assert (
        float(re.search(r"loss on hidden pixels ([.\d]+) over 8 pictures", said)[1]) < most and "deviation 0." in said
    )
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (8 * 128, 3 * 128)
    assert "From above: picture, seen, filled in." in (tmp_path / "x.html").read_text()
    assert main(["diagnose"]) == 2 and "nothing to look at" in capsys.readouterr().err
