"""rollback where items were added since: they are kept, re-embedded, or let go by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import load_query_model, open_index
from compatctl.deployment.project import utc_now
from compatctl.errors import ConflictError, UsageError
from compatctl.manifest import Catalog, Manifest, unknown_digests
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import OF_THE_MODEL, Store, space_of

SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class AddedItems:
    """Today's items that the target does not have, by row of today's catalogue (n,).

    ``known``: embedded by a model that the target's gallery or queries used too, ordered by model;
    their vectors can stay. ``foreign``: by another one, against which none of those was verified.
    ``reverted``: ids of items that the target has too, of another image or class.
    """

    today: Catalog
    known: NDArray[np.int64]
    foreign: NDArray[np.int64]
    reverted: tuple[str, ...]

    @classmethod
    def since(cls, store: Store, target: Manifest) -> AddedItems:
        """What was added since ``target``."""
        today = store.catalog()
        then = store.catalog(target)
        had = {item: row for row, item in enumerate(then.ids)}
        rows = np.array([row for row, item in enumerate(today.ids) if item not in had], np.int64)
        models = {one.sha256 for one in target.models}
        fine = np.array([model in models for model in today.models], bool)
        rows = rows[np.argsort(today.model_of[rows], kind="stable")]
        known = fine[today.model_of[rows]]
        return cls(
            today=today,
            known=rows[known],
            foreign=rows[~known],
            reverted=_differing(today, then, had),
        )

    def ids(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """The item ids of rows (n,)."""
        return tuple(self.today.ids[row] for row in rows)


def _differing(today: Catalog, then: Catalog, row_then: dict[str, int]) -> tuple[str, ...]:
    """Ids that both catalogues have, of another image, where both know it, or another class."""
    pairs = [(row, row_then[item]) for row, item in enumerate(today.ids) if item in row_then]
    current, before = np.array(pairs, np.int64).reshape(-1, 2).T
    other = (today.digests[current] != then.digests[before]).any(axis=1)
    other &= today.known[current] & then.known[before]
    return tuple(
        today.ids[row]
        for (row, earlier), image in zip(pairs, other, strict=True)
        if image or today.labels[row] != then.labels[earlier]
    )


def rollback_query_model(store: Store, target: Manifest) -> Manifest:
    """Restore the query model, and leave every row where it is; nothing is embedded or rewritten.

    The rehearsal memory is that of today where the target's held items that were erased since.

    Raises:
        ConflictError, DamagedError, CompatError: as ``Transaction``.
    """
    today = store.manifest
    share = today.restorable_model(target)
    assert share is not None, "refused by the plan"
    rows = sum(one.rows for one in today.models if one.sha256 == share.sha256)
    others = [one for one in today.models if one.rows > 0 and one.sha256 != share.sha256]
    ef_search = max(today.index.ef_search, target.index.ef_search)
    restored = {name: getattr(target, name) for name in OF_THE_MODEL}
    if target.generation < today.whole_from:
        restored |= {"memory": today.memory, "query_model": share.sha256}
    with store.transaction(today, operation="rollback") as tx:
        return tx.commit(
            operation="rollback",
            created_at=utc_now(),
            restores=target.generation,
            index=replace(today.index, ef_search=ef_search),
            models=(*others, replace(share, rows=rows)),
            **restored,
        )


def rollback_after_erasure(
    store: Store, target: Manifest, *, keep: bool, drop: bool, dry_run: bool
) -> tuple[Manifest, int]:
    """Restore the query model of a generation whose gallery was let go; and how many rows of today
    are of models that it does not have.

    Raises:
        UsageError: rows are to be dropped, or the gallery was lifted since.
        ConflictError: there are such rows, and nobody asked to ``keep`` them.
    """
    today = store.manifest
    models = {one.sha256 for one in target.models}
    models |= {one.model.sha256 for one in today.stand_ins if one.of in models}
    foreign = sum(one.rows for one in today.models if one.sha256 not in models)
    why = f"items were erased since generation {target.generation}, and its gallery with them"
    if drop:
        raise UsageError(
            f"{why}: there is nothing to drop rows for",
            tip="--added keep restores its query model over the rows of today",
        )
    if space_of(store, store.manifest) != space_of(store, target):
        raise UsageError(
            f"{why}; the gallery was lifted in between: its query model cannot search today's rows",
            tip="compatctl deploy makes another model the query model",
        )
    if foreign and not keep:
        raise ConflictError(
            f"{why}; {foreign} rows of today are of models that it does not have",
            tip="--added keep restores its query model at once; compatctl backfill then embeds the "
            "rows again",
        )
    return (store.manifest if dry_run else rollback_query_model(store, target)), foreign


def rollback_with_items(
    project: Project,
    store: Store,
    target: Manifest,
    added: AddedItems,
    *,
    dry_run: bool,
    progress: Progress = silent,
) -> Manifest:
    """Restore model, index and catalogue, and take the items added since along.

    Those of a known model keep their vectors; the others are embedded by the restored model.

    Raises:
        ConflictError: the project's data does not hold every item to embed; or as ``Transaction``.
        InputError: an image does not decode.
    """
    fresh, digests = _embed(project, store, target, added, progress)
    if dry_run:
        return store.manifest
    stay = np.zeros((0, target.index.dim), np.float32)
    if len(added.known):  # rows of a model are in its own space, whatever was lifted since
        stay = open_index(store, store.manifest, fresh=True).vectors(added.today.keys[added.known])
    before = store.catalog(target)
    catalog = before
    model_of = added.today.model_of[added.known]
    for model in np.unique(model_of):
        rows, name = added.known[model_of == model], added.today.models[model]
        catalog = _extended(catalog, added, rows, name, added.today.digests[rows])
    catalog = _extended(catalog, added, added.foreign, target.query_model, digests)
    index = open_index(store, target, fresh=True, room=len(stay) + len(fresh))
    index.add(np.concatenate([stay, fresh]), catalog.keys[len(before) :], progress)
    with store.transaction(store.manifest, operation="rollback") as tx:
        sha256 = tx.put("indexes", index.save)
        counts = catalog.counts()
        return tx.commit(
            operation="rollback",
            created_at=utc_now(),
            restores=target.generation,
            index=replace(target.index, count=len(index), sha256=sha256),
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(replace(one, rows=counts.get(one.sha256, 0)) for one in target.models),
            **{name: getattr(target, name) for name in OF_THE_MODEL},
        )


def _extended(
    catalog: Catalog,
    added: AddedItems,
    rows: NDArray[np.int64],
    model: str,
    digests: NDArray[np.uint8],
) -> Catalog:
    labels = [added.today.labels[row] for row in rows]
    return catalog.extended(added.ids(rows), labels, model, digests) if len(rows) else catalog


def _embed(
    project: Project, store: Store, target: Manifest, added: AddedItems, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The foreign items (n, D), embedded by the target's query model, and their digests (n, 32)."""
    if not len(added.foreign):
        return np.zeros((0, target.index.dim), np.float32), unknown_digests(0)
    data = load_data(project) if project.data else None
    row_of = {item: row for row, item in enumerate(data.ids)} if data else {}
    wanted = added.ids(added.foreign)
    if data is None or any(item not in row_of for item in wanted):
        missing = [item for item in wanted if item not in row_of]
        more = "" if len(missing) <= SHOWN else f" and {len(missing) - SHOWN} more"
        raise ConflictError(
            f"{len(wanted)} items were added since generation {target.generation} by a model that "
            f"it does not have, and {project.data or 'no data'} holds the images of "
            f"{len(wanted) - len(missing)}; missing: {', '.join(missing[:SHOWN])}{more}",
            tip="--data with their images re-embeds them; --added keep restores the query model at "
            "once and leaves every row as it is (not across a lift); --added drop lets them go",
        )
    encoder = load_query_model(store, target)
    done = encoder.embed(data.take([row_of[item] for item in wanted]), progress=progress)
    return done.features, done.digests
