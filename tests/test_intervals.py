"""Intervals against slow computations that are written another way."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic_records import FEMTO
from test_claims import grid, one, slow_t

from simmim_lite.evidence.intervals import BOOTSTRAP_SEED, RESAMPLES, paired_interval, rank_interval


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=7).filter(lambda v: np.std(v) > 1e-6))
def test_t_interval(values):
    mean, low, high = paired_interval(np.array(values))
    assert mean == pytest.approx(np.mean(values)) and (low, high) == pytest.approx(slow_t(values))


def test_bootstrap_from_8_seeds_on():
    values = np.random.default_rng(1).normal(0.01, 0.02, 9)
    rng, means = np.random.default_rng(BOOTSTRAP_SEED), []
    for row in rng.integers(0, 9, (RESAMPLES, 9)):
        means.append(sum(values[k] for k in row) / 9)
    means.sort()
    effect, low, high = paired_interval(values)
    assert effect == pytest.approx(values.mean())
    for bound, share in ((low, 0.025), (high, 0.975)):
        place = share * (RESAMPLES - 1)
        k = int(place)
        assert bound == pytest.approx(means[k] + (place - k) * (means[k + 1] - means[k]))
    found = one(grid(lambda m, n, t, s: values[s] if m == FEMTO else 0.0, seeds=range(9)), "C1")
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 9)


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("ties", [False, True])
def test_spearman_bootstrap_over_trunks(ties):
    rng = np.random.default_rng(2)
    units = [f"trunk{k}" for k in (0, 0, 1, 2, 2, 2, 3, 4, 5, 5)]
    x, y = rng.normal(size=10), rng.normal(size=10)
    if ties:
        x, y = np.round(x), np.round(y)
    names = sorted(set(units))
    sample = []
    for drawn in np.random.default_rng(BOOTSTRAP_SEED).integers(0, len(names), (RESAMPLES, len(names))):
        picked = [i for k in drawn for i in range(10) if units[i] == names[k]]
        sample.append(_spearman(x[picked], y[picked]))
    low, high = np.nanpercentile(sample, [2.5, 97.5])
    found = rank_interval(list(x), list(y), units)
    assert found == pytest.approx((stats.spearmanr(x, y).statistic, low, high), abs=1e-9)
    order = list(range(10))
    random.Random(0).shuffle(order)
    again = rank_interval([x[i] for i in order], [y[i] for i in order], [units[i] for i in order])
    assert again == pytest.approx(found, abs=1e-12)


def _spearman(x, y):
    """Pearson's correlation of midranks, from their definition."""

    def ranks(v):
        return np.array([sum(w < a for w in v) + (sum(w == a for w in v) + 1) / 2 for a in v])

    a, b = ranks(x), ranks(y)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return np.nan
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / np.sqrt((a @ a) * (b @ b))


def test_one_trunk_has_no_interval():
    assert rank_interval([1, 2, 3], [3, 2, 1], ["a"] * 3) == (pytest.approx(-1), None, None)
    assert rank_interval([1, 1, 1], [3, 2, 1], ["a", "b", "c"]) == (None, None, None)
