"""Writing a store in a bucket.

A commit is one conditional PUT of manifest.json. Everything that it names is there
before; its copy in history/ follows, and whoever commits next writes it if the writer was killed
between the two. So a file in history/ is always of a generation that was committed.

Who commits first declares the files that it needs (``writing/<id>.json``) and then looks at what is
about to be deleted (``deleting.json``); who deletes first says what, and then looks at what writers
need. Of two at once at least one sees the other, and the file stays or the writer is refused.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from compatctl.errors import CompatError, ConflictError, DamagedError, InputError, UsageError
from compatctl.files import (
    TEMPORARY,
    cache_folder,
    canonical_json,
    make_folder,
    os_errors,
    parse_json,
    read_json,
    sha256_bytes,
    sha256_file,
    store_url,
    write_atomic,
)
from compatctl.manifest import Manifest
from compatctl.store._bucket import endpoint
from compatctl.store._copy import (
    MAX_BYTES,
    PULL,
    REMOTE,
    URL,
    Copy,
    blob_name,
    generation_name,
    older_manifest,
)
from compatctl.store._layout import (
    MANIFEST,
    Blobs,
    blob_path,
    generation_path,
    is_regular_file,
    manifest_bytes,
    manifest_digest,
)

WRITING = "writing"
DELETING = "deleting.json"


def store_path(path: Path | str) -> Path:
    """The folder of a store: ``path`` itself, or for ``s3://BUCKET/PREFIX`` this machine's copy.

    Raises:
        UsageError: a URL that is none of a store, or there is no folder for caches.
    """
    url = store_url(path)
    if url is None:
        return Path(path)
    cache = cache_folder()
    if cache is None:
        raise UsageError(f"no folder for a copy of {url}", tip="set COMPATCTL_CACHE to one")
    root = cache / "stores" / _copy_name(url)
    if not is_regular_file(root / REMOTE / URL):
        try:
            _begin_copy(root, url)
        except CompatError as error:
            message = f"no room for this machine's copy of {url}: {error.message}"
            tip = "set COMPATCTL_CACHE to a folder that you may write to"
            raise type(error)(message, tip=tip) from error
    return root


def _begin_copy(root: Path, url: str) -> None:
    with os_errors("creating", root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_folder(root / REMOTE)
    write_atomic(root / REMOTE / URL, canonical_json({"format": 1, "url": url}))


def shown_path(root: Path) -> str:
    """How messages name a store: by its URL or its folder."""
    remote = remote_of(root)
    return remote.url if remote else str(root)


def remote_of(root: Path) -> Remote | None:
    """What a folder is this machine's copy of; None for a store of its own.

    Raises:
        InputError: the environment names another endpoint than when the copy was made.
    """
    path = root / REMOTE / URL
    if not is_regular_file(path):
        return None
    raw = read_json(path, MAX_BYTES, error=DamagedError)
    url = store_url(str(raw.get("url"))) if isinstance(raw, dict) else None
    if url is None or root.name != _copy_name(url):
        raise InputError(
            f"{root} is a copy of {url} at another endpoint than AWS_ENDPOINT_URL names",
            tip="name the store by its URL, --store s3://BUCKET/PREFIX",
        )
    return _remote(root, url)


def _copy_name(url: str) -> str:
    return sha256_bytes(f"{endpoint()} {url}".encode())[:32]


@lru_cache(maxsize=8)
def _remote(root: Path, url: str) -> Remote:
    return Remote(root=root, url=url)


def pull(root: Path) -> None:
    """Bring this machine's copy to the bucket's generation; nothing happens to other folders."""
    if remote := remote_of(root):
        remote.pull()


def store_exists(root: Path) -> bool:
    """Whether there is a store with a generation; of a bucket the copy is brought up to date."""
    pull(root)
    return (root / MANIFEST).exists()


def lies_at(root: Path) -> bool:
    """Whether anything lies at a store's path, a damaged store too; in a bucket: a manifest."""
    return store_exists(root) if is_in_bucket(root) else os.path.lexists(root)


def is_in_bucket(root: Path) -> bool:
    """Whether a folder is this machine's copy of a store in a bucket."""
    return is_regular_file(root / REMOTE / URL)


@dataclass(frozen=True, kw_only=True)
class Remote(Copy):
    """A store in a bucket, with this machine's copy: what writers and gc do."""

    def publish(self, before: Manifest | None, after: Manifest, e_tag: str | None) -> str:
        """Make ``after`` the bucket's generation: its files, then manifest.json in one conditional
        PUT, then its copy in history/. Returns the new ETag.

        Args:
            before: the generation that it was computed from, and the ``e_tag`` of its manifest.

        Raises:
            ConflictError: another writer was first, or a file that it needs is being deleted. The
                copy is then at the bucket's generation.
            DamagedError: a file that it names is neither here nor in the bucket.
            InputError: the server ignores conditions: two writers could both win.
        """
        self.refuse_careless_server()
        data = manifest_bytes(after)
        self._refuse_other(before, e_tag)
        needed = tuple(blob for blob in after.blobs() if not before or blob not in before.blobs())
        with self._declared(before, needed):
            for kind, sha256 in needed:
                self._provide(kind, sha256)
            if before is not None:
                self.bucket.create(generation_name(before.generation), manifest_bytes(before))
            self._refuse_older(before, after, e_tag)
            try:
                new = self.bucket.swap(MANIFEST, data, e_tag)
            except ConflictError:
                self._refuse_other(before, None)
                raise
        with suppress(CompatError):  # it is committed; the next writer writes the copy
            self.bucket.create(generation_name(after.generation), data)
        with self._lock(PULL, 60.0):
            local = self._local()
            if local is None or local.generation < after.generation:
                self._write(generation_path(self.root, after.generation), data)
                write_atomic(self.root / MANIFEST, data)
                self._write_state(e_tag=new, manifest=manifest_digest(after))
        return new

    def _refuse_other(self, before: Manifest | None, e_tag: str | None) -> None:
        """Raise ConflictError if the bucket is at another generation than ``before``."""
        now = self.pull()
        current = self._local()
        if current == before and (e_tag is None or e_tag == now):
            return
        at = f"generation {current.generation} ({current.operation})" if current else "nothing"
        base = f"generation {before.generation}" if before else "an empty prefix"
        raise ConflictError(
            f"{self.url} moved on to {at} while this was computed from {base}",
            tip="run the command again",
        )

    def _refuse_older(self, before: Manifest | None, after: Manifest, e_tag: str | None) -> None:
        """Raise DamagedError if ``after`` was committed before: manifest.json was put back then."""
        if self.bucket.size(generation_name(after.generation)) is None:
            return
        self._refuse_other(before, e_tag)
        raise self._damaged(f"{self.url}: {older_manifest(after.generation - 1)}")

    def _provide(self, kind: str, sha256: str) -> None:
        """See to it that the bucket has a file: the one of the copy, unless it is there.

        The copy's file is hashed before it goes up: a damaged one never replaces the bucket's.
        """
        name, path = blob_name(kind, sha256), blob_path(self.root, kind, sha256)
        size, copied = self.bucket.size(name), is_regular_file(path)
        if copied and size == path.stat().st_size:
            return
        if copied and sha256_file(path) == sha256:
            self.bucket.upload(name, path)
        elif not size:
            raise self._damaged(f"{self.bucket.name(name)} is missing or empty")

    @contextmanager
    def _declared(self, before: Manifest | None, needed: Blobs) -> Iterator[None]:
        """Say which files are needed, so that nobody deletes them until this has ended."""
        names = [blob_name(*blob) for blob in needed]
        base = before.generation if before else 0
        own = f"{WRITING}/{secrets.token_hex(16)}.json"
        self.bucket.create(own, canonical_json({"generation": base, "names": names}))
        try:
            if taken := sorted(set(names) & set(self._listed(DELETING))):
                raise ConflictError(
                    f"{self.bucket.name(taken[0])} is needed, and check --gc is deleting it",
                    tip="wait until it has ended, or finish it with compatctl check --gc; then run "
                    "the command again",
                )
            yield
        finally:
            with suppress(CompatError):
                self.bucket.delete([own])

    def needed_by_writers(self, names: Iterable[str], generation: int) -> tuple[set[str], set[str]]:
        """What writers at ``generation`` have declared, and the declarations of earlier ones, whose
        commit will be refused; ``names``: what the bucket has."""
        live, stale = set[str](), set[str]()
        for name in names:
            if name.startswith(f"{WRITING}/"):
                raw = self._json(name)
                base = raw.get("generation")
                if isinstance(base, int) and base < generation:
                    stale.add(name)
                else:
                    live |= {name, *map(str, raw.get("names", ()))}
        return live, stale

    def _listed(self, name: str) -> list[str]:
        return list(map(str, self._json(name).get("names", ())))

    def _json(self, name: str) -> dict[str, Any]:
        """An object of JSON, empty if there is none."""
        found = self.bucket.read(name)
        raw = parse_json(found.data, self.bucket.name(name), error=DamagedError) if found else {}
        return raw if isinstance(raw, dict) else {}

    def refuse_careless_server(self) -> None:
        """Write an object twice under conditions that forbid the second, once for each copy.

        Raises:
            InputError: the server ignores them, or does not know them.
        """
        state = self._state()
        if state.get("conditional"):
            return
        name, bucket = f"{TEMPORARY}{secrets.token_hex(16)}", self.bucket
        try:
            first = bucket.create(name, b"1") and not bucket.create(name, b"2")
            tag = bucket.read(name)
            second = tag is not None and bool(bucket.swap(name, b"3", tag.e_tag))
            with suppress(ConflictError):
                bucket.swap(name, b"4", tag.e_tag if tag else None)
                second = False
        except ConflictError:
            first = second = False
        finally:
            with suppress(CompatError):
                bucket.delete([name])
        if not (first and second):
            raise InputError(
                f"{self.url}: the server ignores If-None-Match or If-Match: of two writers at once "
                "both would win, and one's work would be lost",
                tip="docs/stores.md lists servers that keep to them; import from a bucket of "
                "another kind goes through a folder",
            )
        with self._lock(PULL, 60.0):
            self._write_state(conditional=True)
