"""add: embed new items with the query model and index them: a new generation, a new index file.

Items that the store holds are compared by their image's bytes and their class. Those that changed
are refused, or embedded again with ``changed``: the old vector would stand for an image that is
gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import BulkEmbedding, release_memory
from compatctl.deployment.changed_items import Changes
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import index_params, load_query_model, open_index
from compatctl.deployment.project import open_store, utc_now
from compatctl.evaluation.protocol import gallery_rows
from compatctl.index import HnswIndex, rebuilt
from compatctl.manifest import Catalog, Manifest, Operation
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store


@dataclass(frozen=True, kw_only=True)
class AddResult:
    """``added`` items are new; ``present`` ones were in the store by their id.

    Of these ``changed`` (ids) have another image and were embedded again, ``relabelled`` (ids) took
    another class, and ``uncompared`` could not be compared: the store has no digest of their image,
    or it cannot be read now.
    """

    generation: int
    added: int
    present: int
    changed: tuple[str, ...]
    relabelled: tuple[str, ...]
    uncompared: int
    skipped: tuple[str, ...]
    rows: int
    index_sha256: str
    written: bool


def add(
    project: Project,
    *,
    changed: bool = False,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> AddResult:
    """Index the gallery items of the project's data that the store does not hold yet.

    ``changed``: items whose image or class is another than the indexed one are brought up to date,
    in the same generation. Where an image changed, the index is built anew, as by a backfill.

    Raises:
        InputError: bad data; an item changed, without ``changed``.
        ConflictError: the store is locked, or moved on meanwhile: run it again.
    """
    store = open_store(project)
    manifest = store.manifest
    work = _AddWork.of(store, load_data(project), progress)
    if not changed:
        work.changes.refuse()
    encoder = load_query_model(store, manifest)
    with BulkEmbedding.of(encoder, work.items, skip_bad=skip_bad, progress=progress) as done:
        del encoder
        plan = work.plan(done)
        result = AddResult(
            generation=manifest.generation,
            added=len(plan.new),
            present=work.present,
            changed=plan.changed.ids,
            relabelled=work.changes.ids(work.changes.labels),
            uncompared=work.changes.unknown,
            skipped=tuple(done.bad),
            rows=manifest.index.count + len(plan.new),
            index_sha256=manifest.index.sha256,
            written=bool(len(done.rows) or len(work.changes.labels)) and not dry_run,
        )
        if not result.written:
            return result
        release_memory()
        grown = [plan.index(store, progress)] if len(done.rows) else []
    after = _commit(store, grown, plan)
    return replace(result, generation=after.generation, index_sha256=after.index.sha256)


@dataclass(frozen=True, kw_only=True, eq=False)
class _AddWork:
    """What is to be embedded: ``items``, of which the first ``n_new`` are new, the others changed.

    ``row_of``: item id -> row of the catalogue.
    """

    items: Dataset
    n_new: int
    present: int
    changes: Changes
    row_of: dict[str, int]
    next_key: int

    @classmethod
    def of(cls, store: Store, data: Dataset, progress: Progress) -> Self:
        """The new items of the data, and those that the store holds otherwise."""
        catalog = store.catalog()
        row_of = {item: row for row, item in enumerate(catalog.ids)}
        rows = gallery_rows(data)
        held = np.array([data.ids[row] in row_of for row in rows], bool)
        at = as_rows(row_of[data.ids[row]] for row in rows[held])
        changes = Changes.of(data, rows[held], at, catalog, progress)
        return cls(
            items=data.take([*rows[~held], *changes.images]),
            n_new=int((~held).sum()),
            present=len(at),
            changes=changes,
            row_of=row_of,
            next_key=catalog.next_key,
        )

    def plan(self, done: BulkEmbedding) -> _AddPlan:
        """What goes where, of the items that were embedded."""
        rows, digests = np.array(done.rows, np.int64), done.image_digests()
        new = rows < self.n_new
        relabelled = self.changes.labels
        return _AddPlan(
            done=done,
            new=self.items.take(rows[new]),
            new_digests=digests[new],
            changed=self.items.take(rows[~new]),
            changed_at=as_rows(self.row_of[self.items.ids[row]] for row in rows[~new]),
            changed_digests=digests[~new],
            relabelled_at=as_rows(self.row_of[one] for one in self.changes.ids(relabelled)),
            labels=tuple(self.changes.data.labels[row] for row in relabelled),
            first_key=self.next_key,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _AddPlan:
    """Features in ``done``: of ``new`` items (n), then of ``changed`` ones (m), which the catalogue
    has at rows ``changed_at`` (m,); digests (n, 32) and (m, 32); ``labels`` for ``relabelled_at``.
    """

    done: BulkEmbedding
    new: Dataset
    new_digests: np.ndarray
    changed: Dataset
    changed_at: Rows
    changed_digests: np.ndarray
    relabelled_at: Rows
    labels: tuple[str, ...]
    first_key: int

    def index(self, store: Store, progress: Progress) -> HnswIndex:
        """The next index: the present one with the changed rows replaced, and the new ones."""
        manifest, n = store.manifest, len(self.new)
        if not len(self.changed):
            index = open_index(store, manifest, fresh=True, room=n)
        else:
            index = rebuilt(
                store.verified_path("indexes", manifest.index.sha256, fresh=True),
                index_params(manifest.index),
                manifest.index.count,
                keys=store.catalog().keys[self.changed_at],
                rows_at=lambda places: self.done.features_at(places + n),
                progress=progress,
            )
            index.reserve(n)
        self.done.add_to(index, self.first_key, progress, count=n)
        return index

    def catalog(self, before: Catalog, model: str) -> Catalog:
        """The next catalogue."""
        found = before.relabelled(self.relabelled_at, self.labels)
        if len(self.changed):
            found = found.reassigned(self.changed_at, model, self.changed_digests)
        return found.extended(self.new.ids, self.new.labels, model, self.new_digests)


def _commit(store: Store, grown: list[HnswIndex], plan: _AddPlan) -> Manifest:
    """The next generation. ``grown`` holds the index, where it is another one, and is emptied
    before the catalogue is read: the two are not in memory at one time. An item that was removed
    once is an item again."""
    manifest = store.manifest
    model, info = manifest.query_model, manifest.index
    with store.transaction(manifest, operation=Operation.ADD) as tx:
        if grown:
            count = len(grown[0])
            info = replace(info, count=count, sha256=tx.put("indexes", grown[0].save))
            grown.clear()
        catalog = plan.catalog(store.catalog(), model)
        counts = catalog.counts()
        changes = dict[str, str]()
        erased = store.erasures()
        if erased is not None and (again := erased.holding(plan.new.ids)):
            changes["erasures"] = tx.put("erasures", erased.without(again).write)
        return tx.commit(
            operation=Operation.ADD,
            created_at=utc_now(),
            index=info,
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(
                replace(one, rows=counts.get(one.sha256, 0))
                for one in manifest.models
                if counts.get(one.sha256) or one.sha256 == model
            ),
            **changes,
        )
