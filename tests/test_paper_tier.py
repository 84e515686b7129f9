"""Tier paper: the published cells as Runs; what runs cost and how fast a machine is, before anything starts."""

import csv
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from picture_folders import fill
from test_cli import call

from simmim_lite import studies
from simmim_lite.data import manifests
from simmim_lite.errors import UserError
from simmim_lite.model.sizes import SIZES
from simmim_lite.studies import costs, grids, notebooks
from simmim_lite.studies.grids import grid, left_out, plan_of, sources, tunings
from simmim_lite.studies.tiers import BY_SIZE, LEVELS, RECIPE, STUDIES, TIERS, WHOLE_22K
from simmim_lite.training.run import Run

TWO = "imagefolder:one + imagefolder:two"
PAPER = ["study", "all", "--tier", "paper"]
HELD = {"available": LEVELS[-1], "second_available": WHOLE_22K}


@pytest.fixture
def whole(monkeypatch) -> None:
    """Both sources of TWO, as if they were there with all their pictures."""
    for module in (grids, costs, notebooks):
        monkeypatch.setattr(module, "images_of", lambda data: HELD if "+" in data else {})
    monkeypatch.setattr(grids, "_check_sides", lambda *_: None)


def folder(place: Path, count: int, side: int, split: str = "") -> str:
    """A source of so many pictures in two classes."""
    for name in ("ants", "bees"):
        fill(place / split / name, count // 2, (side, side))
    return f"imagefolder:{place}"


def test_all_is_the_published_grid_cell_by_cell() -> None:
    with (files("simmim_lite.evidence") / "published_runs.csv").open(newline="") as file:
        published = {(r["model"], int(r["unique_images"]), int(r["iterations"])) for r in csv.DictReader(file)}
    runs = grid("all", "paper", data=TWO)
    assert len(runs) == len({run.key for run in runs}) == 63 and len({run.trunk_key for run in runs}) == 21
    assert {(r.model, r.images, r.steps) for r in runs} == published
    assert {(r.data[-3:], r.images == WHOLE_22K) for r in runs} == {("one", False), ("two", True)}
    found = {study: grid(study, "paper", data=TWO) for study in STUDIES}
    assert [len(some) for some in found.values()] == [21, 21, 63, 63]
    assert {run.steps for run in found["data-scale"]} == {500_000} and set(found["data-scale"]) <= set(runs)
    assert tunings("all", "paper") == []


def test_the_recipe_is_the_released_one() -> None:
    run = next(r for r in grid("all", "paper") if r.model == "swinv2_base" and r.steps == 500_000)
    released = {
        "image_size": 192, "window_size": 12, "mask_patch": 32, "mask_ratio": 0.6, "target": "normalized",
        "target_window": 47, "statistics": "imagenet", "augment": "picture-crop+flip", "batch_size": 2048, "lr": 4e-4,
        "betas": (0.9, 0.999), "weight_decay": 0.05, "drop_path": 0.1, "clip_grad": 5.0, "precision": "bf16",
        "recipe_version": 1, "drop_step": 437_500,
    }  # fmt: skip
    assert {name: getattr(run, name) for name in released} == released
    rates = {0: 2e-6, 6250: 4e-4, 437_499: 4e-4, 437_500: 4e-5, 499_999: 4e-5}
    assert {step: run.lr_at(step) for step in rates} == pytest.approx(rates)
    assert set(BY_SIZE) == set(TIERS["paper"].models)
    found = [yaml.safe_load(path.read_text()) for path in manifests.SHIPPED.glob("imagenet*.yaml")]
    assert sorted(c["subsets"][0]["images"] or c["images"] for c in found) == [*LEVELS, WHOLE_22K]
    assert {content["seed"] for content in found} == {RECIPE.subset_seed}


def test_data_names_one_source_or_two_and_levels_that_they_cannot_fill_are_left_out() -> None:
    for data, expected in (
        (" imagefolder:a/ + imagefolder:b/ ", ("imagefolder:a", "imagefolder:b")),
        ("imagefolder:a+hf:me/b", ("imagefolder:a", "hf:me/b")),
        ("imagefolder:c++ + d", ("imagefolder:c++ + d", None)),
    ):
        assert sources(data) == expected
    for tier, data, line in (("quick", TWO, "tier quick takes one, imagefolder:one"), ("paper", TWO + " + hf:x", "3")):
        with pytest.raises(UserError, match=f"names .*{line}"):
            grid("all", tier, data=data)
    few = grid("all", "paper", data=TWO, available=300_000, second_available=WHOLE_22K)
    assert {r.images for r in few} == {128_117, 300_000, WHOLE_22K}
    assert not any(r.model == "swinv2_huge" and r.images == 128_117 for r in few)
    tuned, specs = plan_of("transfer", "paper", data=TWO, available=LEVELS[-1], second_available=5_000_000)
    assert max(run.images for run in tuned) == 5_000_000  # all that the second one holds
    assert {spec.data for spec in specs} == {"imagefolder:one"}, "fine-tuned on labels of the first"
    photographs = {"data": "imagefolder:a"}
    assert grid("all", "gpu", **photographs) == grid("all", TIERS["gpu"].on("imagefolder:a"), **photographs)
    line = left_out("paper", "imagefolder:one", {"available": 300_000, "labelled": 0})
    assert "256,233, 640,584, 1,281,167, 14,197,122" in line and "--data" in line
    assert left_out("paper", TWO, HELD) == ""


def test_costs_count_shared_trunks_once(tmp_path) -> None:
    found = costs.costs(grid("all", "paper"), dict.fromkeys(BY_SIZE, 1000.0), "nowhere")
    cell = 500_000 + (250_000 - 218_750) + (125_000 - 109_375)
    assert list(found.runs) == [12, 15, 15, 12, 9, 63] and list(found.trunks) == [4, 5, 5, 4, 3, 21]
    base, size, whole = found.loc["base (87 M)"], SIZES["swinv2_base"], found.loc["all"]
    assert base.images == 5 * cell * 2048 and whole.steps == 21 * cell == 11_484_375
    assert base.flops == pytest.approx(6e9 * size.gmac(192, 12, head=True) * base.images)
    assert base.hours == pytest.approx(base.images / 1000 / 3600)


def test_speed_is_given_measured_or_assumed_and_never_guessed(tmp_path, monkeypatch) -> None:
    runs = grid("all", "paper")
    assert costs.find_speed(runs).images == {}
    base = costs.find_speed(runs, images_per_second=["base=900"]).images
    flop = {m: SIZES[m].gmac(192, 12, head=True) for m in base}
    assert base["swinv2_giant"] == pytest.approx(900 * flop["swinv2_base"] / flop["swinv2_giant"])
    assumed = costs.find_speed(runs, assume="0.4@989")
    assert assumed.images["swinv2_base"] == pytest.approx(0.4e12 * 989 / (6e9 * flop["swinv2_base"]))
    assert "assuming 40 % of a stated peak of 989 TFLOP/s" in assumed.source

    def seconds(run, device):
        if run.model == "swinv2_pico":
            raise RuntimeError("CUDA out of memory")
        return 0.5

    monkeypatch.setattr("simmim_lite.training.pretrain.step_seconds", seconds)
    timed = costs.step_speeds(tmp_path, ["swinv2_femto", "swinv2_pico"], Run(), "gpu")
    assert timed == {"swinv2_femto fp32": 0.5, "swinv2_femto bf16": 0.5}  # what does not fit is left out
    assert costs.known_speeds(tmp_path, Run()) == timed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--dry-run", "--assume", "4@989"], "share is '4': give a number above 0, at most 1"),
        (["--dry-run", "--images-per-second", "bse=9"], "did you mean 'base'"),
        (["--dry-run", "--images-per-second", "base"], "images_per_second of base is ''"),
        (["--dry-run", "--images-per-second", "base=9", "--assume", ".4@989"], "speed is given twice"),
        (["--dry-run", "--tier", "quick", "--gpus", "8"], "--gpus is about GPU hours"),
        (["--gpus", "8"], "--gpus and a GPU's speed are about the cost that --dry-run shows"),
        (["--device", "cpu", "--no-notebooks"], "tier paper is about photographs of 192 px"),
        (["--dry-run", "--data", "imagefolder:SMALL"], "small holds pictures of at most 40 px"),
        (["--no-notebooks", "--device", "cpu", "--data", "imagefolder:FEW"], "this machine's processor: about"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, side in (("SMALL", 40), ("FEW", 200)):
        if f"imagefolder:{name}" in words:
            words = [*words[:-1], folder(tmp_path / name.lower(), 8, side)]
    before = set(tmp_path.iterdir())
    status, _, errors = call(capsys, *PAPER, *words)
    assert status == 2 and line in errors and errors.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_the_dry_run_shows_the_cost_and_what_it_rests_on(capsys, tmp_path, monkeypatch, whole) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(capsys, *PAPER, "--dry-run", "--gpus", "8", "--images-per-second", "base=900")
    table = out.splitlines()
    assert status == 0 and "days on 8 GPUs" in table[0] and "11,484,375" in table[6] and "0 of 63" in table[6]
    for said in ("18,375,000", "that you gave; small, large, huge, giant scaled", "released for base", "data: none"):
        assert said in out
    if not torch.cuda.is_available():
        status, out, errors = call(capsys, *PAPER, "--no-notebooks", "--data", TWO)
        assert (status, out, errors.count("\n")) == (2, "", 1)
        for said in ("needs GPUs", "runs 63", "steps 11,484,375", "ZFLOP", "GPU hours –", "--dry-run"):
            assert said in errors
    assert not list(tmp_path.iterdir())


def test_a_folder_is_looked_at_first_and_its_levels_are_the_studys(capsys, tmp_path, monkeypatch) -> None:
    """The dry run and the lines of --commands count the same runs, of as many images as there are."""
    monkeypatch.chdir(tmp_path)
    words = [*PAPER, "--data", folder(Path("few"), 20, 200)]
    out = call(capsys, *words, "--dry-run")[1]
    assert "0 of 15" in out.splitlines()[6]
    assert "few cannot fill the levels of 128,117" in out and "14,197,122 images: runs take 16;" in out
    found = [part for line in call(capsys, *words, "--commands")[1].splitlines() for part in line.split(" && ")]
    assert len(found) == 15 and all("--images=16 " in line for line in found)
    assert {path.name for path in tmp_path.iterdir()} == {"few"}


def test_started_it_prints_the_cost_takes_two_sources_and_trains(tmp_path, capsys, monkeypatch) -> None:
    """Tier paper's path with everything made small: two folders, --device cpu."""
    for name, count in (("one", 12), ("two", 24)):
        folder(tmp_path / name, count, 40, "train")
        folder(tmp_path / name, 4, 40, "val")
    recipe = replace(RECIPE, model="swinv2_atto", batch_size=4, image_size=16, window_size=2, mask_patch=8)
    recipe = replace(recipe, target_window=None, warmup_steps=1, eval_every=2, val_images=4, val_masks=1)
    small = replace(
        TIERS["paper"], models=("swinv2_atto",), images=(12,), second_images=(24,), lengths=(1,), recipe=recipe,
        by_size={}, holes=frozenset(),
    )  # fmt: skip
    monkeypatch.setitem(TIERS, "paper", small)
    monkeypatch.setattr("simmim_lite.training.pretrain.step_seconds", lambda run, device: 0.01)
    data = f"imagefolder:{tmp_path / 'one'} + imagefolder:{tmp_path / 'two'}"
    options = {"tier": "paper", "data": data, "runs_dir": tmp_path / "runs", "device": "cpu", "workers": 1}
    done = studies.study("all", **options)
    assert Counter(r["status"] for r in done.records) == {"done": 2} and done.trained == 2
    assert {r["run"]["data"].rsplit("/")[-1] for r in done.records} == {"one", "two"}
    assert {r["run"]["precision"] for r in done.records} == {"bf16"}
    errors = capsys.readouterr().err
    assert errors.index("GPU hours: unknown") < errors.index("to train in")
    assert studies.study("all", **options | {"device": "auto"}).trained == 0  # finished: no GPU is asked for
    assert "GPU hours" not in capsys.readouterr().err
