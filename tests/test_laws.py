"""The laws on trial: docs/facts.md, 7, within 15 % or better; known laws found again, bounds, splits, nonsense."""

import json
import math

import numpy as np
import pytest

from simmim_lite import cli
from simmim_lite.errors import UserError
from simmim_lite.evidence import laws, product, published, trial
from simmim_lite.evidence.laws import FORMS, SHAPES, fit, points

#: docs/facts.md, 7, held-out mean absolute errors: loss x 1e-4, accuracy points, by form and split.
TABLE = {
    "fixed": {"one": (18, 0.109), "size": (19, 0.120), "length": (21, 0.109)},
    "free": {"one": (19.5, 0.114), "size": (20, 0.151), "length": (26, 0.118)},
    "constrained": {"one": (55, 0.22), "size": (58, 0.29), "length": (83, 0.33)},
    "chinchilla": {"one": (109, 0.39), "size": (105, 0.44), "length": (164, 0.56)},
    "product": {"one": (104, 0.48), "size": (106, 0.56), "length": (144, 0.54)},
}


TITLES = {"errors": "held-out", "regret": "regret", "coverage": "coverage", "gaps": "how often"}


@pytest.fixture(scope="module")
def said() -> dict:
    found = trial.report(published.rows(), resamples=0)
    return {name: next(v for k, v in found.items() if k.startswith(title)) for name, title in TITLES.items()}


@pytest.mark.parametrize("form", TABLE)
def test_held_out_errors_are_those_of_facts_or_better(said, form: str) -> None:
    found = said["errors"].set_index(["target", "form", "split"])["mean"]
    for split, facts in TABLE[form].items():
        for target, fact, scale in zip(("loss", "accuracy"), facts, (1e4, 1), strict=True):
            assert scale * found[target, form, split] < 1.15 * fact
            if form in ("chinchilla", "product"):  # the rivals get a fair fit, and no better than they are
                assert scale * found[target, form, split] > 0.85 * fact


def test_every_fold_is_counted_and_bounds_are_reported(said) -> None:
    found = said["errors"].query("target == 'loss' and form == 'constrained'").set_index("split")
    assert found.folds.to_dict() == {"one": 63, "cell": 21, "size": 5, "level": 5, "length": 1}
    assert int(found.bounds["one"].split("E at 0 in ")[1].split(",")[0]) > 50
    assert list(said["errors"].form.unique()[:2]) == ["fixed", "free"], "the honest row is right below the fixed one"
    assert "chosen looking at all 63" in laws.HONESTY


@pytest.mark.parametrize(
    ("target", "want"),
    [
        ("loss", {"E": 0.3735, "A": 0.0486, "B": 0.0475, "C": 0.070, "s": 0.0033, "Omega0": 2.7e6}),
        ("accuracy", {"E": 12.19, "A": 1.475, "B": 2.43, "C": 3.23, "Omega0": 5.0e6}),
    ],
)
def test_the_laws_are_those_of_facts(target, want) -> None:
    found = trial.parameters(published.rows(), ("fixed",), resamples=0).query("target == @target")
    assert found.set_index("parameter").value.to_dict() == pytest.approx(want | SHAPES[target], rel=0.05)
    assert set(found.bound) == {""} and found.low.isna().all()


def test_regret_on_unseen_data_levels(said) -> None:
    found = said["regret"]
    assert set(found["n"]) == {58}
    for form in ("fixed", "free"):
        assert found["mean"][f"accuracy law, exponents {form}"] <= 0.05
    assert found["mean"]["measured loss of every option"] == pytest.approx(0.19, abs=0.01)
    rules = ["longest, then largest", "largest, then longest", "most compute", "random"]
    assert found["mean"][rules].min() > 3 * found["mean"]["accuracy law, exponents fixed"]


def test_where_intervals_under_cover_is_said(said) -> None:
    found = said["coverage"].query("target == 'accuracy' and form == 'fixed'").set_index(["split", "group"])
    tenth, giant = found.loc["level", "imagenet1k-10"], found.loc["size", "swinv2_giant"]
    assert tenth.others == pytest.approx(0.56, abs=0.01) and giant.others < 0.7
    assert tenth.under and giant.under and not found.loc["level", "imagenet1k-100"].under


def test_quantiles_and_pairs_are_those_of_facts(said) -> None:
    """90 % half widths within a third, or narrower; the better prediction names the better run."""
    facts = {"one": (0.24, 0.0045), "size": (0.26, 0.0047), "level": (0.25, 0.0059), "length": (0.20, 0.0063)}
    found = said["errors"].set_index(["target", "form", "split"]).half_width
    for split, (accuracy, loss) in facts.items():
        assert found["accuracy", "fixed", split] < 1.33 * accuracy and found["loss", "fixed", split] < 1.33 * loss
    shares = 100 * said["gaps"].query("form == 'fixed'").share
    assert shares.tolist() == pytest.approx([61, 79, 92, 97], abs=4)


def test_the_product_is_rejected() -> None:
    rows = published.rows()
    clean = [r for r in rows if not r["overfit"] and r["on_axis"]]
    assert math.log10(product.slopes(points(clean, "loss"))["p"]) == pytest.approx(math.log10(2e-8), abs=0.3)
    found = product.claim(rows)
    assert (found.id, found.verdict) == ("C9", "does not hold")
    assert found.high < 0.5
    assert product.slopes(points([r for r in clean if r["model"] == "swinv2_base"], "loss")) is None


def made(form: str, target: str, truth: dict, rows: list[dict]) -> list[dict]:
    """Rows whose loss or score follows a law exactly."""
    x = points(rows, target)
    shapes = {name: truth[name] for name in ("a", "b", "p", "Omega0") if name in truth}
    columns = FORMS[form].columns(shapes, x, (1e8, 1e5))
    y = sum(truth[name] * column for name, column in columns.items())
    return [
        r | ({"val_loss": v} if target == "loss" else {"finetune": 1 - v / 100}) for r, v in zip(rows, y, strict=True)
    ]


@pytest.mark.parametrize("target", ["loss", "accuracy"])
def test_a_known_law_is_found_again(target: str) -> None:
    level = {"loss": 0.3, "accuracy": 10.0}[target]
    truth = {"a": 0.5, "b": 0.4, "p": 1.5, "Omega0": 2e6, "E": level, "A": level / 8, "B": level / 5, "C": level / 4}
    rows = made("free", target, truth | {"s": 0.0}, published.rows())
    law = fit("free", points(rows, target))
    found = law.shapes | law.coefficients
    assert {name: found[name] for name in truth} == pytest.approx(truth, rel=0.02)
    assert law.predict(points(rows, target)) == pytest.approx(points(rows, target).y, rel=1e-5)


def test_one_wild_run_moves_little() -> None:
    rows = published.rows()
    wild = [r | {"val_loss": 2 * r["val_loss"]} if k == 20 else r for k, r in enumerate(rows)]
    laws_ = [fit("fixed", points(some)) for some in (rows, wild)]
    x = points(rows)
    assert np.abs(laws_[0].predict(x) - laws_[1].predict(x)).max() < 0.003


def test_seeds_of_a_setting_are_held_out_together() -> None:
    rows = [r | {"seed": s, "val_loss": r["val_loss"] + 0.001 * s} for r in published.rows()[:12] for s in (0, 1)]
    x = points(rows)
    for train, test in trial.folds(x, "one"):
        assert len(test) == 2 and not set(x.unit[train]) & set(x.unit[test])
    assert laws.seed_spread(x) == pytest.approx(0.001 / math.sqrt(2) / 0.48, rel=0.1)
    assert points([rows[0] | {"finetune": 0.0}, *rows[1:]], "accuracy").y[0] == 100  # a score of nothing


def test_the_bootstrap_draws_whole_cells_and_repeats() -> None:
    x = points(published.rows(), "accuracy")
    first, again = (laws.bootstrap("fixed", x, resamples=4) for _ in range(2))
    assert [f.coefficients for f in first] == [f.coefficients for f in again]
    low, high = laws.interval(first, "E")
    assert 11 < low < high < 13


def change(rows: list[dict], **fields) -> list[dict]:
    return [rows[0] | fields, *rows[1:]]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda rows: points(change(rows, val_loss=math.nan)), "imagenet1k-10-125000: val_loss is nan"),
        (lambda rows: points(change(rows, images=0)), "images is 0: give a number above 0"),
        (lambda rows: points(change(rows, finetune=1.0), "accuracy"), "give a fraction below 1"),
        (lambda rows: points(rows, "top1"), "unknown target 'top1'"),
        (lambda rows: points([r | {"finetune": None} for r in rows], "accuracy"), "no run has a transfer score"),
        (lambda rows: points([]), "no finished run"),
        (lambda rows: fit("kaplan", points(rows)), "unknown form 'kaplan'"),
        (lambda rows: fit("free", points(rows[:5])), "5 different runs are too few"),
        (lambda rows: list(trial.folds(points(rows), "half")), "unknown split 'half'"),
        (lambda rows: list(trial.folds(points(rows[:3]), "size")), "all runs share one size"),
        (lambda rows: list(trial.folds(points(rows[::3]), "length")), "all runs have 125,000 steps"),
    ],
)
def test_nonsense_gets_one_line(call, line: str) -> None:
    with pytest.raises(UserError, match="(?s)^[^\n]+$") as caught:
        call(published.rows())
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--runs-dir", "nowhere"], "nowhere: no finished runs there"),
        (["--file", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--file", "a.csv", "--runs-dir", "b"], "choose one table of runs"),
        (["--resamples", "-1"], "resamples is -1"),
        (["--file", "nan.csv"], "nan.csv, line 2: val_loss is 'nan'"),
    ],
)
def test_the_verb_says_what_is_wrong(words, line, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nan.csv").write_text("params,unique_images,iterations,batch_size,val_loss\n1000,10,5,2,nan\n")
    assert cli.main(["laws", *words]) == 2
    errors = capsys.readouterr().err
    assert line in errors
    assert errors.count("\n") == 1


def test_the_verb_takes_any_table(capsys, tmp_path) -> None:
    lines = ["params,unique_images,iterations,batch_size,val_loss"]
    lines += [f"{n},{d},{t},64,{0.3 + n**-0.3 + t**-0.4}" for n in (1e5, 1e6) for d in (100, 10000) for t in (100, 200)]
    (tmp_path / "own.csv").write_text("\n".join(lines).replace("00000.0", "00000"))
    assert cli.main(["laws", "--file", str(tmp_path / "own.csv"), "--resamples", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == "8" and "no run has a score" in found.values()
    by_form = {line["form"]: line for line in found["held-out errors"]}
    assert "too few" in by_form["free"]["why"] and by_form["product"]["mean"] >= 0
