"""Binomial tails, the Clopper-Pearson limit and McNemar's test, against sums of exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core.binomial import mcnemar, tail, upper_limit


def exact_tail(k, n, p):
    """P(X <= k) as a fraction, ``p`` being exactly the given number."""
    p = Fraction(p)
    return sum(
        (math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(min(k, n) + 1)), Fraction(0)
    )


@given(
    n=st.integers(1, 40),
    k=st.integers(0, 45),
    p=st.floats(1e-6, 1 - 1e-6) | st.sampled_from([0.5, 0.025, 2.0**-40, 1 - 2.0**-40]),
)
@settings(max_examples=150, deadline=None)
def test_tail_equals_the_exact_sum(n, k, p):
    """Every tail agrees with the sum of fractions to eleven digits, tiny ones included."""
    assert tail(k, n, p) == pytest.approx(float(exact_tail(k, n, p)), rel=1e-11)


def test_tail_at_its_edges():
    """k = n gives 1, p is clipped to [0, 1], and n = 0 gives 1."""
    assert tail(7, 7, 0.9) == tail(9, 7, 0.9) == tail(0, 0, 0.5) == 1.0
    assert tail(0, 7, 0.0) == tail(3, 7, -0.2) == 1.0
    assert tail(6, 7, 1.0) == tail(0, 7, 1.3) == 0.0
    assert tail(7, 7, 1.0) == 1.0
    assert tail(0, 5, 0.25) == pytest.approx(0.75**5, rel=1e-14)


def test_tail_of_very_many_trials():
    """Large n neither overflows nor loses many digits; what is too small for a float is 0."""
    assert tail(500_000, 1_000_001, 0.5) == pytest.approx(0.5, rel=1e-7)
    assert tail(0, 10**9, 1e-9) == pytest.approx(math.exp(-1), rel=1e-8)
    assert tail(2, 10**9, 3e-9) == pytest.approx(math.exp(-3) * (1 + 3 + 4.5), rel=1e-7)
    assert tail(10, 10**6, 0.9) == 0.0
    assert tail(999_999, 10**6, 1e-3) == pytest.approx(1.0, rel=1e-9)


@given(n=st.integers(1, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_tail_falls_with_p_and_rises_with_k(n, data):
    """The tail falls with p and rises with k."""
    k = data.draw(st.integers(0, n - 1))
    low, high = sorted(data.draw(st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99))))
    assert tail(k, n, high) <= tail(k, n, low) * (1 + 1e-12)
    assert tail(k, n, low) <= tail(k + 1, n, low) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [
        (0, 1, 0.9750),
        (0, 10, 0.3085),
        (1, 10, 0.4450),
        (5, 10, 0.8129),
        (9, 10, 0.9975),
        (0, 20, 0.1684),
        (3, 20, 0.3789),
        (10, 100, 0.1762),
    ],
)
def test_upper_limit_has_the_published_values(k, n, expected):
    """The limits equal the published 95% intervals of Clopper and Pearson."""
    assert upper_limit(k, n, 0.025) == pytest.approx(expected, abs=5e-5)


@given(n=st.integers(1, 40), data=st.data(), alpha=st.sampled_from([0.001, 0.025, 0.05, 0.25]))
@settings(max_examples=80, deadline=None)
def test_upper_limit_inverts_the_tail(n, data, alpha):
    """Below the limit the tail exceeds alpha; at and above it, it does not."""
    k = data.draw(st.integers(0, n - 1))
    limit = upper_limit(k, n, alpha)
    assert k / n < limit < 1
    assert exact_tail(k, n, limit - 1e-9) > Fraction(alpha)
    assert exact_tail(k, n, limit + 1e-9) < Fraction(alpha)


def test_upper_limit_at_its_edges():
    """With k = n or n = 0 the limit is 1; with k = 0 it follows a formula."""
    assert upper_limit(5, 5, 0.025) == upper_limit(0, 0, 0.025) == upper_limit(9, 5, 0.025) == 1.0
    for n in (1, 3, 100, 10**6, 10**9):
        expected = -math.expm1(math.log(0.025) / n)
        assert upper_limit(0, n, 0.025) == pytest.approx(expected, rel=1e-8)
    assert upper_limit(100_000, 10**6, 0.025) == pytest.approx(
        0.1 + 1.96 * math.sqrt(0.1 * 0.9 / 10**6), abs=5e-6
    )


def test_upper_limit_is_monotone():
    """It rises with k, and falls with n and with alpha."""
    assert np.all(np.diff([upper_limit(k, 30, 0.025) for k in range(31)]) > 0)
    assert np.all(np.diff([upper_limit(3, n, 0.025) for n in range(3, 40)]) < 0)
    assert np.all(np.diff([upper_limit(3, 30, alpha) for alpha in (0.01, 0.05, 0.2)]) < 0)


@pytest.mark.parametrize(
    ("worse", "better", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 32),
        (1, 9, 2 * 11 / 1024),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (4, 4, 1.0),
        (4, 5, 1.0),
    ],
)
def test_mcnemar_has_the_values_computed_by_hand(worse, better, expected):
    """Few changed answers give p-values computed by hand; a tie or no change gives 1."""
    assert mcnemar(worse, better) == pytest.approx(expected, rel=1e-12)


@given(worse=st.integers(0, 60), better=st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_mcnemar_is_exact_and_symmetric(worse, better):
    """The p-value is twice the smaller tail of a fair coin, at most 1, whichever side is larger."""
    n = worse + better
    both = 2 * Fraction(sum(math.comb(n, j) for j in range(min(worse, better) + 1)), 2**n)
    assert mcnemar(worse, better) == pytest.approx(float(min(both, Fraction(1))), rel=1e-11)
    assert mcnemar(worse, better) == mcnemar(better, worse)
    if abs(worse - better) > 1:
        assert mcnemar(worse, better) < 1
