"""Search in the application's own table or collection, fenced by the epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

import numpy as np

from compatctl.core.arrays import Bools, Keys, Scores, Vectors
from compatctl.engines import (
    Connection,
    Found,
    Pool,
    RowBlock,
    Scan,
    TableFile,
    pool_of,
    search_of,
    side_of,
)
from compatctl.errors import CompatError, ConflictError, InputError
from compatctl.index.engine.reading import table_rows, unit_directions
from compatctl.index.rows import KeyLookup, check_unit
from compatctl.machine import processors
from compatctl.notices import notice
from compatctl.progress import Progress, silent

T = TypeVar("T")
_CONNECTIONS = 4
"""Most connections of one search: the server has other work too. Fewer where this machine has fewer
processors, as the server may be here."""
_SHARED = 64
"""As many queries are worth another connection."""
_CHANGED = "compatctl check lists what changed; compatctl add takes new rows in"


class EngineIndex:
    """The adopted rows of a table, under their keys; any number of threads may search.

    Args:
        ids: of the adopted rows (N,), ``row_of``: id -> its row, ``keys`` (N,): theirs.
        epoch: of the row that a search requires; None: it is not fenced, as before an import.
        in_side (N,): which rows the file's side table has; None: none.
        pool: connections to go on with; default: new ones.

    Attributes:
        tells_new_rows: whether a search gives notice of rows that were not adopted. For a service
            they are no matter of a query: ``status`` and ``check`` tell of them.
    """

    def __init__(
        self,
        file: TableFile,
        *,
        ids: Sequence[str],
        row_of: Mapping[str, int],
        keys: Keys,
        dim: int,
        epoch: int | None,
        ef_search: int,
        in_side: Bools | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.file = file
        self._ids, self._row_of, self._keys = ids, row_of, keys
        self._dim, self._ef = dim, ef_search
        self._in_side = np.zeros(len(ids), bool) if in_side is None else in_side
        self._rows = table_rows(file, dim)
        self._location = self._rows.location
        self._lookup = KeyLookup(np.asarray(keys, np.uint64))
        self._search = search_of(file, self._rows, epoch)
        self._pool = pool or pool_of(self._location)
        self.tells_new_rows = True

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def max_ef(self) -> int:
        """The largest ef that the engine takes, at most the number of rows."""
        return min(len(self), self.file.max_ef)

    def at(self, epoch: int, ef_search: int) -> EngineIndex:
        """The same rows at another epoch, over the same connections."""
        return EngineIndex(
            self.file,
            ids=self._ids,
            row_of=self._row_of,
            keys=self._keys,
            dim=self._dim,
            epoch=epoch,
            ef_search=ef_search,
            in_side=self._in_side,
            pool=self._pool,
        )

    def add(self, vectors: Vectors, keys: Keys, progress: Progress = silent) -> NoReturn:
        """Refuse: the application writes the rows of its table.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self._location.url}: the rows are the application's, which inserts them itself",
            tip="compatctl add takes in rows that it inserted",
        )

    def keys(self) -> Keys:
        """Every key (N,) uint64 of the adopted rows."""
        return np.asarray(self._keys, np.uint64)

    def vectors(self, keys: Keys | None = None) -> Vectors:
        """The rows (n, D) float32 of ``keys`` (n,), or all, as the engine ranks them.

        Raises:
            InputError: there is no row of a key.
            ConflictError: the table has lost one of the rows. CompatError: the server refuses, or
                cannot be reached.
        """
        if keys is None:
            keys = self.keys()
        positions = self._lookup.find(np.asarray(keys, np.uint64))
        if (positions < 0).any():
            missing = int(np.asarray(keys)[positions < 0][0])
            raise InputError(f"the index has no row under the key {missing}")
        ids = [self._ids[row] for row in positions.tolist()]
        vectors = np.empty((len(ids), self._dim), np.float32)
        places = {item: place for place, item in enumerate(ids)}  # the last place of each id
        seen = np.zeros(len(ids), bool)
        for block in self._ask(lambda opened: self._find(opened, places)):
            at = np.fromiter((places[item] for item in block.ids), np.int64)
            vectors[at], seen[at] = unit_directions(self.file, block.vectors), True
        first = np.fromiter((places[item] for item in ids), np.int64, len(ids))
        if not seen[first].all():
            self._refuse_lost(ids[int(np.argmin(seen[first]))])
        return vectors[first]

    def _find(self, connection: Connection, places: Mapping[str, int]) -> list[RowBlock]:
        """The rows of these ids, each from where it is searched."""
        inside = [item for item in places if self._in_side[self._row_of[item]]]
        beside = [*side_of(self.file).find(connection, inside)] if inside else []
        own = [*places] if not inside else [*(places.keys() - set(inside))]
        return [*self._rows.find(connection, own), *beside] if own else beside

    def search(self, queries: Vectors, k: int, ef: int | None = None) -> tuple[Keys, Scores]:
        """Keys and cosines (Q, min(k, N)) of approximately the nearest rows, nearest first.

        ``ef`` is the engine's effort, at least k and at most what the engine takes. Where the scan
        finds fewer adopted rows than it should, it goes on (pgvector 0.8), or the search is exact.
        Rows that were not adopted are left out, with a notice.

        Raises:
            StaleEpochError: the row was switched since.
            InputError: k < 1, or bad queries.
            ConflictError: the table has lost rows. CompatError: the server refuses, or cannot be
                reached.
        """
        queries = np.array(queries, np.float32, order="C")
        if queries.ndim != 2 or queries.shape[1] != self._dim:
            raise InputError(f"queries must be (n, {self._dim}), got {queries.shape}")
        check_unit(queries, "query")
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        k = min(k, len(self))
        rows = np.full((len(queries), k), -1, np.int64)
        distances = np.zeros((len(queries), k), np.float64)
        short, limit = np.arange(len(queries) if k else 0), k
        for scan in self._search.scans:
            if len(short):
                self._fill(queries, short, limit, ef or self._ef, rows, distances, scan)
                short = np.flatnonzero((rows < 0).any(axis=1))
        while len(short):  # rows that were not adopted took places
            limit = 2 * limit
            ended = self._fill(queries, short, limit, 0, rows, distances, Scan.EXACT)
            short = np.flatnonzero((rows < 0).any(axis=1))
            if len(short) and ended:
                self._refuse_lost()
        return self.keys()[rows], self._scores(distances)

    def _fill(  # noqa: PLR0917
        self,
        queries: Vectors,
        chosen: np.ndarray,
        limit: int,
        ef: int,
        rows: np.ndarray,
        distances: np.ndarray,
        scan: Scan,
    ) -> bool:
        """Search ``chosen`` queries, and write their adopted rows; whether the table ended."""
        k, unknown, ended = rows.shape[1], dict[str, None](), True
        answers = self._answers(queries[chosen], limit, ef, scan)
        for query, answer in zip(chosen.tolist(), answers, strict=True):
            ended &= len(answer) < limit
            places = [(self._row_of.get(item, -1), distance) for item, distance in answer]
            known = [place for place in places if place[0] >= 0][:k]
            if len(known) < len(places):
                unknown |= dict.fromkeys(item for item, _ in answer if item not in self._row_of)
            for place, (row, distance) in enumerate(known):
                rows[query, place], distances[query, place] = row, distance
        if unknown and self.tells_new_rows:
            notice("new-rows", self._location.url, "rows that were not adopted", list(unknown),
                   "they are left out of the answers; compatctl add takes them in")  # fmt: skip
        return ended

    def _answers(self, queries: Vectors, limit: int, ef: int, scan: Scan) -> list[Found]:
        """What the engine finds for each query; many queries are shared among connections, as the
        server searches for those of one connection one after the other."""

        def asked(part: Vectors) -> list[Found]:
            return self._ask(lambda opened: self._search.search(opened, part, limit, ef, scan))

        parts = np.array_split(queries, _connections(len(queries)))
        if len(parts) == 1:
            return asked(queries)
        with ThreadPoolExecutor(len(parts), thread_name_prefix="compatctl-search") as threads:
            return [answer for answers in threads.map(asked, parts) for answer in answers]

    def _ask(self, action: Callable[[Connection], T]) -> T:
        """What ``action`` returns of a connection. What the server refuses is no fault of a query:
        it is a CompatError, which a service keeps to itself, and no InputError."""
        try:
            return self._pool.run(action)
        except InputError as error:
            raise CompatError(error.message, tip=error.tip) from None

    def _scores(self, distances: np.ndarray) -> Scores:
        if self.file.space == "ip":
            return (-distances).astype(np.float32)
        half = distances**2 / 2 if self.file.space == "l2" else distances
        return (1.0 - half).astype(np.float32)

    def _refuse_lost(self, item: str = "") -> NoReturn:
        what = f"the row {item!r}" if item else "rows"
        raise ConflictError(
            f"{self._location.url}: the table has lost {what} that the store adopted", tip=_CHANGED
        )


def _connections(queries: int) -> int:
    """How many share the queries of one search."""
    return min(_CONNECTIONS, processors(), 1 + queries // _SHARED)
