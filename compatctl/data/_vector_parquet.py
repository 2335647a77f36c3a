"""The columns of a Parquet file of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compatctl.data._arrow import arrow_errors, require_pyarrow
from compatctl.errors import InputError
from compatctl.files.npz import default_limit

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """The columns by name: (N,) Python values, or (N, D) numbers for lists of one length.

    Raises:
        InputError: no such file, no Parquet, more bytes than the memory allows, a list that is
            missing or of another length than the first.
        UsageError: pyarrow is not installed.
    """
    require_pyarrow(path)
    import pyarrow.parquet as pq

    with arrow_errors(path, "Parquet"):
        file = pq.ParquetFile(path)
        groups = range(file.metadata.num_row_groups)
        size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
        if size > default_limit():
            raise InputError(f"{path}: {size} bytes are more than the memory allows")
        table = file.read()
        return {name: _array(table.column(name), name, path) for name in table.column_names}


def _array(column: Any, name: str, path: Path) -> NDArray[Any]:
    """A chunked column of Arrow as an array."""
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not (
        pa.types.is_fixed_size_list(kind)
    ):
        return np.array(column.to_pylist(), object)
    if column.null_count:
        raise InputError(f"{path}: {name} has {column.null_count} rows without a list")
    if not len(column):
        return np.zeros((0, 0))
    values = column.combine_chunks()
    flat = np.asarray(values.flatten().to_numpy(zero_copy_only=False))
    width, rest = divmod(len(flat), len(column))
    lengths = values.value_lengths() if not pa.types.is_fixed_size_list(kind) else None
    if rest or (lengths is not None and (np.asarray(lengths) != width).any()):
        raise InputError(
            f"{path}: the lists of {name} have different lengths",
            tip="a table holds the vectors of one model",
        )
    return flat.reshape(len(column), width)
