"""The power of the gate: which gain a set of held-out queries can show, before a model exists.

The gate passes a gain g if the lower end of its interval lies above the limit. With n queries of
which a share p change their hit, the variance of g is ``(p - g^2) d / n``. The design effect is
``d = 1 + sum_k (b_k - 1) icc_k`` over kinds of units k, with b_k the mean unit size over queries
(Kish, Survey Sampling, 1965). Unseen classes are allowed for as the gate does.

Shapes: ``Q`` queries, ``K`` kinds of resampled units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compatctl.core.arrays import Bools, Codes
from compatctl.core.binomial import bisect
from compatctl.core.estimate import UNSEEN_UNITS, SkewCorrection

_NORMAL = NormalDist()
MAX_TIMES = 1e7
"""The largest factor that ``times_needed`` considers."""


@dataclass(frozen=True, kw_only=True)
class UnitKind:
    """One kind of resampled unit."""

    name: str
    n: int
    """Number of units."""
    size: float
    """Mean over queries of the size of the query's unit, in queries."""


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """A set of queries with a match, and the units to resample."""

    n_queries: int
    kinds: tuple[UnitKind, ...]

    @classmethod
    def from_codes(cls, classes: Codes, unit: tuple[str, ...], has_match: Bools) -> HeldOutSet:
        """From codes (Q,) or (Q, K), the kinds' names, and which queries (Q,) have a match."""
        columns = (classes[:, None] if classes.ndim == 1 else classes)[has_match]
        kinds = []
        for name, column in zip(unit, columns.T, strict=True):
            sizes = np.unique(column, return_counts=True)[1].astype(np.float64)
            size = float((sizes**2).sum() / max(sizes.sum(), 1.0))
            kinds.append(UnitKind(name=name, n=len(sizes), size=size))
        return cls(n_queries=len(columns), kinds=tuple(kinds))

    @property
    def n_units(self) -> int:
        """Units of the kind that has fewest."""
        return min((kind.n for kind in self.kinds), default=0)

    def design_effect(self, icc: Mapping[str, float]) -> float:
        """The factor by which dependence raises the variance; ``icc`` is by kind."""
        return 1 + sum((kind.size - 1) * icc.get(kind.name, 0.0) for kind in self.kinds)


@dataclass(frozen=True, kw_only=True)
class PowerAssumptions:
    """How a new model changes the hits of single queries."""

    changed: float
    """Share of queries whose hit changes, either way, in (0, 1]; the gain is at most this."""
    icc: Mapping[str, float]
    """Intraclass correlation of the change by kind of unit, in [0, 1]."""
    old_hit_rate: float
    """hit rate(old, old): what an unseen class could lose."""


@dataclass(frozen=True, kw_only=True)
class PowerTarget:
    """Show a gain above ``limit``, one-sided at ``level``, with probability ``power``."""

    limit: float
    level: float
    power: float


def pass_probability(
    held_out: HeldOutSet,
    expected: PowerAssumptions,
    gain: float,
    target: PowerTarget,
    times: float = 1.0,
) -> float:
    """Probability that the gate passes a true ``gain`` on a similar set ``times`` as large."""
    if not held_out.n_queries:
        return 0.0
    n, units = held_out.n_queries * times, held_out.n_units * times
    changed = max(expected.changed, abs(gain))
    variance = max(changed - gain**2, 1e-12) * held_out.design_effect(expected.icc) / n
    error = math.sqrt(variance)
    lost = -(expected.old_hit_rate + gain)
    weight = UNSEEN_UNITS / (units + UNSEEN_UNITS)
    # Moments of the mean with a part of an unseen unit that lost all, as ``skew_correction`` has.
    second = variance * (1 - weight) ** 2 + UNSEEN_UNITS * (lost / (units + UNSEEN_UNITS)) ** 2
    third = UNSEEN_UNITS * (lost / (units + UNSEEN_UNITS)) ** 3
    skew = SkewCorrection(
        error=math.sqrt(second), skewness=third / second**1.5, shift=weight * lost
    )
    beyond = max(
        _NORMAL.inv_cdf(1 - target.level) * error,
        skew.quantile(1 - target.level),
    )
    return _NORMAL.cdf((gain - target.limit - beyond) / error)


def min_detectable_gain(
    held_out: HeldOutSet, expected: PowerAssumptions, target: PowerTarget
) -> float | None:
    """The smallest gain that is shown with the target's power; None if none is."""
    most = min(expected.changed, 1 - expected.old_hit_rate) if expected.old_hit_rate < 1 else 0.0

    def shown(gain: float) -> bool:
        return pass_probability(held_out, expected, gain, target) >= target.power

    if most <= target.limit or not shown(most):
        return None
    return bisect(shown, target.limit, most)


def times_needed(
    held_out: HeldOutSet, expected: PowerAssumptions, gain: float, target: PowerTarget
) -> float | None:
    """How many times as large a similar set must be to show the gain; None if no set is enough."""
    if gain <= target.limit or gain > expected.changed or not held_out.n_queries:
        return None

    def shown(log: float) -> bool:
        return pass_probability(held_out, expected, gain, target, math.exp(log)) >= target.power

    low, high = -math.log(held_out.n_queries), math.log(MAX_TIMES)
    return math.exp(bisect(shown, low, high)) if shown(high) else None
