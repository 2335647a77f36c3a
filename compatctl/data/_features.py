"""Feature tables: embeddings that another program computed, with ids and labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError
from compatctl.npz import read_npz

_ROWS = 65_536
_NEEDED = ("ids", "labels", "features")


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """N items by their features.

    ``features`` (N, D) float32, unit rows; ``role`` says who searches whom, None where all do both;
    ``slices``: column -> N values.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    features: NDArray[np.float32]
    role: tuple[str, ...] | None
    slices: dict[str, tuple[str, ...]] = field(default_factory=dict)


def load_features(path: Path) -> FeatureTable:
    """Read an .npz with the arrays ids (N,), labels (N,), features (N, D), and optionally role (N,)
    (``query`` or ``gallery``) and further columns (N,), which are slices.

    Rows are normalised to length 1.

    Raises:
        InputError: no such file, a missing array, other shapes or types, an id twice, an empty id
            or label, a row that is zero or not finite.
    """
    arrays = read_npz(path)
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        raise InputError(
            f"{path}: there is no array {', '.join(missing)}",
            tip="a feature table has the arrays ids (N,), labels (N,) and features (N, D)",
        )
    features = _unit(arrays.pop("features"), path)
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
    return FeatureTable(
        ids=ids, labels=columns.pop("labels"), features=features, role=role, slices=columns
    )


def _unit(features: NDArray[np.generic], path: Path) -> NDArray[np.float32]:
    """(N, D) float32 rows of length 1, in the array's own memory where it is float32."""
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise InputError(
            f"{path}: features must be (N, D) floats, got {features.shape} {features.dtype}"
        )
    rows: NDArray[np.float32] = features.astype(np.float32, copy=False)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        lengths = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64))
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(bad):
            raise InputError(
                f"{path}: the feature in row {start + bad[0]} is zero or not finite",
                tip="look for items that the model could not embed, and leave them out",
            )
        part /= lengths[:, None].astype(np.float32)
    return rows


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
