"""Adapters: maps from one model's features x to another's y, fitted on items both have embedded.

No labels are needed. Everything follows from the sums ``sum x x^T`` (F, F) and ``sum x y^T`` (F, D)
over the items, so the cost is linear in N.

Shapes: ``N`` items, ``F`` dimensions of the source feature, ``D`` of the target.

Sources: orthogonal Procrustes, Schönemann (Psychometrika 31, 1966); ridge, Hoerl and Kennard
(Technometrics 12, 1970); reduced rank, Izenman (Journal of Multivariate Analysis 5, 1975); all
three and a small network as adapters of queries, Vejendla (EMNLP 2025, arXiv 2509.23471).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compatctl.core.arrays import AnyFloats, Floats, Vectors, unit_rows
from compatctl.errors import InputError

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Ridge penalties to try, in units of the mean variance of a source dimension."""

_ROUNDING = 1e-12
"""A variance below this share of the mean square is rounding error."""

_BLOCK = 4096
"""Rows mapped, or pairs summed, at once."""

Layer = tuple[Vectors, Vectors]
"""A matrix (in, out) and a bias (out,)."""


def fuse_rows(old: Vectors, new: Vectors, weight: float) -> Vectors:
    """(N, D) unit rows of ``(1 - weight) old + weight new``; old and new (N, D) unit rows.

    They lie on the arc between the two, at weight 1/2 in its middle (SLERP).
    """
    return unit_rows((1.0 - weight) * old + weight * new)


class Adapter(Protocol):
    """``unit(... relu(x @ matrix + bias) ...)``: layers with a ReLU between them."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, from F dimensions to D."""

    def __call__(self, features: AnyFloats) -> Vectors:
        """(N, D) float32 unit rows for (N, F) features."""
        mapped = np.empty((len(features), self.layers[-1][0].shape[1]), np.float32)
        for start in range(0, len(features), _BLOCK):  # a hidden layer may be wide
            x = np.asarray(features[start : start + _BLOCK], np.float32)
            for depth, (matrix, bias) in enumerate(self.layers):
                x = (np.maximum(x, 0.0) if depth else x) @ matrix + bias
            mapped[start : start + _BLOCK] = unit_rows(x)
        return mapped


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Adapter):
    """``unit(x @ matrix + bias)``."""

    matrix: Vectors
    """(F, D)"""
    bias: Vectors
    """(D,)"""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The only layer."""
        return ((self.matrix, self.bias),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Perceptron(Adapter):
    """``unit(relu(x @ hidden + hidden_bias) @ matrix + bias)``: one hidden layer of H units."""

    hidden: Vectors
    """(F, H)"""
    hidden_bias: Vectors
    """(H,)"""
    matrix: Vectors
    """(H, D)"""
    bias: Vectors
    """(D,)"""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Both layers."""
        return (self.hidden, self.hidden_bias), (self.matrix, self.bias)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """The sums over N pairs that determine every linear map."""

    n: int
    source_mean: Floats
    """(F,)"""
    target_mean: Floats
    """(D,)"""
    inner: Floats
    """(F, F) sum of x x^T"""
    cross: Floats
    """(F, D) sum of x y^T"""

    @classmethod
    def from_pairs(cls, source: AnyFloats, target: AnyFloats, block: int = _BLOCK) -> Moments:
        """Sums in float64 over pairs: source (N, F), target (N, D).

        Raises:
            InputError: no pair, other lengths, or values that are not finite.
        """
        if (source.ndim, target.ndim) != (2, 2) or len(source) != len(target) or not source.size:
            raise InputError(
                f"a map needs pairs of rows (N, F) and (N, D); got {source.shape}, {target.shape}"
            )
        F, D = source.shape[1], target.shape[1]
        inner, cross = np.zeros((F, F)), np.zeros((F, D))
        total_x, total_y = np.zeros(F), np.zeros(D)
        for start in range(0, len(source), block):
            x = source[start : start + block].astype(np.float64)
            y = target[start : start + block].astype(np.float64)
            inner += x.T @ x
            cross += x.T @ y
            total_x += x.sum(axis=0)
            total_y += y.sum(axis=0)
        if not (np.isfinite(inner).all() and np.isfinite(cross).all()):
            raise InputError("a map needs features that are finite")
        n = len(source)
        return cls(n=n, source_mean=total_x / n, target_mean=total_y / n, inner=inner, cross=cross)


def orthogonal(moments: Moments) -> Affine:
    """The (semi-)orthogonal map A with the largest sum of ``x A . y``; without a bias.

    With F > D its columns are orthonormal, with F < D its rows. With F <= D it keeps lengths, so it
    also has the least squared error; with F > D it need not.
    """
    left, _, right = np.linalg.svd(moments.cross, full_matrices=False)
    return _affine(left @ right, np.zeros(moments.cross.shape[1]))


def ridge(moments: Moments, strengths: Sequence[float] = STRENGTHS) -> list[Affine]:
    """Affine maps with the least squared error plus a penalty, one per strength.

    The penalty is ``strength * v * |A|^2``, with A the matrix and v the mean over source dimensions
    of the squared deviations, summed over the pairs. One decomposition serves all strengths.

    Raises:
        InputError: a strength is not above 0.
    """
    if not strengths or min(strengths) <= 0.0:
        raise InputError(f"the strengths of a ridge map must be above 0, got {list(strengths)}")
    inner, cross = _centred(moments)
    values, vectors = np.linalg.eigh(inner)
    floor = _ROUNDING * float(np.trace(moments.inner)) / len(inner)
    unit = max(float(np.trace(inner)) / len(inner), floor, _ROUNDING)
    rotated = vectors.T @ cross
    maps = []
    for strength in strengths:
        matrix = vectors @ (rotated / (np.maximum(values, 0.0) + strength * unit)[:, None])
        maps.append(_affine(matrix, moments.target_mean - moments.source_mean @ matrix))
    return maps


def low_rank(moments: Moments, fitted: Affine, ranks: Sequence[int]) -> list[Affine]:
    """The map restricted to the ``rank`` output directions with the most variance, one per rank.

    Raises:
        InputError: a rank is below 1, or above that of the map.
    """
    matrix = fitted.matrix.astype(np.float64)
    max_rank = min(matrix.shape)
    if not ranks or min(ranks) < 1 or max(ranks) > max_rank:
        raise InputError(f"the rank of a map must lie between 1 and {max_rank}, got {list(ranks)}")
    inner, _ = _centred(moments)
    _, directions = np.linalg.eigh(matrix.T @ inner @ matrix)
    maps = []
    for rank in ranks:
        basis = directions[:, -rank:]
        projected = matrix @ basis @ basis.T
        bias = moments.target_mean - moments.source_mean @ projected
        maps.append(_affine(projected, bias))
    return maps


def _centred(moments: Moments) -> tuple[Floats, Floats]:
    """(F, F) and (F, D) sums over the centred pairs."""
    x, y, n = moments.source_mean, moments.target_mean, moments.n
    return moments.inner - n * np.outer(x, x), moments.cross - n * np.outer(x, y)


def _affine(matrix: Floats, bias: Floats) -> Affine:
    return Affine(matrix=matrix.astype(np.float32), bias=bias.astype(np.float32))
