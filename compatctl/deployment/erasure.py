"""Find and erase removed items in kept galleries, memories and the files beside a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from compatctl.data import memory_bytes, read_memory
from compatctl.deployment.gallery import index_params
from compatctl.deployment.old_features import CACHE_FILE
from compatctl.deployment.record_files import FILE, record_path, without_erased_items
from compatctl.deployment.rehearsal import stored_memory
from compatctl.deployment.training_record import MEMORY_FILE
from compatctl.files import sha256_bytes, write_atomic
from compatctl.index import read_keys
from compatctl.manifest import Manifest
from compatctl.printable import listed
from compatctl.recipe import Project
from compatctl.store import Store

IsErased = Callable[[str], bool]
"""Whether the item with an id was erased."""


def whole_generations(store: Store) -> tuple[Manifest, ...]:
    """The generations whose galleries and memories are kept, oldest first."""
    first = max(store.manifest.oldest_restorable, store.manifest.oldest_gallery)
    return tuple(manifest for manifest in store.history() if manifest.generation >= first)


def stored_ids(store: Store, ids: frozenset[str]) -> frozenset[str]:
    """Which of the items are in a kept gallery or memory.

    Raises:
        DamagedError: a file is missing or changed.
    """
    found = set[str]()
    for manifest in _galleries(store):
        found |= ids.intersection(store.catalog(manifest).ids)
    for manifest in {m.memory: m for m in whole_generations(store)}.values():
        memory = stored_memory(store, manifest)
        found |= ids.intersection(memory.ids) if memory is not None else set()
    return frozenset(found)


def _galleries(store: Store) -> Iterator[Manifest]:
    """One generation for each kept gallery."""
    yield from {(m.catalog, m.index.sha256): m for m in whole_generations(store)}.values()


def erasure_problems(store: Store) -> list[str]:
    """Find erased items in kept files; the store's own check covers the catalogues.

    Every index must have the keys of its catalogue and no others; no memory may have an erased id.

    Raises:
        DamagedError: a file is missing or changed.
    """
    if store.manifest.erasures is None:
        return []
    problems = []
    for manifest in _galleries(store):
        info = manifest.index
        path = store.local_path("indexes", info.sha256)
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
    return problems


def restorable_models(store: Store) -> set[str]:
    """The digests of the models that serve or that a rollback can restore."""
    current, digests = store.manifest, set[str]()
    for manifest in store.history():
        if manifest.generation >= max(current.oldest_restorable, current.oldest_gallery):
            digests |= {model.sha256 for model in manifest.models}
        elif manifest.generation >= current.oldest_restorable:
            digests.add(manifest.query_model)
    return digests


def clean_side_files(project: Project, is_erased: IsErased, *, dry_run: bool) -> tuple[str, ...]:
    """Remove erased items from the candidate's memory and from training records.

    The cache of old features, which has no ids, is deleted.

    Returns the files that changed. The record is written before the memory that it names by digest,
    so a repeated run finishes what a killed one left.
    """
    memory, digest = _memory(project.candidate / MEMORY_FILE, is_erased)
    changed = []
    beside = record_path(project.output), project.output.with_name(FILE)
    for path in dict.fromkeys((project.candidate / FILE, *beside)):
        own = digest if path.parent == project.candidate else None
        data = without_erased_items(path, is_erased, memory_sha256=own)
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
    if (cache := project.candidate / CACHE_FILE).is_file():
        changed.append(str(cache))
        if not dry_run:
            cache.unlink()
    return tuple(changed)


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
