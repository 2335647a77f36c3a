"""Compatibility over many versions, against explicit loops and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compatctl.core.matrix import share_kept, summarise, update_gain
from compatctl.errors import InputError


def by_loop(M):
    """AC, AA and ACA as their formulas say, entry by entry."""
    T = len(M)
    compatible, kept, total, entries = 0, 0.0, 0.0, 0
    for i in range(T):
        for j in range(i + 1):
            total += M[i][j]
            entries += 1
            if i > j and M[i][j] > M[j][j]:
                compatible += 1
                kept += M[i][j]
    pairs = T * (T - 1) / 2
    if not pairs:
        return None, total / entries, None
    return compatible / pairs, total / entries, kept / pairs


@given(
    M=st.integers(1, 6).flatmap(
        lambda T: arrays(np.float64, (T, T), elements=st.integers(0, 20).map(lambda n: n / 20))
    )
)
def test_summary_equals_loop(M):
    """AC, AA and ACA equal their formulas on any matrix, ties and zeros among its entries."""
    summary = summarise(M)
    ac, aa, aca = by_loop(M)
    assert summary.ac == pytest.approx(ac) if ac is not None else summary.ac is None
    assert summary.aca == pytest.approx(aca) if aca is not None else summary.aca is None
    assert summary.aa == pytest.approx(aa)
    assert len(summary.gains) == len(M) - 1


def test_three_versions_by_hand():
    """Two of three cross-tests beat their gallery's self-test; the upper triangle is not read."""
    M = np.array([[0.4, np.nan, 9.0], [0.5, 0.6, np.inf], [0.45, 0.6, 0.7]])
    summary = summarise(M)
    assert summary.ac == pytest.approx(2 / 3)
    assert summary.aa == pytest.approx((0.4 + 0.5 + 0.6 + 0.45 + 0.6 + 0.7) / 6)
    assert summary.aca == pytest.approx((0.5 + 0.45) / 3)
    assert summary.gains == (pytest.approx(0.1), pytest.approx(0.0))


def test_a_tie_is_not_compatible():
    """Equal quality fails, also where it is equal only up to the last bit of a sum."""
    assert summarise(np.array([[0.5, 0.0], [0.5, 0.6]])).ac == 0.0
    assert summarise(np.array([[0.3, 0.0], [0.1 + 0.2, 0.6]])).ac == 0.0
    assert summarise(np.array([[0.5, 0.0], [0.5001, 0.6]])).ac == 1.0


def test_a_true_zero_counts_in_the_average():
    """A cross-test of exactly 0, as of two unrelated models, is in the mean like any other."""
    assert summarise(np.array([[0.6, 0.0], [0.0, 0.6]])).aa == pytest.approx(0.4)


def test_one_version_has_no_compatibility():
    """AC and ACA are not defined for a single version, AA is its self-test."""
    summary = summarise(np.array([[0.7]]))
    assert (summary.ac, summary.aca, summary.gains) == (None, None, ())
    assert summary.aa == 0.7


def test_percentages_give_percentages():
    """AC does not depend on the unit, the averages keep it."""
    M = np.array([[40, 0], [50, 60]])
    assert summarise(M).ac == summarise(M / 100).ac == 1.0
    assert summarise(M).aa == pytest.approx(50)


@pytest.mark.parametrize(
    ("M", "message"),
    [
        (np.zeros((0, 0)), "T at least 1"),
        (np.zeros((2, 3)), r"\(2, 3\)"),
        (np.zeros(3), r"\(3,\)"),
        (np.array([[0.1, 0.0], [np.nan, 0.2]]), "version 2 on gallery 1"),
        (np.array([[0.1, 0.0], [0.1, np.inf]]), "version 2 on gallery 2"),
        (np.array([["a"]]), "holds numbers"),
    ],
)
def test_what_is_no_matrix_is_refused(M, message):
    """A result that is missing in the lower triangle is named, not averaged over."""
    with pytest.raises(InputError, match=message):
        summarise(M)


def test_share_of_the_upgrade_kept():
    """.562 on a gallery of .507 keeps 62% of what a re-embedding to .596 would give."""
    assert share_kept(0.562, 0.507, 0.596) == pytest.approx(0.618, abs=5e-4)
    assert update_gain(0.562, 0.507) == pytest.approx(0.055)
    assert share_kept(0.0, 0.508, 0.596) < -5
    assert share_kept(0.596, 0.508, 0.596) == pytest.approx(1.0)


def test_share_of_no_upgrade_is_undefined():
    """Where re-embedding gains nothing, or only a rounding error, there is no share."""
    assert share_kept(0.5, 0.5, 0.5) is None
    assert share_kept(0.5, 0.5, 0.4) is None
    assert share_kept(0.4, 0.3, 0.1 + 0.2) is None
    with pytest.raises(InputError, match="finite"):
        share_kept(0.5, float("nan"), 0.6)
