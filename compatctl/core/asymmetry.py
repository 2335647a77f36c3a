"""What half-samples do not see: harm that is rare, and contributions that are not symmetric.

Half-samples are exact for contributions that are symmetric about the truth. Where most classes win
a little and few, or large ones, lose much, they are too sure as long as fewer of those are in the
sample than there should be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compatctl.core.arrays import Floats
from compatctl.core.estimate import SYMMETRIC, RareChangeBound, SkewCorrection
from compatctl.core.units import UnitSet, crossed_moments

UNSEEN = 0.25
"""Units thought of that were not seen. One would be Gaffke's bound (2005), which for hits and
misses is Clopper's and Pearson's, and errs on the safe side. A quarter is the least with which no
more than .035 passed wrongly in simulations of 50 to 200 classes of which 2 or 4% are lost."""

MOST_SKEWED = UNSEEN**-0.5
"""What the skewness of a part of a unit alone is."""

FEW = 5
"""Half-samples leave five classes out with probability 1/32, more than an interval of 95% may: with
no more classes than this that changed at all, the binomial bounds what was not seen."""


def rare_changes(totals: Floats, counts: Floats) -> RareChangeBound | None:
    """Where few of the units (C,) changed: how many for the worse, of Kish's effective number."""
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
    """The error and the skewness of ``sum of totals / sum of counts`` over cells (C,).

    ``size``: how many queries a unit has that was not seen, ``worst``: their mean; a share of
    ``UNSEEN`` of it is thought of besides. None where nothing scatters.
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
        # Of kinds that cross, third moments may exceed what a scatter allows.
        skewness=float(np.clip(third / scatter**3, -MOST_SKEWED, MOST_SKEWED)),
        shift=float(value - totals.sum() / counts.sum()) if unseen else 0.0,
    )
