"""The statistics of the report: Student-t intervals, paired differences, Holm's correction.

Arrays of numbers in, numbers out; nothing here knows of accuracies or rows. NaN in a result
means that it cannot be given (fewer than two numbers, or differences without any spread).
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95  # of every interval; tests are made at 1 - CONFIDENCE
LEVEL = round(1 - CONFIDENCE, 10)


class Estimate(NamedTuple):
    """A mean over `n` numbers; mean ± half is its 95 % interval, in the unit of the numbers."""

    n: int
    mean: float
    std: float  # of the sample: n - 1 in the denominator
    half: float


class Difference(NamedTuple):
    """A paired difference: its estimate over `n` pairs, and the p of "it is zero"."""

    n: int
    mean: float
    half: float
    p: float  # two-sided


def half_width(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Half the width of Student's 95 % interval for the mean along `axis`; NaN for n < 2.

    t(0.975; n - 1) · s / sqrt(n) (Student 1908). Exact where the values are independent and
    normal, which accuracies of a cell over seeds nearly are.
    """
    values = np.asarray(values, dtype=float)
    n = values.shape[axis]
    if n < 2:
        return np.full(np.delete(values.shape, axis), np.nan)
    return quantile(n) * values.std(axis=axis, ddof=1) / np.sqrt(n)


@functools.cache
def quantile(n: int) -> float:
    """t(0.975; n - 1)."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


def estimate(values: np.ndarray) -> Estimate:
    """Mean, standard deviation and interval of `values` (n,); NaN among them are left out."""
    values = finite(values)
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    std = float(values.std(ddof=1)) if n > 1 else np.nan
    return Estimate(n, mean, std, float(half_width(values)))


def paired(first: np.ndarray, second: np.ndarray) -> Difference:
    """first - second (n,), number by number: mean, interval and p of the paired t-test.

    Pairs with a NaN are left out. Where all differences are equal the t statistic is undefined
    (0/0) or infinite, which in figures rounded to one test image is chance and no evidence: then
    there is neither interval nor p.
    """
    differences = finite(np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    result = estimate(differences)
    if result.n < 2 or np.ptp(differences) < 1e-12:
        return Difference(result.n, result.mean, np.nan, np.nan)
    # scipy.stats.ttest_rel's own formula, without its checks, which take a thousand times longer.
    t = result.mean / (result.std / np.sqrt(result.n))
    p = float(2 * stats.t.sf(abs(t), result.n - 1))
    return Difference(result.n, result.mean, result.half, p)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979), for p (m,); scipy has none.

    The k-th smallest p (k = 1..m) is multiplied by m - k + 1, and no adjusted p is smaller than
    that of a smaller p. Reject where the result is at most the level: the chance of one false
    rejection or more among the m is then at most the level, whatever the tests' dependence.
    A NaN stays NaN and does not count in m.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def finite(values: np.ndarray) -> np.ndarray:
    """The numbers among `values`: neither NaN nor infinite."""
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]
