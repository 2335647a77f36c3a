"""Parity: an encoder's file must give the embeddings of what it was made from."""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import Vectors
from compatctl.data import Dataset
from compatctl.errors import InputError

PARITY_ITEMS = 64
PARITY_LIMIT = 1e-3
"""The largest absolute difference of any component of an embedding."""


def parity_items(data: Dataset) -> Dataset:
    """At most ``PARITY_ITEMS`` items, evenly spaced over the data."""
    return data.take(range(0, len(data), max(1, -(-len(data) // PARITY_ITEMS))))


def check_parity(actual: Vectors, expected: Vectors, mismatch: str, *, tip: str = "") -> float:
    """The largest absolute difference between two embeddings (n, D) of the same items.

    ``mismatch`` begins the message of the error: which file differs from what.

    Raises:
        InputError: the difference is over ``PARITY_LIMIT``, or is not a number.
    """
    parity = float(np.abs(actual - expected).max(initial=0.0))
    if not parity <= PARITY_LIMIT:
        raise InputError(f"{mismatch} by {parity:.2g}, over {PARITY_LIMIT}", tip=tip)
    return parity
