"""The hnswlib engine, with the checks that hnswlib leaves out made before it is called.

hnswlib (0.8.0) silently loads a file of another dimension or with a flipped bit, forgets ef on
loading, reports nothing when a save fails, overwrites a key, takes NaN rows, and raises a bare
RuntimeError half way through a batch. So this module checks with numpy first and lets hnswlib only
do what cannot go wrong. Rows are in memory once, in hnswlib: those of a loaded file are read from
the file where needed, added ones from hnswlib.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from compatctl.core.arrays import Checksums, Keys, Scores, Vectors
from compatctl.errors import CompatError, InputError
from compatctl.files import os_errors
from compatctl.index.hnswlib.checks import check_layout, check_written
from compatctl.index.hnswlib.layout import StoredRows
from compatctl.index.hnswlib.params import HnswParams
from compatctl.index.rows import check_unit, first_duplicate, row_checksums
from compatctl.libraries import require_library
from compatctl.machine import processors
from compatctl.progress import Progress, silent, stage

_ADD_BATCH = 1024
_SEARCH_BATCH = 4096
_FETCH_BATCH = 512
"""hnswlib makes a Python float of every component of the rows that it returns."""

_NO_KEYS = np.zeros(0, np.uint64)


class HnswIndex:
    """Unit rows under uint64 keys, in memory; the file that it was loaded from never changes.

    Not thread-safe: hnswlib must not be read during an ``add``.
    """

    def __init__(self, engine: Any, params: HnswParams, stored: StoredRows | None = None) -> None:
        self._engine = engine
        self.params = params
        self._stored = stored
        self._added: list[Keys] = []
        self._checksums: list[Checksums] = []
        # Keys above this one are new without a lookup; those of a file have not been read.
        self._largest_key = np.uint64(0 if stored is None else 2**64 - 1)
        self._count = 0 if stored is None else len(stored)

    @classmethod
    def create(cls, params: HnswParams, capacity: int) -> Self:
        """An empty index with space for ``capacity`` rows; it grows beyond that, slowly.

        Raises:
            InputError: ``capacity`` is less than one row.
            CompatError: there is not enough memory.
        """
        if capacity < 1:
            raise InputError(f"an index needs a capacity of at least one row, got {capacity}")
        with _hnswlib_errors("making an index"):
            engine = _engine(params)
            engine.init_index(capacity, params.M, params.ef_construction, params.seed)
        return cls(engine, params)

    @classmethod
    def load(
        cls,
        path: Path,
        params: HnswParams,
        count: int | None = None,
        *,
        prevalidated: bool = False,
        extra_capacity: int = 0,
    ) -> Self:
        """Load a file after checking every value in it that hnswlib trusts.

        The caller compares the file's digest: a changed bit that leaves a row of unit length is
        not visible here. ``prevalidated``: exactly these bytes, by their digest, passed
        ``check_layout`` before, so only the header is checked; an unchecked file can end the
        process. ``extra_capacity`` does what ``reserve`` does, with less memory on the way.

        Raises:
            InputError: the file is missing or must not be read.
            DamagedError: it is damaged, has rows marked deleted, or has other parameters or, where
                given, another ``count`` of rows.
        """
        stored = StoredRows.open(path)
        params.check_header(stored.header, count, path)
        if not prevalidated:
            check_layout(stored)
        with _hnswlib_errors(f"loading {path}"):
            engine = _engine(params)
            engine.load_index(str(path), max_elements=stored.header.count + extra_capacity)
        return cls(engine, params, stored)

    def __len__(self) -> int:
        return self._count

    @property
    def max_ef(self) -> int:
        """The number of rows: a search with it visits whatever the graph reaches."""
        return len(self)

    def reserve(self, rows: int) -> None:
        """Make space for that many more rows in one step; ``save`` drops what is left of it.

        Raises:
            InputError: ``rows`` is negative.
            CompatError: there is not enough memory.
        """
        if rows < 0:
            raise InputError(f"the number of rows to reserve must be at least 0, got {rows}")
        if self._engine.get_max_elements() < len(self) + rows:
            self._resize(len(self) + rows)

    def add(
        self, vectors: Vectors, keys: Keys, progress: Progress = silent, *, threads: int = 1
    ) -> None:
        """Add unit rows ``vectors`` (n, D) float32 under new ``keys`` (n,), in memory only.

        Nothing is added unless everything is valid. Within the reserved capacity, time and memory
        are those of the batch. With one thread the same rows give the same file, whatever the
        batches. Drop an index whose ``add`` was interrupted.

        Raises:
            InputError: a wrong shape; a row that is not finite or not of unit length, by its
                number; a key that is there already or twice.
        """
        vectors, keys = self._checked_shape(vectors, "row"), _as_keys(keys)
        if len(vectors) != len(keys):
            raise InputError(f"{len(vectors)} rows, but {len(keys)} keys")
        starts = range(0, len(vectors), _ADD_BATCH)
        for start in starts:
            check_unit(_copy(vectors[start : start + _ADD_BATCH]), "row", first=start)
        self._check_new(keys)
        if (capacity := self._engine.get_max_elements()) < len(self) + len(keys):
            self._resize(max(len(self) + len(keys), capacity + capacity // 16))
        for start in starts:
            progress("building the index", start, len(vectors))
            batch = slice(start, start + _ADD_BATCH)
            self._add_batch(_copy(vectors[batch]), keys[batch], threads)
        progress("building the index", len(vectors), len(vectors))

    def save(self, path: Path) -> None:
        """Write the index to a new file and read it back.

        Raises:
            InputError: ``path`` exists, or its folder does not; the index is empty.
            CompatError: the file is too short: no space on the disk, or no permission.
            DamagedError: what was read back is not what was written.
        """
        if len(self) == 0:
            raise InputError("an index needs at least one row", tip="add rows before it is saved")
        with os_errors("writing", path):
            if path.exists() or not path.parent.is_dir():
                why = "the file exists already" if path.exists() else "there is no such folder"
                raise InputError(f"writing {path}: {why}")
        if self._engine.get_max_elements() > len(self):
            self._resize(len(self))  # the file records the capacity, which depends on the batches
        with _hnswlib_errors(f"writing {path}"):
            expected = int(self._engine.index_file_size())
            self._engine.save_index(str(path))
        written = path.stat().st_size if path.is_file() else 0
        if written != expected:
            raise CompatError(
                f"writing {path}: only {written} of {expected} bytes arrived",
                tip="check that the disk has space and that you may write there",
            )
        check_written(path, self._stored, _joined(self._added), _joined(self._checksums))

    def keys(self) -> Keys:
        """Every key (N,) uint64, in the order of the rows."""
        stored = _NO_KEYS if self._stored is None else self._stored.keys
        return np.concatenate([stored, *self._added])

    def vectors(self, keys: Keys | None = None) -> Vectors:
        """The rows (n, D) float32 of ``keys`` (n,), or all rows in their order.

        Raises:
            InputError: there is no row of a key.
        """
        if keys is None:
            vectors, first = np.empty((len(self), self.params.dim), np.float32), 0
            for _, rows in self._blocks():
                vectors[first : first + len(rows)] = rows
                first += len(rows)
            return vectors
        keys = _as_keys(keys)
        if self._stored is None:
            return self._fetch(keys)
        vectors = np.empty((len(keys), self.params.dim), np.float32)
        positions = self._stored.find(keys)
        added = positions < 0
        vectors[added] = self._fetch(keys[added])
        vectors[~added] = self._stored.rows(positions[~added])
        return vectors

    def search(
        self, queries: Vectors, k: int, ef: int | None = None, *, threads: int | None = None
    ) -> tuple[Keys, Scores]:
        """Keys and cosines of approximately the nearest rows of unit ``queries`` (Q, D).

        Both are (Q, min(k, N)), nearest first. ``ef`` (default: the parameters' ef_search) is
        raised to k. Where the graph cannot reach enough rows, the search is exact. ``threads``
        search (default: one a processor).

        Raises:
            InputError: k < 1, a wrong dimension, or a query that is not finite or not of unit
                length, by its number.
        """
        queries = np.asarray(self._checked_shape(queries, "query"), np.float32, order="C")
        check_unit(queries, "query")
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        k = min(k, len(self))
        if len(queries) == 0 or k == 0:
            return np.zeros((len(queries), k), np.uint64), np.zeros((len(queries), k), np.float32)
        self._engine.set_ef(self.params.ef_search if ef is None else ef)
        try:
            keys, distances = self._nearest(queries, k, threads or processors())
        except RuntimeError:
            return self._search_exact(queries, k)
        halved = distances * np.float32(0.5) if self.params.space == "l2" else distances
        return keys.astype(np.uint64, copy=False), np.float32(1.0) - halved

    def _nearest(self, queries: Vectors, k: int, threads: int) -> tuple[Keys, Scores]:
        """Keys and distances of hnswlib; of many queries in parts, which are progress."""
        if len(queries) <= _SEARCH_BATCH:
            found: tuple[Keys, Scores] = self._engine.knn_query(queries, k, num_threads=threads)
            return found
        keys = np.empty((len(queries), k), np.uint64)
        distances = np.empty((len(queries), k), np.float32)
        with stage("searching the index", len(queries)) as part:
            for start in range(0, len(queries), _SEARCH_BATCH):
                rows = slice(start, start + _SEARCH_BATCH)
                keys[rows], distances[rows] = self._engine.knn_query(
                    queries[rows], k, num_threads=threads
                )
                part(start)
        return keys, distances

    def _search_exact(self, queries: Vectors, k: int) -> tuple[Keys, Scores]:
        keys, scores = np.zeros((len(queries), 0), np.uint64), np.zeros((len(queries), 0), "f4")
        for block, rows in self._blocks():
            scores = np.hstack([scores, queries @ rows.T])
            keys = np.hstack([keys, np.broadcast_to(block, (len(queries), len(block)))])
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            keys, scores = np.take_along_axis(keys, best, 1), np.take_along_axis(scores, best, 1)
        return keys, scores

    def _blocks(self) -> Iterator[tuple[Keys, Vectors]]:
        """Keys (n,) and rows (n, D) of every block, in order, valid until the next one."""
        if self._stored is not None:
            for _, block in self._stored.blocks():
                yield block["key"], block["row"]
        added = _joined(self._added)
        for start in range(0, len(added), _ADD_BATCH):
            keys = added[start : start + _ADD_BATCH]
            yield keys, self._fetch(keys)

    def _fetch(self, keys: Keys) -> Vectors:
        """The rows (n, D) of ``keys`` (n,), from hnswlib."""
        vectors = np.empty((len(keys), self.params.dim), np.float32)
        for start in range(0, len(keys), _FETCH_BATCH):
            batch = keys[start : start + _FETCH_BATCH]
            try:
                vectors[start : start + _FETCH_BATCH] = self._engine.get_items(batch)
            except RuntimeError:
                missing = next(key for key in batch if not self._contains(key))
                raise InputError(f"the index has no row under the key {missing}") from None
        return vectors

    def _contains(self, key: np.uint64) -> bool:
        try:
            self._engine.get_items([key])
        except RuntimeError:
            return False
        return True

    def _check_new(self, keys: Keys) -> None:
        """Refuse keys (n,) that hnswlib has, whose rows it would overwrite, and duplicates."""
        ordered = keys.copy()
        duplicate = first_duplicate(ordered)
        if duplicate is None:
            known = np.searchsorted(ordered, self._largest_key, side="right")
            duplicate = next((int(key) for key in ordered[:known] if self._contains(key)), None)
        if duplicate is not None:
            raise InputError(f"the key {duplicate} is there already, or twice")

    def _add_batch(self, rows: Vectors, keys: Keys, threads: int) -> None:
        with _hnswlib_errors("adding rows"):
            self._engine.add_items(rows, keys, num_threads=threads)
        self._added.append(keys.copy())
        self._checksums.append(row_checksums(rows))
        self._count += len(keys)
        self._largest_key = max(self._largest_key, keys.max())

    def _resize(self, capacity: int) -> None:
        with _hnswlib_errors("changing the capacity"):
            self._engine.resize_index(capacity)

    def _checked_shape(self, values: Vectors, name: str) -> Vectors:
        shape = np.shape(values)
        if len(shape) != 2 or shape[1] != self.params.dim:
            plural = "queries" if name == "query" else f"{name}s"
            raise InputError(f"{plural} must be (n, {self.params.dim}), got {shape}")
        return np.asarray(values)


def _copy(values: Vectors) -> Vectors:
    """A float32 copy that no caller can change."""
    return np.array(values, np.float32, order="C")


def _joined(parts: list[Keys]) -> Keys:
    """The parts as one array, which replaces them."""
    if len(parts) != 1:
        parts[:] = [np.concatenate([_NO_KEYS, *parts])]
    return parts[0]


def require_hnswlib() -> None:
    """Refuse to go on without hnswlib; call it before work that would be lost.

    Raises:
        InputError: hnswlib is not installed, or does not load.
    """
    require_library(
        "hnswlib",
        extra="hnswlib",
        subject="the index of a store",
        tip=", which compiles it: a C++ compiler is needed",
    )


def _engine(params: HnswParams) -> Any:
    require_hnswlib()
    import hnswlib

    # A file of the space cosine holds rows that are normalised already: ip reads it as it is.
    return hnswlib.Index(space="l2" if params.space == "l2" else "ip", dim=params.dim)


@contextmanager
def _hnswlib_errors(action: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise CompatError(f"hnswlib, {action}: {error}") from error
    except MemoryError as error:
        raise CompatError(f"hnswlib, {action}: there is not enough memory") from error


def _as_keys(values: Keys) -> Keys:
    keys = np.asarray(values)
    if keys.ndim != 1 or keys.dtype.kind not in "iu" or (keys.size and keys.min() < 0):
        raise InputError(
            f"keys must be whole numbers (n,) >= 0, got {keys.dtype} of shape {keys.shape}"
        )
    return keys.astype(np.uint64)
