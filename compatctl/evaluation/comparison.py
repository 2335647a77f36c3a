"""One group of held-out queries put to both models: what is searched, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.class_sums import row_products
from compatctl.core.compatibility import Inequalities, inequalities, judged_inequalities
from compatctl.core.dependence import Dependence, measure_dependence
from compatctl.core.measurements import GroupEvidence
from compatctl.core.nearest import Neighbours
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval
from compatctl.core.unjudged import UnjudgedBounds, bound_unjudged
from compatctl.evaluation.acceptance import (
    CalibrationRequest,
    Thresholds,
    error_rates,
    fit_calibration,
    operating_points,
)
from compatctl.evaluation.exact_retrieval import (
    exact_neighbours,
    mixed_retrieval,
    recall_ks,
    retrieval,
    score_neighbours,
)
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.report import Calibration, ErrorRates, OperatingPoint

SHARES_UP_TO = 50_000_000
"""Pairs of queries and gallery rows up to which single pairs are counted as well."""
TWIN = 0.99999
"""Cosine from which on two vectors of one model are those of the same image."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupResult:
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
    kept: Bools
    """(Q,) of the queries that were given, those in the evidence: whose image does not lie in the
    gallery under another id."""
    n_at_hand: int | None = None
    """Gallery rows that the new model embedded; None: all, or none was to be."""


def compare(
    name: str,
    truth: GroundTruth,
    embeddings: PairedEmbeddings,
    policy: Policy,
    *,
    thresholds: Thresholds | None = None,
    calibrate: CalibrationRequest | None = None,
    cosines: bool = True,
) -> GroupResult:
    """Search every gallery with both models' queries; measure what the policy may ask for.

    Without ``cosines`` the features only rank: their products are of no use by themselves. Queries
    whose own image lies in the gallery under another id are left out: to find it again shows
    nothing.
    """
    old = exact_neighbours(truth, embeddings.old_queries, embeddings.old_gallery, policy)
    kept = ~twins(truth, embeddings, old)
    if not kept.all():
        truth, embeddings, old = (
            truth.queries(kept),
            embeddings.queries(kept),
            old.select_queries(kept),
        )
    new = exact_neighbours(truth, embeddings.new_queries, embeddings.old_gallery, policy)
    old_old, new_old = score_neighbours(truth, old, policy), score_neighbours(truth, new, policy)
    others, bias = _new_galleries(truth, embeddings, policy)
    accepted = rates = None
    pairs = (embeddings.old_queries, embeddings.new_queries), embeddings.old_gallery, truth.pairs
    fitted = None if calibrate is None else fit_calibration(*pairs, truth.classes, calibrate.scale)
    if thresholds is not None:
        accepted, rates = error_rates(*pairs, thresholds, fitted)
    return GroupResult(
        evidence=GroupEvidence(
            name=name,
            classes=truth.classes,
            old_old=old_old,
            new_old=new_old,
            inequalities=_inequalities(truth, embeddings) if cosines else None,
            accepts=accepted,
            slices=truth.slices,
            unit=truth.unit,
            dependence=_dependence(truth, old_old, new_old, policy.recall_at),
            answerable=truth.asked,
            unjudged=_unjudged(truth, (old, new), (old_old, new_old), policy.recall_at),
            training_overlap=truth.training_overlap,
            **others,
        ),
        rank_bias=bias,
        rates=rates,
        calibration=None if fitted is None else fitted.reported,
        points=_points(truth, embeddings, asked=thresholds is not None) if cosines else (),
        n_judged=0 if truth.judged is None else len(truth.judged[0]),
        kept=kept,
        n_at_hand=None if embeddings.new_rows is None else len(embeddings.new_rows),
    )


def _dependence(
    truth: GroundTruth, old: Retrieval, new: Retrieval, k: int
) -> tuple[Dependence, ...] | None:
    """What the columns say of the change of hits at k; None where the data have none to look at."""
    if truth.columns is None:
        return None
    change = new.hit(k).astype(np.float64) - old.hit(k)
    signs = np.random.default_rng(0)
    return measure_dependence(
        change, old.has_match, truth.classes, truth.unit, truth.columns, signs
    )


def twins(truth: GroundTruth, embeddings: PairedEmbeddings, old: Neighbours) -> Bools:
    """(Q,) queries whose image lies in the gallery under another id.

    Where the image of a row was looked at, its bytes say so; of the other rows the vector does: one
    of the query's class, nearer than ``TWIN`` to what the old model makes of the query, and to what
    the new one makes of it where there is a vector of the new one.
    """
    found = np.zeros(len(embeddings.old_queries), dtype=bool)
    if truth.same_image is not None:
        found |= truth.same_image
    if truth.unseen_image is None:
        return found
    near = (old.scores > TWIN) & (old.rows >= 0)
    near &= truth.unseen_image[old.rows] & truth.relevant(old.rows)
    query, at = np.nonzero(near)
    if embeddings.new_gallery is not None and embeddings.new_rows is None:
        rows = old.rows[query, at]
        again = row_products(embeddings.new_queries, query, embeddings.new_gallery, rows) > TWIN
        query = query[again]
    found[query] = True
    return found


def _new_galleries(
    truth: GroundTruth, embeddings: PairedEmbeddings, policy: Policy
) -> tuple[dict[str, Any], dict[str, float]]:
    """Tests on galleries that the new model embedded, whole or in part; the rank biases."""
    if embeddings.new_gallery is None:
        return {}, {}
    old, new, gallery = embeddings.old_queries, embeddings.new_queries, embeddings.new_gallery
    found: dict[str, Any] = {}
    stored = embeddings.old_gallery
    if embeddings.new_rows is not None:
        truth, stored = truth.part(embeddings.new_rows), stored[embeddings.new_rows]
        tests = (retrieval(truth, one, stored, recall_ks(policy)) for one in (old, new))
        found["subset_baseline"] = tuple(tests)
    found["new_new"] = retrieval(truth, new, gallery, recall_ks(policy))
    found["old_new"] = retrieval(truth, old, gallery, recall_ks(policy))
    bias: dict[str, float] = {}
    if truth.reembedded is not None:
        found["old_mixed"], bias["old"] = mixed_retrieval(truth, stored, gallery, old, policy)
        found["new_mixed"], bias["new"] = mixed_retrieval(truth, stored, gallery, new, policy)
    return found, bias


def _unjudged(
    truth: GroundTruth,
    found: tuple[Neighbours, Neighbours],
    tests: tuple[Retrieval, Retrieval],
    k: int,
) -> UnjudgedBounds | None:
    """What rows of unknown relevance could change; None where none is among the first answers."""
    if truth.unjudged is None:
        return None
    hits = tests[0].hit(k), tests[1].hit(k)
    bounds = bound_unjudged(found[0].rows, found[1].rows, hits, truth.unjudged, k)
    return bounds if bounds.any else None


def _points(
    truth: GroundTruth, embeddings: PairedEmbeddings, *, asked: bool
) -> tuple[OperatingPoint, ...]:
    """Where a threshold was asked about, or pairs are few: each model takes a matrix product."""
    if not asked and len(embeddings.old_queries) * len(embeddings.old_gallery) > SHARES_UP_TO:
        return ()
    queries = embeddings.old_queries, embeddings.new_queries
    return operating_points(queries, embeddings.old_gallery, truth.pairs)


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
        shares=len(old) * len(gallery) <= SHARES_UP_TO,
        by_query=truth.unit != ("class",),
    )
