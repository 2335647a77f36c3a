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
"""The fields of a manifest that a rollback restores with the query model."""

GALLERY_FIELDS = ("index", "catalog", "models")
"""The further fields that it restores if it restores the gallery too."""


def lineage(store: Store, start: Manifest) -> Iterator[Manifest]:
    """The states that led to ``start``, newest first, without what rollbacks undid.

    A generation that restored all of N counts as N. One that kept items added since is a state of
    its own, and N follows it.
    """
    state = start
    while True:
        if state.restores is None or not _restores_gallery(store, state, state.restores):
            yield state
        before = _predecessor(state)
        if not before:
            return
        state = store.generation(before)


def rolled_back_models(store: Store) -> dict[str, int]:
    """Query models that a rollback took out of service, each with that rollback's generation.

    A model that serves again, through a deploy or a rollback to it, is not among them.

    Raises:
        DamagedError: a generation is missing or changed.
    """
    found: dict[str, int] = {}
    for state in store.history()[1:]:
        before = store.generation(state.generation - 1)
        if state.restores is not None:
            path = [one.generation for one in lineage(store, before)]
            root = _origin(store, state.restores)
            undone = path[: path.index(root)] if root in path else []
            found |= {store.generation(one).query_model: state.generation for one in undone}
        if state.query_model != before.query_model:
            found.pop(state.query_model, None)
    return found


def _origin(store: Store, generation: int) -> int:
    """The generation whose whole state this one has: itself, or the one that it restored."""
    state = store.generation(generation)
    while state.restores is not None and _restores_gallery(store, state, state.restores):
        state = store.generation(state.restores)
    return state.generation


def embedding_space(store: Store, state: Manifest) -> int:
    """The embedding space of a state: the generation of the last lift that led to it, or 0.

    Rows and queries of two states are comparable only if they share it: a lift maps every row into
    the new model's space, with its dimension.
    """
    return _find_space(store, state, {})


def embedding_spaces(store: Store) -> tuple[int, ...]:
    """The embedding space of every generation, in the order of ``Store.history``, in one pass.

    Raises:
        DamagedError: a generation is missing or changed.
    """
    found: dict[int, int] = {}
    for state in store.history():
        found[state.generation] = _find_space(store, state, found)
    return tuple(found.values())


def _find_space(store: Store, state: Manifest, known: Mapping[int, int]) -> int:
    """``embedding_space``; ``known`` maps generations to spaces found before."""
    while state.operation != Operation.LIFT:
        before = _predecessor(state)
        if not before:
            return 0
        if before in known:
            return known[before]
        state = store.generation(before)
    return state.generation


def _predecessor(state: Manifest) -> int:
    """The generation that ``state`` was made from: the one it restores, else the one before; 0 if
    it is the first."""
    return state.generation - 1 if state.restores is None else state.restores


def _restores_gallery(store: Store, state: Manifest, restored: int) -> bool:
    target = store.generation(restored)
    return all(getattr(state, name) == getattr(target, name) for name in GALLERY_FIELDS)
