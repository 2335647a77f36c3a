"""The baselines that the routes stand beside: naive swap, linear adapters, SLERP and BCT."""

from __future__ import annotations

from dataclasses import replace

from compatctl.core.adapters import fuse_rows
from compatctl.migration.routes import FreeModels, RouteInputs, bridge_variants, train_model
from compatctl.migration.selection import RouteResult, Variant, map_selection
from compatctl.progress import Progress, silent


def measure_baselines(
    inputs: RouteInputs, free: FreeModels, progress: Progress = silent
) -> list[RouteResult]:
    """Try every baseline: naive swap, linear adapters alone, SLERP, and BCT's influence loss.

    Raises:
        InputError: see ``train.train``.
    """
    selector, heads, old = free.selector, free.heads, inputs.old_queries
    stored = inputs.reference.gallery_features
    objective = replace(inputs.recipe.objective, frame=("prototypes",), lambda_=(1.0,))
    prototypes = train_model(
        inputs, replace(inputs.recipe, objective=objective), inputs.reference, progress
    )
    procrustes = selector.refine(
        heads, lambda head: bridge_variants(inputs, head, kinds=("orthogonal",))
    )
    ridge = selector.refine(
        heads, lambda head: bridge_variants(inputs, head, kinds=("ridge", "low-rank"))
    )

    def fuse(variant: Variant) -> Variant:
        queries = fuse_rows(old.queries, variant.queries, 0.5)
        return replace(variant, queries=queries, encoders=("old", "new"))

    swapped = map_selection(heads, lambda head: replace(head, gallery=stored))
    return [
        selector.result("naive swap", swapped),
        selector.result("procrustes", procrustes),
        selector.result("ridge", ridge),
        selector.result("procrustes + SLERP", map_selection(procrustes, fuse)),
        selector.result("prototypes", selector.fixed(replace(prototypes, gallery=stored))),
    ]
