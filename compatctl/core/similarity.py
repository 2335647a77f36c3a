"""The dot product and the L2 distance as cosines of other rows, so that one search serves all.

Search ranks unit rows by their cosine. Both reductions give rows with a coordinate or two more,
for which that ranking is the one asked for, exactly (float64 arithmetic, float32 rows):

- dot: ``g -> (g / M, sqrt(1 - |g / M|^2))``, ``q -> (q / |q|, 0)``, M the largest norm of a
  gallery row (Bachrach et al., "Speeding Up the Xbox Recommender System Using a Euclidean
  Transformation for Inner-Product Spaces", RecSys 2014, section 3).
- l2: ``|q - g|^2 = |q|^2 - 2 (q g - |g|^2 / 2)``, which ranks as the dot product of ``(q, 1)`` and
  ``(g, -|g|^2 / 2)`` does. Rows are centred and scaled before, which changes no order of distances
  and keeps rows that are far from the origin apart.

Galleries that are searched together, or whose scores are put beside each other, need one reduction.
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
    """``centre`` (D,) is subtracted and the rest divided by ``scale``, then, for l2, the column is
    appended; ``max_norm`` is the largest norm of a gallery row after that."""

    similarity: Similarity
    centre: Floats
    scale: float
    max_norm: float

    @classmethod
    def fit(cls, similarity: Similarity, galleries: Sequence[Features]) -> Self:
        """The reduction for galleries (G, D) of finite rows, each with at least one row."""
        dim = galleries[0].shape[1]
        centre, scale = np.zeros(dim), 1.0
        if similarity == "l2":
            centre = np.asarray(galleries[0].mean(axis=0, dtype=np.float64))
            scale = max(_longest(one, centre) for one in galleries) or 1.0
        first = cls(similarity=similarity, centre=centre, scale=scale, max_norm=1.0)
        max_norm = max(
            float(np.linalg.norm(first._gallery(one[at : at + _BLOCK]), axis=1).max())
            for one in galleries
            for at in range(0, len(one), _BLOCK)
        )
        return cls(similarity=similarity, centre=centre, scale=scale, max_norm=max_norm or 1.0)

    def queries(self, rows: Features) -> Vectors:
        """Unit rows (Q, D') of queries (Q, D), none of them zero."""
        return self._blocks(rows, self._query)

    def gallery(self, rows: Features) -> Vectors:
        """Unit rows (G, D') of gallery rows (G, D), of those that the reduction was made of."""
        return self._blocks(rows, lambda part: _lifted(self._gallery(part) / self.max_norm))

    def _blocks(self, rows: Features, of: Callable[[Features], Floats]) -> Vectors:
        extra = 2 if self.similarity == "l2" else 1
        found = np.empty((len(rows), rows.shape[1] + extra), np.float32)
        for at in range(0, len(rows), _BLOCK):
            found[at : at + _BLOCK] = of(rows[at : at + _BLOCK])
        return found

    def _moved(self, rows: Features) -> Floats:
        return (rows.astype(np.float64) - self.centre) / self.scale

    def _query(self, rows: Features) -> Floats:
        found = self._moved(rows)
        if self.similarity == "l2":
            found = np.hstack([found, np.ones((len(rows), 1))])
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return np.hstack([found, np.zeros((len(rows), 1))])

    def _gallery(self, rows: Features) -> Floats:
        found = self._moved(rows)
        if self.similarity == "l2":
            half = -0.5 * np.einsum("nd,nd->n", found, found)
            found = np.hstack([found, half[:, None]])
        return found


def _lifted(rows: Floats) -> Floats:
    """Rows of norm at max_norm 1 with a coordinate that makes them unit rows."""
    rest = np.sqrt(np.maximum(0.0, 1.0 - np.einsum("nd,nd->n", rows, rows)))
    return np.hstack([rows, rest[:, None]])


def _longest(rows: Features, centre: Floats) -> float:
    return max(
        float(np.linalg.norm(rows[at : at + _BLOCK] - centre, axis=1).max())
        for at in range(0, len(rows), _BLOCK)
    )
