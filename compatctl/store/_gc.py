"""gc: delete what no kept generation names. What goes is read off the store as it is committed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compatctl.files import os_errors, sync
from compatctl.manifest import Operation
from compatctl.progress import Progress, silent
from compatctl.store._attempts import sweep_attempts
from compatctl.store._check import CheckReport, check, erased_files, oldest_kept
from compatctl.store._layout import ATTEMPTS, HISTORY
from compatctl.store._store import Store


def gc(
    store: Store,
    *,
    keep: int | None = None,
    at: str = "",
    deep: bool = True,
    progress: Progress = silent,
) -> CheckReport:
    """Check, and delete under the lock what no kept generation names.

    With ``keep``, the newest ``keep`` states are kept, and what a rollback would restore; older
    ones can no longer be restored, but stay in the history. That is committed as a generation of
    its own before the first file goes, so that a process killed anywhere has deleted nothing that
    a kept generation names, and the next run deletes the rest. While anything is damaged nothing
    is deleted: what a damaged generation names is unknown. ``at`` is the time, ISO 8601, UTC.

    Raises:
        ConflictError: the store is locked, or moved on.
        UsageError: ``keep`` is less than 1.
    """
    oldest = store.manifest.oldest_restorable if keep is None else oldest_kept(store, keep)
    with store.transaction(store.manifest, operation="check --gc") as tx:
        found = check(store.path, deep=deep, keep=keep, progress=progress)
        if not found.ok:
            return _nothing_deleted(found)
        if oldest > store.manifest.oldest_restorable:
            tx.commit(operation=Operation.GC, created_at=at, oldest_restorable=oldest)
        return sweep(store.path)


def sweep(root: Path) -> CheckReport:
    """Delete what no kept generation names, and give the state that this leaves.

    Under the lock, after the last commit: what goes is found on the disk as it is now. A list that
    was made before a commit can hold that commit's own files, because a killed commit leaves a
    generation of the very name that the next one takes.

    Raises:
        CompatError: a file cannot be deleted.
    """
    found = check(root, deep=False)
    if not found.ok:
        return _nothing_deleted(found)
    counted, freed = sweep_attempts(root)  # under their own lock: a verify may be writing one
    paths = [root / name for name in found.unreferenced]
    paths = [path for path in paths if path.parent.name != ATTEMPTS]
    store = Store.open(root)
    erased = erased_files(root, store.history(), store.manifest)
    # What killed commits left of the history goes first: it never names a file that is gone. What
    # the history names of before an erasure goes last: while one such file is there, the erasure
    # is seen to be unfinished.
    for group in (
        [path for path in paths if path.parent.name == HISTORY],
        [path for path in paths if path.parent.name != HISTORY and path not in erased],
        [path for path in paths if path in erased],
    ):
        freed += _delete(group)
    return replace(
        found,
        unreferenced=(),
        deleted=tuple(sorted(str(path.relative_to(root)) for path in (*paths, *counted))),
        freed_bytes=freed,
        erasure="none" if store.manifest.erasures is None else "done",
    )


def _nothing_deleted(found: CheckReport) -> CheckReport:
    if not found.unreferenced:
        return found
    why = "nothing was deleted: a damaged generation may need it"
    return replace(found, problems=(*found.problems, why))


def _delete(paths: list[Path]) -> int:
    """Delete files; how many bytes that freed."""
    freed = 0
    for path in paths:
        with os_errors("deleting", path):
            freed += path.stat().st_size
            path.unlink()
    for folder in sorted({path.parent for path in paths}):
        with os_errors("deleting in", folder):
            sync(folder)
    return freed
