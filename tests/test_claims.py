"""claims.py: every branch of every claim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic_records import ATTO, FEMTO, PICO, record, study

from simmim_lite.evidence.claims import FAILS, HOLDS, OPEN, TABLE, claims

IDS = ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8"]
PAIRED = ("C1", "C2", "C3", "C4", "C6")  # validation losses, paired by seed


def grid(change, *, sizes=(ATTO, FEMTO), levels=(64, 1024, 16384), lengths=(500, 1000), seeds=(0, 1, 2), **fields):
    """Records whose validation loss is .3 + change(model, images, steps, seed); None leaves the run out."""
    made = []
    for model in sizes:
        for images in levels:
            for steps in lengths:
                for seed in seeds:
                    shift = change(model, images, steps, seed)
                    if shift is not None:
                        cell = {"model": model, "images": images, "steps": steps, "seed": seed}
                        made.append(record(val=0.3 + shift, **cell, **fields))
    return made


def one(records, claim):
    (found,) = [c for c in claims(records) if c.id == claim]
    return found


def noise(seed):
    return (-0.0005, 0.0, 0.0005)[seed % 3]


def slow_t(values):
    """A t interval by scipy's own, from the standard error."""
    return stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))


# where each contrast shows: (claim, is this run on the plus side?, is it in the pair at all?)
PLUS = {
    "C1": lambda m, n, t: m == FEMTO and n == 64 and t == 1000,
    "C2": lambda m, n, t: m == FEMTO and n == 16384 and t == 1000,
    "C3": lambda m, n, t: n == 16384 and t == 1000,
    "C4": lambda m, n, t: m == FEMTO and n == 64 and t == 1000,
    "C6": lambda m, n, t: m == ATTO and n == 16384 and t == 1000,
}


@pytest.mark.parametrize(
    ("claim", "effect", "verdict"),
    [
        ("C1", 0.02, HOLDS), ("C1", -0.02, FAILS), ("C1", 0.0, OPEN), ("C1", 0.001, OPEN),
        ("C2", -0.02, HOLDS), ("C2", 0.02, FAILS), ("C2", 0.0, OPEN), ("C2", -0.001, OPEN),
        ("C3", -0.02, HOLDS), ("C3", 0.02, FAILS), ("C3", -0.001, OPEN),
        ("C4", 0.02, HOLDS), ("C4", -0.02, FAILS), ("C4", 0.001, OPEN),
        ("C6", 0.0, HOLDS), ("C6", 0.001, HOLDS), ("C6", 0.004, OPEN), ("C6", -0.004, OPEN),
        ("C6", 0.02, FAILS), ("C6", -0.02, FAILS),
    ],
)  # fmt: skip
def test_verdict_effect_and_interval(claim, effect, verdict):
    plus = PLUS[claim]

    def change(m, n, t, seed):
        return (effect + noise(seed) if plus(m, n, t) else 0.0) + 0.1 * seed  # seeds differ by far: pairs do not

    found = one(grid(change), claim)
    low, high = slow_t([effect + noise(seed) for seed in (0, 1, 2)])
    assert found.effect == pytest.approx(effect, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.verdict, found.n) == (verdict, 3)
    for number in (f"{abs(found.effect):.4f}", f"{low:+.4f}", f"{high:+.4f}", "3 seeds: 0, 1, 2", "1,000"):
        assert number in found.evidence
    assert (found.data, found.target, found.image_size) == ("scenes", "raw", 32)


@pytest.mark.parametrize(
    ("claim", "just_short", "just_beyond"),
    [("C1", 0.0009, 0.0011), ("C2", -0.0009, -0.0011), ("C3", -0.0009, -0.0011), ("C4", 0.0009, 0.0011)],
)
def test_the_margin_itself_decides(claim, just_short, just_beyond):
    for effect, verdict in ((just_short, FAILS), (just_beyond, HOLDS)):
        records = grid(lambda m, n, t, s, e=effect: e + noise(s) / 100 if PLUS[claim](m, n, t) else 0.0)
        assert one(records, claim).verdict == verdict


@pytest.mark.parametrize(("effect", "verdict"), [(0.0039, HOLDS), (-0.0039, HOLDS), (0.0041, FAILS), (-0.0041, FAILS)])
def test_the_margin_of_c6_has_two_sides(effect, verdict):
    records = grid(lambda m, n, t, s: effect + noise(s) / 100 if PLUS["C6"](m, n, t) else 0.0)
    assert one(records, "C6").verdict == verdict


def test_c3_is_the_mean_over_sizes_within_a_seed():
    gain = {ATTO: 0.01, FEMTO: 0.03, PICO: 0.02}
    records = grid(lambda m, n, t, s: -gain[m] + noise(s) if t == 1000 else 0.0, sizes=(ATTO, FEMTO, PICO))
    found = one(records, "C3")
    assert found.effect == pytest.approx(-0.02) and "atto, femto, pico" in found.evidence and found.n == 3
    # a size between the ends may sit the study out
    records = grid(
        lambda m, n, t, s: None if m == FEMTO and t == 500 else -gain[m] if t == 1000 else 0.0,
        sizes=(ATTO, FEMTO, PICO),
    )
    found = one(records, "C3")
    assert found.effect == pytest.approx(-0.015) and "mean of atto, pico" in found.evidence


def test_c6_leaves_overfit_seeds_out():
    records = grid(lambda m, n, t, s: 0.5 if s == 1 and n == 16384 else noise(s) / 2)
    for r in records:
        if r["run"]["seed"] == 1 and r["run"]["images"] == 16384:
            r["curve"][0]["val_loss"] = r["final"]["val_loss"] - 0.005
    found = one(records, "C6")
    assert found.n == 2 and "seed 1 left out, a run of the pair is overfit" in found.evidence and found.verdict == HOLDS
    for r in records:
        r["curve"][0]["val_loss"] = r["final"]["val_loss"] - 0.005
    found = one(records, "C6")
    assert (found.verdict, found.n, found.effect) == (OPEN, 0, None) and "overfit" in found.evidence


def test_c6_compares_with_the_level_next_to_the_largest():
    found = one(grid(lambda m, n, t, s: 0.1 * (n == 64) + noise(s)), "C6")
    assert (
        found.effect == pytest.approx(0, abs=1e-12) and "16,384 images" in found.evidence and "1,024" in found.evidence
    )


def test_one_seed_has_no_interval():
    for found in claims(grid(lambda *cell: 0.0, seeds=(4,))):
        assert found.verdict == OPEN and found.low is None and found.high is None
        if found.id in PAIRED:
            assert "seed 4" in found.evidence and "one seed gives no interval" in found.evidence and found.n == 1


@pytest.mark.parametrize(
    ("claim", "missing", "said"),
    [
        ("C1", (FEMTO, 64, 1000), "femto at 64 images and 1,000 steps"),
        ("C2", (ATTO, 16384, 1000), "atto at 16,384 images and 1,000 steps"),
        ("C3", (ATTO, 16384, 500), "atto at 16,384 images and 500 steps"),
        ("C4", (FEMTO, 64, 500), "femto at 64 images and 500 steps"),
        ("C6", (ATTO, 1024, 1000), "atto at 1,024 images and 1,000 steps"),
    ],
)
def test_missing_runs_are_named(claim, missing, said):
    # the half length lacks more cells, so that 1,000 steps stay the core grid's length
    holes = {missing, (ATTO, 1024, 500), (FEMTO, 1024, 500)}
    found = one(grid(lambda m, n, t, s: None if (m, n, t) in holes else 0.0), claim)
    assert found.verdict == OPEN and found.effect is None and found.n == 0
    assert "Missing runs" in found.evidence and said in found.evidence


def test_a_seed_without_its_partner_is_left_out_and_named():
    records = grid(lambda m, n, t, s: None if (m, n, s) == (FEMTO, 64, 2) else noise(s))
    found = one(records, "C1")
    assert found.n == 2 and "seed 2 left out, a run of the pair is missing" in found.evidence
    records = grid(lambda m, n, t, s: None if (n == 64 and (s == 0) != (m == ATTO)) else 0.0)
    assert "No pair of runs to compare" in one(records, "C1").evidence


def test_a_loss_that_is_not_finite_is_a_missing_run():
    records = grid(lambda m, n, t, s: 0.01 + noise(s) if m == FEMTO else 0.0)
    for r in records:
        if (r["run"]["model"], r["run"]["seed"]) == (FEMTO, 0):
            r["final"]["val_loss"] = float("nan")
    found = one(records, "C1")
    assert found.n == 2 and found.effect == pytest.approx(0.01025)


def test_the_schedule_claims_use_the_cells_run_at_several_lengths():
    # the core grid has more sizes and levels, and a shorter length than the schedule's longest
    def change(m, n, t, s):
        if t != 1000 and (m == PICO or n not in (64, 16384)):
            return None
        return noise(s) + 0.02 * (t == 2000) * (1 if n == 64 else -1)

    records = grid(change, sizes=(ATTO, FEMTO, PICO), levels=(16, 64, 16384), lengths=(500, 1000, 2000))
    c4, c3, c1 = (one(records, claim) for claim in ("C4", "C3", "C1"))
    assert c4.verdict == HOLDS and c3.verdict == HOLDS
    assert "At 64 images" in c4.evidence and "femto" in c4.evidence and "2,000 steps" in c4.evidence
    assert "mean of atto, femto" in c3.evidence and "2,000" in c3.evidence
    assert "At 16 images and 1,000 steps" in c1.evidence and "pico" in c1.evidence


def test_one_size_or_one_level_is_too_small():
    records = grid(lambda *cell: 0.0, sizes=(ATTO,))
    assert "two model sizes" in one(records, "C1").evidence and "two model sizes" in one(records, "C2").evidence
    assert one(records, "C4").n == 3
    for found in claims(grid(lambda *cell: 0.0, levels=(64,))):
        assert found.verdict == OPEN and (found.id not in PAIRED or "two data levels" in found.evidence)


def test_smoke_runs_always_read_too_small_to_say():
    found = claims(study(levels=(16, 64), lengths=(10, 20)))
    assert [c.id for c in found] == IDS
    assert all(c.verdict == OPEN and "20 steps test the machinery only" in c.evidence for c in found)
    # half of 150 steps is too short, though 150 is not
    records = grid(lambda m, n, t, s: 0.02 * (m == FEMTO) + noise(s), lengths=(75, 150))
    assert one(records, "C1").verdict == HOLDS
    assert one(records, "C4").verdict == OPEN and "75 steps" in one(records, "C4").evidence
    # a smoke run among the others changes nothing
    good = study()
    assert claims(good) == claims([*good, *study(levels=(16,), lengths=(20,))])


# C5: x is the loss, the lift follows y(x)
def proxy(val, train, lift, trunks=12, lengths=(500, 1000), references=True):
    made = [record(steps=0, seed=s, scores={"linear": 0.4}) for s in range(trunks)] if references else []
    rng = np.random.default_rng(3)
    for seed in range(trunks):
        for steps in lengths:
            u = rng.normal()
            made.append(
                record(
                    seed=seed,
                    steps=steps,
                    val=0.3 + 0.01 * val(u, rng),
                    train=0.3 + 0.01 * train(u, rng),
                    scores={"linear": 0.5 + 0.02 * lift(u, rng)},
                )
            )
    return made


def good(u, rng):
    return -u


def bad(u, rng):
    return rng.normal()


def some(u, rng):
    return -0.5 * u + rng.normal()


def gain(u, rng):
    return u + 0.1 * rng.normal()


@pytest.mark.parametrize(
    ("val", "train", "trunks", "verdict"),
    [
        (good, bad, 40, HOLDS),  # validation loss ranks, training loss does not
        (good, bad, 12, OPEN),  # validation loss ranks; that training loss does not is not shown
        (good, good, 12, FAILS),  # training loss ranks as well
        (bad, bad, 40, FAILS),  # validation loss does not rank
        (some, bad, 12, OPEN),  # the interval holds the margin
        (good, bad, 7, OPEN),  # too few trunks
    ],
)
def test_c5_verdicts(val, train, trunks, verdict):
    records = proxy(val, train, gain, trunks=trunks)
    found = one(records, "C5")
    assert found.verdict == verdict and found.n == trunks and found.margin == -0.5
    assert ("training loss ranks the linear probe too" in found.evidence) == (val is train is good)
    assert f"{2 * trunks} runs of {trunks} networks" in found.evidence
    assert ("fewer than 8 networks" in found.evidence) == (trunks < 8)
    done = [r for r in records if r["run"]["steps"]]
    x, y = [r["final"]["val_loss"] for r in done], [r["transfer"]["linear"]["score"] for r in done]
    assert found.effect == pytest.approx(stats.spearmanr(x, y).statistic)


def test_c5_with_a_constant_loss_is_undefined():
    found = one(proxy(lambda u, r: 0.0, bad, gain), "C5")
    assert (found.verdict, found.effect) == (OPEN, None) and "undefined" in found.evidence
    assert one(proxy(good, lambda u, r: 0.0, gain), "C5").verdict == OPEN


def test_c5_says_what_is_missing():
    assert "No run has a linear probe" in one(grid(lambda *cell: 0.0), "C5").evidence
    found = one(proxy(good, bad, gain, references=False), "C5")
    assert found.verdict == OPEN and "random initialisation" in found.evidence
    records = proxy(good, bad, gain)
    for r in records:
        if r["run"]["seed"] == 3 and r["run"]["steps"] == 500:
            r["transfer"] = {}
    found = one(records, "C5")
    assert (
        "23 runs of 12 networks" in found.evidence and "1 run without a score or a reference left out" in found.evidence
    )


def test_c5_shows_all_scores_and_uses_lift():
    records = study()
    for r in records:  # raw scores that order the seeds the other way round: lift takes that out
        for score in r["transfer"].values():
            score["score"] += 5.0 * r["run"]["seed"]
    found = one(records, "C5")
    assert found.verdict != FAILS and found.effect < -0.9 and found.high < -0.5
    for name in ("linear probe", "kNN", "segmentation probe"):
        assert name in found.evidence


def test_data_targets_and_image_sizes_are_never_mixed():
    settings = [{}, {"data": "torchvision:CIFAR10"}, {"target": "normalized"}, {"image_size": 64}]
    parts = [study(seeds=(0, 1), lengths=(500, 1000), **other) for other in settings]
    found = claims([r for part in parts for r in part])
    assert len(found) == 4 * len(IDS) and len({(c.data, c.target, c.image_size) for c in found}) == 4
    for part in parts:
        alone = claims(part)
        assert [c for c in found if c.recipe == alone[0].recipe] == alone


def test_no_runs_no_claims():
    assert claims([]) == [] == claims([record(status="failed"), record(steps=0)])


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_order_and_failed_records_change_nothing(rng, failures):
    records = study(seeds=(0, 1), lengths=(500, 1000))
    shuffled = records + [record(status="failed", seed=90 + k, images=7) for k in range(failures)]
    rng.shuffle(shuffled)
    assert claims(shuffled) == claims(records)


def test_the_table_is_complete_and_signed():
    assert [rule.id for rule in TABLE] == IDS
    assert {rule.id: rule.margin for rule in TABLE} == dict(
        zip(IDS, [0.001, -0.001, -0.001, 0.001, -0.5, 0.004, 0.1, -0.01], strict=True)
    )
    assert all(rule.plus and rule.minus and rule.sentence for rule in TABLE if rule.unit == "seed")
