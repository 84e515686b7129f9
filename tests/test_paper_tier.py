"""Tier paper: the published cells as Runs, and what they cost, before anything starts."""

import csv
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from simmim_lite import cli, studies
from simmim_lite.data import manifests
from simmim_lite.errors import UserError
from simmim_lite.model.sizes import SIZES
from simmim_lite.studies import costs, engine, full_size, parameters, speed, transfer_grid
from simmim_lite.studies.grids import STUDIES, TIERS, grid, tunings
from simmim_lite.training.run import record_path

TWO = "imagefolder:one + imagefolder:two"


@pytest.fixture
def whole(monkeypatch) -> None:
    """Both sources of TWO, as if they were there with all their pictures."""
    for module in (transfer_grid, costs, parameters):
        monkeypatch.setattr(module, "images_of", lambda data: WHOLE if "+" in data else {})
    monkeypatch.setattr(transfer_grid, "check_sides", lambda *_: None)


WHOLE = {"available": full_size.LEVELS[-1], "second_available": full_size.WHOLE_22K}


def folder(place: Path, count: int, side: int) -> str:
    """A source of so many pictures in two classes."""
    for k in range(count):
        path = place / f"c{k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (k % 256, 0, 0)).save(path)
    return f"imagefolder:{place}"


def call(capsys, *words: str) -> tuple[int, str, str]:
    status = cli.main([str(w) for w in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_all_is_the_published_grid_cell_by_cell() -> None:
    with (files("simmim_lite.evidence") / "published_runs.csv").open(newline="") as file:
        published = {(r["model"], int(r["unique_images"]), int(r["iterations"])) for r in csv.DictReader(file)}
    runs = grid("all", "paper", data=TWO)
    assert len(runs) == len({run.key for run in runs}) == 63
    assert {(r.model, r.images, r.steps) for r in runs} == published
    assert {(r.data, r.images == full_size.WHOLE_22K) for r in runs} == {
        ("imagefolder:one", False),
        ("imagefolder:two", True),
    }
    assert len({run.trunk_key for run in runs}) == 21


def test_each_study_picks_its_cells() -> None:
    found = {study: grid(study, "paper") for study in (*STUDIES, "all")}
    assert {study: len(runs) for study, runs in found.items()} == {
        "data-scale": 21, "model-size": 21, "schedule": 63, "proxy": 63, "all": 63,
    }  # fmt: skip
    assert {run.steps for run in found["data-scale"]} == {500_000}
    assert all(set(runs) <= set(found["all"]) for runs in found.values())
    assert tunings("all", "paper") == []


def test_the_recipe_is_the_released_one() -> None:
    run = next(r for r in grid("all", "paper") if r.model == "swinv2_base" and r.steps == 500_000)
    assert (run.image_size, run.window_size, run.mask_patch, run.mask_ratio) == (192, 12, 32, 0.6)
    assert (run.target, run.norm_window, run.statistics) == ("normalized", 47, "imagenet")
    assert run.augment == "picture-crop+flip"
    assert (run.batch_size, run.lr, run.betas, run.weight_decay) == (2048, 4e-4, (0.9, 0.999), 0.05)
    assert (run.drop_path, run.clip_grad, run.precision, run.recipe_version) == (0.1, 5.0, "bf16", 1)
    assert run.lr_at(0) == pytest.approx(2e-6) and run.lr_at(6250) == pytest.approx(4e-4)
    assert run.drop_step == 437_500 and run.lr_at(437_500) == pytest.approx(4e-5)
    assert set(full_size.BY_SIZE) == set(full_size.LR) == set(full_size.SIZES)
    assert all(r.steps % r.eval_every == 0 for r in grid("all", "paper"))


def test_levels_and_seed_are_those_of_the_manifests() -> None:
    found = {}
    for path in manifests.SHIPPED.glob("imagenet*.yaml"):
        content = yaml.safe_load(path.read_text())
        found[path.stem] = content["subsets"][0]["images"] or content["images"]
        assert content["seed"] == full_size.RECIPE.draw
    assert sorted(found.values()) == [*full_size.LEVELS, full_size.WHOLE_22K]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("scenes", ("scenes", None)),
        (" imagefolder:a/ + imagefolder:b/ ", ("imagefolder:a", "imagefolder:b")),
        ("imagefolder:a+hf:me/b", ("imagefolder:a", "hf:me/b")),
        ("imagefolder:c++ + d", ("imagefolder:c++ + d", None)),
    ],
)
def test_data_names_one_source_or_two(data: str, expected: tuple) -> None:
    assert full_size.sources(data) == expected


def test_what_the_images_cannot_fill_is_left_out_and_said() -> None:
    some = grid("all", "paper", data="imagefolder:one", available=1_281_100)  # a few could not be read
    assert len(some) == 51 and max(r.images for r in some) == 1_281_100
    few = grid("all", "paper", data=TWO, available=300_000, second_available=14_197_122)
    assert {r.images for r in few} == {128_117, 300_000, 14_197_122}
    assert not any(r.model == "swinv2_huge" and r.images == 128_117 for r in few)
    axes = TIERS["paper"]
    line = full_size.left_out("imagefolder:one", axes.images, axes.second_images, 300_000)
    assert "in place of 256,233, 640,584 and 1,281,167 all of them" in line and "14,197,122" in line and "+" in line
    assert full_size.left_out(TWO, axes.images, axes.second_images, 1_281_167, 14_197_122) == ""
    assert "two holds 9 training" in full_size.left_out(TWO, axes.images, axes.second_images, 1_281_167, 9)


def test_two_sources_are_for_tier_paper() -> None:
    with pytest.raises(UserError, match="names two sources: tier quick takes one, imagefolder:one"):
        grid("all", "quick", data=TWO)
    with pytest.raises(UserError, match="names 3 sources"):
        grid("all", "paper", data=TWO + " + hf:three")


def test_costs_count_shared_trunks_once() -> None:
    runs = grid("all", "paper")
    speeds = dict.fromkeys(full_size.SIZES, 1000.0)
    *sizes, whole = costs.costs(runs, speeds, "nowhere")
    cell = 500_000 + (250_000 - 218_750) + (125_000 - 109_375)
    assert [c.runs for c in sizes] == [12, 15, 15, 12, 9] and whole.runs == 63
    assert [c.trunks for c in sizes] == [4, 5, 5, 4, 3] and whole.steps == 21 * cell == 11_484_375
    base, size = sizes[1], SIZES["swinv2_base"]
    assert base.images == 5 * cell * 2048
    assert base.flops == pytest.approx(6e9 * size.gmac(192, 12, head=True) * base.images)
    # a validation each 12,500 steps, at the end of each trunk, and of both tails (the second has two points before it)
    validations = 5 * (40 + 1 + 1 + sum(218_750 < k * 12_500 < 250_000 for k in range(40)) + 1)
    validations += 5 * (sum(109_375 < k * 12_500 < 125_000 for k in range(40)) - 1)
    assert base.hours == pytest.approx((base.images + validations * 100_000 / 3) / 1000 / 3600)
    assert base.weights == 15 * 4 * size.simmim_parameters
    assert base.checkpoints == (5 + 4) * 12 * size.simmim_parameters
    assert whole.weights == sum(c.weights for c in sizes) and whole.checkpoints < sum(c.checkpoints for c in sizes)


def test_speed_is_given_measured_or_assumed_and_never_guessed(tmp_path) -> None:
    runs = grid("all", "paper")
    assert costs.find_speed(runs, runs_dir=tmp_path).images == {}
    base = costs.find_speed(runs, images_per_second=["base=900"]).images
    flop = {m: SIZES[m].gmac(192, 12, head=True) for m in base}
    assert base["swinv2_giant"] == pytest.approx(900 * flop["swinv2_base"] / flop["swinv2_giant"])
    assumed = costs.find_speed(runs, assume="0.4@989")
    assert assumed.images["swinv2_base"] == pytest.approx(0.4e12 * 989 / (6e9 * flop["swinv2_base"]))
    assert "assuming 40 % of a stated peak of 989 TFLOP/s" in assumed.source
    speed.keep(tmp_path, {"swinv2_large": 400.0}, "A GPU of ours", 192, "bf16")
    found = costs.find_speed(runs, runs_dir=tmp_path)
    assert found.images["swinv2_large"] == pytest.approx(400) and "measured on A GPU of ours" in found.source
    assert "small, base, huge, giant scaled by FLOPs" in found.source
    by_file = costs.find_speed(runs, images_per_second=[str(tmp_path / "machine.json")])
    assert by_file.images == pytest.approx(found.images)
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"device": "X", "image_size": 192, "images_per_second": {"swinv2_base": 900}}))
    assert costs.find_speed(runs, images_per_second=[str(bench)]).images == pytest.approx(base)
    bench.write_text(json.dumps({"image_size": 224, "images_per_second": {"swinv2_base": 900}}))
    with pytest.raises(UserError, match="nothing was measured at 192 px"):
        costs.find_speed(runs, images_per_second=[str(bench)])


def test_measuring_keeps_what_it_timed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda models, side, device: ({"swinv2_small": 50.0}, "a device"))
    found = costs.find_speed(grid("all", "paper"), measure="cpu", runs_dir=tmp_path)
    assert "a device just now" in found.source
    assert costs.find_speed(grid("all", "paper"), runs_dir=tmp_path).images == pytest.approx(found.images)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--dry-run", "--assume", "4@989"], "--assume is '4@989': give SHARE@TFLOPS"),
        (["--dry-run", "--gpus", "A100"], "no GPU is known by name"),
        (["--dry-run", "--images-per-second", "bse=9"], "did you mean 'base'"),
        (["--dry-run", "--images-per-second", "base"], "give SIZE=NUMBER"),
        (["--dry-run", "--images-per-second", "no.json"], "no.json: No such file"),
        (["--dry-run", "--images-per-second", "base=9", "--assume", ".4@989"], "speed is given twice"),
        (["--gpus", "8"], "--gpus is about the cost that --dry-run shows"),
        (["--device", "cpu", "--no-notebooks"], "tier paper is about photographs of 192 px"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], line: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = call(capsys, "study", "all", "--tier", "paper", *words)
    assert status == 2 and line in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_dry_run_shows_the_cost_and_what_it_rests_on(capsys, tmp_path, monkeypatch, whole) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["study", "all", "--tier", "paper", "--dry-run", "--gpus", "8", "--images-per-second", "base=900"]
    status, out, _ = call(capsys, *words)
    table = out.splitlines()
    assert status == 0 and not list(tmp_path.iterdir())
    assert table[0].split()[:3] == ["model", "size", "runs"] and "days on 8 GPUs" in table[0]
    assert [line.split()[0] for line in table[1:7]] == ["small", "base", "large", "huge", "giant", "all"]
    assert "11,484,375" in table[6] and "ZFLOP" in table[6] and "0 of 63" in table[6]
    for said in ("18,375,000", "by the images a second that you gave", "unknown in the paper", "data: none is given"):
        assert said in out
    _, out, _ = call(capsys, "study", "all", "--tier", "paper", "--dry-run", "--data", TWO)
    assert "GPU hours: unknown; give --images-per-second" in out and "a second source" not in out
    assert "data: none" not in out and "0 of 63" in out


def test_a_folder_is_looked_at_first_and_its_levels_are_the_studys(capsys, tmp_path, monkeypatch) -> None:
    """The dry run, the lines of --commands and the refusal count the same runs, of as many images as there are."""
    monkeypatch.chdir(tmp_path)
    words = ["study", "all", "--tier", "paper", "--data", folder(Path("few"), 20, 200)]
    status, out, errors = call(capsys, *words, "--dry-run")
    assert status == 0, errors
    assert "0 of 15" in out.splitlines()[6]
    last = out.splitlines()[-1]
    assert "few holds 16 training images: in place of" in last and "the level of 14,197,122 images is left out" in last
    assert "63" not in out and "12 of these runs" not in out
    status, out, _ = call(capsys, *words, "--commands")
    found = [part for line in out.splitlines() for part in line.split(" && ")]
    assert status == 0 and len(found) == 15 and all("--images=16 " in line for line in found)
    if not torch.cuda.is_available():
        assert "15 runs" in call(capsys, *words, "--no-notebooks")[2]
    status, _, errors = call(capsys, *words, "--no-notebooks", "--device", "cpu")
    assert status == 2 and errors.count("\n") == 1
    for said in ("cannot run on this machine's processor: about", "years on", "GB of memory"):
        assert said in errors
    assert {path.name for path in tmp_path.iterdir()} == {"few"}


@pytest.mark.parametrize("how", ["--dry-run", "--commands", "--device=cpu"])
def test_pictures_that_are_too_small_are_refused_first(how: str, capsys, tmp_path) -> None:
    words = ["study", "all", "--tier", "paper", "--data", folder(tmp_path / "small", 12, 40), "--runs-dir", tmp_path]
    status, out, errors = call(capsys, *words, how)
    assert (status, out, errors.count("\n")) == (2, "", 1)
    assert "small holds pictures of at most 40 px" in errors and "tier paper trains at 192 px" in errors


def test_any_tier_has_a_table_for_gpus_and_notebooks_have_tier_papers(tmp_path, whole) -> None:
    text = studies.collecting.dry_run(
        "all", parameters.StudyOptions(tier="quick", runs_dir=str(tmp_path)), {"assume": "0.1@10"}
    )
    assert "GPU hours: assuming 10 %" in text and "13,140" in text and "unknown in the paper" not in text
    rows = studies.preview("data-scale", tier="paper", runs_dir=tmp_path)
    assert rows[-1]["runs"] == "21" and rows[-1]["GPU hours"] == "–"
    run = grid("all", "paper", data=TWO)[0]
    record_path(tmp_path, run).parent.mkdir()
    record_path(tmp_path, run).write_text("{}")
    assert studies.preview("all", tier="paper", data=TWO, runs_dir=tmp_path)[-1]["done"] == "1 of 63"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_started(capsys, tmp_path, whole) -> None:
    speed.keep(tmp_path, {"swinv2_base": 900.0}, "GPU", 192, "bf16")
    words = ["study", "all", "--tier", "paper", "--no-notebooks", "--data", TWO, "--runs-dir", tmp_path]
    status, out, errors = call(capsys, *words)
    assert (status, out, errors.count("\n")) == (2, "", 1)
    for said in ("needs GPUs", "63 runs", "11,484,375 steps", "ZFLOP", "GPU hours", "--dry-run"):
        assert said in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["machine.json", "machine.json.lock"]


def test_started_it_prints_the_cost_takes_two_sources_and_trains(tmp_path, capsys, monkeypatch) -> None:
    """Tier paper's path with everything made small: two folders, two sizes, --device cpu."""
    from dataclasses import replace

    import numpy as np

    rng = np.random.default_rng(0)
    for name, count in (("one", 12), ("two", 24)):
        for i in range(count):
            folder = tmp_path / name / "train" / f"c{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
        for i in range(4):
            held = tmp_path / name / "val"
            held.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(held / f"{i}.png")
    recipe = replace(full_size.RECIPE, model="swinv2_atto", batch_size=4, image_size=32, window_size=4, mask_patch=8)
    recipe = replace(recipe, target_window=None, warmup_steps=2, eval_every=4, val_images=4, val_masks=1)
    small = replace(
        TIERS["paper"], models=("swinv2_atto", "swinv2_femto"), images=(6, 12), second_images=(24,), lengths=(4, 8),
        recipe=recipe, lr={}, by_size={}, holes=frozenset({("swinv2_femto", 6)}),
    )  # fmt: skip
    monkeypatch.setitem(TIERS, "paper", small)
    data = f"imagefolder:{tmp_path / 'one'} + imagefolder:{tmp_path / 'two'}"
    options = {"tier": "paper", "data": data, "runs_dir": tmp_path / "runs", "device": "cpu", "workers": 1}
    done = engine.train_missing("all", **options)
    assert Counter(r["status"] for r in done.records) == {"done": 10} and done.trained == 10
    assert {r["run"]["data"].rsplit("/")[-1] for r in done.records} == {"one", "two"}
    assert {r["run"]["precision"] for r in done.records} == {"bf16"}
    errors = capsys.readouterr().err
    assert errors.index("GPU hours: by the speed measured on") < errors.index("runs to train")
    assert engine.train_missing("all", **options | {"device": "auto"}).trained == 0  # finished: no GPU is asked for
    assert "GPU hours" not in capsys.readouterr().err
    one = {**options, "data": data.split(" + ")[0]}
    assert len(engine.train_missing("all", **one).records) == 6
    assert "the level of 24 images is left out" in capsys.readouterr().err
    assert len(studies.collect("all", data=data, runs_dir=tmp_path / "runs")) == 10
