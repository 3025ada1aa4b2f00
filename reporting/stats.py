"""The statistics of the report: paired differences with their intervals, Holm's correction.

Numbers in, numbers out; nothing here knows of accuracies or rows. NaN in a result means that it
cannot be given (fewer than two numbers, or numbers without any spread).
"""

from collections.abc import Hashable

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95  # of every interval
LEVEL = 0.05  # of every test

# Degrees of freedom, at most, that other columns contribute to the variance of a difference: few
# enough that a student alone of twice their variance is covered to within a point or two
# (tests/simulate_intervals.py, docs/evidence.md).
PRIOR = 3


def contrasts(
    values: pd.DataFrame, pairs: list[tuple], alike: list[Hashable] | None = None
) -> pd.DataFrame:
    """Paired differences between columns of `values`, by a moderated t-test.

    values: (seeds, columns), NaN where a run is missing. pairs: (column, other column), by label.
    alike: a label a column; columns of one label may move together (the cells of an alpha do), so
    they count as one network. None: each column is a network of its own.
    The result has a row a pair, in their order: n (seeds that both columns have), difference (mean
    of first - second over them), half (of its 95 % interval), p (two-sided, not corrected) and df.
    All but n are NaN without a common seed; half and p also with one seed, or without any spread.

    With s² the sample variance of a pair's n differences, d = n - 1, and s0² the variance of a
    difference by all else in `values` (`noise`), of which d0 degrees of freedom are used:

        s̃² = (d0 s0² + d s²) / (d0 + d),    t = difference / (s̃ / sqrt(n)) on d0 + d df

    (Smyth 2004, Linear models and empirical Bayes methods, section 3). Smyth estimates d0 by the
    spread of the log s²; that needs independent s², and at n = 2 their sampling sd, 2.2, hides
    that of a threefold difference of variances, 0.5. So d0 is what s0² has, and PRIOR at most.

    Without the bound on d0 this is exact where the networks' noise is equal and independent, and
    with the bound conservative. With two networks, as in a grid of one alpha without controls, it
    is the paired t-test. It does not hold where networks that count as different move together;
    docs/evidence.md has where it does and does not.
    """
    y = values.to_numpy(dtype=float)
    y = np.where(np.isfinite(y), y, np.nan)
    at = {column: k for k, column in enumerate(values.columns)}
    first, second = ([at[pair[k]] for pair in pairs] for k in (0, 1))
    differences = y[:, first] - y[:, second]
    known = np.isfinite(differences)
    n = known.sum(0)
    mean = np.where(known, differences, 0).sum(0) / np.where(n, n, np.nan)
    squares = np.where(known, differences - mean, 0) ** 2
    own, d = squares.sum(0), n - 1

    total, df = noise(y, alike or list(range(y.shape[1])))
    # (first - second) / sqrt(2), less its mean over seeds, lies in the space of the residuals:
    # what is left without it is independent of it, with df - d degrees of freedom.
    rest = np.maximum(2 * total - own, 0) / np.maximum(df - d, 1)
    d0 = np.clip(df - d, 0, PRIOR)

    tiny = (1e-12 * np.nanmax(np.abs(y), initial=0)) ** 2  # what rounding leaves of equal numbers
    variance = (d0 * rest + own) / np.where(d > 0, d0 + d, np.nan)
    error = np.sqrt(np.where(variance > tiny, variance, np.nan) / np.where(n, n, np.nan))
    half = quantile(d0 + d) * error
    p = 2 * stats.t.sf(np.abs(mean) / error, d0 + d)
    return pd.DataFrame({"n": n, "difference": mean, "half": half, "p": p, "df": d0 + d})


def visible(tests: pd.DataFrame) -> pd.Series:
    """For each contrast, the smallest difference that the first step of Holm's rejects.

    All of `tests` are one family.
    """
    step = LEVEL / max(tests.p.notna().sum(), 1)
    df = tests.df.where(tests.df > 0)
    return tests.half / quantile(df) * stats.t.isf(step / 2, df)


def signs(tests: pd.DataFrame) -> pd.Series:
    """1 or -1 where a contrast is significant after correction (`p_holm`), otherwise 0."""
    return np.sign(tests.difference).where(tests.p_holm <= LEVEL, 0).astype(int)


def equivalent(tests: pd.DataFrame, margin: float) -> pd.Series:
    """p of two one-sided t-tests (Schuirmann 1987): small where a contrast is within ± margin.

    p <= 0.05 just where its 90 % interval lies inside.
    """
    difference, half, df = (tests[name].astype(float) for name in ("difference", "half", "df"))
    error = half / quantile(df.where(df > 0))
    return pd.Series(stats.t.sf((margin - difference.abs()) / error, df), tests.index)


def noise(y: np.ndarray, alike: list[Hashable]) -> tuple[float, int]:
    """The residual sum of squares of (seeds, networks) and its degrees of freedom.

    A network is one column out of each label in `alike`, in the mean over the ways to pick them:
    the variance between the labels' means, and of that within a label of K columns (K - 1) / K.
    What is known of the latter counts for no degrees of freedom. Where runs are missing, columns
    are centred over different seeds, and it comes out too large rather than too small.
    """
    centred = y - column_means(y)
    members = {label: np.array([other == label for other in alike]) for label in alike}
    between = np.column_stack([column_means(centred[:, own].T) for own in members.values()])
    total, df = residual(between)
    within = 0.0
    for own in members.values():
        squares, known = residual(y[:, own])
        within += squares / known * (1 - 1 / own.sum()) if known else 0.0
    return total + df * within / len(members), df


def column_means(y: np.ndarray) -> np.ndarray:
    """The mean of each column's known values; NaN where there is none."""
    known = np.isfinite(y)
    return np.where(known, y, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def quantile(df: np.ndarray | int) -> np.ndarray | float:
    """Student's t, two-sided: half an interval in standard errors. NaN for df 0."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, df)


def residual(y: np.ndarray) -> tuple[float, int]:
    """Sum of squares of y (seeds, columns) around y_sc = column_c + seed_s, and its df.

    By least squares over the entries that are there, so exact also where runs are missing; with
    none missing df = (seeds - 1)(columns - 1). Divided by df it is the noise of one column,
    averaged over columns. The column means are taken out of both sides first (Frisch and Waugh
    1933), which leaves one unknown a seed.
    """
    if np.isfinite(y).all():  # the same, a hundred times as fast
        left = y - y.mean(0)
        left -= left.mean(1, keepdims=True)
        return float((left**2).sum()), (y.shape[0] - 1) * (y.shape[1] - 1)
    seed, column = np.nonzero(np.isfinite(y))
    there = np.zeros(y.shape)
    there[seed, column] = 1
    runs = np.maximum(there.sum(0), 1)
    observed = y[seed, column] - (np.where(there, y, 0).sum(0) / runs)[column]
    design = np.eye(len(y))[seed] - (there / runs)[:, column].T
    fit, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
    df = len(observed) - int(there.any(0).sum()) - int(rank)
    return float(((observed - design @ fit) ** 2).sum()), df


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979), for p (m,); scipy has none.

    The k-th smallest p (k = 1..m) is multiplied by m - k + 1, and no adjusted p is smaller than
    that of a smaller p. Reject where the result is at most the level: the chance of one false
    rejection or more among the m is then at most the level, whatever the tests' dependence.
    A NaN stays NaN and does not count in m. Not Dunnett's step-down test, which is sharper: it
    needs one variance for all and known correlations, and cells of an alpha move together.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted
