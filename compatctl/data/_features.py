"""Feature tables: embeddings that another program computed, with ids and labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.similarity import SIMILARITIES
from compatctl.errors import InputError
from compatctl.files.npz import read_npz

_ROWS = 65_536
SPREAD = 1e-3
"""By how much norms may differ and still say nothing: half precision rounds them by less."""

_NEEDED = ("ids", "labels", "features")


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """N items by their features.

    ``features`` (N, D) float32, none of them zero: unit rows, unless ``similarity`` is dot or l2,
    by which norms count; it is None where nobody said and the searched rows are equally long, so
    that all three rank alike. ``role`` says who searches whom, None where all do both;
    ``slices``: column -> N values.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    features: NDArray[np.float32]
    role: tuple[str, ...] | None
    slices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    similarity: str | None = None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row."""
        return {item_id: row for row, item_id in enumerate(self.ids)}


def load_features(path: Path, similarity: str | None = None) -> FeatureTable:
    """Read an .npz with the arrays ids (N,), labels (N,), features (N, D), and optionally role (N,)
    (``query`` or ``gallery``) and further columns (N,), which are slices.

    A single text ``similarity`` says how the vectors are compared: cosine, dot or l2; the argument
    says so where the file does not. By the cosine, and where the searched rows are equally long,
    all are normalised to length 1; else they stay as they are.

    Raises:
        InputError: no such file, a missing array, other shapes or types, an id twice, an empty id
            or label, a row that is zero or not finite; searched rows of different lengths where
            nobody said the similarity, or two said another one.
    """
    arrays = read_npz(path)
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        raise InputError(
            f"{path}: there is no array {', '.join(missing)}",
            tip="a feature table has the arrays ids (N,), labels (N,) and features (N, D)",
        )
    told = _similarity(arrays, path, similarity)
    features = _rows(arrays.pop("features"), path)
    columns = {name: _text(path, name, one, len(features)) for name, one in arrays.items()}
    for name in ("ids", "labels"):
        if "" in columns[name]:
            raise InputError(f"{path}: row {columns[name].index('')} has no {name[:-1]}")
    ids = columns.pop("ids")
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: {len(ids) - len(set(ids))} ids are there twice")
    role = columns.pop("role", None)
    unknown = set(role or ()) - {"query", "gallery"}
    if unknown:
        raise InputError(f"{path}: role is query or gallery, got {sorted(unknown)[0]!r}")
    if told is None:
        _refuse_norms(features, np.array(role) != "query" if role else None, path)
    if told in {None, "cosine"}:
        _normalise(features)
    return FeatureTable(
        ids=ids,
        labels=columns.pop("labels"),
        features=features,
        role=role,
        slices=columns,
        similarity=told,
    )


def _similarity(
    arrays: dict[str, NDArray[np.generic]], path: Path, asked: str | None
) -> str | None:
    """What the file or the caller says; the entry is taken out of ``arrays``."""
    there = arrays.get("similarity")
    if there is None or there.shape not in {(), (1,)}:
        return asked
    told = str(arrays.pop("similarity").reshape(-1)[0])
    if told not in SIMILARITIES:
        raise InputError(f"{path}: similarity is {', '.join(SIMILARITIES)}; got {told!r}")
    if asked not in {None, told}:
        raise InputError(
            f"{path} says that its similarity is {told}; asked for: {asked}",
            tip="leave --similarity out, or write the table again",
        )
    return told


def _rows(features: NDArray[np.generic], path: Path) -> NDArray[np.float32]:
    """(N, D) float32, in the array's own memory where it is float32."""
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise InputError(
            f"{path}: features must be (N, D) floats, got {features.shape} {features.dtype}"
        )
    rows: NDArray[np.float32] = features.astype(np.float32, copy=False)
    for start in range(0, len(rows), _ROWS):
        lengths = _lengths(rows[start : start + _ROWS])
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(bad):
            raise InputError(
                f"{path}: the feature in row {start + bad[0]} is zero or not finite",
                tip="look for items that the model could not embed, and leave them out",
            )
    return rows


def _refuse_norms(
    rows: NDArray[np.float32], searched: NDArray[np.bool_] | None, path: Path
) -> None:
    """Refuse searched rows (all of them where None) whose lengths say something: those of a query
    change no ranking."""
    least, most = np.inf, 0.0
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        lengths = _lengths(rows[block])
        lengths = lengths if searched is None else lengths[searched[block]]
        least = min(least, float(lengths.min(initial=np.inf)))
        most = max(most, float(lengths.max(initial=0.0)))
    if most > least * (1.0 + SPREAD):
        raise InputError(
            f"{path}: the norms of its features differ, from {least:.4g} to {most:.4g}: by the "
            "cosine they do not count, by the dot product they do",
            tip="say how these vectors are compared (cosine, dot or l2): a text similarity in the "
            "file, or compatctl verify --similarity",
        )


def _normalise(rows: NDArray[np.float32]) -> None:
    """Divide each row by its length, in place."""
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        part /= _lengths(part)[:, None].astype(np.float32)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)), np.float64)


def _text(path: Path, name: str, column: NDArray[np.generic], n: int) -> tuple[str, ...]:
    if column.shape != (n,) or column.dtype.kind not in "Uiu":
        raise InputError(
            f"{path}: {name} must be {n} strings or whole numbers, got {column.shape} "
            f"{column.dtype}"
        )
    found = tuple(map(str, column.tolist()))
    for row, text in enumerate(found):
        if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
            raise InputError(f"{path}: {name} has half a character in row {row}: {text!r}")
    return found
