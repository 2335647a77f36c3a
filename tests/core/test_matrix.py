"""Compatibility over many versions, against explicit loops and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compatctl.core.matrix import summarise, summarise_samples
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


def test_three_versions_by_hand():
    """Two of three cross-tests beat their gallery's self-test; the upper triangle is not read."""
    M = np.array([[0.4, np.nan, 9.0], [0.5, 0.6, np.inf], [0.45, 0.6, 0.7]])
    summary = summarise(M)
    assert summary.ac == pytest.approx(2 / 3)
    assert summary.aa == pytest.approx((0.4 + 0.5 + 0.6 + 0.45 + 0.6 + 0.7) / 6)
    assert summary.aca == pytest.approx((0.5 + 0.45) / 3)


def test_a_tie_is_not_compatible():
    """Equal quality is not compatible, also if equal only to the last bit."""
    assert summarise(np.array([[0.5, 0.0], [0.5, 0.6]])).ac == 0.0
    assert summarise(np.array([[0.3, 0.0], [0.1 + 0.2, 0.6]])).ac == 0.0
    assert summarise(np.array([[0.5, 0.0], [0.5001, 0.6]])).ac == 1.0


def test_a_true_zero_counts_in_the_average():
    """A cross-test of exactly 0 is in the mean."""
    assert summarise(np.array([[0.6, 0.0], [0.0, 0.6]])).aa == pytest.approx(0.4)


def test_one_version_has_no_compatibility():
    """For one version AC and ACA are None, and AA is its self-test."""
    summary = summarise(np.array([[0.7]]))
    assert (summary.ac, summary.aca) == (None, None)
    assert summary.aa == 0.7


def test_percentages_give_percentages():
    """AC does not depend on the unit; the averages keep it."""
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
def test_invalid_matrices_are_refused(M, message):
    """A missing result in the lower triangle is named."""
    with pytest.raises(InputError, match=message):
        summarise(M)


HOC_7 = """
.58892
.597   .6156
.6305  .65276 .69314
.63336 .65298 .70626 .72374
.65006 .67872 .70754 .72114 .73828
.6408  .67188 .71166 .72712 .74704 .76194
.6314  .6635  .72096 .73496 .75232 .76652 .77164
"""
ER_7 = """
.6342
.61556 .63092
.11708 .1123  .72734
.1143  .1053  .69232 .703
.0908  .07756 .09296 .08552 .74464
.08512 .07364 .10338 .09524 .7226  .72312
.09718 .08578 .0975  .09748 .70352 .7063  .71544
"""


@pytest.mark.parametrize(
    ("text", "ac", "aa"), [(HOC_7, "0.95", "68.899"), (ER_7, "0.00", "35.179")], ids=["hoc", "er"]
)
def test_published_matrices_give_the_published_summary(text, ac, aa):
    """The matrices in miccunifi/iamcl2r, notebooks/iamcl2r_hoc.ipynb and eval.ipynb, give the AC
    and the mean accuracy printed under them, to every digit, and so do the definitions of
    src/iamcl2r/compatibility_metrics.py written out."""
    rows = [[float(value) for value in line.split()] for line in text.split("\n") if line]
    M = np.zeros((7, 7))
    for i, row in enumerate(rows):
        M[i, : i + 1] = row
    result = summarise(M)
    assert f"{result.ac:.2f}" == ac
    assert f"{100 * result.aa:.3f}" == aa
    missed = sum(M[i, j] <= M[j, j] for j in range(7) for i in range(j + 1, 7))
    assert result.ac == (21 - missed) / 21
    assert result.aa == pytest.approx(np.nanmean(np.where(M == 0, np.nan, M)), abs=1e-15)


def test_many_matrices_at_once_equal_one_by_one():
    """The summary of a stack of matrices is the summary of each."""
    stack = np.random.default_rng(0).uniform(size=(20, 4, 4)).round(1)
    many = summarise_samples(stack)
    for at, M in enumerate(stack):
        single = summarise(M)
        assert (many.ac[at], many.aa[at], many.aca[at]) == pytest.approx(
            (single.ac, single.aa, single.aca)
        )
