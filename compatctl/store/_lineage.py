"""The lineage of a generation: the states that led to it, without what rollbacks undid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from compatctl.manifest import Manifest, Operation
from compatctl.store._store import Store

MODEL_FIELDS = (
    "query_model",
    "registry",
    "memory",
    "calibration",
    "rescoring",
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
        number = _predecessor(state)
        if not number:
            return
        state = store.generation(number)


def rolled_back_models(store: Store) -> dict[str, int]:
    """Query models that a rollback took out of service, each with that rollback's generation.

    A model that serves again, through a deploy or a rollback to it, is not among them.

    Raises:
        DamagedError: a generation is missing or changed.
    """
    models: dict[str, int] = {}
    for state in store.history()[1:]:
        before = store.generation(state.generation - 1)
        if state.restores is not None:
            path = list(lineage(store, before))
            numbers = [ancestor.generation for ancestor in path]
            origin = _origin(store, state.restores)
            undone = path[: numbers.index(origin)] if origin in numbers else []
            models |= {ancestor.query_model: state.generation for ancestor in undone}
        if state.query_model != before.query_model:
            models.pop(state.query_model, None)
    return models


def _origin(store: Store, number: int) -> int:
    """The generation whose whole state this one has: itself, or the one that it restored."""
    state = store.generation(number)
    while state.restores is not None and _restores_gallery(store, state, state.restores):
        state = store.generation(state.restores)
    return state.generation


def embedding_space(
    store: Store, state: Manifest, known: Mapping[int, int] = MappingProxyType({})
) -> int:
    """The embedding space of a state: the generation of the last lift or promotion that led to it,
    or 0.

    Rows and queries of two states are comparable only if they share it: a lift maps every row into
    the new model's space, with its dimension, and a promotion replaces every row by one of the free
    space. ``known``: the spaces of earlier generations.
    """
    while state.operation not in {Operation.LIFT, Operation.PROMOTE}:
        number = _predecessor(state)
        if not number:
            return 0
        if number in known:
            return known[number]
        state = store.generation(number)
    return state.generation


def embedding_spaces(store: Store) -> tuple[int, ...]:
    """The embedding space of every generation, in the order of ``Store.history``, in one pass.

    Raises:
        DamagedError: a generation is missing or changed.
    """
    spaces: dict[int, int] = {}
    for state in store.history():
        spaces[state.generation] = embedding_space(store, state, spaces)
    return tuple(spaces.values())


def _predecessor(state: Manifest) -> int:
    """The number of the restored generation, else of the one before; 0 for the first."""
    return state.generation - 1 if state.restores is None else state.restores


def _restores_gallery(store: Store, state: Manifest, restored: int) -> bool:
    target = store.generation(restored)
    return all(getattr(state, name) == getattr(target, name) for name in GALLERY_FIELDS)
