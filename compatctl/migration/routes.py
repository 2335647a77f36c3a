"""Every route from the deployed gallery to the new backbone, tried on features that are at hand.

A route ends in query features, and in some routes in a rewritten gallery. ``train.train`` trains
heads on extracted backbone features; images are read only for their digests. What a route leaves
open (a weight, a ridge strength) is chosen on some classes and measured on others.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.adapters import fuse_rows
from compatctl.core.arrays import Bools, Rows, Vectors, as_rows
from compatctl.core.hash_order import hash_order
from compatctl.data import Dataset, Judgments, Reference
from compatctl.evaluation.clusters import columns_of
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.ignored_rows import shared_columns, with_ignored_rows
from compatctl.migration.adapters import KINDS, iter_adapters
from compatctl.migration.selection import (
    CrossFitSelector,
    Fold,
    RescoredResult,
    RouteResult,
    Selection,
    Variant,
    map_selection,
)
from compatctl.progress import Progress, silent
from compatctl.recipe import Junction, Recipe

if TYPE_CHECKING:
    from compatctl.train import Features, TrainResult

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Route(StrEnum):
    """A route's name, as ``plan`` shows it. ``REEMBED`` is the ceiling."""

    KEEP = "keep"
    REEMBED = "re-embed"
    FINETUNE = "finetune"
    FUSE = "fuse"
    LAZY = "lazy"
    BRIDGE = "bridge"
    BRIDGE_FUSE = "bridge + fuse"
    LIFT = "lift"
    BACKFILL_25 = "backfill 25%"
    BACKFILL_50 = "backfill 50%"
    BACKFILL_75 = "backfill 75%"
    BACKFILL_100 = "backfill 100%"


NEEDS_OLD_MODEL = (Route.FUSE, Route.BRIDGE_FUSE)
"""Routes whose queries run the old model, too."""

BACKFILL_SHARES = {
    Route.BACKFILL_25: 0.25,
    Route.BACKFILL_50: 0.5,
    Route.BACKFILL_75: 0.75,
    Route.BACKFILL_100: 1.0,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanningInputs(ABC):
    """What the routes start from, whatever the new model is.

    In ``data``, items of the split ``train`` train or are pairs. ``reference`` is the part of the
    deployed gallery whose items are in ``data``, with the deployed encoder's features of all other
    items.
    """

    data: Dataset
    reference: Reference
    query_rows: Rows
    """(Q,) rows of ``data``"""
    ignore_same: tuple[str, ...] = ()
    """Columns: a gallery item that shares the query's value is ignored"""
    old_model_gone: bool = False
    """No query can run the old model: routes that do are left out"""
    rescored: bool = False
    """The store re-scores its answers: lift, which compares with the index alone, is left out"""
    judged: Judgments | None = None
    """What is relevant to the queries; None: items of their labels"""
    cluster: tuple[str, ...] = ()
    """Columns by whose values queries are resampled, in addition to their classes"""
    whole: Reference | None = None
    """The whole deployed gallery, as finetune sees it; None: ``reference`` is all of it"""
    kinds: tuple[str, ...] = KINDS
    """Kinds of adapters that are tried"""
    pair_share: float = 0.0
    """Share of the gallery, by the hash of the id, whose items are pairs beside training items"""

    @property
    def trained_against(self) -> Reference:
        """What heads are trained against."""
        return self.reference if self.whole is None else self.whole

    @cached_property
    def gallery_rows(self) -> Rows:
        """(G,) rows of the data, in the order of the reference."""
        return as_rows(self.data.row_of[item] for item in self.reference.gallery_ids)

    @cached_property
    def truth(self) -> GroundTruth:
        """What is relevant to which query."""
        queries = self.data.take(self.query_rows)
        truth = GroundTruth.from_labels(
            query_ids=queries.ids,
            query_labels=queries.labels,
            gallery_ids=self.reference.gallery_ids,
            gallery_labels=self.reference.gallery_labels,
            cluster=columns_of(self.data, self.query_rows, self.cluster),
            judged=self.judged,
        )
        shared = shared_columns(self.data, self.ignore_same, self.query_rows, self.gallery_rows)
        return with_ignored_rows(truth, shared)

    @cached_property
    def pair_rows(self) -> Rows:
        """(N,) rows that adapters are fitted on: training items, and ``pair_share`` of the gallery.

        Queries are excluded, and so is every item whose image is byte-identical to a query's.
        """
        training = as_rows(i for i, item in enumerate(self.data.items) if item.split == "train")
        others = self.gallery_rows[_first_by_hash(self, self.pair_share)]
        rows = np.setdiff1d(np.union1d(training, others), self.query_rows)
        digests = {self.data.digest(int(row)) for row in self.query_rows}
        return as_rows(row for row in rows if self.data.digest(int(row)) not in digests)

    def old_features(self, rows: Rows) -> Vectors:
        """(n, D) the deployed model's features of rows of the data."""
        features, _ = self.reference.old_features([self.data.ids[int(row)] for row in rows])
        return features

    @property
    @abstractmethod
    def seed(self) -> int:
        """The seed of trained adapters."""

    @property
    @abstractmethod
    def views(self) -> int:
        """In how many variants a training item passes through the new model."""

    @abstractmethod
    def features_of(self, head: Variant, rows: Rows) -> Vectors:
        """(n, F) the new model's features, with a head, of rows of the data."""

    @cached_property
    def old_queries(self) -> Variant:
        """The deployed model on its own gallery."""
        return Variant(
            queries=self.old_features(self.query_rows),
            gallery=self.reference.gallery_features,
            encoders=("old",),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteInputs(PlanningInputs):
    """A backbone whose heads are trained; ``features`` are the backbone's, of all items.

    ``validation`` queries choose among a recipe's trials.
    """

    recipe: Recipe
    base: Path
    features: Features

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def views(self) -> int:
        return self.recipe.augmentation.views

    def new_features(self, trained: TrainResult, rows: Rows) -> Vectors:
        """(n, D) a trained model's features of rows of the data."""
        return self.features.embed(trained.network, self.data, rows.tolist())

    def features_of(self, head: Variant, rows: Rows) -> Vectors:
        assert head.trained is not None
        return self.new_features(head.trained, rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class FreeModels:
    """How variants are selected, and the choice among models trained without the gallery."""

    selector: CrossFitSelector
    heads: Selection
    own: Variant
    """The one with the recipe's head, as in the ``free`` output of a model"""


def train_free_models(
    inputs: RouteInputs, folds: Sequence[Fold], progress: Progress = silent
) -> FreeModels:
    """Train without the gallery, with the recipe's head and a linear one; everything re-embedded.

    Raises:
        InputError: see ``train.train``.
    """
    selector = CrossFitSelector(truth=inputs.truth, folds=tuple(folds))
    variants = free_variants(inputs, progress)
    return FreeModels(selector=selector, heads=selector.select(variants), own=variants[0])


def measure_routes(
    inputs: RouteInputs, free: FreeModels, progress: Progress = silent
) -> list[RouteResult]:
    """Try every route. ``KEEP`` (old queries) is the first, ``REEMBED`` (the ceiling) the second.

    Raises:
        InputError: see ``train.train``.
    """
    old, stored = inputs.old_queries, inputs.reference.gallery_features
    selector, heads = free.selector, free.heads
    tuned = train_model(inputs, inputs.recipe, inputs.trained_against, progress)
    tuned = replace(tuned, gallery=stored)
    fused = selector.select(fused_variants(old, tuned))
    bridged = selector.refine(heads, lambda head: bridge_variants(inputs, head, progress))
    bridged_fused = selector.refine(bridged, lambda variant: fused_variants(old, variant))
    lifted = selector.refine(heads, lambda head: lift_variants(inputs, head, progress))
    backfills = partial(backfill_variants, tuned, old_model_gone=inputs.old_model_gone)
    best = selector.refine(fused, backfills)
    results = [
        selector.result(Route.KEEP, selector.fixed(old)),
        selector.result(Route.REEMBED, heads, rewritten=1.0),
        selector.result(Route.FINETUNE, selector.fixed(tuned)),
        selector.result(Route.FUSE, fused),
        selector.result(Route.BRIDGE, bridged),
        selector.result(Route.BRIDGE_FUSE, bridged_fused),
        selector.result(Route.LIFT, lifted, rewritten=1.0),
    ]
    for route, share in BACKFILL_SHARES.items():
        mixed = map_selection(best, partial(backfilled, rows=_first_by_hash(inputs, share)))
        results.append(selector.result(route, mixed, rewritten=share))
    if inputs.recipe.free_head:
        retrieved = selector.result(Route.FINETUNE, selector.fixed(tuned))
        results.append(rescored_route(retrieved, free.own))
    return [result for result in results if result.name not in left_out(inputs)]


def left_out(inputs: PlanningInputs) -> set[str]:
    """Routes that cannot be taken here."""
    return {
        *(NEEDS_OLD_MODEL if inputs.old_model_gone else ()),
        *((Route.LIFT,) if inputs.rescored else ()),
    }


def rescored_route(retrieved: RouteResult, own: Variant) -> RescoredResult:
    """``retrieved`` finds the first answers on the stored gallery, and ``own`` ranks them again."""
    variant = retrieved.variant
    return RescoredResult(
        name=Route.LAZY,
        queries=retrieved.queries,
        searched=retrieved.searched,
        rewritten=0.0,
        variant=replace(variant, seconds=variant.seconds + own.seconds),
        free_queries=own.queries,
        free_gallery=own.gallery,
    )


def train_model(
    inputs: RouteInputs,
    recipe: Recipe,
    reference: Reference | None = None,
    progress: Progress = silent,
) -> Variant:
    """Train by ``recipe`` against ``reference`` (None: without a gallery), everything re-embedded.

    Raises:
        InputError: see ``train.train``.
    """
    from compatctl.train import train

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        model = train(
            recipe=recipe,
            base=inputs.base,
            data=inputs.data,
            reference=reference,
            work=Path(work),
            features=inputs.features,
            progress=progress,
        )
    gallery = inputs.new_features(model, inputs.gallery_rows)
    return Variant(
        queries=inputs.new_features(model, inputs.query_rows),
        gallery=gallery,
        item_features=gallery,
        trained=model,
        recipe=recipe,
        seconds=time.monotonic() - start,
    )


def free_variants(inputs: RouteInputs, progress: Progress = silent) -> list[Variant]:
    """The model trained without the gallery, with each head, everything re-embedded."""
    recipe = inputs.recipe.without_gallery(inputs.reference.dim)
    heads = dict.fromkeys((recipe.junction, Junction(kind="linear")))
    recipes = {f"{head.kind} head": replace(recipe, junction=head) for head in heads}
    return [
        replace(train_model(inputs, recipe, None, progress), setting=setting)
        for setting, recipe in recipes.items()
    ]


def fused_variants(old: Variant, new: Variant) -> Iterator[Variant]:
    """Fused old and new queries, by weight, and what the fused model would make of the items.

    ``old.gallery`` must be the old model's own features of the items.
    """
    for weight in WEIGHTS:
        yield replace(
            new,
            setting=f"weight {weight}",
            queries=fuse_rows(old.queries, new.queries, weight),
            item_features=None
            if new.item_features is None
            else fuse_rows(old.gallery, new.item_features, weight),
            encoders=("old", "new"),
        )


def bridge_variants(
    inputs: PlanningInputs, head: Variant, progress: Progress = silent
) -> Iterator[Variant]:
    """The free model's queries through every adapter to the old features, fitted without labels."""
    old, new = _pair_features(inputs, head)
    seed, gallery = inputs.seed, inputs.reference.gallery_features
    for name, adapter in iter_adapters(new, old, kinds=inputs.kinds, seed=seed, progress=progress):
        queries = adapter(head.queries)
        yield replace(head, setting=name, queries=queries, gallery=gallery, item_features=None)


def lift_variants(
    inputs: PlanningInputs, head: Variant, progress: Progress = silent
) -> Iterator[Variant]:
    """The stored vectors through every adapter to the free model's features, on the same pairs."""
    old, new = _pair_features(inputs, head)
    seed, gallery = inputs.seed, inputs.reference.gallery_features
    for name, adapter in iter_adapters(old, new, kinds=inputs.kinds, seed=seed, progress=progress):
        yield replace(head, setting=name, gallery=adapter(gallery), item_features=None)


def backfill_variants(
    tuned: Variant, fused: Variant, *, old_model_gone: bool = False
) -> tuple[Variant, ...]:
    """The models that can embed the gallery's items, each named in its setting."""
    of_tuned = replace(tuned, setting="of finetune")
    if old_model_gone:
        return (of_tuned,)
    return of_tuned, replace(fused, setting=f"of fuse, {fused.setting}")


def backfilled(variant: Variant, rows: Bools) -> Variant:
    """The model on the gallery of which it re-embeds ``rows`` (G,)."""
    assert variant.item_features is not None
    gallery = np.where(rows[:, None], variant.item_features, variant.gallery)
    return replace(variant, gallery=gallery)


def _first_by_hash(inputs: PlanningInputs, share: float) -> Bools:
    """(G,) the first ``share`` of the gallery by the hash of the id."""
    ids = inputs.reference.gallery_ids
    first = set(hash_order(ids)[: round(share * len(ids))])
    return np.array([item in first for item in ids], bool)


@lru_cache(maxsize=2)
def _pair_features(inputs: PlanningInputs, head: Variant) -> tuple[Vectors, Vectors]:
    """(N, D) old and new features of the pairs. Bridge and lift of one head share them, because
    each image is read for its digest; there are two heads."""
    rows = inputs.pair_rows
    return inputs.old_features(rows), inputs.features_of(head, rows)
