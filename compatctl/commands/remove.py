"""remove: erase items from the store in one generation. No rollback restores them.

After the commit, the command deletes the files that only earlier generations name. If it is killed
in between, the erasure is committed: the manifest says which galleries cannot be restored, and the
next removal or gc deletes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compatctl.deployment.engines import refuse_engine
from compatctl.deployment.project import open_store
from compatctl.deployment.removal import Removal, RemovalResult
from compatctl.errors import UsageError
from compatctl.index import require_hnswlib
from compatctl.progress import Progress, silent
from compatctl.recipe import Project


def remove(
    project: Project,
    *,
    ids: Sequence[str],
    missing_ok: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> RemovalResult:
    """Erase items: rows, catalogue entries, images in the memory, vectors in side files.

    Repeating the command changes nothing, but finishes what a killed one left. It reads every kept
    gallery and rebuilds the index.

    Raises:
        UsageError: no id is given.
        InputError: an id is not in the store and was not erased before, without ``missing_ok``; or
            no row would remain.
        DamagedError: a file of the store is missing or damaged.
        ConflictError: the store is locked, or changed meanwhile.
    """
    if not ids:
        raise UsageError("no id to remove", tip="name them, or pass --ids FILE (- for stdin)")
    store = open_store(project)
    refuse_engine(
        store.manifest,
        "remove",
        "the application deletes rows of its table, and this cannot prove that its backups and "
        "replicas lost them",
        tip="delete the rows there; compatctl add --changed then drops them from the catalogue",
    )
    require_hnswlib()
    removal = Removal(project=project, store=store, ids=frozenset(ids), missing_ok=missing_ok)
    removal.refuse()
    result = removal.planned(dry_run=dry_run)
    if dry_run:
        return replace(result, side_files=removal.clean(dry_run=True)).warned()
    swept = removal.commit(progress) if removal.stored else removal.finish()
    after = open_store(project)
    return replace(
        result,
        generation=after.manifest.generation,
        side_files=removal.clean(dry_run=False),
        deleted=len(swept.deleted),
        freed_bytes=swept.freed_bytes,
        written=bool(removal.stored),
    ).warned()
