"""Find and erase removed items in kept galleries, memories, models and the files beside a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Checksums
from compatctl.data import memory_bytes, read_memory
from compatctl.deployment.gallery import index_params
from compatctl.deployment.record_files import (
    FILE,
    ModelHeader,
    find_record,
    record_path,
    without_erased_items,
)
from compatctl.deployment.rehearsal import stored_memory
from compatctl.deployment.training_record import MEMORY_FILE
from compatctl.encoder import HeldVectors, held_vectors, read_model_bytes, read_record
from compatctl.errors import CompatError, InputError
from compatctl.files import sha256_bytes, write_atomic
from compatctl.index import find_checksums, read_keys, read_rows, row_checksums
from compatctl.manifest import Manifest
from compatctl.printable import listed
from compatctl.recipe import Project
from compatctl.store import Store

IsErased = Callable[[str], bool]
"""Whether the item with an id was erased."""

Masks = dict[str, NDArray[np.bool_]]
"""Name of a table in a model -> (S,) which of its rows belong to removed items."""

_NO_CHECKSUMS = np.zeros(0, np.uint64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Traces:
    """What kept generations hold of items: their ``ids`` and the checksums of their vectors."""

    ids: frozenset[str]
    checksums: Checksums


def whole_generations(store: Store) -> tuple[Manifest, ...]:
    """The generations whose galleries and memories are kept, oldest first."""
    first = max(store.manifest.oldest_restorable, store.manifest.oldest_gallery)
    return tuple(manifest for manifest in store.history() if manifest.generation >= first)


def traces_of(store: Store, ids: frozenset[str]) -> Traces:
    """Look for items in every kept gallery and memory. Each file is read once.

    Raises:
        DamagedError: a file is missing or changed.
    """
    held: set[str] = set()
    checksums = [_NO_CHECKSUMS]
    for manifest in _galleries(store):
        catalog, info = store.catalog(manifest), manifest.index
        rows = [row for row, item in enumerate(catalog.ids) if item in ids]
        held.update(catalog.ids[row] for row in rows)
        if rows:
            path = store.verified_path("indexes", info.sha256, fresh=True)
            vectors = read_rows(path, index_params(info), info.count, catalog.keys[rows])
            checksums.append(row_checksums(vectors))
    for manifest in {m.memory: m for m in whole_generations(store)}.values():
        memory = stored_memory(store, manifest)
        held.update(ids.intersection(memory.ids) if memory is not None else ())
    return Traces(ids=frozenset(held), checksums=np.unique(np.concatenate(checksums)))


def _galleries(store: Store) -> Iterator[Manifest]:
    """One generation for each kept gallery."""
    yield from {(m.catalog, m.index.sha256): m for m in whole_generations(store)}.values()


def removed_vectors(
    project: Project,
    store: Store,
    sha256: str,
    *,
    ids: frozenset[str],
    checksums: Checksums,
    name: str,
) -> Masks:
    """Which rows of a stored model's tables belong to the items with these ids and checksums.

    A row is identified by its checksum, by the model's training record, or by a kept gallery that
    has it as another item's row.

    Raises:
        InputError: nothing identifies a row.
        DamagedError: the model or a gallery is missing or damaged.
    """
    path = store.verified_path("models", sha256)
    tables = held_vectors(path.read_bytes(), path)
    masks = {table.name: np.isin(row_checksums(table.vectors), checksums) for table in tables}
    from_gallery = [table for table in tables if table.from_gallery]
    anchors = _anchor_ids(project, path, sha256) if len(from_gallery) == 1 else None
    for table in from_gallery:
        if anchors is not None and len(anchors) >= len(table.vectors):
            masks[table.name] |= np.array(
                [item in ids for item in anchors[: len(table.vectors)]], bool
            )
        elif unknown := int((~masks[table.name] & ~_in_a_gallery(store, table)).sum()):
            raise InputError(
                f"{name} holds {len(table.vectors)} stored vectors of gallery items, and nothing "
                f"says whose {unknown} of them are: they may belong to items to remove",
                tip="put training.json, as finetune wrote it, into the candidate's folder; or "
                "fine-tune again without these items, deploy that model, and then remove them",
            )
    return masks


def _in_a_gallery(store: Store, table: HeldVectors) -> NDArray[np.bool_]:
    """Which rows (S,) of a table are rows of a kept gallery."""
    checksums = row_checksums(table.vectors)
    known = np.zeros(len(checksums), bool)
    for manifest in _galleries(store):
        known |= in_gallery(store, manifest, checksums)
    return known


def in_gallery(
    store: Store, manifest: Manifest, checksums: Checksums, *, but: NDArray[np.uint64] | None = None
) -> NDArray[np.bool_]:
    """Which checksums (n,) are of rows of a generation's gallery, without the keys ``but`` (m,)."""
    path, info = store.verified_path("indexes", manifest.index.sha256), manifest.index
    return find_checksums(path, index_params(info), info.count, checksums, but=but)


def _anchor_ids(project: Project, path: Path, sha256: str) -> tuple[str, ...] | None:
    """The ids of a model's anchors in the order of its table; None without a training.json."""
    model = ModelHeader(sha256=sha256, record=read_record(path))
    near = project.output if project.output.is_file() else path
    record = find_record(near, model, named=None, candidate=project.candidate, with_names=True)
    if record is None or record.path is None:
        return None
    return tuple(item.id for item in record.anchors)


def refuse_erased_vectors(store: Store, data: bytes, path: Path) -> None:
    """Refuse a model that holds vectors of items that were removed from the store.

    Raises:
        InputError: it does.
    """
    if sha256_bytes(data) in store.manifest.erased_models:
        raise InputError(
            f"{path.name} was erased when items were removed from the store: it holds vectors of "
            "them, or vectors that nothing identifies",
            tip="fine-tune again without these items",
        )
    if count := erased_vectors(store, data, path):
        raise InputError(
            f"{path.name} holds the stored vectors of {count} items that were removed from the "
            "store",
            tip="fine-tune again without these items",
        )


def erased_vectors(store: Store, data: bytes, path: Path) -> int:
    """How many vectors in an encoder were erased and belong to no current row."""
    erased = store.erasures()
    if erased is None or not len(erased.checksums):
        return 0
    tables = held_vectors(data, path)
    checksums = np.concatenate([_NO_CHECKSUMS, *(row_checksums(table.vectors) for table in tables)])
    checksums = np.intersect1d(checksums, erased.checksums)
    return int((~in_gallery(store, store.manifest, checksums)).sum()) if len(checksums) else 0


def erasure_problems(store: Store) -> list[str]:
    """Find erased items in kept files; the store's own check covers the catalogues.

    Every index must have the keys of its catalogue and no others; no memory may have an erased id;
    no model that serves or can be restored may hold an erased vector.

    Raises:
        DamagedError: a file is missing or changed.
    """
    if store.manifest.erasures is None:
        return []
    problems = []
    for manifest in _galleries(store):
        info = manifest.index
        path = store.blob_path("indexes", info.sha256)
        keys = np.sort(read_keys(path, index_params(info), info.count))
        if not np.array_equal(keys, np.sort(store.catalog(manifest).keys)):
            problems.append(
                f"{path} and the catalogue of generation {manifest.generation} have other keys"
            )
    for manifest in {(m.memory, m.erasures): m for m in whole_generations(store)}.values():
        memory, erased = stored_memory(store, manifest), store.erasures(manifest)
        erased_ids = (
            erased.matching(memory.ids) if memory is not None and erased is not None else ()
        )
        if erased_ids:
            path = store.blob_path("memories", manifest.memory or "")
            problems.append(f"{path} has {len(erased_ids)} erased items: {listed(erased_ids)}")
    for sha256 in sorted(restorable_models(store)):
        path = store.verified_path("models", sha256)
        if count := erased_vectors(store, path.read_bytes(), path):
            problems.append(f"{path} holds {count} vectors of erased items")
    return problems


def restorable_models(store: Store) -> set[str]:
    """The digests of the models that serve or that a rollback can restore."""
    current, digests = store.manifest, set[str]()
    for manifest in store.history():
        if manifest.generation >= max(current.oldest_restorable, current.oldest_gallery):
            digests |= {model.sha256 for model in manifest.models}
        elif manifest.generation >= current.oldest_restorable:
            share = current.restorable_model(manifest)
            digests |= {share.sha256} if share is not None else set()
    return digests | {entry.model.sha256 for entry in current.stand_ins}


def clean_side_files(
    project: Project, is_erased: IsErased, rewritten: Mapping[str, str], *, dry_run: bool
) -> tuple[str, ...]:
    """Remove erased items from the candidate's memory and from training records.

    Returns the files that changed. ``rewritten``: digest -> new digest of rewritten model files.
    The record is written before the memory that it names by digest, so a repeated run finishes
    what a killed one left.
    """
    memory, digest = _memory(project.candidate / MEMORY_FILE, is_erased)
    changed = []
    beside = record_path(project.output), project.output.with_name(FILE)
    for path in dict.fromkeys((project.candidate / FILE, *beside)):
        own = digest if path.parent == project.candidate else None
        data = without_erased_items(path, is_erased, rewritten=rewritten, memory_sha256=own)
        if data is not None:
            changed.append(str(path))
            if not dry_run:
                write_atomic(path, data)
    if memory is not None:
        path = project.candidate / MEMORY_FILE
        changed.append(str(path))
        if not dry_run and memory:
            write_atomic(path, memory)
        elif not dry_run:
            path.unlink()
    return tuple(changed)


def candidates_with_erased(project: Project, store: Store) -> tuple[str, ...]:
    """The project's candidate files that hold erased vectors; deploy refuses them."""
    files = []
    for path in (project.output, project.candidate / "model.onnx"):
        try:
            if path.is_file() and erased_vectors(store, read_model_bytes(path), path):
                files.append(str(path))
        except CompatError:  # not a model that could be deployed
            continue
    return tuple(files)


def _memory(path: Path, is_erased: IsErased) -> tuple[bytes | None, str | None]:
    """The bytes and the digest of a memory without erased items.

    Both are None if it has no erased item; the bytes are empty if nothing is left.
    """
    if not path.is_file():
        return None, None
    items = read_memory(path)
    remaining = items.without(is_erased)
    if remaining is items:
        return None, None
    data = memory_bytes(remaining)
    return data, sha256_bytes(data) if data else None
