"""Queries that arrive by a Zipf law, and the gallery rows that lazy re-scoring passes for them.

The model. A gallery has ``rows`` unit vectors in clusters of 500 around random centres. A query
searches for one row, the *target*: the row of popularity rank r with a probability of r^-s. It
touches ``k`` rows: the target, and k - 1 drawn from the target's ``listed`` nearest rows. Popular
rows are scattered over the clusters, or they lie together: clusters are then filled in the order of
popularity. A query has its gain when all of its k rows have a vector of the new model.

Shapes: ``G`` rows, ``L`` listed, ``N`` queries, ``k`` rows a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]
Generator = np.random.Generator

CLUSTER = 500
"""Rows of a cluster"""
DIM = 16
SPREAD = 0.5
"""Length of the noise around a cluster's centre, of length 1"""
CHUNK = 200_000
"""Queries drawn at a time"""
BLOCK = 5_000
"""Queries that are looked up at a time where a budget is kept"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One gallery and its traffic."""

    rows: int
    exponent: float
    together: bool
    k: int = 10
    listed: int = 18


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """A gallery with the popularity of its rows."""

    by_rank: Numbers
    """(G,) the row of each popularity rank"""
    cumulative: Numbers
    """(G,) probability of the ranks up to each"""
    neighbours: Numbers
    """(G, L) each row's nearest other rows, nearest first"""
    k: int

    def queries(self, count: int, rng: Generator) -> Numbers:
        """(count, k) the rows that each query touches, its target first."""
        ranks = np.searchsorted(self.cumulative, rng.random(count), side="right")
        targets = self.by_rank[np.minimum(ranks, len(self.by_rank) - 1)]
        drawn = rng.random((count, self.neighbours.shape[1]), dtype=np.float32)
        columns = np.argpartition(drawn, self.k - 2, axis=1)[:, : self.k - 1]
        near = self.neighbours[targets[:, None], columns]
        return np.concatenate([targets[:, None], near], axis=1)

    def stream(self, count: int, rng: Generator) -> Iterator[Numbers]:
        """(n, k) blocks of ``count`` queries in all."""
        for start in range(0, count, CHUNK):
            yield self.queries(min(CHUNK, count - start), rng)


def make_gallery(setting: Setting, rng: Generator) -> Gallery:
    """Draw vectors, find neighbours within each cluster exactly, and deal out the popularity."""
    order = np.arange(setting.rows) if setting.together else rng.permutation(setting.rows)
    weights = np.arange(1, setting.rows + 1, dtype=float) ** -setting.exponent
    return Gallery(
        by_rank=order.astype(np.int32),
        cumulative=np.cumsum(weights) / weights.sum(),
        neighbours=np.concatenate(
            [start + _nearest(min(CLUSTER, setting.rows - start), setting.listed, rng)
             for start in range(0, setting.rows, CLUSTER)]
        ),
        k=setting.k,
    )  # fmt: skip


def _nearest(rows: int, listed: int, rng: Generator) -> Numbers:
    """(rows, listed) nearest other rows in a cluster of unit vectors, by cosine."""
    centre = rng.standard_normal(DIM)
    noise = rng.standard_normal((rows, DIM)) * (SPREAD / np.sqrt(DIM))
    vectors = (centre / np.linalg.norm(centre) + noise).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2.0)
    near = np.argpartition(-scores, listed - 1, axis=1)[:, :listed]
    ranked = np.argsort(-np.take_along_axis(scores, near, axis=1), axis=1)
    return np.take_along_axis(near, ranked, axis=1).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The state after ``queries`` queries, from an empty cache on."""

    queries: int
    passed: float
    """Share of the gallery's rows that went through the new model"""
    warm: float
    """Share of the queries so far whose k rows had all been passed before"""
    kept: float
    """Share of the queries so far whose k rows had all been passed before or by the query"""


@dataclass(frozen=True, kw_only=True)
class Filling:
    """A cache that every query fills with all of its k rows."""

    states: tuple[Served, ...]
    tenth: int | None
    """Queries until a tenth of the gallery is passed; None: more than were served"""


def serve_all(gallery: Gallery, counts: Sequence[int], rng: Generator) -> Filling:
    """Every query passes all of its rows that are not cached; the state after each of ``counts``
    queries, which ascend."""
    first = np.full(len(gallery.by_rank), counts[-1], dtype=np.int64)
    cold: list[Numbers] = []
    start = 0
    for touched in gallery.stream(counts[-1], rng):
        times = np.arange(start, start + len(touched))
        # Backwards: of several values for one row the last stays, which is the earliest query's.
        rows, backwards = touched[::-1].ravel(), np.repeat(times[::-1], gallery.k)
        first[rows] = np.minimum(first[rows], backwards)
        cold.append(np.any(first[touched] >= times[:, None], axis=1))
        start += len(touched)
    cold_so_far, filled = np.cumsum(np.concatenate(cold)), np.sort(first)
    tenth = int(filled[len(filled) // 10 - 1]) + 1
    return Filling(
        states=tuple(
            Served(
                queries=count,
                passed=float(np.searchsorted(filled, count) / len(filled)),
                warm=float(1 - cold_so_far[count - 1] / count),
                kept=1.0,
            )
            for count in counts
        ),
        tenth=tenth if tenth <= counts[-1] else None,
    )


def serve_within(
    gallery: Gallery, budget: int, counts: Sequence[int], rng: Generator
) -> list[Served]:
    """Every query passes at most ``budget`` of its rows that are not cached, in random order."""
    cached = np.zeros(len(gallery.by_rank), dtype=bool)
    passed = warm = kept = start = 0
    states = []
    for touched in _blocks(gallery, counts, rng):
        (cold,) = np.nonzero(~cached[touched].all(axis=1))
        warm += len(touched) - len(cold)
        kept += len(touched) - len(cold)
        for rows in rng.permuted(touched[cold], axis=1):
            missing = rows[~cached[rows]]
            cached[missing[:budget]] = True
            passed += min(len(missing), budget)
            warm += len(missing) == 0
            kept += len(missing) <= budget
        start += len(touched)
        if start in counts:
            states.append(
                Served(queries=start, passed=passed / len(cached), warm=warm / start,
                       kept=kept / start)
            )  # fmt: skip
    return states


def _blocks(gallery: Gallery, counts: Sequence[int], rng: Generator) -> Iterator[Numbers]:
    """(n, k) queries, a block's end at each of ``counts``."""
    start = 0
    for count in counts:
        while start < count:
            size = min(BLOCK, count - start)
            yield gallery.queries(size, rng)
            start += size


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Later queries on a gallery of which a share is cached and nothing more is passed."""

    passed: float
    """Share of the gallery's rows"""
    kept: float
    """Share of the later queries whose k rows are all cached"""
    target: float
    """Share of the later queries whose target is cached"""
    ceiling: float
    """The share of queries whose target is one of the most popular rows, as many as are cached"""
    missing: float
    """Mean number of a later query's rows that are not cached"""


def warmed(
    gallery: Gallery, shares: Sequence[float], log: int, later: int, rng: Generator
) -> list[Cached]:
    """The rows that ``log`` queries touch most are passed beforehand, a share of the gallery."""
    counts = np.zeros(len(gallery.by_rank), dtype=np.int64)
    for touched in gallery.stream(log, rng):
        counts += np.bincount(touched.ravel(), minlength=len(counts))
    place = np.empty(len(counts), dtype=np.int64)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    places = np.concatenate([place[touched] for touched in gallery.stream(later, rng)])
    states = []
    for share in shares:
        room = round(share * len(counts))
        cached = places < room
        states.append(
            Cached(
                passed=share,
                kept=float(cached.all(axis=1).mean()),
                target=float(cached[:, 0].mean()),
                ceiling=float(gallery.cumulative[room - 1]) if room else 0.0,
                missing=float((~cached).sum(axis=1).mean()),
            )
        )
    return states
