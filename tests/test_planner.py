"""The planner: sets and not answers, data limits said, numbers refused outside the range, nonsense in one line."""

import math
import re
from pathlib import Path

import pytest
from picture_folders import one_line
from synthetic_records import study
from test_cli import call

from simmim_lite.errors import UserError
from simmim_lite.evidence import figures, published, records
from simmim_lite.evidence.proxy import doublings
from simmim_lite.studies import basis, planner
from simmim_lite.studies.planner import plan

TENTH, WHOLE = 128_117, 1_281_167
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "runs.csv"


def own_rows(**options) -> list[dict]:
    """Rows of a reader's own runs."""
    return records.trained(records.run_rows(study(**{"seeds": (0, 1), "probes": ("linear",)} | options)))


def test_with_little_data_it_says_spend_less_and_with_much_it_spends() -> None:
    few, many = plan(TENTH, budget_flops=3e20), plan(WHOLE, budget_flops=3e20)
    assert few.best.flops < 0.3 * 3e20 and few.binds.startswith("data") and len(few.together) > 1
    assert few.spend_less.startswith("data is the limit") and few.rule.light == "red" and few.rule.rank > 1
    assert many.best.flops > 0.7 * 3e20 and many.best.light == "green"
    assert "data is the limit" not in many.spend_less


def test_options_are_what_the_budget_allows() -> None:
    found = plan(WHOLE, budget_flops=1e20)
    assert all(o.flops <= 1e20 and 125_000 <= o.steps <= 500_000 for o in found.options)
    assert [o.rank for o in found.options] == list(range(1, len(found.options) + 1))
    for o in found.options:
        assert o.low < o.value < o.high and o.together == (o.high >= found.best.low) and o.hours is None
        assert o.epochs == pytest.approx(o.steps * 2048 / WHOLE)
        assert o.omega == pytest.approx(o.params * o.steps * 2048 / WHOLE**2)


def test_the_lights_are_those_of_the_published_doublings() -> None:
    found = doublings(published.rows(), published.SCORE).to_dict("records")
    green, _, red = basis.OMEGAS
    assert not [d for d in found if d["omega"] < green and d["loss_change"] > 0.001]
    above = [d for d in found if d["omega"] > red]
    assert len(above) == 5 and all(d["score_change"] < 0 for d in above)


def test_hours_come_from_speeds_given() -> None:
    found = plan(WHOLE, budget_gpu_hours=1000, images_per_second={"base": 900}, gpus=4)
    base = next(o for o in found.options if (o.model, o.steps) == ("swinv2_base", 250_000))
    assert base.hours == pytest.approx(250_000 * 2048 / 900 / 3600)
    other = next(o for o in found.options if o.model == "swinv2_large")
    assert other.hours / other.flops == pytest.approx(base.hours / base.flops)
    with pytest.raises(UserError, match="unknown size among the runs that the plan rests on 'swinv2_atto'"):
        plan(WHOLE, budget_gpu_hours=1000, images_per_second={"base": 900, "atto": 9000})
    assert all(o.hours <= 1000 for o in found.options) and "4 GPUs are taken" in " ".join(found.notes)


def test_outside_its_range_it_gives_the_order_alone() -> None:
    found = plan(20_000, budget_flops=3e19)
    assert "20,000 images lie outside 128,117 to 14,197,122" in found.refused
    assert all(o.value is o.low is o.together is None for o in found.options)
    text = " ".join(" ".join(planner.lines(found)).split())  # long sentences are wrapped
    assert "the order is all the law can give" in text and "90 % interval" not in text
    assert [o.omega for o in found.options] == sorted(o.omega for o in found.options)
    assert (found.best.model, found.best.steps) == ("swinv2_small", 125_000)
    chart = figures.plan(found.options, found.rule, "x")
    assert "order alone" in chart.layout.annotations[0].text


def test_more_overfit_than_any_run_there_is_no_number() -> None:
    """The huge and giant sizes were not published with a tenth of ImageNet-1K: beyond Omega 1.2e7 nothing is known."""
    found = plan(TENTH, budget_flops=5e20)
    beyond = [o for o in found.options if o.omega > 1.25e7]
    assert beyond and all(o.value is None and o.together is None for o in beyond)
    assert found.options[-len(beyond) :] == sorted(beyond, key=lambda o: o.omega)
    assert f"{len(beyond)} options beyond Omega 1.2e+07" in " ".join(found.notes)


def test_an_interval_that_under_covers_is_widened_and_said() -> None:
    giant = plan(WHOLE, budget_flops=1e21)
    half = {o.model: o.high - o.value for o in giant.options}
    assert half["swinv2_giant"] > 1.2 * half["swinv2_base"]
    assert any("giant" in note and "widened" in note for note in giant.notes)
    assert any("imagenet1k-10" in note for note in plan(180_000, budget_flops=1e20).notes)  # a level that is new


def test_own_runs_refit_the_law() -> None:
    found = plan(1024, budget_flops=1e13, on=(on := basis.of_rows(own_rows(), "accuracy")))
    assert found.best.steps == 1000 and found.measure == "linear probe (%)"
    assert found.best.value == pytest.approx(100 * max(r["linear"] for r in own_rows() if r["images"] == 1024), abs=1)
    assert plan(8, budget_flops=1e13, on=on).refused and "law: " in " ".join(found.notes)


FLOPS = {"budget_flops": 1e20}


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: plan(0, **FLOPS), "images is 0: give a whole number"),
        (lambda: plan(WHOLE), "budget is missing"),
        (lambda: plan(WHOLE, budget_flops=1e20, budget_gpu_hours=3), "budget is given twice"),
        (lambda: plan(WHOLE, budget_flops=1e19), "under the cheapest option, small for 125,000 iterations"),
        (lambda: plan(WHOLE, budget_gpu_hours=10), "a budget in GPU hours needs a speed"),
        (lambda: plan(WHOLE, **FLOPS, runs_dir="nowhere"), "nowhere: no finished runs there"),
        (lambda: basis.of_rows(own_rows(lengths=(100,)), "loss"), "your runs are of steps 100: a plan needs two"),
        (lambda: basis.of_rows(own_rows(probes=()), "accuracy"), "no transfer score"),
        (lambda: basis.of_rows([{**own_rows()[0], "val_loss": math.nan}, *own_rows()], "loss"), "val_loss is nan"),
        (lambda: basis.of_rows(own_rows()[:2] + own_rows()[-1:], "loss"), "too few for any law"),
    ],
)
def test_nonsense_gets_one_line(call, line: str) -> None:
    one_line(re.escape(line), call)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t, ""),
        (lambda t: t.replace(",image_size", ",note"), "have no cost in FLOPs, and a plan is made under a budget"),
        (lambda t: t.replace(",2048,", ",1024,", 3), "are of batch_size 1024, 2048: a plan needs runs of one"),
    ],
)  # fmt: skip
def test_imported_runs_are_planned_on_or_one_line_says_why_not(tmp_path, change, line, capsys) -> None:
    (tmp_path / "theirs.csv").write_text(change(EXAMPLE.read_text()))
    assert call(capsys, "records", "import", tmp_path / "theirs.csv", "--runs-dir", tmp_path)[0] == 0
    status, out, errors = call(capsys, "plan", "--images", 256233, "--budget-flops", 1e20, "--runs-dir", tmp_path)
    if line:
        assert status == 2 and line in errors and errors.count("\n") == 1
    else:
        assert status == 0
        for word in ("on the imported runs theirs in", "Omega", "90 % interval", "what binds: data"):
            assert word in out
