"""Near-copies: other bytes and another id, and yet the image that was trained on or anchored.

They show by the look of the image, or by the vector that the old model makes of it: either is
enough. Re-compression moves a vector far, and the look hardly; a record without looks leaves the
vectors.
"""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.nearest import exact_search_pieces, row_pieces
from compatctl.core.perceptual_hash import matches_any_hash
from compatctl.data import Dataset, looks_of
from compatctl.deployment.training_record import TrainingRecord

NEAR = 0.005
"""Two vectors are of near-copies where 1 - cosine is below this share of its mean over all pairs of
queries and rows; measured in docs/verify.md. Of a mean cosine of 0 that is a cosine of .995."""
_SAMPLE = 10_000
"""Rows that the mean is taken of."""


def near_copies(data: Dataset, rows: Rows, seen: TrainingRecord) -> Rows:
    """Those of ``rows`` (n,) that look like an item that went through the new model.

    An image that does not decode looks like none.
    """
    if not len(seen.looks) or not len(rows):
        return np.zeros(0, np.int64)
    found, good = looks_of(data, rows.tolist())
    near: Rows = rows[good[matches_any_hash(found, seen.looks)]]
    return near


def near_vectors(queries: Vectors, self_row: Rows, gallery: Vectors, rows: Rows) -> Bools:
    """(Q,) queries (Q, D) whose vector is nearly that of one of the ``rows`` (n,), ascending, of a
    gallery (G, D): those that went through the new model.

    ``self_row`` (Q,): the gallery row that is the query's own item, -1: none. Unit rows, all of the
    old model; a row that an earlier one embedded is of another direction, and is near none.
    """
    if not len(queries) or not len(rows):
        return np.zeros(len(queries), bool)
    sample = gallery[rows[:: -(-len(rows) // _SAMPLE)]]
    mean = float(queries.mean(axis=0, dtype=np.float64) @ sample.mean(axis=0, dtype=np.float64))
    at = np.searchsorted(rows, self_row)
    own = np.where(rows[np.minimum(at, len(rows) - 1)] == self_row, at, -1)
    found = exact_search_pieces(queries, row_pieces(gallery, rows), 1, own)
    near: Bools = 1 - found.scores[:, 0] < NEAR * (1 - mean)
    return near
