"""The reference: the deployed gallery, which new features are compared with or trained against.

An item's old feature is its stored vector, or the deployed encoder's output if it is not in the
gallery. The old network never runs during training.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors, unit_rows
from compatctl.core.simplex import Registry, frame_in
from compatctl.data._dataset import Dataset
from compatctl.errors import InputError

Origin = Literal["gallery", "encoder"]

SURPRISE = 5.0
"""Standard errors by which class means must be nearer to their own vertices than to others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """G gallery items, and E items outside it that the deployed encoder embedded."""

    gallery_ids: tuple[str, ...]
    gallery_labels: tuple[str, ...]
    gallery_features: Vectors
    """(G, D) float32 unit rows, as stored"""
    encoded_ids: tuple[str, ...] = ()
    encoded_features: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(E, D) float32 unit rows"""
    registry: Registry | None = None
    """Class -> vertex of the deployed model, if it was trained on a simplex"""
    K: int | None = None
    """Vertices of the deployed model's simplex; the recipe's K must agree"""

    def __post_init__(self) -> None:
        stored, encoded = self.gallery_features, self.encoded_features
        n_items, n_encoded = len(self.gallery_ids), len(self.encoded_ids)
        if stored.ndim != 2 or not len(stored) == n_items == len(self.gallery_labels):
            raise InputError(f"reference: {n_items} gallery ids, features {stored.shape}")
        if len(encoded) != n_encoded or (n_encoded and encoded.shape[1] != stored.shape[1]):
            raise InputError(f"reference: {n_encoded} encoded ids, features {encoded.shape}")
        for name, rows in (("gallery", stored), ("encoded", encoded)):
            if len(rows) and not np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3):
                raise InputError(f"reference: {name} features are not unit rows")

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row of the gallery."""
        return {item_id: row for row, item_id in enumerate(self.gallery_ids)}

    @classmethod
    def from_arrays(
        cls, data: Dataset, features: Vectors, gallery: Sequence[int] | Rows, **fields: Any
    ) -> Self:
        """The reference of a data set: ``gallery`` rows are stored, all others are encoded.

        ``features``: (N, D) float32 unit rows of the deployed model, one for each item.
        """
        stored = np.asarray(gallery, np.int64)
        others = np.setdiff1d(np.arange(len(data)), stored)
        return cls(
            gallery_ids=tuple(data.ids[row] for row in stored),
            gallery_labels=tuple(data.labels[row] for row in stored),
            gallery_features=features[stored],
            encoded_ids=tuple(data.ids[row] for row in others),
            encoded_features=features[others],
            **fields,
        )

    @property
    def dim(self) -> int:
        """D of the gallery, which a new encoder must keep."""
        return int(self.gallery_features.shape[1])

    @property
    def digest(self) -> str:
        """sha256 of ids, labels and vectors: a checkpoint belongs to one reference."""
        total = hashlib.sha256()
        for names in (self.gallery_ids, self.gallery_labels, self.encoded_ids):
            total.update("\0".join(names).encode() + b"\1")
        for rows in (self.gallery_features, self.encoded_features):
            total.update(np.ascontiguousarray(rows).tobytes())
        return total.hexdigest()

    def output_means(self, ids: Sequence[str], labels: Sequence[str]) -> dict[str, Vectors]:
        """Class -> unit mean (D,) of those of its items that the deployed encoder embedded."""
        encoded = {item_id: row for row, item_id in enumerate(self.encoded_ids)}
        rows: dict[str, list[int]] = defaultdict(list)
        for item_id, label in zip(ids, labels, strict=True):
            if item_id in encoded:
                rows[label].append(encoded[item_id])
        sums = (self.encoded_features[some].sum(axis=0) for some in rows.values())
        return {label: unit_rows(one[None])[0] for label, one in zip(rows, sums, strict=True)}

    def old_features(self, ids: Sequence[str]) -> tuple[Vectors, tuple[Origin, ...]]:
        """(N, D) old features of items by id, and where each came from.

        Raises:
            InputError: an item is neither in the gallery nor among the encoded ones.
        """
        stored = self.row_of
        encoded = {item_id: row for row, item_id in enumerate(self.encoded_ids)}
        missing = [item_id for item_id in ids if item_id not in stored and item_id not in encoded]
        if missing:
            raise InputError(
                f"{len(missing)} training items have no old feature, such as {missing[0]}",
                tip="embed them with the deployed encoder (items_to_encode lists them)",
            )
        sources: tuple[Origin, ...] = tuple("gallery" if i in stored else "encoder" for i in ids)
        features = [
            self.gallery_features[stored[i]] if i in stored else self.encoded_features[encoded[i]]
            for i in ids
        ]
        return np.array(features, np.float32).reshape(len(ids), self.dim), sources


def born_on_simplex(reference: Reference) -> bool:
    """Whether the gallery's class means are near their own vertices of the registry's simplex.

    A registry alone does not tell: the one of a model with the frame ``anchored`` is of a rotated
    simplex. A gallery without items of the registry's classes is taken as born on it.
    """
    registry = reference.registry
    if registry is None or reference.K is None or reference.dim < reference.K - 1:
        return False
    means, mean_row = class_means(reference)
    shared = [label for label in registry.vertices if label in mean_row]
    if len(registry.vertices) < 2 or not shared:
        return True
    vertices = frame_in(reference.K, reference.dim)[: len(registry.vertices)]
    cosines = means[[mean_row[label] for label in shared]] @ vertices.T
    own = cosines[np.arange(len(shared)), [registry.vertex_of[label] for label in shared]]
    margin = own.mean() - (cosines.sum() - own.sum()) / (cosines.size - len(own))
    return bool(margin > SURPRISE * cosines.std() / np.sqrt(len(own)))


def class_means(reference: Reference) -> tuple[NDArray[np.float64], dict[str, int]]:
    """(C, D) unit class means of the gallery in the order of their labels, and label -> row."""
    names, codes = np.unique(np.array(reference.gallery_labels), return_inverse=True)
    sums = np.zeros((len(names), reference.dim))
    np.add.at(sums, codes, reference.gallery_features.astype(np.float64))
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    if (norms < 1e-9).any():
        label = names[int(norms.argmin())]
        raise InputError(f"the gallery vectors of class {label} cancel out: it has no mean")
    return sums / norms, {str(label): row for row, label in enumerate(names)}
