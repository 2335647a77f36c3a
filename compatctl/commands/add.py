"""add: embed new items with the query model and index them, as a new generation.

Items that the store has are compared by their image's bytes and their class. Changed items are
refused, or re-embedded with ``changed``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.data import Dataset, warn_of_near_known
from compatctl.deployment.bulk_embedding import BulkEmbedding, release_memory
from compatctl.deployment.changed_items import Changes
from compatctl.deployment.data import load_data
from compatctl.deployment.engines import in_engine, open_for_write
from compatctl.deployment.gallery import index_params, indexed_rows, load_query_model, open_index
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.ray_embedding import query_model_cluster
from compatctl.deployment.table_adoption import TableAdoption
from compatctl.errors import ConflictError
from compatctl.evaluation.protocol import gallery_rows
from compatctl.index import HnswIndex, build_with_replacements, require_hnswlib
from compatctl.manifest import Catalog, Manifest, Operation
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store

MAX_REBASES = 10
"""How often items are added to a newer generation because a backfill wrote one meanwhile."""


@dataclass(frozen=True, kw_only=True)
class AddResult:
    """What was added.

    Attributes:
        added: how many items are new.
        present: how many items of the data were in the store already.
        changed: ids of items whose image changed and that were re-embedded.
        relabelled: ids of items that took another class.
        uncompared: how many items could not be compared: the store has no digest of their image,
            or it cannot be read now.
        skipped: ids of items whose image does not decode, or that the model gives a vector that
            is zero or not finite.
        removed: ids that left the catalogue, because the application deleted their rows.
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
    removed: tuple[str, ...] = ()


def add(
    project: Project,
    *,
    changed: bool = False,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> AddResult:
    """Index the gallery items of the project's data that the store does not have yet.

    ``changed``: update items whose image or class differs from the indexed one, in the same
    generation. If an image changed, the index is rebuilt, as by a backfill. Where an application
    owns the rows, they are adopted as it wrote them: new ones, and with ``changed`` all.

    Raises:
        InputError: bad data; or an item changed, without ``changed``.
        ConflictError: the store is locked, or changed meanwhile.
    """
    store = open_for_write(project, dry_run=dry_run)
    manifest = store.manifest
    if in_engine(manifest):
        return _adopt(project, store, changed=changed, dry_run=dry_run, progress=progress)
    require_hnswlib()
    work = _AddWork.of(store, load_data(project), project.source, progress)
    if not changed:
        work.changes.refuse()
    encoder = load_query_model(store, manifest)
    cluster = query_model_cluster(project, store)
    with BulkEmbedding.of(
        encoder, work.items, skip_bad=skip_bad, cluster=cluster, progress=progress
    ) as embedded:
        del encoder
        plan = work.plan(embedded)
        result = AddResult(
            generation=manifest.generation,
            added=len(plan.new),
            present=work.present,
            changed=plan.changed.ids,
            relabelled=work.changes.ids(work.changes.labels),
            uncompared=work.changes.unknown,
            skipped=tuple(embedded.bad),
            rows=manifest.index.count + len(plan.new),
            index_sha256=manifest.index.sha256,
            written=bool(len(embedded.rows) or len(work.changes.labels)) and not dry_run,
        )
        if not result.written:
            return result
        release_memory()
        after = _written(project, store, plan, progress)
    return replace(
        result,
        generation=after.generation,
        rows=after.index.count,
        index_sha256=after.index.sha256,
    )


def _written(project: Project, store: Store, plan: _AddPlan, progress: Progress) -> Manifest:
    """Index and commit. Where a backfill alone wrote newer generations meanwhile, with the same
    items under the same keys, the same is added to the newest; nothing is embedded again.

    Raises:
        ConflictError: the store is locked, or changed otherwise.
    """
    for _ in range(MAX_REBASES):
        indexes = [plan.index(store, progress)] if len(plan.embedded.rows) else []
        try:
            return _commit(store, indexes, plan)
        except ConflictError:
            newest = open_store(project)
            since = newest.history()[store.manifest.generation :]
            moved = bool(since) and newest.manifest.query_model == store.manifest.query_model
            if not moved or any(state.operation != Operation.BACKFILL for state in since):
                raise
            store = newest
    return _commit(store, [plan.index(store, progress)], plan)


def _adopt(
    project: Project, store: Store, *, changed: bool, dry_run: bool, progress: Progress
) -> AddResult:
    """Take into the catalogue what the application did in its table. Nothing is embedded but a
    sample of new rows, to compare."""
    adoption = TableAdoption.of(project, store, changed=changed, progress=progress)
    changes, before = adoption.changes, store.manifest
    written = not dry_run and not adoption.is_empty
    after = adoption.commit() if written else before
    return AddResult(
        generation=after.generation,
        added=changes.new,
        present=before.index.count - len(changes.missing),
        changed=changes.changed,
        relabelled=adoption.relabelled,
        uncompared=0 if adoption.proven else changes.new + len(changes.changed),
        skipped=(),
        removed=changes.missing,
        rows=len(adoption.catalog),
        index_sha256=after.index.sha256,
        written=written,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _AddWork:
    """The ``items`` to embed: the first ``n_new`` are new, the others changed.

    ``row_of``: item id -> row of the catalogue.
    """

    items: Dataset
    n_new: int
    present: int
    changes: Changes
    row_of: dict[str, int]
    next_key: int

    @classmethod
    def of(cls, store: Store, data: Dataset, source: object, progress: Progress) -> Self:
        """Find the new and the changed items of the data, which is read from ``source``."""
        catalog = store.catalog()
        rows = gallery_rows(data)
        held, catalog_rows = indexed_rows(data, catalog, rows)
        new = rows[~np.isin(rows, held)]
        changes = Changes.of(data, held, catalog_rows, catalog, progress)
        _warn_of_near_known(data.take(new), catalog, source)
        return cls(
            items=data.take([*new, *changes.images]),
            n_new=len(new),
            present=len(held),
            changes=changes,
            row_of=catalog.row_of,
            next_key=catalog.next_key,
        )

    def plan(self, embedded: BulkEmbedding) -> _AddPlan:
        """Where the embedded items go."""
        rows, digests = np.array(embedded.rows, np.int64), embedded.image_digests()
        new = rows < self.n_new
        relabelled = self.changes.labels
        return _AddPlan(
            embedded=embedded,
            new=self.items.take(rows[new]),
            new_digests=digests[new],
            changed=self.items.take(rows[~new]),
            changed_at=as_rows(self.row_of[self.items.ids[row]] for row in rows[~new]),
            changed_digests=digests[~new],
            relabelled_at=as_rows(self.row_of[item] for item in self.changes.ids(relabelled)),
            labels=tuple(self.changes.data.labels[row] for row in relabelled),
            first_key=self.next_key,
        )


def _warn_of_near_known(new: Dataset, catalog: Catalog, source: object) -> None:
    """Warn of new items whose id or class is near-equal to a known one."""
    known = set(catalog.labels)
    warn_of_near_known(source, "ids", new.ids, catalog.ids if len(new) else ())
    warn_of_near_known(source, "labels", sorted(set(new.labels) - known), sorted(known))


@dataclass(frozen=True, kw_only=True, eq=False)
class _AddPlan:
    """The ``embedded`` features of ``new`` items (n), then of ``changed`` items (m).

    ``changed_at`` (m,): their rows in the catalogue; digests: (n, 32) and (m, 32); ``labels``: the
    new classes of the rows ``relabelled_at``.
    """

    embedded: BulkEmbedding
    new: Dataset
    new_digests: np.ndarray
    changed: Dataset
    changed_at: Rows
    changed_digests: np.ndarray
    relabelled_at: Rows
    labels: tuple[str, ...]
    first_key: int

    def index(self, store: Store, progress: Progress) -> HnswIndex:
        """The next index: changed rows replaced, new rows appended."""
        manifest, n = store.manifest, len(self.new)
        if not len(self.changed):
            index = open_index(store, manifest, fresh=True, extra_capacity=n)
        else:
            index = build_with_replacements(
                store.verified_path("indexes", manifest.index.sha256, fresh=True),
                index_params(manifest.index),
                manifest.index.count,
                keys=store.catalog().keys[self.changed_at],
                rows_at=lambda positions: self.embedded.features_at(positions + n),
                progress=progress,
            )
            index.reserve(n)
        self.embedded.add_to(index, self.first_key, progress, count=n)
        return index

    def catalog(self, before: Catalog, model: str) -> Catalog:
        """The next catalogue: labels, changed rows and new rows."""
        catalog = before.relabelled(self.relabelled_at, self.labels)
        if len(self.changed):
            catalog = catalog.reassigned(self.changed_at, model, self.changed_digests)
        return catalog.extended(self.new.ids, self.new.labels, model, self.new_digests)


def _commit(store: Store, indexes: list[HnswIndex], plan: _AddPlan) -> Manifest:
    """Write the next generation.

    ``indexes`` holds the new index, if there is one. It is emptied before the catalogue is read, so
    that the two are not in memory together. An item that was removed earlier can be added again.
    """
    manifest = store.manifest
    model, info = manifest.query_model, manifest.index
    with store.transaction(manifest, operation=Operation.ADD) as tx:
        if indexes:
            count = len(indexes[0])
            info = replace(info, count=count, sha256=tx.put("indexes", indexes[0].save))
            indexes.clear()
        catalog = plan.catalog(store.catalog(), model)
        counts = catalog.counts()
        changes = dict[str, str]()
        erased = store.erasures()
        if erased is not None and (again := erased.matching(plan.new.ids)):
            changes["erasures"] = tx.put("erasures", erased.drop(again).write)
        return tx.commit(
            operation=Operation.ADD,
            created_at=utc_now(),
            index=info,
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(
                replace(share, rows=counts.get(share.sha256, 0))
                for share in manifest.models
                if counts.get(share.sha256) or share.sha256 == model
            ),
            **changes,
        )
