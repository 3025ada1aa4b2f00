"""The statistics against scipy, against published examples, and by simulation."""

import numpy as np
import pytest
from scipy import stats as peer

from reporting import stats

# Student (1908), Cushny and Peebles' extra hours of sleep under two drugs, ten patients. R prints
# for t.test(paired = TRUE): mean 1.58, 95 % interval 0.7001142 to 2.4598858, p 0.002833.
FIRST = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SECOND = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def test_paired_difference_of_students_own_example():
    result = stats.paired(SECOND, FIRST)
    assert result.n == 10
    assert result.mean == pytest.approx(1.58)
    assert result.mean - result.half == pytest.approx(0.7001142, abs=1e-7)
    assert result.mean + result.half == pytest.approx(2.4598858, abs=1e-7)
    assert result.p == pytest.approx(0.002833, abs=5e-7)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_estimate_and_paired_agree_with_scipy(n):
    rng = np.random.default_rng(n)
    first, second = rng.normal(0.61, 0.003, n), rng.normal(0.60, 0.003, n)
    result = stats.estimate(first)
    low, high = peer.t.interval(0.95, n - 1, first.mean(), peer.sem(first))
    assert (result.n, result.mean, result.std) == (n, first.mean(), np.std(first, ddof=1))
    assert result.mean - result.half == pytest.approx(low, rel=1e-12)
    assert result.mean + result.half == pytest.approx(high, rel=1e-12)
    difference, rel = stats.paired(first, second), peer.ttest_rel(first, second)
    assert difference.p == pytest.approx(rel.pvalue, rel=1e-9)
    low, high = rel.confidence_interval(0.95)
    assert difference.mean - difference.half == pytest.approx(low, rel=1e-9)


def test_what_cannot_be_given_is_nan():
    one = stats.estimate([0.6])
    assert one.n == 1 and one.mean == 0.6 and np.isnan([one.std, one.half]).all()
    none = stats.estimate([])
    assert none.n == 0 and np.isnan(none.mean)
    pair = stats.paired([0.62], [0.61])
    assert pair.n == 1 and pair.mean == pytest.approx(0.01) and np.isnan([pair.half, pair.p]).all()
    # Equal differences: t is infinite, which must not count as overwhelming evidence.
    equal = stats.paired([0.62, 0.63], [0.61, 0.62])
    assert equal.n == 2 and np.isnan([equal.half, equal.p]).all()


def test_missing_numbers_are_left_out_in_pairs():
    result = stats.paired([0.5, np.nan, 0.7, 0.9, np.inf], [0.4, 0.1, np.nan, 0.6, 0.2])
    assert result.n == 2
    assert result.mean == pytest.approx(0.2)


def test_interval_covers_the_mean_95_times_in_100():
    draws = np.random.default_rng(0).normal(0.61, 0.004, (10_000, 5))
    half = stats.half_width(draws, axis=1)
    covered = np.abs(draws.mean(axis=1) - 0.61) <= half
    assert covered.mean() == pytest.approx(0.95, abs=0.01)
    # With the normal quantile in place of Student's it would be 0.88.
    assert half[0] == pytest.approx(2.776445 * draws[0].std(ddof=1) / np.sqrt(5), rel=1e-6)


def test_holm_by_hand():
    # 0.005 x 4 = 0.02, 0.01 x 3 = 0.03, 0.03 x 2 = 0.06, 0.04 x 1 = 0.04 but not below 0.06
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    # 0.5 x 3 is cut to 1; NaN takes no part: 0.02 x 3, not x 4
    np.testing.assert_allclose(stats.holm([0.5, np.nan, 0.02, 0.9]), [1, np.nan, 0.06, 1])
    np.testing.assert_allclose(stats.holm([0.03, 0.03]), [0.06, 0.06])
    assert stats.holm([]).shape == (0,)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = rng.beta(0.3, 2, 9)
        rejected = np.zeros(9, bool)
        for k, index in enumerate(np.argsort(p)):  # Holm (1979): stop at the first that fails
            if p[index] > 0.05 / (9 - k):
                break
            rejected[index] = True
        np.testing.assert_array_equal(stats.holm(p) <= 0.05, rejected)


def test_holm_keeps_the_family_wise_error():
    """45 cells without any effect: in at most 5 % of the grids is one of them marked."""
    rng = np.random.default_rng(2)
    t = rng.standard_t(4, (2000, 45))
    p = 2 * peer.t.sf(np.abs(t), 4)
    assert np.mean([(stats.holm(row) <= 0.05).any() for row in p]) < 0.065
