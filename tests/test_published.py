"""The published runs: every number of FACTS 7 that the product shows, and the claims on them."""

import csv
from importlib.resources import files

import pytest

from simmim_lite.evidence import published
from simmim_lite.evidence.claims import TABLE
from simmim_lite.evidence.records import core_grid


@pytest.fixture(scope="module")
def facts() -> dict:
    return published.facts()


def test_rows_are_the_file() -> None:
    rows = published.rows()
    with (files("simmim_lite.evidence") / "published_runs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(rows) == len(lines) == 63
    for row, line in zip(rows, lines, strict=True):
        assert (row["model"], row["val_loss"]) == (line["model"], float(line["val_loss"]))
        assert row["finetune"] == pytest.approx(float(line["finetune_top1"]) / 100)
        assert row["images_seen"] == int(line["iterations"]) * 2048
    assert len({row["trunk"] for row in rows}) == 21
    assert sum(row["overfit"] for row in rows) == 23
    assert core_grid(rows).steps == 500_000


def test_training_cost() -> None:
    """FLOPs an image of the five sizes at 192 px, as FACTS 7 has them."""
    per_image = {
        row["model"].removeprefix("swinv2_"): row["flops"] / row["images_seen"] / 1e9 for row in published.rows()
    }
    expected = {"small": 40.9, "base": 71.2, "large": 156.8, "huge": 516.4, "giant": 832.0}
    assert per_image == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("name", "n", "value"),
    [
        ("all", 63, -0.786),
        ("whole", 15, -0.966),
        ("22k", 12, -0.979),
        ("non_overfit", 40, -0.961),
        ("overfit", 23, -0.713),
    ],
)
def test_correlations(facts, name, n, value) -> None:
    assert facts["pearson"][name]["n"] == n
    assert facts["pearson"][name]["value"] == pytest.approx(value, abs=0.0006)


def test_the_sign_flips_on_a_tenth(facts) -> None:
    assert facts["pearson"]["tenth"]["n"] == 9
    assert facts["pearson"]["tenth"]["value"] == pytest.approx(0.55, abs=0.005)


def test_intervals_of_correlations(facts) -> None:
    for name, low, high in (("non_overfit", -0.98, -0.94), ("overfit", -0.88, -0.33)):
        found = facts["pearson"][name]
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.015)


def test_pairwise_accuracy(facts) -> None:
    shares = [facts["pairs"][name]["share"] for name in ("overall", "non_overfit", "overfit")]
    assert shares == pytest.approx([0.874, 0.93, 0.76], abs=0.005)
    flip = facts["pairs"]["by_gap"][0]
    assert flip["gap"] == (0.0, 0.001)
    assert flip["low"] < 0.5 < flip["high"]


def test_choosing_size_and_length(facts) -> None:
    size, length = facts["size"], facts["length"]
    assert [size["val_loss"]["share"], size["params"]["share"]] == pytest.approx([0.84, 0.905], abs=0.005)
    assert [length["val_loss"]["share"], length["images_seen"]["share"]] == pytest.approx([0.79, 0.86], abs=0.005)


def test_doublings(facts) -> None:
    assert facts["doublings"] == {
        "n": 42, "fell": 28, "fell_and_gained": 28, "rose": 14, "rose_and_lost": 7, "rose_and_gained": 7
    }  # fmt: skip
    # the turning points are no sharper than a factor of 1.5
    assert 1.3e6 / 1.5 < facts["omega"]["loss"] < 1.3e6 * 1.5
    assert facts["omega"]["score"] == pytest.approx(3e6, rel=0.1)


def test_other_images(facts) -> None:
    shift = facts["22k_against_1k"]
    assert len(shift["loss"]) == 12
    assert (min(shift["loss"]), max(shift["loss"])) == pytest.approx((0.0015, 0.0038), abs=5e-5)
    assert (min(shift["score"]), max(shift["score"])) == pytest.approx((-0.0037, 0.0007), abs=5e-5)


def test_claims() -> None:
    claims = {claim.id: claim for claim in published.claims()}
    assert list(claims) == [rule.id for rule in TABLE]
    assert [claims[i].verdict for i in ("C2", "C3", "C4", "C6", "C7")] == ["holds"] * 5
    for claim in claims.values():
        assert (claim.low is None) == (claim.high is None)
        assert claim.verdict != "holds" or claim.n >= 3
    assert "training losses are unknown" in claims["C5"].evidence
    assert claims["C5"].verdict == claims["C8"].verdict == "too small to say"
    assert claims["C1"].effect == pytest.approx((0.4995 - 0.482 + 0.514 - 0.4961 + 0.515 - 0.5115) / 3)
    # ImageNet-22K is no level above ImageNet-1K: its images are others
    assert "14,197,122" not in "".join(claim.evidence for claim in claims.values())


def test_rows_are_copies() -> None:
    published.rows()[0]["val_loss"] = 0
    assert published.rows()[0]["val_loss"] > 0.4
