"""What plan inspects before it trains: the gallery's shape, and the classes held out for planning.

Planning classes are validation classes: no model may have trained on them, and the deployed model's
training classes are unknown. Held-out (test) classes stay unseen until verify.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.core.class_sums import sums_by_position
from compatctl.core.hash_order import hash_fraction
from compatctl.core.simplex import Registry, cosine_spread
from compatctl.data import Dataset, Item, Judgments, Reference, born_on_simplex
from compatctl.deployment.gallery import DeployedGallery
from compatctl.errors import InputError

MAX_MEANS = 2000
"""The number of class means whose cosines are measured."""
ALARM = 0.9
"""The used share of the vertices at which a warning is due."""


@dataclass(frozen=True, kw_only=True)
class Vertices:
    """The class registry's vertices: ``total``, those in use, and those that new classes need."""

    total: int
    used: int
    new: int
    alarm: bool


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is deployed, and the data for training and planning.

    ``cosine_mean`` and ``cosine_spread`` describe the cosines between the gallery's class means. On
    a simplex both are close to 0; random directions have the spread ``random_spread``.
    """

    gallery_rows: int
    gallery_classes: int
    gallery_images: int
    """Gallery items in the plan: those whose image the data has, up to its limit"""
    dim: int
    born_on_simplex: bool
    vertices: Vertices | None
    cosine_mean: float
    cosine_spread: float
    random_spread: float
    training_classes: int
    training_classes_in_gallery: int
    planning_classes: int
    planning_queries: int
    unknown_rows: int = 0
    """Gallery rows whose class neither the store nor the data of the plan name"""
    lazy_images: int = 0
    """Further gallery items, outside the plan, that were embedded to try re-scoring"""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanningSplit:
    """The data of a plan. Items of the split ``train`` train and ``query_rows`` query; the others
    are gallery items, whose labels training does not use."""

    data: Dataset
    query_rows: Rows
    gallery_rows: Rows


def planning_split(
    data: Dataset,
    stored: Sequence[str],
    limit: int,
    *,
    choosing: bool,
    judged: Judgments | None = None,
    must_train: bool = True,
) -> PlanningSplit:
    """Validation queries query; about ``limit`` gallery and ``limit`` training items are kept.

    The rest is left out by hash: training classes, and gallery items of no validation class. With
    ``choosing``, half of the validation classes choose among a recipe's trials and do not query.
    With ``judged``, items that are judged are kept instead of those of validation classes.

    Without ``must_train`` no class needs to train.

    Raises:
        InputError: fewer than two classes to train on, no query, or no gallery item with its image.
    """
    validation = {item.label for item in data.items if item.split == "validation"}
    training = {item.label for item in data.items if item.split == "train"} - validation
    trained = _within(data, sorted(training, key=hash_fraction), limit)
    planning = {
        label for label in validation if not choosing or hash_fraction(f"ask {label}") < 0.5
    }
    sought = {item.id for item in data.items if item.label in validation}
    sought = sought if judged is None else set(judged.item_ids)
    searched = _searched(data, set(stored), sought, limit)
    rows: list[int] = []
    items: list[Item] = []
    query_rows: list[int] = []
    gallery_rows: list[int] = []
    for row, item in enumerate(data.items):
        is_query = item.split == "validation" and item.role != "gallery"
        trains = item.split == "train" and item.label in trained
        if not (trains or is_query or item.id in searched):
            continue
        if is_query and item.label in planning:
            query_rows.append(len(items))
        if item.id in searched:
            gallery_rows.append(len(items))
        rows.append(row)
        split: Literal["train", "validation", "test"] = "train" if trains else "test"
        if is_query and item.label not in planning:
            split = "validation"
        items.append(replace(item, split=split))
    if (must_train and len(trained) < 2) or not query_rows or not gallery_rows:
        raise InputError(
            f"nothing to plan with: {len(trained)} classes to train on, {len(query_rows)} queries "
            f"of {len(planning)} validation classes, {len(gallery_rows)} gallery items in the "
            "data",
            tip=_missing_tip(len(trained), len(query_rows)),
        )
    return PlanningSplit(
        data=Dataset(items=tuple(items), sources=data.take(rows).sources),
        query_rows=as_rows(query_rows),
        gallery_rows=as_rows(gallery_rows),
    )


def _missing_tip(classes: int, queries: int) -> str:
    """What to give a plan that has too few training classes or queries, or no gallery image."""
    if classes < 2:
        return (
            "give at least two labelled classes the split train; without labels, compatctl bridge "
            "maps an encoder that exists into the gallery"
        )
    if not queries:
        return (
            "give some classes the split validation, or set split: {validation: 0.1} in "
            "compatctl.yaml"
        )
    return (
        "put gallery items into the data; without any, re-embedding cannot be tried, and "
        "compatctl finetune and verify need none"
    )


def _searched(data: Dataset, stored: set[str], sought: set[str], limit: int) -> set[str]:
    """Ids of the gallery items with an image: all those ``sought``, others up to ``limit``."""
    available = [item.id for item in data.items if item.id in stored]
    ids = [item for item in available if item in sought]
    others = [item for item in available if item not in sought]
    return {*ids, *sorted(others, key=hash_fraction)[: max(0, limit - len(ids))]}


def preflight(deployed: DeployedGallery, split: PlanningSplit, reference: Reference) -> Preflight:
    """Collect the facts; ``reference`` has the whole gallery."""
    data, D, registry = split.data, deployed.manifest.index.dim, reference.registry
    in_gallery = set(deployed.catalog.labels) - {""}
    training = {item.label for item in data.items if item.split == "train"}
    labels, features = np.array(reference.gallery_labels), reference.gallery_features
    if (unknown := labels == "").any():
        labels, features = labels[~unknown], features[~unknown]
    names, codes = np.unique(labels, return_inverse=True)
    means = sums_by_position(features, codes, len(names))[0][:MAX_MEANS]
    mean, spread = cosine_spread(means) if len(means) > 1 else (float("nan"), float("nan"))
    return Preflight(
        gallery_rows=len(deployed.catalog),
        gallery_classes=len(in_gallery),
        gallery_images=len(split.gallery_rows),
        dim=D,
        born_on_simplex=born_on_simplex(reference),
        vertices=_vertices(registry, training),
        cosine_mean=mean,
        cosine_spread=spread,
        random_spread=D**-0.5,
        training_classes=len(training),
        training_classes_in_gallery=len(training & in_gallery),
        planning_classes=len({data.labels[int(row)] for row in split.query_rows}),
        planning_queries=len(split.query_rows),
        unknown_rows=len(
            {
                item
                for item, label in zip(deployed.catalog.ids, deployed.catalog.labels, strict=True)
                if not label
            }.difference(data.ids)
        ),
    )


def _vertices(registry: Registry | None, classes: set[str]) -> Vertices | None:
    if registry is None or registry.K is None:
        return None
    used, new = len(registry.vertices), len(classes - registry.vertex_of.keys())
    return Vertices(total=registry.K, used=used, new=new, alarm=used + new > ALARM * registry.K)


def _within(data: Dataset, classes: Sequence[str], limit: int) -> set[str]:
    """The first classes that together have at most ``limit`` training items."""
    sizes: dict[str, int] = dict.fromkeys(classes, 0)
    for item in data.items:
        if item.split == "train" and item.label in sizes:
            sizes[item.label] += 1
    totals = np.cumsum(list(sizes.values()))
    return set(classes[: max(2, int(np.searchsorted(totals, limit, side="right")))])
