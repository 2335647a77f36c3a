"""What the planning queries of a plan search, and how the store answers them today."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.core.policy import Policy
from compatctl.core.rescoring import KnownVectors
from compatctl.core.retrieval import Retrieval
from compatctl.evaluation.comparison import GroupResult
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.served_today import TodayAnswers
from compatctl.manifest import Catalog
from compatctl.migration.rewrite_gate import HeldOutQueries
from compatctl.migration.routes import PlanningInputs, Route
from compatctl.migration.selection import RescoredResult, RouteResult
from compatctl.report import RescoredToday


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanningGallery:
    """The ground truth of the queries on stored vectors (G, D).

    ``today``: how a store that re-scores answers old queries. ``at_hand``: (n,) the rows whose
    images the plan has, None: all; otherwise ``lazy`` is re-scoring on all of the rows all the
    same, for which ``embedded`` more images went through the new backbone.
    """

    truth: GroundTruth
    stored: Vectors
    today: TodayAnswers | None = None
    at_hand: Rows | None = None
    lazy: RescoredResult | None = None
    embedded: int = 0

    @classmethod
    def available(cls, inputs: PlanningInputs, today: TodayAnswers | None = None) -> Self:
        """The rows whose images the plan has: any route can be tried on them."""
        stored = inputs.reference.gallery_features
        return cls(truth=inputs.truth, stored=stored, today=today)

    @classmethod
    def whole(
        cls, inputs: PlanningInputs, catalog: Catalog, at_hand: Rows, today: TodayAnswers | None
    ) -> Self:
        """Every row of the store, of which the plan has the images of some: ``at_hand``."""
        assert inputs.whole is not None
        queries = HeldOutQueries.from_features(
            inputs.data,
            inputs.query_rows,
            inputs.old_queries.queries,
            cluster=inputs.cluster,
            ignore_same=inputs.ignore_same,
            judged=inputs.judged,
        )
        return cls(
            truth=queries.ground_truth(catalog),
            stored=inputs.whole.gallery_features,
            today=today,
            at_hand=at_hand,
        )

    def with_lazy(
        self, results: Sequence[RouteResult], embed: Callable[[Rows], KnownVectors]
    ) -> Self:
        """The same with re-scoring, if it is among the routes and some images are not in the plan.

        ``embed`` gives the free vectors of those of the rows (m,), each query's nearest first, that
        it can embed. The other rows keep the score that is expected of them, as they do where they
        are served.
        """
        result = next((entry for entry in results if isinstance(entry, RescoredResult)), None)
        at_hand = self.at_hand
        if at_hand is None or result is None:
            return self
        order = np.argsort(at_hand)
        known = KnownVectors(rows=at_hand[order], vectors=result.free_gallery[order])
        lazy = result.within(self.stored, known)
        there = {*at_hand.tolist()}
        wanted = dict.fromkeys(lazy.first_answers(self.truth).T.ravel().tolist())
        new = embed(as_rows(row for row in wanted if row >= 0 and row not in there))
        lazy = result.within(self.stored, known.with_rows(new.rows, new.vectors))
        return replace(self, lazy=lazy, embedded=len(new.rows))

    def tries(self, result: RouteResult) -> RouteResult | None:
        """The route on these rows; None if it needs the images of all of them."""
        if isinstance(result, RescoredResult):
            return result if self.at_hand is None else self.lazy
        return result if result.rewritten == 0.0 else None

    def retrieval(self, result: RouteResult) -> Retrieval:
        """The first results of a route on these rows; old queries as they are served."""
        if result.name == Route.KEEP and self.today is not None:
            return self.today.retrieval(self.truth, result.queries, self.stored, (1,), map_k=1)
        if result.rewritten == 0.0 and not isinstance(result, RescoredResult):
            return retrieval(self.truth, result.queries, self.stored, (1,), map_k=1)
        return result.retrieval(self.truth, (1,), map_k=1)

    def compare(self, result: RouteResult, old: Vectors, policy: Policy) -> GroupResult:
        """Compare a route with old queries (Q, D) as they are served here."""
        return result.compare(self.truth, old, self.stored, policy, self.today)

    def share_rescored(self, result: RouteResult) -> float | None:
        """The share, 0 to 1, of the first answers that lazy re-scores; None: another route."""
        return result.share_known(self.truth) if isinstance(result, RescoredResult) else None

    def today_entry(self, old: Vectors) -> RescoredToday | None:
        """How the store re-scores old queries (Q, D) today; None: it does not."""
        if self.today is None:
            return None
        first = retrieval(self.truth, old, self.stored, (1,), map_k=1)
        return self.today.served.entry(first)
