"""One group of held-out queries put to both models: what is searched, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compatctl.core.arrays import Bools
from compatctl.core.class_sums import row_products
from compatctl.core.compatibility import Inequalities, inequalities, judged_inequalities
from compatctl.core.dependence import Dependence, measure_dependence
from compatctl.core.evidence import GroupEvidence
from compatctl.core.nearest import Neighbours
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval
from compatctl.core.unjudged import Unjudged, bound_unjudged
from compatctl.evaluation.acceptance import (
    Calibrate,
    Thresholds,
    calibrated,
    error_rates,
    operating_points,
)
from compatctl.evaluation.comparison import (
    Field,
    Sides,
    depths,
    evaluated,
    found_in,
    mixed,
    retrieval,
)
from compatctl.report import Calibration, ErrorRates, OperatingPoint

SHARES_UP_TO = 50_000_000
"""Pairs of queries and gallery rows up to which single pairs are counted as well."""
TWIN = 0.99999
"""Cosine from which on two vectors of one model are those of the same image."""


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
    kept: Bools
    """(Q,) of the queries that were given, those in the evidence: whose image does not lie in the
    gallery under another id."""
    n_at_hand: int | None = None
    """Gallery rows that the new model embedded; None: all, or none was to be."""


def run(
    name: str,
    where: Field,
    sides: Sides,
    policy: Policy,
    *,
    thresholds: Thresholds | None = None,
    calibrate: Calibrate | None = None,
    cosines: bool = True,
) -> Trial:
    """Search every gallery with both models' queries; measure what the policy may ask for.

    Without ``cosines`` the features only rank: their products are of no use by themselves. Queries
    whose own image lies in the gallery under another id are left out: to find it again shows
    nothing.
    """
    old = found_in(where, sides.old_queries, sides.old_gallery, policy)
    kept = ~twins(where, sides, old)
    if not kept.all():
        where, sides, old = where.queries(kept), sides.queries(kept), old.select_queries(kept)
    new = found_in(where, sides.new_queries, sides.old_gallery, policy)
    old_old, new_old = evaluated(where, old, policy), evaluated(where, new, policy)
    others, bias = _new_galleries(where, sides, policy)
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
            inequalities=_inequalities(where, sides) if cosines else None,
            accepts=accepted,
            slices=where.slices,
            unit=where.unit,
            dependence=_dependence(where, old_old, new_old, policy.recall_at),
            asked=where.asked,
            unjudged=_unjudged(where, (old, new), (old_old, new_old), policy.recall_at),
            touched=where.touched,
            **others,
        ),
        rank_bias=bias,
        rates=rates,
        calibration=None if fitted is None else fitted.reported,
        points=_points(where, sides, asked=thresholds is not None) if cosines else (),
        n_judged=0 if where.judged is None else len(where.judged[0]),
        kept=kept,
        n_at_hand=None if sides.new_rows is None else len(sides.new_rows),
    )


def _dependence(
    where: Field, old: Retrieval, new: Retrieval, k: int
) -> tuple[Dependence, ...] | None:
    """What the columns say of the change of hits at k; None where the data have none to look at."""
    if where.columns is None:
        return None
    change = new.hit(k).astype(np.float64) - old.hit(k)
    signs = np.random.default_rng(0)
    return measure_dependence(
        change, old.has_match, where.classes, where.unit, where.columns, signs
    )


def twins(where: Field, sides: Sides, old: Neighbours) -> Bools:
    """(Q,) queries whose image lies in the gallery under another id.

    Where the image of a row was looked at, its bytes say so; of the other rows the vector does: one
    of the query's class, nearer than ``TWIN`` to what the old model makes of the query, and to what
    the new one makes of it where there is a vector of the new one.
    """
    found = np.zeros(len(sides.old_queries), dtype=bool)
    if where.same_image is not None:
        found |= where.same_image
    if where.unseen_image is None:
        return found
    near = (old.scores > TWIN) & (old.rows >= 0)
    near &= where.unseen_image[old.rows] & where.relevant(old.rows)
    query, at = np.nonzero(near)
    if sides.new_gallery is not None and sides.new_rows is None:
        rows = old.rows[query, at]
        again = row_products(sides.new_queries, query, sides.new_gallery, rows) > TWIN
        query = query[again]
    found[query] = True
    return found


def _new_galleries(
    where: Field, sides: Sides, policy: Policy
) -> tuple[dict[str, Any], dict[str, float]]:
    """Tests on galleries that the new model embedded, whole or in part; the rank biases."""
    if sides.new_gallery is None:
        return {}, {}
    old, new, gallery = sides.old_queries, sides.new_queries, sides.new_gallery
    found: dict[str, Any] = {}
    stored = sides.old_gallery
    if sides.new_rows is not None:
        where, stored = where.part(sides.new_rows), stored[sides.new_rows]
        tests = (retrieval(where, one, stored, depths(policy)) for one in (old, new))
        found["at_hand"] = tuple(tests)
    found["new_new"] = retrieval(where, new, gallery, depths(policy))
    found["old_new"] = retrieval(where, old, gallery, depths(policy))
    bias: dict[str, float] = {}
    if where.half is not None:
        found["old_mixed"], bias["old"] = mixed(where, stored, gallery, old, policy)
        found["new_mixed"], bias["new"] = mixed(where, stored, gallery, new, policy)
    return found, bias


def _unjudged(
    where: Field,
    found: tuple[Neighbours, Neighbours],
    tests: tuple[Retrieval, Retrieval],
    k: int,
) -> Unjudged | None:
    """What rows of unknown relevance could change; None where none is among the first answers."""
    if where.unjudged is None:
        return None
    hits = tests[0].hit(k), tests[1].hit(k)
    bounds = bound_unjudged(found[0].rows, found[1].rows, hits, where.unjudged, k)
    return bounds if bounds.any else None


def _points(where: Field, sides: Sides, *, asked: bool) -> tuple[OperatingPoint, ...]:
    """Where a threshold was asked about, or pairs are few: each model takes a matrix product."""
    if not asked and len(sides.old_queries) * len(sides.old_gallery) > SHARES_UP_TO:
        return ()
    queries = sides.old_queries, sides.new_queries
    return operating_points(queries, sides.old_gallery, where.pairs)


def _inequalities(where: Field, sides: Sides) -> Inequalities:
    old, new, gallery = sides.old_queries, sides.new_queries, sides.old_gallery
    if where.judged is not None:
        pairs = (*where.judged, where.self_row)
        return judged_inequalities(old, new, gallery, *pairs, ignored=where.ignored)
    return inequalities(
        old,
        new,
        where.query_labels,
        gallery,
        where.gallery_labels,
        where.self_row,
        ignored=where.ignored,
        shares=len(old) * len(gallery) <= SHARES_UP_TO,
        by_query=where.unit != ("class",),
    )
