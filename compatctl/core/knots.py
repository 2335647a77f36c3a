"""Check the knots of a score map (core/calibration.py) without loading numpy."""

from __future__ import annotations

import math
from itertools import pairwise

MAX_KNOTS = 64


def knots_problem(knots: object) -> str:
    """What is wrong with ``knots``, a value of any type; empty if nothing is."""
    if not isinstance(knots, list | tuple) or not 2 <= len(knots) <= MAX_KNOTS:
        return f"has from 2 to {MAX_KNOTS} knots"
    for knot in knots:
        pair = isinstance(knot, list | tuple) and len(knot) == 2
        if not pair or not all(type(x) in {int, float} and math.isfinite(x) for x in knot):
            return f"has knots of two numbers, got {knot!r:.60}"
    if tuple(knots[0]) != (-1, -1) or tuple(knots[-1]) != (1, 1):
        return f"goes from (-1, -1) to (1, 1), got {knots[0]} and {knots[-1]}"
    for before, after in pairwise(knots):
        if not (before[0] < after[0] and before[1] < after[1]):
            return f"rises, got {after} after {before}"
    return ""
