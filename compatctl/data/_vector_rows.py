"""Rows of vectors that other programs wrote: which can be used, and which hardly say anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors
from compatctl.notices import notice

LEAST_LENGTH = 1e-30
"""Shortest vector that is read: in single precision a shorter one has lost digits."""

EQUAL_SHARE = 0.1
"""Share of rows with one and the same vector, above which there is a notice."""

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


def warn_of_equal_rows(path: Path, rows: Vectors) -> None:
    """Warn if more than ``EQUAL_SHARE`` of the rows (N, D) are one and the same vector."""
    if len(rows) <= _FEW:
        return
    weights = np.random.default_rng(0).standard_normal((rows.shape[1],)).astype(np.float32)
    # equal rows have equal sums, others hardly ever
    sums = np.asarray(np.einsum("nd,d->n", rows, weights))
    order = np.argsort(sums, kind="stable")
    starts = np.flatnonzero(np.diff(sums[order], prepend=np.nan) != 0)
    counts = np.diff(starts, append=len(rows))
    most = int(np.argmax(counts))
    alike = order[starts[most] : starts[most] + counts[most]]
    count = int((rows[alike] == rows[alike[0]]).all(axis=1).sum())
    if count > max(_FEW, EQUAL_SHARE * len(rows)):
        first = [f"row {row}" for row in np.sort(alike)[:3].tolist()]
        result = "a model that gives them one vector cannot tell these items apart"
        notice(
            "equal-vectors", path, "rows with one and the same vector", first, result, count=count
        )
