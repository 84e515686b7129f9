"""Run, its key, its schedule, and the atomic write."""

import dataclasses
import errno
import json
import os
import re
from dataclasses import replace

import pytest

from simmim_lite.errors import UserError
from simmim_lite.training import run as module
from simmim_lite.training.run import Run, new_record, read_record, record_path, write_atomic, write_record


def test_key_is_readable_and_covers_every_field() -> None:
    base = Run(images=64)
    assert re.fullmatch(r"atto-scenes-n64-t1000-s0-[0-9a-f]{10}", base.key)
    other = {
        "model": "swinv2_femto", "data": "imagefolder:a", "images": 65, "steps": 7, "seed": 1, "subset_seed": 0,
        "batch_size": 32, "image_size": 64, "window_size": 8, "mask_patch": 16, "mask_ratio": 0.5,
        "mask_strategy": "block", "target": "normalized", "target_window": 9, "augment": "none",
        "statistics": "imagenet", "lr": 1e-3, "warmup_steps": 1, "weight_decay": 0.1, "betas": (0.9, 0.99),
        "clip_grad": 1.0, "drop_path": 0.1, "precision": "bf16", "eval_every": 9, "val_images": 9, "val_masks": 9,
        "probe_labels": 9, "probe_test": 9, "recipe_version": 99,
    }  # fmt: skip
    assert other.keys() == {f.name for f in dataclasses.fields(Run)}
    keys = {dataclasses.replace(base, **{name: value}).key for name, value in other.items()}
    assert len(keys) == len(other)
    assert base.key not in keys


def test_keys_do_not_depend_on_where_a_run_was_made() -> None:
    run = Run(images=64, betas=[0.9, 0.99])
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    assert Run(data="imagefolder:/a/b/").key == Run(data="imagefolder:/a/b").key
    assert Run(data="imagefolder:/a/b").key.startswith("atto-b-nall")
    assert Run(data="torchvision:CIFAR10").key.startswith("atto-CIFAR10-nall")
    assert Run(steps=250).trunk_key == Run(steps=1000).trunk_key != Run(steps=250, seed=1).trunk_key
    with pytest.raises(UserError, match="unknown field of Run 'step': did you mean 'steps'"):
        Run.from_dict({"step": 3})
    assert {s: Run(image_size=s).norm_window for s in (32, 64, 192, 224)} == {32: 7, 64: 15, 192: 47, 224: 55}
    assert Run(target_window=11).norm_window == 11


def test_learning_rate_by_hand() -> None:
    run = Run(steps=1000, lr=4e-3, warmup_steps=50)
    assert run.drop_step == 875
    assert run.lr_at(0) == pytest.approx(2e-5)
    assert run.lr_at(25) == pytest.approx((2e-5 + 4e-3) / 2)
    assert run.lr_at(50) == run.lr_at(874) == pytest.approx(4e-3)
    assert run.lr_at(875) == run.lr_at(999) == pytest.approx(4e-4)
    assert Run(steps=500_000).drop_step == 437_500  # docs/facts.md, 3
    for step in range(218):  # lengths share their trunk exactly
        assert replace(run, steps=250).lr_at(step) == run.lr_at(step)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "swinv2_picco"}, ["swinv2_picco", "did you mean 'swinv2_pico'"]),
        ({"mask_ratio": 0.0}, ["mask_ratio", "0.0", "above 0 and below 1"]),
        ({"mask_ratio": 0.95}, ["mask_ratio 0.95 hides all 16 cells", "smaller mask_patch"]),
        ({"mask_patch": 32}, ["hides all 1 cells of 32 px"]),
        ({"mask_patch": 7}, ["mask_patch 7", "4, 8, 16, 32"]),
        ({"window_size": 9}, ["window_size 9", "8 x 8", "at most 8"]),
        ({"window_size": 3}, ["window_size 3", "try one of 2, 4, 8"]),
        ({"image_size": 36}, ["image_size 36", "final stride 8", "try 32"]),
        ({"precision": "fp61"}, ["fp61", "did you mean"]),
        ({"target": "normalised"}, ["normalised", "did you mean 'normalized'"]),
    ],
)
def test_bad_fields_get_one_line(fields: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Run(**fields)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_record_round_trip_and_refusals(tmp_path) -> None:
    run = Run(images=64)
    path = record_path(tmp_path, run)
    assert read_record(path) is None
    record = new_record(run, status="done", final={"val_loss": 0.25}, where={})
    write_record(path, record)
    assert read_record(path) == record
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(path, new_record(run, status="done", final={"val_loss": float("nan")}))
    assert read_record(path) == record
    for junk in ("", "{", "[]", '{"schema": 999}', '{"schema": 1}'):
        path.write_text(junk)
        with pytest.raises(UserError, match="delete the file"):
            read_record(path)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a" / "file"
    write_atomic(path, "first")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*No space left on device; free some space"):
        write_atomic(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*--runs-dir"):
        write_atomic(tmp_path / "file" / "record.json", "")
