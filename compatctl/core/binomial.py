"""Exact binomial tails, Clopper and Pearson's limit, McNemar's test, and bisection."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value in [low, high] at which ``holds`` is true, to the last bits of a float64.

    ``holds`` is false below that value and true above it; if it is true nowhere, ``high``.
    """
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


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
    return bisect(lambda p: tail(k, n, p) <= alpha, k / n, 1.0)


def mcnemar(worse: int, better: int) -> float:
    """Exact two-sided p-value of McNemar's test; 1 if no query changed.

    ``worse`` queries turned from right to wrong, ``better`` from wrong to right. The test assumes
    independent queries; if classes have several, the class-resampled interval decides.
    """
    n = worse + better
    return min(1.0, 2 * tail(min(worse, better), n, 0.5)) if n else 1.0
