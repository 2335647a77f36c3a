"""All pairs of a query and a gallery row, tile by tile: their scores and kinds.

Shapes: ``Q`` queries, ``G`` gallery rows, ``D`` dimensions, ``J`` judged pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import (
    NO_CLASS,
    Bools,
    Codes,
    Features,
    Scores,
    as_features,
    as_labels,
    as_self_row,
    check_dimensions,
    check_positive,
)
from compatctl.core.ignored import Ignored

JudgedPairs = tuple[Codes, Codes]
"""(J,) query positions and (J,) gallery rows of the pairs judged relevant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTruth:
    """What makes a (query, gallery row) pair same-class, different-class or neither."""

    query_labels: Codes
    """(Q,) integer codes."""
    gallery_labels: Codes
    """(G,) integer codes; rows of ``NO_CLASS`` are in neither kind."""
    self_row: Codes | None = None
    """(Q,) gallery row of the query's own item, or -1; that pair is in neither kind."""
    ignored: Ignored | None = None
    """Further pairs in neither kind."""
    judged: JudgedPairs | None = None
    """The relevant pairs, if judged: only these are same-class; other pairs with equal labels
    are in neither kind."""

    def select_queries(self, which: Bools) -> PairTruth:
        """The same for the queries ``which`` (Q,)."""
        judged = self.judged
        if judged is not None:
            selected = which[judged[0]]
            judged = (np.cumsum(which) - 1)[judged[0][selected]], judged[1][selected]
        return replace(
            self,
            query_labels=self.query_labels[which],
            self_row=None if self.self_row is None else self.self_row[which],
            judged=judged,
            ignored=self.ignored and self.ignored.select_queries(which),
        )


def score_tiles(
    queries: Features, gallery: Features, truth: PairTruth, block: int
) -> Iterator[tuple[slice, Scores, Bools, Bools]]:
    """Yield for each tile its rows of queries, its scores, and its same- and different-class pairs.

    Scores are products of float32 matrices of (Q, D) queries and (G, D) gallery rows. Memory: a
    few tiles of ``block`` x ``block``.

    Raises:
        InputError: wrong shapes or types, rows that are not of length 1, ``self_row`` outside
            the gallery.
    """
    queries, gallery = as_features(queries, "queries"), as_features(gallery, "gallery")
    check_dimensions(queries, gallery, "queries", "gallery")
    check_positive(block, "block")
    for rows, columns, same, diff in pair_kinds(len(queries), len(gallery), truth, block):
        left = queries[rows].astype(np.float32, copy=False)
        yield rows, left @ gallery[columns].astype(np.float32, copy=False).T, same, diff


def pair_kinds(
    Q: int, G: int, truth: PairTruth, block: int
) -> Iterator[tuple[slice, slice, Bools, Bools]]:
    """Yield for each tile its rows, its columns, and its same- and different-class pairs.

    Pairs in neither mask are not counted.

    Raises:
        InputError: wrong shapes or types, ``self_row`` outside the gallery.
    """
    query_labels = as_labels(truth.query_labels, Q, "query_labels")
    gallery_labels = as_labels(truth.gallery_labels, G, "gallery_labels")
    self_row = as_self_row(truth.self_row, Q, G)
    for top in range(0, Q, block):
        rows = slice(top, top + block)
        relevant = None if truth.judged is None else _select_judged(truth.judged, top, top + block)
        for left in range(0, G, block):
            columns = slice(left, left + block)
            same = query_labels[rows, None] == gallery_labels[None, columns]
            diff = ~same & (gallery_labels[None, columns] != NO_CLASS)
            if relevant is not None:
                same[:] = False
                in_tile = (relevant[1] >= left) & (relevant[1] < left + same.shape[1])
                cells = relevant[0][in_tile] - top, relevant[1][in_tile] - left
                same[cells], diff[cells] = True, False
            column = self_row[rows] - left
            row = np.flatnonzero((column >= 0) & (column < same.shape[1]))
            same[row, column[row]] = diff[row, column[row]] = False
            if truth.ignored is not None:
                row, column = truth.ignored.pairs(rows, left, left + same.shape[1])
                same[row, column - left] = diff[row, column - left] = False
            yield rows, columns, same, diff


def _select_judged(judged: JudgedPairs, first: int, last: int) -> JudgedPairs:
    selected = (judged[0] >= first) & (judged[0] < last)
    return judged[0][selected], judged[1][selected]
