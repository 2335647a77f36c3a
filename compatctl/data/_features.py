"""Feature tables: embeddings that another program computed, with ids and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Bools, Floats, Vectors
from compatctl.core.similarity import SIMILARITIES
from compatctl.data._columns import Fields
from compatctl.data._near import warn_of_near_equal
from compatctl.data._vector_rows import (
    VECTOR_NAMES,
    single_precision,
    unusable_rows,
    warn_of_equal_rows,
    why_unusable,
)
from compatctl.errors import InputError
from compatctl.files.npz import read_npz

_BLOCK = 65_536
SPREAD = 1e-3
"""Norms that differ by less carry no information: half precision rounds them by less."""

_FIELDS = Fields(
    required=("ids", "labels", "features"),
    optional=("role", "similarity"),
    advice="a feature table has the arrays ids (N,), labels (N,) and features (N, D)",
)

_WITHOUT_LABELS = replace(
    _FIELDS, required=("ids", "features"), optional=("labels", *_FIELDS.optional)
)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """N items by their features.

    Attributes:
        features: (N, D), none of them zero. Unit rows, unless ``similarity`` is dot or l2.
        role: N times ``query`` or ``gallery``; None if every item is both.
        slices: column -> N values.
        similarity: None if it is unknown and all gallery rows have one length: then cosine, dot and
            l2 rank alike.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    features: Vectors
    role: tuple[str, ...] | None
    slices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    similarity: str | None = None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row."""
        return {item_id: row for row, item_id in enumerate(self.ids)}


def load_features(
    path: Path, similarity: str | None = None, *, labelled: bool = True
) -> FeatureTable:
    """Read an .npz with the arrays ids (N,), labels (N,) and features (N, D) (or vectors, or
    embeddings).

    Optional arrays are role (N,), ``query`` or ``gallery``, further columns (N,), which are slices,
    and one text ``similarity``: cosine, dot or l2. The argument ``similarity`` serves a file
    without one. Rows are normalised, except for dot and l2. Unless ``labelled``, labels may be
    missing or empty: such an item is its own class, by its id.

    Raises:
        InputError: no such file; a missing array; other shapes or types; a repeated id; an empty id
            or label; a row that is zero or not finite; gallery rows of different lengths without a
            similarity; or a similarity that contradicts the file's.
    """
    arrays = _with_features(read_npz(path))
    renamed = (_FIELDS if labelled else _WITHOUT_LABELS).rename(tuple(arrays), path, "arrays")
    arrays = {renamed.get(name, name): array for name, array in arrays.items()}
    similarity = _similarity(arrays, path, similarity)
    features = _rows(arrays.pop("features"), path)
    columns = {name: _text(path, name, column, len(features)) for name, column in arrays.items()}
    for name in ("ids", "labels") if labelled else ("ids",):
        _refuse_empty(path, name, columns)
    labels = columns.pop("labels", ())
    ids = columns.pop("ids")
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: {len(ids) - len(set(ids))} ids are there twice")
    warn_of_near_equal(path, ids, {label for label in labels if label.strip()})
    role = columns.pop("role", None)
    unknown = set(role or ()) - {"query", "gallery"}
    if unknown:
        raise InputError(f"{path}: role is query or gallery, got {sorted(unknown)[0]!r}")
    if similarity is None:
        _refuse_norms(features, np.array(role) != "query" if role else None, path)
    if similarity in {None, "cosine"}:
        _normalise(features)
    return FeatureTable(
        ids=ids,
        labels=own_classes(ids, labels),
        features=features,
        role=role,
        slices=columns,
        similarity=similarity,
    )


def _with_features(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """The arrays; where one alone has a name of vectors, such as embeddings, it is ``features``."""
    named = [name for name in VECTOR_NAMES if name in arrays]
    return {"features" if [name] == named else name: array for name, array in arrays.items()}


def own_classes(ids: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, with an item's id where one is empty; ``labels`` () if there are none."""
    if not labels:
        return tuple(ids)
    return tuple(label if label.strip() else item for item, label in zip(ids, labels, strict=True))


def _refuse_empty(path: Path, name: str, columns: Mapping[str, tuple[str, ...]]) -> None:
    """Raise an InputError if an id or label is empty or blank."""
    empty = [row for row, text in enumerate(columns[name]) if not text.strip()]
    if not empty:
        return
    first, more = empty[0], f"; {len(empty)} rows have none" if empty[1:] else ""
    item = f" (id {columns['ids'][first]!r})" if name == "labels" else ""
    expected = "an id that no other row has" if name == "ids" else "the item's class"
    raise InputError(
        f"{path}: row {first}{item} has no {name[:-1]}: expected {expected}, got "
        f"{columns[name][first]!r}{more}",
        tip=f"write {name} for all rows, or leave those rows out of every array",
    )


def _similarity(
    arrays: dict[str, NDArray[np.generic]], path: Path, requested: str | None
) -> str | None:
    """The file's similarity, or else the requested one; the file's is taken out of ``arrays``."""
    array = arrays.get("similarity")
    if array is None:
        return requested
    words = np.unique(arrays.pop("similarity"))
    if len(words) != 1:
        raise InputError(
            f"{path}: similarity must be one text for all rows, got {', '.join(map(str, words))}"
        )
    similarity = str(words[0])
    if similarity not in SIMILARITIES:
        raise InputError(f"{path}: similarity is {', '.join(SIMILARITIES)}; got {similarity!r}")
    if requested not in {None, similarity}:
        raise InputError(
            f"{path} has the similarity {similarity}, --similarity is {requested}",
            tip="leave out --similarity of compatctl verify, or write the table again",
        )
    return similarity


def _rows(features: NDArray[np.generic], path: Path) -> Vectors:
    """(N, D) float32, in the array's own memory if it is float32."""
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise InputError(
            f"{path}: features must be (N, D) floats, got {features.shape} {features.dtype}"
        )
    rows = single_precision(features)
    for start in range(0, len(rows), _BLOCK):
        if len(bad := unusable_rows(rows[start : start + _BLOCK])):
            row = start + int(bad[0])
            raise InputError(
                f"{path}: the feature in row {row} {why_unusable(features[row])}",
                tip="leave out items that the model cannot embed",
            )
    warn_of_equal_rows(path, rows)
    return rows


def _refuse_norms(rows: Vectors, gallery: Bools | None, path: Path) -> None:
    """Refuse gallery rows (None: all) of different lengths. A query's length changes no ranking."""
    least, most = np.inf, 0.0
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        lengths = _lengths(rows[block])
        lengths = lengths if gallery is None else lengths[gallery[block]]
        least = min(least, float(lengths.min(initial=np.inf)))
        most = max(most, float(lengths.max(initial=0.0)))
    if most > least * (1.0 + SPREAD):
        raise InputError(
            f"{path}: the norms of its features differ, from {least:.4g} to {most:.4g}: the cosine "
            "ignores them, the dot product does not",
            tip="name what your search uses, cosine, dot or l2: with compatctl verify "
            "--similarity, compatctl power --similarity, or as a text similarity in the file",
        )


def _normalise(rows: Vectors) -> None:
    """Divide each row by its length, in place."""
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        block /= _lengths(block)[:, None].astype(np.float32)


def _lengths(rows: Vectors) -> Floats:
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)), np.float64)


def _text(path: Path, name: str, column: NDArray[np.generic], n: int) -> tuple[str, ...]:
    if column.shape != (n,) or column.dtype.kind not in "Uiu":
        raise InputError(
            f"{path}: {name} must be {n} strings or whole numbers, got {column.shape} "
            f"{column.dtype}"
        )
    texts = tuple(map(str, column.tolist()))
    for row, text in enumerate(texts):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{path}: {name} has half a character in row {row}: {text!r}")
    return texts
