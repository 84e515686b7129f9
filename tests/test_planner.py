"""The planner: sets and not answers, data limits said, numbers refused outside the range, nonsense in one line."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from simmim_lite import cli
from simmim_lite.errors import UserError
from simmim_lite.evidence import imported, published
from simmim_lite.evidence.proxy import doublings
from simmim_lite.studies import basis, plan_text, speed
from simmim_lite.studies.planner import plan

TENTH, FIFTH, WHOLE, OTHER = 128_117, 256_233, 1_281_167, 14_197_122


def own_rows(lengths=(100, 200, 400), models=("swinv2_atto", "swinv2_femto"), scored: bool = True) -> list[dict]:
    """Rows of a reader: larger and longer is better, little data is overfit."""
    found = []
    sizes = {"swinv2_atto": 140_000, "swinv2_femto": 540_000, "swinv2_pico": 2_100_000}
    for n, (model, params) in enumerate(sizes.items()):
        for images in (256, 1024, 4096):
            for steps in lengths:
                for seed in (0, 1):
                    if model not in models:
                        continue
                    seen = 64 * steps
                    h = (params * seen / images**2 / 2e6) ** 2
                    loss = 0.3 + 0.02 * params**-0.1 + steps**-0.5 + 0.1 * h / (1 + h) + 0.0005 * seed
                    row = published.rows()[0] | {
                        "model": model, "params": params, "dataset": None, "images": images, "steps": steps,
                        "seed": seed, "images_seen": seen, "epochs": seen / images, "batch_size": 64,
                        "image_size": 32, "data": "scenes", "val_loss": loss, "finetune": None, "on_axis": True,
                        "linear": 1 - loss if scored else None,
                        "flops": (n + 1) * 1e8 * seen, "key": f"{model}-{images}-{steps}-{seed}", "recipe": "own",
                    }  # fmt: skip
                    found.append(row)
    return found


def test_with_little_data_it_says_spend_less() -> None:
    found = plan(TENTH, budget_flops=3e20)
    assert found.best.flops < 0.3 * 3e20
    assert found.binds.startswith("data")
    assert found.spend_less.startswith("data is the limit")
    assert found.rule.light == "red"
    assert found.rule.rank > 1
    assert len(found.together) > 1


def test_with_much_data_more_compute_is_used() -> None:
    found = plan(WHOLE, budget_flops=3e20)
    assert found.best.flops > 0.7 * 3e20
    assert "data is the limit" not in found.spend_less
    assert found.best.light == "green"


def test_options_are_what_the_budget_allows() -> None:
    found = plan(WHOLE, budget_flops=1e20, sizes=["base", "swinv2_small"])
    assert {o.model for o in found.options} == {"swinv2_small", "swinv2_base"}
    assert all(o.flops <= 1e20 and 125_000 <= o.steps <= 500_000 for o in found.options)
    assert [o.rank for o in found.options] == list(range(1, len(found.options) + 1))
    for o in found.options:
        assert o.low < o.value < o.high
        assert o.together == (o.high >= found.best.low)
        assert o.epochs == pytest.approx(o.steps * 2048 / WHOLE)
        assert o.omega == pytest.approx(o.params * o.steps * 2048 / WHOLE**2)
        assert o.hours is None


def test_the_lights_are_those_of_the_published_doublings() -> None:
    found = doublings(published.rows(), published.SCORE).to_dict("records")
    green, _, red = basis.LIGHTS
    assert not [d for d in found if d["omega"] < green and d["loss_change"] > 0.001]
    above = [d for d in found if d["omega"] > red]
    assert len(above) == 5
    assert all(d["score_change"] < 0 for d in above)


def test_hours_come_from_speeds_given() -> None:
    found = plan(WHOLE, budget_gpu_hours=1000, images_per_second={"base": 900}, gpus=4)
    base = next(o for o in found.options if (o.model, o.steps) == ("swinv2_base", 250_000))
    assert base.hours == pytest.approx(250_000 * 2048 / 900 / 3600)
    other = next(o for o in found.options if o.model == "swinv2_large")
    assert other.hours / other.flops == pytest.approx(base.hours / base.flops)
    assert all(o.hours <= 1000 for o in found.options)
    assert "4 GPUs are taken" in " ".join(found.notes)


def test_hours_come_from_speeds_measured(tmp_path) -> None:
    machine = {
        "cpu batch 64 size 32": {"swinv2_atto fp32": 0.064, "swinv2_atto bf16": 0.128},
        "cuda batch 8 size 192": {},
    }
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    assert speed.measured(tmp_path, 32) == ({"swinv2_atto": 1000.0}, "cpu")
    assert speed.measured(tmp_path, 192) == ({}, "")


def test_hours_come_from_steps_timed_here() -> None:
    on = basis.of_rows(own_rows(), "loss")
    found = plan(1024, budget_gpu_hours=1, measure="cpu", target="loss", on=on)
    assert all(o.hours > 0 for o in found.options)
    assert "the speed measured on cpu" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("images", "options", "reason"),
    [
        (50_000, {}, "50,000 images lie outside 128,117 to 14,197,122"),
        (WHOLE, {"image_size": 224}, "image size 224 px is not the 192 px"),
        (WHOLE, {"batch_size": 4096}, "batch 4096 is not the 2048"),
        (WHOLE, {"photographs": False}, "other than photographs"),
    ],
)
def test_outside_its_range_it_gives_the_order_alone(images: int, options: dict, reason: str) -> None:
    found = plan(images, budget_flops=1e20, **options)
    assert reason in found.refused[0]
    assert all(o.value is o.low is o.chance is o.together is None for o in found.options)
    lines = list(plan_text.lines(found))
    text = " ".join(" ".join(lines).split())  # long sentences are wrapped
    assert "the order is all the law can give" in text
    assert "90 % interval" not in text
    assert "top-1 (%)" not in lines[2]


def test_more_overfit_than_any_run_there_is_no_number() -> None:
    """The huge and giant sizes were not published with a tenth of ImageNet-1K: beyond Omega 1.2e7 nothing is known."""
    found = plan(TENTH, budget_flops=5e20)
    beyond = [o for o in found.options if o.omega > 1.25e7]
    assert beyond and all(o.value is None and o.together is None for o in beyond)
    assert found.options[-len(beyond) :] == sorted(beyond, key=lambda o: o.omega)
    assert f"{len(beyond)} options beyond Omega 1.2e+07" in " ".join(found.notes)
    few = plan(20_000, budget_flops=3e19)
    assert [o.omega for o in few.options] == sorted(o.omega for o in few.options)
    assert (few.best.model, few.best.steps) == ("swinv2_small", 125_000)


def test_an_interval_that_under_covers_is_widened_and_said() -> None:
    giant = plan(WHOLE, budget_flops=1e21)
    half = {o.model: o.high - o.value for o in giant.options}
    assert half["swinv2_giant"] > 1.2 * half["swinv2_base"]
    assert any("giant" in note and "widened" in note for note in giant.notes)
    assert any("imagenet1k-10" in note for note in plan(180_000, budget_flops=1e20).notes)  # a level that is new
    assert any("chosen looking at all 63" in note for note in giant.notes)


def test_the_text_has_the_table_and_what_follows() -> None:
    text = "\n".join(plan_text.lines(plan(TENTH, budget_flops=1e20)))
    for word in (
        "FLOPs",
        "epochs",
        "Omega",
        "90 % interval",
        "what binds: data",
        "simple rule (longest, then largest): base",
    ):
        assert word in text
    assert " hours" not in text


def test_own_runs_refit_the_law() -> None:
    on = basis.of_rows(own_rows(), "accuracy")
    found = plan(1024, budget_flops=1e13, on=on)
    assert found.best.steps == 400
    assert found.measure == "linear probe (%)"
    assert found.best.value == pytest.approx(100 * max(r["linear"] for r in own_rows() if r["images"] == 1024), abs=1)
    assert plan(128, budget_flops=1e13, on=on).refused
    assert "law: " in " ".join(found.notes)


def nan(rows: list[dict]) -> list[dict]:
    return [rows[0] | {"val_loss": math.nan}, *rows[1:]]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: plan(0, budget_flops=1e20), "images is 0: give a whole number"),
        (lambda: plan(1.5, budget_flops=1e20), "images is 1.5"),
        (lambda: plan("many", budget_flops=1e20), "images is 'many'"),
        (lambda: plan(WHOLE, budget_flops="1e20"), "budget_flops is '1e20': give a number above 0"),
        (lambda: plan(WHOLE, budget_flops=True), "budget_flops is True"),
        (lambda: plan(WHOLE, budget_flops=1e20, image_size="big"), "image_size is 'big'"),
        (lambda: plan(WHOLE), "budget is missing"),
        (lambda: plan(WHOLE, budget_flops=1e20, budget_gpu_hours=3), "budget is given twice"),
        (lambda: plan(WHOLE, budget_flops=math.nan), "budget_flops is nan"),
        (lambda: plan(WHOLE, budget_flops=-1), "budget_flops is -1"),
        (lambda: plan(WHOLE, budget_flops=1e19), "under the cheapest option, small for 125,000 iterations"),
        (lambda: plan(WHOLE, budget_gpu_hours=10), "a budget in GPU hours needs a speed"),
        (lambda: plan(WHOLE, budget_gpu_hours=10, images_per_second={"base": 0}), "images_per_second of base is 0"),
        (lambda: plan(WHOLE, budget_gpu_hours=10, images_per_second={"bse": 9}), "did you mean 'base'"),
        (lambda: plan(WHOLE, budget_flops=1e20, gpus="A100"), "no GPU is known by name"),
        (lambda: plan(WHOLE, budget_flops=1e20, gpus=0), "gpus is 0"),
        (lambda: plan(WHOLE, budget_flops=1e20, sizes=["larg"]), "unknown size 'larg': did you mean 'large'"),
        (lambda: plan(WHOLE, budget_flops=1e20, sizes=["atto"]), "size atto is not among the published runs"),
        (lambda: plan(WHOLE, budget_flops=1e20, target="acc"), "unknown target 'acc'"),
        (lambda: plan(WHOLE, budget_flops=1e20, law="chinchila"), "unknown law 'chinchila': did you mean 'chinchilla'"),
        (lambda: plan(WHOLE, budget_flops=1e20, runs_dir="nowhere"), "nowhere: no finished runs there"),
        (lambda: basis.of_rows(own_rows(lengths=(100,)), "loss"), "your runs are of one length only (100)"),
        (lambda: basis.of_rows(own_rows(models=("swinv2_atto",)), "loss"), "one size only (swinv2_atto)"),
        (lambda: basis.of_rows(own_rows(scored=False), "accuracy"), "no transfer score"),
        (lambda: basis.of_rows(nan(own_rows()), "loss"), "swinv2_atto-256-100-0: val_loss is nan"),
        (lambda: basis.of_rows(own_rows()[:2] + own_rows()[-1:], "loss"), "too few for any law"),
    ],
)
def test_nonsense_gets_one_line(call, line: str) -> None:
    with pytest.raises(UserError, match="(?s)^[^\n]+$") as caught:
        call()
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--images", "0", "--budget-flops", "1e20"], "images is 0"),
        (
            ["--images", "200000", "--budget-gpu-hours", "9", "--gpus", "A100"],
            "gpus is 'A100': give a whole number from 1 (no GPU is",
        ),
        (["--images", "200k", "--budget-flops", "1e19"], "a budget of 1e+19 FLOPs is under the cheapest option"),
        (["--images", "1,281,167", "--budget-flops", "inf"], "argument --budget-flops: 'inf' is not a number"),
        (["--images", "many", "--budget-flops", "1e20"], "argument --images: 'many' is not a whole number"),
        (["--images", "1e6", "--budget-gpu-hours", "-3"], "budget_gpu_hours is -3.0: give a number above 0"),
        (["--images", "1e6", "--budget_flops", "1e20", "--batch-size", "0"], "batch_size is 0: give a whole number"),
        (["--images", "200000", "--budget-gpu-hours", "9", "--images-per-second", "900"], "give SIZE=NUMBER"),
        (["--budget-flops", "1e20"], "--images"),
    ],
)
def test_the_verb_says_what_is_wrong(words: list[str], line: str, capsys) -> None:
    try:
        status = cli.main(["plan", *words])
    except SystemExit as stop:
        status = stop.code
    errors = capsys.readouterr().err
    assert status == 2
    assert line in errors
    assert errors.count("\n") == 1


def test_the_verb_prints_text_and_numbers(capsys) -> None:
    words = ["plan", "--images", str(FIFTH), "--budget-flops", "1e20"]
    assert cli.main(words) == 0
    assert "what binds: data" in capsys.readouterr().out
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == dataclasses.asdict(plan(FIFTH, budget_flops=1e20))


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "runs.csv"


def _command(capsys, *words: object) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_imported_runs_are_planned_on(tmp_path, capsys) -> None:
    imported.import_csv(EXAMPLE, tmp_path)
    words = ("--images", 256233, "--runs-dir", tmp_path)
    status, out, errors = _command(capsys, "plan", *words, "--budget-flops", 1e20)
    assert status == 0, errors
    assert f"on the imported runs runs in {tmp_path}" in out and "base" in out
    # a second set: the larger one is taken, and which is said
    (tmp_path / "more.csv").write_text("".join(EXAMPLE.read_text().splitlines(keepends=True)[:9]))
    imported.import_csv(tmp_path / "more.csv", tmp_path)
    assert "(the largest of more, runs)" in _command(capsys, "plan", *words, "--budget-flops", 1e20)[1]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: None, "no finished runs there; simmim-lite study all makes some, and records import"),
        (lambda t: t.replace(",image_size", ",note"), "have no cost in FLOPs, and a plan is made under a budget: add"),
        (lambda t: t.replace(",2048,", ",1024,", 3), "are of several batch sizes (1024, 2048): a plan needs"),
        (lambda t: t.replace(",192\n", ",224\n", 3), "are of several image sizes (192, 224)"),
    ],
)  # fmt: skip
def test_why_imported_runs_are_not_planned_on_is_one_line(tmp_path, change, line, capsys) -> None:
    text = change(EXAMPLE.read_text())
    (tmp_path / "theirs.csv").write_text(text or "")
    if text:
        assert _command(capsys, "records", "import", tmp_path / "theirs.csv", "--runs-dir", tmp_path)[0] == 0
    status, _, errors = _command(capsys, "plan", "--images", 256233, "--budget-flops", 1e20, "--runs-dir", tmp_path)
    assert status == 2 and line in errors and errors.count("\n") == 1


def test_the_largest_part_with_a_cost_is_planned_on_and_said(tmp_path, capsys) -> None:
    text = EXAMPLE.read_text().splitlines()
    lines = [text[0] + ",flops", *(line + ",6e20" for line in text[1:-1]), text[-1].replace(",192", ",") + ","]
    (tmp_path / "theirs.csv").write_text("\n".join(line.replace(",192,", ",,").replace(",192", ",") for line in lines))
    imported.import_csv(tmp_path / "theirs.csv", tmp_path)
    words = ("plan", "--images", 256233, "--budget-flops", 1e21, "--runs-dir", tmp_path)
    out = _command(capsys, *words)[1]
    assert "(17 of 18: the others have no loss or no FLOPs)" in out
    assert "--measure: the imported runs" in _command(capsys, *words, "--measure", "cpu")[2]
    assert "image size 224 px is not the unknown one" in _command(capsys, *words, "--image-size", 224)[1]
    assert "none: no finished runs there" in _command(capsys, *words[:-1], tmp_path / "none")[2]
