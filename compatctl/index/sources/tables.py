"""Tables of ids and vectors: .npy, .npz and Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.data import column_names, read_vector_columns, refused_ids
from compatctl.errors import InputError
from compatctl.files.npz import read_npz
from compatctl.index.rows import first_duplicate
from compatctl.index.sources.rows import ForeignRows


def read_npy(path: Path) -> ForeignRows:
    """A .npy of rows (N, D), mapped. Ids are the lines of NAME.ids.txt beside it, if there is one;
    otherwise the keys are the row numbers.

    Raises:
        InputError: it is unreadable, holds objects, or is no (N, D) of floats; or the ids are not N
            different texts.
    """
    names = path.with_suffix(".ids.txt")
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a .npy file that can be read: {error}") from error
    check_rows(rows, path, "the array")
    if lines is not None and len(lines) != len(rows):
        raise InputError(f"{names} has {len(lines)} ids, {path.name} has {len(rows)} rows")
    ids = np.arange(len(rows), dtype=np.uint64) if lines is None else np.array(lines)
    return ForeignRows(engine="numpy", kind="npy", similarity=None, rows=rows, **named(ids, path))


def read_npz_table(path: Path, columns: Mapping[str, str]) -> ForeignRows:
    """An .npz of vectors (N, D) and, if it has them, ids (N,) and labels (N,).

    Raises:
        InputError: it is unreadable, an array is missing, or has another shape or type.
    """
    arrays = read_npz(path)
    chosen = column_names(tuple(arrays), columns, path, needed=("vector",))
    rows = arrays[chosen["vector"]]
    check_rows(rows, path, f"the array {chosen['vector']}")
    ids = arrays[chosen["id"]] if "id" in chosen else np.arange(len(rows), dtype=np.uint64)
    labels = arrays[chosen["label"]] if "label" in chosen else None
    for name, array in (("ids", ids), ("labels", labels)):
        if array is not None and array.shape != (len(rows),):
            raise InputError(f"{path}: {name} must be ({len(rows)},), got {array.shape}")
    return ForeignRows(
        engine="numpy",
        kind="npz",
        similarity=None,
        rows=rows,
        labels=None if labels is None else tuple(map(str, labels.tolist())),
        **named(ids, path),
    )


def read_parquet(path: Path, columns: Mapping[str, str], scratch: Path) -> ForeignRows:
    """A Parquet file of vectors and, if it has them, ids and labels; vectors go to ``scratch``.

    Raises:
        UsageError, InputError: as ``read_vector_columns``; or ids that are refused by ``named``.
    """
    table = read_vector_columns(path, columns, scratch / "rows.npy")
    ids = np.arange(len(table.rows), dtype=np.uint64) if table.ids is None else table.ids
    return ForeignRows(
        engine="Parquet",
        kind="table",
        similarity=None,
        rows=table.rows,
        labels=table.labels,
        **named(ids, path),
    )


def check_rows(rows: NDArray[Any], path: Path, name: str) -> None:
    """Refuse what is not (N, D) floats."""
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind != "f":
        raise InputError(
            f"{path}: {name} must be (N, D) floats, got {rows.shape} {rows.dtype}",
            tip="save one row an item: int8 and binary codes are not the vectors themselves",
        )


def named(ids: NDArray[Any] | tuple[str, ...], path: Path) -> dict[str, Any]:
    """``keys`` of whole numbers >= 0, or ``ids`` of texts, as ForeignRows has them.

    Raises:
        InputError: ids of another type, twice, or empty.
    """
    if isinstance(ids, tuple):
        texts = ids
    elif ids.dtype.kind in "iu" and int(ids.min()) >= 0:
        keys = ids.astype(np.uint64)
        if (duplicate := first_duplicate(keys.copy())) is not None:
            raise InputError(f"{path}: the id {duplicate} is there twice")
        return {"keys": keys}
    elif ids.dtype.kind in "iuU":
        texts = tuple(map(str, ids.tolist()))
    else:
        raise refused_ids(path, ids.dtype)
    if len(set(texts)) < len(texts):
        raise InputError(f"{path}: {len(texts) - len(set(texts))} ids are there twice")
    if empty := sum(not text.strip() for text in texts):
        raise InputError(f"{path}: {empty} ids are empty")
    return {"ids": texts}
