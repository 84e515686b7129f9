"""C10 on made-up runs: four beginnings told apart, and a verdict that is what was put in."""

import numpy as np
import pytest
from synthetic_records import record

from simmim_lite.evidence import beginnings
from simmim_lite.evidence.rules import FAILS, HOLDS, OPEN, UNTESTED

LEVELS, FOREIGN = (64, 1024, 16384), "atto-scenes-n16384-t2000-s{}-0123456789"


def runs(own, both, foreign=0.5, seeds=4, noise=0.004):
    """Records of all arms; own, both: score at each level."""
    rng, found = np.random.default_rng(0), [record(data="scenes", images=16384, steps=2000, scores={"linear": 0.7})]
    for seed in range(seeds):
        init, score = FOREIGN.format(seed), lambda value: {"linear": value + noise * rng.standard_normal()}
        same = {"data": "plankton", "seed": seed, "images": LEVELS[-1]}
        found += [record(**same, steps=0, scores=score(0.3)), record(**same, steps=0, init=init, scores=score(foreign))]
        for level, alone, joint in zip(LEVELS, own, both, strict=True):
            same = {"data": "plankton", "seed": seed, "images": level, "steps": 500}
            found += [record(**same, scores=score(alone)), record(**same, init=init, scores=score(joint))]
    return found


@pytest.mark.parametrize(
    ("own", "both", "seeds", "verdict", "words"),
    [
        ((0.4, 0.5, 0.55), (0.55, 0.58, 0.62), 4, HOLDS, "From 64 own images on both beat either"),
        ((0.4, 0.5, 0.55), (0.45, 0.58, 0.62), 4, HOLDS, "From 1,024 own images on"),
        ((0.4, 0.6, 0.65), (0.45, 0.55, 0.6), 4, FAILS, "at 16,384 images -4.8"),
        ((0.4, 0.5, 0.55), (0.55, 0.58, 0.55), 4, OPEN, "over foreign weights as they are"),
        ((0.4, 0.5, 0.55), (0.55, 0.58, 0.62), 2, OPEN, "2 seeds: 0, 1"),
    ],
)
def test_a_verdict_is_what_was_put_in(own, both, seeds, verdict, words) -> None:
    found = beginnings.claim(runs(own, both, seeds=seeds))
    assert found.verdict == verdict and words in found.evidence, found


def test_arms_and_gains() -> None:
    frame = beginnings.arms(runs((0.4, 0.5, 0.55), (0.55, 0.58, 0.62), noise=0.0))
    assert frame.groupby("arm").size().to_dict() == {"random": 4, "foreign": 4, "own": 12, "both": 12}
    assert set(frame["data"]) == {"plankton"} and set(frame[frame["arm"] == "foreign"]["images"]) == {0}
    gains = beginnings.gains(frame).set_index(["images", "over"])["value"]
    assert gains[64, "own"] == pytest.approx(15) and gains[16384, "foreign"] == pytest.approx(12)
    assert beginnings.claim([record(scores={"linear": 0.5})]).verdict == UNTESTED
