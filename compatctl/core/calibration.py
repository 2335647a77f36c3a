"""A monotone map from one model's scores to another's scale, so that thresholds keep their meaning.

A caller sets a threshold on the scores of one query model. The map takes the next model's scores to
that scale by quantile matching: at every threshold that enough pairs reach, the false accept rate
is the same as before (equipercentile equating; Kolen and Brennan, Test Equating, 2014, chapter 2).
The map is strictly increasing, so no ranking changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import AnyFloats, Floats
from compatctl.core.knots import MAX_KNOTS, knots_problem
from compatctl.core.score_histogram import ScoreHistogram
from compatctl.errors import InputError

MIN_PAIRS = 1000
"""Fewest different-class pairs of each model from which a map is fitted."""

_TAIL = 20
"""Pairs that reach the last knot: beyond it the false accept rate is noise."""
_MIN_STEP = 1e-6
"""Smallest distance between knots, on both axes."""
_BULK = (0.99, 0.9, 0.75)
"""False accept rates of the first knots; from .5 on the rates fall geometrically."""


@dataclass(frozen=True, kw_only=True)
class ScoreMap:
    """A strictly increasing map of [-1, 1] onto itself, linear between its knots.

    Raises:
        InputError: not 2 to 64 increasing knots from -1 to 1.
    """

    knots: tuple[tuple[float, float], ...]
    """(score, score on the other scale), from (-1, -1) to (1, 1)."""

    def __post_init__(self) -> None:
        if problem := knots_problem(self.knots):
            raise InputError(f"a score map {problem}")

    def __call__(self, scores: AnyFloats | float) -> Floats:
        """The scores on the other scale, float64; scores beyond -1 and 1 map to the ends."""
        x, y = zip(*self.knots, strict=True)
        return np.asarray(np.interp(scores, x, y), dtype=np.float64)

    def inverse(self, score: float) -> float:
        """The score that the map takes to ``score``; beyond -1 and 1, the end."""
        x, y = zip(*self.knots, strict=True)
        return float(np.interp(score, y, x))

    def then(self, other: ScoreMap) -> ScoreMap:
        """Apply this map, then ``other``; exact at this map's knots."""
        return ScoreMap(knots=_thinned([(x, float(other(y))) for x, y in self.knots]))


def fit_score_map(old: ScoreHistogram, new: ScoreHistogram) -> ScoreMap:
    """The map from new scores to old scores that keeps every false accept rate.

    Above the score that 20 different-class pairs reach it is a straight line to (1, 1).

    Raises:
        InputError: fewer than ``MIN_PAIRS`` pairs of two classes.
    """
    pairs = int(min(old.diff.sum(), new.diff.sum()))
    if pairs < MIN_PAIRS:
        raise InputError(
            f"calibration needs {MIN_PAIRS} pairs of two classes, got {pairs}",
            tip="hold out more classes, or leave out --calibrate of compatctl verify",
        )
    falling = np.geomspace(0.5, _TAIL / pairs, MAX_KNOTS - 2 - len(_BULK))
    levels = [*_BULK, *falling.tolist()]
    points = zip(_quantiles(new, levels), _quantiles(old, levels), strict=True)
    return ScoreMap(knots=_thinned([(-1.0, -1.0), *points, (1.0, 1.0)]))


def _quantiles(counts: ScoreHistogram, levels: list[float]) -> list[float]:
    """The score at which each false accept rate is reached."""
    far = counts.far[::-1]
    kept = np.append(True, far[1:] > far[:-1])  # skip empty bins
    scores = np.interp(levels, far[kept], counts.edges[::-1][kept])
    return [float(score) for score in scores]


def _thinned(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The points without those too near to the one before, or to the last."""
    kept = [points[0]]
    for x, y in points[1:-1]:
        rises = x - kept[-1][0] >= _MIN_STEP and y - kept[-1][1] >= _MIN_STEP
        if rises and x <= 1 - _MIN_STEP and y <= 1 - _MIN_STEP:
            kept.append((x, y))
    return (*kept, points[-1])
