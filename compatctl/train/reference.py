"""The deployed gallery as training sees it, and which items take part in what.

The reference is the deployed gallery itself: the stored vector of an item that is in it,
else the deployed encoder's output. The old network never runs while training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.simplex import Registry
from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.recipe import Recipe

Source = Literal["gallery", "encoder"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What is deployed. G gallery items, E items that the deployed encoder was run on."""

    gallery_ids: tuple[str, ...]
    gallery_labels: tuple[str, ...]
    gallery_features: Vectors
    """(G, D) float32 unit rows, as stored."""
    encoded_ids: tuple[str, ...] = ()
    encoded_features: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(E, D) float32 unit rows: the deployed encoder's output for items outside the gallery."""
    registry: Registry | None = None
    """Class -> vertex of the deployed model, where it was trained on a simplex."""
    K: int | None = None
    """Vertices of the deployed model's simplex; the recipe's K must agree."""

    def __post_init__(self) -> None:
        g, e = self.gallery_features, self.encoded_features
        if g.ndim != 2 or len(g) != len(self.gallery_ids) or len(g) != len(self.gallery_labels):
            raise InputError(
                f"reference: {len(self.gallery_ids)} gallery ids, {len(self.gallery_labels)} "
                f"labels, features {g.shape}"
            )
        if len(self.encoded_ids) != len(e) or (len(e) and e.shape[1] != g.shape[1]):
            raise InputError(
                f"reference: {len(self.encoded_ids)} encoded ids, features {e.shape}, "
                f"gallery {g.shape}"
            )
        for name, rows in (("gallery", g), ("encoded", e)):
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
        """D, the gallery's dimension, which a new encoder must keep."""
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

    def old_features(self, ids: Sequence[str]) -> tuple[Vectors, tuple[Source, ...]]:
        """(N, D) old features of items by id, and where each came from.

        Raises:
            InputError: an item is neither in the gallery nor among the encoded ones.
        """
        stored = self.row_of
        encoded = {one: i for i, one in enumerate(self.encoded_ids)}
        lacking = [one for one in ids if one not in stored and one not in encoded]
        if lacking:
            raise InputError(
                f"{len(lacking)} training items have no old feature, {lacking[0]} the first",
                tip="embed them with the deployed encoder (items_to_encode names them)",
            )
        sources: tuple[Source, ...] = tuple("gallery" if i in stored else "encoder" for i in ids)
        rows = np.zeros((len(ids), self.dim), np.float32)
        for i, one in enumerate(ids):
            from_gallery = one in stored
            table = self.gallery_features if from_gallery else self.encoded_features
            rows[i] = table[stored[one] if from_gallery else encoded[one]]
        return rows, sources


def items_to_encode(
    recipe: Recipe, data: Dataset, gallery_ids: Sequence[str], memory: Dataset | None = None
) -> tuple[str, ...]:
    """Ids of the items whose old feature the deployed encoder must give, sorted.

    These are the training (and rehearsed) items outside the gallery, and only where some lambda is
    under 1: the cross-entropy alone needs no old feature.
    """
    if min(recipe.objective.lambda_) >= 1.0:
        return ()
    wanted = set(data.filter(split="train").ids) | (set(memory.ids) if memory else set())
    return tuple(sorted(wanted - set(gallery_ids)))


def anchor_ids(recipe: Recipe, data: Dataset, reference: Reference) -> tuple[str, ...]:
    """Ids of the gallery items that anchor: their share, in the recipe's order, images at hand.

    The share is of the whole gallery. ``random`` is an order drawn by the recipe's seed over the
    sorted ids; items without an image in ``data`` are passed over.
    """
    anchors = recipe.objective.anchors
    if anchors is None or anchors.share == 0.0:
        return ()
    readable = set(data.ids)
    stored = set(reference.gallery_ids)
    if anchors.ids:
        unknown = [one for one in anchors.ids if one not in stored]
        if unknown:
            raise InputError(f"anchors.order: {unknown[0]} is not in the gallery")
        order: Sequence[str] = anchors.ids
    else:
        names = sorted(stored)
        order = [names[i] for i in np.random.default_rng(recipe.seed).permutation(len(names))]
    wanted = round(anchors.share * len(stored))
    return tuple(one for one in order if one in readable)[:wanted]
