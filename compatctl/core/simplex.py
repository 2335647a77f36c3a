"""The d-Simplex fixed classifier, and the register of which class owns which vertex.

Source: CVPR 2024 (arXiv 2405.02581), section 4; repository miccunifi/iamcl2r. Every class owns one
vertex for ever; another order, or another rotation, breaks compatibility without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError

CONSTRUCTION = "d-simplex, unit vectors and alpha * ones, centred, unit rows"
MAX_VERTICES = 65536


def simplex(K: int) -> NDArray[np.float64]:
    """(K, K - 1) float64: K unit rows whose pairwise cosines are all ``-1 / (K - 1)``.

    Rows 1 .. d are the unit vectors, row K is ``alpha * ones`` with
    ``alpha = (1 - sqrt(d + 1)) / d``; the mean row is subtracted and each row normalised.

    Raises:
        InputError: K is under 2 or over 65,536.
    """
    if not 2 <= K <= MAX_VERTICES:
        raise InputError(f"a simplex has 2 to {MAX_VERTICES} vertices, got K = {K}")
    d = K - 1
    rows = np.vstack([np.eye(d), np.full((1, d), (1.0 - np.sqrt(d + 1.0)) / d)])
    rows -= rows.mean(axis=0)
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def rotate_onto(
    frame: NDArray[np.float64], means: NDArray[np.float64], own: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(K, D) ``frame`` rotated so that rows ``own`` (C,) lie nearest to unit ``means`` (C, D).

    Orthogonal Procrustes (Schönemann 1966): angles between rows do not change. Directions that the
    means leave free are filled in by the singular vectors.

    Raises:
        InputError: shapes that do not fit, or a row outside the frame.
    """
    if frame.ndim != 2 or means.shape != (len(own), frame.shape[1]) or not len(own):
        raise InputError(
            f"rotating {frame.shape} onto means {means.shape} of {len(own)} rows: means must be "
            f"({len(own)}, {frame.shape[-1]})"
        )
    if own.min() < 0 or own.max() >= len(frame):
        raise InputError(f"a frame of {len(frame)} rows has no row {own.max()} or {own.min()}")
    left, _, right = np.linalg.svd(frame[own].T @ means)
    rotated: NDArray[np.float64] = frame @ (left @ right)
    return rotated


def frame_digest(rows: NDArray[np.float32]) -> str:
    """sha256 (hex) of frozen rows (R, D) as float32: construction, order and rotation."""
    data = np.ascontiguousarray(rows, "<f4")
    return hashlib.sha256(f"{data.shape}".encode() + data.tobytes()).hexdigest()


@dataclass(frozen=True)
class Registry:
    """``vertices[i]`` is the class that owns vertex i. Append-only; ``K`` vertices in all."""

    vertices: tuple[str, ...]
    K: int | None = None

    @cached_property
    def vertex_of(self) -> dict[str, int]:
        """Class -> vertex."""
        return {label: at for at, label in enumerate(self.vertices)}

    def extend(self, labels: Sequence[str], K: int) -> Registry:
        """The registry with new classes on the next free vertices, in the order given.

        Raises:
            InputError: a class is there already or twice, K changes, or the vertices run out.
        """
        if self.K not in {None, K}:
            raise InputError(f"the registry is of a simplex of {self.K} vertices, not {K}")
        twice = [label for label in labels if label in self.vertex_of]
        if twice or len(set(labels)) < len(labels):
            raise InputError(f"a class owns one vertex: {twice[:1] or 'a new one'} is there twice")
        after = (*self.vertices, *labels)
        if len(after) > K:
            raise InputError(
                f"{len(after)} classes and {K} vertices",
                tip="train on fewer classes, or use the frame prototypes, which has no such limit",
            )
        return Registry(after, K)

    @property
    def digest(self) -> str:
        """sha256 (hex) of ``to_json``: it pins K, the construction and the order."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """One line of JSON."""
        value = {"K": self.K, "construction": CONSTRUCTION, "vertices": list(self.vertices)}
        return json.dumps(value, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Registry:
        """What ``to_json`` wrote.

        Raises:
            InputError: it is not that.
        """
        try:
            raw = json.loads(text)
            labels, K = raw["vertices"], raw["K"]
            if raw["construction"] != CONSTRUCTION or not isinstance(K, int | None):
                raise InputError(f"a registry of another construction: {raw['construction']!r}")
            if not all(isinstance(label, str) for label in labels):
                raise InputError("a registry's classes are texts")
            return cls((), K).extend(labels, len(labels) if K is None else K)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"not a class registry: {error}") from None
