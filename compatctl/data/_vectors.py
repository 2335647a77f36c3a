"""Tables of ids and vectors, from models behind an API: .npz, .npy, .parquet or .jsonl."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors
from compatctl.data._columns import Fields
from compatctl.data._near import warn_of_near_equal
from compatctl.data._tables import CellBudget, open_table, raw_lines
from compatctl.errors import InputError
from compatctl.files import parse_json
from compatctl.files.npz import default_limit, read_npz

VECTOR_NAMES = ("vectors", "features", "embeddings", "vector", "embedding", "feature")
"""What the array or column of vectors may be called, in the order in which they are looked for."""

FORMS = "an .npz, .npy, .parquet or .jsonl file of ids and vectors"
_COLUMNS = Fields(
    required=("id",), optional=("label", "split", "role"), advice="a table of vectors has ids"
)
_ARRAYS = Fields(
    required=("ids",), optional=("labels", "split", "role"), advice="a table of vectors has ids"
)
_BLOCK = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorTable:
    """N ids and vectors of one model.

    Attributes:
        vectors: (N, D) float32, finite and not zero, of any length.
        columns: label, split, role and slices, as far as the file has them: name -> N values.
    """

    path: Path
    ids: tuple[str, ...]
    vectors: Vectors
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """(n,) the row of each id; -1: the table does not have it."""
        row_of = {item: row for row, item in enumerate(self.ids)}
        return np.fromiter((row_of.get(item, -1) for item in ids), np.int64, len(ids))


def load_vectors(path: Path) -> VectorTable:
    """Read a table of ids and vectors; rows keep their lengths. It has one of these forms:

    - .npz: the arrays ids (N,) and vectors (N, D) (or features, or embeddings), and optionally
      labels, split, role, and slices (N,);
    - .npy: vectors (N, D), with their ids, one a line, in NAME.ids.txt beside it;
    - .parquet: the columns id and vector (or embedding), a list of numbers; the others as in .npz;
    - .jsonl: an object a line, with the same keys.

    Raises:
        InputError: no such file; another form; a missing array, column or key; vectors of mixed
            dimensions, or one that is zero or not finite; an id that is empty or repeated.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"no table of vectors at {path}: {error.strerror}", tip=f"vectors are {FORMS}"
        ) from None
    return _load(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _load(path: Path, changed_ns: int, size: int) -> VectorTable:
    """The table of a file that changed last at this time, and has this size; kept, as a command
    needs it for its items and for its model."""
    readers = {".npz": _npz, ".npy": _npy, ".parquet": _parquet, ".jsonl": _jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise InputError(f"{path}: an unknown form of vectors", tip=f"vectors are {FORMS}")
    ids, vectors, columns = reader(path)
    _refuse_bad_ids(path, ids)
    _refuse_bad_rows(path, vectors, ids)
    warn_of_near_equal(path, ids, columns.get("label", ()))
    return VectorTable(path=path, ids=ids, vectors=vectors, columns=columns)


_Parts = tuple[tuple[str, ...], Vectors, dict[str, tuple[str, ...]]]


def _npz(path: Path) -> _Parts:
    arrays = read_npz(path)
    name = _vector_name(tuple(arrays), path, "arrays")
    renamed = _ARRAYS.rename(tuple(arrays), path, "arrays")
    arrays = {renamed.get(key, key): array for key, array in arrays.items()}
    vectors = _matrix(arrays.pop(name), path)
    arrays.pop("similarity", None)
    columns = {
        {"labels": "label"}.get(key, key): _texts(array, key, len(vectors), path)
        for key, array in arrays.items()
    }
    return columns.pop("ids"), vectors, columns


def _npy(path: Path) -> _Parts:
    names = path.with_suffix(".ids.txt")
    if not names.is_file():
        raise InputError(
            f"{path} has vectors without ids",
            tip=f"write the ids, one a line, to {names.name} beside it; or save both as .npz with "
            "the arrays ids and vectors",
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        lines = names.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if array.nbytes > default_limit():
        raise InputError(f"{path}: {array.nbytes} bytes are more than the memory allows")
    vectors = _matrix(np.asarray(array), path)
    if len(lines) != len(vectors):
        raise InputError(f"{names} has {len(lines)} ids, {path.name} has {len(vectors)} vectors")
    return tuple(lines), vectors, {}


def _parquet(path: Path) -> _Parts:
    from compatctl.data._vector_parquet import read_columns

    table = read_columns(path)
    name = _vector_name(tuple(table), path, "columns")
    renamed = _COLUMNS.rename(tuple(table), path)
    table = {renamed.get(key, key): column for key, column in table.items()}
    vectors = _matrix(table.pop(name), path)
    columns = {key: _texts(column, key, len(vectors), path) for key, column in table.items()}
    return columns.pop("id"), vectors, columns


def _jsonl(path: Path) -> _Parts:
    cells_left, name = CellBudget(path), ""
    rows: list[Vectors] = []
    records: list[dict[str, str]] = []
    for where, record in _objects(path):
        name = name or _vector_name(tuple(record), path, "keys")
        vector = record.pop(name, None)
        if not isinstance(vector, list) or not all(type(x) in {int, float} for x in vector):
            raise InputError(f"{where}: {name} must be a list of numbers")
        cells_left.take(len(vector))
        rows.append(np.array(vector, np.float32))
        if len(rows[-1]) != len(rows[0]):
            raise InputError(
                f"{where}: a vector of {len(rows[-1])} dimensions; the first has {len(rows[0])}",
                tip="a table holds the vectors of one model",
            )
        if not isinstance(record.get("id"), str | int):
            raise InputError(f"{where}: there is no id; its keys are {', '.join(record)}")
        records.append({key: _text(value) for key, value in record.items()})
    if not rows:
        raise InputError(f"{path}: there is no vector in it")
    names = dict.fromkeys(key for record in records for key in record)
    columns = {key: tuple(record.get(key, "") for record in records) for key in names}
    return columns.pop("id"), np.stack(rows), columns


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(position for messages, object) of each line that is not empty."""
    try:
        with open_table(path) as file:
            for number, line in enumerate(raw_lines(file, path), 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    parsed = parse_json(line.removeprefix(codecs.BOM_UTF8), where)
                    if not isinstance(parsed, dict):
                        raise InputError(f"{where}: not a JSON object")
                    yield where, parsed
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _vector_name(names: Sequence[str], path: Path, what: str) -> str:
    """The array, column or key that has the vectors."""
    found = [name for name in VECTOR_NAMES if name in names]
    if len(found) != 1:
        raise InputError(
            f"{path}: {' and '.join(found) if found else 'none'} of its {what} "
            f"{', '.join(names) or '(none)'} can be the vectors; expected one",
            tip="call it vectors, and the others otherwise",
        )
    return found[0]


def _matrix(array: NDArray[Any], path: Path) -> Vectors:
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: its vectors must be (N, D) numbers, got {array.shape} {array.dtype}"
        )
    return np.ascontiguousarray(array, np.float32)


def _texts(column: NDArray[Any], name: str, n: int, path: Path) -> tuple[str, ...]:
    if column.shape != (n,) or column.dtype.kind not in "UiuO":
        raise InputError(
            f"{path}: {name} must be {n} texts or whole numbers, got {column.shape} {column.dtype}"
        )
    return tuple(_text(value) for value in column.tolist())


def _refuse_bad_ids(path: Path, ids: Sequence[str]) -> None:
    empty = next((row for row, item in enumerate(ids) if not item.strip()), None)
    if empty is not None:
        raise InputError(f"{path}: row {empty} has no id: expected one that no other row has")
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: {len(ids) - len(set(ids))} ids are there twice")


def _refuse_bad_rows(path: Path, vectors: Vectors, ids: Sequence[str]) -> None:
    """Refuse rows that are zero or not finite."""
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        lengths = np.einsum("nd,nd->n", block, block, dtype=np.float64)
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(bad):
            raise InputError(
                f"{path}: the vector of {ids[start + int(bad[0])]!r} is zero or not finite",
                tip="leave out items that the model cannot embed",
            )
