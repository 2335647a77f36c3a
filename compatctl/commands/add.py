"""add: embed new items with the query model and index them: a new generation, a new index file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compatctl.commands.both import load_data
from compatctl.commands.context import now, open_store
from compatctl.commands.evaluation import gallery_rows
from compatctl.commands.gallery import open_index, serving
from compatctl.commands.indexing import Embedding, give_back_memory
from compatctl.data import Dataset
from compatctl.index import HnswIndex
from compatctl.manifest import Manifest
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store


@dataclass(frozen=True, kw_only=True)
class Added:
    """``added`` items are new; ``present`` ones were in the store by their id and stay."""

    generation: int
    added: int
    present: int
    skipped: tuple[str, ...]
    rows: int
    index_sha256: str
    written: bool


def add(
    project: Project,
    *,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Added:
    """Index the gallery items of the project's data that the store does not hold yet.

    Raises:
        InputError: bad data.
        ConflictError: the store is locked, or moved on meanwhile: run it again.
    """
    store = open_store(project)
    manifest = store.manifest
    new, present, first_key = _new_items(project, store)
    encoder = serving(store, manifest)
    with Embedding.of(encoder, new, skip_bad=skip_bad, progress=progress) as done:
        result = Added(
            generation=manifest.generation,
            added=len(done.rows),
            present=present,
            skipped=tuple(done.bad),
            rows=manifest.index.count + len(done.rows),
            index_sha256=manifest.index.sha256,
            written=len(done.rows) > 0 and not dry_run,
        )
        if not result.written:
            return result
        del encoder
        give_back_memory()
        index = open_index(store, manifest, fresh=True, room=len(done.rows))
        done.add_to(index, first_key, progress)
    grown = [index]
    del index
    after = _commit(store, grown, new.take(done.rows), done.image_digests())
    return replace(result, generation=after.generation, index_sha256=after.index.sha256)


def _new_items(project: Project, store: Store) -> tuple[Dataset, int, int]:
    """The gallery items that the store does not hold, how many it holds, and the first free key."""
    data = load_data(project)
    rows = gallery_rows(data)
    catalog = store.catalog()
    held = set(catalog.ids)
    new = data.take([row for row in rows if data.ids[row] not in held])
    return new, len(rows) - len(new), catalog.next_key


def _commit(
    store: Store, grown: list[HnswIndex], items: Dataset, digests: NDArray[np.uint8]
) -> Manifest:
    """The next generation. ``grown`` holds the index, and is emptied before the catalogue is read:
    the two are not in memory at one time."""
    manifest = store.manifest
    model = manifest.query_model
    with store.transaction(manifest, operation="add") as tx:
        count = len(grown[0])
        sha256 = tx.put("indexes", grown[0].save)
        grown.clear()
        catalog = store.catalog().extended(items.ids, items.labels, model, digests)
        return tx.commit(
            operation="add",
            created_at=now(),
            index=replace(manifest.index, count=count, sha256=sha256),
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(
                replace(one, rows=one.rows + len(items)) if one.sha256 == model else one
                for one in manifest.models
            ),
        )
