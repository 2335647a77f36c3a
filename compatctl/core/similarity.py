"""Reduce the dot product and the L2 distance to the cosine, so that one search serves all.

Search ranks unit rows by cosine. Each reduction adds one or two coordinates, after which that
ranking equals the requested one (computed in float64, stored as float32):

- dot: ``g -> (g / M, sqrt(1 - |g / M|^2))``, ``q -> (q / |q|, 0)``, with M the largest norm of a
  gallery row (Bachrach et al., "Speeding Up the Xbox Recommender System Using a Euclidean
  Transformation for Inner-Product Spaces", RecSys 2014, section 3).
- l2: ``|q - g|^2 = |q|^2 - 2 (q g - |g|^2 / 2)``, which ranks as the dot product of ``(q, 1)`` and
  ``(g, -|g|^2 / 2)`` does. Rows are centred and scaled first, which keeps the order of distances
  and keeps rows far from the origin apart.

Galleries that are searched together, or whose scores are compared, must share one reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from compatctl.core.arrays import Features, Floats, Vectors

Similarity = Literal["cosine", "dot", "l2"]
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "dot", "l2")

_BLOCK = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class CosineReduction:
    """Subtract ``centre`` (D,), divide by ``scale`` and, for l2, append the extra column.

    ``max_norm`` is the largest norm of a gallery row after that.
    """

    similarity: Similarity
    centre: Floats
    scale: float
    max_norm: float

    @classmethod
    def fit(cls, similarity: Similarity, galleries: Sequence[Features]) -> Self:
        """Fit the reduction to galleries (G, D) of finite rows, each with at least one row."""
        dim = galleries[0].shape[1]
        centre, scale = np.zeros(dim), 1.0
        if similarity == "l2":
            centre = np.asarray(galleries[0].mean(axis=0, dtype=np.float64))
            scale = max(_max_distance(gallery, centre) for gallery in galleries) or 1.0
        unscaled = cls(similarity=similarity, centre=centre, scale=scale, max_norm=1.0)
        max_norm = max(
            float(np.linalg.norm(unscaled._gallery(gallery[start : start + _BLOCK]), axis=1).max())
            for gallery in galleries
            for start in range(0, len(gallery), _BLOCK)
        )
        return cls(similarity=similarity, centre=centre, scale=scale, max_norm=max_norm or 1.0)

    def queries(self, rows: Features) -> Vectors:
        """(Q, D') unit rows for queries (Q, D), none of them zero."""
        return self._blocks(rows, self._query)

    def gallery(self, rows: Features) -> Vectors:
        """(G, D') unit rows for gallery rows (G, D) that the reduction was fitted to."""
        return self._blocks(rows, lambda part: _augment(self._gallery(part) / self.max_norm))

    def _blocks(self, rows: Features, convert: Callable[[Features], Floats]) -> Vectors:
        extra = 2 if self.similarity == "l2" else 1
        unit = np.empty((len(rows), rows.shape[1] + extra), np.float32)
        for start in range(0, len(rows), _BLOCK):
            unit[start : start + _BLOCK] = convert(rows[start : start + _BLOCK])
        return unit

    def _centred(self, rows: Features) -> Floats:
        return (rows.astype(np.float64) - self.centre) / self.scale

    def _query(self, rows: Features) -> Floats:
        centred = self._centred(rows)
        if self.similarity == "l2":
            centred = np.hstack([centred, np.ones((len(rows), 1))])
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        return np.hstack([centred, np.zeros((len(rows), 1))])

    def _gallery(self, rows: Features) -> Floats:
        centred = self._centred(rows)
        if self.similarity == "l2":
            half = -0.5 * np.einsum("nd,nd->n", centred, centred)
            centred = np.hstack([centred, half[:, None]])
        return centred


def _augment(rows: Floats) -> Floats:
    """Rows (N, D) of length at most 1, with one more coordinate that makes them unit rows."""
    extra = np.sqrt(np.maximum(0.0, 1.0 - np.einsum("nd,nd->n", rows, rows)))
    return np.hstack([rows, extra[:, None]])


def _max_distance(rows: Features, centre: Floats) -> float:
    return max(
        float(np.linalg.norm(rows[start : start + _BLOCK] - centre, axis=1).max())
        for start in range(0, len(rows), _BLOCK)
    )
