"""The command line: every wrong input is one line and exit status 2; what works says where its result lies."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from simmim_lite import cli, create_model, processes, save_weights
from simmim_lite.model import weights
from simmim_lite.model.swin import log_coordinates

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


ERRORS = {
    "study datascale": "unknown study 'datascale': did you mean 'data-scale'",
    "study all --data scnes": "unknown data 'scnes': did you mean 'scenes'",
    "study all --sede 1": "unknown option --sede: did you mean --seed",
    "study all spare": "unknown: spare (see simmim-lite study --help)",
    "studdy": "unknown verb 'studdy': did you mean 'study'?",
    "study all --dry-run --data imagefolder:nowhere": "imagefolder:nowhere: no such folder",
    "study all --minutes 0 --no-notebooks": "minutes is 0.0: give a number above 0",
    "study all --minutes 5 --seeds 6 --no-notebooks": "seeds fixes the number",
    "study all --tier shipped --seeds 3": "seeds is 3, and tier shipped trains nothing: leave it out",
    "study all --tier shipped -p seeds 3": "seeds is 3, and tier shipped trains nothing: leave it out",
    "study all --first-seed 300 -p seeds 7,8": "first_seed is 300, and seeds says which they are",
    "study all --no-notebooks -p modles swinv2_atto": "modles",
    "study all --nodes 4": "--nodes is 4, which is about --commands",
    "watch --runs-dir . --tier gpu --hours 3": "tier, hours would be about a study, and none is named",
    "study all --seeds 1.5": "'1.5' is not a whole number, as in 64, 1_000, 1e4 or 200k",
    "study all --tier smoke --commands --gpus-per-run 3": "gpus_per_run 3 does not divide the batch of 16",
    "plan --images 1,281,167 --budget-flops inf": "argument --budget-flops: 'inf' is not a number",
    "plan --budget-flops 1e20": "--images",
    "records": "the following arguments are required: ACTION",
    "pretrain --model swinv2_tiny": "unknown model 'swinv2_tiny': did you mean 'swinv2_small'",
    "pretrain --steps -5": "steps is -5: give a whole number from 0",
    "pretrain --batch_size 0": "batch_size is 0: give a whole number from 1",
    "pretrain --batchsize 8": "did you mean --batch-size? (see simmim-lite pretrain --help)",
    "pretrain --betas 0.9 1": "betas is [0.9, 1.0]: give 2 numbers, each a number from 0 to below 1",
    "pretrain --mask-patch 12": "mask_patch 12 does not divide",
    "pretrain --device cudda": "unknown device 'cudda': did you mean 'cuda'",
    "transfer --task classify --set batch_size=0 --recipe imagenet-100ep": "batch_size is '0'",
    "manifest verify nothing": "nothing",
    "weights score THERE none.pth --model swinv2_base --data imagefolder:.": "none.pth: no such file",
    "pretrain --steps 4 --runs-dir FILE/runs": "cannot write FILE/runs",
    "study all --tier smoke --no-notebooks --runs-dir FILE/runs": "cannot write FILE/runs",
    "data pack imagefolder:. FILE/x": "cannot write FILE/x",
    "weights convert . FILE/x --model swinv2_giant --layout hf": "cannot write FILE/x",
}


@pytest.mark.parametrize("words", ERRORS)
def test_wrong_input_is_one_line_before_any_work(words: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FILE", "THERE"):
        (tmp_path / name).touch()
    status, out, errors = call(capsys, *words.split())
    assert (status, out) == (2, "")
    assert ERRORS[words].replace("FILE", str(tmp_path / "FILE")) in errors
    assert errors.startswith("simmim-lite: ") and errors.count("\n") == 1


def test_debug_shows_the_traceback(capsys) -> None:
    with pytest.raises(ValueError, match="unknown study"):
        cli.main(["study", "nope", "--debug"])


def test_pretrain_and_transfer_say_what_came_of_it(capsys, tmp_path) -> None:
    status, out, _ = call(capsys, "pretrain", *TINY, "--runs-dir", tmp_path)
    assert status == 0 and "validation loss" in out
    assert json.loads(Path(out.split("record: ")[1].strip()).read_text())["run"]["steps"] == 4
    status, out, _ = call(capsys, "transfer", *TINY, "--runs-dir", tmp_path)
    assert status == 0 and all(name in out for name in ("linear", "knn", "segment", "lift"))


def test_full_disk(capsys, tmp_path, monkeypatch) -> None:
    """The disk fills up in the middle: one line, no half file; with space again the run goes on."""
    real, written = os.fsync, []

    def filling(handle: int) -> None:
        written.append(handle)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr("os.fsync", filling)
    status, _, errors = call(capsys, "pretrain", *TINY, "--runs-dir", tmp_path)
    assert status == 2
    assert "No space left on device; free some space" in errors.splitlines()[-1]
    assert not list((tmp_path / "records").glob("*"))
    monkeypatch.setattr("os.fsync", real)
    assert call(capsys, "pretrain", *TINY, "--runs-dir", tmp_path)[0] == 0


def test_weights_convert(capsys, tmp_path) -> None:
    own = save_weights(create_model("swinv2_atto", seed=1), tmp_path / "own.safetensors")
    words = ["weights", "convert", own, tmp_path / "hf", "--model", "swinv2_atto"]
    status, out, errors = call(capsys, *words, "--layout", "hf", "--window-size", 2)
    assert status == 0 and "written" in out, errors
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["image_size"], config["window_size"], config["num_heads"]) == (32, 2, [1, 2])
    assert config["pretrained_window_sizes"] == [0, 0] and config["num_channels"] == 3
    # a file that tells the window of its pretraining, as the official ones do
    name, grid = "encoder.layers.{}.blocks.0.attn.relative_coords_table", log_coordinates((6, 6), 8)[None]
    table = {name.format(stage): grid for stage in (0, 1)}
    torch.save(create_model("swinv2_atto", seed=1).state_dict() | table, tmp_path / "eight.pth")
    words[2:4] = tmp_path / "eight.pth", tmp_path / "eight"
    assert call(capsys, *words, "--layout", "hf")[0] == 0
    assert json.loads((tmp_path / "eight" / "config.json").read_text())["pretrained_window_sizes"] == [8, 8]


@pytest.mark.parametrize(
    ("source", "target", "options", "line"),
    [
        ("short.pth", "x.pth", "", "short.pth cannot be read"),
        ("own.pth", "x.pth", "--model swinv2_femto", "load it into swinv2_atto"),
        ("none.pth", "x.pth", "", "none.pth: no such file"),
        ("READ", "x", "", "x: its suffix says no kind of file: give one of .safetensors, .pth"),
        ("READ", "own.pth", "--layout hf", "own.pth is a file, and layout hf is a folder of model.safetensors and"),
        ("own.pth", "own.pth", "--layout timm", "own.pth is the file to read, too"),
        ("READ", "x.pth", "--image-size 64", "--image-size and --window-size go into the config.json of layout hf"),
        ("READ", "hf", "--layout hf --image-size 60", "image_size 60 is no multiple of swinv2_atto's final stride 8"),
    ],
)
def test_a_wrong_conversion_is_one_line_before_anything_is_read(
    source, target, options, line, capsys, tmp_path, monkeypatch
) -> None:
    """READ: a file that must not be opened."""
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


def test_under_torchrun_one_process_says_a_line_and_all_leave_it(capsys, tmp_path, monkeypatch) -> None:
    """Whichever comes first says it; of what all raise at once, the main one. torchrun finds it in every file."""
    said = []
    for rank in (1, 0):
        (tmp_path / str(rank)).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        status, _, errors = call(capsys, "pretrain", "--nonsense", "8")
        said += [rank] if "--nonsense" in errors else []
        left = json.loads((tmp_path / str(rank) / "error.json").read_text())["message"]
        assert status == 2 and "--nonsense" in left["message"] == left["extraInfo"]["py_callstack"]
    assert said == [1]
    assert processes.first_to_say("more") and not processes.first_to_say("more", False)


def test_a_long_wait_is_said(capsys) -> None:
    with processes.waiting("a short one", 60):
        pass
    with processes.waiting("a long one", 0.01):
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer) and timer.function is print:
                timer.join()
    assert capsys.readouterr().err == "simmim-lite: a long one\n"
