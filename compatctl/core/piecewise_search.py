"""Exact search of a gallery that lies in pieces; the answers are those of one whole array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.ignored import Ignored
from compatctl.core.nearest import Neighbours, exact_search

Piece = tuple[int, Vectors]
"""The number of the first of some gallery rows that follow each other, and these rows (n, D)."""

_CHUNK = 65_536


def search_pieces(
    queries: Vectors,
    pieces: Iterable[Piece],
    k: int,
    self_row: Rows,
    ignored: Ignored | None = None,
) -> Neighbours:
    """``search`` of queries (Q, D) in a gallery of pieces, which follow each other.

    ``self_row`` (Q,): the gallery row that is no answer, -1: none; ``ignored``: further such rows.
    """
    rows = np.full((len(queries), 0), -1, np.int64)
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    for first, gallery in pieces:
        own = np.where(
            (self_row >= first) & (self_row < first + len(gallery)), self_row - first, -1
        )
        left_out = ignored and ignored.of_rows(first, first + len(gallery))
        found = exact_search(queries, gallery, k, own, ignored=left_out)
        here = np.where(found.rows >= 0, found.rows + first, -1)
        rows = np.concatenate([rows, here], axis=1)
        scores = np.concatenate([scores, found.scores], axis=1)
        # Stable: of equal scores the earlier piece, so the lower row, comes first.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows = np.take_along_axis(rows, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
    if rows.shape[1] < k:
        width = ((0, 0), (0, k - rows.shape[1]))
        rows = np.pad(rows, width, constant_values=-1)
        scores = np.pad(scores, width, constant_values=-np.inf)
    return Neighbours(rows=rows, scores=scores)


def mixed_pieces(old: Vectors, new: Vectors, half: Bools) -> Iterator[Piece]:
    """Rows of ``new`` where ``half`` (G,) says so, else of ``old``, (G, D) both."""
    for start in range(0, len(old), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = np.where(half[part, None], new[part], old[part])
        yield start, rows


def some_pieces(gallery: Vectors, rows: Rows) -> Iterator[Piece]:
    """The given ``rows`` (n,), ascending, of a gallery (G, D), numbered from 0."""
    for start in range(0, len(rows), _CHUNK):
        yield start, gallery[rows[start : start + _CHUNK]]
