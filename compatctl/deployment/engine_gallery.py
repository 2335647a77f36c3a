"""A gallery whose rows are in an engine: its rows, and what changed in them."""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import Vectors
from compatctl.deployment.engines import in_engine
from compatctl.engines import RowChecksums, TableFile, require_engine
from compatctl.errors import ConflictError
from compatctl.index import EngineIndex, TableChanges, compare_table, require_hnswlib
from compatctl.manifest import Catalog, Manifest
from compatctl.notices import notice
from compatctl.progress import Progress, silent
from compatctl.store import Store, row_problems


def require_library(manifest: Manifest) -> None:
    """Refuse to go on without the library of a generation's engine.

    Raises:
        InputError: it is not installed.
    """
    if in_engine(manifest):
        require_engine(manifest.index.engine)
    else:
        require_hnswlib()


def open_table(store: Store, manifest: Manifest, catalog: Catalog) -> EngineIndex:
    """The table of a generation, searched at the generation's epoch.

    Raises:
        DamagedError: the file that names the table is missing or changed.
    """
    file, checksums = adopted(store, manifest)
    return EngineIndex(
        file,
        ids=catalog.ids,
        row_of=catalog.row_of,
        keys=catalog.keys,
        dim=manifest.index.dim,
        epoch=manifest.generation,
        ef_search=manifest.index.ef_search,
        in_side=checksums.in_side,
    )


def table_changes(
    store: Store,
    manifest: Manifest,
    catalog: Catalog,
    progress: Progress = silent,
    *,
    collect: bool = False,
) -> TableChanges:
    """How the table differs from the rows that a generation adopted; every row is read.

    ``collect``: also what adopting the changes needs.

    Raises:
        InputError, CompatError: as ``compare_table``.
    """
    file, checksums = adopted(store, manifest)
    return compare_table(
        file,
        catalog.ids,
        catalog.row_of,
        checksums,
        dim=manifest.index.dim,
        collect=collect,
        progress=progress,
    )


def stored_table_rows(
    store: Store, manifest: Manifest, catalog: Catalog, *, extra_capacity: int = 0
) -> Vectors:
    """Every adopted row (N + extra_capacity, D) float32 in the catalogue's order, as the engine
    ranks them. Rows that were not adopted are named by a notice.

    Raises:
        ConflictError: the table lost adopted rows, or has other vectors in them.
    """
    file, checksums = adopted(store, manifest)
    rows = np.empty((len(catalog) + extra_capacity, manifest.index.dim), np.float32)
    changes = compare_table(
        file, catalog.ids, catalog.row_of, checksums, dim=manifest.index.dim, into=rows
    )
    url = file.location.url
    if changes.lost:
        raise ConflictError(
            f"{url}: the table is not what the store adopted: {changes.sentence()}",
            tip="compatctl add --changed adopts the rows as they are now",
        )
    tell_new_rows(url, changes, "they are not judged; compatctl add takes them in")
    return rows


def engine_problems(store: Store, catalog: Catalog, progress: Progress = silent) -> list[str]:
    """How the engine's row and table differ from the store; empty where a file has the rows.

    Every row of the table is read. Rows that were not adopted are no problem: a notice names them.

    Raises:
        InputError, CompatError: as ``compare_table``.
    """
    manifest = store.manifest
    if not in_engine(manifest):
        return []
    problems = row_problems(store.path, manifest)
    changes = table_changes(store, manifest, catalog, progress)
    url = adopted(store, manifest)[0].location.url
    if changes.lost:
        problems.append(
            f"{url}: the table is not what the store adopted: {changes.sentence()}; whether the "
            "application changed it or a fault did cannot be known: compatctl add --changed adopts "
            "the rows as they are now"
        )
    tell_new_rows(url, changes, "the gallery is without them; compatctl add takes them in")
    return problems


def tell_new_rows(url: str, changes: TableChanges, result: str) -> None:
    """Give notice of rows that were not adopted, if there are any."""
    if changes.new:
        notice("new-rows", url, "rows that were not adopted", changes.new_ids, result,
               count=changes.new)  # fmt: skip


def adopted(store: Store, manifest: Manifest) -> tuple[TableFile, RowChecksums]:
    """The file of a generation's table, and the checksums of its rows.

    Raises:
        DamagedError: it is missing or changed.
    """
    path = store.verified_path(manifest.index.kind, manifest.index.sha256)
    file = TableFile.read(path)
    return file, file.read_checksums(path)
