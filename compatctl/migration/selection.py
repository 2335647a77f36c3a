"""Which way a route is gone: options, chosen by some queries and measured with others.

For each fold and for all queries that choose there is one choice, made apart from the others. Where
one choice leads to further options (a head, then a map of its feature, then a weight), each choice
goes on with its own: no query that is judged has chosen anything that it is measured with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.arrays import Bools, Vectors
from compatctl.core.measurements import DECIDING_GROUP, GroupEvidence
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval
from compatctl.evaluation.comparison import GroupResult, PairedEmbeddings, compare
from compatctl.evaluation.exact_retrieval import MAP_K, recall_ks, retrieval, retrieval_by_part
from compatctl.evaluation.ground_truth import GroundTruth

if TYPE_CHECKING:
    from compatctl.recipe import Recipe
    from compatctl.train import TrainResult

Fold = tuple[Bools, Bools]
"""(Q,) queries that choose, and (Q,) queries that are judged by the choice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One way that a route can be gone; unit rows."""

    queries: Vectors
    """(Q, D)"""
    gallery: Vectors
    """(G, D) what they search"""
    setting: str = ""
    """What tells it from the route's other options"""
    encoders: tuple[str, ...] = ("new",)
    """Which backbones a query runs"""
    made: Vectors | None = None
    """(G, D) what the query model makes of the gallery's items; None: not at hand"""
    trained: TrainResult | None = None
    recipe: Recipe | None = None
    """What finetune runs for it; None where nothing is trained"""
    seconds: float = 0.0
    """Training, fitting and choosing, beyond one pass of the backbone"""


Selection = tuple[Variant, ...]
"""The choice of each fold and, as the last, that of all queries that choose."""


def map_selection(chosen: Selection, change: Callable[[Variant], Variant]) -> Selection:
    """Every choice changed, equal ones once."""
    changed = {one: change(one) for one in dict.fromkeys(chosen)}
    return tuple(changed[one] for one in chosen)


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteResult:
    """One route. ``queries`` (Q, D) are each judged by a choice that did not look at them.

    ``searched``: which of them (Q,) search which gallery (G, D), a part a fold; ``rewritten``: the
    share of the stored vectors that is replaced. ``setting`` and all after it are of the choice by
    all queries that choose, as a ``Variant`` has them.
    """

    name: str
    queries: Vectors
    searched: tuple[tuple[Bools, Vectors], ...]
    rewritten: float
    encoders: tuple[str, ...]
    setting: str
    made: Vectors | None
    seconds: float
    recipe: Recipe | None

    def retrieval(self, truth: GroundTruth, ks: tuple[int, ...], map_k: int = MAP_K) -> Retrieval:
        """recall@k and mAP of its queries."""
        return retrieval_by_part(truth, self.queries, self.searched, ks, map_k)

    def trial(
        self, truth: GroundTruth, old: Vectors, stored: Vectors, policy: Policy
    ) -> GroupResult:
        """Beside old queries (Q, D) on the stored gallery (G, D), as ``verify`` puts it; where the
        gallery is rewritten, without the inequalities, which are about the stored vectors."""
        if self.rewritten == 0.0:
            embeddings = PairedEmbeddings(
                old_queries=old, new_queries=self.queries, old_gallery=stored, new_gallery=None
            )
            return compare(DECIDING_GROUP, truth, embeddings, policy)
        evidence = GroupEvidence(
            name=DECIDING_GROUP,
            classes=truth.classes,
            unit=truth.unit,
            old_old=retrieval(truth, old, stored, recall_ks(policy)),
            new_old=self.retrieval(truth, recall_ks(policy)),
        )
        return GroupResult(evidence=evidence, kept=np.ones(len(self.queries), dtype=bool))

    def asked(self, rows: Bools) -> RouteResult:
        """The route with no other queries than these (Q,)."""
        parts = tuple((part[rows], gallery) for part, gallery in self.searched)
        return replace(self, queries=self.queries[rows], searched=parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFitSelector:
    """Chooses among a route's options by recall@1 on some queries, for others.

    ``has_match`` (Q,): queries with a match to find. ``folds``: each query that is measured is
    judged in one of them.
    """

    truth: GroundTruth
    has_match: Bools
    folds: tuple[Fold, ...]

    def __call__(self, options: Iterable[Variant]) -> Selection:
        """The first of those with most right answers; options are looked at one by one."""
        best = self._best(options, range(len(self._choosing)))
        return tuple(best[at] for at in range(len(self._choosing)))

    def fixed(self, variant: Variant) -> Selection:
        """Where there is nothing to choose."""
        return (variant,) * len(self._choosing)

    def refine(self, before: Selection, then: Callable[[Variant], Iterable[Variant]]) -> Selection:
        """Each choice goes on with the options that its own one leads to."""
        found: dict[int, Variant] = {}
        for option in dict.fromkeys(before):
            mine = [at for at, one in enumerate(before) if one is option]
            found |= self._best(then(option), mine)
        return tuple(found[at] for at in range(len(before)))

    def measured(self, name: str, chosen: Selection, *, rewritten: float = 0.0) -> RouteResult:
        """The route: the queries that each fold judges, by the fold's choice."""
        queries = np.full_like(chosen[-1].queries, np.nan)
        for (_, judged), option in zip(self.folds, chosen, strict=False):
            queries[judged] = option.queries[judged]
        return RouteResult(
            name=name,
            queries=queries,
            searched=tuple(
                (judged, option.gallery)
                for (_, judged), option in zip(self.folds, chosen, strict=False)
            ),
            rewritten=rewritten,
            encoders=chosen[-1].encoders,
            setting=chosen[-1].setting,
            made=chosen[-1].made,
            seconds=chosen[-1].seconds,
            recipe=chosen[-1].recipe,
        )

    @cached_property
    def _choosing(self) -> list[Bools]:
        """(Q,) the queries behind each choice."""
        choosing = [one & self.has_match for one, _ in self.folds]
        return [*choosing, np.logical_or.reduce(choosing)]

    def _best(self, options: Iterable[Variant], mine: Sequence[int]) -> dict[int, Variant]:
        """For some of the choices: their first best option. What this took is added to it."""
        began, best = time.monotonic(), dict[int, tuple[int, Variant]]()
        choosing = self._choosing
        for option in options:
            right = retrieval(self.truth, option.queries, option.gallery, (1,), map_k=1).hit1
            for at in mine:
                found = int((right & choosing[at]).sum())
                if at not in best or found > best[at][0]:
                    best[at] = found, option
        spent = time.monotonic() - began
        timed = {
            one: replace(one, seconds=one.seconds + spent)
            for one in dict.fromkeys(option for _, option in best.values())
        }
        return {at: timed[option] for at, (_, option) in best.items()}
