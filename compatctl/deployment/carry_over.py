"""Rollback when items were added since: they are kept, re-embedded, or dropped by id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, as_rows
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import load_query_model, open_index
from compatctl.deployment.project import utc_now
from compatctl.errors import ConflictError, UsageError
from compatctl.index import require_hnswlib
from compatctl.manifest import Catalog, Manifest, Operation, unknown_digests
from compatctl.printable import listed
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import MODEL_FIELDS, Store, embedding_space

AddedItemsPolicy = Literal["auto", "keep", "drop"]
"""What happens to items that were added after the generation that a rollback restores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AddedItems:
    """Items of the current catalogue that the target generation lacks, by row (n,).

    Attributes:
        known: rows of a model that the target's gallery or queries use too, ordered by model.
            Their vectors can stay.
        foreign: rows of other models, which were never verified against the target's models.
        reverted: ids of items that the target has with another image or class.
    """

    current: Catalog
    known: Rows
    foreign: Rows
    reverted: tuple[str, ...]

    @classmethod
    def since(cls, store: Store, target: Manifest) -> AddedItems:
        """Find what was added since ``target``."""
        current, earlier = store.catalog(), store.catalog(target)
        rows = as_rows(row for row, item in enumerate(current.ids) if item not in earlier.row_of)
        shared = {model.sha256 for model in target.models}
        is_shared = np.array([model in shared for model in current.models], bool)
        rows = rows[np.argsort(current.model_of[rows], kind="stable")]
        known = is_shared[current.model_of[rows]]
        return cls(
            current=current,
            known=rows[known],
            foreign=rows[~known],
            reverted=_reverted(current, earlier),
        )

    def ids(self, rows: Rows) -> tuple[str, ...]:
        """The item ids of rows (n,)."""
        return tuple(self.current.ids[row] for row in rows)


def _reverted(current: Catalog, earlier: Catalog) -> tuple[str, ...]:
    """Ids in both catalogues whose class differs, or whose image does where both are known."""
    row_of = earlier.row_of
    pairs = [(row, row_of[item]) for row, item in enumerate(current.ids) if item in row_of]
    rows, earlier_rows = np.array(pairs, np.int64).reshape(-1, 2).T
    differs = (current.digests[rows] != earlier.digests[earlier_rows]).any(axis=1)
    differs &= current.digest_known[rows] & earlier.digest_known[earlier_rows]
    return tuple(
        current.ids[row]
        for (row, earlier_row), image in zip(pairs, differs, strict=True)
        if image or current.labels[row] != earlier.labels[earlier_row]
    )


def rollback_query_model(store: Store, target: Manifest) -> Manifest:
    """Restore the query model and leave every row where it is. Nothing is embedded or rewritten.

    If the target's memory held items that were erased since, the current memory stays.

    Raises:
        ConflictError, DamagedError, CompatError: as ``Transaction``.
    """
    current = store.manifest
    share = target.query_share
    rows = sum(model.rows for model in current.models if model.sha256 == share.sha256)
    others = [m for m in current.models if m.rows > 0 and m.sha256 != share.sha256]
    ef_search = max(current.index.ef_search, target.index.ef_search)
    restored = {name: getattr(target, name) for name in MODEL_FIELDS}
    if target.generation < current.oldest_gallery:
        restored["memory"] = current.memory
    with store.transaction(current, operation=Operation.ROLLBACK) as tx:
        return tx.commit(
            operation=Operation.ROLLBACK,
            created_at=utc_now(),
            restores=target.generation,
            index=replace(current.index, ef_search=ef_search),
            models=(*others, replace(share, rows=rows)),
            **restored,
        )


def rollback_after_erasure(
    store: Store, target: Manifest, policy: AddedItemsPolicy, *, dry_run: bool
) -> tuple[Manifest, int]:
    """Restore the query model of a generation whose gallery was deleted by an erasure.

    Returns the manifest, and how many current rows are of models that the target lacks.

    Raises:
        UsageError: the policy is ``drop``, or the gallery was lifted or promoted since.
        ConflictError: there are such rows, and the policy is not ``keep``.
    """
    current = store.manifest
    models = {model.sha256 for model in target.models}
    foreign = sum(model.rows for model in current.models if model.sha256 not in models)
    reason = f"items were erased since generation {target.generation}, and its gallery with them"
    if policy == "drop":
        raise UsageError(
            f"{reason}: there is nothing to drop rows for",
            tip="--added keep restores its query model over the current rows",
        )
    if embedding_space(store, current) != embedding_space(store, target):
        raise UsageError(
            f"{reason}; the gallery was lifted or promoted in between: its query model cannot "
            "search the current rows",
            tip="compatctl deploy makes another model the query model",
        )
    if foreign and policy != "keep":
        raise ConflictError(
            f"{reason}; {foreign} current rows are of models that it does not have",
            tip="--added keep restores its query model at once; compatctl backfill then re-embeds "
            "the rows",
        )
    return (current if dry_run else rollback_query_model(store, target)), foreign


def rollback_with_items(
    project: Project,
    store: Store,
    target: Manifest,
    added: AddedItems,
    *,
    dry_run: bool,
    progress: Progress = silent,
) -> Manifest:
    """Restore model, index and catalogue, and keep the items added since.

    Items of a known model keep their vectors; the restored model embeds the others.

    Raises:
        ConflictError: the project's data lacks an item to embed; or as ``Transaction``.
        InputError: an image does not decode, or hnswlib is not installed.
    """
    require_hnswlib()
    vectors, digests = _embed_foreign(project, store, target, added, progress)
    if dry_run:
        return store.manifest
    stored = np.zeros((0, target.index.dim), np.float32)
    if len(added.known):  # a lift leaves the rows of each model in that model's own space
        index = open_index(store, store.manifest, fresh=True)
        stored = index.vectors(added.current.keys[added.known])
        del index
    earlier = store.catalog(target)
    catalog = _extended(earlier, added, target.query_model, digests)
    index = open_index(store, target, fresh=True, extra_capacity=len(stored) + len(vectors))
    index.add(np.concatenate([stored, vectors]), catalog.keys[len(earlier) :], progress)
    with store.transaction(store.manifest, operation=Operation.ROLLBACK) as tx:
        sha256 = tx.put("indexes", index.save)
        counts = catalog.counts()
        return tx.commit(
            operation=Operation.ROLLBACK,
            created_at=utc_now(),
            restores=target.generation,
            index=replace(target.index, count=len(index), sha256=sha256),
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(replace(m, rows=counts.get(m.sha256, 0)) for m in target.models),
            **{name: getattr(target, name) for name in MODEL_FIELDS},
        )


def _extended(
    catalog: Catalog, added: AddedItems, query_model: str, digests: NDArray[np.uint8]
) -> Catalog:
    """The catalogue with the known items, model by model, and then the foreign ones.

    ``digests`` (n, 32): of the images of the foreign items.
    """
    current = added.current
    model_of = current.model_of[added.known]
    parts = [
        (rows, current.models[model], current.digests[rows])
        for model in np.unique(model_of)
        for rows in (added.known[model_of == model],)
    ]
    for rows, model, images in (*parts, (added.foreign, query_model, digests)):
        if len(rows):
            labels = [current.labels[row] for row in rows]
            catalog = catalog.extended(added.ids(rows), labels, model, images)
    return catalog


def _embed_foreign(
    project: Project, store: Store, target: Manifest, added: AddedItems, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Embed the foreign items with the target's query model: vectors (n, D), digests (n, 32)."""
    if not len(added.foreign):
        return np.zeros((0, target.index.dim), np.float32), unknown_digests(0)
    data = load_data(project) if project.source else None
    row_of = data.row_of if data else {}
    ids = added.ids(added.foreign)
    missing = [item for item in ids if item not in row_of]
    if data is None or missing:
        raise ConflictError(
            f"{len(ids)} items were added since generation {target.generation} by a model that "
            f"it does not have, and {project.source or 'no data'} holds "
            f"{len(ids) - len(missing)}; missing: {listed(missing)}",
            tip="--data with them re-embeds them; --added keep restores the query model at "
            "once and leaves every row as it is (not across a lift or a promotion); --added drop "
            "drops them",
        )
    encoder = load_query_model(store, target)
    embedded = encoder.embed(data.take([row_of[item] for item in ids]), progress=progress)
    return embedded.features, embedded.digests
