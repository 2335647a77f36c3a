"""What a backfill or a lift gains, measured on held-out queries before anything is written.

A backfill compares one model's queries on two galleries. A lift changes the query model, so it is
judged as a deploy is, by the empirical criterion: each model's queries on its own gallery.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.adapters import Adapter, fuse_rows
from compatctl.core.arrays import Bools, Rows
from compatctl.core.gate import Check, Measurement, Verdict, judge
from compatctl.core.measurements import DECIDING_GROUP, GroupEvidence, measure, measure_mixed
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval
from compatctl.core.sampling_units import count_units
from compatctl.data import Dataset
from compatctl.deployment.gallery import stored_rows
from compatctl.deployment.record_files import ModelHeader, find_record
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import read_record
from compatctl.evaluation.adaptive_resampling import sampling
from compatctl.evaluation.ann import AnnQueries
from compatctl.evaluation.exact_retrieval import (
    evaluate_neighbours,
    measured_ks,
    mixed_retrieval,
    nearest_rows,
    retrieval,
)
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.index import RowsAt
from compatctl.manifest import Catalog
from compatctl.migration.backfill_selection import SHARES_BETWEEN
from compatctl.migration.rescored_service import RescoredService, RescoredTrial
from compatctl.migration.rewrite_gate import HeldOutQueries, deciding_queries
from compatctl.recipe import Project
from compatctl.store import Store

MARGIN = 0.02
"""The loss in hit rate that a backfill must rule out where the policy has no ``min_mixed_gain``:
the value of the shipped policy ``strict``. A step on the way to a whole gallery gains little."""

WHERE = "of each model on its gallery, stored or lifted,"


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Hit rate of the query model where it has embedded this share of the rows, both in [0, 1]."""

    share: float
    hit_rate: float


@dataclass(frozen=True, kw_only=True)
class RewriteTrial:
    """How many held-out queries and classes decided, by hit@``hit_at``."""

    n_queries: int
    n_classes: int
    hit_at: int


@dataclass(frozen=True, kw_only=True)
class MixedTrial(RewriteTrial):
    """The query model's held-out queries on the gallery as it is and as it would become.

    ``check`` is the paired gain in hit rate with its interval, judged by the policy. ``rank_bias``
    is the query model's share of rows among the first ten results, less its share of the gallery.
    ``curve`` runs from the present share to the one that would result. Where the store re-scores
    its answers, all of these are of the re-scored answers, and ``rescored`` says how.
    """

    check: Check
    rank_bias: float
    curve: tuple[CurvePoint, ...]
    rescored: RescoredTrial | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The shares on the way at which the hit rate lies below the start, and that re-scoring
        will embed less."""
        start = self.curve[0].hit_rate
        dips = [f"{point.share:.0%}" for point in self.curve[1:-1] if point.hit_rate < start]
        below = (
            f"hit@{self.hit_at} lies below the start where the query model embedded "
            f"{', '.join(dips)} of the rows: do not stop there"
        )
        less = self.rescored.less_room if self.rescored else ""
        return (*(below,) * bool(dips), *(less,) * bool(less))


@dataclass(frozen=True, kw_only=True)
class LiftTrial(RewriteTrial):
    """The deployed model's held-out queries on the stored gallery, the new one's on the lifted.

    ``old_hit_rate`` and ``new_hit_rate`` are in [0, 1]; ``verdict`` is the policy's.
    ``fused_hit_rate``, for information, is on the lifted gallery, of the unit mean of the new
    feature and the mapped deployed one.
    """

    old_hit_rate: float
    new_hit_rate: float
    fused_hit_rate: float
    verdict: Verdict


def query_model_record(project: Project, store: Store) -> TrainingRecord | None:
    """The query model's training record, if it has one."""
    sha256 = store.manifest.query_model
    model = next(share for share in store.manifest.models if share.sha256 == sha256)
    return find_record(
        project.report.parent / model.name,
        ModelHeader(sha256=sha256, record=read_record(store.verified_path("models", sha256))),
        named=None,
        candidate=project.candidate,
    )


def backfill_queries(project: Project, store: Store, data: Dataset) -> Rows:
    """The queries that decide a backfill, by the query model's training record if it has one."""
    return deciding_queries(data, query_model_record(project, store))


def lift_queries(data: Dataset, record: TrainingRecord | None, pairs: Rows) -> Rows:
    """The queries that decide a lift: classes seen neither by the new encoder (its ``record``) nor
    by the adapter (the training items among the ``pairs``)."""
    labels = frozenset(data.labels[row] for row in pairs if data.items[row].split == "train")
    return deciding_queries(data, (record or TrainingRecord()).with_classes(labels))


def try_backfill(
    store: Store,
    catalog: Catalog,
    *,
    have: Bools,
    rows: Rows,
    features_at: RowsAt,
    queries: HeldOutQueries,
    policy: Policy,
    service: RescoredService | None = None,
) -> tuple[MixedTrial, AnnQueries]:
    """Search both galleries exactly; two copies of the store's vectors (N, D) are in memory.

    ``have`` (N,) marks the rows that the query model embedded, ``rows`` (n,) are those whose new
    vectors ``features_at`` gives. ``loss_check`` decides. ``service``: the store re-scores its
    answers. Also returns the queries that test the new index.

    Raises:
        DamagedError: as ``stored_rows``.
    """
    old = stored_rows(store, store.manifest, catalog)
    new = old.copy()
    new[rows] = features_at(np.arange(len(rows)))
    truth, k, ks = queries.ground_truth(catalog), policy.hit_at, measured_ks(policy)
    first = nearest_rows(truth, queries.features, old, ks)
    before = evaluate_neighbours(truth, service.before(first) if service else first, ks)
    rank = service.after if service else None
    curve = [CurvePoint(share=float(have.mean()), hit_rate=before.hit_rate[k])]
    after, bias = before, 0.0
    for reembedded in _stages(have, rows):
        staged = replace(truth, reembedded=reembedded)
        after, bias = mixed_retrieval(staged, old, new, queries.features, policy, rank=rank)
        curve.append(CurvePoint(share=float(reembedded.mean()), hit_rate=after.hit_rate[k]))
    trial = MixedTrial(
        n_queries=before.n_with_match,
        n_classes=count_units(truth.classes, before.has_match),
        hit_at=k,
        check=loss_check(policy, rewrite_gain(truth, before, after, policy)),
        rank_bias=bias,
        curve=tuple(curve),
        rescored=(
            service.trial(evaluate_neighbours(truth, first, ks).hit_rate[k]) if service else None
        ),
    )
    return trial, queries.ann_queries(new, catalog)


def try_lift(
    store: Store,
    catalog: Catalog,
    adapter: Adapter,
    *,
    old: HeldOutQueries,
    new: HeldOutQueries,
    policy: Policy,
) -> tuple[LiftTrial, AnnQueries]:
    """Search both galleries exactly; the store's vectors (N, D) and their maps (N, F) are in
    memory. ``old`` and ``new`` are the same queries, embedded by each model.

    Also returns the queries that test the new index.

    Raises:
        DamagedError: as ``stored_rows``.
    """
    truth, k = old.ground_truth(catalog), policy.hit_at
    rows = stored_rows(store, store.manifest, catalog)
    before = retrieval(truth, old.features, rows, measured_ks(policy))
    rows = adapter(rows)
    after = retrieval(truth, new.features, rows, measured_ks(policy))
    fused = fuse_rows(adapter(old.features), new.features, 0.5)
    evidence = GroupEvidence(
        name=DECIDING_GROUP,
        classes=truth.classes,
        unit=truth.unit,
        old_old=before,
        new_old=after,
        gallery_phrase=WHERE,
    )
    resampling = sampling(policy, 0, 0, 0)
    measurements = measure(policy, evidence, resampling.draw, resampling.replicates)
    trial = LiftTrial(
        n_queries=before.n_with_match,
        n_classes=evidence.n_classes,
        hit_at=k,
        old_hit_rate=before.hit_rate[k],
        new_hit_rate=after.hit_rate[k],
        fused_hit_rate=retrieval(truth, fused, rows, (k,), map_k=1).hit_rate[k],
        verdict=judge(policy, measurements),
    )
    return trial, new.ann_queries(rows, catalog)


def rewrite_gain(
    truth: GroundTruth, before: Retrieval, after: Retrieval, policy: Policy
) -> Measurement:
    """The gain in the policy's hit rate of one gallery over another, with its interval."""
    resampling = sampling(policy, 0, 0, 0)
    return measure_mixed(
        truth.classes,
        before,
        after,
        k=policy.hit_at,
        draw=resampling.draw,
        replicates=resampling.replicates,
        unit=truth.unit,
    )


def loss_check(policy: Policy, gain: Measurement) -> Check:
    """Judge a gain by the policy's ``min_mixed_gain``. Where that is None a loss of ``MARGIN`` must
    be ruled out, and any loss that is shown is refused."""
    if policy.min_mixed_gain is not None:
        return judge(policy, [gain]).checks[0]
    check = judge(replace(policy, min_mixed_gain=-MARGIN), [gain]).checks[0]
    loses = judge(replace(policy, min_mixed_gain=0.0), [gain]).checks[0].outcome == "fail"
    return replace(check, outcome="fail") if loses else check


def _stages(have: Bools, rows: Rows) -> list[Bools]:
    """(N,) the query model's rows at every share on the way, and at the end."""
    present = int(have.sum())
    counts = [round(share * len(have)) - present for share in SHARES_BETWEEN]
    stages = []
    for count in (*(count for count in counts if 0 < count < len(rows)), len(rows)):
        embedded = have.copy()
        embedded[rows[:count]] = True
        stages.append(embedded)
    return stages
