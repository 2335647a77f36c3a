"""Exact nearest-neighbour search by cosine, at nearly the speed of the matrix product it needs.

Shapes: ``Q`` queries, ``G`` gallery rows, ``D`` dimensions. One float32 product scores a block of
queries against a tile of the gallery, into a reused buffer. A comparison with each query's lower
bound on its k-th best score leaves few candidates, which go into a pool. The bound rises if a tile
yields too many candidates, and when the pool has grown. Memory is the buffer and the pool, never
Q x G and never a copy of a contiguous float32 gallery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compatctl.core.arrays import (
    NORM_TOLERANCE,
    Bools,
    Codes,
    Features,
    Rows,
    Scores,
    Vectors,
    Words,
    as_features,
    as_self_row,
    check_dimensions,
    check_positive,
    ordered_bits,
)
from compatctl.core.ignored import Ignored
from compatctl.progress import Stage, stage

_CELLS = 2**23
"""Scores of one tile: 32 MiB of float32."""

_SLAB = 2**18
"""Scores compared at once, so that the result is still in the cache when it is scanned."""

_POOL = 2**18
"""Answers of one block of queries, block x k; the pool holds at most about eight times as many."""

_EXACT = 2**16
"""Values multiplied at once in float64: two buffers of 512 KiB stay in the cache."""

_LOWEST = np.finfo(np.float32).min
"""A bound that every score passes and -inf does not."""


Piece = tuple[int, Vectors]
"""Consecutive gallery rows: the position of the first, and the rows (n, D)."""

_PIECE_ROWS = 2**16
"""Rows of a piece that ``mixed_pieces`` and ``row_pieces`` yield."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The nearest rows of each query, best first; missing ones are row -1 with score -inf."""

    rows: Rows
    """(Q, k) gallery rows, or -1."""
    scores: Scores
    """(Q, k) cosines in [-1, 1], non-increasing along a row."""

    def select_queries(self, queries: Bools) -> Neighbours:
        """The neighbours of the selected queries (Q,)."""
        return Neighbours(rows=self.rows[queries], scores=self.scores[queries])


def exact_search(
    queries: Features,
    gallery: Features,
    k: int,
    self_row: Codes | None = None,
    block: int = 1024,
    *,
    ignored: Ignored | None = None,
) -> Neighbours:
    """The k nearest gallery rows of each query, exactly.

    Ties go to the lower row, also at the k-th place. A float32 matrix product may score identical
    rows differently in the last bit, so it only selects candidates, with a margin wider than its
    rounding error. Candidates are scored again in float64 and ranked by that score rounded to
    float32. The answer therefore does not depend on ``block``.

    Args:
        queries: (Q, D) unit rows.
        gallery: (G, D) unit rows, G >= 0.
        k: neighbours per query, >= 1; may exceed G.
        self_row: (Q,) gallery row that is the query's own item, or -1; None for none.
        block: queries scored at once, >= 1; fewer when k is large.
        ignored: further rows that are no answer to a query; None for none.

    Raises:
        InputError: wrong shapes, NaN or infinite or non-unit rows, k < 1, rows out of range.
    """
    queries, gallery = as_features(queries, "queries"), as_features(gallery, "gallery")
    check_dimensions(queries, gallery, "queries", "gallery")
    self_row = as_self_row(self_row, len(queries), len(gallery))
    check_positive(k, "k")
    check_positive(block, "block")
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    k = min(k, len(gallery))
    if k and len(queries):
        tiled = np.ascontiguousarray(gallery, dtype=np.float32)
        step = max(1, min(block, len(queries), _POOL // k))
        tiles = _Tiles(tiled, step)
        with stage("searching every row", len(queries) * len(gallery), "share") as compared:
            for start in range(0, len(queries), step):
                part = slice(start, start + step)
                pool = _Pool(queries[part], gallery, k)
                excluded = _Excluded(self_row=self_row[part], ignored=ignored, queries=part)
                single = np.ascontiguousarray(queries[part], dtype=np.float32)
                tiles.collect(single, excluded, pool, compared)
                pool.write(rows[part], scores[part])
    return Neighbours(rows=rows, scores=scores)


def exact_search_pieces(
    queries: Vectors,
    pieces: Iterable[Piece],
    k: int,
    self_row: Rows,
    ignored: Ignored | None = None,
) -> Neighbours:
    """``exact_search`` of queries (Q, D) in a gallery given in consecutive pieces.

    The result equals that of the whole array; arguments are as in ``exact_search``.
    """
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for first, gallery in pieces:
        last = first + len(gallery)
        piece_row = np.where((self_row >= first) & (self_row < last), self_row - first, -1)
        piece_ignored = ignored and ignored.row_range(first, last)
        nearest = exact_search(queries, gallery, k, piece_row, ignored=piece_ignored)
        piece_rows = np.where(nearest.rows >= 0, nearest.rows + first, -1)
        rows = np.concatenate([rows, piece_rows], axis=1)
        scores = np.concatenate([scores, nearest.scores], axis=1)
        # A stable sort puts the earlier piece, so the lower row, first among equal scores.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows = np.take_along_axis(rows, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
    return Neighbours(rows=rows, scores=scores)


def mixed_pieces(old: Vectors, new: Vectors, reembedded: Bools) -> Iterator[Piece]:
    """Yield a gallery with rows of ``new`` where ``reembedded`` (G,), else of ``old``; (G, D)."""
    for start in range(0, len(old), _PIECE_ROWS):
        part = slice(start, start + _PIECE_ROWS)
        yield start, np.where(reembedded[part, None], new[part], old[part])


def row_pieces(gallery: Vectors, rows: Rows) -> Iterator[Piece]:
    """Yield the ascending ``rows`` (n,) of a gallery (G, D), renumbered from 0."""
    for start in range(0, len(rows), _PIECE_ROWS):
        yield start, gallery[rows[start : start + _PIECE_ROWS]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Excluded:
    """Rows excluded from the answers of a block of queries: ``self_row`` (B,) and ignored rows."""

    self_row: Codes
    ignored: Ignored | None
    queries: slice

    def mask(self, scores: Scores, start: int) -> None:
        """Set the scores (B, T) of these rows to -inf; the T columns begin at row ``start``."""
        stop = start + scores.shape[1]
        query = np.flatnonzero((self.self_row >= start) & (self.self_row < stop))
        scores[query, self.self_row[query] - start] = -np.inf
        if self.ignored is not None:
            query, row = self.ignored.pairs(self.queries, start, stop)
            scores[query, row - start] = -np.inf


class _Pool:
    """Candidates of one block of queries, and the bounds that a score must reach.

    ``bounds`` is (B, 1) float32: no row with a float32 product below it is an answer. A query's
    candidates stay in row order: tiles come in that order, and dropping keeps it.
    """

    def __init__(self, queries: Features, gallery: Features, k: int) -> None:
        D = gallery.shape[1]
        self.queries, self.gallery, self.k = queries.astype(np.float64), gallery, k
        # Each of two scores may be off by D unit roundoffs (rows have length 1), two more for
        # float64 features, and the rounding of the float64 score to float32.
        self.margin = np.float32((2 * D + 8) * 2.0**-24 * (1 + NORM_TOLERANCE) ** 2)
        self.bounds = np.full((len(queries), 1), _LOWEST, dtype=np.float32)
        self.size = len(queries) * k
        self.query, self.row = np.zeros((2, 0), dtype=np.int64)
        self.score = np.zeros(0, dtype=np.float32)
        self.new: list[tuple[Codes, Codes, Scores]] = []
        self.count = 0

    def add(self, query: Codes, row: Codes, score: Scores) -> None:
        """Add (n,) candidates: positions in the block, gallery rows and float32 products."""
        self.new.append((query, row, score))
        self.count += len(query)
        if self.count > 3 * self.size:
            self.tighten()
            if self.count > 2 * self.size:  # ties, which no bound separates
                best, _ = self.best()
                self.keep(np.sort(best))

    def raise_to(self, kth: Scores, queries: Any = slice(None)) -> None:
        """Raise the bounds of these queries, whose k-th best scores are at least ``kth``."""
        self.bounds[queries, 0] = np.maximum(self.bounds[queries, 0], kth - self.margin)

    def learn(self, scores: Scores, bins: int) -> None:
        """Raise the bounds to the k-th best of (B, T) scores, if T >= k."""
        if self.k <= scores.shape[1]:
            self.raise_to(_kth_at_least(scores, self.k, bins))

    def tighten(self) -> None:
        """Raise the bounds to the k-th best candidates and drop what falls below."""
        self.gather()
        keys = np.sort(_keys(self.query, self.score))
        counts = np.bincount(self.query, minlength=len(self.bounds))
        full = np.flatnonzero(counts >= self.k)
        kth = (np.cumsum(counts) - counts)[full] + self.k - 1
        self.raise_to(_scores_of(full, keys[kth]), full)
        self.keep(np.flatnonzero(self.score >= self.bounds[self.query, 0]))

    def best(self) -> tuple[Codes, Codes]:
        """(n,) candidates among the exact k best of their query, and their ranks.

        This replaces products by exact scores, which are valid in a bound: they are closer to the
        true cosine.
        """
        self.gather()
        self.rescore()
        # A stable sort puts the lower row first among equal scores.
        order = np.argsort(_keys(self.query, self.score), kind="stable")
        query = self.query[order]
        counts = np.bincount(query, minlength=len(self.bounds))
        rank = np.arange(len(query)) - (np.cumsum(counts) - counts)[query]
        kth = order[rank == self.k - 1]
        self.raise_to(self.score[kth], self.query[kth])
        return order[rank < self.k], rank[rank < self.k]

    def rescore(self) -> None:
        """Set the scores to float64 products, rounded to float32."""
        step = max(1, _EXACT // self.gallery.shape[1])
        for start in range(0, self.count, step):
            part = slice(start, start + step)
            # A product of two float32 values is exact in float64, and a sum along a contiguous axis
            # has the same order for every row, so identical rows get identical scores. einsum is
            # slightly faster but splits long rows.
            products = self.gallery[self.row[part]].astype(np.float64)
            products *= self.queries[self.query[part]]
            self.score[part] = products.sum(axis=1)

    def gather(self) -> None:
        """Concatenate the candidates added since the last call."""
        if self.new:
            parts = [(self.query, self.row, self.score), *self.new]
            self.query, self.row, self.score = map(np.concatenate, zip(*parts, strict=True))
            self.new = []

    def keep(self, kept: Codes) -> None:
        """Drop all but these candidates, given in ascending order."""
        self.query, self.row, self.score = self.query[kept], self.row[kept], self.score[kept]
        self.count = len(kept)

    def write(self, rows: Codes, scores: Scores) -> None:
        """Fill (B, >= k) with the answers."""
        self.tighten()
        best, rank = self.best()
        rows[self.query[best], rank] = self.row[best]
        scores[self.query[best], rank] = self.score[best]


class _Tiles:
    """The gallery in tiles, and the buffers for the scores of one."""

    def __init__(self, gallery: Scores, block: int) -> None:
        self.gallery = gallery
        self.width = max(1, min(len(gallery), _CELLS // block))
        self.scores = np.empty(block * self.width, dtype=np.float32)
        # Queries compared at once, a multiple of eight so that parts begin at a whole word, and
        # their results, padded to end with one.
        self.step = max(1, _SLAB // self.width // 8) * 8
        passed = min(block, self.step) * self.width
        self.passed = np.zeros(-(-passed // 8) * 8, dtype=np.bool_)

    def collect(self, queries: Scores, excluded: _Excluded, pool: _Pool, compared: Stage) -> None:
        """Put the candidates of (B, D) queries into their pool; count what is compared."""
        for start in range(0, len(self.gallery), self.width):
            tile = self.gallery[start : start + self.width]
            cells = len(queries) * len(tile)
            scores = self.scores[:cells].reshape(len(queries), len(tile))
            np.matmul(queries, tile.T, out=scores)
            excluded.mask(scores, start)
            if start == 0:
                pool.learn(scores, 8 * pool.k)
            words, hits = self.compare(scores, pool)
            for bins in (8 * pool.k, len(tile)):
                if len(words) > 2 * pool.size:
                    pool.learn(scores, bins)
                    words, hits = self.compare(scores, pool)
            step = max(1, pool.size // 2)
            for first in range(0, len(words), step):
                part = slice(first, first + step)
                query, column, score = _cells(scores, words[part], hits[part])
                pool.add(query, column + start, score)
            compared.add(cells)

    def compare(self, scores: Scores, pool: _Pool) -> tuple[Codes, Words]:
        """(n,) words of eight neighbouring scores that hold a candidate, and their eight flags."""
        words, hits = [], []
        for first in range(0, len(scores), self.step):
            part = scores[first : first + self.step]
            passed = self.passed[: part.size].reshape(part.shape)
            np.greater_equal(part, pool.bounds[first : first + self.step], out=passed)
            self.passed[part.size :][:8] = False
            # Eight at a time, because finding the few candidates costs as much as comparing.
            flags = self.passed[: -(-part.size // 8) * 8].view(np.uint64)
            nonzero = np.flatnonzero(flags != 0)
            words.append(nonzero + first * scores.shape[1] // 8)
            hits.append(flags[nonzero])
        return np.concatenate(words), np.concatenate(hits)


def _cells(scores: Scores, words: Codes, hits: Words) -> tuple[Codes, Codes, Scores]:
    """(n,) rows, columns and values of the scores flagged in these words."""
    hit = np.flatnonzero(hits.view(np.bool_))
    cell = words[hit >> 3] * 8 + (hit & 7)
    row = cell // scores.shape[1]
    return row, cell - row * scores.shape[1], scores.reshape(-1)[cell]


def _kth_at_least(scores: Scores, k: int, bins: int) -> Scores:
    """(B,) lower bounds on the k-th highest of each row of (B, T); exact if ``bins`` >= T.

    The bound is the k-th highest of the maxima of ``bins`` >= k groups of columns, which k columns
    reach. It is far cheaper than partitioning all columns, and close if bins is several times k.
    """
    groups = scores.shape[1] // bins
    if groups > 1:
        bins = scores.shape[1] // groups
        scores = scores[:, : groups * bins].reshape(len(scores), groups, bins).max(axis=1)
    kth: Scores = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k]
    return kth


def _keys(query: Codes, score: Scores) -> Codes:
    """(n,) int64 keys that sort by query, then by descending score; -0 and 0 are equal."""
    return (query << 32) - ordered_bits((score + np.float32(0)).view(np.int32))


def _scores_of(query: Codes, keys: Codes) -> Scores:
    """(n,) the scores that ``_keys`` encoded."""
    return ordered_bits(((query << 32) - keys).astype(np.int32)).view(np.float32)
