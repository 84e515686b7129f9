"""What notebooks ask for: the reader's runs, and the cost of those that are missing."""

import json
import subprocess
import sys

import pytest

from simmim_lite import studies
from simmim_lite.errors import UserError
from simmim_lite.studies.grids import TIERS, grid, tunings
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
    # 64 and 16,384 images: 1,000 steps and the tails of 250 (32 steps) and 500 (63), and an initialisation of 0 steps
    assert [line["steps"] for line in lines] == ["2,190", "2,190", "4,380"]
    assert [line["runs"] for line in lines] == ["7", "7", "14"] and lines[-1]["done"] == "0 of 14"
    assert lines[0]["images seen"] == f"{2190 * 64:,}" and lines[-1]["FLOPs"].endswith("FLOP")
    run = grid("schedule", "quick", seeds=1, precision="bf16")[1]
    path = record_path(tmp_path, run)
    path.parent.mkdir()
    path.write_text("{}")
    assert studies.preview("schedule", tier="quick", seeds=1, runs_dir=tmp_path)[-1]["done"] == "1 of 14"


def test_preview_goes_by_speeds_measured_here(tmp_path):
    def seconds():
        text = studies.preview("schedule", tier="quick", seeds=1, runs_dir=tmp_path)[-1]["time on one core"]
        number, unit = text.split()
        return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]

    speeds = {f"{model} {p}": 10.0 for model in TIERS["quick"].models for p in ("fp32", "bf16")}
    (tmp_path / "machine.json").write_text(json.dumps({"cpu batch 64 size 32": speeds}))
    # 4,380 steps, and 60 for each of 14 evaluations and half for each of 4 points on four curves, at 10 s a step
    assert seconds() == pytest.approx(10 * (4380 + 60 * (14 + 4 * 2)), rel=0.01)


def test_laptop_grid_is_the_one_that_is_shipped():
    runs = grid("all", "laptop")
    trained = [run for run in runs if run.steps]
    core = {(r.model, r.images) for r in trained if r.steps == 1000}
    assert len(core) == 15 and {r.seed for r in trained} == {0, 1, 2}
    assert {(r.model, r.images) for r in trained if r.steps == 2000} == {
        (model, n) for model in ("swinv2_atto", "swinv2_femto") for n in (64, 16384)
    }
    assert {r.lr for r in trained if r.model == "swinv2_pico"} == {2e-3}
    tuned = tunings("all", "laptop")
    assert {t.steps for t in tuned} == {600} and {t.labels for t in tuned if t.run} == {4000}
    assert {(t.model, t.labels) for t in tuned if not t.run} == {("swinv2_atto", 4000)} | {
        ("swinv2_femto", n) for n in (64, 256, 1024, 4000, 16384)
    }
    assert all(t.seed == t.run.seed for t in tuned if t.run)
    assert tunings("all", "laptop", labelled=0) == [] == tunings("schedule", "laptop") == tunings("all", "quick")
    assert max(t.labels for t in tunings("all", "laptop", labelled=900)) == 900


def test_a_preview_as_text_lines_up() -> None:
    rows = [{"model size": "atto", "runs": "8"}, {"model size": "all", "runs": "1,024"}]
    assert studies.collecting.preview_text(rows) == "model size   runs\natto            8\nall         1,024"
    with pytest.raises(UserError, match="no records are shipped"):
        studies.collecting.preview_text([])
