"""Doublings of the length, and the turning point of Omega, on made-up runs whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest

from simmim_lite.evidence.proxy import doublings, omega, turning_point


def run(steps: int, val_loss: float, linear: float | None, *, images: int = 64, seed: int = 0, model="m") -> dict:
    scores = {"linear": linear, "knn": None, "segment": None, "finetune": None}
    return scores | {
        "model": model, "params": 1000, "images": images, "steps": steps, "images_seen": 64 * steps, "seed": seed,
        "val_loss": val_loss, "reference": False,
    }  # fmt: skip


def test_pairs_of_a_length_and_its_double() -> None:
    rows = [run(250, 0.5, 0.3), run(500, 0.6, 0.2), run(2000, 0.7, 0.1), run(500, 0.4, 0.5, seed=1)]
    (found,) = doublings(rows).to_dict("records")
    assert found["steps"] == 500
    assert (found["loss_change"], found["score_change"]) == pytest.approx((0.1, -0.1))
    assert found["omega"] == omega(rows[1]) == 1000 * 64 * 500 / 64**2
    # runs without the score or off the recipe are left out
    for none in ([run(250, 0.5, None), run(500, 0.6, 0.2)], [run(0, 0.5, 0.1) | {"reference": True}], []):
        assert not len(doublings([*none, run(125, 0.5, 0.1)]))


def events(omegas, rises) -> pd.DataFrame:
    return pd.DataFrame({"omega": omegas, "loss_change": np.where(rises, 1.0, -1.0), "score_change": 0.0})


def test_turning_point_of_overlapping_events() -> None:
    """Logistic draws about a known point: found to within their noise."""
    rng = np.random.default_rng(0)
    x = rng.uniform(math.log(1e4), math.log(1e8), 4000)
    rises = rng.random(4000) < 1 / (1 + np.exp(-2 * (x - math.log(1e6))))
    assert turning_point(events(np.exp(x), rises)) == pytest.approx(1e6, rel=0.1)


@pytest.mark.parametrize(
    ("rises", "at"),
    [([0, 0, 1, 1], 1e6), ([0, 0, 0, 0], None), ([1, 1, 1, 1], None), ([1, 1, 0, 0], None), ([1, 0, 1, 0], None)],
)
def test_turning_point_of_separate_events_of_one_class_and_of_rarer_ones(rises, at) -> None:
    assert turning_point(events([1e4, 1e5, 1e7, 1e8], rises)) == (at and pytest.approx(at))
    assert turning_point(doublings([])) is None
