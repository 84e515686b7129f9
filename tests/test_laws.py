"""The laws on trial: docs/facts.md, 7, within 15 % or better; known laws found again, bounds, splits, nonsense."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from simmim_lite.errors import UserError
from simmim_lite.evidence import laws, published, trial
from simmim_lite.evidence.laws import FORMS, SHAPES, fit, points

#: docs/facts.md, 7, held-out mean absolute errors: loss x 1e-4, accuracy points, by form and split.
TABLE = {
    "fixed": {"one": (18, 0.109), "size": (19, 0.120), "length": (21, 0.109)},
    "free": {"one": (19.5, 0.114), "size": (20, 0.151), "length": (26, 0.118)},
    "constrained": {"one": (55, 0.22), "size": (58, 0.29), "length": (83, 0.33)},
    "chinchilla": {"one": (109, 0.39), "size": (105, 0.44), "length": (164, 0.56)},
    "product": {"one": (104, 0.48), "size": (106, 0.56), "length": (144, 0.54)},
}


@pytest.fixture(scope="module")
def errors() -> pd.DataFrame:
    return trial.errors(published.rows()).set_index(["target", "form", "split"])


@pytest.mark.parametrize("form", TABLE)
def test_held_out_errors_are_those_of_facts_or_better(errors, form: str) -> None:
    for split, facts in TABLE[form].items():
        for target, fact, scale in zip(("loss", "accuracy"), facts, (1e4, 1), strict=True):
            found = scale * errors["mean"][target, form, split]
            assert found < 1.15 * fact
            if form in ("chinchilla", "product"):  # the rivals get a fair fit, and no better than they are
                assert found > 0.85 * fact


def test_every_fold_is_counted_and_bounds_are_reported(errors) -> None:
    found = errors.sort_index().loc["loss", "constrained"]
    assert found.folds.to_dict() == {"one": 63, "cell": 21, "size": 5, "level": 5, "length": 1}
    assert int(found.bounds["one"].split("E at 0 in ")[1].split(",")[0]) > 50
    # 90 % half widths within a third of facts, or narrower
    facts = {"one": (0.24, 0.0045), "size": (0.26, 0.0047), "level": (0.25, 0.0059), "length": (0.20, 0.0063)}
    for split, limits in facts.items():
        for target, limit in zip(("accuracy", "loss"), limits, strict=True):
            assert errors.half_width[target, "fixed", split] < 1.33 * limit


@pytest.mark.parametrize(
    ("target", "want"),
    [
        ("loss", {"E": 0.3735, "A": 0.0486, "B": 0.0475, "C": 0.070, "s": 0.0033, "Omega0": 2.7e6}),
        ("accuracy", {"E": 12.19, "A": 1.475, "B": 2.43, "C": 3.23, "Omega0": 5.0e6}),
    ],
)
def test_the_laws_are_those_of_facts(target, want) -> None:
    found = trial.parameters(published.rows(), ("fixed",), resamples=4).query("target == @target")
    found = found.set_index("parameter")
    assert found.value.to_dict() == pytest.approx(want | SHAPES[target], rel=0.05) and set(found.bound) == {""}
    assert target == "loss" or 11 < found.low.E < found.high.E < 13


def test_regret_on_unseen_data_levels() -> None:
    found = trial.regret(published.rows())
    assert set(found["n"]) == {58}
    for form in ("fixed", "free"):
        assert found["mean"][f"accuracy law, exponents {form}"] <= 0.05
    assert found["mean"][trial.MEASURED] == pytest.approx(0.19, abs=0.01)
    rules = ["longest, then largest", "largest, then longest", trial.RANDOM]
    assert found["mean"][rules].min() > 3 * found["mean"]["accuracy law, exponents fixed"]


def test_where_intervals_under_cover_and_which_prediction_is_better() -> None:
    x = points(published.rows(), "accuracy")
    level, size = (trial.coverage(x, trial.held_out("fixed", x, by), by) for by in ("level", "size"))
    tenth, giant = level["imagenet1k-10"], size["swinv2_giant"]
    assert tenth["others"] == pytest.approx(0.56, abs=0.01) and giant["others"] < 0.7
    assert tenth["under"] and giant["under"] and not level["imagenet1k-100"]["under"]
    i, j = np.triu_indices(len(x), 1)  # docs/facts.md, 7: of two held-out runs, by the gap of their predictions
    predicted = trial.held_out("fixed", x, "cell").predicted
    gap, use = predicted[i] - predicted[j], (x.y[i] != x.y[j]) & (x.unit[i] != x.unit[j])
    inside = [use & (abs(gap) >= low) & (abs(gap) < high) for low, high in pairwise((0.0, 0.1, 0.2, 0.4, np.inf))]
    shares = [100 * (gap[some] * (x.y[i] - x.y[j])[some] > 0).mean() for some in inside]
    assert shares == pytest.approx([61, 79, 92, 97], abs=4)


def test_the_product_is_rejected() -> None:
    clean = [r for r in published.rows() if not r["overfit"] and r["on_axis"]]
    assert math.log10(laws.slopes(points(clean, "loss"))["p"]) == pytest.approx(math.log10(2e-8), abs=0.3)
    assert laws.slopes(points([r for r in clean if r["model"] == "swinv2_base"], "loss")) is None


@pytest.mark.parametrize("target", ["loss", "accuracy"])
def test_a_known_law_is_found_again(target: str) -> None:
    level = {"loss": 0.3, "accuracy": 10.0}[target]
    truth = {"a": 0.5, "b": 0.4, "p": 1.5, "Omega0": 2e6, "E": level, "A": level / 8, "B": level / 5, "C": level / 4}
    rows = published.rows()
    columns = FORMS["free"].columns(truth, points(rows, target), (1e8, 1e5))
    y = sum((truth | {"s": 0.0})[name] * column for name, column in columns.items())
    name, values = ("val_loss", y) if target == "loss" else ("finetune", 1 - y / 100)
    x = points([row | {name: value} for row, value in zip(rows, values, strict=True)], target)
    law = fit("free", x)
    found = law.shapes | law.coefficients
    assert {name: found[name] for name in truth} == pytest.approx(truth, rel=0.02)
    assert law.predict(x) == pytest.approx(x.y, rel=1e-5)


def test_one_wild_run_moves_little() -> None:
    rows = published.rows()
    wild = [r | {"val_loss": 2 * r["val_loss"]} if k == 20 else r for k, r in enumerate(rows)]
    one, other = (fit("fixed", points(some)).predict(points(rows)) for some in (rows, wild))
    assert np.abs(one - other).max() < 0.003


def test_seeds_of_a_setting_are_held_out_together() -> None:
    rows = [r | {"seed": s, "val_loss": r["val_loss"] + 0.001 * s} for r in published.rows()[:12] for s in (0, 1)]
    x = points(rows)
    for train, test in trial.folds(x, "one"):
        assert len(test) == 2 and not set(x.unit[train]) & set(x.unit[test])
    assert points([rows[0] | {"finetune": 0.0}, *rows[1:]], "accuracy").y[0] == 100  # a score of nothing


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda rows: points([rows[0] | {"val_loss": math.nan}]), "imagenet1k-10-125000: val_loss is nan"),
        (lambda rows: points([rows[0] | {"images": 0}]), "images is 0: give a number above 0"),
        (lambda rows: points([rows[0] | {"finetune": 1.0}], "accuracy"), "a fraction below 1"),
        (lambda rows: points(rows, "top1"), "unknown target 'top1'"),
        (lambda rows: points([r | {"finetune": None} for r in rows], "accuracy"), "no run has a transfer score"),
        (lambda rows: points([]), "no finished run"),
        (lambda rows: fit("kaplan", points(rows)), "unknown form 'kaplan'"),
        (lambda rows: fit("free", points(rows[:5])), "5 different runs are too few"),
        (lambda rows: list(trial.folds(points(rows), "half")), "unknown split 'half'"),
        (lambda rows: list(trial.folds(points(rows[:3]), "size")), "all runs share one size"),
        (lambda rows: list(trial.folds(points(rows[::3]), "length")), "all runs share one length"),
        (lambda rows: trial.regret([r | {"flops": None} for r in rows]), "no budget problem"),
    ],
)
def test_nonsense_gets_one_line(call, line: str) -> None:
    with pytest.raises(UserError, match="(?s)^[^\n]+$") as caught:
        call(published.rows())
    assert line in str(caught.value)
