"""The routes of a model that exists: adapters, and a head that is trained on its embeddings."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compatctl.core.arrays import Rows, Vectors
from compatctl.migration.routes import (
    PlanningInputs,
    Route,
    bridge_variants,
    fused_variants,
    left_out,
    lift_variants,
    rescored_route,
)
from compatctl.migration.selection import CrossFitSelector, Fold, RouteResult, Variant
from compatctl.progress import Progress, silent
from compatctl.recipe import Recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyInputs(PlanningInputs):
    """A model that exists: ``ready`` (N, F) are its features of all items, ``sha256`` its file's.

    ``recipe``: of the head that is trained on them; None: none is.
    """

    ready: Vectors
    sha256: str
    recipe: Recipe | None = None

    @property
    def seed(self) -> int:
        return self.recipe.seed if self.recipe else 0

    @property
    def views(self) -> int:
        return 1

    def features_of(self, head: Variant, rows: Rows) -> Vectors:
        return self.ready[rows]

    def as_variant(self) -> Variant:
        """The model as it is, everything re-embedded."""
        gallery = self.ready[self.gallery_rows]
        queries = self.ready[self.query_rows]
        return Variant(queries=queries, gallery=gallery, item_features=gallery)


def measure_ready_routes(
    inputs: ReadyInputs, folds: Sequence[Fold], progress: Progress = silent
) -> list[RouteResult]:
    """Try the routes of a model that exists. ``KEEP`` is the first, ``REEMBED`` the second.

    Raises:
        InputError: see ``train.train``.
    """
    selector = CrossFitSelector(truth=inputs.truth, folds=tuple(folds))
    old, model = inputs.old_queries, inputs.as_variant()
    heads = selector.fixed(model)
    bridged = selector.refine(heads, lambda head: bridge_variants(inputs, head, progress))
    fused = selector.refine(bridged, lambda variant: fused_variants(old, variant))
    lifted = selector.refine(heads, lambda head: lift_variants(inputs, head, progress))
    first = selector.result(Route.BRIDGE, bridged)
    results = [
        selector.result(Route.KEEP, selector.fixed(old)),
        selector.result(Route.REEMBED, heads, rewritten=1.0),
        first,
        selector.result(Route.BRIDGE_FUSE, fused),
        selector.result(Route.LIFT, lifted, rewritten=1.0),
    ]
    if inputs.recipe is not None:
        tuned = train_behind(inputs, inputs.recipe, progress)
        mixed = selector.select(fused_variants(old, tuned))
        first = selector.result(Route.FINETUNE, selector.fixed(tuned))
        results += [first, selector.result(Route.FUSE, mixed)]
    results.append(rescored_route(first, model))
    return [result for result in results if result.name not in left_out(inputs)]


def train_behind(inputs: ReadyInputs, recipe: Recipe, progress: Progress = silent) -> Variant:
    """A head behind the model, trained by ``recipe`` against the gallery, which stays.

    Raises:
        InputError: see ``train.train``.
    """
    from compatctl.train import ReadyModel, embed, train

    start = time.monotonic()
    base = ReadyModel(sha256=inputs.sha256, rows=inputs.ready, row_of=inputs.data.row_of)
    with tempfile.TemporaryDirectory() as work:
        model = train(
            recipe=recipe,
            base=base,
            data=inputs.data,
            reference=inputs.trained_against,
            work=Path(work),
            progress=progress,
        )
    return Variant(
        queries=embed(model.network, inputs.ready[inputs.query_rows]),
        gallery=inputs.reference.gallery_features,
        item_features=embed(model.network, inputs.ready[inputs.gallery_rows]),
        trained=model,
        recipe=recipe,
        seconds=time.monotonic() - start,
    )
