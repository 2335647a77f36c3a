"""One group of held-out queries put to both models: from features to the evidence of the gate.

Images and ready features end here alike: old and new features of queries and gallery, and a field
that says what is relevant to what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field, replace

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.hash_order import hash_fraction
from compatctl.core.ignored import Ignored
from compatctl.core.nearest import (
    Neighbours,
    exact_search,
    exact_search_pieces,
    mixed_pieces,
    row_pieces,
)
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval, evaluate, evaluate_judged
from compatctl.core.training_overlap import TrainingOverlap

MAP_K = 100
CMC_MAX_K = 10
"""Places of the match curve, and neighbours that the rank bias looks at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """Q queries and G gallery rows in numbers: what is relevant to what, and what is resampled."""

    classes: Rows
    """(Q,) what is resampled: class codes; (Q, K) where K kinds of units cross."""
    query_labels: Rows
    gallery_labels: Rows
    self_row: Rows
    """(Q,) each query's own gallery row, -1: none."""
    judged: tuple[Rows, Rows] | None = None
    """(J,) query positions and gallery rows judged relevant; then labels do not count."""
    ignored: Ignored | None = None
    """Rows that do not count for a query besides; no judged pair is among them."""
    half: Bools | None = None
    """(G,) the part of a mixed gallery that is re-embedded; in verify, a half."""
    slices: Mapping[str, Bools] = field(default_factory=dict)
    unit: tuple[str, ...] = ("class",)
    """What each kind of unit that is resampled is: ``class``, ``query`` or a column of the data."""
    columns: Mapping[str, Rows] | None = None
    """Name -> (Q,) codes of every column of the data, which queries may depend on each other by."""
    asked: Bools | None = None
    """(Q,) queries that should have a match; None: all."""
    unjudged: Bools | None = None
    """(G,) rows of unknown relevance; None: there are none."""
    training_overlap: TrainingOverlap | None = None
    """What of the gallery training passed through the new model; None: nobody knows."""
    same_image: Bools | None = None
    """(Q,) queries whose image lies in the gallery under another id; None: none is known to."""
    unseen_image: Bools | None = None
    """(G,) rows whose image nobody looked at: that it is a query's shows in its vector only."""

    def queries(self, kept: Bools) -> GroundTruth:
        """The same of some queries, ``kept`` (Q,)."""
        judged = self.judged
        if judged is not None:
            here, position = kept[judged[0]], np.cumsum(kept) - 1
            judged = position[judged[0][here]], judged[1][here]
        touched = self.training_overlap
        return replace(
            self,
            classes=self.classes[kept],
            query_labels=self.query_labels[kept],
            self_row=self.self_row[kept],
            judged=judged,
            slices={name: mask[kept] for name, mask in self.slices.items()},
            ignored=self.ignored and self.ignored.select_queries(kept),
            columns=self.columns and {name: one[kept] for name, one in self.columns.items()},
            asked=None if self.asked is None else self.asked[kept],
            training_overlap=touched and replace(touched, of_query=touched.of_query[kept]),
            same_image=None if self.same_image is None else self.same_image[kept],
        )

    def part(self, rows: Rows) -> GroundTruth:
        """The same of some gallery rows, ascending ``rows`` (n,); what is said of the whole gallery
        is left out."""
        position = np.full(len(self.gallery_labels), -1, np.int64)
        position[rows] = np.arange(len(rows))
        judged = self.judged
        if judged is not None:
            here = position[judged[1]] >= 0
            judged = judged[0][here], position[judged[1][here]]
        return replace(
            self,
            gallery_labels=self.gallery_labels[rows],
            self_row=np.where(self.self_row >= 0, position[self.self_row], -1),
            judged=judged,
            ignored=self.ignored and self.ignored.remap_rows(position),
            half=None if self.half is None else self.half[rows],
            unjudged=None,
            training_overlap=None,
            unseen_image=None,
        )

    def relevant(self, rows: Rows) -> Bools:
        """(Q, k) whether the gallery rows (Q, k) found for each query are known to be relevant."""
        if self.judged is None:
            same: Bools = self.gallery_labels[rows] == self.query_labels[:, None]
            return same
        n = len(self.gallery_labels)
        query = np.arange(len(rows))[:, None]
        return np.isin(query * n + rows, self.judged[0] * n + self.judged[1])

    @property
    def pairs(self) -> PairTruth:
        """What each pair of a query and a gallery row is."""
        return PairTruth(
            query_labels=self.query_labels,
            gallery_labels=self.gallery_labels,
            self_row=self.self_row,
            judged=self.judged,
            ignored=self.ignored,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedEmbeddings:
    """Unit features: queries (Q, D) of both models, gallery (G, D) of both; None: not embedded.

    ``new_rows``: the ascending gallery rows that ``new_gallery`` (n, D) is of; None: all.
    """

    old_queries: Vectors
    new_queries: Vectors
    old_gallery: Vectors
    new_gallery: Vectors | None
    new_rows: Rows | None = None

    def queries(self, kept: Bools) -> PairedEmbeddings:
        """The same of some queries, ``kept`` (Q,)."""
        old, new = self.old_queries[kept], self.new_queries[kept]
        return replace(self, old_queries=old, new_queries=new)


def reembedded_half(ids: Iterable[str]) -> Bools:
    """(G,) about half of the items, by a hash of their ids: the same in every run."""
    return np.array([hash_fraction(one) < 0.5 for one in ids], dtype=bool)


def recall_ks(policy: Policy) -> tuple[int, ...]:
    """Every k at which recall is measured."""
    return tuple(sorted({1, 5, CMC_MAX_K, policy.recall_at, policy.wide_recall_at}))


def retrieval(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, ks: tuple[int, ...], map_k: int = MAP_K
) -> Retrieval:
    """recall@k and mAP of queries (Q, D) on a gallery (G, D), exactly."""
    map_k = max(1, min(map_k, len(gallery)))
    found = exact_search(queries, gallery, max(map_k, *ks), truth.self_row, ignored=truth.ignored)
    return _evaluate(truth, found, ks, map_k)


def retrieval_by_part(
    truth: GroundTruth,
    queries: Vectors,
    searched: Iterable[tuple[Bools, Vectors]],
    ks: tuple[int, ...],
    map_k: int = MAP_K,
) -> Retrieval:
    """The same where parts of the queries (Q,) search galleries (G, D) of the same items."""
    map_k = max(1, min(map_k, len(truth.gallery_labels)))
    k = max(map_k, *ks)
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for part, gallery in searched:
        ignored = truth.ignored and truth.ignored.select_queries(part)
        found = exact_search(queries[part], gallery, k, truth.self_row[part], ignored=ignored)
        rows[part], scores[part] = found.rows, found.scores
    return _evaluate(truth, Neighbours(rows=rows, scores=scores), ks, map_k)


def retrieval_of_rows(
    truth: GroundTruth, queries: Vectors, gallery: Vectors, rows: Rows, ks: tuple[int, ...]
) -> Retrieval:
    """The same on some ``rows`` (n,), ascending, of a gallery (G, D), which are not copied at once;
    ``truth`` is of these rows."""
    map_k = max(1, min(MAP_K, len(rows)))
    pieces = row_pieces(gallery, rows)
    found = exact_search_pieces(queries, pieces, max(map_k, *ks), truth.self_row, truth.ignored)
    return _evaluate(truth, found, ks, map_k)


def found_in(truth: GroundTruth, queries: Vectors, gallery: Vectors, policy: Policy) -> Neighbours:
    k = max(_map_k(gallery), *recall_ks(policy))
    return exact_search(queries, gallery, k, truth.self_row, ignored=truth.ignored)


def evaluated(truth: GroundTruth, found: Neighbours, policy: Policy) -> Retrieval:
    return _evaluate(truth, found, recall_ks(policy), _map_k(truth.gallery_labels))


def _map_k(gallery: Sized) -> int:
    return max(1, min(MAP_K, len(gallery)))


def _evaluate(truth: GroundTruth, found: Neighbours, ks: tuple[int, ...], map_k: int) -> Retrieval:
    if truth.judged is not None:
        n = len(truth.gallery_labels)
        return evaluate_judged(found, *truth.judged, n, ks=ks, map_k=map_k)
    return evaluate(
        found,
        truth.query_labels,
        truth.gallery_labels,
        truth.self_row,
        ignored=truth.ignored,
        ks=ks,
        map_k=map_k,
    )


def mixed(
    truth: GroundTruth, old: Vectors, new: Vectors, queries: Vectors, policy: Policy
) -> tuple[Retrieval, float]:
    """Quality on the gallery that has rows of ``new`` where ``half`` says so, else of ``old``, and
    the rank bias: the share of re-embedded rows among the first ten answers, less that of all.

    Queries (Q, D), ``old`` and ``new`` (G, D), unit rows; a row that is not taken is not read. Of
    an empty gallery the bias is NaN.
    """
    assert truth.half is not None
    ks = recall_ks(policy)
    map_k = max(1, min(MAP_K, len(truth.half)))
    pieces = mixed_pieces(old, new, truth.half)
    found = exact_search_pieces(queries, pieces, max(map_k, *ks), truth.self_row, truth.ignored)
    if not len(old):
        return _evaluate(truth, found, ks, map_k), float("nan")
    first = found.rows[:, :CMC_MAX_K]
    by_new = truth.half[first] & (first >= 0)
    bias = by_new.sum() / max(1, (first >= 0).sum()) - truth.half.sum() / max(1, len(truth.half))
    return _evaluate(truth, found, ks, map_k), float(bias)
