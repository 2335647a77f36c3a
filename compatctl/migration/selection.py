"""Cross-fitted selection: variants of a route are chosen on one fold and measured on the other.

Each fold has its own choice, and so do all choosing queries together. Where a choice leads to
further variants (a head, then an adapter, then a weight), each fold continues from its own choice:
no query is measured with anything that it helped to choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.hash_order import hash_fraction
from compatctl.core.measurements import DECIDING_GROUP, GroupEvidence
from compatctl.core.nearest import Neighbours
from compatctl.core.policy import Policy
from compatctl.core.rescoring import USUAL_WEIGHT, KnownVectors, rescore, rule_without_labels
from compatctl.core.retrieval import Retrieval
from compatctl.evaluation.comparison import (
    GroupResult,
    PairedEmbeddings,
    RescoredAnswers,
    compare,
)
from compatctl.evaluation.exact_retrieval import (
    MAP_K,
    evaluate_neighbours,
    measured_ks,
    nearest_rows,
    retrieval,
    retrieval_by_part,
)
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.served_today import TodayAnswers
from compatctl.progress import counted

if TYPE_CHECKING:
    from compatctl.recipe import Recipe
    from compatctl.train import TrainResult

RESCORED = 10
"""Answers of a query that are re-scored."""
Fold = tuple[Bools, Bools]
"""(Q,) queries that choose, and (Q,) queries that are measured with the choice."""


def class_halves(labels: Sequence[str]) -> list[Fold]:
    """Queries with these class labels (Q,) in two halves of classes, by hash: each half chooses for
    the other."""
    first = np.array([hash_fraction(f"half {label}") < 0.5 for label in labels], bool)
    return [(first, ~first), (~first, first)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One setting of a route; all features are unit rows."""

    queries: Vectors
    """(Q, D)"""
    gallery: Vectors
    """(G, D) what the queries search"""
    setting: str = ""
    """What distinguishes it from the route's other variants"""
    encoders: tuple[str, ...] = ("new",)
    """The backbones that a query runs"""
    item_features: Vectors | None = None
    """(G, D) the query model's features of the gallery's items; None: not available"""
    trained: TrainResult | None = None
    recipe: Recipe | None = None
    """What finetune runs for it; None where nothing is trained"""
    seconds: float = 0.0
    """Training, fitting and choosing, without one pass of the backbone"""


Selection = tuple[Variant, ...]
"""The choice of each fold and, last, that of all choosing queries."""


def map_selection(selection: Selection, change: Callable[[Variant], Variant]) -> Selection:
    """Every choice changed; equal ones are changed once."""
    changed = {variant: change(variant) for variant in dict.fromkeys(selection)}
    return tuple(changed[variant] for variant in selection)


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteResult:
    """One route. Each of the ``queries`` (Q, D) is measured with a choice that it did not make.

    ``searched`` holds one pair a fold: which queries (Q,) search which gallery (G, D).
    ``rewritten`` is the share of the stored vectors that is replaced. ``variant`` is the choice of
    all choosing queries.
    """

    name: str
    queries: Vectors
    searched: tuple[tuple[Bools, Vectors], ...]
    rewritten: float
    variant: Variant

    def retrieval(self, truth: GroundTruth, ks: tuple[int, ...], map_k: int = MAP_K) -> Retrieval:
        """hit@k and mAP of its queries."""
        return retrieval_by_part(truth, self.queries, self.searched, ks, map_k)

    def compare(
        self,
        truth: GroundTruth,
        old: Vectors,
        stored: Vectors,
        policy: Policy,
        today: TodayAnswers | None = None,
    ) -> GroupResult:
        """Compare with old queries (Q, D) on the stored gallery (G, D), as ``verify`` does.

        ``today``: how a store that re-scores answers them. A route that rewrites the gallery has no
        inequalities: they are about the stored vectors.
        """
        if self.rewritten == 0.0:
            embeddings = PairedEmbeddings(
                old_queries=old,
                new_queries=self.queries,
                old_gallery=stored,
                old_free=None if today is None else today.queries,
            )
            return compare(DECIDING_GROUP, truth, embeddings, policy, today=today)
        searches = retrieval if today is None else today.retrieval
        evidence = GroupEvidence(
            name=DECIDING_GROUP,
            classes=truth.classes,
            unit=truth.unit,
            old_old=searches(truth, old, stored, measured_ks(policy)),
            new_old=self.retrieval(truth, measured_ks(policy)),
        )
        return GroupResult(evidence=evidence, kept=np.ones(len(self.queries), dtype=bool))

    def select_queries(self, mask: Bools) -> RouteResult:
        """The route with only the queries of ``mask`` (Q,)."""
        searched = tuple((part[mask], gallery) for part, gallery in self.searched)
        return replace(self, queries=self.queries[mask], searched=searched)


@dataclass(frozen=True, kw_only=True, eq=False)
class RescoredResult(RouteResult):
    """A route whose first answers are ranked again by free vectors, where these are known; the
    others have the score that is expected of them.

    All queries search the stored gallery, and the weight of the rule is fixed: no query chooses
    anything.
    """

    free_queries: Vectors
    """(Q, F)"""
    free_gallery: Vectors
    """(G, F) of the rows that are searched, or (n, F) of ``free_rows``"""
    free_rows: Rows | None = None
    """(n,) ascending rows that are searched and whose free vectors are known; None: all"""
    candidates: int = RESCORED

    def within(self, stored: Vectors, free: KnownVectors) -> RescoredResult:
        """The route on another gallery (N, D), with the free vectors that are known there."""
        searched = tuple((part, stored) for part, _ in self.searched)
        return replace(self, searched=searched, free_gallery=free.vectors, free_rows=free.rows)

    def first_answers(self, truth: GroundTruth) -> Rows:
        """(Q, k) the gallery rows that may be re-scored, nearest first; -1: none."""
        gallery = self.searched[0][1]
        first = nearest_rows(truth, self.queries, gallery, (self.candidates,), map_k=1)
        return first.rows[:, : self.candidates]

    def share_known(self, truth: GroundTruth) -> float:
        """The share, 0 to 1, of the first answers whose free vector is known."""
        if self.free_rows is None:
            return 1.0
        found = self.first_answers(truth)
        found = found[found >= 0]
        return float(np.isin(found, self.free_rows).mean()) if len(found) else 1.0

    def retrieval(self, truth: GroundTruth, ks: tuple[int, ...], map_k: int = MAP_K) -> Retrieval:
        """hit@k and mAP of its re-scored answers."""
        gallery = self.searched[0][1]
        first = nearest_rows(truth, self.queries, gallery, (*ks, self.candidates), map_k)
        return evaluate_neighbours(truth, self._rescored(first, self.free_queries), ks, map_k)

    def compare(
        self,
        truth: GroundTruth,
        old: Vectors,
        stored: Vectors,
        policy: Policy,
        today: TodayAnswers | None = None,
    ) -> GroupResult:
        """Compare with old queries (Q, D), as ``verify --rescore`` does with as many passes."""
        embeddings = PairedEmbeddings(
            old_queries=old,
            new_queries=self.queries,
            old_gallery=stored,
            new_free=self.free_queries,
            old_free=None if today is None else today.queries,
        )
        return compare(
            DECIDING_GROUP, truth, embeddings, policy, rescore=self._answers, today=today
        )

    def select_queries(self, mask: Bools) -> RescoredResult:
        """The route with only the queries of ``mask`` (Q,)."""
        free = self.free_queries[mask]
        searched = tuple((part[mask], gallery) for part, gallery in self.searched)
        return replace(self, queries=self.queries[mask], searched=searched, free_queries=free)

    def _answers(self, first: Neighbours, queries: Vectors) -> RescoredAnswers:
        """Every candidate may be embedded: what is known beforehand changes nothing."""
        same = self._rescored(first, queries)
        return RescoredAnswers(cold=same, half_warm=same, warm=same, touched={})

    def _rescored(self, first: Neighbours, queries: Vectors) -> Neighbours:
        """The first answers of queries with these free vectors (Q, F), in their new order."""
        candidates = first.rows[:, : self.candidates]
        rows = np.arange(len(self.free_gallery)) if self.free_rows is None else self.free_rows
        known = KnownVectors(rows=rows, vectors=self.free_gallery)
        free = known.cosines(queries, candidates)
        rule = rule_without_labels(first.scores[:, : self.candidates], free, USUAL_WEIGHT)
        return rescore(first, free, rule).of(first)


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFitSelector:
    """Chooses among a route's variants by hit@1 on the choosing queries of each fold.

    A query is measured in one fold.
    """

    truth: GroundTruth
    folds: tuple[Fold, ...]

    def select(self, variants: Iterable[Variant]) -> Selection:
        """The first variant with the most hits, for each fold; variants are tried one by one."""
        best = self._best(variants, range(len(self._choosing)))
        return tuple(best[fold] for fold in range(len(self._choosing)))

    def fixed(self, variant: Variant) -> Selection:
        """The selection where there is nothing to choose."""
        return (variant,) * len(self._choosing)

    def refine(
        self, selection: Selection, variants_of: Callable[[Variant], Iterable[Variant]]
    ) -> Selection:
        """Each fold chooses among the variants that its own choice leads to."""
        best: dict[int, Variant] = {}
        for variant in dict.fromkeys(selection):
            folds = [fold for fold, choice in enumerate(selection) if choice is variant]
            best |= self._best(variants_of(variant), folds)
        return tuple(best[fold] for fold in range(len(selection)))

    def result(self, name: str, selection: Selection, *, rewritten: float = 0.0) -> RouteResult:
        """The route: each fold's measured queries, with the fold's choice."""
        queries = np.full_like(selection[-1].queries, np.nan)
        choices = list(zip(self.folds, selection, strict=False))
        for (_, measured), variant in choices:
            queries[measured] = variant.queries[measured]
        return RouteResult(
            name=name,
            queries=queries,
            searched=tuple((measured, variant.gallery) for (_, measured), variant in choices),
            rewritten=rewritten,
            variant=selection[-1],
        )

    @cached_property
    def _choosing(self) -> list[Bools]:
        """(Q,) the queries behind each choice: those with a relevant row."""
        has_match = self.truth.has_match()
        choosing = [queries & has_match for queries, _ in self.folds]
        return [*choosing, np.logical_or.reduce(choosing)]

    def _best(self, variants: Iterable[Variant], folds: Sequence[int]) -> dict[int, Variant]:
        """The first best variant of each of the folds; its seconds include the search."""
        start, best = time.monotonic(), dict[int, tuple[int, Variant]]()
        for variant in counted(variants, "trying variants of a route"):
            hit1 = retrieval(self.truth, variant.queries, variant.gallery, (1,), map_k=1).hit1
            for fold in folds:
                hits = int((hit1 & self._choosing[fold]).sum())
                if fold not in best or hits > best[fold][0]:
                    best[fold] = hits, variant
        spent = time.monotonic() - start
        timed = {
            variant: replace(variant, seconds=variant.seconds + spent)
            for variant in dict.fromkeys(variant for _, variant in best.values())
        }
        return {fold: timed[variant] for fold, (_, variant) in best.items()}
