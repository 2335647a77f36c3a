"""What a backfill gains, before anything is written: held-out queries on both galleries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Bools, Rows
from compatctl.core.gate import Check, Measurement, judge
from compatctl.core.measurements import measure_mixed
from compatctl.core.policy import Policy
from compatctl.core.sampling_units import count_units
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import BulkEmbedding
from compatctl.deployment.gallery import stored_rows
from compatctl.deployment.record_files import ModelHeader, find_record
from compatctl.encoder import read_record
from compatctl.evaluation.adaptive_resampling import sampling
from compatctl.evaluation.ann import AnnQueries
from compatctl.evaluation.exact_retrieval import mixed_retrieval, recall_ks, retrieval
from compatctl.manifest import Catalog
from compatctl.migration.rewrite_gate import HeldOutQueries, deciding_queries
from compatctl.recipe import Project
from compatctl.store import Store

MARGIN = 0.02
"""The loss in recall that a backfill must be shown to stay under where the policy is silent: that
of the shipped policy ``strict``. A step on the way to a whole gallery gains little by itself."""

QUARTERS = (0.25, 0.5, 0.75)
"""Shares between the one that is there and the one that is asked for at which recall is told."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Recall of the query model where it has embedded this share of the rows, in [0, 1] both."""

    share: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class MixedTrial:
    """The query model's held-out queries on the gallery as it is, and as it would become.

    ``check``: the gain in recall@``recall_at``, paired, its interval and what the policy says of
    it. ``rank_bias``: the share of rows of the query model among the first ten answers, less their
    share of the gallery. ``curve``: from the share that is there to the one that would result.
    """

    n_queries: int
    n_classes: int
    recall_at: int
    check: Check
    rank_bias: float
    curve: tuple[CurvePoint, ...]


def held_out(project: Project, store: Store, data: Dataset) -> Rows:
    """The queries that decide, by the query model's training record where there is one."""
    wanted = store.manifest.query_model
    model = next(one for one in store.manifest.models if one.sha256 == wanted)
    seen = find_record(
        project.report.parent / model.name,
        ModelHeader(sha256=wanted, record=read_record(store.verified_path("models", wanted))),
        named=None,
        candidate=project.candidate,
    )
    return deciding_queries(data, seen)


def try_mixed(
    store: Store,
    catalog: Catalog,
    *,
    have: Bools,
    rows: Rows,
    done: BulkEmbedding,
    queries: HeldOutQueries,
    policy: Policy,
) -> tuple[MixedTrial, AnnQueries]:
    """Search both galleries exactly; all rows of the store (N, D) are in memory meanwhile, twice.

    ``have`` (N,): the rows that the query model embedded; ``rows`` (n,): those that ``done`` holds.
    The policy's ``min_mixed_gain`` decides. Where it is null a loss of ``MARGIN`` must be ruled
    out, and a loss that is shown, however small, is refused. Beside it: queries to try the index
    with that results.

    Raises:
        DamagedError: as ``stored_rows``.
    """
    old = stored_rows(store, store.manifest, catalog)
    new = old.copy()
    new[rows] = done.features_at(np.arange(len(rows)))
    truth, k = queries.field(catalog), policy.recall_at
    before = retrieval(truth, queries.features, old, recall_ks(policy))
    curve = [CurvePoint(share=float(have.mean()), recall=before.recall[k])]
    after, bias = before, 0.0
    for half in _stages(have, rows):
        staged = replace(truth, reembedded=half)
        after, bias = mixed_retrieval(staged, old, new, queries.features, policy)
        curve.append(CurvePoint(share=float(half.mean()), recall=after.recall[k]))
    how = sampling(policy, 0, 0, 0)
    gain = measure_mixed(
        truth.classes,
        before,
        after,
        k=k,
        draw=how.draw,
        replicates=how.replicates,
        unit=truth.unit,
    )
    found = MixedTrial(
        n_queries=before.n_with_match,
        n_classes=count_units(truth.classes, before.has_match),
        recall_at=k,
        check=_judged(policy, gain),
        rank_bias=bias,
        curve=tuple(curve),
    )
    return found, queries.asked(new, catalog)


def _judged(policy: Policy, gain: Measurement) -> Check:
    if policy.min_mixed_gain is not None:
        return judge(policy, [gain]).checks[0]
    found = judge(replace(policy, min_mixed_gain=-MARGIN), [gain]).checks[0]
    loses = judge(replace(policy, min_mixed_gain=0.0), [gain]).checks[0].outcome == "fail"
    return replace(found, outcome="fail") if loses else found


def _stages(have: Bools, rows: Rows) -> list[Bools]:
    """(N,) the rows of the query model at every quarter on the way, and at last."""
    there = int(have.sum())
    counts = [round(share * len(have)) - there for share in QUARTERS]
    counts = [count for count in counts if 0 < count < len(rows)]
    found = []
    for count in (*counts, len(rows)):
        half = have.copy()
        half[rows[:count]] = True
        found.append(half)
    return found
