"""add: embed new items with the query model and index them: a new generation, a new index file."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compatctl.commands.both import load_data
from compatctl.commands.context import now, open_store
from compatctl.commands.evaluation import gallery_rows
from compatctl.commands.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.progress import Progress, silent
from compatctl.recipe import Project


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
    gallery = DeployedGallery.open(open_store(project))
    manifest, catalog = gallery.manifest, gallery.catalog
    held = set(catalog.ids)
    data = load_data(project)
    rows = gallery_rows(data)
    new = data.take([row for row in rows if data.ids[row] not in held])
    encoder = Encoder.load(gallery.checked_model())
    if encoder.dim != manifest.index.dim:
        raise InputError(f"the query model ends in {encoder.dim}, not {manifest.index.dim}")
    done = encoder.embed(new, skip_bad=skip_bad, progress=progress)
    result = Added(
        generation=manifest.generation,
        added=len(done.rows),
        present=len(rows) - len(new),
        skipped=tuple(item.id for item in done.bad),
        rows=manifest.index.count + len(done.rows),
        index_sha256=manifest.index.sha256,
        written=not dry_run and len(done.rows) > 0,
    )
    if not result.written:
        return result
    items = new.take(done.rows)
    catalog = catalog.extended(items.ids, items.labels, encoder.sha256)
    index = gallery.index
    index.add(done.features, catalog.keys[-len(items) :], progress)
    shares = tuple(
        replace(model, rows=model.rows + len(items)) if model.sha256 == encoder.sha256 else model
        for model in manifest.models
    )
    with gallery.store.transaction(manifest, operation="add") as tx:
        sha256 = tx.put("indexes", index.save)
        after = tx.commit(
            operation="add",
            created_at=now(),
            index=replace(manifest.index, count=len(index), sha256=sha256),
            catalog=tx.put("catalogs", catalog.write),
            models=shares,
        )
    return replace(result, generation=after.generation, index_sha256=sha256)
