"""The published runs: every number of docs/facts.md, 7, that the product shows, and the claims on them."""

import csv

import pytest

from simmim_lite.evidence import published
from simmim_lite.evidence.records import FOLDER
from simmim_lite.evidence.rules import TABLE


@pytest.fixture
def facts() -> dict:
    return published.facts()


@pytest.fixture
def claims() -> dict:
    return {claim.id: claim for claim in published.claims()}


def test_rows_are_the_file() -> None:
    rows = published.rows()
    with (FOLDER.parent / "published_runs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(rows) == len(lines) == 63
    for row, line in zip(rows, lines, strict=True):
        assert (row["model"], row["val_loss"]) == (line["model"], float(line["val_loss"]))
        assert row["finetune"] == pytest.approx(float(line["finetune_top1"]) / 100)
        assert row["images_seen"] == int(line["iterations"]) * 2048
    assert len({row["trunk"] for row in rows}) == 21
    assert sum(row["overfit"] for row in rows) == 23
    per_image = {row["model"].removeprefix("swinv2_"): row["flops"] / row["images_seen"] / 1e9 for row in rows}
    expected = {"small": 40.9, "base": 71.2, "large": 156.8, "huge": 516.4, "giant": 832.0}  # at 192 px
    assert per_image == pytest.approx(expected, abs=0.05)
    rows[0]["val_loss"] = 0
    assert published.rows()[0]["val_loss"] > 0.4, "rows are copies"


def test_correlations(facts) -> None:
    found = facts["pearson"]
    value = {"all": -0.786, "whole": -0.966, "22k": -0.979, "non_overfit": -0.961, "overfit": -0.713, "tenth": 0.548}
    assert {name: one["value"] for name, one in found.items()} == pytest.approx(value, abs=0.0006)
    assert [found[name]["n"] for name in value] == [63, 15, 12, 40, 23, 9]
    ends = [found[name][end] for name in ("non_overfit", "overfit") for end in ("low", "high")]
    assert ends == pytest.approx([-0.98, -0.94, -0.88, -0.33], abs=0.015)


def test_pairwise_accuracy_and_doublings(facts) -> None:
    shares = [facts["pairs"][name]["share"] for name in ("overall", "non_overfit", "overfit")]
    assert shares == pytest.approx([0.874, 0.93, 0.76], abs=0.005)
    flip = facts["pairs"]["by_gap"][0]
    assert flip["gap"] == (0.0, 0.001) and flip["low"] < 0.5 < flip["high"]
    size, length = facts["size"], facts["length"]
    assert [size["val_loss"]["share"], size["params"]["share"]] == pytest.approx([0.84, 0.905], abs=0.005)
    assert [length["val_loss"]["share"], length["images_seen"]["share"]] == pytest.approx([0.79, 0.86], abs=0.005)
    counts = {"n": 42, "fell": 28, "fell_and_gained": 28, "rose": 14, "rose_and_lost": 7, "rose_and_gained": 7}
    assert facts["doublings"] == counts
    # the turning points are no sharper than a factor of 1.5
    assert 1.3e6 / 1.5 < facts["omega"]["loss"] < 1.3e6 * 1.5
    assert facts["omega"]["score"] == pytest.approx(3e6, rel=0.1)
    shift = facts["22k_against_1k"]
    assert len(shift["loss"]) == 12
    assert (min(shift["loss"]), max(shift["loss"])) == pytest.approx((0.0015, 0.0038), abs=5e-5)
    assert (min(shift["score"]), max(shift["score"])) == pytest.approx((-0.0037, 0.0007), abs=5e-5)


@pytest.mark.parametrize(
    ("claim", "n", "effect", "low", "high"),
    [
        ("C1", 9, 0.0092, 0.0021, 0.0163),
        ("C2", 4, -0.0058, -0.0104, -0.0011),
        ("C3", 5, -0.0042, -0.0050, -0.0034),
        ("C4", 3, 0.0123, 0.0025, 0.0222),
        ("C5a", 21, -0.90, -1.0, -0.82),
        ("C7", 14, -0.0001, -0.0018, 0.0016),
    ],
)
def test_claims_by_cells(claims, claim, n, effect, low, high) -> None:
    """As docs/settings.md prints them; a sentence says that an interval over cells is no repetition."""
    found, digits = claims[claim], 2 if claim == "C5a" else 4
    assert found.verdict == "holds" and found.n == n
    assert [round(v, digits) for v in (found.effect, found.low, found.high)] == [effect, low, high]
    assert "not repetition; chosen after seeing these runs" in found.evidence


def test_what_the_published_runs_cannot_test(claims) -> None:
    assert list(claims) == [rule.id for rule in TABLE]
    assert claims["C5b"].verdict == claims["C8"].verdict == "not tested here"
    assert "training losses" in claims["C5b"].evidence and "supervised" in claims["C8"].evidence
    assert claims["C6"].verdict == "too small to say" and claims["C6"].n == 3
    assert claims["C7"].margin == pytest.approx(-0.0025, abs=5e-5)
    assert claims["C9"].verdict == "does not hold" and claims["C9"].high < 0.5
    # ImageNet-22K is no level above ImageNet-1K: its images are others
    assert "14,197,122" not in "".join(claim.evidence for claim in claims.values())
    assert "gains less from data, and is not shown to be worse" in claims["C1"].evidence
