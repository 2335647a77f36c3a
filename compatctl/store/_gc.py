"""gc: delete the files that no kept generation names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compatctl.files import os_errors, sync
from compatctl.manifest import Operation
from compatctl.progress import Progress, silent
from compatctl.store._attempts import sweep_attempts
from compatctl.store._check import (
    CheckReport,
    all_blobs,
    check,
    erased_files,
    oldest_kept,
    own_files,
)
from compatctl.store._layout import ATTEMPTS, HISTORY, SIDE, blob_path
from compatctl.store._remote import Remote, remote_of
from compatctl.store._remote_check import BucketFiles, delete_objects, erased_names
from compatctl.store._side_layout import side_path, sweep_side
from compatctl.store._store import Store


def gc(
    store: Store,
    *,
    keep: int | None = None,
    created_at: str = "",
    deep: bool = True,
    progress: Progress = silent,
) -> CheckReport:
    """Check, then delete under the lock the files that no kept generation names.

    If anything is damaged, nothing is deleted: what a damaged generation names is unknown.

    Args:
        keep: keep the newest ``keep`` states and the one a rollback would restore. Older ones stay
            in the history but cannot be restored. Default: keep every state. The decision is
            committed as a generation before the first deletion, so a killed gc has deleted only
            what no kept generation names, and the next one deletes the rest.
        created_at: the time, ISO 8601, UTC.

    Raises:
        ConflictError: the store is locked, or moved on.
        UsageError: ``keep`` is less than 1.
    """
    oldest = store.manifest.oldest_restorable if keep is None else oldest_kept(store, keep)
    with store.transaction(store.manifest, operation="check --gc") as tx:
        report = check(store.path, deep=deep, keep=keep, progress=progress)
        if not report.ok:
            return _nothing_deleted(report)
        if oldest > store.manifest.oldest_restorable:
            tx.commit(operation=Operation.GC, created_at=created_at, oldest_restorable=oldest)
        return sweep(store.path)


def sweep(root: Path) -> CheckReport:
    """Delete the files that no kept generation names; return the state after that.

    Call it under the lock, after the last commit. The files are listed again: a list made before a
    commit can contain that commit's own files, because a killed commit leaves a generation of the
    same name.

    Raises:
        CompatError: a file cannot be deleted.
    """
    report = check(root, deep=False)
    if not report.ok:
        return _nothing_deleted(report)
    if remote := remote_of(root):
        return _sweep_bucket(remote, report)
    attempts, freed = sweep_attempts(root)  # under their own lock
    side, freed_beside = sweep_side(root, report.unreferenced)  # under their own lock
    freed += freed_beside
    paths = [root / name for name in report.unreferenced]
    paths = [path for path in paths if path.parent.name not in {ATTEMPTS, SIDE}]
    store = Store.open(root)
    erased = erased_files(root, store.history(), store.manifest)
    # Generations of killed commits first, so that none names a deleted file. Files from before an
    # erasure last: while one exists, the erasure counts as unfinished.
    for group in (
        [path for path in paths if path.parent.name == HISTORY],
        [path for path in paths if path.parent.name != HISTORY and path not in erased],
        [path for path in paths if path in erased],
    ):
        freed += _delete(group)
    return replace(
        report,
        unreferenced=(),
        deleted=tuple(sorted(str(path.relative_to(root)) for path in (*paths, *attempts, *side))),
        freed_bytes=freed,
        erasure="none" if store.manifest.erasures is None else "done",
    )


def _sweep_bucket(remote: Remote, report: CheckReport) -> CheckReport:
    """``sweep`` of a store in a bucket; what its copy on this machine no longer needs goes too."""
    store = Store.open(remote.root)
    manifest, history = store.manifest, store.history()
    kept = tuple(all_blobs(history, manifest))
    last = erased_names(history, manifest, kept)
    files = BucketFiles.of(remote)
    names, freed = delete_objects(files, manifest, files.unreferenced(manifest, kept), last)
    own = {blob_path(remote.root, *blob) for blob in kept}
    own |= {side_path(remote.root, sha256) for kind, sha256 in kept if kind == "models"}
    copies = [path for path in own_files(remote.root) if path not in own]
    here = (SIDE, HISTORY)
    _delete([path for path in copies if path.parent.name not in here])
    sweep_side(remote.root, [f"{SIDE}/{p.name}" for p in copies if p.parent.name == SIDE])
    sweep_attempts(remote.root)
    left = BucketFiles.of(remote)
    return replace(
        report,
        unreferenced=left.unreferenced(manifest, kept),
        deleted=names,
        freed_bytes=freed,
        erasure="none"
        if manifest.erasures is None
        else "unfinished"
        if last & left.sizes.keys()
        else "done",
    )


def _nothing_deleted(report: CheckReport) -> CheckReport:
    if not report.unreferenced:
        return report
    problem = "nothing was deleted: a damaged generation may need it"
    return replace(report, problems=(*report.problems, problem))


def _delete(paths: list[Path]) -> int:
    """Delete files; return the number of bytes freed."""
    freed = 0
    for path in paths:
        with os_errors("deleting", path):
            freed += path.stat().st_size
            path.unlink()
    for folder in sorted({path.parent for path in paths}):
        with os_errors("deleting in", folder):
            sync(folder)
    return freed
