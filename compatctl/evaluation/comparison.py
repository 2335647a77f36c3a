"""Compare both models on one group of held-out queries: search, leave duplicates out, measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compatctl.core.arrays import Bools, Rows, Scores, Vectors
from compatctl.core.class_sums import row_products
from compatctl.core.compatibility import Inequalities, inequalities, judged_inequalities
from compatctl.core.dependence import Dependence, measure_dependence
from compatctl.core.measurements import GroupEvidence
from compatctl.core.nearest import Neighbours
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval
from compatctl.core.score_histogram import ScoreHistogram, score_histogram
from compatctl.core.unjudged import UnjudgedBounds, bound_unjudged, unknown_found
from compatctl.evaluation.acceptance import (
    CalibrationRequest,
    Thresholds,
    error_rates,
    fit_calibration,
    operating_points,
)
from compatctl.evaluation.exact_retrieval import (
    evaluate_neighbours,
    measured_ks,
    mixed_retrieval,
    nearest_rows,
    ranking_ks,
    retrieval,
)
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.report import MAX_ANSWERS, Calibration, ErrorRates, OperatingPoint

MAX_COUNTED_PAIRS = 50_000_000
"""Pairs of queries and gallery rows up to which single pairs are counted as well."""
DUPLICATE_COSINE = 0.99999
"""Vectors of one model with a larger cosine are of the same image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedEmbeddings:
    """Unit features of both models: queries (Q, D) and gallery (G, D).

    ``new_gallery``: None if not embedded; (n, D) of the ascending rows ``new_rows`` (n,) if set.
    """

    old_queries: Vectors
    new_queries: Vectors
    old_gallery: Vectors
    new_gallery: Vectors | None = None
    new_rows: Rows | None = None
    new_free: Vectors | None = None
    """(Q, D_free) free vectors of the queries; None: not requested."""
    old_free: Vectors | None = None
    """The old model's."""

    def select_queries(self, kept: Bools) -> PairedEmbeddings:
        """The same for the queries ``kept`` (Q,)."""
        old, new = self.old_queries[kept], self.new_queries[kept]
        free, old_free = (
            None if vectors is None else vectors[kept] for vectors in (self.new_free, self.old_free)
        )
        return replace(self, old_queries=old, new_queries=new, new_free=free, old_free=old_free)


@dataclass(frozen=True, kw_only=True, eq=False)
class RescoredAnswers:
    """The answers of new queries, re-scored with none, half and all of the free vectors known
    beforehand; ``touched``: those states, by name, with the gallery rows that each passes."""

    cold: Neighbours
    half_warm: Neighbours
    warm: Neighbours
    touched: dict[str, Rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstAnswers:
    """The first answers of Q queries, at most ``MAX_ANSWERS``; row -1 where there are fewer."""

    rows: Rows
    """(Q, n) gallery rows, or -1."""
    scores: Scores
    """(Q, n) cosines."""
    relevant: Bools
    """(Q, n) whether each is right."""

    @classmethod
    def of(cls, truth: GroundTruth, nearest: Neighbours) -> FirstAnswers:
        """Those of the ranked rows."""
        rows, scores = nearest.rows[:, :MAX_ANSWERS].copy(), nearest.scores[:, :MAX_ANSWERS].copy()
        relevant = np.zeros(rows.shape, bool)
        if len(truth.gallery_labels):
            relevant = truth.is_relevant(rows) & (rows >= 0)
        return cls(rows=rows, scores=scores, relevant=relevant)


Rescore = Callable[[Neighbours, Vectors], RescoredAnswers]
"""Re-scores first answers (Q, C) of queries with these free vectors (Q, D_free)."""

Today = Callable[[Neighbours, Vectors], Neighbours]
"""Ranks first answers (Q, C) of old queries with these free vectors as the store serves them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupResult:
    """The evidence of one group, and what the report shows beside it."""

    evidence: GroupEvidence
    rank_bias: dict[str, float] = field(default_factory=dict)
    """For old and new queries: share of the first ten answers that the new model embedded, less
    that share of the gallery; 0 where the models' scores are alike."""
    rates: ErrorRates | None = None
    points: tuple[OperatingPoint, ...] = ()
    calibration: Calibration | None = None
    touched: dict[str, Rows] = field(default_factory=dict)
    """State of the cache -> gallery rows that re-scoring passes through the new model."""
    old_first_stage: Retrieval | None = None
    """Old queries without re-scoring, where the store re-scores their answers today."""
    n_judged: int = 0
    """Judgments of its queries and gallery rows."""
    first: tuple[FirstAnswers, FirstAnswers] | None = None
    """Those of old and of new queries on the old gallery; None: not searched."""
    scores: tuple[ScoreHistogram, ScoreHistogram] | None = None
    """Scores of old and of new queries; None: too many pairs to count, or no cosines."""
    kept: Bools
    """(Q,) the given queries that are in the evidence: no duplicate of their image is in the
    gallery."""


def compare(
    name: str,
    truth: GroundTruth,
    embeddings: PairedEmbeddings,
    policy: Policy,
    *,
    thresholds: Thresholds | None = None,
    calibrate: CalibrationRequest | None = None,
    cosines: bool = True,
    rescore: Rescore | None = None,
    today: Today | None = None,
) -> GroupResult:
    """Search every gallery with both models' queries, and measure what the policy may need.

    Without ``cosines`` the features only rank: inequalities and operating points are left out.
    With ``rescore`` the answers of new queries are those with an empty cache, with ``today`` those
    of old queries are as they are served; cosines, thresholds and other galleries are of the first
    stage.
    Queries whose image is in the gallery under another id are left out: finding it shows nothing.
    """
    ks = measured_ks(policy)
    kept, truth, embeddings, old = _without_duplicates(truth, embeddings, ks)
    new = nearest_rows(truth, embeddings.new_queries, embeddings.old_gallery, ks)
    others, bias = _new_galleries(truth, embeddings, policy)
    new, stages, touched = _rescored(new, embeddings.new_free, rescore)
    others |= {stage: evaluate_neighbours(truth, part, ks) for stage, part in stages.items()}
    old, old_first = _served(truth, old, embeddings.old_free, today, ks)
    old_old, new_old = (evaluate_neighbours(truth, nearest, ks) for nearest in (old, new))
    pairs = (embeddings.old_queries, embeddings.new_queries), embeddings.old_gallery, truth.pairs
    fitted = None if calibrate is None else fit_calibration(*pairs, truth.classes, calibrate.scale)
    accepts, rates = error_rates(*pairs, thresholds, fitted) if thresholds else (None, None)
    scores = _scores(embeddings, truth, at_any_size=thresholds is not None) if cosines else None
    return GroupResult(
        evidence=GroupEvidence(
            name=name,
            classes=truth.classes,
            old_old=old_old,
            new_old=new_old,
            inequalities=_inequalities(truth, embeddings) if cosines else None,
            accepts=accepts,
            slices=truth.slices,
            unit=truth.unit,
            dependence=_dependence(truth, old_old, new_old, policy.hit_at),
            answerable=truth.answerable,
            unjudged=_unjudged(truth, (old, new), (old_old, new_old), policy.hit_at),
            unknown_found=unknown_found(new.rows, truth.unjudged, ranking_ks(policy)),
            training_overlap=truth.training_overlap,
            **others,
        ),
        rank_bias=bias,
        rates=rates,
        calibration=None if fitted is None else fitted.reported,
        points=operating_points(scores) if scores else (),
        scores=scores,
        first=(FirstAnswers.of(truth, old), FirstAnswers.of(truth, new)),
        n_judged=0 if truth.judged is None else len(truth.judged[0]),
        touched=touched,
        old_first_stage=old_first,
        kept=kept,
    )


def _without_duplicates(
    truth: GroundTruth, embeddings: PairedEmbeddings, ks: tuple[int, ...]
) -> tuple[Bools, GroundTruth, PairedEmbeddings, Neighbours]:
    """(Q,) the queries whose image is not in the gallery, what is left of both, and the old
    model's first answers to them."""
    old = nearest_rows(truth, embeddings.old_queries, embeddings.old_gallery, ks)
    kept = ~_duplicates(truth, embeddings, old)
    if kept.all():
        return kept, truth, embeddings, old
    selected = embeddings.select_queries(kept)
    return kept, truth.select_queries(kept), selected, old.select_queries(kept)


def _served(
    truth: GroundTruth,
    first: Neighbours,
    queries: Vectors | None,
    today: Today | None,
    ks: tuple[int, ...],
) -> tuple[Neighbours, Retrieval | None]:
    """The answers of old queries as served today, and their test without re-scoring."""
    if today is None or queries is None:
        return first, None
    return today(first, queries), evaluate_neighbours(truth, first, ks)


def _rescored(
    first: Neighbours, queries: Vectors | None, rescore: Rescore | None
) -> tuple[Neighbours, dict[str, Neighbours], dict[str, Rows]]:
    """The answers that are judged, the others by their entry of the evidence, and the rows that
    re-scoring touches; without re-scoring the first stage alone."""
    if rescore is None or queries is None:
        return first, {}, {}
    answers = rescore(first, queries)
    others = {"first_stage": first, "half_warm": answers.half_warm, "warm": answers.warm}
    return answers.cold, others, answers.touched


def _dependence(
    truth: GroundTruth, old: Retrieval, new: Retrieval, k: int
) -> tuple[Dependence, ...] | None:
    """Dependence of the change of hits at k on the columns; None where there are no columns."""
    if truth.columns is None:
        return None
    change = new.hit(k).astype(np.float64) - old.hit(k)
    signs = np.random.default_rng(0)
    return measure_dependence(
        change, old.has_match, truth.classes, truth.unit, truth.columns, signs
    )


def _duplicates(truth: GroundTruth, embeddings: PairedEmbeddings, old: Neighbours) -> Bools:
    """(Q,) queries whose image is in the gallery under another id.

    The bytes show it where the row's image is available; elsewhere the vectors do: the row is
    relevant, and both models' cosines (the new one's if it embedded the gallery) exceed
    ``DUPLICATE_COSINE``.
    """
    duplicates = np.zeros(len(embeddings.old_queries), dtype=bool)
    if truth.same_image is not None:
        duplicates |= truth.same_image
    if truth.image_unavailable is None:
        return duplicates
    near = (old.scores > DUPLICATE_COSINE) & (old.rows >= 0)
    near &= truth.image_unavailable[old.rows] & truth.is_relevant(old.rows)
    query, rank = np.nonzero(near)
    new, gallery = embeddings.new_queries, embeddings.new_gallery
    if gallery is not None and embeddings.new_rows is None:
        rows = old.rows[query, rank]
        query = query[row_products(new, query, gallery, rows) > DUPLICATE_COSINE]
    duplicates[query] = True
    return duplicates


def _new_galleries(
    truth: GroundTruth, embeddings: PairedEmbeddings, policy: Policy
) -> tuple[dict[str, Any], dict[str, float]]:
    """Tests on galleries that the new model embedded, whole or in part, and the rank biases."""
    if embeddings.new_gallery is None:
        return {}, {}
    old, new, gallery = embeddings.old_queries, embeddings.new_queries, embeddings.new_gallery
    stored, ks = embeddings.old_gallery, measured_ks(policy)
    tests: dict[str, Any] = {}
    if embeddings.new_rows is not None:
        truth, stored = truth.select_rows(embeddings.new_rows), stored[embeddings.new_rows]
        tests["subset_baseline"] = tuple(
            retrieval(truth, queries, stored, ks) for queries in (old, new)
        )
    tests["new_new"] = retrieval(truth, new, gallery, ks)
    tests["old_new"] = retrieval(truth, old, gallery, ks)
    bias: dict[str, float] = {}
    if truth.reembedded is not None:
        tests["old_mixed"], bias["old"] = mixed_retrieval(truth, stored, gallery, old, policy)
        tests["new_mixed"], bias["new"] = mixed_retrieval(truth, stored, gallery, new, policy)
    return tests, bias


def _unjudged(
    truth: GroundTruth,
    neighbours: tuple[Neighbours, Neighbours],
    tests: tuple[Retrieval, Retrieval],
    k: int,
) -> UnjudgedBounds | None:
    """What rows of unknown relevance could change; None where none is among the first answers."""
    if truth.unjudged is None:
        return None
    hits = tests[0].hit(k), tests[1].hit(k)
    bounds = bound_unjudged(neighbours[0].rows, neighbours[1].rows, hits, truth.unjudged, k)
    return bounds if bounds.any else None


def _inequalities(truth: GroundTruth, embeddings: PairedEmbeddings) -> Inequalities:
    old, new, gallery = embeddings.old_queries, embeddings.new_queries, embeddings.old_gallery
    if truth.judged is not None:
        pairs = (*truth.judged, truth.self_row)
        return judged_inequalities(old, new, gallery, *pairs, ignored=truth.ignored)
    return inequalities(
        old,
        new,
        truth.query_labels,
        gallery,
        truth.gallery_labels,
        truth.self_row,
        ignored=truth.ignored,
        shares=_few_pairs(embeddings),
        by_query=truth.unit != ("class",),
    )


def _scores(
    embeddings: PairedEmbeddings, truth: GroundTruth, *, at_any_size: bool
) -> tuple[ScoreHistogram, ScoreHistogram] | None:
    """The scores of old and of new queries; None: too many pairs."""
    if not at_any_size and not _few_pairs(embeddings):
        return None
    old, new = (
        score_histogram(queries, embeddings.old_gallery, truth.pairs)
        for queries in (embeddings.old_queries, embeddings.new_queries)
    )
    return old, new


def _few_pairs(embeddings: PairedEmbeddings) -> bool:
    return len(embeddings.old_queries) * len(embeddings.old_gallery) <= MAX_COUNTED_PAIRS
