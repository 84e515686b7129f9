"""Pairwise accuracy and the pairs that mislead, on made-up runs whose answer is known."""

import pytest

from simmim_lite.evidence.proxy import accuracy, misleading


def run(images: int, val_loss: float, linear: float | None, *, model="a", steps=100, overfit=False, seed=0) -> dict:
    return {
        "model": model, "params": {"a": 1, "b": 2}[model], "images": images, "steps": steps, "images_seen": 64 * steps,
        "seed": seed, "data": "scenes", "val_loss": val_loss, "train_loss": val_loss / 2, "linear": linear,
        "overfit": overfit, "reference": False, "key": f"{model}{images}{steps}{seed}",
    }  # fmt: skip


GOOD = [run(10, 0.5, 0.1), run(20, 0.4, 0.2), run(40, 0.3, 0.3), run(80, 0.2, 0.4)]


def test_a_perfect_proxy_its_opposite_and_overfit_pairs() -> None:
    found = accuracy(GOOD)
    assert found["overall"] == {"share": 1, "low": 1, "high": 1, "n": 6}
    assert accuracy([row | {"linear": -row["linear"]} for row in GOOD])["overall"]["share"] == 0
    bad = [run(10, 0.9, 0.9, steps=200, overfit=True), run(20, 0.8, 0.8, steps=200, overfit=True)]
    found = accuracy([*GOOD, *bad, run(40, 0.7, 0.05, overfit=None)])
    assert found["non_overfit"] == {"share": 1, "low": 1, "high": 1, "n": 6}
    assert (found["overfit"]["share"], found["overfit"]["n"]) == (0.0, 1)
    assert 0 < found["overall"]["low"] < found["overall"]["share"] < found["overall"]["high"]


def test_gaps_hold_each_pair_once() -> None:
    found = accuracy([run(10, 0.5, 0.1), run(20, 0.4995, 0.2), run(40, 0.497, 0.3), run(80, 0.2, 0.4)])
    assert sum(gap["n"] for gap in found["by_gap"]) == found["overall"]["n"] == 6
    assert [gap["gap"] for gap in found["by_gap"]] == [(0.0, 0.001), (0.002, 0.005), (0.01, None)]


def test_choosing_size_and_length_alone() -> None:
    rows = [run(10, 0.5, 0.1), run(10, 0.4, 0.2, model="b"), run(10, 0.3, 0.3, steps=200), run(20, 0.1, 0.9)]
    assert accuracy(rows, among="size")["overall"]["n"] == 1
    assert accuracy(rows, among="length")["overall"]["n"] == 1
    assert accuracy(rows, by="params", among="size")["overall"]["share"] == 1
    assert accuracy([*rows, run(10, 0.6, 0.0, steps=200, seed=1)], among="length")["overall"]["n"] == 1


def test_equal_pairs_and_missing_scores_do_not_count() -> None:
    assert accuracy([run(10, 0.5, 0.1), run(20, 0.5, 0.2), run(40, 0.4, 0.1), run(80, 0.1, None)])["overall"]["n"] == 1
    assert accuracy([])["overall"] is None


def test_misleading_names_the_worst_pair_first_and_cells_once() -> None:
    rows = [*GOOD, run(10, 0.1, 0.25, steps=200, overfit=True), run(10, 0.1, 0.24, steps=200, seed=1)]
    found = misleading(rows)
    assert found.picked[0] == "a, 10 images, 200 steps, seed 1" and found.better[0] == "a, 80 images, 100 steps, seed 0"
    assert (found.score_lost[0], found.loss_gap[0]) == pytest.approx((0.16, 0.1))
    assert len(found) == 2  # the other seed repeats the cells; 40 images is the second
    assert len(misleading(GOOD)) == len(misleading([])) == 0
    assert len(misleading(rows, top=1)) == 1
