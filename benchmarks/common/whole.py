"""A small network that is trained whole against the gallery, by the shipped recipe for such."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common.cases import ROOT, shrunk
from compatctl.core.arrays import Vectors
from compatctl.data import prepare
from compatctl.migration.routes import RouteInputs
from compatctl.recipe import Recipe
from compatctl.train import embed, train
from compatctl.train.images import preprocessing


def small_network_recipe(recipe: Recipe) -> Recipe:
    """``recipes/small-network.yaml`` with the backbone and the seed of ``recipe``."""
    given = Recipe.load(ROOT / "recipes" / "small-network.yaml")
    return replace(given, seed=recipe.seed, backbone=recipe.backbone, free_head=False)


def whole_queries(inputs: RouteInputs, recipe: Recipe) -> Vectors:
    """(Q, D) queries by a network that was trained on the images themselves.

    Raises:
        InputError: see ``train.train``.
    """
    items = inputs.data.items
    seen = inputs.data.take(i for i, item in enumerate(items) if item.split != "test")
    with tempfile.TemporaryDirectory() as work:
        trained = train(
            recipe=recipe,
            base=inputs.base,
            data=shrunk(seen, recipe.backbone.input),
            reference=inputs.reference,
            work=Path(work),
        )
    size = preprocessing(recipe.backbone.input)
    parts = [
        embed(trained.network, np.stack([prepare(inputs.data.read(int(i)), size) for i in rows]))
        for rows in np.array_split(inputs.query_rows, max(1, len(inputs.query_rows) // 256))
    ]
    return np.concatenate(parts)
