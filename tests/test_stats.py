"""Statistics against scipy's, and what the rules promise: coverage and false *holds* on made-up data of known truth."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from simmim_lite.evidence import stats
from simmim_lite.evidence.rules import FAILS, HOLDS, OPEN, RULES, TABLE, judge

DRAWS = 10_000
BY_T = [rule for rule in TABLE if rule.test in ("above", "below")]


@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_t_interval_is_scipys_at_every_n(n) -> None:
    values = np.random.default_rng(n).normal(size=n)
    low, high = scipy_stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert stats.t_interval(values) == pytest.approx((values.mean(), low, high))
    assert stats.t_interval(values[:1]) == (values[0], None, None)
    assert np.isnan(stats.spearman(values, np.ones(n)))


def test_reliability() -> None:
    rng = np.random.default_rng(2)
    effects = {(m, c): rng.normal(0, 2) + 10 * m for m in range(3) for c in range(60)}
    runs = [{"model": m, "images": c, "steps": 1, "score": v} for (m, c), v in effects.items() for _ in range(4)]
    frame = pd.DataFrame(runs)
    noise = rng.normal(0, 1, len(frame))
    assert stats.reliability(frame.assign(score=frame.score + noise), "score") == pytest.approx(0.8, abs=0.05)
    assert stats.reliability(frame.assign(score=noise), "score") < 0.1
    # between sizes is not between cells of a size; one seed a cell says nothing
    assert stats.reliability(frame.assign(score=frame.model.astype(float)), "score") is None
    assert stats.reliability(frame.drop_duplicates(["model", "images"]), "score") is None


def test_power_and_units() -> None:
    draws = np.random.default_rng(3).normal(1.2, 1, (DRAWS, 5))
    low, high = _intervals(draws)
    assert stats.power(1.2, 1, 5) == pytest.approx(((low > 0) | (high < 0)).mean(), abs=0.015)
    needed = stats.units_needed(0.5, 1)
    assert stats.power(0.5, 1, needed) >= 0.8 > stats.power(0.5, 1, needed - 1)
    assert stats.units_needed(1e-6, 1) is None and stats.power(1, 1, 1) == 0


# --- what the text of the rules promises ---


def _intervals(draws: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """`t_interval` of many draws (draws, n) at once."""
    n = draws.shape[1]
    half = stats.t_quantile(0.5 + confidence / 2, n - 1) * draws.std(1, ddof=1) / np.sqrt(n)
    low, high = draws.mean(1) - half, draws.mean(1) + half
    assert stats.t_interval(draws[0], confidence)[1:] == pytest.approx((low[0], high[0]))
    return low, high


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("rule", BY_T, ids=lambda rule: rule.id)
def test_false_holds_and_coverage_of_the_t_rules(rule, n) -> None:
    """At the margin itself a claim is false: it is found to hold in 2.5 %, and the interval covers in 95 %."""
    draws = np.random.default_rng(n).normal(rule.margin, 0.02, (DRAWS, n))
    low, high = _intervals(draws)
    holds = low > rule.margin if rule.test == "above" else high < rule.margin
    assert holds.mean() == pytest.approx(0.025, abs=0.006)
    assert ((low < rule.margin) & (rule.margin < high)).mean() == pytest.approx(0.95, abs=0.008)
    for k in (0, 1, int(np.argmax(holds))):  # the verdict is that of the arrays
        verdict = judge(rule, draws[k], stats.t_interval(draws[k]))
        assert (verdict == HOLDS) == holds[k] and (verdict == OPEN) == (low[k] < rule.margin < high[k])


@pytest.mark.parametrize(("n", "side"), list(itertools.product([3, 6], [-1, 1])))
def test_false_holds_of_the_equivalence_test(n, side) -> None:
    """C6 at the edge of its margin, which is itself measured: found to hold in 5 %."""
    rng = np.random.default_rng(10 + n)
    gain = rng.normal(0.03, 0.002, (DRAWS, n))
    margin = RULES["C6"].margin * gain
    d = rng.normal(side * RULES["C6"].margin * 0.03, 0.002, (DRAWS, n))
    above, below = _intervals(d + margin, 0.9)[0] > 0, _intervals(d - margin, 0.9)[1] < 0
    assert (above & below).mean() == pytest.approx(0.05, abs=0.009)


def test_false_holds_and_coverage_of_the_rank_rule() -> None:
    """C5a at five seeds of nine runs: where the true mean correlation is the margin, and far beyond.

    Correlations of few runs are skewed: an interval covers in about 90 to 93 %, and a claim that is false at the margin
    is found to hold in about 5 % (docs/settings.md says so).
    """
    rng, rule, order = np.random.default_rng(4), RULES["C5a"], np.arange(9) / 9

    def seed(noise: float) -> float:  # of runs whose loss and score follow one order, each with noise
        return stats.spearman(order + noise * rng.normal(size=9), -order - noise * rng.normal(size=9))

    for noise, least, most in ((0.3, 0.0, 0.07), (0.1, 0.9, 1.0)):
        truth = np.mean([seed(noise) for _ in range(4000)])
        draws = [[seed(noise) for _ in range(5)] for _ in range(300)]
        found = [stats.t_interval(values) for values in draws]
        assert np.mean([one.low <= truth <= one.high for one in found]) > 0.87
        held = np.mean([judge(rule, *pair) == HOLDS for pair in zip(draws, found, strict=True)])
        assert least <= held <= most and (least or truth == pytest.approx(rule.margin, abs=0.03))


def test_fewer_than_three_units_or_no_spread_decide_nothing() -> None:
    for rule in BY_T:
        far = rule.margin + (5 if rule.test == "above" else -5)
        for values in ([far], [far, far * 1.001], [far] * 3, [far] * 30):
            ranks = rule.measure == "rank" and len(values) > 2  # all seeds may be ranked without a fault
            assert judge(rule, values, stats.t_interval(values)) == (HOLDS if ranks else OPEN)
        values = [far, far * 1.001, far * 0.999]
        assert judge(rule, values, stats.t_interval(values)) == HOLDS
        values = [2 * rule.margin - v for v in values]
        assert judge(rule, values, stats.t_interval(values)) == FAILS
