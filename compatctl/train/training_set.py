"""Who takes part: training items with their class and old feature, memory, anchors, validation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors
from compatctl.data import Dataset, sample_per_class
from compatctl.errors import InputError
from compatctl.recipe import Recipe
from compatctl.train.images import ImageRef
from compatctl.train.reference import Reference, Source, anchor_ids


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSet:
    """Queries of validation classes against the deployed gallery, their own items left out."""

    images: tuple[ImageRef, ...]
    query_labels: Rows
    """(Q,) int64"""
    gallery: Vectors
    """(G, D) float32 unit rows"""
    gallery_labels: Rows
    """(G,) int64"""
    self_row: Rows
    """(Q,) int64: the query's own gallery row, or -1"""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSet:
    """Everything of one training run but the network and the frame. N training items, A anchors."""

    images: tuple[ImageRef, ...]
    """N, the new items first, then the rehearsed ones"""
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    n_memory: int
    in_gallery: NDArray[np.bool_]
    """(N,) whether the item is in the deployed gallery"""
    classes: tuple[str, ...]
    """Their classes, sorted"""
    old_features: Vectors | None
    """(N, D) old features, where some trial needs them"""
    old_sources: tuple[Source, ...]
    anchors: tuple[ImageRef, ...]
    anchor_ids: tuple[str, ...]
    anchor_vectors: Vectors
    """(A, D) stored vectors of the anchors"""
    validation: ValidationSet | None


def select_training_set(
    recipe: Recipe, data: Dataset, reference: Reference | None, memory: Dataset | None
) -> TrainingSet:
    """Choose the items of a run.

    Raises:
        InputError: no training item; fewer than two classes; an item without an old feature; a
            memory without ``rehearsal`` in the recipe.
    """
    fresh = [i for i, item in enumerate(data.items) if item.split == "train"]
    kept = _remembered(recipe, memory, {data.ids[i] for i in fresh})
    images = [ImageRef(dataset=data, row=i) for i in fresh]
    images += [ImageRef(dataset=kept, row=i) for i in range(len(kept))] if kept else []
    ids = tuple(_id(one) for one in images)
    labels = tuple(one.dataset.labels[one.row] for one in images)
    if len(set(labels)) < 2:
        raise InputError(
            f"{len(ids)} training items of {len(set(labels))} classes: at least 2 are needed",
            tip="look at split in compatctl.yaml, or the split column of the table",
        )
    contrast = min(recipe.objective.lambda_) < 1.0
    if contrast and reference is None:
        raise InputError("lambda under 1 needs a deployed gallery", tip="write lambda: 1.0")
    old: Vectors | None = None
    sources: tuple[Source, ...] = ()
    if contrast and reference is not None:
        old, sources = reference.old_features(ids)
    chosen = anchor_ids(recipe, data, reference) if reference else ()
    stored = np.zeros((0, 0), np.float32)
    if reference and chosen:
        stored, _ = reference.old_features(chosen)
    return TrainingSet(
        images=tuple(images),
        ids=ids,
        labels=labels,
        n_memory=len(images) - len(fresh),
        in_gallery=np.isin(np.array(ids), np.array(reference.gallery_ids if reference else ())),
        classes=tuple(sorted(set(labels))),
        old_features=old,
        old_sources=sources,
        anchors=tuple(ImageRef(dataset=data, row=data.row_of[one]) for one in chosen),
        anchor_ids=chosen,
        anchor_vectors=stored,
        validation=_validation(data, reference) if reference else None,
    )


def data_digest(training_set: TrainingSet) -> str:
    """sha256 over the ids, labels and pixels of everything that trains or chooses."""
    total = hashlib.sha256()
    for ref, label in zip(training_set.images, training_set.labels, strict=True):
        total.update(f"{_id(ref)}\0{label}\0{_digest(ref)}\n".encode())
    for ref in training_set.anchors + (
        training_set.validation.images if training_set.validation else ()
    ):
        total.update(f"{_id(ref)}\0{_digest(ref)}\n".encode())
    return total.hexdigest()


def describe_images(images: Sequence[ImageRef]) -> list[dict[str, str]]:
    """Id and digest of each image, for the record."""
    return [{"id": _id(ref), "sha256": _digest(ref)} for ref in images]


def _id(ref: ImageRef) -> str:
    return ref.dataset.ids[ref.row]


def _digest(ref: ImageRef) -> str:
    return ref.dataset.digest(ref.row)


def _remembered(recipe: Recipe, memory: Dataset | None, fresh: set[str]) -> Dataset | None:
    """``per_class`` items of each class of the memory, by the hash of their ids; null: none."""
    if memory is None:
        return None
    if recipe.rehearsal is None:
        raise InputError(
            "there is a memory of earlier items, and no rehearsal in the recipe",
            tip="write rehearsal: {per_class: 20}, for example, or pass no memory",
        )
    others = memory.take(i for i, one in enumerate(memory.ids) if one not in fresh)
    return others.take(sample_per_class(others.ids, others.labels, recipe.rehearsal.per_class))


def _validation(data: Dataset, reference: Reference) -> ValidationSet | None:
    """Null where no validation query has another item of its class in the gallery."""
    roles = any(item.role is not None for item in data.items)
    asking = [
        i
        for i, item in enumerate(data.items)
        if item.split == "validation" and (not roles or item.role == "query")
    ]
    owners: dict[str, set[str]] = defaultdict(set)
    for one, label in zip(reference.gallery_ids, reference.gallery_labels, strict=True):
        owners[label].add(one)
    asking = [i for i in asking if owners[data.items[i].label] - {data.items[i].id}]
    if not asking:
        return None
    labels = [data.items[i].label for i in asking]
    names, codes = np.unique(np.array([*labels, *reference.gallery_labels]), return_inverse=True)
    del names
    return ValidationSet(
        images=tuple(ImageRef(dataset=data, row=i) for i in asking),
        query_labels=codes[: len(asking)].astype(np.int64),
        gallery=reference.gallery_features,
        gallery_labels=codes[len(asking) :].astype(np.int64),
        self_row=np.array([reference.row_of.get(data.items[i].id, -1) for i in asking], np.int64),
    )
