"""The command line: every wrong input is one line and exit status 2; what works says where its result lies."""

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simmim_lite import cli, processes
from simmim_lite.training import run as run_module

TINY = [
    "--images", "16", "--steps", "4", "--batch-size", "8", "--val-images", "8", "--val-masks", "1",
    "--probe-labels", "40", "--probe-test", "20", "--eval-every", "2",
]  # fmt: skip


def call(capsys, *words: str) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    try:
        status = cli.main([str(w) for w in words])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def photos(folder, sizes=((40, 40),) * 12, classes=("a", "b")) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["study", "datascale"], "unknown study 'datascale': did you mean 'data-scale'"),
        (["study", "all", "--tier", "huge"], "unknown tier 'huge'"),
        (["study", "all", "--data", "scnes"], "unknown data 'scnes': did you mean 'scenes'"),
        (["study", "all", "--data", "imagefolder:nowhere"], "nowhere"),
        (["study"], "the following arguments are required: name"),
        (["study", "all", "--sede", "1"], "unknown option --sede: did you mean --seed"),
        (["study", "all", "spare"], "unknown: spare (see simmim-lite study --help)"),
        (["studdy"], "unknown verb 'studdy': did you mean 'study'?"),
        (["study", "all", "--dry-run", "--data", "imagefolder:nowhere"], "imagefolder:nowhere: no such folder"),
        (["study", "all", "--commands", "--data", "imagefolder:nowhere"], "imagefolder:nowhere: no such folder"),
        (["study", "all", "--dry-run", "--data", "scnes"], "unknown data 'scnes': did you mean 'scenes'"),
        (["study", "all", "--dry-run", "--device", "tpu"], "unknown device 'tpu'"),
        (["study", "all", "--dry-run", "--precision", "fp61"], "unknown precision 'fp61'"),
        (["study", "all", "--dry-run", "--engine", "rey"], "unknown engine 'rey': did you mean 'ray'"),
        (["study", "all", "--dry-run", "--log-to", "tensorbord"], "unknown log 'tensorbord'"),
        (["study", "all", "--commands", "--gpus-per-run", "0"], "gpus_per_run is 0: give a whole number from 1"),
        (["study", "all", "--seeds", "1.5"], "'1.5' is not a whole number, as in 64, 1_000, 1e4 or 200k"),
        (["study", "all", "--workers", "-1"], "workers is -1: give a whole number from 0"),
        (["study", "all", "--runs-dir", ""], "--runs-dir: is empty: give a value, or leave it out"),
        (["study", "all", "--dry-run", "--tier", "huge"], "unknown tier 'huge'"),
        (["study", "nope", "--no-notebooks"], "unknown study 'nope'"),
        (["records"], "the following arguments are required: ACTION"),
        (["records", "inport", "a.csv"], "unknown action 'inport': did you mean 'import'"),
        (["pretrain", "--model", "swinv2_fento"], "did you mean 'swinv2_femto'"),
        (["pretrain", "--steps", "-5"], "steps is -5: give a whole number from 0"),
        (["pretrain", "--steps", "many"], "--steps: 'many' is not a whole number, as in 64, 1_000, 1e4 or 200k"),
        (["pretrain", "--steps", "1.000"], "'1.000' is not a whole number"),
        (["pretrain", "--batch_size", "0"], "batch_size is 0: give a whole number from 1"),
        (["pretrain", "--batchsize", "8"], "did you mean --batch-size? (see simmim-lite pretrain --help)"),
        (["pretrain", "--images", "1e20"], "images is 100000000000000000000: give a whole number from 1"),
        (["pretrain", "--lr", "nan"], "argument --lr: 'nan' is not a number"),
        (["pretrain", "--lr", "1e400"], "argument --lr: '1e400' is not a number"),
        (["pretrain", "--betas", "0.9", "1"], "betas is [0.9, 1.0]: give 2 numbers, each a number from 0 to below 1"),
        (["pretrain", "--film", "-1"], "film is -1: give a whole number from 0"),
        (["pretrain", "--model", "swinv2_tiny"], "unknown model 'swinv2_tiny': did you mean 'swinv2_small'"),
        (["pretrain", "--data", ""], "--data: is empty: give a value, or leave it out"),
        (["transfer", "--set", "labels=many"], "labels is 'many': give a whole number from 1"),
        (["transfer", "--task", "classify", "--set", "betas=0.9"], "betas is '0.9': give 2 numbers"),
        (
            ["transfer", "--task", "classify", "--set", "batch_size=0", "--recipe", "imagenet-100ep"],
            "batch_size is '0'",
        ),
        (["transfer", "--task", "classify", "--set", "scratch=3"], "scratch is '3': give a dictionary"),
        (["transfer", "--task", "detect", "--set", "short_sides=[24"], "short_sides is '[24': give a list"),
        (["pretrain", "--mask-ratio", "0"], "mask_ratio is 0.0: give a number above 0 and below 1"),
        (["pretrain", "--mask-ratio", "1"], "mask_ratio is 1.0"),
        (["pretrain", "--mask-ratio", "1.2"], "mask_ratio is 1.2"),
        (["pretrain", "--mask-patch", "12"], "mask_patch 12 does not divide"),
        (["pretrain", "--window-size", "16"], "window_size 16 is larger than the first stage's map, 8 x 8"),
        (["pretrain", "--device", "cudda"], "unknown device 'cudda': did you mean 'cuda'"),
        (["transfer", "--task", "prob"], "unknown task 'prob': did you mean 'probe'"),
        (["manifest", "verify", "nothing"], "nothing"),
        (["weights", "convert", "nowhere.pth", "out.pth", "--model", "swinv2_small"], "nowhere.pth"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = call(capsys, *words)
    assert status == 2
    assert line in errors
    assert errors.startswith("simmim-lite: ")
    assert errors.count("\n") == 1


def test_debug_shows_the_traceback(capsys) -> None:
    with pytest.raises(ValueError, match="unknown study"):
        cli.main(["study", "nope", "--debug"])
    with pytest.raises(ValueError, match="unknown study"):
        cli.main(["--debug", "study", "nope"])


def test_pretrain_and_transfer_say_what_came_of_it(capsys, tmp_path) -> None:
    status, out, _ = call(capsys, "pretrain", *TINY, "--runs-dir", tmp_path)
    assert status == 0
    assert "validation loss" in out
    path = out.split("record: ")[1].strip()
    assert json.loads(Path(path).read_text())["run"]["steps"] == 4
    status, out, _ = call(capsys, "transfer", *TINY, "--runs-dir", tmp_path)
    assert status == 0
    assert all(name in out for name in ("linear", "knn", "segment", "lift"))


def test_folder_with_bad_pictures(capsys, tmp_path) -> None:
    """One corrupt and one tiny image among good ones are named and left out; a folder of nothing is one line."""
    photos(tmp_path / "good")
    (tmp_path / "good" / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    Image.new("RGB", (5, 5)).save(tmp_path / "good" / "b" / "tiny.png")
    words = ["pretrain", *TINY, "--val-images", "2", "--probe-labels", "0", "--runs-dir", tmp_path / "runs", "--data"]
    status, _, errors = call(capsys, *words, f"imagefolder:{tmp_path / 'good'}")
    assert status == 0
    assert "broken.jpg" in errors
    assert "tiny.png" in errors
    (tmp_path / "empty").mkdir()
    status, _, errors = call(capsys, *words, f"imagefolder:{tmp_path / 'empty'}")
    assert (status, errors.count("\n")) == (2, 1)
    assert str(tmp_path / "empty") in errors
    photos(tmp_path / "small", sizes=((20, 24),) * 4)
    status, _, errors = call(capsys, *words, f"imagefolder:{tmp_path / 'small'}")
    assert status == 2
    assert "image-size" in errors.splitlines()[-1] or "image_size" in errors.splitlines()[-1]


def test_runs_folder_that_cannot_be_written(capsys, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for words in (["pretrain", *TINY], ["study", "all", "--tier", "smoke", "--no-notebooks"]):
        status, _, errors = call(capsys, *words, "--runs-dir", tmp_path / "file" / "runs")
        assert status == 2
        assert "cannot write" in errors.splitlines()[-1]
        assert "--runs-dir" in errors.splitlines()[-1]


def test_full_disk(capsys, tmp_path, monkeypatch) -> None:
    """The disk fills up in the middle: one line, no half file; with space again the run goes on."""
    real, written = os.fsync, []

    def filling(handle: int) -> None:
        written.append(handle)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(run_module.os, "fsync", filling)
    status, _, errors = call(capsys, "pretrain", *TINY, "--runs-dir", tmp_path)
    assert status == 2
    assert "No space left on device; free some space" in errors.splitlines()[-1]
    assert not list((tmp_path / "records").glob("*"))
    monkeypatch.setattr(run_module.os, "fsync", real)
    assert call(capsys, "pretrain", *TINY, "--runs-dir", tmp_path)[0] == 0


def test_weights_convert(capsys, tmp_path) -> None:
    from simmim_lite import create_model, save_weights

    save_weights(create_model("swinv2_atto", seed=1), tmp_path / "own.safetensors")
    words = ["weights", "convert", tmp_path / "own.safetensors", tmp_path / "official.pth", "--model", "swinv2_atto"]
    status, out, errors = call(capsys, *words, "--layout", "official")
    assert status == 0, errors
    assert "written" in out
    state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    assert "encoder.mask_token" in state
    status, out, errors = call(capsys, *words[:3], tmp_path / "hf", *words[4:], "--layout", "hf", "--window-size", 2)
    assert status == 0, errors
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["image_size"], config["window_size"], config["num_heads"]) == (32, 2, [1, 2])


@pytest.mark.parametrize(
    ("source", "target", "options", "line"),
    [
        ("short.pth", "x.pth", "", "short.pth cannot be read"),
        ("own.pth", "x.pth", "--model swinv2_femto", "load it into swinv2_atto"),
        ("none.pth", "x.pth", "", "none.pth: no such file"),
        ("READ", "x.pth", "--layout hff", "unknown layout 'hff': did you mean 'hf'?"),
        ("READ", "x", "", "x: its suffix says no kind of file: give one of .safetensors, .pth"),
        ("READ", "x.safetensor", "", "x.safetensor: its suffix says no kind of file"),
        ("READ", "own.pth", "--layout hf", "own.pth is a file, and layout hf is a folder of model.safetensors and"),
        ("READ", ".", "", "is a folder: give a file in it, as in"),
        ("READ", "own.pth/below/x.pth", "", "own.pth is no folder; choose another place"),
        ("own.pth", "own.pth", "--layout timm", "own.pth is the file to read, too"),
        ("READ", "x.pth", "--image-size 64", "--image-size and --window-size go into the config.json of layout hf"),
        ("READ", "hf", "--layout hf --image-size 60", "image_size 60 is no multiple of swinv2_atto's final stride 8"),
        ("READ", "hf", "--layout hf --window-size 5", "window_size 5 does not divide stage 1's map"),
        ("READ", "x.pth", "--model swinv2_attoo", "unknown model 'swinv2_attoo': did you mean 'swinv2_atto'"),
    ],
)
def test_a_wrong_conversion_is_one_line_before_anything_is_read(
    source, target, options, line, capsys, tmp_path, monkeypatch
) -> None:
    """READ: a file that must not be opened."""
    from simmim_lite import create_model, save_weights
    from simmim_lite.model import weights

    own = save_weights(create_model("swinv2_atto"), tmp_path / "own.pth")
    (tmp_path / "short.pth").write_bytes(own.read_bytes()[:5000])
    if source == "READ":
        monkeypatch.setattr(weights, "load_weights", lambda *_: pytest.fail("it was read"))
        (tmp_path / "READ").touch()
    words = ["weights", "convert", tmp_path / source, tmp_path / target, "--model", "swinv2_atto", *options.split()]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    status, _, errors = call(capsys, *words)
    assert (status, errors.count("\n")) == (2, 1)
    assert line in errors
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "words",
    [
        "papermill 04_data_scale --out",
        "gallery --out",
        "site --out",
        "manifest build imagenet1k-10 FOLDER --out",
        "data pack imagefolder:FOLDER",
        "weights convert FOLDER --model swinv2_giant --layout hf",
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(words, capsys, tmp_path) -> None:
    (tmp_path / "file").touch()
    words = words.replace("FOLDER", str(tmp_path)).split()
    status, out, errors = call(capsys, *words, tmp_path / "file" / "x")
    assert (status, out, errors.count("\n")) == (2, "", 1)
    assert f"cannot write {tmp_path / 'file' / 'x'}: {tmp_path / 'file'} is no folder; choose another place" in errors


def test_a_missing_file_is_said_before_another_is_scored(capsys, tmp_path, monkeypatch) -> None:
    from simmim_lite.data import sources

    monkeypatch.setattr(sources, "open_streamed", lambda *_: pytest.fail("pictures were opened"))
    (tmp_path / "there.pth").touch()
    words = ["weights", "score", tmp_path / "there.pth", tmp_path / "none.pth", "--model", "swinv2_base"]
    status, _, errors = call(capsys, *words, "--data", f"imagefolder:{tmp_path}")
    assert status == 2 and errors.count("\n") == 1 and "none.pth: no such file" in errors


def test_under_torchrun_one_process_says_a_line_and_all_leave_it(capsys, tmp_path, monkeypatch) -> None:
    """Whichever comes first says it; of what all raise at once, the main one. torchrun finds it in every file."""
    for words, line, speakers in (
        (["pretrain", "--nonsense", "8"], "--nonsense", [1]),
        (["plan", "--images", "0", "--budget-flops", "1e20"], "images is 0", [1]),
    ):
        folder, said = tmp_path / words[0], []
        for rank in (1, 0):
            (folder / str(rank)).mkdir(parents=True)
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / str(rank) / "error.json"))
            status, _, errors = call(capsys, *words)
            said += [rank] if line in errors else []
            left = json.loads((folder / str(rank) / "error.json").read_text())["message"]
            assert status == 2 and line in left["message"] == left["extraInfo"]["py_callstack"]
        assert said == speakers
    assert processes.first_to_say("more") and not processes.first_to_say("more", False)


def test_a_long_wait_is_said(capsys) -> None:
    with processes.waiting("a short one", 60):
        pass
    said, end = "", time.monotonic() + 60
    with processes.waiting("a long one", 0.01):
        while not said and time.monotonic() < end:
            said += capsys.readouterr().err
    assert said == "simmim-lite: a long one\n"
