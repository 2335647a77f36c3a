"""The side tables of a store's generations: what a rollback finds there, and what gc drops."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from compatctl.deployment.engine_gallery import adopted
from compatctl.deployment.engines import in_engine
from compatctl.engines import TableFile, open_connection_to, sweep_sides_of
from compatctl.manifest import Manifest
from compatctl.store import Store, table_file


def has_same_rows(store: Store, target: Manifest) -> bool:
    """Whether a generation adopted the same rows of the table as the current one, in one order."""
    (_, now), (_, then) = adopted(store, store.manifest), adopted(store, target)
    if not np.array_equal(now.table, then.table):
        return False
    return store.catalog().ids == store.catalog(target).ids


def has_same_side(store: Store, target: Manifest) -> bool:
    """Whether a generation searches the same batches of the same side table."""
    now, then = adopted(store, store.manifest)[0].side, adopted(store, target)[0].side
    if now is None or then is None:
        return now is then
    return (now.table, now.batches) == (then.table, then.batches)


def side_files(store: Store) -> list[TableFile]:
    """The files of the generations that can be restored, each once."""
    states = store.history()
    oldest = store.manifest.oldest_restorable
    indexes = {state.index.sha256: state for state in states if state.generation >= oldest}
    files = (table_file(store.path, state) for state in indexes.values())
    return [file for file in files if file is not None]


def kept_batches(store: Store) -> dict[str, set[int]]:
    """A side table -> its batches that a generation which can be restored names."""
    kept: dict[str, set[int]] = defaultdict(set)
    for file in side_files(store):
        if file.side is not None:
            kept[file.side.table].update(file.side.batches)
    return kept


def sweep_sides(store: Store) -> tuple[str, ...]:
    """Delete the batches of side tables that no kept generation names; the tables that changed.

    Raises:
        ConflictError: the store is locked, or moved on.
        CompatError: the server cannot be reached.
    """
    file = _file(store)
    if file is None:
        return ()
    location = file.location.from_environment()
    with (
        store.transaction(store.manifest, operation="check --gc"),
        open_connection_to(location) as connection,
    ):
        return sweep_sides_of(connection, location, kept_batches(store))


def _file(store: Store) -> TableFile | None:
    return table_file(store.path, store.manifest) if in_engine(store.manifest) else None
