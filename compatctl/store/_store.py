"""A store as readers see it, and the way back to an older generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from compatctl.errors import ConflictError, DamagedError, UsageError
from compatctl.files import sha256_file
from compatctl.manifest import Catalog, Manifest
from compatctl.progress import Progress, silent
from compatctl.store._check import CheckReport, check
from compatctl.store._layout import (
    blob_path,
    generation_path,
    manifest_digest,
    need_blobs,
    read_current,
    read_generation,
)
from compatctl.store._transaction import Transaction

_RESTORED = (
    "query_model",
    "index",
    "catalog",
    "models",
    "registry",
    "report",
    "policy",
    "forced_reason",
)


@dataclass(frozen=True)
class Store:
    """A store at one generation: ``manifest`` stays what it was when the store was opened."""

    path: Path
    manifest: Manifest

    @classmethod
    def create(cls, path: Path, *, operation: str = "init", timeout_s: float = 10.0) -> Transaction:
        """Begin a store: a transaction whose ``commit`` makes generation 1.

        ``path`` must be new, empty, or what a killed creation left. Until the commit there is no
        manifest.json, so that nothing half made opens.

        Raises:
            InputError: on entering, ``path`` is a store already or holds something else.
            ConflictError: on entering, another process is creating it.
        """
        return Transaction(Path(path), None, operation=operation, timeout_s=timeout_s)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The store at its current generation; nothing but manifest.json is read.

        Raises:
            InputError: there is no store at ``path``, or it is of a newer format.
            DamagedError: its manifest is not what was written.
        """
        return cls(Path(path), read_current(Path(path)))

    def generation(self, number: int) -> Manifest:
        """An older generation, or this one.

        Raises:
            UsageError: there is no such generation.
            DamagedError: its file is missing or changed.
        """
        if not 1 <= number <= self.manifest.generation:
            raise UsageError(
                f"there is no generation {number}; the newest is {self.manifest.generation}"
            )
        if number == self.manifest.generation:
            return self.manifest
        return read_generation(self.path, number)

    def history(self) -> tuple[Manifest, ...]:
        """Every generation, oldest first, after each was found to name the digest of the last.

        Raises:
            DamagedError: one is missing or changed.
        """
        found = [self.generation(number + 1) for number in range(self.manifest.generation)]
        for before, after in pairwise(found):
            if after.parent != manifest_digest(before):
                raise DamagedError(
                    f"{generation_path(self.path, before.generation)} is not the parent that "
                    f"generation {after.generation} records"
                )
        return tuple(found)

    def path_of(self, kind: str, sha256: str) -> Path:
        """Where the file of that kind (models, indexes, ...) and digest is; it is not opened."""
        return blob_path(self.path, kind, sha256)

    def verified(self, kind: str, sha256: str) -> Path:
        """``path_of``, after the file's bytes were found to have that digest.

        Raises:
            DamagedError: it is missing, or holds other bytes.
        """
        path = blob_path(self.path, kind, sha256)
        if not path.is_file() or sha256_file(path) != sha256:
            raise DamagedError(
                f"{path} is missing or was changed",
                tip="restore the file from a backup; compatctl check lists all that is wrong",
            )
        return path

    def catalog(self) -> Catalog:
        """The rows of this generation's gallery.

        Raises:
            DamagedError: the file is missing, changed, or of another number of rows.
        """
        path = self.verified("catalogs", self.manifest.catalog)
        found = Catalog.read(path)
        if len(found) != self.manifest.index.count:
            raise DamagedError(
                f"{path} has {len(found)} rows, the manifest {self.manifest.index.count}"
            )
        return found

    def transaction(
        self, expected: Manifest, *, operation: str = "", timeout_s: float = 10.0
    ) -> Transaction:
        """Begin a write that was computed from the generation ``expected``.

        Raises:
            ConflictError: on entering, the store is locked longer than ``timeout_s`` seconds, or
                its current generation is another one.
        """
        return Transaction(self.path, expected, operation=operation, timeout_s=timeout_s)

    def rollback(
        self,
        *,
        at: str,
        to: int | None = None,
        discard_added: bool = False,
        timeout_s: float = 10.0,
    ) -> Manifest:
        """Make a new generation that restores an older one whole, as ``rollback_plan`` says.

        Neither an index nor a catalogue is read or written. ``at`` is the time, ISO 8601, UTC.

        Raises:
            UsageError, ConflictError, DamagedError: as ``rollback_plan`` and ``transaction``.
        """
        with self.transaction(self.manifest, operation="rollback", timeout_s=timeout_s) as tx:
            target = rollback_plan(self, to=to, discard_added=discard_added).target
            restored = {name: getattr(target, name) for name in _RESTORED}
            return tx.commit(
                operation="rollback", created_at=at, restores=target.generation, **restored
            )

    def check(
        self, *, gc: bool = False, deep: bool = True, progress: Progress = silent
    ) -> CheckReport:
        """Look at everything: history, files, and with ``deep`` their bytes and the catalogue.

        Raises:
            ConflictError: ``gc`` needs the lock, and another process holds it.
        """
        return check(self.path, gc=gc, deep=deep, progress=progress)


@dataclass(frozen=True, kw_only=True)
class RollbackPlan:
    """The generation that a rollback restores, and how many of today's rows it does not have."""

    target: Manifest
    dropped_rows: int


def rollback_plan(
    store: Store, *, to: int | None = None, discard_added: bool = False
) -> RollbackPlan:
    """What a rollback would restore; nothing is written.

    Without ``to`` it is the state before the last change of the query model that still stands: a
    generation which restored N counts as N, so that a second rollback goes further back.

    Raises:
        UsageError: there is no generation ``to``, it is the current one, or nothing is to undo.
        ConflictError: rows were added since the target, and ``discard_added`` is false.
        DamagedError: a file that the target needs is missing.
    """
    now = store.manifest
    if to == now.generation:
        raise UsageError(f"generation {to} is the current one: there is nothing to restore")
    target = store.generation(to) if to is not None else _before_last_deploy(store)
    need_blobs(store.path, target)
    dropped = _dropped_rows(store, target)
    if dropped and not discard_added:
        raise ConflictError(
            f"generation {target.generation} has {target.index.count} rows, and {dropped} of the "
            f"{now.index.count} rows of today were added after it: they would be dropped",
            tip="compatctl rollback --discard-added drops them; deploying the old model keeps them",
        )
    return RollbackPlan(target=target, dropped_rows=dropped)


def _before_last_deploy(store: Store) -> Manifest:
    for state in _lineage(store, store.manifest):
        if state.query_model != store.manifest.query_model:
            return state
    raise UsageError(
        "no earlier generation had another query model: there is no deploy to undo",
        tip="compatctl history lists the generations; --to restores any of them",
    )


def _dropped_rows(store: Store, target: Manifest) -> int:
    """Today's rows that the last state which both descend from did not have: none is renamed."""
    if target.catalog == store.manifest.catalog:
        return 0
    known = {state.generation for state in _lineage(store, target)}
    shared = next(s for s in _lineage(store, store.manifest) if s.generation in known)
    return max(0, store.manifest.index.count - shared.index.count)


def _lineage(store: Store, start: Manifest) -> Iterator[Manifest]:
    """The states that led to ``start``, newest first, without what rollbacks undid."""
    state = start
    while True:
        while state.restores is not None:
            state = store.generation(state.restores)
        yield state
        if state.generation == 1:
            return
        state = store.generation(state.generation - 1)
