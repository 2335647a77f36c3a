"""An estimate and its replicates: intervals and p-values that always agree.

Half-samples are exact if the classes' contributions are symmetric about the truth. If most classes
gain a little and a few lose much, and the sample holds too few of those, half-samples alone are too
confident. Two corrections widen the interval: for rare changes, and for skewed contributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from compatctl.core.arrays import Floats
from compatctl.core.binomial import bisect, tail, upper_limit
from compatctl.core.sampling_units import UnitSet, crossed_moments

SYMMETRIC = 1e-9
"""A smaller skewness, or scatter relative to the totals, is rounding error."""

UNSEEN_UNITS = 0.25
"""u, the number of unseen units that are assumed. u = 1 gives Gaffke's bound (2005), which for hits
and misses is that of Clopper and Pearson, and is conservative. In simulations of 50 to 200 classes
of which 2 or 4% are lost, u = 0.25 is the smallest value with at most .035 wrong passes."""

MAX_SKEWNESS = UNSEEN_UNITS**-0.5
"""The skewness that one part of a unit alone has."""

MAX_RARE_CHANGES = 5
"""Half-samples leave five classes out with probability 1/32, which is more than a 95% interval
allows. If no more classes than this changed, the binomial bounds what was not seen."""

MIN_TIMES, MAX_TIMES = 1e-6, 1e9
"""The range in which ``times_needed`` searches."""


@dataclass(frozen=True, kw_only=True)
class RareChangeBound:
    """Few changed classes: a binomial bound on what the sample missed, in either direction."""

    fell: int
    """Classes that got worse."""
    rose: int
    """Classes that got better."""
    n: int
    """Classes in all."""


@dataclass(frozen=True, kw_only=True)
class SkewCorrection:
    """The skewness of an estimate's error, which half-samples miss.

    With t the studentised error and s its skewness, ``t + s (t^2 / 3 + 1 / 6) + s^2 t^3 / 27`` is
    normal to the order of s, and increasing in t (Hall, Journal of the Royal Statistical Society B
    54, 1992).
    """

    error: float
    """Standard error, > 0: root sum of squares of the classes' residuals over the total count."""
    skewness: float
    """Third moment of the residuals over error^3."""
    shift: float = 0.0
    """How far unseen units would move the estimate."""

    def cdf(self, distance: float) -> float:
        """P(estimate - truth <= distance); ``distance`` is signed."""
        t, s = (distance + self.shift) / self.error, self.skewness
        return NormalDist().cdf(t + s * (t**2 / 3 + 1 / 6) + s**2 * t**3 / 27)

    def scaled_to(self, times: float) -> SkewCorrection:
        """The correction with ``times`` as many classes from the same distribution."""
        root = math.sqrt(times)
        return SkewCorrection(
            error=self.error / root, skewness=self.skewness / root, shift=self.shift / times
        )

    def quantile(self, level: float) -> float:
        """The distance whose ``cdf`` is ``level``."""
        z, s = NormalDist().inv_cdf(level), self.skewness
        if abs(s) < SYMMETRIC:
            return z * self.error - self.shift
        cube = 1 + s * (z - s / 6)
        t = 3 / s * (math.copysign(abs(cube) ** (1 / 3), cube) - 1)
        return t * self.error - self.shift


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """An estimate with the replicates from which its intervals and p-values follow."""

    value: float
    """NaN if undefined."""
    replicates: Floats
    """(B,) ascending. An empty replicate is -inf and counts at both ends."""
    n_empty: int
    n_classes: int
    bounds: tuple[float, float]
    """The smallest and largest possible value."""
    min_p: float = 0.0
    """Smallest possible p-value: the probability that a replicate leaves every class out."""
    rare: RareChangeBound | None = None
    skew_low: SkewCorrection | None = None
    """Also bounds the lower end and ``p_above``."""
    skew_high: SkewCorrection | None = None
    """Also bounds the upper end and ``p_below``."""

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided interval with confidence ``level`` in (0, 1); it contains the estimate.

        If there are too few replicates for an end, that end is the bound of possible values.
        """
        alpha = 1 - level
        B = len(self.replicates)
        k = int(alpha / 2 * (B + 1) + 1e-9)
        low, high = self.bounds
        if k > self.n_empty and self.min_p <= alpha / 2 + 1e-12:
            low = float(self.replicates[k - 1])
            high = float(self.replicates[B - 1 - (k - self.n_empty - 1)])
        if self.rare is not None:
            if self.bounds[0] < 0:
                low = min(low, -upper_limit(self.rare.fell, self.rare.n, alpha / 2))
            high = max(high, upper_limit(self.rare.rose, self.rare.n, alpha / 2))
        if self.skew_low is not None:
            low = min(low, self.value - self.skew_low.quantile(1 - alpha / 2))
        if self.skew_high is not None:
            high = max(high, self.value - self.skew_high.quantile(alpha / 2))
        low, high = max(low, self.bounds[0]), min(high, self.bounds[1])
        return float(min(low, self.value)), float(max(high, self.value))

    def replicate_p_values(self, threshold: float) -> tuple[float, float]:
        """p-values of truth <= ``threshold`` and of truth >= it, from the replicates alone."""
        B = len(self.replicates)
        against = int(np.searchsorted(self.replicates, threshold, side="right"))
        under = int(np.searchsorted(self.replicates, threshold, side="left"))
        return (1 + against) / (1 + B), (1 + B - under + self.n_empty) / (1 + B)

    def p_above(self, threshold: float) -> float:
        """p-value of the hypothesis that the truth is at most ``threshold``."""
        p = max(self.replicate_p_values(threshold)[0], self.min_p)
        if self.skew_low is not None:
            p = max(p, 1 - self.skew_low.cdf(self.value - threshold))
        if self.rare is not None and self.bounds[0] < 0:
            p = max(p, tail(self.rare.fell, self.rare.n, -threshold))
        return 1.0 if self.value <= threshold else min(p, 1.0)

    def p_below(self, threshold: float) -> float:
        """p-value of the hypothesis that the truth is at least ``threshold``."""
        p = max(self.replicate_p_values(threshold)[1], self.min_p)
        if self.skew_high is not None:
            p = max(p, self.skew_high.cdf(self.value - threshold))
        if self.rare is not None:
            p = max(p, tail(self.rare.rose, self.rare.n, threshold))
        return 1.0 if self.value >= threshold else min(p, 1.0)

    @property
    def spread(self) -> float:
        """Half the width of the replicates' 68% interval: the standard error."""
        low, high = replace(self, skew_low=None, skew_high=None).interval(0.6827)
        return (high - low) / 2

    def times_needed(self, threshold: float, level: float, power: float) -> float:
        """How many times as many classes are needed, if the estimate is the truth.

        They show with this ``power``, at a one-sided ``level``, that the truth lies on the
        estimate's side of the threshold. Infinite if no number does; NaN if the spread is unknown.
        """
        distance, spread = self.value - threshold, self.spread
        if not distance or not math.isfinite(spread + distance):
            return math.inf if math.isfinite(spread) else math.nan
        skew = self.skew_low if distance > 0 else self.skew_high
        z, z_power = NormalDist().inv_cdf(1 - level), NormalDist().inv_cdf(power)

        def shown(times: float) -> bool:
            error = spread / math.sqrt(times)
            beyond = z * error
            if skew is not None:
                scaled = skew.scaled_to(times).quantile(1 - level if distance > 0 else level)
                beyond = max(beyond, math.copysign(1.0, distance) * scaled)
            return abs(distance) >= beyond + z_power * error

        if not shown(MAX_TIMES):
            return math.inf
        low, high = math.log(MIN_TIMES), math.log(MAX_TIMES)
        return math.exp(bisect(lambda log: shown(math.exp(log)), low, high))


def rare_change_bound(totals: Floats, counts: Floats) -> RareChangeBound | None:
    """How many of few changed units (C,) got worse, of Kish's effective number of units.

    None if more than ``FEW`` units changed, or nothing was counted.
    """
    if int((totals != 0).sum()) > MAX_RARE_CHANGES or counts.sum() == 0:
        return None
    fell, rose = int((totals < 0).sum()), int((totals > 0).sum())
    effective = int(counts.sum() ** 2 / (counts**2).sum())
    return RareChangeBound(fell=min(fell, effective), rose=min(rose, effective), n=effective)


def skew_correction(
    totals: Floats,
    counts: Floats,
    sets: Sequence[UnitSet],
    *,
    size: float = 0.0,
    worst: float = 0.0,
) -> SkewCorrection | None:
    """Error and skewness of ``sum(totals) / sum(counts)`` over cells (C,).

    ``UNSEEN`` units of ``size`` queries with the mean ``worst`` are added to the sample. None if
    nothing varies.
    """
    unseen = UNSEEN_UNITS * size
    n = counts.sum() + unseen
    value = (totals.sum() + unseen * worst) / n
    second, third, _ = crossed_moments(sets, totals - value * counts)
    second += UNSEEN_UNITS * (size * (worst - value)) ** 2
    third += UNSEEN_UNITS * (size * (worst - value)) ** 3
    scatter = float(np.sqrt(second))
    if scatter <= SYMMETRIC * (abs(totals).sum() + unseen):
        return None
    return SkewCorrection(
        error=scatter / n,
        # With crossed kinds the third moment may exceed what this scatter allows.
        skewness=float(np.clip(third / scatter**3, -MAX_SKEWNESS, MAX_SKEWNESS)),
        shift=float(value - totals.sum() / counts.sum()) if unseen else 0.0,
    )
