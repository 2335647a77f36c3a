"""New vectors of a gallery: a new index file, or a batch of a side table in the store's engine.

Either is a ``BuiltIndex``: it is searched before it is committed, and its file is put into the
store under ``manifest.index.kind``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.deployment.engine_gallery import adopted, open_table
from compatctl.deployment.engines import in_engine
from compatctl.deployment.gallery import index_params
from compatctl.engines import (
    batches_are_whole,
    new_side,
    open_connection_to,
    require_engine,
    side_of,
    side_refusal,
)
from compatctl.errors import UsageError
from compatctl.index import (
    BuiltIndex,
    BuiltTable,
    EngineRows,
    HnswIndex,
    RowsAt,
    SideParams,
    build_mapped,
    build_with_replacements,
    read_some,
    require_hnswlib,
    write_side,
)
from compatctl.manifest import Catalog, IndexInfo, Manifest
from compatctl.progress import Progress
from compatctl.store import Store, table_file

LAST_SHARE = 0.01
"""A side table that lacks a smaller share of the rows takes them over."""

_TRIED = 500
"""Rows that are indexed in an engine to see how fast it is."""


def require_rewriting(store: Store, manifest: Manifest, what: str) -> None:
    """Refuse a command that computes new vectors where they cannot be written.

    Raises:
        UsageError: the engine takes no side table; ``what`` is the command.
        InputError: a library is missing. CompatError: the server cannot be reached.
    """
    file = table_file(store.path, manifest)
    if file is None:
        require_hnswlib()
        return
    require_engine(manifest.index.engine)
    location = file.location.from_environment()
    with open_connection_to(location) as connection:
        reason = side_refusal(connection, location)
    if reason:
        raise UsageError(
            f"{what} is not for a store whose rows are in {manifest.index.engine}: its vectors go "
            f"to a table beside the application's, and none can be made: {reason}",
            tip="compatctl doctor URL says what is missing; docs/engines.md lists what each engine "
            "can do",
        )


def refuse_steps(store: Store, manifest: Manifest) -> None:
    """Refuse to write new vectors step by step where each step would write every row again.

    Raises:
        UsageError: a batch of the engine is whole.
    """
    file = table_file(store.path, manifest)
    if file is not None and batches_are_whole(file):
        raise UsageError(
            f"backfill in steps is not for a store whose rows are in {file.engine}: each step "
            "would make another collection of every row",
            tip="compatctl backfill --share 0.3, without --step, --budget and --until-gain, makes "
            "one; a later command with a larger share goes on",
        )


def map_rows(
    store: Store,
    catalog: Catalog,
    *,
    adapter: Callable[[Vectors], Vectors],
    dim: int,
    model: str,
    progress: Progress,
) -> BuiltIndex:
    """Every row mapped by ``adapter``, which takes (n, D) and returns unit rows (n, dim); the space
    is named by the digest of its query ``model``.

    Raises:
        DamagedError: a file of the store is missing or changed. CompatError: no memory, or the
            server cannot be reached.
    """
    manifest = store.manifest
    info = manifest.index
    if not in_engine(manifest):
        return build_mapped(
            store.verified_path(info.kind, info.sha256, fresh=True),
            index_params(info),
            info.count,
            adapter=adapter,
            dim=dim,
            progress=progress,
        )
    rows, old = engine_rows(store, catalog), open_table(store, manifest, catalog)
    return write_side(
        rows,
        new_side(rows.file, model, dim=dim, table_dim=rows.file.table_dim(info.dim), shared=False),
        np.arange(len(catalog)),
        rows_at=lambda positions: adapter(old.vectors(catalog.keys[positions])),
        params=side_params(info),
        progress=progress,
    )


def replace_rows(
    store: Store,
    catalog: Catalog,
    chosen: Rows,
    *,
    rows_at: RowsAt,
    progress: Progress,
) -> BuiltIndex:
    """The rows ``chosen`` (n,) replaced by vectors of the query model; ``rows_at`` gives those at
    some positions (m,) among them. Errors as ``map_rows``.

    Where a side table then lacks fewer than ``LAST_SHARE`` of the rows, it takes them as they are:
    a scan of the application's index that looks for so few would pass over nearly all of them.
    """
    manifest = store.manifest
    info = manifest.index
    if not in_engine(manifest):
        return build_with_replacements(
            store.verified_path(info.kind, info.sha256, fresh=True),
            index_params(info),
            info.count,
            keys=catalog.keys[chosen],
            rows_at=rows_at,
            progress=progress,
        )
    rows = engine_rows(store, catalog)
    side = rows.file.side or new_side(
        rows.file, manifest.query_model, dim=info.dim, table_dim=info.dim, shared=True
    )
    old, last = open_table(store, manifest, catalog), _last_rows(rows, chosen)
    if batches_are_whole(rows.file):
        side = replace(side, batches=())

    def vectors_at(positions: Rows) -> Vectors:
        new = positions < len(chosen)
        if new.all():
            return rows_at(positions)
        vectors = np.empty((len(positions), info.dim), np.float32)
        vectors[~new] = old.vectors(catalog.keys[last[positions[~new] - len(chosen)]])
        if new.any():
            vectors[new] = rows_at(positions[new])
        return vectors

    return write_side(
        rows,
        side,
        np.concatenate([chosen, last]),
        rows_at=vectors_at,
        params=side_params(info),
        progress=progress,
    )


def _last_rows(rows: EngineRows, chosen: Rows) -> Rows:
    """The rows (n,) that a side table lacks once it has those that are ``chosen``, if they are
    few; else none. Of a batch that is to be whole: all but the chosen."""
    whole = batches_are_whole(rows.file)
    lacking = np.ones(len(rows.ids), bool) if whole else ~rows.checksums.in_side
    lacking[chosen] = False
    few = whole or lacking.sum() < LAST_SHARE * len(lacking)
    return np.flatnonzero(lacking) if few else np.zeros(0, np.int64)


def take_over_added(
    built: BuiltIndex, newest: Store, catalog: Catalog, known: int
) -> BuiltIndex | None:
    """What was built, over a newer generation whose ``catalog`` has rows behind the ``known``; None
    where it cannot be had without writing it all again."""
    info = newest.manifest.index
    if isinstance(built, BuiltTable):
        if batches_are_whole(built.file) and len(catalog) > known:
            return None
        return built.rebased(engine_rows(newest, catalog))
    assert isinstance(built, HnswIndex)
    keys = catalog.keys[known:]
    if len(keys):
        path = newest.verified_path(info.kind, info.sha256, fresh=True)
        built.reserve(len(keys))
        built.add(read_some(path, index_params(info), info.count, keys), keys)
    return built


def some_rows(store: Store, catalog: Catalog, chosen: Rows) -> Vectors:
    """The stored vectors (n, D) of some rows (n,) of the catalogue."""
    manifest = store.manifest
    keys, info = catalog.keys[chosen], manifest.index
    if in_engine(manifest):
        return open_table(store, manifest, catalog).vectors(keys)
    path = store.verified_path(info.kind, info.sha256)
    return read_some(path, index_params(info), info.count, keys)


def index_seconds(store: Store, rows: Vectors, step: int) -> float:
    """About how long the index of a step takes, measured on ``rows`` (n, D): of a file that of all
    rows, which is built anew, of a side table that of the ``step`` rows which are added."""
    manifest = store.manifest
    info, n = manifest.index, len(rows)
    deeper = math.log(max(info.count, 2)) / math.log(max(n, 2))
    if not in_engine(manifest):
        index = HnswIndex.create(index_params(info), n)
        seconds = timed(lambda: index.add(rows, np.arange(n, dtype=np.uint64)))
        return seconds * info.count / n * deeper
    file, tried = adopted(store, manifest)[0], rows[:_TRIED]
    side = file.side or new_side(
        file, manifest.query_model, dim=info.dim, table_dim=info.dim, shared=True
    )
    writer = side_of(replace(file, side=side))
    with open_connection_to(file.location.from_environment()) as connection:
        seconds = timed(lambda: writer.rehearse(connection, tried, m=info.M))
    return seconds * step / len(tried) * deeper


def timed(work: Callable[[], object]) -> float:
    """How many seconds it took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def engine_rows(store: Store, catalog: Catalog) -> EngineRows:
    """The rows of the store's generation in its engine.

    Raises:
        DamagedError: the file that names them is missing or changed.
    """
    file, checksums = adopted(store, store.manifest)
    return EngineRows(
        file=file, checksums=checksums, ids=catalog.ids, row_of=catalog.row_of, keys=catalog.keys
    )


def side_params(info: IndexInfo) -> SideParams:
    """How a side table of this index is made and searched."""
    return SideParams(m=info.M, ef_construction=info.ef_construction, ef_search=info.ef_search)
