"""import: adopt a deployed hnswlib file as a store. Its bytes stay; nothing is re-embedded."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.data import csv_rows, warn_of_near_equal, warn_of_near_known
from compatctl.deployment.artifacts import ModelArtifacts, find_artifacts
from compatctl.deployment.changed_items import image_digests
from compatctl.deployment.creation import (
    create_store,
    existing_store,
    first_catalog,
    refuse_other_registry,
)
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import indexed_rows
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import utc_now
from compatctl.deployment.provenance import CLOSE, Agreement, compare, is_proven
from compatctl.encoder import Encoder, check_steady
from compatctl.errors import DamagedError, InputError
from compatctl.files import sha256_file
from compatctl.index import (
    HnswIndex,
    HnswParams,
    NotUnitError,
    build_without_deleted,
    count_deleted,
    read_header,
    require_hnswlib,
)
from compatctl.manifest import Catalog, Operation
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store

_NOT_UNIT = (
    "an index whose rows are not of unit length (space ip or l2) cannot be adopted: divide each "
    "row by its norm and build the index again, or embed the gallery with compatctl init"
)
_KEY = re.compile(r"[0-9]{1,20}")
_LARGEST_KEY = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """The adopted index.

    Attributes:
        agreement: the least cosine between stored vectors and the model's embeddings of the same
            items, over at most 32 items; None without images.
        in_top_3: the share of these items whose own vector is among the first three.
        proven: false without images: nothing shows that this model made these vectors.
        dropped: how many rows were marked deleted and are left out.
    """

    store: str
    generation: int
    query_model: str
    index_sha256: str
    rows: int
    dropped: int
    dim: int
    agreement: float | None
    in_top_3: float | None
    proven: bool
    warnings: tuple[str, ...]
    written: bool


def import_index(
    project: Project,
    *,
    index: Path,
    model: Path,
    items: Path | None,
    space: str,
    ef_search: int = 64,
    preprocessing: Path | None = None,
    drop_deleted: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> ImportResult:
    """Create a store with the rows of a deployed hnswlib file.

    If the project has data, a few items are embedded to check that this model made these vectors;
    otherwise the store is marked as unproven.

    Args:
        items: a CSV (key, id, label) that names the item of each hnswlib key. Without it, the
            keys' digits are the ids, and no class is known.
        drop_deleted: leave out rows that are marked deleted, and rebuild the index.

    Raises:
        InputError: the file's dimension is not the model's; its rows are not of unit length; the
            table does not name exactly its keys; or the vectors are another model's.
        DamagedError: the file is damaged, or has rows marked deleted.
    """
    require_hnswlib()
    model_file = ModelFile.read(model, preprocessing)
    encoder = model_file.encoder
    header = read_header(index)
    if header.dim != encoder.dim:
        raise InputError(
            f"{index} has {header.dim} dimensions, {model} has {encoder.dim}",
            tip="name the model that filled this index",
        )
    params = HnswParams.from_header(header, space=space, ef_search=ef_search)
    with _source(index, params, drop_deleted=drop_deleted, progress=progress) as source:
        catalog = _catalog(source.index, items, encoder.sha256, source.dropped)
        catalog, agreement = _compared(project, encoder, source.index, catalog, progress)
        artifacts = find_artifacts(project, model, encoder)
        proven = agreement is not None
        written = _write(
            project, model_file, artifacts, source, catalog, proven=proven, dry_run=dry_run
        )
    return ImportResult(
        store=str(project.store),
        generation=written.generation,
        query_model=encoder.sha256,
        index_sha256="" if dry_run else source.sha256,
        rows=len(source.index),
        dropped=len(source.dropped),
        dim=encoder.dim,
        agreement=agreement.least_cosine if agreement else None,
        in_top_3=agreement.in_top if agreement else None,
        proven=written.proven,
        warnings=_warnings(agreement, proven=written.proven),
        written=written.written,
    )


def _warnings(agreement: Agreement | None, *, proven: bool) -> tuple[str, ...]:
    if not proven:
        return (
            "model and index were never compared, as no image of an item is available: nothing "
            "shows that this model made these vectors; import with --data compares them",
        )
    if agreement is not None and agreement.least_cosine < CLOSE:
        return (
            "stored vectors differ slightly from the model's embeddings here (least cosine "
            f"{agreement.least_cosine:.4f}): other libraries, or half precision?",
        )
    return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """The file to adopt, its digest, its rows, and the keys (n,) that are left out."""

    path: Path
    sha256: str
    index: HnswIndex
    dropped: NDArray[np.uint64]


@contextmanager
def _source(
    path: Path, params: HnswParams, *, drop_deleted: bool, progress: Progress
) -> Iterator[_Source]:
    """The file itself, or one rebuilt from its rows if some are marked deleted."""
    dropped = np.zeros(0, np.uint64)
    with ExitStack() as stack:
        if drop_deleted and (marked := count_deleted(path)):
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            index, dropped = build_without_deleted(path, params, progress)
            path = Path(scratch) / f"{marked} rows dropped.bin"
            index.save(path)
        progress("reading the index", 0, 1)
        before = sha256_file(path)
        try:
            index = HnswIndex.load(path, params)
        except NotUnitError as error:
            raise DamagedError(error.message, tip=_NOT_UNIT) from None
        progress("reading the index", 1, 1)
        yield _Source(path=path, sha256=before, index=index, dropped=dropped)


@dataclass(frozen=True, kw_only=True)
class _Written:
    generation: int
    proven: bool
    written: bool


def _write(
    project: Project,
    model: ModelFile,
    artifacts: ModelArtifacts,
    source: _Source,
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
            params=source.index.params,
            catalog=catalog,
            operation=Operation.IMPORT,
            proven=proven,
        )
        return _Written(generation=1, proven=proven, written=True)
    known = is_proven(store.manifest)
    if known or not proven:
        return _Written(generation=store.manifest.generation, proven=known, written=False)
    return _Written(generation=_mark_proven(store, catalog), proven=True, written=True)


def _mark_proven(store: Store, catalog: Catalog) -> int:
    """Mark all rows as proven, and return the new generation."""
    manifest = store.manifest
    with store.transaction(manifest, operation=Operation.IMPORT) as tx:
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
            f"{project.store} is already a store, of another index", tip="name another folder"
        )
    refuse_other_registry(store, artifacts)
    return store


def _catalog(
    index: HnswIndex, items: Path | None, model: str, dropped: NDArray[np.uint64]
) -> Catalog:
    keys, dropped_keys = index.keys(), set(dropped.tolist())
    if items is None:
        names = {int(key): (str(key), "") for key in keys}
    else:
        names = {key: name for key, name in _read_items(items).items() if key not in dropped_keys}
        missing = [int(key) for key in keys if int(key) not in names]
        if missing or len(names) != len(keys):
            raise InputError(
                f"{items} names {len(names)} keys, the index has {len(keys)} rows; "
                f"{f'the key {missing[0]} has no line' if missing else 'it names too many'}"
            )
    ids = tuple(names[int(key)][0] for key in keys)
    labels = tuple(names[int(key)][1] for key in keys)
    if items is not None:
        warn_of_near_equal(items, ids, labels)
    return first_catalog(ids, labels, keys, model)


def _read_items(path: Path) -> dict[int, tuple[str, str]]:
    """key -> (id, label) of a CSV with the columns key, id and label."""
    items: dict[int, tuple[str, str]] = {}
    for position, line in csv_rows(path, ("key", "id", "label")):
        key, item, label = line["key"], line["id"], line["label"]
        if not _KEY.fullmatch(key) or not item.strip():
            raise InputError(
                f"{position}: expected a key of the index (a whole number), the item's id and its "
                f"label, got {key!r:.40}, {item!r:.40} and {label!r:.40}",
                tip="write all three; only a label may be empty: its class is then unknown",
            )
        if int(key) > _LARGEST_KEY:
            raise InputError(f"{position}: the key {key} is larger than {_LARGEST_KEY}")
        if int(key) in items:
            raise InputError(f"{position}: the key is there twice")
        items[int(key)] = (item, label if label.strip() else "")
    return items


def _compared(
    project: Project, encoder: Encoder, index: HnswIndex, catalog: Catalog, progress: Progress
) -> tuple[Catalog, Agreement | None]:
    """The catalogue with the digests of the available images, and how well some items agree."""
    if project.data is None:
        return catalog, None
    data = load_data(project)
    check_steady(encoder, data)
    rows, catalog_rows = indexed_rows(data, catalog)
    missing = set(data.ids).difference(catalog.ids)
    warn_of_near_known(project.data, "ids", sorted(missing), catalog.ids)
    if not len(rows):
        raise InputError(
            f"no item of {project.data} is in the index by its id",
            tip="look at --items: its ids must be the data's",
        )
    agreement = compare(encoder, index, catalog, data, rows)
    digests = catalog.digests.copy()
    digests[catalog_rows] = image_digests(data, rows, progress)
    return replace(catalog, digests=digests), agreement
