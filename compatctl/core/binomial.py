"""Exact binomial tails, Clopper and Pearson's limit, and McNemar's test."""

from __future__ import annotations

import math

import numpy as np

_STEPS = 60
"""Bisection steps: the limit is exact to the last bits of a float64."""


def tail(k: int, n: int, p: float) -> float:
    """P(X <= k) for n trials with probability p, clipped to [0, 1]; summed in logarithms."""
    if p <= 0 or k >= n:
        return 1.0
    if p >= 1:
        return 0.0
    j = np.arange(1, k + 1)
    ratios = np.log((n - j + 1) / j) + math.log(p) - math.log1p(-p)
    terms = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(ratios)])
    top = float(terms.max())
    return min(1.0, math.exp(top) * float(np.exp(terms - top).sum()))


def upper_limit(k: int, n: int, alpha: float) -> float:
    """The largest p with P(X <= k) > alpha for n trials; 1 if k >= n.

    This is the one-sided limit of Clopper and Pearson (Biometrika 26, 1934).
    """
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(k, n, middle) > alpha else (low, middle)
    return high


def mcnemar(worse: int, better: int) -> float:
    """Exact two-sided p-value of McNemar's test; 1 if no query changed.

    ``worse`` queries turned from right to wrong, ``better`` from wrong to right. The test assumes
    independent queries; if classes have several, the class-resampled interval decides.
    """
    n = worse + better
    return min(1.0, 2 * tail(min(worse, better), n, 0.5)) if n else 1.0
