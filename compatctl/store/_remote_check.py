"""What check and gc do to a store in a bucket: the bucket's objects are looked at, not the copy."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from compatctl.errors import CompatError, ConflictError
from compatctl.files import TEMPORARY, canonical_json, sha256_bytes
from compatctl.manifest import Manifest
from compatctl.progress import Progress, stage
from compatctl.store._bucket import AbsentError
from compatctl.store._copy import blob_name, generation_name, older_manifest
from compatctl.store._layout import ATTEMPTS, HISTORY, Blobs, is_own_name, manifest_digest
from compatctl.store._remote import DELETING, Remote

_THREADS = 16
_RENEW_S = 10.0
DEAD_S = 120.0
"""Seconds after which a gc that wrote nothing counts as killed."""


@dataclass(frozen=True, kw_only=True)
class BucketFiles:
    """The objects of a store, as listed: name and size in bytes."""

    remote: Remote
    sizes: dict[str, int]

    @classmethod
    def of(cls, remote: Remote) -> BucketFiles:
        """Those that are there now, after the copy was brought to the bucket's generation."""
        return cls(remote=remote, sizes=remote.bucket.sizes())

    def history_problems(self, generations: Sequence[Manifest]) -> list[str]:
        """Generations whose file in the bucket is missing or changed; that of the newest may be
        missing, because its writer was killed: the next one writes it."""
        bucket = self.remote.bucket
        newest = max((state.generation for state in generations), default=0)

        def problem(state: Manifest) -> str:
            name = generation_name(state.generation)
            found = bucket.read(name)
            if found is None:
                return f"{bucket.name(name)} is missing" if state.generation < newest else ""
            same = sha256_bytes(found.data) == manifest_digest(state)
            return "" if same else f"{bucket.name(name)} was changed"

        with ThreadPoolExecutor(_THREADS) as pool:
            problems = [found for found in pool.map(problem, generations) if found]
        if generation_name(newest + 1) in self.sizes:
            problems.append(f"{self.remote.url}: {older_manifest(newest)}")
        return problems

    def problems(self, needed: Blobs, *, deep: bool, progress: Progress) -> list[str]:
        """Files that are missing or empty; ``deep``: that have other bytes than their names say."""
        problems = []
        for checked, blob in enumerate(needed):
            progress("checking files", checked, len(needed))
            size = self.sizes.get(blob_name(*blob))
            where = self.remote.blob(*blob)
            if not size:
                problems.append(f"{where} is {'missing' if size is None else 'empty'}")
            elif deep and self._digest(blob_name(*blob)) != blob[1]:
                problems.append(f"{where} was changed: its bytes are not those of its name")
        progress("checking files", len(needed), len(needed))
        return problems

    def _digest(self, name: str) -> str:
        """The sha256 of an object, "" if it has gone; it is not kept."""
        digest = hashlib.sha256()
        try:
            with stage(f"reading every byte of {name}", unit="bytes") as part:
                for piece in self.remote.bucket.stream(name, part):
                    digest.update(piece)
        except AbsentError:
            return ""
        return digest.hexdigest()

    def fetch(self, blobs: Iterable[tuple[str, str]]) -> None:
        """Fetch files that are to be read; what is damaged or missing is reported elsewhere."""
        for blob in blobs:
            with suppress(CompatError):
                self.remote.fetch(*blob, again=True)

    def fetch_attempts(self) -> None:
        """Bring the copy's files of attempts to the bucket's state."""
        for name in self.sizes:
            if name.startswith(f"{ATTEMPTS}/"):
                self.remote.mirror(name)

    def bytes(self, needed: Blobs) -> int:
        """The size of the files that are there."""
        return sum(self.sizes.get(blob_name(*blob), 0) for blob in needed)

    def unreferenced(self, current: Manifest, needed: Blobs) -> tuple[str, ...]:
        """Objects with names that only this program gives, and that nothing needs: no kept
        generation, and no writer that is at work on the current one."""
        kept = {blob_name(*blob) for blob in needed}
        kept |= {generation_name(n + 1) for n in range(current.generation)}
        live, stale = self.remote.needed_by_writers(self.sizes, current.generation)
        own = {name for name in self.sizes if is_own_name(*name.rpartition("/")[::2])}
        return tuple(sorted((own | stale) - kept - live))


def erased_names(generations: Iterable[Manifest], current: Manifest, kept: Blobs) -> set[str]:
    """The names of files of generations before the last erasure that no kept generation needs."""
    before = [state for state in generations if state.generation < current.oldest_gallery]
    return {blob_name(*blob) for state in before for blob in state.blobs()} - {
        blob_name(*blob) for blob in kept
    }


def delete_objects(
    files: BucketFiles, current: Manifest, names: Sequence[str], last: set[str]
) -> tuple[tuple[str, ...], int]:
    """Delete objects that no kept generation needs, those of ``last`` at the end; return the names
    and the bytes freed.

    They are listed in ``deleting.json`` first. What a writer declared before that is left for
    another time; who declares it after that is refused.

    Raises:
        ConflictError: another gc is at work.
    """
    remote, bucket = files.remote, files.remote.bucket
    if not names and DELETING not in files.sizes:
        return (), 0
    notice = _Notice.written(remote, names)
    listed = bucket.sizes()
    live, _ = remote.needed_by_writers(listed, current.generation)
    # Generations that no commit made first, so that none names a deleted file.
    order = sorted(
        (name for name in names if name not in live and name in listed),
        key=lambda name: (name in last, not name.startswith(f"{HISTORY}/"), name),
    )
    for name in order:
        notice.renew()
        bucket.delete([name])
    bucket.delete([DELETING])
    return tuple(sorted(order)), sum(listed[name] for name in order)


@dataclass
class _Notice:
    """``deleting.json`` of a gc at work: written again every ``_RENEW_S`` seconds, so that another
    can tell whether it was killed."""

    remote: Remote
    names: Sequence[str]
    tag: str
    renewed: float

    @classmethod
    def written(cls, remote: Remote, names: Sequence[str]) -> _Notice:
        """Write it; raise ConflictError unless there is none, or only a killed gc's."""
        known = remote.bucket.read(DELETING)
        if known is not None and (age := _age(remote)) < DEAD_S:
            raise ConflictError(
                f"another check --gc has been deleting in {remote.url}, last {age:.0f} s ago",
                tip=f"let it end; if it was killed, run the command again after {DEAD_S:.0f} s",
            )
        tag = remote.bucket.swap(DELETING, _notice(names), known.e_tag if known else None)
        return cls(remote, names, tag, time.monotonic())

    def renew(self) -> None:
        """Say that this gc is at work; raise ConflictError if another has taken over."""
        if time.monotonic() - self.renewed > _RENEW_S:
            self.tag = self.remote.bucket.swap(DELETING, _notice(self.names), self.tag)
            self.renewed = time.monotonic()


def _notice(names: Sequence[str]) -> bytes:
    return canonical_json({"names": sorted(names), "id": secrets.token_hex(16)})


def _age(remote: Remote) -> float:
    """Seconds since ``deleting.json`` was written, by the server's clock."""
    clock = f"{TEMPORARY}{secrets.token_hex(16)}"
    remote.bucket.create(clock, b"")
    now, written = remote.bucket.written_at(clock), remote.bucket.written_at(DELETING)
    remote.bucket.delete([clock])
    return (now - written).total_seconds() if now and written else 0.0
