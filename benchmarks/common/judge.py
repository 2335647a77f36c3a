"""What the gate says of every route of a case, on test classes: the figures of ``legacy.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compatctl.core.arrays import Bools
from compatctl.core.policy import Policy
from compatctl.evaluation.adaptive_resampling import adaptive_verdict, sampling
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.routes import Route, RouteInputs
from compatctl.migration.selection import RouteResult

ROUTES = (Route.FINETUNE, Route.BRIDGE, Route.FUSE, Route.BRIDGE_FUSE)
"""What a plan may propose while the gallery stays as it is."""
SINGLE = (Route.FINETUNE, Route.BRIDGE)
"""Those of which a query runs one encoder."""
WORTH = 0.03
"""An upgrade is worth the while from this gain on, were everything re-embedded."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One route on the test queries; intervals have 95% confidence, over classes."""

    route: str
    recall: float
    """recall@1"""
    gain: float
    """Over old queries on the stored gallery"""
    low: float
    high: float
    gain_retained: float | None
    """Share of the gain of re-embedding with the free model; None where that is under ``WORTH``"""
    negative_flips: float
    outcome: str
    """Of the default policy"""
    encoders: int
    """That a query runs"""
    rewritten: float
    """Share of the stored vectors"""
    setting: str
    seconds: float
    validation: float
    """recall@1 on the validation classes, which chose the setting"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case with one seed."""

    case: str
    seed: int
    share: float
    """Of the training classes, which the old model knew"""
    queries: int
    classes: int
    old: float
    """recall@1 of old queries on the stored gallery"""
    free: float
    """recall@1 of the free model on a gallery of its own, the better head on validation classes"""
    lines: tuple[Line, ...]

    def line(self, route: str) -> Line:
        """The line of a route."""
        return next(line for line in self.lines if line.route == route)

    def best(self, routes: Sequence[str]) -> Line:
        """The route that finds most on validation classes; test classes judge it."""
        return best_of(routes, self.lines)

    @property
    def worth(self) -> bool:
        """Whether the free model, everything re-embedded, is better by ``WORTH``."""
        return self.free - self.old >= WORTH


def best_of(routes: Sequence[str], lines: Sequence[Line]) -> Line:
    """The line of the route that finds most on validation classes."""
    return max((line for line in lines if line.route in routes), key=lambda one: one.validation)


def judge(
    inputs: RouteInputs, measured: Sequence[RouteResult], test: Bools, policy: Policy
) -> tuple[Line, ...]:
    """A line a route; ``test`` (Q,) are the queries that are judged, the others chose."""
    truth, chosen = subset(inputs.truth, test), subset(inputs.truth, ~test)
    recalls = {entry.name: _recall(truth, entry, test) for entry in measured}
    validation = {entry.name: _recall(chosen, entry, ~test) for entry in measured}
    old, free = recalls[Route.KEEP], recalls[Route.REEMBED]
    old_queries, stored = inputs.old_queries.queries[test], inputs.reference.gallery_features
    lines = []
    for result in measured:
        trial = result.select_queries(test).compare(truth, old_queries, stored, policy)
        verdict = adaptive_verdict(policy, [trial], (), (), sampling(policy, 0, 0, 0))
        check = next(check for check in verdict.checks if check.name == "recall_gain")
        gain = recalls[result.name] - old
        lines.append(
            Line(
                route=result.name,
                recall=recalls[result.name],
                gain=gain,
                low=_end(check.low),
                high=_end(check.high),
                gain_retained=gain / (free - old) if free - old >= WORTH else None,
                negative_flips=trial.evidence.flips.negative,
                outcome=verdict.outcome,
                encoders=len(result.variant.encoders),
                rewritten=result.rewritten,
                setting=result.variant.setting,
                seconds=round(result.variant.seconds, 1),
                validation=validation[result.name],
            )
        )
    return tuple(lines)


def _end(value: float | None) -> float:
    return float("nan") if value is None else value


def subset(truth: GroundTruth, rows: Bools) -> GroundTruth:
    """The queries of ``rows`` (Q,) on the same gallery."""
    return replace(
        truth,
        classes=truth.classes[rows],
        query_labels=truth.query_labels[rows],
        self_row=truth.self_row[rows],
    )


def _recall(truth: GroundTruth, one: RouteResult, rows: Bools) -> float:
    return float(one.select_queries(rows).retrieval(truth, (1,), map_k=1).recall[1])
