"""A monotone map from one model's scores to another's scale, so that thresholds keep their meaning.

A caller's threshold was set on the scores of one query model. The map takes the next model's scores
to that scale: at every threshold that enough pairs reach, as large a share of the items of other
classes is accepted as before (quantile matching, as equipercentile equating of two tests; Kolen and
Brennan, Test Equating, 2014, chapter 2). It rises strictly, so no ranking changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import AnyFloats, Floats
from compatctl.core.knots import MAX_KNOTS, knots_problem
from compatctl.core.score_counts import ScoreCounts
from compatctl.errors import InputError

MIN_PAIRS = 1000
"""Different-class pairs of each model below which no map is fitted."""

_TAIL = 20
"""Pairs that reach the last knot: beyond it a share is a matter of chance."""
_APART = 1e-6
"""Knots are at least this far apart, in both directions."""
_BULK = (0.99, 0.9, 0.75)
"""False accept rates of the first knots; from .5 on they fall geometrically."""


@dataclass(frozen=True, kw_only=True)
class ScoreMap:
    """A strictly rising map of [-1, 1] onto itself, linear between its knots.

    Raises:
        InputError: fewer than 2 or more than 64 knots, other ends than -1 and 1, or knots that do
            not rise.
    """

    knots: tuple[tuple[float, float], ...]
    """(score, score on the other scale), from (-1, -1) to (1, 1)."""

    def __post_init__(self) -> None:
        if problem := knots_problem(self.knots):
            raise InputError(f"a score map {problem}")

    def __call__(self, scores: AnyFloats | float) -> Floats:
        """The scores on the other scale, float64; beyond -1 and 1 the ends."""
        x, y = zip(*self.knots, strict=True)
        return np.asarray(np.interp(scores, x, y), dtype=np.float64)

    def inverse(self, score: float) -> float:
        """The score that the map takes to ``score``; beyond -1 and 1 the ends."""
        x, y = zip(*self.knots, strict=True)
        return float(np.interp(score, y, x))

    def then(self, other: ScoreMap) -> ScoreMap:
        """This map and then ``other``, exact at this one's knots."""
        made = [(x, float(other(y))) for x, y in self.knots]
        return ScoreMap(knots=_apart(made))


def fit_score_map(old: ScoreCounts, new: ScoreCounts) -> ScoreMap:
    """The map from new scores to old ones that keeps every false accept rate.

    Beyond the score that 20 pairs of two classes reach it is a straight line to (1, 1).

    Raises:
        InputError: fewer than ``LEAST_PAIRS`` pairs of two classes.
    """
    pairs = int(min(old.diff.sum(), new.diff.sum()))
    if pairs < MIN_PAIRS:
        raise InputError(
            f"scores are calibrated by pairs of two classes: {pairs} are there, {MIN_PAIRS} are "
            "needed",
            tip="hold out more classes, or leave --calibrate out",
        )
    falling = np.geomspace(0.5, _TAIL / pairs, MAX_KNOTS - 2 - len(_BULK))
    levels = [*_BULK, *falling.tolist()]
    points = zip(_quantiles(new, levels), _quantiles(old, levels), strict=True)
    return ScoreMap(knots=_apart([(-1.0, -1.0), *points, (1.0, 1.0)]))


def _quantiles(counts: ScoreCounts, levels: list[float]) -> list[float]:
    """The score that each share of the different-class pairs reaches."""
    far = counts.far[::-1]
    kept = np.append(True, far[1:] > far[:-1])  # empty bins have no say
    found = np.interp(levels, far[kept], counts.edges[::-1][kept])
    return [float(one) for one in found]


def _apart(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Points that are too near to the one before, or to the last one, left out."""
    kept = [points[0]]
    for x, y in points[1:-1]:
        rises = x - kept[-1][0] >= _APART and y - kept[-1][1] >= _APART
        if rises and x <= 1 - _APART and y <= 1 - _APART:
            kept.append((x, y))
    return (*kept, points[-1])
