"""Rows of vectors that other programs wrote: which can be used, and which hardly say anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors
from compatctl.notices import notice

VECTOR_NAMES = ("vectors", "features", "embeddings", "vector", "embedding", "feature")
"""What the array or column of vectors may be called."""

LEAST_LENGTH = 1e-30
"""Shortest vector that is read: in single precision a shorter one has lost digits."""

EQUAL_SHARE = 0.1
"""Share of rows with one and the same vector, above which there is a notice."""

ROUNDING = 1e-5
"""Difference of the components of equal rows, by the largest component."""

_BLOCK = 65_536
_FEW = 3
"""Most equal rows without a notice, in a table of any size."""


def single_precision(array: NDArray[Any]) -> Vectors:
    """The numbers in float32, in the array's own memory if it is float32; too large ones become
    infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def unusable_rows(rows: Vectors) -> Rows:
    """(B,) the rows of (N, D) ``rows`` that are not finite, or shorter than ``LEAST_LENGTH``."""
    squares = np.asarray(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return np.flatnonzero(~(np.isfinite(squares) & (squares >= LEAST_LENGTH**2)))


def why_unusable(row: NDArray[Any]) -> str:
    """What is wrong with a row (D,), of any type of numbers, that is unusable: the end of a
    sentence."""
    if np.isnan(row).any():
        return f"is not finite: {np.isnan(row).sum()} of its {len(row)} numbers are NaN"
    if np.isinf(row).any():
        return f"is not finite: {np.isinf(row).sum()} of its {len(row)} numbers are infinite"
    most = float(np.abs(row.astype(np.float64)).max(initial=0.0))
    if not most:
        return "is zero"
    size = "large" if most > 1 else "small"
    return f"is too {size} for single precision: its largest number is {most:.3g}"


def warn_of_equal_rows(source: object, rows: Vectors, names: Sequence[str] = ()) -> None:
    """Warn if more than ``EQUAL_SHARE`` of the rows (N, D) are one and the same vector.

    They may differ by rounding. ``names``: N names of the rows; by default their numbers.
    """
    if len(rows) <= _FEW:
        return
    weights = np.random.default_rng(0).standard_normal((rows.shape[1],)).astype(np.float32)
    sums = np.asarray(np.einsum("nd,d->n", rows, weights))
    order = np.argsort(sums, kind="stable")
    near = max(_FEW, int(EQUAL_SHARE * len(rows)))
    spans = sums[order[near:]] - sums[order[:-near]]  # equal rows have about equal sums
    middle = rows[order[int(np.argmin(spans)) + near // 2]]
    most = ROUNDING * float(np.abs(middle).max())
    blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    gaps = np.concatenate([np.abs(block - middle).max(axis=1) for block in blocks])
    alike = np.flatnonzero(gaps <= most)
    if len(alike) > near:
        first = [names[row] if names else f"row {row}" for row in alike[:3].tolist()]
        what = "items with one and the same vector" if names else "rows of one and the same vector"
        result = "a model that gives them one vector cannot tell them apart"
        notice("equal-vectors", source, what, first, result, count=len(alike))
