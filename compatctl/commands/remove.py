"""remove: items leave the store for good, in one generation, and no rollback brings them back.

What only earlier generations name is deleted in the same command, after the commit. A process that
is killed in between has committed the erasure: the manifest says which galleries are not to be
restored, and the next removal, or gc, deletes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compatctl.deployment.erasure import candidates_with_erased
from compatctl.deployment.project import open_store
from compatctl.deployment.removal import Removal, RemovalResult
from compatctl.errors import UsageError
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
    """Erase items: rows, catalogue entries, images in the memory, vectors that encoders hold.

    The same command again finds it done, and finishes what a killed one left. All of every gallery
    that is kept is read, and the index is built anew.

    Raises:
        UsageError: no id is given.
        InputError: an id is not there and was not erased before (unless ``missing_ok``); no row
            would stay; a model holds vectors of which nobody knows whose they are.
        DamagedError: a file of the store is missing or changed.
        ConflictError: the store is locked, or moved on meanwhile: run it again.
    """
    if not ids:
        raise UsageError("no id to remove", tip="name them, or pass --ids FILE (- for stdin)")
    work = Removal(
        project=project, store=open_store(project), ids=frozenset(ids), missing_ok=missing_ok
    )
    work.refuse()
    result = work.planned(dry_run=dry_run)
    if dry_run:
        return replace(result, side_files=work.clean(dry_run=True)).warned()
    swept = work.commit(progress) if work.traces.found else work.finish()
    after = open_store(project)
    return replace(
        result,
        generation=after.manifest.generation,
        side_files=work.clean(dry_run=False),
        candidates=candidates_with_erased(project, after),
        deleted=len(swept.deleted),
        freed_bytes=swept.freed_bytes,
        written=bool(work.traces.found),
    ).warned()
