"""What the default gate says of a route that leaves the gallery as it is, on test queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compatctl.core.arrays import Bools
from compatctl.core.policy import Policy
from compatctl.evaluation.adaptive_resampling import adaptive_verdict, sampling
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.routes import RouteInputs
from compatctl.migration.selection import CrossFitSelector, Variant


def outcome(inputs: RouteInputs, variant: Variant, test: Bools, policy: Policy) -> str:
    """``pass``, ``fail`` or ``inconclusive``; ``test`` (Q,) are the queries that are judged."""
    everyone = np.ones(len(test), bool)
    selector = CrossFitSelector(truth=inputs.truth, folds=((~test, everyone),))
    result = selector.result("", selector.fixed(variant)).select_queries(test)
    truth = subset(inputs.truth, test)
    old, stored = inputs.old_queries.queries[test], inputs.reference.gallery_features
    trial = result.compare(truth, old, stored, policy)
    return adaptive_verdict(policy, [trial], (), (), sampling(policy, 0, 0, 0)).outcome


def subset(truth: GroundTruth, rows: Bools) -> GroundTruth:
    """The queries of ``rows`` (Q,) on the same gallery."""
    return replace(
        truth,
        classes=truth.classes[rows],
        query_labels=truth.query_labels[rows],
        self_row=truth.self_row[rows],
    )
