"""hnswlib, with every check that it leaves out made here, before it is called.

hnswlib (0.8.0) loads a file of another dimension or with a flipped bit without a word, forgets ef
on loading, reports nothing when a save fails, overwrites a key silently, takes NaN rows, and raises
a bare RuntimeError half way through a batch. So this module checks with numpy first, and lets
hnswlib only do what cannot go wrong. Rows are in memory once, in hnswlib; those of a loaded file
are read from it where they are needed, those that were added are asked back from hnswlib.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from compatctl.core.arrays import Checksums, Keys, Vectors
from compatctl.errors import CompatError, InputError
from compatctl.files import os_errors
from compatctl.index.checks import check_stored, first_duplicate
from compatctl.index.layout import StoredRows, check_unit
from compatctl.index.params import HnswParams
from compatctl.index.readback import check_written, row_checksums
from compatctl.progress import Progress, silent

_ADD_BATCH = 2048
_EXACT_BLOCK = 4096
_ASKED = 512
"""Rows asked back at once: hnswlib makes a Python number of every component."""

_NONE = np.zeros(0, np.uint64)


class HnswIndex:
    """Unit rows under uint64 keys, in memory; a file that it was loaded from is never changed.

    One thread at a time may use it: hnswlib's reads are not safe during an ``add``.
    """

    def __init__(self, engine: Any, params: HnswParams, stored: StoredRows | None = None) -> None:
        self._engine = engine
        self.params = params
        self._stored = stored
        self._added: list[Keys] = []
        self._marks: list[Checksums] = []
        # Keys above this one are new without a look; those of a file have not been read.
        self._top = np.uint64(0 if stored is None else 2**64 - 1)
        self._count = 0 if stored is None else len(stored)

    @classmethod
    def begin(cls, params: HnswParams, capacity: int) -> Self:
        """An empty index with room for ``capacity`` rows, for ``add``; it grows beyond, slowly.

        Raises:
            InputError: ``capacity`` is less than one row.
            CompatError: there is not enough memory.
        """
        if capacity < 1:
            raise InputError(f"an index needs room for at least one row, got {capacity}")
        with _hnswlib("making an index"):
            engine = _engine(params)
            engine.init_index(capacity, params.M, params.ef_construction, params.seed)
        return cls(engine, params)

    @classmethod
    def build(
        cls,
        vectors: Vectors,
        keys: Keys,
        params: HnswParams,
        progress: Progress = silent,
        *,
        threads: int = 1,
    ) -> Self:
        """A new index of ``vectors`` (N, D) float32, unit rows, under ``keys`` (N,).

        With one thread the same rows give the same bytes, in whatever batches they are added to
        ``begin``; with more they do not.

        Raises:
            InputError: no row; a wrong shape; a row that is not finite or not of unit length, by
                its number; a key that is there twice.
        """
        if len(vectors) == 0:
            raise InputError("an index needs at least one row")
        found = cls.begin(params, len(vectors))
        found.add(vectors, keys, progress, threads=threads)
        return found

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
        """The index in a file, after every number in it that hnswlib trusts was checked.

        The file's digest is the caller's to compare: a changed bit inside a row that leaves it
        of unit length cannot be seen here. ``prevalidated`` is the caller's word that exactly these
        bytes, by their digest, passed ``check_layout`` before: then only the header is read
        beforehand. A wrong word hands hnswlib an unchecked file, which can end the process.
        ``extra_capacity`` is what ``reserve`` makes, with less memory on the way.

        Raises:
            InputError: the file is missing or must not be read.
            DamagedError: it is damaged, has rows marked deleted, or is not of these parameters
                and, where given, this number of rows.
        """
        stored = StoredRows.open(path)
        params.expect(stored.header, count, path)
        if not prevalidated:
            check_stored(stored)
        with _hnswlib(f"loading {path}"):
            engine = _engine(params)
            engine.load_index(str(path), max_elements=stored.header.count + extra_capacity)
        return cls(engine, params, stored)

    def __len__(self) -> int:
        return self._count

    def reserve(self, rows: int) -> None:
        """Make room for that many more rows in one step; ``save`` gives back what is left of it.

        Raises:
            InputError: ``rows`` is negative.
            CompatError: there is not enough memory.
        """
        if rows < 0:
            raise InputError(f"room for {rows} rows cannot be made")
        if self._engine.get_max_elements() < len(self) + rows:
            self._resize(len(self) + rows)

    def add(
        self, vectors: Vectors, keys: Keys, progress: Progress = silent, *, threads: int = 1
    ) -> None:
        """Add ``vectors`` (n, D) float32, unit rows, under new ``keys`` (n,), in memory only.

        Nothing is added unless everything is right. Time and memory are those of the batch,
        however large the index is, where there is room (``reserve``). An index whose ``add`` was
        interrupted must be dropped.

        Raises:
            InputError: a wrong shape; a row that is not finite or not of unit length, by its
                number; a key that is there already or twice.
        """
        given, new = self._shaped(vectors, "row"), _keys(keys)
        if len(given) != len(new):
            raise InputError(f"{len(given)} rows, but {len(new)} keys")
        for start in range(0, len(given), _ADD_BATCH):
            check_unit(_copied(given[start : start + _ADD_BATCH]), "row", first=start)
        self._check_new(new)
        if (capacity := self._engine.get_max_elements()) < len(self) + len(new):
            self._resize(max(len(self) + len(new), capacity + capacity // 16))
        for start in range(0, len(given), _ADD_BATCH):
            progress("building the index", start, len(given))
            block = slice(start, start + _ADD_BATCH)
            self._add_block(_copied(given[block]), new[block], threads)
        progress("building the index", len(given), len(given))

    def save(self, path: Path) -> None:
        """Write the index to a new file and read it back.

        Raises:
            InputError: ``path`` exists, or its folder does not; the index is empty.
            CompatError: the file is shorter than it must be: there was no room, or no permission.
            DamagedError: what was read back is not what was written.
        """
        if len(self) == 0:
            raise InputError("an index needs at least one row", tip="add rows before it is saved")
        with os_errors("writing", path):
            if path.exists() or not path.parent.is_dir():
                why = "the file exists already" if path.exists() else "there is no such folder"
                raise InputError(f"writing {path}: {why}")
        if self._engine.get_max_elements() > len(self):
            self._resize(len(self))  # the room is in the file: it must not depend on the batches
        with _hnswlib(f"writing {path}"):
            expected = int(self._engine.index_file_size())
            self._engine.save_index(str(path))
        written = path.stat().st_size if path.is_file() else 0
        if written != expected:
            raise CompatError(
                f"writing {path}: only {written} of {expected} bytes arrived",
                tip="is there room on the disk, and permission to write there?",
            )
        check_written(path, self._stored, _joined(self._added), _joined(self._marks))

    def keys(self) -> Keys:
        """Every key (N,) uint64, in the order of the rows."""
        stored = _NONE if self._stored is None else self._stored.keys
        return np.concatenate([stored, *self._added])

    def vectors(self, keys: Keys | None = None) -> Vectors:
        """The rows (n, D) float32 of ``keys`` (n,); all rows in their order without keys.

        Raises:
            InputError: there is no row of a key.
        """
        if keys is None:
            found, at = np.empty((len(self), self.params.dim), np.float32), 0
            for _, rows in self._blocks():
                found[at : at + len(rows)] = rows
                at += len(rows)
            return found
        wanted = _keys(keys)
        if self._stored is None:
            return self._asked(wanted)
        found = np.empty((len(wanted), self.params.dim), np.float32)
        places = self._stored.find(wanted)
        added = places < 0
        found[added] = self._asked(wanted[added])
        found[~added] = self._stored.rows(places[~added])
        return found

    def search(
        self, queries: Vectors, k: int, ef: int | None = None, *, threads: int = -1
    ) -> tuple[Keys, Vectors]:
        """Approximately the nearest rows of ``queries`` (Q, D), unit rows: keys and cosines.

        Both are (Q, min(k, N)), nearest first. ``ef`` (default: the parameters' ef_search) is
        raised to k. Where the graph cannot reach enough rows the exact answer is given.

        Raises:
            InputError: k < 1, a wrong dimension, or a query that is not finite or not of unit
                length, by its number.
        """
        rows = _copied(self._shaped(queries, "query"))
        check_unit(rows, "query")
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        k = min(k, len(self))
        if len(rows) == 0 or k == 0:
            return np.zeros((len(rows), k), np.uint64), np.zeros((len(rows), k), np.float32)
        self._engine.set_ef(max(k, self.params.ef_search if ef is None else ef))
        try:
            keys, distances = self._engine.knn_query(rows, k, num_threads=threads)
        except RuntimeError:
            return self._exact(rows, k)
        half = 0.5 if self.params.space == "l2" else 1.0
        return keys.astype(np.uint64), (1.0 - half * distances).astype(np.float32)

    def _exact(self, queries: Vectors, k: int) -> tuple[Keys, Vectors]:
        keys, scores = np.zeros((len(queries), 0), np.uint64), np.zeros((len(queries), 0), "f4")
        for block, rows in self._blocks():
            both = np.hstack([scores, queries @ rows.T])
            names = np.hstack([keys, np.broadcast_to(block, (len(queries), len(block)))])
            best = np.argsort(-both, axis=1, kind="stable")[:, :k]
            keys, scores = np.take_along_axis(names, best, 1), np.take_along_axis(both, best, 1)
        return keys, scores

    def _blocks(self) -> Iterator[tuple[Keys, Vectors]]:
        """Keys (n,) and rows (n, D) of every block, in order; to be used before the next one."""
        if self._stored is not None:
            for _, block in self._stored.blocks(most=_EXACT_BLOCK):
                yield block["key"], block["row"]
        added = _joined(self._added)
        for start in range(0, len(added), _EXACT_BLOCK):
            keys = added[start : start + _EXACT_BLOCK]
            yield keys, self._asked(keys)

    def _asked(self, keys: Keys) -> Vectors:
        """The rows (n, D) that hnswlib has under ``keys`` (n,)."""
        found = np.empty((len(keys), self.params.dim), np.float32)
        for start in range(0, len(keys), _ASKED):
            block = keys[start : start + _ASKED]
            try:
                found[start : start + _ASKED] = self._engine.get_items(block)
            except RuntimeError:
                missing = next(key for key in block if not self._holds(key))
                raise InputError(f"the index has no row under the key {missing}") from None
        return found

    def _holds(self, key: np.uint64) -> bool:
        try:
            self._engine.get_items([key])
        except RuntimeError:
            return False
        return True

    def _check_new(self, keys: Keys) -> None:
        """Refuse keys (n,) that are there already, or twice; hnswlib itself is asked, since it is
        hnswlib that would overwrite a row: no table of all keys is needed."""
        ordered = keys.copy()
        twice = first_duplicate(ordered)
        if twice is None:
            known = np.searchsorted(ordered, self._top, side="right")
            twice = next((int(key) for key in ordered[:known] if self._holds(key)), None)
        if twice is not None:
            raise InputError(f"the key {twice} is there already, or twice")

    def _add_block(self, rows: Vectors, keys: Keys, threads: int) -> None:
        with _hnswlib("adding rows"):
            self._engine.add_items(rows, keys, num_threads=threads)
        self._added.append(keys.copy())
        self._marks.append(row_checksums(rows))
        self._count += len(keys)
        self._top = max(self._top, keys.max())

    def _resize(self, capacity: int) -> None:
        with _hnswlib("making room"):
            self._engine.resize_index(capacity)

    def _shaped(self, values: Vectors, what: str) -> Vectors:
        shape = np.shape(values)
        if len(shape) != 2 or shape[1] != self.params.dim:
            raise InputError(f"{what}s must be (n, {self.params.dim}), got {shape}")
        return np.asarray(values)


def _copied(values: Vectors) -> Vectors:
    """A copy float32 that no caller can change."""
    return np.array(values, np.float32, order="C")


def _joined(parts: list[Keys]) -> Keys:
    """The parts as one array, which takes their place."""
    if len(parts) != 1:
        parts[:] = [np.concatenate([_NONE, *parts])]
    return parts[0]


def _engine(params: HnswParams) -> Any:
    import hnswlib

    # A file of the space cosine holds rows that are normalised already: ip reads it as it is.
    return hnswlib.Index(space="l2" if params.space == "l2" else "ip", dim=params.dim)


@contextmanager
def _hnswlib(doing: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise CompatError(f"hnswlib, {doing}: {error}") from error
    except MemoryError as error:
        raise CompatError(f"hnswlib, {doing}: there is not enough memory") from error


def _keys(values: Keys) -> Keys:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found.size and found.min() < 0):
        raise InputError(
            f"keys must be whole numbers (n,) >= 0, got {found.dtype} of shape {found.shape}"
        )
    return found.astype(np.uint64)
