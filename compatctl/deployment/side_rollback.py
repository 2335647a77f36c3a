"""Rollback of a gallery in an engine across rows that were adopted since: the generation's rows are
searched where it had them, and its query model embeds the others into the side table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Rows, Vectors
from compatctl.deployment.data import load_data
from compatctl.deployment.engine_gallery import adopted
from compatctl.deployment.gallery import load_query_model
from compatctl.deployment.project import utc_now
from compatctl.deployment.rewriting import side_params
from compatctl.engines import RowChecksums, batches_are_whole, new_side
from compatctl.errors import ConflictError, UsageError
from compatctl.index import EngineRows, write_side
from compatctl.manifest import Catalog, Manifest, Operation, unknown_digests
from compatctl.printable import listed
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import MODEL_FIELDS, Store


@dataclass(frozen=True, kw_only=True, eq=False)
class SideRollback:
    """The current rows as a ``target`` generation has them.

    Attributes:
        rows: the target's table, side table and checksums, over the current rows.
        catalog: of the current rows; of those that the target has, with its models.
        fresh: rows (n,) that it does not have, or that the application wrote again since.
    """

    store: Store
    target: Manifest
    rows: EngineRows
    catalog: Catalog
    fresh: Rows

    @classmethod
    def of(cls, store: Store, target: Manifest) -> SideRollback:
        """Compare the current rows with the target's; nothing is written.

        Raises:
            UsageError: a batch of the engine is whole.
        """
        (_, now), (file, then) = adopted(store, store.manifest), adopted(store, target)
        if batches_are_whole(file):
            raise UsageError(
                f"rows were adopted since generation {target.generation}, and the collection that "
                f"it searches in {file.engine} is without them",
                tip="--added keep restores the query model and leaves every row as it is (not "
                "across a lift); or compatctl lift or compatctl backfill, which make a collection",
            )
        catalog, before = store.catalog(), store.catalog(target)
        at = np.fromiter((before.row_of.get(item, -1) for item in catalog.ids), np.int64)
        kept: Bools = (at >= 0) & _stayed(store, target, catalog)
        kept[kept] = now.table[kept] == then.table[at[kept]]
        old = np.flatnonzero(kept)
        in_side = np.zeros(len(catalog), bool)
        in_side[old] = then.in_side[at[old]]
        place = np.cumsum(then.in_side) - 1
        checksums = RowChecksums(
            table=now.table, in_side=in_side, side=then.side[place[at[in_side]]]
        )
        restored = catalog
        for code, model in enumerate(before.models):
            chosen = old[before.model_of[at[old]] == code]
            restored = restored.reassigned(chosen, model, before.digests[at[chosen]])
        return cls(
            store=store,
            target=target,
            rows=EngineRows(
                file=replace(file, rows=len(catalog)),
                checksums=checksums,
                ids=catalog.ids,
                row_of=catalog.row_of,
                keys=catalog.keys,
            ),
            catalog=restored,
            fresh=np.flatnonzero(~kept),
        )

    def commit(self, project: Project, progress: Progress) -> Manifest:
        """Embed what the target does not have, and write the generation.

        Raises:
            ConflictError: the project's data lack an item; or as ``Transaction``.
            InputError: an item does not decode. CompatError: the server cannot be reached.
        """
        store, target = self.store, self.target
        vectors, digests = self._embedded(project, progress)
        info, file = target.index, self.rows.file
        side = file.side or new_side(
            file, target.query_model, dim=info.dim, table_dim=info.dim, shared=True
        )
        built = write_side(
            self.rows,
            side,
            self.fresh,
            rows_at=lambda positions: vectors[positions],
            params=side_params(info),
            progress=progress,
        )
        catalog = _used(self.catalog.reassigned(self.fresh, target.query_model, digests))
        counts = catalog.counts()
        with store.transaction(store.manifest, operation=Operation.ROLLBACK) as tx:
            return tx.commit(
                operation=Operation.ROLLBACK,
                created_at=utc_now(),
                restores=target.generation,
                index=replace(info, count=len(catalog), sha256=tx.put(info.kind, built.save)),
                catalog=tx.put("catalogs", catalog.write),
                models=tuple(replace(m, rows=counts.get(m.sha256, 0)) for m in target.models),
                **{name: getattr(target, name) for name in MODEL_FIELDS},
            )

    def _embedded(self, project: Project, progress: Progress) -> tuple[Vectors, Bytes]:
        """Vectors (n, D) and digests (n, 32) of the fresh rows."""
        if not len(self.fresh):
            return np.zeros((0, self.target.index.dim), np.float32), unknown_digests(0)
        data = load_data(project) if project.source else None
        row_of = data.row_of if data else {}
        ids = [self.catalog.ids[row] for row in self.fresh.tolist()]
        missing = [item for item in ids if item not in row_of]
        if data is None or missing:
            raise ConflictError(
                f"{len(ids)} rows were adopted since generation {self.target.generation}, whose "
                f"query model has to embed them, and {project.source or 'no data'} holds "
                f"{len(ids) - len(missing)}; missing: {listed(missing)}",
                tip="--data with them; --added keep restores the query model at once and leaves "
                "every row as it is (not across a lift)",
            )
        encoder = load_query_model(self.store, self.target)
        embedded = encoder.embed(data.take([row_of[item] for item in ids]), progress=progress)
        return embedded.features, embedded.digests


def _stayed(store: Store, target: Manifest, catalog: Catalog) -> Bools:
    """(N,) which rows were in every catalogue since the target: of others the side table may have
    lost the rows."""
    stayed = np.ones(len(catalog), bool)
    for state in store.history()[target.generation : -1]:
        if state.operation == Operation.ADD:
            known = store.catalog(state).row_of
            stayed &= np.fromiter((item in known for item in catalog.ids), bool, len(catalog))
    return stayed


def _used(catalog: Catalog) -> Catalog:
    """The same rows, without models that have none."""
    return catalog.drop_rows(np.zeros(0, np.int64))
