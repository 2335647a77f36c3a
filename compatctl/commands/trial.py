"""One group of held-out queries put to both models: from features to the evidence of the gate.

Images and ready features end here alike: old and new features of queries and gallery, and a field
that says what is relevant to what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha1

import numpy as np
from numpy.typing import NDArray

from compatctl.commands.acceptance import (
    Calibrate,
    Thresholds,
    calibrated,
    error_rates,
    operating_points,
)
from compatctl.core.compatibility import Inequalities, inequalities, judged_inequalities
from compatctl.core.dependence import Dependence, dependences
from compatctl.core.evidence import GroupEvidence
from compatctl.core.ignored import Ignored
from compatctl.core.nearest import Neighbours, search
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval, evaluate, evaluate_judged
from compatctl.report import Calibration, ErrorRates, OperatingPoint

Rows = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

MAP_K = 100
CURVE = 10
"""Places of the match curve, and neighbours that the rank bias looks at."""
SHARES_UP_TO = 50_000_000
"""Pairs of queries and gallery rows up to which single pairs are counted as well."""
_CHUNK = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """Q queries and G gallery rows in numbers: what is relevant to what, and what is resampled."""

    classes: Rows
    """(Q,) what is resampled: class codes; (Q, K) where K kinds of units cross."""
    query_labels: Rows
    gallery_labels: Rows
    own_row: Rows
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

    @property
    def pairs(self) -> PairTruth:
        """What each pair of a query and a gallery row is."""
        return PairTruth(
            query_labels=self.query_labels,
            gallery_labels=self.gallery_labels,
            own_row=self.own_row,
            judged=self.judged,
            ignored=self.ignored,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """Unit features: queries (Q, D) of both models, gallery (G, D) of both; None: not embedded."""

    old_queries: Floats
    new_queries: Floats
    old_gallery: Floats
    new_gallery: Floats | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """The evidence of one group, and what is reported beside it."""

    evidence: GroupEvidence
    rank_bias: dict[str, float] = field(default_factory=dict)
    """Of old and new queries: share of the first ten answers that the new model embedded, less that
    share of the gallery; 0 where the models' scores are alike."""
    rates: ErrorRates | None = None
    points: tuple[OperatingPoint, ...] = ()
    calibration: Calibration | None = None
    n_judged: int = 0
    """Judgments that are of its queries and gallery rows."""


def half_of(ids: Iterable[str]) -> Bools:
    """(G,) about half of the items, by a hash of their ids: the same in every run."""
    return np.array([sha1(one.encode()).digest()[0] < 128 for one in ids], dtype=bool)


def depths(policy: Policy) -> tuple[int, ...]:
    """Every k at which recall is measured."""
    return tuple(sorted({1, 5, CURVE, policy.recall_at, policy.wide_recall_at}))


def run(
    name: str,
    where: Field,
    sides: Sides,
    policy: Policy,
    *,
    thresholds: Thresholds | None = None,
    calibrate: Calibrate | None = None,
    ann_found: NDArray[np.float64] | None = None,
) -> Trial:
    """Search every gallery with both models' queries; measure what the policy may ask for."""
    old_old = _search(where, sides.old_queries, sides.old_gallery, policy)
    new_old = _search(where, sides.new_queries, sides.old_gallery, policy)
    new_new = old_new = old_mixed = new_mixed = None
    bias: dict[str, float] = {}
    if sides.new_gallery is not None:
        new_new = _search(where, sides.new_queries, sides.new_gallery, policy)
        old_new = _search(where, sides.old_queries, sides.new_gallery, policy)
        if where.half is not None:
            galleries = sides.old_gallery, sides.new_gallery
            old_mixed, bias["old"] = mixed(where, *galleries, sides.old_queries, policy)
            new_mixed, bias["new"] = mixed(where, *galleries, sides.new_queries, policy)
    accepted = rates = None
    pairs = (sides.old_queries, sides.new_queries), sides.old_gallery, where.pairs
    fitted = None if calibrate is None else calibrated(*pairs, where.classes, calibrate.scale)
    if thresholds is not None:
        accepted, rates = error_rates(*pairs, thresholds, fitted)
    return Trial(
        evidence=GroupEvidence(
            name=name,
            classes=where.classes,
            old_old=old_old,
            new_old=new_old,
            new_new=new_new,
            inequalities=_inequalities(where, sides),
            old_new=old_new,
            old_mixed=old_mixed,
            new_mixed=new_mixed,
            accepts=accepted,
            ann_found=ann_found,
            slices=where.slices,
            unit=where.unit,
            dependence=_dependence(where, old_old, new_old, policy.recall_at),
        ),
        rank_bias=bias,
        rates=rates,
        calibration=None if fitted is None else fitted.reported,
        points=_points(where, sides, asked=thresholds is not None),
        n_judged=0 if where.judged is None else len(where.judged[0]),
    )


def _dependence(
    where: Field, old: Retrieval, new: Retrieval, k: int
) -> tuple[Dependence, ...] | None:
    """What the columns say of the change of hits at k; None where the data have none to look at."""
    if where.columns is None:
        return None
    change = new.hit(k).astype(np.float64) - old.hit(k)
    signs = np.random.default_rng(0)
    return dependences(change, old.counted, where.classes, where.unit, where.columns, signs)


def retrieval(
    where: Field, queries: Floats, gallery: Floats, ks: tuple[int, ...], map_k: int = MAP_K
) -> Retrieval:
    """recall@k and mAP of queries (Q, D) on a gallery (G, D), exactly."""
    map_k = max(1, min(map_k, len(gallery)))
    found = search(queries, gallery, max(map_k, *ks), where.own_row, ignored=where.ignored)
    return _evaluate(where, found, ks, map_k)


def retrieval_by_part(
    where: Field,
    queries: Floats,
    searched: Iterable[tuple[Bools, Floats]],
    ks: tuple[int, ...],
    map_k: int = MAP_K,
) -> Retrieval:
    """The same where parts of the queries (Q,) search galleries (G, D) of the same items."""
    map_k = max(1, min(map_k, len(where.gallery_labels)))
    k = max(map_k, *ks)
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for part, gallery in searched:
        ignored = where.ignored and where.ignored.of_queries(part)
        found = search(queries[part], gallery, k, where.own_row[part], ignored=ignored)
        rows[part], scores[part] = found.rows, found.scores
    return _evaluate(where, Neighbours(rows=rows, scores=scores), ks, map_k)


def _search(where: Field, queries: Floats, gallery: Floats, policy: Policy) -> Retrieval:
    return retrieval(where, queries, gallery, depths(policy))


def _evaluate(where: Field, found: Neighbours, ks: tuple[int, ...], map_k: int) -> Retrieval:
    if where.judged is not None:
        n = len(where.gallery_labels)
        return evaluate_judged(found, *where.judged, n, ks=ks, map_k=map_k)
    return evaluate(
        found,
        where.query_labels,
        where.gallery_labels,
        where.own_row,
        ignored=where.ignored,
        ks=ks,
        map_k=map_k,
    )


def mixed(
    where: Field, old: Floats, new: Floats, queries: Floats, policy: Policy
) -> tuple[Retrieval, float]:
    """Quality on the gallery that has rows of ``new`` where ``half`` says so, else of ``old``, and
    the rank bias: the share of re-embedded rows among the first ten answers, less that of all.

    Queries (Q, D), ``old`` and ``new`` (G, D), unit rows; a row that is not taken is not read.
    """
    assert where.half is not None
    ks = depths(policy)
    map_k = max(1, min(MAP_K, len(where.half)))
    found = _search_mixed(where, old, new, queries, max(map_k, *ks))
    first = found.rows[:, :CURVE]
    by_new = where.half[first] & (first >= 0)
    bias = by_new.sum() / max(1, (first >= 0).sum()) - where.half.mean()
    return _evaluate(where, found, ks, map_k), float(bias)


def _search_mixed(where: Field, old: Floats, new: Floats, queries: Floats, k: int) -> Neighbours:
    """``search`` in rows of ``new`` where ``half`` says so, else of ``old``; neither is copied."""
    assert where.half is not None
    rows = np.full((len(queries), 0), -1, np.int64)
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    for start in range(0, len(old), _CHUNK):
        part = slice(start, start + _CHUNK)
        gallery = np.where(where.half[part, None], new[part], old[part])
        own = where.own_row - start
        inside = (where.own_row >= 0) & (own >= 0) & (own < len(gallery))
        ignored = where.ignored and where.ignored.of_rows(start, start + len(gallery))
        found = search(queries, gallery, k, np.where(inside, own, -1), ignored=ignored)
        rows = np.concatenate([rows, np.where(found.rows >= 0, found.rows + start, -1)], axis=1)
        scores = np.concatenate([scores, found.scores], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows = np.take_along_axis(rows, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
    return Neighbours(rows=rows, scores=scores)


def _points(where: Field, sides: Sides, *, asked: bool) -> tuple[OperatingPoint, ...]:
    """Where a threshold was asked about, or pairs are few: each model takes a matrix product."""
    if not asked and len(sides.old_queries) * len(sides.old_gallery) > SHARES_UP_TO:
        return ()
    queries = sides.old_queries, sides.new_queries
    return operating_points(queries, sides.old_gallery, where.pairs)


def _inequalities(where: Field, sides: Sides) -> Inequalities:
    old, new, gallery = sides.old_queries, sides.new_queries, sides.old_gallery
    if where.judged is not None:
        pairs = (*where.judged, where.own_row)
        return judged_inequalities(old, new, gallery, *pairs, ignored=where.ignored)
    return inequalities(
        old,
        new,
        where.query_labels,
        gallery,
        where.gallery_labels,
        where.own_row,
        ignored=where.ignored,
        shares=len(old) * len(gallery) <= SHARES_UP_TO,
        by_query=where.unit != ("class",),
    )
