"""The lineage of a generation: the states that led to it, without what rollbacks undid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from compatctl.manifest import Manifest, Operation
from compatctl.store._store import Store

MODEL_FIELDS = (
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

GALLERY_FIELDS = ("index", "catalog", "models")
"""What it restores of the gallery besides, when it restores all."""


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


def embedding_space(store: Store, state: Manifest) -> int:
    """The generation of the last lift that led to ``state``, 0 where none did.

    Of two states, rows and queries may be put together only where this is the same: a lift gives
    every row other numbers, and as many as the new model's.
    """
    return _space(store, state, {})


def spaces(store: Store) -> tuple[int, ...]:
    """``embedding_space`` every generation, in the order of ``Store.history``, in one pass over it.

    Raises:
        DamagedError: a generation is missing or changed.
    """
    found: dict[int, int] = {}
    for state in store.history():
        found[state.generation] = _space(store, state, found)
    return tuple(found.values())


def _space(store: Store, state: Manifest, known: Mapping[int, int]) -> int:
    """``embedding_space``; ``known`` maps generations to spaces found before."""
    while state.operation != Operation.LIFT:
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
    return all(getattr(state, name) == getattr(target, name) for name in GALLERY_FIELDS)
