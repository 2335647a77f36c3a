"""The fused feature of two models: the unit weighted mean of their unit features.

At weight 1/2 it is the midpoint of the arc between the two (SLERP), at any weight it lies on it.
"""

from __future__ import annotations

from compatctl.core.arrays import Vectors, unit_rows


def fuse_rows(old: Vectors, new: Vectors, weight: float) -> Vectors:
    """(N, D) unit rows of ``(1 - weight) old + weight new``; old and new (N, D) unit rows."""
    return unit_rows((1.0 - weight) * old + weight * new)
