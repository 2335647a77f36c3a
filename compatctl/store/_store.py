"""Reading a store, and beginning a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from compatctl.errors import ConflictError, DamagedError, InputError, UsageError
from compatctl.files import MAX_POINTER_BYTES, has_digest, refuse_pointer, sha256_file
from compatctl.manifest import Catalog, Erasures, Manifest
from compatctl.store._layout import (
    NO_STORE_TIP,
    RESTORE_TIP,
    blob_path,
    generation_path,
    is_regular_file,
    manifest_digest,
    read_current,
    read_generation,
    read_manifest,
)
from compatctl.store._remote import pull, remote_of, shown_path, store_path
from compatctl.store._switch import Switch
from compatctl.store._transaction import Transaction


@dataclass(frozen=True)
class Store:
    """A store at one generation: ``manifest`` is that of the time of opening."""

    path: Path
    manifest: Manifest

    @classmethod
    def create(
        cls, path: Path, *, operation: str = "init", switch: Switch | None = None
    ) -> Transaction:
        """Begin a store: a transaction whose ``commit`` makes generation 1.

        ``switch``: of the engine that has the rows.

        ``path`` must be new, empty, or left by a killed creation. An unfinished store does not
        open: only the commit writes manifest.json.

        Raises:
            InputError: on entering, ``path`` is a store already or holds something else.
            ConflictError: on entering, another process is creating it.
        """
        return Transaction(store_path(path), None, operation=operation, switch=switch)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The store at its current generation; manifest.json and its copy in history/ are read.

        ``path``: its folder, or ``s3://BUCKET/PREFIX``, whose copy on this machine is brought to
        the bucket's generation.

        Raises:
            InputError: there is no store at ``path``, or it is of another format.
            DamagedError: its manifest is not what was written.
        """
        root = store_path(path)
        if (remote := remote_of(root)) and remote.pull() is None:
            raise InputError(f"{remote.url}: no store", tip=NO_STORE_TIP)
        return cls(root, read_current(root))

    @property
    def name(self) -> str:
        """The store's URL or folder, for people."""
        return shown_path(self.path)

    def has_moved(self) -> bool:
        """Whether there is a newer generation than ``manifest``: one small read, or of a store in a
        bucket one conditional request, which also brings this machine's copy up to date.

        Raises:
            DamagedError: manifest.json is not what was written.
            CompatError: the bucket does not answer.
        """
        pull(self.path)
        return read_manifest(self.path) != self.manifest

    def generation(self, number: int) -> Manifest:
        """This generation or an older one; the chain of parents down to it is verified.

        Raises:
            UsageError: there is no such generation.
            DamagedError: its file, or that of a later one, is missing or changed.
        """
        if not 1 <= number <= self.manifest.generation:
            raise UsageError(
                f"there is no generation {number}; the newest is {self.manifest.generation}"
            )
        while self._chain[-1].generation > number:
            child = self._chain[-1]
            if remote := remote_of(self.path):
                remote.generation(child.generation - 1, child.parent or "")
            before = read_generation(self.path, child.generation - 1)
            if child.parent != manifest_digest(before):
                raise DamagedError(
                    f"{generation_path(self.path, before.generation)} is not the parent that "
                    f"generation {child.generation} records",
                    tip=RESTORE_TIP,
                )
            self._chain.append(before)
        return self._chain[self.manifest.generation - number]

    @cached_property
    def _chain(self) -> list[Manifest]:
        """The generations read so far, newest first."""
        return [self.manifest]

    def history(self) -> tuple[Manifest, ...]:
        """Every generation, oldest first; the chain of parents is verified.

        Raises:
            DamagedError: one is missing or changed.
        """
        self.generation(1)
        return tuple(reversed(self._chain))

    def blob_path(self, kind: str, sha256: str) -> Path:
        """The path of a file of this kind (models, indexes, ...) and digest; it is not opened, and
        of a store in a bucket it need not be on this machine: see ``local_path``."""
        return blob_path(self.path, kind, sha256)

    def local_path(self, kind: str, sha256: str) -> Path:
        """``blob_path``, of a store in a bucket fetched if this machine lacks the file.

        It need not exist, as after gc.

        Raises:
            DamagedError: the file in the bucket is damaged.
            CompatError: the bucket does not answer.
        """
        if remote := remote_of(self.path):
            remote.fetch(kind, sha256)
        return blob_path(self.path, kind, sha256)

    def verified_path(self, kind: str, sha256: str, *, fresh: bool = False) -> Path:
        """``blob_path``, for a file whose bytes are verified to have that digest.

        A large file that was hashed before and not written to since is not read again, except with
        ``fresh``; use that for what goes into another generation.

        Raises:
            DamagedError: it is missing, or holds other bytes.
            InputError: it is a pointer of Git LFS or git-annex.
            ConflictError: gc deleted it, because this generation is no longer kept.
        """
        path, remote = self.local_path(kind, sha256), remote_of(self.path)
        try:
            if _is_intact(path, sha256, fresh=fresh):
                return path
            if remote and remote.fetch(kind, sha256, again=True) and _is_intact(path, sha256):
                return path
        except InputError:
            if is_regular_file(path):
                raise
        self.raise_if_collected()
        if remote:
            raise DamagedError(f"{remote.blob(kind, sha256)} is missing", tip=RESTORE_TIP)
        if is_regular_file(path):
            with path.open("rb") as file:
                refuse_pointer(path, file.read(MAX_POINTER_BYTES))
        raise DamagedError(f"{path} is missing or was changed", tip=RESTORE_TIP)

    def raise_if_collected(self) -> None:
        """Raise ConflictError if gc deleted files of a generation that was read through this store:
        a missing file is no damage then."""
        pull(self.path)
        newest, read = read_current(self.path), self._chain[-1].generation
        oldest_now, oldest_then = (
            max(state.oldest_restorable, state.oldest_gallery) for state in (newest, self.manifest)
        )
        if oldest_now > max(read, oldest_then):
            raise ConflictError(
                f"{self.name} moved on to generation {newest.generation} and deleted the files "
                f"of generation {read}, which was being read",
                tip="run the command again",
            )

    def catalog(self, manifest: Manifest | None = None) -> Catalog:
        """The rows of the gallery, of this generation by default.

        Raises:
            DamagedError: the file is missing, changed, or has another number of rows.
        """
        manifest = manifest or self.manifest
        path = self.verified_path("catalogs", manifest.catalog, fresh=True)
        catalog = Catalog.read(path)
        rows, count = len(catalog), manifest.index.count
        if rows != count:
            raise DamagedError(f"{path} has {rows} rows, the manifest {count}", tip=RESTORE_TIP)
        return catalog

    def erasures(self, manifest: Manifest | None = None) -> Erasures | None:
        """The erased ids and vectors, as of this generation by default; None if none were erased.

        Raises:
            DamagedError: the file is missing or changed.
        """
        digest = (manifest or self.manifest).erasures
        return None if digest is None else Erasures.read(self.verified_path("erasures", digest))

    def transaction(
        self,
        expected: Manifest,
        *,
        operation: str = "",
        timeout_s: float = 10.0,
        switch: Switch | None = None,
    ) -> Transaction:
        """Begin a write that was computed from the generation ``expected``.

        ``switch``: of the engine that has the rows; default: reached as the environment says.

        Raises:
            ConflictError: on entering, the store is locked longer than ``timeout_s`` seconds, or
                its current generation is another one.
        """
        return Transaction(
            self.path, expected, operation=operation, timeout_s=timeout_s, switch=switch
        )


def _is_intact(path: Path, sha256: str, *, fresh: bool = True) -> bool:
    """Whether a file is there and has this digest, as hashed now or, unless ``fresh``, before."""
    if not is_regular_file(path):
        return False
    return sha256_file(path) == sha256 if fresh else has_digest(path, sha256)
