"""Every route from the deployed gallery to the new backbone, tried on features that are at hand.

A route ends in query features, or in a gallery that is rewritten too. Heads are trained by
``train.train`` on ready backbone features; nothing here reads an image. What a route leaves open (a
weight, a ridge strength) is chosen on some classes and judged on others.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors, as_rows
from compatctl.core.fusion import fuse_rows
from compatctl.core.hash_order import hash_key
from compatctl.data import Dataset
from compatctl.evaluation.clusters import columns_of, resampling_units
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.ignored_rows import shared_columns, with_ignored_rows
from compatctl.migration.adapters import KINDS, iter_adapters
from compatctl.migration.selection import (
    CrossFitSelector,
    Fold,
    RouteResult,
    Selection,
    Variant,
    map_selection,
)
from compatctl.progress import Progress, silent
from compatctl.recipe import Junction, Objective, Recipe

if TYPE_CHECKING:
    from compatctl.train import Features, Reference, TrainResult

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHARES = (0.25, 0.5, 0.75, 1.0)
SCALE = 16.0
"""Of the free model's softmax, where the recipe has none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteInputs:
    """What the routes start from.

    ``data``: items of the split ``train`` train, ``validation`` queries choose among a recipe's
    trials. ``reference``: the deployed gallery, whose every item has its image in ``data``, and the
    deployed encoder's features of all other items that are used. ``features``: what the new
    backbone makes of all of them.
    """

    data: Dataset
    reference: Reference
    recipe: Recipe
    base: Path
    features: Features
    asked: Rows
    """(Q,) rows of ``data`` that query"""
    ignore_same: tuple[str, ...] = ()
    """Columns whose value a gallery item of the query's label may not share, or does not count"""
    cluster: tuple[str, ...] = ()
    """Columns by whose values queries are resampled, besides their classes"""

    @cached_property
    def gallery(self) -> Rows:
        """(G,) rows of the data, in the order of the reference."""
        return as_rows(self.data.row_of[item] for item in self.reference.gallery_ids)

    @cached_property
    def truth(self) -> GroundTruth:
        """Queries and gallery in numbers."""
        names: dict[str, int] = {}
        for label in sorted({*(self.data.labels[i] for i in self.asked), *self._labels}):
            names[label] = len(names)
        labels = as_rows(names[self.data.labels[i]] for i in self.asked)
        units = resampling_units(labels, columns_of(self.data, self.asked, self.cluster))
        known = GroundTruth(
            classes=units.classes,
            unit=units.unit,
            query_labels=labels,
            gallery_labels=as_rows(names[label] for label in self._labels),
            self_row=as_rows(self.reference.row_of.get(self.data.ids[i], -1) for i in self.asked),
        )
        shared = shared_columns(self.data, self.ignore_same, self.asked, self.gallery)
        return with_ignored_rows(known, shared)

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.reference.gallery_labels

    @cached_property
    def pairs(self) -> Rows:
        """(N,) rows that both models may learn from each other by: the gallery's items and the
        training items, but no item that asks, nor one whose image has the bytes of one that does.
        """
        training = as_rows(i for i, item in enumerate(self.data.items) if item.split == "train")
        rows = np.setdiff1d(np.union1d(training, self.gallery), self.asked)
        asked = {self.data.digest(int(row)) for row in self.asked}
        return as_rows(row for row in rows if self.data.digest(int(row)) not in asked)

    def old(self, rows: Rows) -> Vectors:
        """(n, D) the deployed model's features of rows of the data."""
        found, _ = self.reference.old_features([self.data.ids[int(row)] for row in rows])
        return found

    def new(self, trained: TrainResult, rows: Rows) -> Vectors:
        """(n, D) a trained model's features of rows of the data."""
        return self.features.embed(trained.network, self.data, rows.tolist())

    def has_match(self) -> Bools:
        """(Q,) whether the gallery holds another item of the query's class, which counts."""
        truth = self.truth
        sizes = np.bincount(truth.gallery_labels, minlength=int(truth.query_labels.max()) + 1)
        left = sizes[truth.query_labels] - (truth.self_row >= 0)
        for query, row in () if truth.ignored is None else truth.ignored.blocks():
            left -= np.bincount(query[truth.self_row[query] != row], minlength=len(left))
        return np.asarray(left > 0)


def measure(
    ground: RouteInputs,
    folds: Sequence[Fold],
    progress: Progress = silent,
    baselines: bool = False,
) -> list[RouteResult]:
    """Try every route. ``keep`` (old queries) is the first, ``re-embed`` (the ceiling) the second.

    ``baselines``: what a result stands beside, too.

    Raises:
        InputError: see ``train.train``.
    """
    stored = ground.reference.gallery_features
    pick = CrossFitSelector(has_match=ground.has_match(), truth=ground.truth, folds=tuple(folds))
    old = Variant(queries=ground.old(ground.asked), gallery=stored, encoders=("old",))
    heads = pick(_heads(ground, progress))
    tuned = fit(ground, ground.recipe, ground.reference, progress).option(stored)
    fuse = pick(fusions(old, tuned))
    bridge = pick.refine(heads, lambda head: bridges(ground, head, progress))
    hedged = pick.refine(bridge, lambda one: fusions(old, one))
    lift = pick.refine(heads, lambda head: lifts(ground, head, progress))
    best = pick.refine(fuse, lambda one: embedding(tuned, one))
    again = [(share, map_selection(best, backfilled(ground, share))) for share in SHARES]
    found = [
        pick.measured("keep", pick.fixed(old)),
        pick.measured("re-embed", heads, rewritten=1.0),
        pick.measured("finetune", pick.fixed(tuned)),
        pick.measured("fuse", fuse),
        pick.measured("bridge", bridge),
        pick.measured("bridge + fuse", hedged),
        pick.measured("lift", lift, rewritten=1.0),
        *(pick.measured(f"backfill {s:.0%}", one, rewritten=s) for s, one in again),
    ]
    return found + (_baselines(ground, pick, old, heads, progress) if baselines else [])


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A trained model's features of the queries (Q, D) and of the gallery (G, D)."""

    model: TrainResult
    recipe: Recipe
    queries: Vectors
    gallery: Vectors
    seconds: float

    def option(self, searched: Vectors, setting: str = "") -> Variant:
        """Its queries on a gallery (G, D)."""
        return Variant(
            queries=self.queries,
            gallery=searched,
            setting=setting,
            made=self.gallery,
            trained=self.model,
            recipe=self.recipe,
            seconds=self.seconds,
        )


def _heads(ground: RouteInputs, progress: Progress) -> list[Variant]:
    """The model without a gallery, with the recipe's head and a linear one, re-embedding all."""
    recipe = free_recipe(ground.recipe, ground.reference.dim)
    found = []
    for one in dict.fromkeys((recipe.junction, Junction(kind="linear"))):
        head = fit(ground, replace(recipe, junction=one), None, progress)
        found.append(head.option(head.gallery, f"{one.kind} head"))
    return found


def fit(
    ground: RouteInputs,
    recipe: Recipe,
    reference: Reference | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Train by ``recipe`` against ``reference``; None: a model that knows no gallery.

    Raises:
        InputError: see ``train.train``.
    """
    from compatctl.train import train

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        model = train(
            recipe=recipe,
            base=ground.base,
            data=ground.data,
            reference=reference,
            work=Path(work),
            features=ground.features,
            progress=progress,
        )
    return Fitted(
        model=model,
        recipe=recipe,
        queries=ground.new(model, ground.asked),
        gallery=ground.new(model, ground.gallery),
        seconds=time.monotonic() - began,
    )


def free_recipe(recipe: Recipe, dim: int) -> Recipe:
    """The same backbone, head, data and epochs with no thought of the gallery."""
    objective = Objective(
        frame=("free",),
        lambda_=(1.0,),
        scale=recipe.objective.scale or SCALE,
        dim=dim,
        anchors=None,
    )
    return replace(recipe, objective=objective)


def fusions(old: Variant, new: Variant) -> Iterator[Variant]:
    """Old and new queries in one, by weight. What ``old`` searches is what its model made of the
    items, and the old part of what the fused one would make.
    """
    for weight in WEIGHTS:
        yield replace(
            new,
            setting=f"weight {weight}",
            queries=fuse_rows(old.queries, new.queries, weight),
            made=None if new.made is None else fuse_rows(old.gallery, new.made, weight),
            encoders=("old", "new"),
        )


def bridges(
    ground: RouteInputs, head: Variant, progress: Progress = silent, kinds: Sequence[str] = KINDS
) -> Iterator[Variant]:
    """The free model's queries through every map to the old features; labels are not looked at."""
    old, new = _pairs(ground, head)
    seed, gallery = ground.recipe.seed, ground.reference.gallery_features
    for name, adapter in iter_adapters(new, old, kinds=kinds, seed=seed, progress=progress):
        queries = adapter(head.queries)
        yield replace(head, setting=name, queries=queries, gallery=gallery, made=None)


def lifts(ground: RouteInputs, head: Variant, progress: Progress = silent) -> Iterator[Variant]:
    """The stored vectors through every map to the free model's features, from the same pairs."""
    old, new = _pairs(ground, head)
    seed, gallery = ground.recipe.seed, ground.reference.gallery_features
    for name, adapter in iter_adapters(old, new, seed=seed, progress=progress):
        yield replace(head, setting=name, gallery=adapter(gallery), made=None)


def embedding(tuned: Variant, fuse: Variant) -> tuple[Variant, Variant]:
    """The routes that leave the gallery as it is and whose model can embed items, told apart."""
    return (
        replace(tuned, setting="of finetune"),
        replace(fuse, setting=f"of fuse, {fuse.setting}"),
    )


def backfilled(ground: RouteInputs, share: float) -> Callable[[Variant], Variant]:
    """A model on the gallery of which it re-embeds a share, by the hash of the id."""
    keys = [hash_key(item) for item in ground.reference.gallery_ids]
    place = np.empty(len(keys), np.int64)
    place[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    again = (place < round(share * len(keys)))[:, None]

    def change(one: Variant) -> Variant:
        assert one.made is not None
        return replace(one, gallery=np.where(again, one.made, one.gallery))

    return change


def _baselines(
    ground: RouteInputs, pick: CrossFitSelector, old: Variant, heads: Selection, progress: Progress
) -> list[RouteResult]:
    """Naive swap, linear maps alone, SLERP, and BCT's influence loss."""
    stored = ground.reference.gallery_features
    plain = replace(ground.recipe.objective, frame=("prototypes",), lambda_=(1.0,), anchors=None)
    bct = fit(ground, replace(ground.recipe, objective=plain), ground.reference, progress)
    turned = pick.refine(heads, lambda one: bridges(ground, one, kinds=("orthogonal",)))
    ridges = pick.refine(heads, lambda one: bridges(ground, one, kinds=("ridge", "low-rank")))

    def half(one: Variant) -> Variant:
        queries = fuse_rows(old.queries, one.queries, 0.5)
        return replace(one, queries=queries, encoders=("old", "new"))

    return [
        pick.measured("naive swap", map_selection(heads, lambda one: replace(one, gallery=stored))),
        pick.measured("procrustes", turned),
        pick.measured("ridge", ridges),
        pick.measured("procrustes + SLERP", map_selection(turned, half)),
        pick.measured("prototypes", pick.fixed(bct.option(stored))),
    ]


@lru_cache(maxsize=2)
def _pairs(ground: RouteInputs, head: Variant) -> tuple[Vectors, Vectors]:
    """(N, D) old and new features of the pairs: each image is read for its digest, so bridges and
    lifts of the same head, of which there are two, share them."""
    assert head.trained is not None
    return ground.old(ground.pairs), ground.new(head.trained, ground.pairs)
