"""95 % intervals over independent units: paired seeds, and trunks for rank correlations. No torch here."""

import numpy as np

BOOTSTRAP_FROM = 8  # independent units: Student's t below, percentile bootstrap from here on
# Student's t, 97.5 % quantile by degrees of freedom: scipy has it, but takes a quarter of a second to import
T_QUANTILES = (None, 12.7062047, 4.30265273, 3.18244631, 2.77644511, 2.57058184, 2.44691185)
RESAMPLES = 2000
BOOTSTRAP_SEED = 0


def paired_interval(values: np.ndarray) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval of independent values (n,): t below 8, percentile bootstrap from 8; none for one value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, None, None
    if n < BOOTSTRAP_FROM:
        half = float(T_QUANTILES[n - 1] * np.std(values, ddof=1) / np.sqrt(n))
        return mean, mean - half, mean + half
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(0, n, (RESAMPLES, n))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return mean, float(low), float(high)


def rank_interval(x: list, y: list, units: list) -> tuple[float | None, float | None, float | None]:
    """Spearman correlation of x (n,) and y (n,), and its 95 % interval by bootstrap over units (n,), drawn whole.

    None where the correlation is undefined (a constant), or where there are fewer than two units.
    """
    names, unit = np.unique(np.array(units), return_inverse=True)
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(0, len(names), (RESAMPLES, len(names)))
    counts = np.stack([(draws == k).sum(1) for k in range(len(names))], 1)
    effect = spearman(np.ones((1, len(unit))), x, y)[0]
    if not np.isfinite(effect):
        return None, None, None
    if len(names) < 2:
        return float(effect), None, None
    sample = spearman(counts[:, unit].astype(float), x, y)
    # a resample of one unit may be constant: it has no correlation, which is not a correlation of 0
    low, high = np.nanpercentile(sample, [2.5, 97.5])
    return float(effect), float(low), float(high)


def spearman(weights: np.ndarray, x: list, y: list) -> np.ndarray:
    """Spearman correlations (b,) of x, y (n,) with each point repeated weights (b, n) times; NaN where undefined."""

    def ranks(values: list) -> np.ndarray:
        v = np.asarray(values, float)
        below = (v[None] < v[:, None]) + 0.5 * (v[None] == v[:, None])  # (n, n): midranks count equals half
        r = weights @ below.T
        return r - (weights * r).sum(1, keepdims=True) / weights.sum(1, keepdims=True)

    a, b = ranks(x), ranks(y)
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
        return np.where(norm > 1e-9, (weights * a * b).sum(1) / norm, np.nan)
