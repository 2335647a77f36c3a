"""The d-Simplex fixed classifier, and the registry of which class owns which vertex.

A simplex of K vertices is K unit vectors whose pairwise cosines are all -1/(K-1). Every class owns
one vertex permanently. Another order of classes, or another rotation of the frame, would silently
break compatibility, so both have digests.

Sources: CVPR 2024 (arXiv 2405.02581); TPAMI 2026 (arXiv 2606.12488); repository
miccunifi/iamcl2r, ``src/iamcl2r/models/__init__.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from compatctl.core.arrays import AnyFloats, Floats, Rows
from compatctl.errors import InputError

CONSTRUCTION = "d-simplex, unit vectors and alpha * ones, centred, unit rows"

MAX_VERTICES = 16_384
"""A frame of this many vertices takes 2 GiB."""


def simplex(K: int) -> Floats:
    """(K, K - 1) float64: K unit rows whose pairwise cosines are all ``-1 / (K - 1)``.

    With d = K - 1, rows 1 .. d are the unit vectors and row K is ``alpha * ones`` with
    ``alpha = (1 - sqrt(d + 1)) / d``; the mean row is subtracted and each row normalised.

    Raises:
        InputError: K is not an integer from 2 to 16,384.
    """
    _check_vertices(K)
    d = K - 1
    rows = np.vstack([np.eye(d), np.full((1, d), (1.0 - np.sqrt(d + 1.0)) / d)])
    rows -= rows.mean(axis=0)
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def frame_in(K: int, D: int) -> Floats:
    """(K, D) float64: the simplex of K vertices in the first K - 1 of D dimensions, then zeros.

    Raises:
        InputError: as ``simplex``, or D < K - 1.
    """
    return _padded(simplex(K), D)


def rotate_onto(frame: Floats, means: AnyFloats, index: Rows) -> Floats:
    """Rotate ``frame`` (K, d) in D >= d dimensions to bring its rows ``own`` nearest to ``means``.

    Orthogonal Procrustes (Schönemann 1966): among all rotations and reflections of R^D, the one
    that maximises ``sum_i cos(frame[index[i]], means[i])``. Angles between rows do not change.
    Directions that the means leave free (as with C < d) depend on the linear algebra library, so
    store the rows and pin them with ``frame_digest`` instead of computing them again.

    Args:
        frame: (K, d) finite; padded with zeros to D columns.
        means: (C, D) class means, C >= 1, of any length but 0.
        index: (C,) the frame row of each mean, each row at most once.

    Returns:
        (K, D) float64.

    Raises:
        InputError: wrong shapes, d > D, a row outside the frame or given twice, a mean that is
            zero or not finite.
    """
    frame, means, index = np.asarray(frame), np.asarray(means), np.asarray(index)
    if frame.ndim != 2 or means.ndim != 2 or index.shape != means.shape[:1] or not len(index):
        raise InputError(
            f"cannot rotate a frame {frame.shape} by means {means.shape} of rows {index.shape}: "
            "expected (K, d), (C, D) and (C,), C at least 1"
        )
    if not np.issubdtype(index.dtype, np.integer) or len(np.unique(index)) != len(index):
        raise InputError("each mean needs its own frame row, given as a whole number")
    if index.min() < 0 or index.max() >= len(frame):
        bad = index.min() if index.min() < 0 else index.max()
        raise InputError(f"a frame of {len(frame)} rows has no row {bad}")
    rows = _padded(frame, means.shape[1])
    lengths = np.linalg.norm(means.astype(np.float64), axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > 0)
    if not usable.all() or not np.isfinite(rows).all():
        raise InputError("rotating needs finite rows, and means that are not zero")
    left, _, right = np.linalg.svd(rows[index].T @ (means / lengths))
    rotated: Floats = rows @ (left @ right)
    return rotated


def frame_digest(rows: AnyFloats) -> str:
    """sha256 (hex) of rows (R, D) as little-endian float32: it pins construction and rotation.

    Raises:
        InputError: the rows are not two-dimensional and finite.
    """
    data = np.ascontiguousarray(rows, "<f4")
    if data.ndim != 2 or not np.isfinite(data).all():
        raise InputError(f"a frame is (R, D) finite numbers, got {np.shape(rows)}")
    return hashlib.sha256(f"{data.shape}".encode() + data.tobytes()).hexdigest()


@dataclass(frozen=True)
class Registry:
    """Which class owns which vertex: ``vertices[i]`` owns vertex i. Append-only.

    Raises:
        InputError: a class is no string, empty or repeated; more classes than K; K out of range.
    """

    vertices: tuple[str, ...]
    K: int | None = None
    """Number of vertices; None until the first classes get theirs."""

    def __post_init__(self) -> None:
        for label in self.vertices:
            _check_label(label)
        if len(self.vertex_of) < len(self.vertices):
            repeated = next(c for i, c in enumerate(self.vertices) if self.vertex_of[c] != i)
            raise InputError(f"a class owns one vertex, but {repeated!r} is listed twice")
        if self.K is not None:
            _check_vertices(self.K)
            if len(self.vertices) > self.K:
                raise InputError(
                    f"{len(self.vertices)} classes do not fit on {self.K} vertices",
                    tip="train on fewer classes, or use the frame prototypes, which has no limit",
                )

    @cached_property
    def vertex_of(self) -> dict[str, int]:
        """Class -> vertex."""
        return {label: vertex for vertex, label in enumerate(self.vertices)}

    def extend(self, labels: Sequence[str], K: int) -> Registry:
        """The registry with new classes on the next free vertices, in order.

        Raises:
            InputError: a class exists already or appears twice, K changes, or no vertex is free.
        """
        if self.K not in {None, K}:
            raise InputError(
                f"the registry is of a simplex of {self.K} vertices, not {K}",
                tip=f"keep K = {self.K}: another simplex is not compatible with the gallery",
            )
        if isinstance(labels, str):
            raise InputError(f"expected a sequence of classes, got the text {labels!r}")
        return Registry((*self.vertices, *labels), K)

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
        """Read the text that ``to_json`` wrote.

        Raises:
            InputError: the text is anything else.
        """
        try:
            raw = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"not a class registry: {error}") from None
        if not isinstance(raw, dict) or set(raw) != {"K", "construction", "vertices"}:
            raise InputError("a class registry holds K, construction and vertices, and no more")
        if raw["construction"] != CONSTRUCTION:
            raise InputError(f"a registry of another construction: {raw['construction']!r}")
        if not isinstance(raw["vertices"], list):
            raise InputError("a class registry's vertices are a list of classes")
        return cls(tuple(raw["vertices"]), raw["K"])


def _padded(rows: AnyFloats, D: int) -> Floats:
    K, d = rows.shape
    if isinstance(D, bool) or not isinstance(D, int) or d > D:
        raise InputError(
            f"a frame of {K} rows in {d} dimensions does not fit in {D}",
            tip="use fewer vertices (K - 1 may not exceed the gallery's dimension), "
            "or the frame prototypes, which has no such limit",
        )
    padded = np.zeros((K, D), dtype=np.float64)
    padded[:, :d] = rows
    return padded


def _check_vertices(K: object) -> None:
    if isinstance(K, bool) or not isinstance(K, int) or not 2 <= K <= MAX_VERTICES:
        raise InputError(f"a simplex has 2 to {MAX_VERTICES} vertices, got K = {K!r}")


def _check_label(label: object) -> None:
    if not isinstance(label, str) or not label:
        raise InputError(f"a class must be a text that is not empty, got {label!r}")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise InputError(f"class {label!r} cannot be written as UTF-8") from None


def cosine_spread(means: AnyFloats) -> tuple[float, float]:
    """Mean and spread (standard deviation) of the cosines between different rows (C, D), C >= 2.

    A simplex of C vertices has mean -1/(C-1) and spread 0; random directions have mean 0 and spread
    1/sqrt(D). Lengths do not matter.

    Raises:
        InputError: fewer than two rows, or a row that is zero or not finite.
    """
    rows = np.asarray(means, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if rows.ndim != 2 or len(rows) < 2 or not (np.isfinite(norms) & (norms > 0.0)).all():
        raise InputError(f"angles need two or more rows with a direction, got {rows.shape}")
    rows = rows / norms
    cosines = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    return float(cosines.mean()), float(cosines.std())
