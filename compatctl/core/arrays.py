"""Array types by meaning, and the checks that every function of core/ makes on its arguments.

Shapes: ``N`` rows, ``Q`` queries, ``G`` gallery rows, ``D`` dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError

AnyFloats = NDArray[np.floating[Any]]
"""Floats of any width."""
Features = NDArray[np.floating[Any]]
"""(N, D) unit rows of any floating type."""
Vectors = NDArray[np.float32]
"""(N, D) unit rows as they are stored, or the input and output of a network."""
Scores = NDArray[np.float32]
"""Cosines."""
Floats = NDArray[np.float64]
"""Statistics."""
Rows = NDArray[np.int64]
"""Row positions in a table, a data set or a gallery; -1 means no row."""
Codes = NDArray[np.int64]
"""Labels as integers: equal codes are one class."""
Bools = NDArray[np.bool_]
Keys = NDArray[np.uint64]
"""Keys of an index: one per row, never reused."""
Checksums = NDArray[np.uint64]
"""64 bits of a row's bytes."""
Words = NDArray[np.uint64]
"""64 bits that stand for eight bytes."""
Bits = NDArray[np.int32]
"""The bits of float32 values."""
Pixels = NDArray[np.uint8]
"""(H, W, 3) or (N, H, W, 3)."""
Bytes = NDArray[np.uint8]
PerceptualHashes = NDArray[np.uint8]
"""(N, 24): see ``core.perceptual_hash``."""

NO_CLASS = int(np.iinfo(np.int64).min)
"""The label of a gallery row of unknown class: relevant to no query, and in no pair."""

NORM_TOLERANCE = 1e-3
"""Largest distance of a row's length from 1: half precision passes, unnormalised rows do not."""


def as_rows(values: Iterable[int]) -> Rows:
    """(N,) int64 row positions."""
    return np.fromiter(values, np.int64)


def check_positive(value: int, name: str) -> None:
    """Raise InputError unless ``value`` is an integer >= 1. True is not one."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")


def as_features(array: Features, name: str) -> Features:
    """Return ``array`` if it is (N, D) finite floats with unit rows, D >= 1.

    Raises:
        InputError: it is not; the message names the first bad row.
    """
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[1] == 0 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} must be (N, D) floats, got {array.dtype} {array.shape}")
    lengths = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= NORM_TOLERANCE))
    if len(bad):
        raise InputError(
            f"{name} must be unit rows: row {bad[0]} has length {lengths[bad[0]]:.6g} "
            f"({len(bad)} of {len(array)} rows are bad)",
            tip="normalise the features, and look for NaN in what the model returned",
        )
    return array


def check_dimensions(a: Features, b: Features, a_name: str, b_name: str) -> None:
    """Raise InputError unless both have the same number of columns."""
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"{a_name} have {a.shape[1]} dimensions, {b_name} has {b.shape[1]}",
            tip="a query model must return as many dimensions as the gallery's vectors have",
        )


def as_labels(labels: Codes, n: int, name: str) -> Codes:
    """Return ``labels`` as (n,) int64 codes, or raise InputError."""
    labels = np.asarray(labels)
    if labels.size == 0 and labels.shape == (n,):
        return np.zeros(0, dtype=np.int64)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name} must be ({n},) integer codes, got {labels.dtype} {labels.shape}")
    return labels.astype(np.int64, copy=False)


def as_self_row(self_row: Codes | None, Q: int, G: int) -> Codes:
    """Return (Q,) int64 gallery rows or -1; None means all -1. InputError if out of range."""
    if self_row is None:
        return np.full(Q, -1, dtype=np.int64)
    rows = as_labels(self_row, Q, "self_row")
    if len(rows) and not -1 <= rows.min() <= rows.max() < G:
        raise InputError(f"self_row must lie in -1 to {G - 1}, got {rows.min()} to {rows.max()}")
    return rows


def unit_rows(rows: Vectors) -> Vectors:
    """The rows (N, D) divided by their lengths; a zero row stays zero."""
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def ordered_bits(bits: Bits) -> Bits:
    """The bits of float32 values as integers in the order of the values; also the inverse."""
    return bits ^ ((bits >> 31) & np.int32(2**31 - 1))


def ratio(total: Any, n: Any) -> float:
    """``total / n``, NaN where ``n`` is 0."""
    return float(total / n) if n else float("nan")
