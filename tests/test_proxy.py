"""Doublings of the length, the turning point of Omega, and pairs of runs, on made-up runs whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest

from simmim_lite.evidence.proxy import accuracy, doublings, omega, turning_points


def run(images, val_loss, linear, *, model="a", steps=100, overfit=False, seed=0) -> dict:
    return {
        "model": model, "params": {"a": 1000, "b": 2000}[model], "images": images, "steps": steps, "seed": seed,
        "images_seen": 64 * steps, "data": "scenes", "val_loss": val_loss, "train_loss": val_loss / 2,
        "linear": linear, "overfit": overfit, "reference": False,
    }  # fmt: skip


GOOD = [run(10, 0.5, 0.1), run(20, 0.4, 0.2), run(40, 0.3, 0.3), run(80, 0.2, 0.4)]


def test_pairs_of_a_length_and_its_double() -> None:
    cells = [(0.5, 0.3, 250, 0), (0.6, 0.2, 500, 0), (0.7, 0.1, 2000, 0), (0.4, 0.5, 500, 1)]
    rows = [run(64, loss, score, steps=steps, seed=seed) for loss, score, steps, seed in cells]
    (found,) = doublings(rows).to_dict("records")
    assert found["steps"] == 500
    assert (found["loss_change"], found["score_change"]) == pytest.approx((0.1, -0.1))
    assert found["omega"] == omega(rows[1]) == 1000 * 64 * 500 / 64**2
    # runs without the score or off the recipe are left out
    assert not len(doublings([rows[0] | {"linear": None}, rows[1]])) and not len(doublings([]))
    assert not len(doublings([rows[0] | {"reference": True}, rows[1]]))


def turn(omegas, rises) -> float | None:
    """Where the loss turns; of the score, which always falls, it is never said."""
    found = pd.DataFrame({"omega": omegas, "loss_change": np.where(rises, 1.0, -1.0), "score_change": -1.0})
    turns = turning_points(found)
    assert turns["score"] is None
    return turns["loss"]


def test_turning_point() -> None:
    for rises, at in (([0, 0, 1, 1], 1e6), ([0, 0, 0, 0], None), ([1, 1, 0, 0], None), ([1, 0, 1, 0], None)):
        assert turn([1e4, 1e5, 1e7, 1e8], rises) == (at and pytest.approx(at))
    rng = np.random.default_rng(0)
    x = rng.uniform(math.log(1e4), math.log(1e8), 4000)
    rises = rng.random(4000) < 1 / (1 + np.exp(-2 * (x - math.log(1e6))))
    assert turn(np.exp(x), rises) == pytest.approx(1e6, rel=0.1)
    assert turn(10.0 ** np.arange(10), np.isin(range(10), (4, 9))) is None, "it would lie beyond all of them"


def test_a_perfect_proxy_its_opposite_and_overfit_pairs() -> None:
    found = accuracy(GOOD)
    assert found.loc["all pairs"].to_dict() == {"share": 1, "low": 1, "high": 1, "n": 6}
    assert accuracy([row | {"linear": -row["linear"]} for row in GOOD]).share["all pairs"] == 0
    bad = [run(10, 0.9, 0.9, steps=200, overfit=True), run(20, 0.8, 0.8, steps=200, overfit=True)]
    found = accuracy([*GOOD, *bad, run(40, 0.7, 0.05, overfit=None)])
    assert found.loc["both clean"].to_dict() == {"share": 1, "low": 1, "high": 1, "n": 6}
    assert (found.share["both overfit"], found.n["both overfit"]) == (0.0, 1)
    assert 0 < found.low["all pairs"] < found.share["all pairs"] < found.high["all pairs"]
    # equal pairs and missing scores do not count
    few = [run(10, 0.5, 0.1), run(20, 0.5, 0.2), run(40, 0.4, 0.1), run(80, 0.1, None)]
    assert accuracy(few).n["all pairs"] == 1 and not len(accuracy([]))


def test_choices_differ_in_one_thing() -> None:
    rows = [run(10, 0.5, 0.1), run(10, 0.4, 0.2, model="b"), run(10, 0.3, 0.3, steps=200), run(20, 0.1, 0.9)]
    assert accuracy(rows, among="size").n["all pairs"] == 1
    assert accuracy(rows, by="params", among="size").share["all pairs"] == 1
    assert accuracy([*rows, run(10, 0.6, 0.0, steps=200, seed=1)], among="length").n["all pairs"] == 1
