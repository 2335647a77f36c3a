"""Corrections for what half-samples miss: rare harm, and skewed contributions.

Half-samples are exact when the classes' contributions are symmetric about the truth. When most
classes gain a little and a few lose much, and the sample holds fewer of those few than it should,
half-samples alone are too confident.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compatctl.core.arrays import Floats
from compatctl.core.estimate import SYMMETRIC, RareChangeBound, SkewCorrection
from compatctl.core.units import UnitSet, crossed_moments

UNSEEN = 0.25
"""u, the number of unseen units that are assumed. u = 1 gives Gaffke's bound (2005), which for hits
and misses is that of Clopper and Pearson, and is conservative. In simulations of 50 to 200 classes
of which 2 or 4% are lost, u = 0.25 is the smallest value with at most .035 wrong passes."""

MAX_SKEWNESS = UNSEEN**-0.5
"""The skewness that one part of a unit alone has."""

FEW = 5
"""Half-samples leave five classes out with probability 1/32, which is more than a 95% interval
allows. If no more classes than this changed, the binomial bounds what was not seen."""


def rare_changes(totals: Floats, counts: Floats) -> RareChangeBound | None:
    """How many of few changed units (C,) got worse, of Kish's effective number of units.

    None if more than ``FEW`` units changed, or nothing was counted.
    """
    if int((totals != 0).sum()) > FEW or counts.sum() == 0:
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
    unseen = UNSEEN * size
    n = counts.sum() + unseen
    value = (totals.sum() + unseen * worst) / n
    second, third, _ = crossed_moments(sets, totals - value * counts)
    second += UNSEEN * (size * (worst - value)) ** 2
    third += UNSEEN * (size * (worst - value)) ** 3
    scatter = float(np.sqrt(second))
    if scatter <= SYMMETRIC * (abs(totals).sum() + unseen):
        return None
    return SkewCorrection(
        error=scatter / n,
        # With crossed kinds the third moment may exceed what this scatter allows.
        skewness=float(np.clip(third / scatter**3, -MAX_SKEWNESS, MAX_SKEWNESS)),
        shift=float(value - totals.sum() / counts.sum()) if unseen else 0.0,
    )
