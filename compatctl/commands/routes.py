"""Every route from the deployed gallery to the new backbone, tried on features that are at hand.

A route ends in query features, or in a gallery that is rewritten too. Heads are trained by
``train.train`` on ready backbone features; nothing here reads an image. What a route leaves open (a
weight, a ridge strength) is chosen on some classes and judged on others.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compatctl.commands.evaluation import as_rows
from compatctl.commands.trial import Bools, Field, Floats, Rows, retrieval
from compatctl.core.maps import STRENGTHS, Affine, Moments, low_rank, orthogonal, ridge
from compatctl.data import Dataset
from compatctl.progress import Progress, silent
from compatctl.recipe import Junction, Objective, Recipe

if TYPE_CHECKING:
    from compatctl.train import Features, Reference, Trained

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHARES = (0.25, 0.5, 0.75, 1.0)
LIFT = 0.1
"""Strength of the ridge map that lifts the stored vectors."""
SCALE = 16.0
"""Of the free model's softmax, where the recipe has none."""

Options = Mapping[str, Floats]
Fold = tuple[Bools, Bools]
"""(Q,) queries that choose, and (Q,) queries that are judged by the choice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
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

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row of the data."""
        return {item: row for row, item in enumerate(self.data.ids)}

    @cached_property
    def gallery(self) -> Rows:
        """(G,) rows of the data, in the order of the reference."""
        return as_rows(self.row_of[item] for item in self.reference.gallery_ids)

    @cached_property
    def where(self) -> Field:
        """Queries and gallery in numbers."""
        names: dict[str, int] = {}
        gallery = {item: at for at, item in enumerate(self.reference.gallery_ids)}
        for label in sorted({*(self.data.labels[i] for i in self.asked), *self._labels}):
            names[label] = len(names)
        labels = as_rows(names[self.data.labels[i]] for i in self.asked)
        return Field(
            classes=labels,
            query_labels=labels,
            gallery_labels=as_rows(names[label] for label in self._labels),
            own_row=as_rows(gallery.get(self.data.ids[i], -1) for i in self.asked),
        )

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.reference.gallery_labels

    def old(self, rows: Rows) -> Floats:
        """(n, D) the deployed model's features of rows of the data."""
        found, _ = self.reference.old_features([self.data.ids[int(row)] for row in rows])
        return found

    def new(self, trained: Trained, rows: Rows) -> Floats:
        """(n, D) a trained model's features of rows of the data."""
        return self.features.embedded(trained.network, self.data, rows.tolist())

    def counted(self) -> Bools:
        """(Q,) whether the gallery holds another item of the query's class."""
        where = self.where
        sizes = np.bincount(where.gallery_labels, minlength=int(where.query_labels.max()) + 1)
        return np.asarray(sizes[where.query_labels] - (where.own_row >= 0) > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One route. ``queries`` (Q, D) are each judged by a choice that did not look at them.

    ``gallery`` (G, D) is what they search; ``rewritten`` the share of the stored vectors that is
    replaced; ``encoders``: which backbones a query runs.
    """

    name: str
    queries: Floats
    gallery: Floats
    rewritten: float
    encoders: tuple[str, ...]
    setting: str
    """What was chosen, by all queries that choose; empty where nothing was open."""
    seconds: float
    """Training, beyond one pass of the backbone."""
    recipe: Recipe | None
    """What finetune runs for it; None where nothing is trained."""


def measure(
    ground: Ground,
    folds: Sequence[Fold],
    progress: Progress = silent,
    baselines: bool = False,
) -> list[Measured]:
    """Try every route. ``keep`` (old queries) is the first, ``re-embed`` (the ceiling) the second.

    ``baselines``: what a result stands beside, too, and lifting by one ridge map.

    Raises:
        InputError: see ``train.train``.
    """
    stored, old = ground.reference.gallery_features, ground.old(ground.asked)
    pick = Chooser(counted=ground.counted(), where=ground.where, folds=tuple(folds))
    free = _free(ground, pick, progress)
    tuned = fit(ground, ground.recipe, ground.reference, progress)
    maps = bridges(ground, free)
    bridge = pick("bridge", maps, stored, ("new",), free)
    both = ("old", "new")
    found = [
        pick("keep", {"": old}, stored, ("old",)),
        pick("re-embed", {free.head: free.queries}, free.gallery, ("new",), free, rewritten=1.0),
        pick("finetune", {"": tuned.queries}, stored, ("new",), tuned),
        pick("fuse", fused(old, tuned.queries), stored, both, tuned),
        bridge,
        pick("bridge + fuse", fused(old, maps[bridge.setting]), stored, both, free),
        *backfilled(ground, pick, tuned),
    ]
    return found + (_baselines(ground, pick, free, maps, progress) if baselines else [])


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A trained model's features of the queries (Q, D) and of the gallery (G, D)."""

    model: Trained
    recipe: Recipe
    queries: Floats
    gallery: Floats
    seconds: float

    @property
    def head(self) -> str:
        """The kind of its junction."""
        return f"{self.recipe.junction.kind} head"


def _free(ground: Ground, pick: Chooser, progress: Progress) -> Fitted:
    """The model without a gallery, with the recipe's head or a linear one: what finds more."""
    recipe = free_recipe(ground.recipe, ground.reference.dim)
    heads = dict.fromkeys((recipe.junction, Junction()))
    found = [fit(ground, replace(recipe, junction=one), None, progress) for one in heads]
    return max(found, key=lambda one: pick.right(one.queries, one.gallery))


def fit(
    ground: Ground,
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Chooser:
    """Chooses among a route's options by recall@1 on some queries, for others."""

    where: Field
    counted: Bools
    folds: tuple[Fold, ...]

    def __call__(
        self,
        name: str,
        options: Options,
        gallery: Floats,
        encoders: tuple[str, ...],
        model: Fitted | None = None,
        *,
        rewritten: float = 0.0,
    ) -> Measured:
        """The route, the queries of each fold by what the fold's other queries chose."""
        right = {
            one: retrieval(self.where, queries, gallery, (1,), map_k=1).hit1 if len(options) > 1
            else self.counted
            for one, queries in options.items()
        }  # fmt: skip
        made = np.full_like(next(iter(options.values())), np.nan)
        for choosing, judged in self.folds:
            made[judged] = options[self._best(right, choosing)][judged]
        return Measured(
            name=name,
            queries=made,
            gallery=gallery,
            rewritten=rewritten,
            encoders=encoders,
            setting=self._best(right, self.choosing),
            seconds=model.seconds if model else 0.0,
            recipe=model.recipe if model else None,
        )

    @property
    def choosing(self) -> Bools:
        """(Q,) every query that chooses in some fold."""
        found: Bools = np.logical_or.reduce([one for one, _ in self.folds])
        return found

    def right(self, queries: Floats, gallery: Floats) -> int:
        """How many of the queries that choose find their class first."""
        hit = retrieval(self.where, queries, gallery, (1,), map_k=1).hit1
        return int((hit & self.counted & self.choosing).sum())

    def _best(self, right: Mapping[str, Bools], choosing: Bools) -> str:
        """The option with most right answers; the first of equals."""
        return max(right, key=lambda one: int((right[one] & self.counted & choosing).sum()))


def free_recipe(recipe: Recipe, dim: int) -> Recipe:
    """The same backbone, head, data and epochs with no thought of the gallery."""
    objective = Objective(
        frame=("free",), lambda_=(1.0,), scale=recipe.objective.scale or SCALE, dim=dim
    )
    return replace(recipe, objective=objective)


def fused(old: Floats, new: Floats) -> dict[str, Floats]:
    """Unit means of old and new queries (Q, D), by the weight of the new."""
    return {f"weight {weight}": _unit((1 - weight) * old + weight * new) for weight in WEIGHTS}


def bridges(ground: Ground, free: Fitted) -> dict[str, Floats]:
    """(Q, D) the free model's queries through every map to the old features.

    Pairs are the gallery's items and the training items; labels are not looked at.
    """
    rows = _pairs(ground)
    moments = Moments.of(ground.new(free.model, rows), ground.old(rows))
    dim = ground.reference.dim
    maps: dict[str, Affine] = {"orthogonal": orthogonal(moments)}
    for strength, one in zip(STRENGTHS, ridge(moments), strict=True):
        maps[f"ridge {strength:g}"] = one
        ranks = sorted({max(1, dim // 4), max(1, dim // 2)})
        for rank, cut in zip(ranks, low_rank(moments, one, ranks), strict=True):
            maps[f"ridge {strength:g}, rank {rank}"] = cut
    return {name: one(free.queries) for name, one in maps.items()}


def backfilled(ground: Ground, pick: Chooser, tuned: Fitted) -> list[Measured]:
    """The fine-tuned model on galleries of which it re-embeds a share, by the hash of the id."""
    keys = [sha256(item.encode()).digest() for item in ground.reference.gallery_ids]
    place = np.empty(len(keys), np.int64)
    place[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    found = []
    for share in SHARES:
        again = place < round(share * len(keys))
        gallery = np.where(again[:, None], tuned.gallery, ground.reference.gallery_features)
        name = f"backfill {share:.0%}"
        found.append(pick(name, {"": tuned.queries}, gallery, ("new",), tuned, rewritten=share))
    return found


def _baselines(
    ground: Ground, pick: Chooser, free: Fitted, maps: Options, progress: Progress
) -> list[Measured]:
    """Naive swap, linear maps alone, SLERP, BCT's influence loss, and lifting."""
    stored, old = ground.reference.gallery_features, ground.old(ground.asked)
    ridges = {name: one for name, one in maps.items() if name.startswith("ridge")}
    half = {"": _unit(old + maps["orthogonal"])}
    rows = _pairs(ground)
    moments = Moments.of(ground.old(rows), ground.new(free.model, rows))
    lifted = ridge(moments, (LIFT,))[0](stored)
    plain = replace(ground.recipe.objective, frame=("prototypes",), lambda_=(1.0,), anchors=None)
    bct = fit(ground, replace(ground.recipe, objective=plain), ground.reference, progress)
    return [
        pick("naive swap", {"": free.queries}, stored, ("new",), free),
        pick("procrustes", {"": maps["orthogonal"]}, stored, ("new",), free),
        pick("ridge", ridges, stored, ("new",), free),
        pick("procrustes + SLERP", half, stored, ("old", "new"), free),
        pick("prototypes", {"": bct.queries}, stored, ("new",), bct),
        pick("lift", {"": free.queries}, lifted, ("new",), free, rewritten=1.0),
    ]


def _pairs(ground: Ground) -> Rows:
    """Rows that both models know and that no query is judged by: the gallery's and training's."""
    training = as_rows(i for i, item in enumerate(ground.data.items) if item.split == "train")
    return np.setdiff1d(np.union1d(training, ground.gallery), ground.asked)


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
