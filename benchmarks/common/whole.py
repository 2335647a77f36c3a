"""A small network that is trained whole, by the shipped recipe for such."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common.cases import ROOT, shrunk
from compatctl.core.arrays import Rows, Vectors
from compatctl.data import prepare
from compatctl.migration.routes import RouteInputs
from compatctl.recipe import Recipe
from compatctl.train import Network, Reference, embed, train
from compatctl.train.images import preprocessing


def small_network_recipe(recipe: Recipe) -> Recipe:
    """``recipes/small-network.yaml`` with the backbone and the seed of ``recipe``."""
    given = Recipe.load(ROOT / "recipes" / "small-network.yaml")
    return replace(given, seed=recipe.seed, backbone=recipe.image_backbone, free_head=False)


def whole_queries(inputs: RouteInputs, recipe: Recipe) -> Vectors:
    """(Q, D) queries by a network that was trained on the images themselves.

    Raises:
        InputError: see ``train.train``.
    """
    network = _trained(inputs, recipe, inputs.reference)
    return _embedded(network, inputs, recipe, inputs.query_rows)


def whole_without_gallery(inputs: RouteInputs, recipe: Recipe) -> tuple[Vectors, Vectors]:
    """(Q, D) queries and (G, D) gallery by the network that the recipe trains without the gallery.

    Raises:
        InputError: see ``train.train``.
    """
    recipe = recipe.without_gallery(inputs.reference.dim)
    network = _trained(inputs, recipe, None)
    queries, gallery = (
        _embedded(network, inputs, recipe, rows)
        for rows in (inputs.query_rows, inputs.gallery_rows)
    )
    return queries, gallery


def _trained(inputs: RouteInputs, recipe: Recipe, reference: Reference | None) -> Network:
    items = inputs.data.items
    seen = inputs.data.take(i for i, item in enumerate(items) if item.split != "test")
    with tempfile.TemporaryDirectory() as work:
        return train(
            recipe=recipe,
            base=inputs.base,
            data=shrunk(seen, recipe.image_backbone.input),
            reference=reference,
            work=Path(work),
        ).network


def _embedded(network: Network, inputs: RouteInputs, recipe: Recipe, rows: Rows) -> Vectors:
    """(n, D) unit rows of rows of the data."""
    size = preprocessing(recipe.image_backbone.input)
    parts = [
        embed(network, np.stack([prepare(inputs.data.read(int(i)), size) for i in block]))
        for block in np.array_split(rows, max(1, len(rows) // 256))
    ]
    return np.concatenate(parts)
