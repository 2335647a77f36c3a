"""Side files and the galleries of a store: what they have, and what must not be kept."""

from __future__ import annotations

import re
from collections.abc import Iterator

from compatctl.deployment.erasure import restorable_models, whole_generations
from compatctl.errors import DamagedError
from compatctl.store import Store, delete_damaged_side_file, side_path
from compatctl.store.side_file import SideFile

_CURE = "compatctl check --gc deletes them"


def free_vectors_of(store: Store, ids: frozenset[str]) -> int:
    """How many free vectors of these items the store's side files have."""
    named = sorted(ids)
    return sum(int(side.lookup(named)[1].sum()) for side in _side_files(store))


def delete_strangers(store: Store) -> int:
    """Keep only vectors of items that a kept gallery has; return how many others were deleted.

    Damaged records and files are deleted too. The side files of models that nothing can restore
    stay as they are, for gc deletes them. Call it after the commit of the generation that no
    longer has the items: later appends are compared with its erasures.

    Raises:
        ConflictError: another process holds the lock of the side files.
        DamagedError: a catalogue is missing or changed.
        CompatError: no space, or no permission.
    """
    for sha256 in _models(store):
        delete_damaged_side_file(store.path, sha256)
    kept = restorable_models(store)
    sides = [side for side in _side_files(store) if side.model_sha256 in kept]
    ids = _kept_ids(store) if sides else []
    return sum(side.retain(ids) for side in sides)


def side_file_problems(store: Store, *, erased: bool) -> list[str]:
    """Damaged side files and records and, if items were ``erased``, vectors of unknown items.

    An item that no kept gallery has may be an erased one.

    Raises:
        DamagedError: a catalogue is missing or changed.
    """
    problems = []
    for sha256 in _models(store):
        path = side_path(store.path, sha256)
        try:
            side = SideFile.existing(store.path, sha256)
        except DamagedError as error:
            problems.append(error.message)
            continue
        if side is None:
            continue
        if count := side.damaged():
            problems.append(f"{path} has {count} damaged records: {_CURE}")
        if erased and (count := side.strangers(_kept_ids(store))):
            problems.append(f"{path} has {count} vectors of items in no kept gallery: {_CURE}")
    return problems


def _side_files(store: Store) -> Iterator[SideFile]:
    for sha256 in _models(store):
        side = SideFile.existing(store.path, sha256)
        if side is not None:
            yield side


def _models(store: Store) -> list[str]:
    """The digests of models with a side file."""
    names = (path.stem for path in side_path(store.path, "").parent.glob("*.vectors"))
    return sorted(name for name in names if re.fullmatch("[0-9a-f]{64}", name))


def _kept_ids(store: Store) -> list[str]:
    """The items of every kept gallery."""
    catalogs = {manifest.catalog: manifest for manifest in whole_generations(store)}
    return sorted({item for state in catalogs.values() for item in store.catalog(state).ids})
