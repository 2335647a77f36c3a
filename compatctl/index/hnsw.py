"""hnswlib, with every check that it leaves out made here, before it is called.

hnswlib (0.8.0) loads a file of another dimension or with a flipped bit without a word, forgets ef
on loading, reports nothing when a save fails, overwrites a key silently, takes NaN rows, and raises
a bare RuntimeError half way through a batch. So this module owns the table of keys and rows, checks
with numpy first, and lets hnswlib only do what cannot go wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.files import clear_errors
from compatctl.index.layout import (
    BLOCK,
    Floats,
    HnswHeader,
    Keys,
    StoredRows,
    check_unit,
    first_duplicate,
    read_header,
)
from compatctl.progress import Progress, silent

_ADD_BATCH = 2048
_EXACT_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class HnswParams:
    """How an index is built and searched; the names are hnswlib's (docs: ALGO_PARAMS.md).

    ``dim`` is a row's length, ``M`` the links of a row on each upper level (2 M on level 0),
    ``ef_construction`` and ``ef_search`` the sizes of the candidate lists, ``seed`` that of the
    levels. New indexes use the space ``ip``; rows are of unit length, so that it is the cosine.
    ``cosine`` and ``l2`` are for adopted files; on unit rows all three give the same order.

    Raises:
        InputError: a value is out of range.
    """

    dim: int
    space: str = "ip"
    M: int = 16
    ef_construction: int = 200
    ef_search: int = 64
    seed: int = 100

    def __post_init__(self) -> None:
        if self.space not in ("ip", "cosine", "l2"):
            raise InputError(f"the space must be ip, cosine or l2, got {self.space!r}")
        least = {"dim": 1, "M": 2, "ef_construction": 1, "ef_search": 1, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise InputError(f"{name} must be at least {smallest}, got {value}")
        if self.M > 10000:
            raise InputError(f"M must be at most 10000, got {self.M}")

    @classmethod
    def of(cls, header: HnswHeader, *, space: str, ef_search: int = 64) -> Self:
        """The parameters of an adopted file: its header has all but space, ef_search and seed."""
        return cls(
            space=space,
            dim=header.dim,
            M=header.M,
            ef_construction=header.ef_construction,
            ef_search=ef_search,
        )


class HnswIndex:
    """Unit rows under uint64 keys, in memory; a file that it was loaded from is never changed.

    One thread at a time may use it: hnswlib's reads are not safe during an ``add``.
    """

    def __init__(self, engine: Any, params: HnswParams, rows: list[Floats], keys: Keys) -> None:
        self._engine = engine
        self.params = params
        self._rows = rows
        self._keys = keys
        self._order = np.argsort(keys, kind="stable")

    @classmethod
    def build(
        cls,
        vectors: Floats,
        keys: Keys,
        params: HnswParams,
        progress: Progress = silent,
        *,
        threads: int = 1,
    ) -> Self:
        """A new index of ``vectors`` (N, D) float32, unit rows, under ``keys`` (N,).

        With one thread the same arguments give the same bytes; with more they do not.

        Raises:
            InputError: no row; a wrong shape; a row that is not finite or not of unit length, by
                its number; a key that is there twice.
        """
        if len(vectors) == 0:
            raise InputError("an index needs at least one row")
        with _hnswlib("making an index"):
            engine = _engine(params)
            engine.init_index(len(vectors), params.M, params.ef_construction, params.seed)
        found = cls(engine, params, [], np.zeros(0, np.uint64))
        found.add(vectors, keys, progress, threads=threads)
        return found

    @classmethod
    def load(cls, path: Path, params: HnswParams, count: int | None = None) -> Self:
        """The index in a file, after every number in it that hnswlib trusts was checked.

        The file's digest is the caller's to compare: a changed bit inside a row that leaves it
        of unit length cannot be seen here.

        Raises:
            InputError: the file is missing or must not be read.
            DamagedError: it is damaged, has rows marked deleted, or is not of these parameters
                and, where given, this number of rows.
        """
        header = read_header(path)
        wanted = {
            "dim": params.dim,
            "M": params.M,
            "ef_construction": max(params.ef_construction, params.M),
            "count": header.count if count is None else count,
        }
        for name, value in wanted.items():
            if getattr(header, name) != value:
                raise DamagedError(
                    f"{path} has {name} {getattr(header, name)}, expected {value}",
                    tip="is it another store's index?",
                )
        stored = StoredRows.read(path)
        with _hnswlib(f"loading {path}"):
            engine = _engine(params)
            engine.load_index(str(path), max_elements=header.count)
        return cls(engine, params, [stored.vectors], stored.keys)

    def __len__(self) -> int:
        return len(self._keys)

    def add(
        self, vectors: Floats, keys: Keys, progress: Progress = silent, *, threads: int = 1
    ) -> None:
        """Add ``vectors`` (n, D) float32, unit rows, under new ``keys`` (n,), in memory only.

        Nothing is added unless everything is right. An index whose ``add`` was interrupted must
        be dropped.

        Raises:
            InputError: a wrong shape; a row that is not finite or not of unit length, by its
                number; a key that is there already or twice.
        """
        rows, new = self._matrix(vectors, "row"), _keys(keys)
        if len(rows) != len(new):
            raise InputError(f"{len(rows)} rows, but {len(new)} keys")
        check_unit(rows, "row")
        together = np.concatenate([self._keys, new])
        if (twice := first_duplicate(together)) is not None:
            raise InputError(f"the key {twice} is there already, or twice")
        with _hnswlib("adding rows"):
            if self._engine.get_max_elements() < len(together):
                self._engine.resize_index(len(together))
            for start in range(0, len(rows), _ADD_BATCH):
                progress("building the index", start, len(rows))
                stop = start + _ADD_BATCH
                self._engine.add_items(rows[start:stop], new[start:stop], num_threads=threads)
        progress("building the index", len(rows), len(rows))
        self._rows = [*self._rows, rows]
        self._keys, self._order = together, np.argsort(together, kind="stable")

    def save(self, path: Path) -> None:
        """Write the index to a new file and read it back.

        Raises:
            InputError: ``path`` exists, or its folder does not.
            CompatError: the file is shorter than it must be: there was no room, or no permission.
            DamagedError: what was read back is not what was written.
        """
        with clear_errors("writing", path):
            if path.exists() or not path.parent.is_dir():
                why = "the file exists already" if path.exists() else "there is no such folder"
                raise InputError(f"writing {path}: {why}")
        with _hnswlib(f"writing {path}"):
            expected = int(self._engine.index_file_size())
            self._engine.save_index(str(path))
        written = path.stat().st_size if path.is_file() else 0
        if written != expected:
            raise CompatError(
                f"writing {path}: only {written} of {expected} bytes arrived",
                tip="is there room on the disk, and permission to write there?",
            )
        stored = StoredRows.read(path)
        order = np.argsort(stored.keys, kind="stable")
        if not np.array_equal(stored.keys[order], self._keys[self._order]):
            raise DamagedError(f"{path}: read back other keys than were written")
        for start in range(0, len(order), BLOCK):
            mine = self._gather(self._order[start : start + BLOCK])
            if not np.array_equal(stored.vectors[order[start : start + BLOCK]], mine):
                raise DamagedError(f"{path}: read back other rows than were written")

    def keys(self) -> Keys:
        """Every key (N,) uint64, in the order of the rows."""
        return self._keys.copy()

    def vectors(self, keys: Keys | None = None) -> Floats:
        """The rows (n, D) float32 of ``keys`` (n,); all rows in their order without keys.

        Raises:
            InputError: there is no row of a key.
        """
        if keys is None:
            return self._gather(np.arange(len(self)))
        wanted = _keys(keys)
        ordered = self._keys[self._order]
        at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        if (missing := ordered[at] != wanted).any():
            raise InputError(f"the index has no row under the key {wanted[np.argmax(missing)]}")
        return self._gather(self._order[at])

    def search(
        self, queries: Floats, k: int, ef: int | None = None, *, threads: int = -1
    ) -> tuple[Keys, Floats]:
        """Approximately the nearest rows of ``queries`` (Q, D), unit rows: keys and cosines.

        Both are (Q, min(k, N)), nearest first. ``ef`` (default: the parameters' ef_search) is
        raised to k. Where the graph cannot reach enough rows the exact answer is given.

        Raises:
            InputError: k < 1, a wrong dimension, or a query that is not finite or not of unit
                length, by its number.
        """
        rows = self._matrix(queries, "query")
        check_unit(rows, "query")
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        k = min(k, len(self))
        if len(rows) == 0:
            return np.zeros((0, k), np.uint64), np.zeros((0, k), np.float32)
        self._engine.set_ef(max(k, self.params.ef_search if ef is None else ef))
        try:
            keys, distances = self._engine.knn_query(rows, k, num_threads=threads)
        except RuntimeError:
            return self._exact(rows, k)
        half = 0.5 if self.params.space == "l2" else 1.0
        return keys.astype(np.uint64), (1.0 - half * distances).astype(np.float32)

    def _exact(self, queries: Floats, k: int) -> tuple[Keys, Floats]:
        keys, scores = np.zeros((len(queries), 0), np.uint64), np.zeros((len(queries), 0), "f4")
        for start in range(0, len(self), _EXACT_BLOCK):
            block = np.arange(start, min(start + _EXACT_BLOCK, len(self)))
            both = np.hstack([scores, queries @ self._gather(block).T])
            names = np.hstack(
                [keys, np.broadcast_to(self._keys[block], (len(queries), len(block)))]
            )
            best = np.argsort(-both, axis=1, kind="stable")[:, :k]
            keys, scores = np.take_along_axis(names, best, 1), np.take_along_axis(both, best, 1)
        return keys, scores

    def _gather(self, at: NDArray[np.int64]) -> Floats:
        """The rows (n, D) at positions (n,); the parts are in the order in which they came."""
        found = np.empty((len(at), self.params.dim), np.float32)
        start = 0
        for part in self._rows:
            here = (at >= start) & (at < start + len(part))
            found[here] = part[at[here] - start]
            start += len(part)
        return found

    def _matrix(self, values: Floats, what: str) -> Floats:
        """A copy (n, D) float32 that no caller can change, of the index's dimension."""
        shape = np.shape(values)
        if len(shape) != 2 or shape[1] != self.params.dim:
            raise InputError(f"{what}s must be (n, {self.params.dim}), got {shape}")
        rows = np.array(values, np.float32, order="C")
        rows.setflags(write=False)
        return rows


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


def _keys(values: Keys) -> Keys:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found.size and found.min() < 0):
        raise InputError(
            f"keys must be whole numbers (n,) >= 0, got {found.dtype} of shape {found.shape}"
        )
    return found.astype(np.uint64)
