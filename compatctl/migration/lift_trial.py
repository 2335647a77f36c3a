"""What a lift gains, before anything is written: both models' queries, each on its own gallery.

A lift changes the query model, so it is judged as a deploy is: by the empirical criterion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.adapters import Adapter
from compatctl.core.arrays import Rows
from compatctl.core.gate import Verdict, judge
from compatctl.core.measurements import DECIDING_GROUP, GroupEvidence, measure
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.gallery import stored_rows
from compatctl.deployment.training_record import TrainingRecord
from compatctl.evaluation.adaptive_resampling import sampling
from compatctl.evaluation.ann import AnnQueries
from compatctl.evaluation.exact_retrieval import recall_ks, retrieval
from compatctl.manifest import Catalog
from compatctl.migration.rewrite_gate import HeldOutQueries, deciding_queries
from compatctl.store import Store

WHERE = "of each model on its gallery, stored or lifted,"


@dataclass(frozen=True, kw_only=True)
class LiftTrial:
    """The deployed model's held-out queries on the gallery as it is, the new one's on the lifted.

    ``old_recall``, ``new_recall``: at ``recall_at``, in [0, 1]. ``fused_recall``, for information:
    of the unit mean of both models' features, the deployed one's mapped, on the lifted gallery.
    ``verdict``: the policy's.
    """

    n_queries: int
    n_classes: int
    recall_at: int
    old_recall: float
    new_recall: float
    fused_recall: float
    verdict: Verdict


def held_out(data: Dataset, seen: TrainingRecord | None, pairs: Rows) -> Rows:
    """The queries that decide: of classes that neither the new encoder (``seen``: its record) nor
    the map saw: those of the training items among the pairs."""
    labels = frozenset(data.labels[row] for row in pairs if data.items[row].split == "train")
    return deciding_queries(data, (seen or TrainingRecord()).with_classes(labels))


def try_lift(
    store: Store,
    catalog: Catalog,
    adapter: Adapter,
    *,
    old: HeldOutQueries,
    new: HeldOutQueries,
    policy: Policy,
) -> tuple[LiftTrial, AnnQueries]:
    """Search both galleries exactly; all rows of the store are in memory meanwhile, as they are
    (N, D) and mapped (N, F). ``old`` and ``new``: the same queries, by both models.

    Beside it: queries to try the new index with.

    Raises:
        DamagedError: as ``stored_rows``.
    """
    truth, k = old.field(catalog), policy.recall_at
    rows = stored_rows(store, store.manifest, catalog)
    before = retrieval(truth, old.features, rows, recall_ks(policy))
    rows = adapter(rows)
    after = retrieval(truth, new.features, rows, recall_ks(policy))
    both = adapter(old.features) + new.features
    both /= np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    group = GroupEvidence(
        name=DECIDING_GROUP,
        classes=truth.classes,
        unit=truth.unit,
        old_old=before,
        new_old=after,
        where=WHERE,
    )
    how = sampling(policy, 0, 0, 0)
    found = LiftTrial(
        n_queries=before.n_with_match,
        n_classes=group.n_classes,
        recall_at=k,
        old_recall=before.recall[k],
        new_recall=after.recall[k],
        fused_recall=retrieval(truth, both, rows, (k,), map_k=1).recall[k],
        verdict=judge(policy, measure(policy, group, how.draw, how.replicates)),
    )
    return found, new.asked(rows, catalog)
