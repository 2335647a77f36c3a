"""Tables of vectors, with ids and labels where they have them: which columns, and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compatctl.data._arrow import arrow_errors, is_text, require_pyarrow
from compatctl.data._vector_rows import VECTOR_NAMES, single_precision
from compatctl.errors import InputError
from compatctl.files.npz import default_limit

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_NAMES = ("label", "labels")
NAMES = {
    "id": ("id", "ids", "key", "keys", "_id", "item_id", "point_id", "pk"),
    "vector": (*VECTOR_NAMES, "values"),
    "label": LABEL_NAMES,
}
"""Column -> the names by which it is found, in any case."""


def column_names(
    names: Sequence[str], columns: Mapping[str, str], path: Path, *, needed: Sequence[str]
) -> dict[str, str]:
    """Column -> its name in the table, of ``NAMES``: as ``columns`` says, or as it is found.

    Raises:
        InputError: a column is not there, or could be one of several.
    """
    listed = f"its columns are {', '.join(names) or 'none'}"
    chosen: dict[str, str] = {}
    for column, known in NAMES.items():
        if column in columns:
            if columns[column] not in names:
                raise InputError(f"{path}: there is no column {columns[column]!r}; {listed}")
            chosen[column] = columns[column]
            continue
        found = [name for name in names if name.lower() in known]
        if len(found) > 1:
            raise InputError(
                f"{path}: {', '.join(map(repr, found))} could each be the {column}",
                tip=f"compatctl import --items-column {column}={found[0]} says which",
            )
        if found:
            chosen[column] = found[0]
        elif column in needed:
            raise InputError(
                f"{path}: no column is known to be the {column}; {listed}",
                tip=f"compatctl import --items-column {column}=NAME says which",
            )
    return chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorColumns:
    """N vectors: ``rows`` (N, D) float32, mapped from a file; ``ids``, (N,) whole numbers or N
    texts, and N ``labels``, "" where there is none; either is None without such a column."""

    rows: NDArray[np.float32]
    ids: NDArray[np.integer[Any]] | tuple[str, ...] | None
    labels: tuple[str, ...] | None


def read_vector_columns(path: Path, columns: Mapping[str, str], target: Path) -> VectorColumns:
    """A Parquet file with a column of lists of floats and, if it has them, ids and labels.

    The vectors are copied to ``target``, a new .npy, batch by batch; ids and labels are in memory.

    Raises:
        UsageError: pyarrow is not installed.
        InputError: no Parquet; a missing column; vectors of different lengths or without a value;
            an id that is null, or no whole number and no text.
    """
    require_pyarrow(path)
    import pyarrow.parquet as pq

    with arrow_errors(path, "Parquet"), pq.ParquetFile(path) as file:
        chosen = column_names(file.schema_arrow.names, columns, path, needed=("vector",))
        batches = file.iter_batches(columns=[*chosen.values()])
        count = file.metadata.num_rows
        return read_vector_batches(batches, count, chosen, source=path, target=target)


def read_whole(
    path: Path, choose: Callable[[tuple[str, ...]], str]
) -> tuple[str, NDArray[Any], dict[str, list[object]]]:
    """The column of vectors of a Parquet file, these (N, D), of their own type, and every other
    column by its name.

    ``choose`` gives the column of vectors, of the names of all.

    Raises:
        UsageError: pyarrow is not installed.
        InputError: no Parquet; no rows; more bytes than the memory allows; or as ``_matrix``.
    """
    require_pyarrow(path)
    import pyarrow.parquet as pq

    with arrow_errors(path, "Parquet"), pq.ParquetFile(path) as file:
        name = choose(tuple(file.schema_arrow.names))
        groups = range(file.metadata.num_row_groups)
        size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        if size > default_limit():
            raise InputError(f"{path}: {size} bytes are more than the memory allows")
        if not file.metadata.num_rows:
            raise InputError(f"{path}: it has no rows")
        table = file.read()
        vectors = _matrix(table.column(name).combine_chunks(), name, path, 0)
        others = {other: table.column(other) for other in table.column_names if other != name}
        return name, vectors, {other: column.to_pylist() for other, column in others.items()}


def read_vector_batches(
    batches: Iterable[pa.RecordBatch],
    count: int,
    chosen: Mapping[str, str],
    *,
    source: Path,
    target: Path,
) -> VectorColumns:
    """``count`` rows in batches with the columns ``chosen``, as ``column_names`` gives them.

    The vectors are copied to ``target``, a new .npy, batch by batch; ids and labels are in memory.

    Raises:
        InputError: no rows; vectors of different lengths or without a value; an id that is null, or
            no whole number and no text.
        ValueError: the batches have more or fewer rows.
    """
    if not count:
        raise InputError(f"{source}: it has no rows")
    return _Reading(source, chosen).read(batches, count, target)


class _Reading:
    """One reading of batches: vectors into a file, ids and labels into lists."""

    def __init__(self, path: Path, chosen: Mapping[str, str]) -> None:
        self._path, self._chosen = path, chosen
        self._numbers: list[NDArray[np.integer[Any]]] = []
        self._ids: list[str] = []
        self._labels: list[str] = []

    def read(self, batches: Iterable[pa.RecordBatch], count: int, target: Path) -> VectorColumns:
        """All rows."""
        rows, first = None, 0
        for batch in batches:
            if not len(batch):
                continue
            column = batch.column(self._chosen["vector"])
            block = single_precision(_matrix(column, self._chosen["vector"], self._path, first))
            if rows is None:
                shape = (count, block.shape[1])
                rows = np.lib.format.open_memmap(target, "w+", np.float32, shape)
            if block.shape[1] != rows.shape[1]:
                raise _uneven(self._path, first, block.shape[1], rows.shape[1])
            rows[first : first + len(block)] = block
            self._read_names(batch, first)
            first += len(block)
        if rows is None or first != count:
            raise ValueError(f"{self._path}: {first} of {count} rows are there")
        ids = np.concatenate(self._numbers) if self._numbers else tuple(self._ids)
        return VectorColumns(
            rows=rows,
            ids=ids if "id" in self._chosen else None,
            labels=tuple(self._labels) if "label" in self._chosen else None,
        )

    def _read_names(self, batch: pa.RecordBatch, first: int) -> None:
        if "id" in self._chosen:
            self._read_ids(batch.column(self._chosen["id"]), first)
        if "label" in self._chosen:
            texts = batch.column(self._chosen["label"]).to_pylist()
            self._labels += ["" if text is None else str(text) for text in texts]

    def _read_ids(self, column: pa.Array, first: int) -> None:
        """Whole numbers as they are, as a list would mix int64 and uint64; and texts."""
        import pyarrow as pa

        if column.null_count:
            raise InputError(f"{self._path}: {column.null_count} ids near row {first} are null")
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_integer(column.type):
            # a copy: a view keeps the buffer that LanceDB shares with the vectors
            self._numbers.append(np.array(column.to_numpy()))
        elif is_text(kind):
            self._ids += column.to_pylist()
        else:
            raise refused_ids(self._path, kind)


def _matrix(column: pa.Array, name: str, path: Path, first: int) -> NDArray[Any]:
    """(n, D) numbers, of their own type, of a column of lists; ``first``: its first row's number.

    Raises:
        InputError: a row has no list or one of another length; a component is empty; no numbers.
    """
    kind = str(column.type)
    if column.null_count or "list" not in kind:
        what = f"{column.null_count} rows without one" if column.null_count else kind
        raise InputError(
            f"{path}: the column {name!r} must hold a list of floats in each row, got {what}",
            tip="export vectors as lists of float32, and leave out items that have none",
        )
    values = column.flatten()
    if values.null_count:
        raise InputError(f"{path}: a vector near row {first} has an empty component")
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "fiu":
        raise InputError(f"{path}: a vector must be a list of floats, got {kind}")
    lengths = np.diff(column.offsets.to_numpy()) if hasattr(column, "offsets") else None
    if lengths is not None and (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0]))
        raise _uneven(path, first + row, int(lengths[row]), int(lengths[0]))
    return flat.reshape(len(column), -1)


def _uneven(path: Path, row: int, found: int, expected: int) -> InputError:
    return InputError(
        f"{path}: the vector in row {row} has {found} components, that of the first row has "
        f"{expected}",
        tip="a table holds the vectors of one model",
    )


def refused_ids(path: Path, kind: object) -> InputError:
    """Ids of a type that is neither whole numbers nor texts."""
    return InputError(
        f"{path}: ids must be whole numbers or texts, got {kind}: a float cannot tell large whole "
        "numbers apart",
        tip="save ids as int64, uint64 or text",
    )
