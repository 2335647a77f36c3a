"""Take into the catalogue what an application changed in its table: rows that it inserted, and
with ``changed`` also rows that it wrote again or deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import NORM_TOLERANCE, Checksums, Rows, as_rows
from compatctl.deployment.adopted_table import empty_id
from compatctl.deployment.data import load_data
from compatctl.deployment.engine_gallery import adopted, table_changes
from compatctl.deployment.gallery import indexed_rows, load_query_model
from compatctl.deployment.project import utc_now
from compatctl.deployment.provenance import compare
from compatctl.deployment.side_adoption import SideChanges, erase_gone
from compatctl.engines import TableFile
from compatctl.errors import InputError
from compatctl.index import EngineIndex, RowsNow, TableChanges
from compatctl.manifest import Catalog, Manifest, Operation
from compatctl.notices import notice
from compatctl.printable import listed
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import Store


@dataclass(frozen=True, kw_only=True, eq=False)
class TableAdoption:
    """What is adopted: the new ``catalog`` (M rows) and the ``checksums`` (M,) of its
    rows in the table.

    Attributes:
        file: of the current generation; that of the new one is made with its side table.
        side: what becomes of the side table, whose rows had the checksums ``before``, by id.
        changes: what the application did; ``relabelled`` are ids with another class.
        proven: new and changed rows were compared with the query model, or there are none.
    """

    store: Store
    file: TableFile
    catalog: Catalog
    checksums: Checksums
    side: SideChanges
    before: dict[str, int]
    changes: TableChanges
    relabelled: tuple[str, ...]
    proven: bool

    @property
    def is_empty(self) -> bool:
        """Whether the table is as it was adopted."""
        return not (self.changes.new or self.changes.lost or self.relabelled)

    @classmethod
    def of(
        cls, project: Project, store: Store, *, changed: bool, progress: Progress
    ) -> TableAdoption:
        """Read the table, and compare new rows with the query model where the data has their items.

        Raises:
            InputError: rows changed and not ``changed``; zero vectors, or norms that would be part
                of the ranking; or the rows are not the query model's.
        """
        manifest, catalog = store.manifest, store.catalog()
        changes = table_changes(store, manifest, catalog, progress, collect=True)
        found = changes.found
        file, stored = adopted(store, manifest)
        assert found is not None
        relabelled = _relabelled(catalog, found, changes)
        if not changed:
            _refuse_changed(file, changes, relabelled)
        _refuse_rows(file, found)
        inside = [catalog.ids[row] for row in np.flatnonzero(stored.in_side).tolist()]
        side = SideChanges.of(file, changes, frozenset(inside))
        after, checksums = _after(catalog, manifest.query_model, changes, found, relabelled)
        adoption = cls(
            store=store,
            file=replace(file, rows=len(after)),
            catalog=after,
            checksums=checksums,
            side=side,
            before=dict(zip(inside, stored.side.tolist(), strict=True)),
            changes=changes,
            relabelled=tuple(catalog.ids[row] for row in relabelled.tolist()),
            proven=True,
        )
        return replace(adoption, proven=adoption._compare(project, found))

    def commit(self) -> Manifest:
        """Write the next generation.

        Raises:
            ConflictError, CompatError: as ``Transaction``.
        """
        manifest, counts = self.store.manifest, self.catalog.counts()
        with self.store.transaction(manifest, operation=Operation.ADD) as tx:
            file, checksums = self.side.written(
                self.file, self.catalog, self.checksums, self.before
            )
            if self.side.gone:  # before the commit: where it fails, the next run does it again
                erase_gone(self.file, self.side.gone)
            info = replace(
                manifest.index,
                count=len(self.catalog),
                sha256=tx.put(manifest.index.kind, lambda path: file.write(path, checksums)),
            )
            return tx.commit(
                operation=Operation.ADD,
                created_at=utc_now(),
                index=info,
                catalog=tx.put("catalogs", self.catalog.write),
                models=tuple(
                    replace(
                        share,
                        rows=counts.get(share.sha256, 0),
                        proven=share.proven
                        and (self.proven or share.sha256 != manifest.query_model),
                    )
                    for share in manifest.models
                    if counts.get(share.sha256) or share.sha256 == manifest.query_model
                ),
            )

    def _compare(self, project: Project, found: RowsNow) -> bool:
        """Whether new and changed rows agree with the query model, as far as the data has them."""
        items = {*found.ids, *self.changes.changed}
        if not items:
            return True
        data = load_data(project) if project.source is not None else None
        rows: Rows = np.zeros(0, np.int64)
        if data is not None:
            held, _ = indexed_rows(data, self.catalog)
            rows = as_rows(row for row in held.tolist() if data.ids[row] in items)
        if data is None or not len(rows):
            notice("unproven-rows", self.file.location.url,
                   "rows that were never compared with the query model", sorted(items)[:1000],
                   "the data has none of these items", count=len(items))  # fmt: skip
            return False
        manifest = self.store.manifest
        index = EngineIndex(
            replace(self.file, side=None),
            ids=self.catalog.ids,
            row_of=self.catalog.row_of,
            keys=self.catalog.keys,
            dim=manifest.index.dim,
            epoch=manifest.generation,
            ef_search=manifest.index.ef_search,
        )
        encoder = load_query_model(self.store, manifest)
        return compare(encoder, index, self.catalog, data, rows) is not None


def _relabelled(catalog: Catalog, found: RowsNow, changes: TableChanges) -> Rows:
    """(n,) rows of the catalogue that have another class in the table now."""
    if found.labels_now is None:
        return np.zeros(0, np.int64)
    gone = set(changes.missing)
    pairs = zip(catalog.ids, catalog.labels, found.labels_now, strict=True)
    return as_rows(
        row for row, (item, before, now) in enumerate(pairs) if before != now and item not in gone
    )


def _refuse_changed(file: TableFile, changes: TableChanges, relabelled: Rows) -> None:
    if not changes.lost and not len(relabelled):
        return
    parts = [changes.sentence()] if changes.lost else []
    parts += [f"{len(relabelled)} rows have another class"] if len(relabelled) else []
    raise InputError(
        f"{file.location.url}: {'; '.join(parts)}",
        tip="compatctl add --changed adopts the rows as they are now, and drops those that are "
        "gone from the catalogue",
    )


def _refuse_rows(file: TableFile, found: RowsNow) -> None:
    if "" in found.ids:
        raise empty_id(file.location.url)
    if found.zero:
        raise InputError(
            f"{file.location.url}: {len(found.zero)} rows have a zero vector: {listed(found.zero)}",
            tip="set them to NULL, or embed these items again",
        )
    if file.space != "cosine" and found.most > 0.0 and not _is_unit(found):
        raise InputError(
            f"{file.location.url}: new rows have norms from {found.least:.4g} to "
            f"{found.most:.4g}, and the table is ranked by {file.operator}",
            tip="store unit rows",
        )


def _is_unit(found: RowsNow) -> bool:
    spread = (found.least - 1.0, found.most - 1.0) if found.most > 0.0 else (0.0,)
    return max(map(abs, spread)) <= NORM_TOLERANCE


def _after(
    catalog: Catalog, model: str, changes: TableChanges, found: RowsNow, relabelled: Rows
) -> tuple[Catalog, Checksums]:
    """The next catalogue and its checksums: changed rows are the query model's, gone ones dropped,
    new ones at the end, ordered by id."""
    labels: Sequence[str] = found.labels_now or ()
    after = catalog.relabelled(relabelled, [labels[row] for row in relabelled.tolist()])
    if changes.changed:
        rows = as_rows(catalog.row_of[item] for item in changes.changed)
        unknown = np.zeros((len(rows), catalog.digests.shape[1]), np.uint8)
        after = after.reassigned(rows, model, unknown)
    checksums = found.checksums
    if changes.missing:
        gone = as_rows(catalog.row_of[item] for item in changes.missing)
        after, checksums = after.drop_rows(gone), np.delete(checksums, gone)
    if not found.ids:
        return after, checksums
    order = np.argsort(np.array(found.ids, object), kind="stable").tolist()
    after = after.extended(
        [found.ids[row] for row in order], [found.labels[row] for row in order], model
    )
    return after, np.concatenate([checksums, found.new_checksums[order]])
