"""What notebooks ask for: the reader's runs, and the cost of those that are missing."""

import json
import subprocess
import sys

import pytest

from simmim_lite import studies
from simmim_lite.errors import UserError
from simmim_lite.studies import engine
from simmim_lite.studies.collecting import cost_of
from simmim_lite.studies.grids import TIERS, grid, tunings
from simmim_lite.studies.parameters import StudyOptions
from simmim_lite.training.run import record_path


def test_collect_trains_what_is_missing_once_and_shipped_trains_nothing(tmp_path, capsys):
    assert studies.collect("schedule", runs_dir=tmp_path) == [] and not (tmp_path / "records").exists()
    made = studies.collect("schedule", tier="smoke", seeds=0, workers=1, runs_dir=tmp_path, precision="fp32")
    assert [r["key"] for r in made] == [run.key for run in grid("schedule", "smoke")]
    assert "runs to train" in capsys.readouterr().err
    assert studies.collect("schedule", tier="smoke", runs_dir=tmp_path, precision="fp32") == made
    assert "runs to train" not in capsys.readouterr().err
    assert sorted(r["key"] for r in studies.collect("schedule", runs_dir=tmp_path)) == sorted(r["key"] for r in made)
    assert studies.collect("schedule", data="imagefolder:elsewhere", runs_dir=tmp_path) == []


def test_finished_runs_come_without_torch(tmp_path):
    studies.collect("schedule", tier="smoke", workers=1, runs_dir=tmp_path)  # auto: the speeds are measured and kept
    code = (
        "import sys; from simmim_lite import studies\n"
        "made = studies.collect('schedule', tier='smoke', runs_dir=sys.argv[1])\n"
        "studies.collect('schedule', runs_dir=sys.argv[1]); studies.preview('schedule', tier='smoke')\n"
        "print(len(made), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(grid("schedule", "smoke"))), "False"]


@pytest.mark.parametrize(
    ("study", "tier", "said"),
    [
        ("data-scales", "quick", "unknown study 'data-scales'"),
        ("proxy", "huge", "unknown tier 'huge'.*shipped.*laptop"),
    ],
)
def test_wrong_names_are_one_line(study, tier, said):
    for ask in (studies.collect, studies.preview):
        with pytest.raises(UserError, match=said) as error:
            ask(study, tier=tier)
        assert "\n" not in str(error.value)


def test_preview_counts_shared_trunks_once_and_what_is_there(tmp_path):
    lines = studies.preview("schedule", tier="quick", seeds=1, runs_dir=tmp_path)
    assert [line["model size"] for line in lines] == ["atto (0.14 M)", "femto (0.54 M)", "all"]
    # 16 and 16,384 images: 500 steps and the tail of 250 (32 steps), an initialisation of 0 steps, and atto on 1,024
    assert [line["steps"] for line in lines] == ["1,564", "1,064", "2,628"]
    assert [line["runs"] for line in lines] == ["6", "5", "11"] and lines[-1]["done"] == "0 of 11"
    assert lines[0]["images seen"] == f"{1564 * 64:,}" and lines[-1]["FLOPs"].endswith("FLOP")
    run = grid("schedule", "quick", seeds=1, precision="bf16")[1]
    path = record_path(tmp_path, run)
    path.parent.mkdir()
    path.write_text("{}")
    assert studies.preview("schedule", tier="quick", seeds=1, runs_dir=tmp_path)[-1]["done"] == "1 of 11"


def test_preview_goes_by_speeds_measured_here(tmp_path):
    def seconds():
        text = studies.preview("schedule", tier="quick", seeds=1, runs_dir=tmp_path)[-1]["time on one core"]
        number, unit = text.split()
        return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]

    speeds = {f"{model} {p}": 10.0 for model in TIERS["quick"].models for p in ("fp32", "bf16")}
    (tmp_path / "machine.json").write_text(json.dumps({"cpu batch 64 size 32": speeds}))
    # 2,628 steps, and 60 for each of 11 evaluations and half for each of 4 points on five curves, at 10 s a step
    assert seconds() == pytest.approx(10 * (2628 + 60 * (11 + 5 * 2)), rel=0.01)


@pytest.mark.parametrize(
    ("data", "lengths", "probes"),
    [("scenes", (250, 500, 1000, 2000), (4096, 4096)), ("imagefolder:x", (500, 1000, 2000, 4000), (10_000, 5000))],
)
def test_the_laptop_grid_is_one_factorial(data, lengths, probes):
    """What is frozen (docs/settings.md): sizes, levels, lengths and recipe, and the four trainings of C8 a seed."""
    runs = grid("all", "laptop", data=data, seeds=range(101, 107), precision="bf16")
    trained = [run for run in runs if run.steps]
    sizes, levels = ("swinv2_atto", "swinv2_femto"), (16, 64, 256, 1024, 16384)
    cells = {(m, n, t, s) for m in sizes for n in levels for t in lengths for s in range(101, 107)}
    assert len(trained) == len(cells) == 240 and {(r.model, r.images, r.steps, r.seed) for r in trained} == cells
    assert {(r.model, r.seed) for r in runs if not r.steps} == {(m, s) for m in sizes for s in range(101, 107)}
    recipe = {(r.lr, r.precision, r.eval_every, r.probe_labels, r.probe_test) for r in runs}
    assert recipe == {(6e-3, "bf16", 125, *probes)}
    for name in ("data-scale", "model-size", "schedule", "proxy"):
        assert set(grid(name, "laptop", data=data, seeds=range(101, 107), precision="bf16")) <= set(runs)
    tuned = tunings("all", "laptop", data=data, seeds=[101])
    assert [(t.run and (t.run.images, t.run.steps), t.labels, t.steps) for t in tuned] == [
        ((1024, 1000), 4000, 600), (None, 16384, 1600), (None, 4000, 1600), (None, 16384, 600)
    ]  # fmt: skip
    assert {(t.model, t.seed) for t in tuned} == {("swinv2_femto", 101)}
    assert tunings("all", "laptop", labelled=0) == [] == tunings("schedule", "laptop") == tunings("all", "quick")
    assert [t.labels for t in tunings("all", "laptop", labelled=900, seeds=1)] == [225, 900, 225, 900]
    pico = grid("model-size", "laptop-pico", data=data, seeds=[101])
    assert [(r.images, r.steps) for r in pico] == [(16384, 0), *((n, lengths[-1]) for n in (16, 1024, 16384))]


def chosen(tmp_path, *, tier="quick", **options):
    """`engine.choose` on a machine that was measured: a step takes 10 ms."""
    speeds = {f"{model} {p}": 0.01 for model in TIERS["quick"].models for p in ("fp32", "bf16")}
    (tmp_path / "machine.json").write_text(json.dumps({"cpu batch 64 size 32": speeds}))
    counts = {name: options.pop(name, None) for name in ("first_seed", "minutes")}
    same = {"tier": tier, "runs_dir": tmp_path, "workers": 1, "device": "cpu"}
    return engine.choose("all", StudyOptions(**same | options), **counts)


def test_minutes_choose_the_number_of_seeds_and_never_fewer_than_five(tmp_path):
    seeds, said = chosen(tmp_path)
    assert seeds == list(range(200, 206)) and "6 seeds, 200 to 205" in said and "which --minutes 5 holds" in said
    each = cost_of(grid("all", "quick", seeds=1), tmp_path)["seconds"]
    for holds, count in ((0.5, 5), (4.5, 5), (6.5, 6), (50, 8)):
        seeds, said = chosen(tmp_path, minutes=(30 + holds * each) / 60)
        assert len(seeds) == count and ("decide too little" in said) == (holds < 5)
        assert f"holds {int(holds)}, and fewer than 5" in said or holds > 5
    assert len(chosen(tmp_path, workers=2)[0]) == 8
    assert chosen(tmp_path, seeds=2, first_seed=300) == ([300, 301], "")
    assert chosen(tmp_path, tier="smoke") == (None, "") == chosen(tmp_path, tier="shipped")
    assert chosen(tmp_path, tier="laptop")[0] == [200, 201, 202] and "3 seeds" in chosen(tmp_path, tier="laptop")[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"minutes": 0.0}, "minutes is 0.0: give a number above 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"first_seed": -1}, "first_seed is -1: give a whole number from 0"),
        ({"minutes": 5.0, "seeds": 6}, "give one, seeds fixes the number"),
        ({"data": "scene"}, "unknown data 'scene'"),
    ],
)
def test_wrong_numbers_of_seeds_are_one_line(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        chosen(tmp_path, **options)


def test_a_preview_as_text_lines_up() -> None:
    rows = [{"model size": "atto", "runs": "8"}, {"model size": "all", "runs": "1,024"}]
    assert studies.collecting.preview_text(rows) == "model size   runs\natto            8\nall         1,024"
    with pytest.raises(UserError, match="no records are shipped"):
        studies.collecting.preview_text([])
