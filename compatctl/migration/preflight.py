"""What plan looks at before it trains: the gallery's shape, and who is held out for planning.

Planning classes are validation classes: no model may have trained on them, and nobody knows which
of the training classes the deployed one did. Held-out (test) classes stay unseen until verify.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.core.class_sums import sums_by_position
from compatctl.core.hash_order import hash_fraction
from compatctl.core.simplex import Registry, cosine_spread
from compatctl.data import Dataset, Item
from compatctl.deployment.gallery import DeployedGallery
from compatctl.errors import InputError

MOST_MEANS = 2000
"""Class means whose angles are looked at."""
ALARM = 0.9
"""Share of the vertices from which on they run out soon."""


@dataclass(frozen=True, kw_only=True)
class Vertices:
    """The class registry's budget: of ``total`` vertices ``used`` are owned and ``new`` wanted."""

    total: int
    used: int
    new: int
    alarm: bool


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is deployed, and what there is to train and to plan with.

    ``cosine_mean`` and ``cosine_spread`` are of the cosines between the gallery's class means. On a
    simplex both are next to 0; means in random directions spread by ``random_spread``.
    """

    gallery_rows: int
    gallery_classes: int
    gallery_images: int
    """Gallery items that the plan looks at: those whose image the data has, at most its limit"""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The data of a plan. Items of the split ``train`` train, ``asked`` rows query; the others are
    gallery items, whose labels no training looks at."""

    data: Dataset
    asked: Rows
    gallery: Rows


def planning_split(data: Dataset, stored: Sequence[str], most: int, *, choosing: bool) -> Split:
    """Validation queries ask; about ``most`` gallery and ``most`` training items are kept.

    What is over is left out by hash: training classes, and gallery items of no validation class.
    ``choosing``: a half of the validation classes choose among a recipe's trials, and do not ask.

    Raises:
        InputError: no two classes to train on, no query, or no gallery item with its image.
    """
    validation = {one.label for one in data.items if one.split == "validation"}
    training = {one.label for one in data.items if one.split == "train"} - validation
    trained = _within(data, sorted(training, key=hash_fraction), most)
    asking = {one for one in validation if not choosing or hash_fraction(f"ask {one}") < 0.5}
    searched = _searched(data, set(stored), validation, most)
    rows: list[int] = []
    items: list[Item] = []
    asked: list[int] = []
    gallery: list[int] = []
    for row, item in enumerate(data.items):
        queries = item.split == "validation" and item.role != "gallery"
        asks, chooses = queries and item.label in asking, queries and item.label not in asking
        trains = item.split == "train" and item.label in trained
        if not (trains or queries or item.id in searched):
            continue
        asked += [len(items)] if asks else []
        gallery += [len(items)] if item.id in searched else []
        rows.append(row)
        split: Literal["train", "validation", "test"] = "train" if trains else "test"
        items.append(replace(item, split="validation" if chooses else split))
    if len(trained) < 2 or not asked or not gallery:
        raise InputError(
            f"nothing to plan with: {len(trained)} classes to train on, {len(asked)} queries of "
            f"{len(asking)} validation classes, {len(gallery)} gallery items with their image",
            tip="look at data and split in compatctl.yaml",
        )
    return Split(
        data=Dataset(items=tuple(items), sources=data.take(rows).sources),
        asked=as_rows(asked),
        gallery=as_rows(gallery),
    )


def _searched(data: Dataset, stored: set[str], held: set[str], most: int) -> set[str]:
    """Ids of the gallery items with an image: all of the held classes', others up to ``most``."""
    there = [one for one in data.items if one.id in stored]
    wanted = [one.id for one in there if one.label in held]
    others = sorted((one.id for one in there if one.label not in held), key=hash_fraction)
    return {*wanted, *others[: max(0, most - len(wanted))]}


def preflight(
    deployed: DeployedGallery, split: Split, vectors: Vectors, registry: Registry | None
) -> Preflight:
    """The facts; ``vectors`` (G, D) are the stored ones of ``split.gallery``."""
    data, D = split.data, deployed.manifest.index.dim
    in_gallery = set(deployed.catalog.labels)
    training = {item.label for item in data.items if item.split == "train"}
    labels = np.array([data.labels[int(row)] for row in split.gallery])
    names, codes = np.unique(labels, return_inverse=True)
    means = sums_by_position(vectors, codes, len(names))[0][:MOST_MEANS]
    mean, spread = cosine_spread(means) if len(means) > 1 else (float("nan"), float("nan"))
    return Preflight(
        gallery_rows=len(deployed.catalog),
        gallery_classes=len(in_gallery),
        gallery_images=len(split.gallery),
        dim=D,
        born_on_simplex=registry is not None,
        vertices=_vertices(registry, training),
        cosine_mean=mean,
        cosine_spread=spread,
        random_spread=D**-0.5,
        training_classes=len(training),
        training_classes_in_gallery=len(training & in_gallery),
        planning_classes=len({data.labels[int(row)] for row in split.asked}),
        planning_queries=len(split.asked),
    )


def _vertices(registry: Registry | None, classes: set[str]) -> Vertices | None:
    if registry is None or registry.K is None:
        return None
    used, new = len(registry.vertices), len(classes - registry.vertex_of.keys())
    return Vertices(total=registry.K, used=used, new=new, alarm=used + new > ALARM * registry.K)


def _within(data: Dataset, classes: Sequence[str], most: int) -> set[str]:
    """The first of the classes whose training items are no more than ``most`` together."""
    sizes: dict[str, int] = dict.fromkeys(classes, 0)
    for item in data.items:
        if item.split == "train" and item.label in sizes:
            sizes[item.label] += 1
    totals = np.cumsum(list(sizes.values()))
    return set(classes[: max(2, int(np.searchsorted(totals, most, side="right")))])
