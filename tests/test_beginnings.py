"""C10 on made-up runs: four beginnings told apart, and a verdict that is what was put in."""

import numpy as np
import pytest
from picture_folders import one_line
from synthetic_records import record

from simmim_lite.evidence import beginnings
from simmim_lite.evidence.rules import FAILS, HOLDS, OPEN, UNTESTED
from simmim_lite.model.simmim import create_model
from simmim_lite.model.weights import save_weights
from simmim_lite.studies import grids

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
        ((0.4, 0.5, 0.55), (0.55, 0.58, 0.55), 4, OPEN, "over foreign weights"),
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


def test_of_several_studies_in_a_folder_the_largest_is_shown(monkeypatch) -> None:
    """Another length, other foreign weights: their runs are not averaged with those of the study that is shown."""
    found = runs((0.4, 0.5, 0.55), (0.55, 0.58, 0.62))
    other = [record(data="plankton", seed=0, images=64, steps=20, init="other@0123456789ab", scores={"linear": 0.9})]
    assert beginnings.arms([*found, *other]).equals(beginnings.arms(found))
    tested = beginnings.claim(found)
    monkeypatch.setattr(beginnings, "SMOKE_STEPS", 500)
    assert tested.verdict == HOLDS and beginnings.claim(found).evidence == "Runs of 500 steps test the machinery"


def test_the_grid_has_four_arms_of_the_same_runs(monkeypatch) -> None:
    before, found = grids.beginnings("quick", seeds=(7, 8))
    assert [(run.data, run.seed) for run in before] == [("scenes", 7), ("scenes", 8)]
    untrained, foreign, *rest = found[:8]
    assert (untrained.random, foreign.steps, foreign.init) == (True, 0, before[0].key)
    own, both = rest[:3], rest[3:]
    assert [run.images for run in own] == [run.images for run in both] == [64, 1024, 16384]
    assert {run.init for run in own} == {None} and {run.init for run in both} == {before[0].key}
    assert {(run.data, run.seed, run.steps) for run in rest} == {("plankton", 7, 500)}
    shown, _ = grids.beginnings("shipped")
    assert {run.model for run in shown} == {"swinv2_femto"} and len(shown) == 4
    monkeypatch.setattr(grids, "images_of", lambda data: {"available": 16_300})  # a few cannot be read
    assert {run.images for run in grids.beginnings("quick", seeds=1)[1]} == {64, 1024, 16_300}


def test_given_weights_say_the_size_and_full_size_ones_the_input(tmp_path) -> None:
    file = save_weights(create_model("swinv2_femto", img_size=32, window_size=4), tmp_path / "timm.pth", layout="timm")
    before, found = grids.beginnings("quick", foreign=str(file), seeds=1)
    assert before == [] and {run.model for run in found} == {"swinv2_femto"}
    assert len({run.init for run in found}) == 2 and found[1].init.startswith(f"{file}@")
    _, found = grids.beginnings("quick", foreign="base-photos-n100-t10-s0-0123456789", seeds=1)
    assert {(run.model, run.image_size, run.window_size, run.mask_patch) for run in found} == {
        ("swinv2_base", 192, 12, 32)
    }
    assert found[2].lr == pytest.approx(4e-4 * 64 / 2048) and found[-1].lr == pytest.approx(found[2].lr / 10)
    one_line("no such file", grids.beginnings, "quick", foreign=str(tmp_path / "none.pth"))
    one_line("unknown tier", grids.beginnings, "paper")
