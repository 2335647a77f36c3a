"""The way back: which generation a rollback restores, and which items that one does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compatctl.errors import ConflictError, DamagedError, UsageError
from compatctl.manifest import Manifest
from compatctl.store._layout import need_blobs
from compatctl.store._store import Store

OF_THE_MODEL = (
    "query_model",
    "registry",
    "memory",
    "calibration",
    "report",
    "policy",
    "forced_reason",
    "again_reason",
)
"""What a rollback restores of the query model."""

OF_THE_GALLERY = ("index", "catalog", "models")
"""What it restores of the gallery besides, when it restores all."""

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class RollbackPlan:
    """The generation that a rollback restores; ``done`` where the store is as it says already.

    ``gallery``: whether its gallery is kept too. It is not where items were erased since: then
    only its query model can be restored, over the rows of today.
    """

    target: Manifest
    done: bool
    gallery: bool = True


def rollback_plan(store: Store, *, to: int | None = None) -> RollbackPlan:
    """What a rollback would restore; nothing is written.

    Without ``to`` it is the state before the last change of the query model that still stands.
    Where that was undone already, there is nothing to do: a command that is run twice, because
    the first was killed after its commit or because two people answered the pager, undoes one
    deploy. ``to`` goes further.

    Raises:
        UsageError: there is no generation ``to``, it is the current one, its files were let go, or
            nothing is to undo.
        DamagedError: a file that the target needs is missing.
    """
    now = store.manifest
    if to == now.generation:
        raise UsageError(f"generation {to} is the current one: there is nothing to restore")
    undone = _undone(store) if to is None else None
    if undone is not None:
        return RollbackPlan(target=undone, done=True)
    target = store.generation(to) if to is not None else _before_last_deploy(store)
    if now.restores is not None and to == now.restores:
        return RollbackPlan(target=target, done=True)
    gallery = target.generation >= now.whole_from
    let_go = target.generation < now.oldest or now.restorable_model(target) is None
    if not gallery and let_go:
        raise UsageError(
            f"generation {target.generation} cannot be restored: items were erased since, which "
            "its files held",
            tip="compatctl history lists the generations; another model: compatctl deploy",
        )
    try:
        need_blobs(store.path, target, None if gallery else now.model_blobs(target))
    except DamagedError:
        store.refuse_let_go()
        if target.generation < now.oldest:
            raise UsageError(
                f"generation {target.generation} cannot be restored: its files were let go, those "
                f"from generation {now.oldest} on are kept",
                tip="compatctl history lists the generations",
            ) from None
        raise
    return RollbackPlan(target=target, done=False, gallery=gallery)


def added_since(store: Store, target: Manifest) -> tuple[str, ...]:
    """The ids of today's items that ``target`` does not have, in the order of the rows.

    No catalogue is read where both generations have the same one.

    Raises:
        DamagedError: a catalogue is missing or changed.
    """
    if target.catalog == store.manifest.catalog:
        return ()
    had = set(store.catalog(target).ids)
    return tuple(item for item in store.catalog().ids if item not in had)


def restore(store: Store, target: Manifest, *, at: str, timeout_s: float = 10.0) -> Manifest:
    """Make a new generation that restores ``target`` whole; neither index nor model is read.

    ``at`` is the time, ISO 8601, UTC.

    Raises:
        UsageError: its gallery is not kept: it held items that were erased since.
        ConflictError, DamagedError, CompatError: as ``Transaction``.
    """
    if target.generation < store.manifest.whole_from:
        raise UsageError(
            f"the gallery of generation {target.generation} held items that were erased since",
            tip="--added keep restores its query model over the rows of today",
        )
    with store.transaction(store.manifest, operation="rollback", timeout_s=timeout_s) as tx:
        restored = {name: getattr(target, name) for name in (*OF_THE_MODEL, *OF_THE_GALLERY)}
        return tx.commit(
            operation="rollback", created_at=at, restores=target.generation, **restored
        )


def rollback(
    store: Store,
    *,
    at: str,
    to: int | None = None,
    discard_added: bool = False,
    timeout_s: float = 10.0,
) -> Manifest:
    """Restore whole what ``rollback_plan`` says; the current manifest where that is done already.

    Raises:
        UsageError, DamagedError: as ``rollback_plan``.
        ConflictError: items were added since and ``discard_added`` is false; or as ``Transaction``.
    """
    plan = rollback_plan(store, to=to)
    if plan.done:
        return store.manifest
    if plan.gallery and not discard_added and (added := added_since(store, plan.target)):
        more = "" if len(added) <= _SHOWN else f" and {len(added) - _SHOWN} more"
        raise ConflictError(
            f"generation {plan.target.generation} does not have {len(added)} of the "
            f"{store.manifest.index.count} items of today, which were added after it: "
            f"{', '.join(added[:_SHOWN])}{more}",
            tip="keep, re-embed or drop them: compatctl rollback --help",
        )
    return restore(store, plan.target, at=at, timeout_s=timeout_s)


def _undone(store: Store) -> Manifest | None:
    """The generation that was gone back to, when the query model did not change since then."""
    state = store.manifest
    while state.generation > 1:
        before = store.generation(state.generation - 1)
        if state.operation == "remove":  # it may have rewritten the query model, and changed none
            state = before
            continue
        if state.restores is not None and before.query_model == state.query_model:
            state = store.generation(state.restores)  # it undid an add or a backfill, no deploy
            continue
        if state.restores is not None:
            back = any(one.generation == state.restores for one in lineage(store, before))
            return store.generation(state.restores) if back else None
        if before.query_model != state.query_model:
            return None
        state = before
    return None


def _before_last_deploy(store: Store) -> Manifest:
    model, rewritten = store.manifest.query_model, False
    for state in lineage(store, store.manifest):
        if rewritten:  # the same model, before vectors of erased items were taken out of its file
            model = state.query_model
        if state.query_model != model:
            return state
        rewritten = state.operation == "remove"
    raise UsageError(
        "no earlier generation had another query model: there is no deploy to undo",
        tip="compatctl history lists the generations; --to restores any of them",
    )


def lineage(store: Store, start: Manifest) -> Iterator[Manifest]:
    """The states that led to ``start``, newest first, without what rollbacks undid.

    A generation that restored N whole counts as N; one that kept rows beside it is a state of its
    own, after which N follows.
    """
    state = start
    while True:
        if state.restores is None or not _whole(store, state, state.restores):
            yield state
        before = _before(state)
        if not before:
            return
        state = store.generation(before)


def rolled_back(store: Store) -> dict[str, int]:
    """Query models that a rollback took out of service -> the generation that did.

    A model that was put back since, by a deploy or by a rollback to it, is none of them.

    Raises:
        DamagedError: a generation is missing or changed.
    """
    found: dict[str, int] = {}
    for state in store.history()[1:]:
        before = store.generation(state.generation - 1)
        if state.restores is not None:
            path = [one.generation for one in lineage(store, before)]
            root = _root(store, state.restores)
            undone = path[: path.index(root)] if root in path else []
            found |= {store.generation(one).query_model: state.generation for one in undone}
        if state.query_model != before.query_model:
            found.pop(state.query_model, None)
    return found


def _root(store: Store, generation: int) -> int:
    """The generation whose state this one has: itself, or what it restored whole."""
    state = store.generation(generation)
    while state.restores is not None and _whole(store, state, state.restores):
        state = store.generation(state.restores)
    return state.generation


def space_of(store: Store, state: Manifest) -> int:
    """The generation of the last lift that led to ``state``, 0 where none did.

    Of two states, rows and queries may be put together only where this is the same: a lift gives
    every row other numbers, and as many as the new model's.
    """
    return _space(store, state, {})


def spaces(store: Store) -> tuple[int, ...]:
    """``space_of`` every generation, in the order of ``Store.history``, in one pass over it.

    Raises:
        DamagedError: a generation is missing or changed.
    """
    found: dict[int, int] = {}
    for state in store.history():
        found[state.generation] = _space(store, state, found)
    return tuple(found.values())


def _space(store: Store, state: Manifest, known: Mapping[int, int]) -> int:
    """``space_of``; ``known`` has the spaces, by generation, of states that need no more walk."""
    while state.operation != "lift":
        before = _before(state)
        if not before:
            return 0
        if before in known:
            return known[before]
        state = store.generation(before)
    return state.generation


def _before(state: Manifest) -> int:
    """The generation that ``state`` was made from: the one that it restores, else the one before;
    0 where it is the first."""
    return state.generation - 1 if state.restores is None else state.restores


def _whole(store: Store, state: Manifest, restored: int) -> bool:
    target = store.generation(restored)
    return all(getattr(state, name) == getattr(target, name) for name in OF_THE_GALLERY)
