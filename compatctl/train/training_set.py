"""The training set: items with class and old feature, rehearsed items, validation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.data import Dataset, Origin, Reference, sample_per_class
from compatctl.errors import InputError
from compatctl.recipe import Recipe
from compatctl.train.items import ItemRef


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSet:
    """Q queries of validation classes against the deployed gallery; no query finds itself."""

    items: tuple[ItemRef, ...]
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
    """N training items and the validation queries of one run."""

    items: tuple[ItemRef, ...]
    """The new items, then ``n_memory`` rehearsed ones, then ``n_unlabelled`` without a label"""
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    """Empty for an item without a label"""
    n_memory: int
    n_unlabelled: int
    classes: tuple[str, ...]
    """The different labels, sorted"""
    old_features: Vectors | None
    """(N, D) float32 unit rows; None if lambda is 1 in every trial"""
    old_sources: tuple[Origin, ...]
    validation: ValidationSet | None

    @property
    def n_labelled(self) -> int:
        """New and rehearsed items."""
        return len(self.items) - self.n_unlabelled

    @property
    def class_codes(self) -> Rows:
        """(N,) int64 position in ``classes``; an item without a label is a class of its own."""
        code_of = {label: code for code, label in enumerate(self.classes)}
        labelled = [code_of[label] for label in self.labels[: self.n_labelled]]
        own = range(len(self.classes), len(self.classes) + self.n_unlabelled)
        return np.array([*labelled, *own], np.int64)


def select_training_set(
    recipe: Recipe,
    data: Dataset,
    reference: Reference | None,
    memory: Dataset | None,
    unlabelled: Dataset | None = None,
) -> TrainingSet:
    """Choose the items of a run.

    Args:
        unlabelled: items for the contrast alone, whose labels are not used; none may be an item of
            the data or the memory.

    Raises:
        InputError: fewer than two classes; an item without an old feature; a memory without
            ``rehearsal`` in the recipe; unlabelled items where nothing is contrasted.
    """
    fresh = [i for i, item in enumerate(data.items) if item.split == "train"]
    rehearsed = _rehearsed(recipe, memory, {data.ids[i] for i in fresh})
    images = [ItemRef(dataset=data, row=i) for i in fresh]
    if rehearsed is not None:
        images += [ItemRef(dataset=rehearsed, row=i) for i in range(len(rehearsed))]
    labels = tuple(ref.dataset.labels[ref.row] for ref in images)
    n_labelled = len(images)
    if unlabelled is not None:
        images += [ItemRef(dataset=unlabelled, row=i) for i in range(len(unlabelled))]
    ids = tuple(ref.id for ref in images)
    if len(set(labels)) < 2:
        raise InputError(
            f"{n_labelled} training items of {len(set(labels))} classes: at least 2 are needed",
            tip="check split in compatctl.yaml, or the split column of the table",
        )
    contrast = min(recipe.objective.lambda_) < 1.0
    if contrast and reference is None:
        raise InputError("lambda below 1 needs a deployed gallery", tip="write lambda: 1.0")
    if unlabelled is not None and not contrast:
        raise InputError(
            "unlabelled images train by the contrast alone, which lambda: 1.0 leaves out",
            tip="write a lambda below 1, or unlabelled: null",
        )
    old: Vectors | None = None
    sources: tuple[Origin, ...] = ()
    if contrast and reference is not None:
        old, sources = reference.old_features(ids)
    return TrainingSet(
        items=tuple(images),
        ids=ids,
        labels=labels + ("",) * (len(images) - n_labelled),
        n_memory=n_labelled - len(fresh),
        n_unlabelled=len(images) - n_labelled,
        classes=tuple(sorted(set(labels))),
        old_features=old,
        old_sources=sources,
        validation=_validation(data, reference) if reference else None,
    )


def data_digest(training_set: TrainingSet) -> str:
    """sha256 over ids, labels and images of the training set and validation queries."""
    total = hashlib.sha256()
    for ref, label in zip(training_set.items, training_set.labels, strict=True):
        total.update(f"{ref.id}\0{label}\0{ref.digest}\n".encode())
    for ref in training_set.validation.items if training_set.validation else ():
        total.update(f"{ref.id}\0{ref.digest}\n".encode())
    return total.hexdigest()


def describe_items(items: Sequence[ItemRef]) -> list[dict[str, str]]:
    """Id and digest of each image, for the record."""
    return [{"id": ref.id, "sha256": ref.digest} for ref in items]


def _rehearsed(recipe: Recipe, memory: Dataset | None, fresh: set[str]) -> Dataset | None:
    """``per_class`` items of each class of the memory, by the hash of their ids."""
    if memory is None:
        return None
    if recipe.rehearsal is None:
        raise InputError(
            "there is a memory of earlier items, and no rehearsal in the recipe",
            tip="write rehearsal: {per_class: 20}, for example, or pass no memory",
        )
    others = memory.take(i for i, item_id in enumerate(memory.ids) if item_id not in fresh)
    return others.take(sample_per_class(others.ids, others.labels, recipe.rehearsal.per_class))


def _validation(data: Dataset, reference: Reference) -> ValidationSet | None:
    """None if no validation query has another item of its class in the gallery."""
    has_roles = any(item.role is not None for item in data.items)
    gallery_ids: dict[str, set[str]] = defaultdict(set)
    for item_id, label in zip(reference.gallery_ids, reference.gallery_labels, strict=True):
        gallery_ids[label].add(item_id)
    queries = [
        row
        for row, item in enumerate(data.items)
        if item.split == "validation"
        and (not has_roles or item.role == "query")
        and gallery_ids[item.label] - {item.id}
    ]
    if not queries:
        return None
    labels = [data.labels[row] for row in queries]
    _, codes = np.unique(np.array([*labels, *reference.gallery_labels]), return_inverse=True)
    return ValidationSet(
        items=tuple(ItemRef(dataset=data, row=row) for row in queries),
        query_labels=codes[: len(queries)].astype(np.int64),
        gallery=reference.gallery_features,
        gallery_labels=codes[len(queries) :].astype(np.int64),
        self_row=np.array([reference.row_of.get(data.ids[row], -1) for row in queries], np.int64),
    )
