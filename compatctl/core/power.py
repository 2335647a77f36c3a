"""Which gain a set of held-out queries can show, before there is a model to verify.

The gate passes a gain where the lower end of its interval lies above the limit. The scatter of a
gain follows from the share of queries whose hit changes, and from how much alike the changes of one
class, or of one user, are (Kish, Survey Sampling, 1965: the design effect). What half-samples do
not see, a class that was not in the sample, is allowed for as the gate does.

Shapes: ``Q`` queries, ``K`` kinds of units that are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compatctl.core.arrays import Bools, Codes
from compatctl.core.asymmetry import UNSEEN
from compatctl.core.estimate import SkewCorrection

_NORMAL = NormalDist()
_STEPS = 60
MAX_TIMES = 1e7
"""A set that would have to be larger by more than this shows nothing."""


@dataclass(frozen=True, kw_only=True)
class UnitKind:
    """One kind of unit: how many there are, and of how many queries a query's own is, in the mean
    over queries."""

    name: str
    n: int
    size: float


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """A set of queries that have something to find, and what is resampled of them."""

    n_queries: int
    kinds: tuple[UnitKind, ...]

    @classmethod
    def of(cls, classes: Codes, unit: tuple[str, ...], has_match: Bools) -> HeldOutSet:
        """From codes (Q,) or (Q, K), the kinds' names, and which queries count (Q,)."""
        columns = (classes[:, None] if classes.ndim == 1 else classes)[has_match]
        kinds = []
        for name, column in zip(unit, columns.T, strict=True):
            sizes = np.unique(column, return_counts=True)[1].astype(np.float64)
            size = float((sizes**2).sum() / max(sizes.sum(), 1.0))
            kinds.append(UnitKind(name=name, n=len(sizes), size=size))
        return cls(n_queries=len(columns), kinds=tuple(kinds))

    @property
    def n_units(self) -> int:
        """Of the kind that has fewest."""
        return min((kind.n for kind in self.kinds), default=0)

    def design_effect(self, icc: Mapping[str, float]) -> float:
        """What dependence multiplies the variance by; ``icc``: intraclass correlation by kind."""
        return 1 + sum((kind.size - 1) * icc.get(kind.name, 0.0) for kind in self.kinds)


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """What a change of the model does to single queries."""

    changed: float
    """Share of queries whose hit changes, either way, in (0, 1]; a gain is at most that."""
    icc: Mapping[str, float]
    """Intraclass correlation of the change by kind of unit, in [0, 1]."""
    old_recall: float
    """What the old model finds, which is what an unseen class could lose."""


@dataclass(frozen=True, kw_only=True)
class PowerTarget:
    """What the policy asks for: the gain must be shown to lie above ``limit``, one-sided at
    ``level``, and is to be shown with this ``power``."""

    limit: float
    level: float
    power: float


def pass_probability(
    held_out: HeldOutSet, scatter: Scatter, gain: float, asked: PowerTarget, times: float = 1.0
) -> float:
    """Probability that the gate passes a true ``gain`` on a set ``times`` as large, drawn alike."""
    if not held_out.n_queries:
        return 0.0
    n, units = held_out.n_queries * times, held_out.n_units * times
    changed = max(scatter.changed, abs(gain))
    variance = max(changed - gain**2, 1e-12) * held_out.design_effect(scatter.icc) / n
    error = math.sqrt(variance)
    lost = -(scatter.old_recall + gain)
    weight = UNSEEN / (units + UNSEEN)
    # Moments of the mean with a part of a unit besides that lost all: those of ``skew_of``.
    second = variance * (units / (units + UNSEEN)) ** 2 + UNSEEN * (lost / (units + UNSEEN)) ** 2
    third = UNSEEN * (lost / (units + UNSEEN)) ** 3
    skew = SkewCorrection(
        error=math.sqrt(second), skewness=third / second**1.5, shift=weight * lost
    )
    beyond = max(
        _NORMAL.inv_cdf(1 - asked.level) * error,
        skew.quantile(1 - asked.level),
    )
    return _NORMAL.cdf((gain - asked.limit - beyond) / error)


def min_detectable_gain(held_out: HeldOutSet, scatter: Scatter, asked: PowerTarget) -> float | None:
    """The least gain that is shown with the power asked for; None where no possible one is."""
    most = min(scatter.changed, 1 - scatter.old_recall) if scatter.old_recall < 1 else 0.0

    def shown(gain: float) -> bool:
        return pass_probability(held_out, scatter, gain, asked) >= asked.power

    if most <= asked.limit or not shown(most):
        return None
    return _least(shown, asked.limit, most)


def times_needed(
    held_out: HeldOutSet, scatter: Scatter, gain: float, asked: PowerTarget
) -> float | None:
    """How many times as large a set, drawn alike, shows the gain with the power asked for; below 1
    where a smaller one does. None where none does, or where so few queries change."""
    if gain <= asked.limit or gain > scatter.changed or not held_out.n_queries:
        return None

    def shown(log: float) -> bool:
        return pass_probability(held_out, scatter, gain, asked, math.exp(log)) >= asked.power

    low, high = -math.log(held_out.n_queries), math.log(MAX_TIMES)
    return math.exp(_least(shown, low, high)) if shown(high) else None


def _least(shown: Callable[[float], bool], low: float, high: float) -> float:
    """By bisection: from where on ``shown`` holds."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high
