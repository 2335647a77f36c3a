"""Parquet tables of images: fields are streamed, images are decoded block by block when needed."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from compatctl.data._arrow import TablePlan, arrow_errors, plan_of, require_pyarrow
from compatctl.data._columns import Fields
from compatctl.data._footer import null_counts
from compatctl.data._lazy import BlockCache, RowCounter, StoredImage, StoredRow, changed, stamp_of
from compatctl.data._tables import CellBudget
from compatctl.errors import InputError
from compatctl.files.npz import open_regular

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 4096
"""Rows whose fields are read at once."""

BLOCK_BYTES = 4 << 20
"""Size of a block of images that is decoded at once, if an image is no larger."""

MAX_BLOCK_ROWS = 4096
MAX_READERS = 2
"""Most Parquet files that are open to read images: an open one may hold a page of each."""

_BUFFER_BYTES = 1 << 20
_CACHE = BlockCache()


def parquet_rows(
    files: Sequence[tuple[Path, Mapping[str, object]]], fields: Fields, source: Path
) -> Iterator[StoredRow]:
    """(position for messages, fields, image) of each row of Parquet files.

    Each file comes with fields of its rows that have none. The image is None where the row names a
    file instead. Fields are streamed; no image is read. ``source`` is what notices name.

    Raises:
        InputError: no such file, or no Parquet; a missing column; a type that a field cannot have;
            or over the limits of a table.
        UsageError: pyarrow is not installed.
    """
    require_pyarrow(source)
    counter = RowCounter()
    for path, record in files:
        split = record.get("role") or record.get("split")
        rows = _file_rows(path, fields, source)
        yield from counter.counted(rows, record, f"{split}/" if split else "")


def _file_rows(path: Path, fields: Fields, source: Path) -> Iterator[StoredRow]:
    with arrow_errors(path, "Parquet"):
        reader = _reader(path)
        plan = plan_of(reader.schema_arrow, fields, source)
        CellBudget(path).take(reader.metadata.num_rows * max(1, len(plan.scalars)))
        images = ParquetImages(path, reader, plan.leaf) if plan.leaf else None
        has_image = None if images is None else images.present(reader)
        columns = list(plan.scalars)
        if has_image is not None and plan.nested and _has_path(reader, plan):
            columns.append(f"{plan.image}.path")
        if not columns:
            raise InputError(f"{path}: it has no column but that of the images")
        row = 0
        for batch in reader.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            values = _fields(plan, batch)
            for offset in range(batch.num_rows):
                record = {name: column[offset] for name, column in values.items()}
                there = images is not None and (has_image is None or bool(has_image[row]))
                stored = StoredImage(images, row) if images is not None and there else None
                yield f"{path}, row {row}", record, stored
                row += 1


def _fields(plan: TablePlan, batch: pa.RecordBatch) -> dict[str, list[object]]:
    """The values of a batch's fields; an image that is not in the table has the path of a file."""
    values = plan.columns(batch)
    if plan.nested and plan.image in batch.schema.names:
        values["path"] = batch.column(plan.image).field("path").to_pylist()
    return values


def _has_path(reader: pq.ParquetFile, plan: TablePlan) -> bool:
    kind = reader.schema_arrow.field(plan.image).type
    return any(kind.field(i).name == "path" for i in range(kind.num_fields))


def _reader(path: Path) -> pq.ParquetFile:
    """Open a Parquet file, which is read from the disk as it is needed."""
    import pyarrow.parquet as pq

    open_regular(path).close()  # refuses pipes and pointers
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)


class ParquetImages:
    """The images of a column of a Parquet file, by row.

    Rows of a row group are decoded in order, in blocks of about ``BLOCK_BYTES``, which a cache
    keeps. So rows in order are decoded once; a row out of order costs the part of its row group
    before it, unless its block is in the cache.
    """

    def __init__(self, path: Path, reader: pq.ParquetFile, leaf: str) -> None:
        self._path, self._leaf = path, leaf
        self._owner = object()
        weakref.finalize(self, _CACHE.drop, self._owner)
        with open_regular(path) as file:
            self._stamp = stamp_of(file)
        groups = [reader.metadata.row_group(g) for g in range(reader.metadata.num_row_groups)]
        self._starts = np.array([0, *accumulate(group.num_rows for group in groups)], np.int64)
        self._block_rows = [
            min(
                MAX_BLOCK_ROWS,
                max(1, BLOCK_BYTES * group.num_rows // max(1, group.total_byte_size)),
            )
            for group in groups
        ]
        self._lock = threading.Lock()
        self._reading: tuple[int, int, Iterator[pa.Array]] | None = None

    def present(self, reader: pq.ParquetFile) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Which rows (N,) have an image; None if all have. Reads images only where it must."""
        n_groups = len(self._starts) - 1
        counts: list[int | None] = [None] * n_groups
        with contextlib.suppress(ValueError), open_regular(self._path) as file:
            counts = null_counts(file, self._leaf)
        parts = []
        for group in range(n_groups):
            rows = int(self._starts[group + 1] - self._starts[group])
            count = counts[group] if len(counts) == n_groups else None
            if count in {0, rows}:
                parts.append(np.full(rows, count == 0))
            else:
                blocks = _blocks(reader, group, self._leaf, self._block_rows[group])
                valid = [block.is_valid().to_numpy(zero_copy_only=False) for block in blocks]
                parts.append(np.concatenate([np.zeros(0, bool), *valid]))
        has_image = np.concatenate([np.zeros(0, bool), *parts])
        if len(has_image) < self._starts[-1]:
            raise InputError(f"{self._path}: damaged: its row groups have fewer rows than they say")
        return None if has_image.all() else has_image

    def read(self, position: int, max_bytes: int) -> bytes:
        """See ``Container``."""
        group = int(np.searchsorted(self._starts, position, "right")) - 1
        row = position - int(self._starts[group])
        block, offset = divmod(row, self._block_rows[group])
        key = (self._owner, group, block)
        images = _CACHE.get(key)
        if images is None:
            with self._lock, arrow_errors(self._path, "Parquet"):
                images = _CACHE.get(key)
                if images is None:
                    images = self._decoded(group, block)
        if offset >= len(images):
            raise InputError(f"{self.where(position)}: damaged: its row group has fewer rows")
        image = images[offset]
        size = image.as_buffer().size if image.is_valid else 0
        if not 0 < size <= max_bytes:
            raise InputError(f"{self.where(position)}: {size} bytes; an image has 1 .. {max_bytes}")
        data: bytes = image.as_py()
        return data

    def where(self, position: int) -> str:
        """See ``Container``."""
        return f"{self._path}, row {position}"

    def _decoded(self, group: int, block: int) -> pa.Array:
        """Decode a block, from where the last one ended or else from the row group's begin."""
        at = self._reading
        if at is None or at[0] != group or at[1] > block:
            with open_regular(self._path) as file:
                if stamp_of(file) != self._stamp:
                    raise changed(self._path)
            blocks = _blocks(_reader(self._path), group, self._leaf, self._block_rows[group])
            at = (group, 0, blocks)
        _, number, blocks = at
        for images in blocks:
            _CACHE.put((self._owner, group, number), images, images.nbytes)
            number += 1
            if number > block:
                rows = int(self._starts[group + 1] - self._starts[group])
                is_last = number * self._block_rows[group] >= rows
                self._reading = None if is_last else (group, number, blocks)
                _READERS.use(self)
                return images
        raise changed(self._path)

    def close(self) -> None:
        """Close the reader, unless a thread reads; the next read opens another."""
        if self._lock.acquire(blocking=False):
            self._reading = None
            self._lock.release()


def _blocks(reader: pq.ParquetFile, group: int, leaf: str, size: int) -> Iterator[pa.Array]:
    """The images of a row group in order, in blocks of ``size`` rows."""
    import pyarrow as pa

    parts, rows = [], 0
    batches = reader.iter_batches(
        batch_size=size, row_groups=[group], columns=[leaf], use_threads=False
    )
    for batch in batches:
        column = batch.column(0)
        parts.append(column.field("bytes") if pa.types.is_struct(column.type) else column)
        rows += batch.num_rows
        while rows >= size:
            joined = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
            yield joined.slice(0, size)
            rows -= size
            parts = [joined.slice(size)] if rows else []
    if parts:
        yield pa.concat_arrays(parts)


class _Readers:
    """The files that are open; the least recently used is closed beyond ``MAX_READERS``."""

    def __init__(self) -> None:
        self._open: WeakKeyDictionary[ParquetImages, None] = WeakKeyDictionary()
        self._most = MAX_READERS
        self._lock = threading.Lock()

    def use(self, images: ParquetImages) -> None:
        """Count a file as used last; close the one that was used longest ago."""
        with self._lock:
            self._open.pop(images, None)
            self._open[images] = None
            oldest = next(iter(self._open)) if len(self._open) > self._most else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            oldest.close()


_READERS = _Readers()
