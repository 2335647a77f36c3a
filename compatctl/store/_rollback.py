"""Rollback: which generation it restores, and the generation that restores it."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.errors import DamagedError, UsageError
from compatctl.manifest import Manifest, Operation
from compatctl.store._layout import RESTORE_TIP, Blobs, require_blobs
from compatctl.store._lineage import GALLERY_FIELDS, MODEL_FIELDS, lineage
from compatctl.store._remote import remote_of
from compatctl.store._store import Store


@dataclass(frozen=True, kw_only=True)
class RollbackPlan:
    """The generation that a rollback restores.

    ``already_restored``: whether the store is in that state. ``gallery``: whether its gallery can
    be restored too; if items were erased since, only its query model can, over the current rows.
    """

    target: Manifest
    already_restored: bool
    gallery: bool = True


def rollback_plan(store: Store, *, to: int | None = None) -> RollbackPlan:
    """Find the generation that a rollback would restore; nothing is written.

    ``to``: the generation. Default: the state before the last deploy that still stands. If that
    deploy was undone already, there is nothing to do: running the command twice undoes one deploy.

    Raises:
        UsageError: there is no generation ``to``, it is the current one, its files were deleted, or
            there is nothing to undo.
        DamagedError: a file that the target needs is missing.
    """
    current = store.manifest
    if to == current.generation:
        raise UsageError(f"generation {to} is the current one: there is nothing to restore")
    restored = _restored_by_rollback(store) if to is None else None
    if restored is not None:
        return RollbackPlan(target=restored, already_restored=True)
    target = store.generation(to) if to is not None else _before_last_deploy(store)
    if current.restores is not None and to == current.restores:
        return RollbackPlan(target=target, already_restored=True)
    gallery = target.generation >= current.oldest_gallery
    dropped = target.generation < current.oldest_restorable
    if dropped and not gallery:
        raise UsageError(
            f"generation {target.generation} cannot be restored: its files held items that were "
            "erased since",
            tip="compatctl history lists the generations; another model: compatctl deploy",
        )
    try:
        _require_kept(store, target, target.blobs() if gallery else target.model_blobs())
    except DamagedError:
        store.raise_if_collected()
        if dropped:
            raise UsageError(
                f"generation {target.generation} cannot be restored: its files were deleted; those "
                f"from generation {current.oldest_restorable} on are kept",
                tip="compatctl history lists the generations",
            ) from None
        raise
    return RollbackPlan(target=target, already_restored=False, gallery=gallery)


def restore(store: Store, target: Manifest, *, created_at: str) -> Manifest:
    """Commit a generation that restores all of ``target``; ``created_at``: ISO 8601, UTC.

    Raises:
        UsageError: its gallery was deleted, because it held items that were erased since.
        ConflictError, DamagedError, CompatError: as ``Transaction``.
    """
    if target.generation < store.manifest.oldest_gallery:
        raise UsageError(
            f"the gallery of generation {target.generation} held items that were erased since",
            tip="compatctl rollback --added keep restores its query model over the current rows",
        )
    with store.transaction(store.manifest, operation=Operation.ROLLBACK) as tx:
        restored = {name: getattr(target, name) for name in (*MODEL_FIELDS, *GALLERY_FIELDS)}
        return tx.commit(
            operation=Operation.ROLLBACK,
            created_at=created_at,
            restores=target.generation,
            **restored,
        )


def _require_kept(store: Store, target: Manifest, blobs: Blobs) -> None:
    """``require_blobs``, of a store in a bucket without fetching one."""
    remote = remote_of(store.path)
    if remote is None:
        require_blobs(store.path, target, blobs)
        return
    for blob in blobs:
        if not remote.holds(*blob):
            raise DamagedError(
                f"{remote.blob(*blob)}, which generation {target.generation} needs, is missing or "
                "empty",
                tip=RESTORE_TIP,
            )


def _restored_by_rollback(store: Store) -> Manifest | None:
    """The generation that a rollback of a deploy restored, if the query model stayed since."""
    state = store.manifest
    while state.generation > 1:
        before = store.generation(state.generation - 1)
        if state.restores is not None and before.query_model == state.query_model:
            state = store.generation(state.restores)  # it undid an add or a backfill, no deploy
            continue
        if state.restores is not None:
            target = store.generation(state.restores)
            return target if target in lineage(store, before) else None
        if before.query_model != state.query_model:
            return None
        state = before
    return None


def _before_last_deploy(store: Store) -> Manifest:
    for state in lineage(store, store.manifest):
        if state.query_model != store.manifest.query_model:
            return state
    raise UsageError(
        "no earlier generation had another query model: there is no deploy to undo",
        tip="compatctl history lists the generations; compatctl rollback --to restores any of them",
    )
