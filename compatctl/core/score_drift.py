"""Whether the scores of answers have changed since they were first seen."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from compatctl.core.arrays import AnyFloats

WINDOW = 500
"""Scores of the first window, and of the last one."""

LIMIT = 0.2
"""The distance from which scores have drifted. With ``WINDOW`` independent scores on both sides of
one distribution, it is exceeded with a probability of at most 2 exp(-LIMIT^2 WINDOW) = 4e-9."""


def ks_distance(first: AnyFloats, second: AnyFloats) -> float:
    """The Kolmogorov-Smirnov distance of two samples (n,) and (m,): the largest difference of their
    distribution functions, 0 .. 1."""
    values = np.concatenate([first, second])
    of_first, of_second = (
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (first, second)
    )
    return float(np.abs(of_first - of_second).max())


@dataclass(eq=False)
class ScoreDrift:
    """The distance of the last ``WINDOW`` scores from the first ``WINDOW``."""

    _first: list[float] = field(default_factory=list)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, score: float) -> None:
        """Take a score; one that is not finite does not count."""
        if not math.isfinite(score):
            return
        if len(self._first) < WINDOW:
            self._first.append(score)
        else:
            self._last.append(score)

    @property
    def distance(self) -> float | None:
        """0 .. 1; None before there are two whole windows."""
        if len(self._last) < WINDOW:
            return None
        return ks_distance(np.array(self._first), np.array(self._last))

    @property
    def has_drifted(self) -> bool:
        """Whether the distance is above ``LIMIT``."""
        distance = self.distance
        return distance is not None and distance > LIMIT
