"""Tables of ids and vectors, from models behind an API: .npz, .npy, .parquet or .jsonl."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors
from compatctl.data._columns import Fields, LineKeys
from compatctl.data._near import warn_of_near_equal
from compatctl.data._tables import CellBudget, json_object, open_table, raw_lines, text_lines
from compatctl.data._vector_columns import read_whole
from compatctl.data._vector_rows import (
    VECTOR_NAMES,
    single_precision,
    unusable_rows,
    warn_of_equal_rows,
    why_unusable,
)
from compatctl.errors import InputError
from compatctl.files.npz import default_limit, read_npz
from compatctl.notices import notice
from compatctl.progress import stage

FORMS = "an .npz, .npy, .parquet or .jsonl file of ids and vectors"
_COLUMNS = Fields(
    required=("id",), optional=("label", "split", "role"), advice="a table of vectors has ids"
)
_ARRAYS = Fields(
    required=("ids",), optional=("labels", "split", "role"), advice="a table of vectors has ids"
)
_NAMED = ("id", "label", "split", "role")
"""Columns whose cells are text or whole numbers."""
_BLOCK = 65_536
_HALF = re.compile("[\ud800-\udfff]")


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
    with stage(f"reading {path.name}"):
        ids, vectors, columns = reader(path)
        _refuse_bad_ids(path, ids)
        warn_of_equal_rows(path, vectors)
        warn_of_near_equal(path, ids, columns.get("label", ()))
    return VectorTable(path=path, ids=ids, vectors=vectors, columns=columns)


_Parts = tuple[tuple[str, ...], Vectors, dict[str, tuple[str, ...]]]


def _npz(path: Path) -> _Parts:
    arrays = read_npz(path)
    name = _vector_name(tuple(arrays), path, "arrays")
    renamed = _ARRAYS.rename(tuple(arrays), path, "arrays")
    vectors = arrays.pop(name)
    _refuse_shape(vectors, path)
    _warn_of_similarity(arrays.pop("similarity", None), path)
    if "label" in arrays and "labels" in arrays:
        raise InputError(
            f"{path}: 'label' and 'labels' could each be the labels", tip="leave one of them out"
        )
    columns: dict[str, tuple[str, ...]] = {}
    for key, array in arrays.items():
        field = renamed.get(key, key)
        if array.shape != (len(vectors),) or array.dtype.kind not in "Uiu":
            raise InputError(
                f"{path}: {key} must be {len(vectors)} texts or whole numbers, got {array.shape} "
                f"{array.dtype}"
            )
        columns[{"labels": "label"}.get(field, field)] = tuple(map(str, array.tolist()))
    return columns["ids"], _matrix(vectors, columns.pop("ids"), path), columns


def _warn_of_similarity(similarity: NDArray[Any] | None, path: Path) -> None:
    """Warn of a similarity other than the cosine, by which the vectors are compared."""
    words = [] if similarity is None else sorted(map(str, np.unique(similarity)))
    if words not in ([], ["cosine"]):
        result = "vectors are compared by their cosine, and their lengths do not count"
        notice("similarity", path, "similarities that are not read", words, result)


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
        with open_table(names) as file:
            lines = tuple(line.rstrip("\r\n") for line in text_lines(file, names))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if array.nbytes > default_limit():
        raise InputError(f"{path}: {array.nbytes} bytes are more than the memory allows")
    if array.ndim == 2 and len(lines) != len(array):
        raise InputError(
            f"{names} has {len(lines)} ids, {path.name} has {len(array)} vectors",
            tip="write the id of each vector on a line of its own, without a header or empty lines",
        )
    return lines, _matrix(np.asarray(array), lines, path), {}


def _parquet(path: Path) -> _Parts:
    name, vectors, others = read_whole(path, lambda names: _vector_name(names, path, "columns"))
    renamed = _COLUMNS.rename((name, *others), path)
    columns = _columns({renamed.get(key, key): cells for key, cells in others.items()}, path)
    return columns["id"], _matrix(vectors, columns.pop("id"), path), columns


def _jsonl(path: Path) -> _Parts:
    cells_left, keys, name = CellBudget(path), LineKeys(path, _COLUMNS), ""
    rows: list[NDArray[np.float64]] = []
    records: list[dict[str, object]] = []
    for where, parsed in _objects(path):
        name = name or _vector_name(tuple(parsed), path, "keys")
        record = keys.renamed(parsed, where)
        vector = record.pop(name, None)
        if not isinstance(vector, list) or not all(type(x) in {int, float} for x in vector):
            found = f"{vector!r:.60}" if name else "nothing"
            raise InputError(f"{where}: {name} must be a list of numbers, got {found}")
        cells_left.take(len(vector))
        rows.append(_double_precision(vector, where))
        if len(rows[-1]) != len(rows[0]):
            raise InputError(
                f"{where}: a vector of {len(rows[-1])} dimensions; the first has {len(rows[0])}",
                tip="a table holds the vectors of one model",
            )
        records.append(record)
    if not rows:
        raise InputError(f"{path}: there is no vector in it")
    names = dict.fromkeys(key for record in records for key in record)
    columns = _columns({key: [row.get(key) for row in records] for key in names}, path)
    return columns["id"], _matrix(np.stack(rows), columns.pop("id"), path), columns


def _double_precision(vector: list[int | float], where: str) -> NDArray[np.float64]:
    try:
        return np.array(vector, np.float64)
    except OverflowError:
        raise InputError(
            f"{where}: a number of the vector is too large", tip="look at the program that wrote it"
        ) from None


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(position for messages, object) of each line that is not empty."""
    try:
        with open_table(path) as file:
            for number, line in enumerate(raw_lines(file, path), 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, json_object(line, where)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _columns(columns: Mapping[str, Sequence[object]], path: Path) -> dict[str, tuple[str, ...]]:
    """Columns of values as texts; nested ones and bytes are left out, with a notice.

    Raises:
        InputError: an id, label, split or role is neither text nor a whole number.
    """
    texts: dict[str, tuple[str, ...]] = {}
    unread: list[str] = []
    for name, values in columns.items():
        kinds = set(map(type, values)) - {type(None)}
        if bad := kinds - ({str, int} if name in _NAMED else {str, int, float, bool}):
            if name in _NAMED:
                row, value = next((r, v) for r, v in enumerate(values) if type(v) in bad)
                raise InputError(
                    f"{path}, row {row}: {name} must be text or a whole number, got {value!r:.60}",
                    tip="write it as text, as it shall be compared: 7 and 7.0 are two ids",
                )
            unread.append(f"{name!r} of {', '.join(sorted(kind.__name__ for kind in bad))}")
            continue
        texts[name] = tuple("" if value is None else str(value) for value in values)
    if unread:
        notice("column-not-read", path, "columns that are no text or number", unread)
    return texts


def _vector_name(names: Sequence[str], path: Path, what: str) -> str:
    """The array, column or key that has the vectors."""
    found = [name for name in names if name.casefold() in VECTOR_NAMES]
    if len(found) != 1:
        raise InputError(
            f"{path}: {' and '.join(found) if found else 'none'} of its {what} "
            f"{', '.join(names) or '(none)'} can be the vectors; expected one",
            tip="call it vectors, and the others otherwise",
        )
    if found[0] not in VECTOR_NAMES:
        notice("similar-column", path, f"{what} read by a similar name", [f"{found[0]!r}"])
    return found[0]


def _matrix(array: NDArray[Any], ids: Sequence[str], path: Path) -> Vectors:
    """(N, D) float32, contiguous, of numbers of any type; no row is unusable.

    Whole numbers have a notice: they may be packed bits, or a code with an offset.
    """
    _refuse_shape(array, path)
    if array.dtype.kind in "iu":
        result = "if they are packed bits, or a code with an offset, decode them first"
        notice("whole-numbers", path, "vectors of whole numbers", [str(array.dtype)], result)
    if len(ids) != len(array):
        raise InputError(f"{path}: {len(ids)} ids for {len(array)} vectors")
    rows = np.ascontiguousarray(single_precision(array))
    for start in range(0, len(rows), _BLOCK):
        if len(bad := unusable_rows(rows[start : start + _BLOCK])):
            row = start + int(bad[0])
            raise InputError(
                f"{path}: the vector of {ids[row]!r} {why_unusable(array[row])}",
                tip="leave out items that the model cannot embed",
            )
    return rows


def _refuse_shape(array: NDArray[Any], path: Path) -> None:
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: its vectors must be (N, D) numbers, got {array.shape} {array.dtype}",
            tip="save them as a matrix of float32 with a row for each id",
        )


def _refuse_bad_ids(path: Path, ids: Sequence[str]) -> None:
    for row, item in enumerate(ids):
        if not item.strip():
            raise InputError(f"{path}: row {row} has no id: expected one that no other row has")
        if "\0" in item or (not item.isascii() and _HALF.search(item)):
            raise InputError(f"{path}: the id of row {row} is no text: {item!r}")
    if len(set(ids)) < len(ids):
        twice = next(item for item, count in Counter(ids).items() if count > 1)
        raise InputError(
            f"{path}: {len(ids) - len(set(ids))} ids are there twice, such as {twice!r}",
            tip="an item has one vector in a table",
        )
