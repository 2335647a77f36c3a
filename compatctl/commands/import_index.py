"""import: adopt a deployed index as a store. Nothing is re-embedded.

The bytes of an hnswlib file of unit rows stay; the rows of other sources are indexed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.data import (
    Dataset,
    KeyColumns,
    read_key_table,
    warn_of_near_equal,
    warn_of_near_known,
)
from compatctl.deployment.adopted_rows import TOP, Norms, write_norms
from compatctl.deployment.adopted_source import AdoptedSource, SourceRequest, open_adopted
from compatctl.deployment.adopted_table import TableRequest, open_adopted_table
from compatctl.deployment.artifacts import ModelArtifacts, find_artifacts
from compatctl.deployment.changed_items import image_digests
from compatctl.deployment.creation import (
    create_store,
    existing_store,
    first_catalog,
    refuse_other_registry,
)
from compatctl.deployment.data import has_classes, load_data
from compatctl.deployment.gallery import indexed_rows
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import utc_now
from compatctl.deployment.provenance import (
    CLOSE,
    LEAST_COSINE,
    LEAST_RECONSTRUCTED,
    Agreement,
    compare,
    is_proven,
)
from compatctl.encoder import Encoder, check_steady
from compatctl.engines import Location, engine_of, is_engine_url, parse_url, require_engine
from compatctl.errors import InputError, UsageError
from compatctl.index import KeyLookup, require_hnswlib
from compatctl.manifest import Catalog, Operation
from compatctl.migration.first_store import write_first_project
from compatctl.notices import notice
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store, Switch, shown_path


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """The adopted index.

    Attributes:
        engine, kind: what wrote the file, and its structure.
        rebuilt: whether the rows were indexed again; if not, the file stays byte for byte.
        lossy: why the rows are not those that were indexed; None if they are.
        norms: the file with the norms of the rows; None where there is none.
        agreement: the least cosine between stored vectors and the model's embeddings of the same
            items, over at most 32 items; None without the items' content.
        in_top_3: the share of these items whose own vector is among the first three.
        proven: false without it: nothing shows that this model made these vectors.
        dropped: how many rows were marked deleted and are left out.
        project_file: the compatctl.yaml that was written; None: none was.
    """

    store: str
    generation: int
    query_model: str
    index_sha256: str
    engine: str
    kind: str
    rebuilt: bool
    lossy: str | None
    norms: str | None
    rows: int
    dropped: int
    dim: int
    agreement: float | None
    in_top_3: float | None
    proven: bool
    warnings: tuple[str, ...]
    written: bool
    project_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class ItemsTable:
    """The table that names the item of each key of an index.

    ``columns``: key, id or label -> its name there; ``table``: of an SQLite database.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    table: str | None = None


def import_index(
    project: Project,
    *,
    index: Path | str,
    model: Path | None,
    items: Path | None,
    space: str | None = None,
    ef_search: int = 64,
    preprocessing: Path | None = None,
    name: str | None = None,
    drop_deleted: bool = False,
    columns: Mapping[str, str] | None = None,
    items_table: str | None = None,
    table: str | None = None,
    norms: Path | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> ImportResult:
    """Create a store with the rows of a deployed index.

    An hnswlib file of unit rows is adopted byte for byte, and a table of PostgreSQL or
    a collection of Milvus where it is. Rows of another engine, of a table of vectors, or of other
    norms are indexed again; nothing is embedded. If the project has data, a few items are
    embedded to check that this model made these vectors; otherwise the store is marked as unproven.

    Args:
        index: a file or folder, or the URL of a table.
        items: a table (key, id, label) that names the item of each key. Without it, the file's ids
            or the keys' digits are the ids.
        space: what the index ranks by: ip, l2 or cosine. Default: what the file says, or ip.
        drop_deleted: leave out rows that are marked deleted, and rebuild the index.
        columns: names of columns of ``items`` and of an index that is a table.
        items_table: of an SQLite database of items.
        table: of a LanceDB folder, or the collection of a Chroma folder.
        norms: a new .npz for the norms of rows that are not of unit length.

    Raises:
        InputError: the file's dimension is not the model's; its norms would be lost; the table does
            not name exactly its keys; or the vectors are another model's.
        UsageError: an option that does nothing for this file; or ``COMPATCTL_ENGINE_URL``
            contradicts the URL.
        DamagedError: the file is damaged, or has rows marked deleted.
        ConflictError: another store switches the table or collection.
    """
    named = {} if columns is None else columns
    flags = ("--items", "--items-table", "--items-column", "--table", "--norms", "--drop-deleted")
    given = (items, items_table, named, table, norms, drop_deleted)
    location = _location(index, dict(zip(flags, given, strict=True)))
    model_file = ModelFile.deployed(project, model, preprocessing, name=name)
    encoder = model_file.encoder
    own = {"id", "vector", "label"} if items is None else {"vector"}
    names = _items_table(items, named, items_table)
    request = SourceRequest(
        path=Path(index),
        dim=encoder.dim,
        space=space,
        ef_search=ef_search,
        drop_deleted=drop_deleted,
        columns={name: column for name, column in named.items() if name in own},
        norms=norms,
        table=table,
    )
    with _open(request, location, project.store, progress, dry_run=dry_run) as source:
        catalog = _catalog(source, names, encoder.sha256)
        catalog, agreement = _compared(project, encoder, source, catalog, progress)
        artifacts = find_artifacts(project, model_file.path, encoder)
        if norms is not None and source.norms is not None and not dry_run:
            write_norms(norms, source.norms, catalog.ids)
        written = _write(
            project,
            model_file,
            artifacts,
            source,
            catalog,
            proven=agreement is not None,
            dry_run=dry_run,
        )
        kept = norms if source.norms is not None else None
        result = _result(project, encoder, source, agreement, written, norms=kept)
    if dry_run:
        return replace(result, index_sha256="")
    if project.data is None and not project.vectors:
        return result
    return replace(result, project_file=write_first_project(project))


def _open(
    request: SourceRequest,
    location: Location | None,
    store: Path,
    progress: Progress,
    *,
    dry_run: bool,
) -> AbstractContextManager[AdoptedSource]:
    """The file of the request, or the table at ``location``."""
    if location is None:
        return open_adopted(request, progress)
    table = TableRequest(
        location=location,
        store=store,
        dim=request.dim,
        space=request.space,
        ef_search=request.ef_search,
        dry_run=dry_run,
    )
    return open_adopted_table(table, progress)


def _location(index: Path | str, options: Mapping[str, object]) -> Location | None:
    """The table of a URL, or None for a path; refuses options that only a file has."""
    if not isinstance(index, str) or not is_engine_url(index):
        if "://" in str(index) or "password=" in str(index):  # never shown
            raise UsageError("the URL is not of an engine", tip="postgresql://... or milvus://...")
        require_hnswlib()
        return None
    useless = next((name for name, value in options.items() if value), None)
    if useless is not None:
        raise UsageError(
            f"{useless} is for files, and the URL of an engine names its own columns",
            tip="?id=COLUMN&vector=COLUMN&label=COLUMN in the URL",
        )
    location = parse_url(index)
    location.require_same_way()
    require_engine(engine_of(location))
    return location


def _items_table(
    path: Path | None, columns: Mapping[str, str], table: str | None
) -> ItemsTable | None:
    """The table of --items; refuses options that choose in a table that is not given."""
    if path is not None:
        names = {name: column for name, column in columns.items() if name != "vector"}
        return ItemsTable(path=path, columns=names, table=table)
    useless = "--items-table" if table is not None else "--items-column key"
    if table is not None or "key" in columns:
        raise UsageError(
            f"{useless} chooses in the table of --items, which is not given",
            tip="name the table with --items",
        )
    return None


def _result(
    project: Project,
    encoder: Encoder,
    source: AdoptedSource,
    agreement: Agreement | None,
    written: _Written,
    *,
    norms: Path | None,
) -> ImportResult:
    return ImportResult(
        store=shown_path(project.store),
        generation=written.generation,
        query_model=encoder.sha256,
        index_sha256=source.sha256,
        engine=source.engine,
        kind=source.kind,
        rebuilt=source.rebuilt,
        lossy=source.lossy or None,
        norms=None if norms is None else str(norms),
        rows=len(source.index),
        dropped=len(source.dropped),
        dim=encoder.dim,
        agreement=agreement.least_cosine if agreement else None,
        in_top_3=agreement.in_top if agreement else None,
        proven=written.proven,
        warnings=_warnings(source, agreement, proven=written.proven),
        written=written.written,
    )


def _warnings(
    source: AdoptedSource, agreement: Agreement | None, *, proven: bool
) -> tuple[str, ...]:
    warnings = _norm_warnings(source.norms)
    if not proven:
        return (
            *warnings,
            "model and index were never compared, as the content of no item is available: nothing "
            "shows that this model made these vectors; import with --data compares them",
        )
    if agreement is not None and agreement.least_cosine < CLOSE and not source.lossy:
        return (
            *warnings,
            "stored vectors differ slightly from the model's embeddings here (least cosine "
            f"{agreement.least_cosine:.4f}): other libraries, or half precision?",
        )
    return warnings


def _norm_warnings(norms: Norms | None) -> tuple[str, ...]:
    if norms is None or norms.kept_share is None:
        return ()
    return (
        f"norms from {norms.values.min():.4g} to {norms.values.max():.4g} are not part of the "
        f"ranking any more: the cosine keeps {norms.kept_share:.1%} of the first {TOP} answers",
    )


@dataclass(frozen=True, kw_only=True)
class _Written:
    generation: int
    proven: bool
    written: bool


def _write(
    project: Project,
    model: ModelFile,
    artifacts: ModelArtifacts,
    source: AdoptedSource,
    catalog: Catalog,
    *,
    proven: bool,
    dry_run: bool,
) -> _Written:
    """Create the store, mark an unproven one as proven, or find it done."""
    if dry_run:
        return _Written(generation=1, proven=proven, written=False)
    store = _adopted_store(project, source.sha256, catalog, artifacts)
    if store is None:
        create_store(
            project.store,
            model=model,
            artifacts=artifacts,
            index=source.path,
            sha256=source.sha256,
            info=source.info,
            catalog=catalog,
            operation=Operation.IMPORT,
            proven=proven,
            switch=source.switch,
        )
        return _Written(generation=1, proven=proven, written=True)
    known = is_proven(store.manifest)
    if known or not proven:
        return _Written(generation=store.manifest.generation, proven=known, written=False)
    generation = _mark_proven(store, catalog, source.switch)
    return _Written(generation=generation, proven=True, written=True)


def _mark_proven(store: Store, catalog: Catalog, switch: Switch | None) -> int:
    """Mark all rows as proven, and return the new generation."""
    manifest = store.manifest
    with store.transaction(manifest, operation=Operation.IMPORT, switch=switch) as tx:
        after = tx.commit(
            operation=Operation.IMPORT,
            created_at=utc_now(),
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(replace(model, proven=True) for model in manifest.models),
        )
    return after.generation


def _adopted_store(
    project: Project, sha256: str, catalog: Catalog, artifacts: ModelArtifacts
) -> Store | None:
    """The store, if an earlier run adopted this same index."""
    store = existing_store(project.store, "import", catalog.models[0])
    if store is None:
        return None
    if store.manifest.index.sha256 != sha256 or store.catalog().ids != catalog.ids:
        raise InputError(
            f"{shown_path(project.store)} is already a store, of another index",
            tip="name another folder",
        )
    refuse_other_registry(store, artifacts)
    return store


def _catalog(source: AdoptedSource, items: ItemsTable | None, model: str) -> Catalog:
    """The items of the rows: as the file names them, or the table of keys, or by their keys."""
    keys = source.index.keys()
    if items is not None:
        ids, labels = _named(source, items)
    else:
        ids = source.ids or tuple(map(str, keys.tolist()))
        labels = source.labels or ("",) * len(keys)
    if items is not None or source.ids is not None:
        warn_of_near_equal("the index" if items is None else items.path, ids, labels)
    return first_catalog(ids, labels, keys, model)


def _named(source: AdoptedSource, items: ItemsTable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and labels of the rows by the table, which must name exactly the rows that are there."""
    if source.ids is not None:
        raise InputError(
            f"the index names its items by texts, such as {source.ids[0]!r:.40}: --items names the "
            "items of keys that are whole numbers",
            tip="leave --items out; --items-column label=NAME reads the classes from the same file",
        )
    keys = source.index.keys()
    table = read_key_table(items.path, KeyColumns(names=items.columns, table=items.table))
    kept = np.flatnonzero(~np.isin(table.keys, source.dropped))
    positions = KeyLookup(table.keys[kept]).find(keys)
    missing = keys[positions < 0]
    if len(missing) or len(kept) != len(keys):
        extra = np.setdiff1d(table.keys[kept], keys)
        raise InputError(
            f"{items.path} names {len(kept)} keys, the index has {len(keys)} rows; "
            + (f"the key {missing[0]} has no line" if len(missing) else f"it has no {extra[0]}"),
            tip="the table must name exactly the rows that are in the index",
        )
    rows = kept[positions].tolist()
    return tuple(table.ids[row] for row in rows), tuple(table.labels[row] for row in rows)


def _compared(
    project: Project, encoder: Encoder, source: AdoptedSource, catalog: Catalog, progress: Progress
) -> tuple[Catalog, Agreement | None]:
    """The catalogue with the digests of the available items, and how well some items agree."""
    if project.source is None:
        return catalog, None
    data = load_data(project)
    check_steady(encoder, data)
    rows, catalog_rows = indexed_rows(data, catalog)
    missing = set(data.ids).difference(catalog.ids)
    warn_of_near_known(project.source, "ids", sorted(missing), catalog.ids)
    if not len(rows):
        raise InputError(
            f"no item of {project.source} is in the index by its id",
            tip="name the column of the data's ids in the URL: ?id=COLUMN"
            if source.switch
            else "look at --items: its ids must be the data's",
        )
    least = LEAST_RECONSTRUCTED if source.lossy else LEAST_COSINE
    _warn_of_other_labels(project.source, data, rows, [catalog.labels[row] for row in catalog_rows])
    agreement = compare(encoder, source.index, catalog, data, rows, least=least)
    digests = catalog.digests.copy()
    digests[catalog_rows] = image_digests(data, rows, progress)
    return replace(catalog, digests=digests), agreement


def _warn_of_other_labels(source: Path, data: Dataset, rows: Rows, labels: Sequence[str]) -> None:
    """Warn of ``rows`` of the data whose label is another than the index's (``labels``)."""
    names = [
        f"{data.ids[row]!r}: {data.labels[row]!r} and {label!r}"
        for row, label in zip(rows.tolist(), labels, strict=True)
        if label not in {"", data.labels[row]}
    ]
    if names and has_classes(data):
        result = "verify takes their class for unknown; write one label, in --items or in the data"
        notice("label-differs", source, "items with another label in the index", names, result)
