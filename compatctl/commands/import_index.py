"""import: adopt a deployed hnswlib file as a store. Nothing is embedded, no byte of it changes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.data import csv_rows
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
from compatctl.encoder import Encoder, refuse_unsteady
from compatctl.errors import DamagedError, InputError
from compatctl.files import sha256_file
from compatctl.index import (
    HnswIndex,
    HnswParams,
    NotUnitError,
    count_deleted,
    live,
    read_header,
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
    """The adopted index. ``agreement``: least cosine of stored vectors and what the model makes of
    the same items' images, over at most 32 of them, and ``in_top_3`` the share of them that found
    their own vector among the first three; None where no image is at hand. ``proven`` is false
    then: nobody knows that this model made these vectors. ``dropped`` rows were marked deleted and
    are left out."""

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
    """Begin a store with the rows of a deployed hnswlib file.

    ``items`` says which item each hnswlib label is (CSV: key, id, label); without it the ids are
    the labels' digits and no class is known. Where the project has data, a few items are embedded
    to see that this model made these vectors; else the store is marked as unproven.
    ``drop_deleted``: rows that are marked deleted are left out, and the index is built anew.

    Raises:
        InputError: the file's dimension is not the model's, its rows are not of unit length, the
            table does not name exactly its keys, or the vectors are another model's.
        DamagedError: the file is damaged, or has rows marked deleted.
    """
    chosen = ModelFile.read(model, preprocessing)
    encoder = chosen.encoder
    header = read_header(index)
    if header.dim != encoder.dim:
        raise InputError(
            f"{index} has {header.dim} dimensions, {model} ends in {encoder.dim}",
            tip="is it the model that filled this index?",
        )
    params = HnswParams.of(header, space=space, ef_search=ef_search)
    with _source(index, params, drop_deleted=drop_deleted, progress=progress) as source:
        catalog = _catalog(source.index, items, encoder.sha256, source.dropped)
        catalog, agreement = _compared(project, encoder, source.index, catalog, progress)
        artifacts = find_artifacts(project, model, encoder)
        work = _Work(
            project=project, model=chosen, artifacts=artifacts, source=source, catalog=catalog
        )
        done = work.written(proven=agreement is not None, dry_run=dry_run)
    return ImportResult(
        store=str(project.store),
        generation=done.generation,
        query_model=encoder.sha256,
        index_sha256="" if dry_run else source.sha256,
        rows=len(source.index),
        dropped=len(source.dropped),
        dim=encoder.dim,
        agreement=agreement.least_cosine if agreement else None,
        in_top_3=agreement.in_top if agreement else None,
        proven=done.proven,
        warnings=_warnings(agreement, proven=done.proven),
        written=done.written,
    )


def _warnings(agreement: Agreement | None, *, proven: bool) -> tuple[str, ...]:
    if not proven:
        return (
            "model and index were never compared, for no image of an item is at hand: nothing "
            "shows that this model made these vectors; import with --data compares them",
        )
    if agreement is not None and agreement.least_cosine < CLOSE:
        return (
            "stored vectors are not quite what the model makes here (least cosine "
            f"{agreement.least_cosine:.4f}): by other libraries, or in half precision?",
        )
    return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """The file to adopt, its digest, its rows, and the keys (n,) that were left out."""

    path: Path
    sha256: str
    index: HnswIndex
    dropped: NDArray[np.uint64]


@contextmanager
def _source(
    path: Path, params: HnswParams, *, drop_deleted: bool, progress: Progress
) -> Iterator[_Source]:
    """The file itself; or one that is built of its rows, where some are marked deleted."""
    dropped = np.zeros(0, np.uint64)
    with ExitStack() as stack:
        if drop_deleted and (marked := count_deleted(path)):
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            index, dropped = live(path, params, progress)
            path = Path(scratch) / f"{marked} rows dropped.bin"
            index.save(path)
        progress("reading the index", 0, 1)
        before = sha256_file(path)
        try:
            found = HnswIndex.load(path, params)
        except NotUnitError as error:
            raise DamagedError(error.message, tip=_NOT_UNIT) from None
        progress("reading the index", 1, 1)
        yield _Source(path=path, sha256=before, index=found, dropped=dropped)


@dataclass(frozen=True, kw_only=True)
class _Done:
    generation: int
    proven: bool
    written: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """One import of which everything was looked at."""

    project: Project
    model: ModelFile
    artifacts: ModelArtifacts
    source: _Source
    catalog: Catalog

    def written(self, *, proven: bool, dry_run: bool) -> _Done:
        """Begin the store; or mark one that was adopted unseen as compared; or find it done."""
        if dry_run:
            return _Done(generation=1, proven=proven, written=False)
        there = _adopted_already(self.project, self.source.sha256, self.catalog, self.artifacts)
        if there is None:
            self._begin(proven=proven)
            return _Done(generation=1, proven=proven, written=True)
        known = is_proven(there.manifest)
        if known or not proven:
            return _Done(generation=there.manifest.generation, proven=known, written=False)
        return _Done(generation=_believed(there, self.catalog), proven=True, written=True)

    def _begin(self, *, proven: bool) -> None:
        source = self.source
        create_store(
            self.project.store,
            model=self.model,
            artifacts=self.artifacts,
            index=source.path,
            sha256=source.sha256,
            params=source.index.params,
            catalog=self.catalog,
            operation=Operation.IMPORT,
            proven=proven,
        )


def _believed(store: Store, catalog: Catalog) -> int:
    """Mark rows that were adopted unseen as compared; the generation."""
    manifest = store.manifest
    with store.transaction(manifest, operation=Operation.IMPORT) as tx:
        after = tx.commit(
            operation=Operation.IMPORT,
            created_at=utc_now(),
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(replace(one, proven=True) for one in manifest.models),
        )
    return after.generation


def _adopted_already(
    project: Project, sha256: str, catalog: Catalog, artifacts: ModelArtifacts
) -> Store | None:
    """The store, where an earlier run adopted this very index."""
    there = existing_store(project.store, "import", catalog.models[0])
    if there is None:
        return None
    if there.manifest.index.sha256 != sha256 or there.catalog().ids != catalog.ids:
        raise InputError(
            f"{project.store} is already a store, of another index", tip="name another folder"
        )
    refuse_other_registry(there, artifacts)
    return there


def _catalog(
    index: HnswIndex, items: Path | None, model: str, dropped: NDArray[np.uint64]
) -> Catalog:
    keys, gone = index.keys(), set(dropped.tolist())
    if items is None:
        names = {int(key): (str(key), "") for key in keys}
    else:
        names = {key: name for key, name in _named(items).items() if key not in gone}
        lacking = [int(key) for key in keys if int(key) not in names]
        if lacking or len(names) != len(keys):
            raise InputError(
                f"{items} names {len(names)} keys, the index has {len(keys)} rows; "
                f"{f'the key {lacking[0]} has no line' if lacking else 'it names too many'}"
            )
    ids = tuple(names[int(key)][0] for key in keys)
    return first_catalog(ids, tuple(names[int(key)][1] for key in keys), keys, model)


def _named(path: Path) -> dict[int, tuple[str, str]]:
    """key -> (id, label) of a CSV with the columns key, id and label."""
    found: dict[int, tuple[str, str]] = {}
    for truth, line in csv_rows(path, ("key", "id", "label")):
        key, item, label = line["key"] or "", line["id"], line["label"]
        if not _KEY.fullmatch(key) or not item or label is None:
            raise InputError(f"{truth}: an incomplete line")
        if int(key) > _LARGEST_KEY:
            raise InputError(f"{truth}: the key {key} is larger than {_LARGEST_KEY}")
        if int(key) in found:
            raise InputError(f"{truth}: the key is there twice")
        found[int(key)] = (item, label)
    return found


def _compared(
    project: Project, encoder: Encoder, index: HnswIndex, catalog: Catalog, progress: Progress
) -> tuple[Catalog, Agreement | None]:
    """The catalogue with the digests of the images at hand, and how well some of them agree."""
    if project.data is None:
        return catalog, None
    data = load_data(project)
    refuse_unsteady(encoder, data)
    rows, catalog_rows = indexed_rows(data, catalog)
    if not len(rows):
        raise InputError(
            f"no item of {project.data} is in the index by its id",
            tip="look at --items: its ids must be the data's",
        )
    agreement = compare(encoder, index, catalog, data, rows)
    digests = catalog.digests.copy()
    digests[catalog_rows] = image_digests(data, rows, progress)
    return replace(catalog, digests=digests), agreement
