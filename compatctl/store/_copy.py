"""A store in a bucket: the bucket has the truth, a folder of the cache is this machine's copy.

    CACHE/stores/<digest of endpoint and URL>/
      manifest.json, history/    as they were in the bucket when a command last asked
      models/ ...                files that commands needed here, each checked by its digest
      side/                      free vectors of this machine
      remote/url.json            what it is a copy of
      remote/state.json          the ETag of manifest.json, and what was found out about the server

Reading asks for manifest.json on condition that it changed; files are fetched when they are needed.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compatctl.errors import CompatError, DamagedError
from compatctl.files import (
    Lock,
    canonical_json,
    make_folder,
    os_errors,
    parse_json,
    read_json,
    sha256_bytes,
    sha256_file,
    write_atomic,
    write_blob,
)
from compatctl.manifest import Manifest
from compatctl.progress import stage
from compatctl.store._bucket import AbsentError, Bucket, Unchanged, open_bucket
from compatctl.store._layout import (
    BACKFILL,
    HISTORY,
    KINDS,
    MANIFEST,
    PENDING_SUFFIX,
    SIDE,
    blob_path,
    generation_path,
    is_regular_file,
    manifest_bytes,
    manifest_digest,
)

REMOTE = "remote"
URL, _STATE, PULL, _FETCH = "url.json", "state.json", "PULL", "FETCH"
_FETCH_S = 6 * 3600.0
_THREADS = 16
MAX_BYTES = 1 << 20
RECREATED_TIP = (
    "if the bucket was put back or the store made anew on purpose, delete this machine's copy, {}"
)


def blob_name(kind: str, sha256: str) -> str:
    """The name of a file of this kind and digest."""
    return f"{kind}/{sha256}{KINDS[kind]}"


def generation_name(generation: int) -> str:
    """The name of a generation's manifest in the history."""
    return f"{HISTORY}/{generation:06d}.json"


def older_manifest(generation: int) -> str:
    """The problem that the history in a bucket goes on after the current generation."""
    return (
        f"{MANIFEST} is of generation {generation}, and {HISTORY}/ goes on: an older {MANIFEST} "
        "was put back over a newer one"
    )


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A store in a bucket, and the folder ``root`` that is this machine's copy of it."""

    root: Path
    url: str

    @property
    def bucket(self) -> Bucket:
        """The objects, with the credentials that the environment has now."""
        return open_bucket(self.url)

    def pull(self) -> str | None:
        """Bring the copy to the bucket's generation; return the ETag of its manifest.json, or None
        if there is no store.

        One request if nothing changed. Generations that the copy lacks are fetched, files are not.

        Raises:
            DamagedError: the manifest is not what was written, or the bucket went back.
        """
        with self._lock(PULL, 60.0):
            local, state = self._local(), self._state()
            known = local is not None and state.get("manifest") == manifest_digest(local)
            found = self.bucket.get(MANIFEST, state.get("e_tag") if known else None)
            if isinstance(found, Unchanged):
                return str(state["e_tag"])
            if found is None:
                if local is not None:
                    raise self._went_back(local, "has no manifest.json")
                return None
            current = self._parsed(found.data)
            if local != current:
                self._advance(local, current)
            self._write_state(e_tag=found.e_tag, manifest=manifest_digest(current))
            return found.e_tag

    def generation(self, number: int, digest: str) -> Path:
        """The history file of a generation in the copy, fetched if it is missing or damaged.

        Raises:
            DamagedError: the bucket lacks it, or has another one than ``digest``.
        """
        path = generation_path(self.root, number)
        if not is_regular_file(path) or sha256_file(path) != digest:
            name = generation_name(number)
            found = self.bucket.read(name)
            if found is None or sha256_bytes(found.data) != digest:
                what = "is missing" if found is None else "was changed"
                raise self._damaged(f"{self.bucket.name(name)} {what}")
            self._write(path, found.data)
        return path

    def fetch(self, kind: str, sha256: str, *, again: bool = False) -> Path | None:
        """The path of a file in the copy, fetched and checked if it is missing; None if the bucket
        has none.

        ``again``: the copy is damaged; fetch the file once more.

        Raises:
            DamagedError: the bucket's file has other bytes than its name says.
        """
        path = blob_path(self.root, kind, sha256)
        if is_regular_file(path) and not again:
            return path
        with self._lock(_FETCH, _FETCH_S):
            if is_regular_file(path) and (not again or sha256_file(path) == sha256):
                return path
            try:
                write_blob(path.parent, KINDS[kind], lambda to: self._download(kind, sha256, to))
            except AbsentError:
                return None
            return path

    def _download(self, kind: str, sha256: str, path: Path) -> None:
        name = blob_name(kind, sha256)
        with path.open("xb") as file, stage(f"fetching {name}", unit="bytes") as part:
            for piece in self.bucket.stream(name, part):
                file.write(piece)
        if sha256_file(path) != sha256:
            raise self._damaged(
                f"{self.bucket.name(name)} was changed or cut off: its bytes are not those of its "
                "name"
            )

    def blob(self, kind: str, sha256: str) -> str:
        """The URL of a file, for messages."""
        return self.bucket.name(blob_name(kind, sha256))

    def holds(self, kind: str, sha256: str) -> bool:
        """Whether the bucket has a file, by its name and that it is not empty."""
        return bool(self.bucket.size(blob_name(kind, sha256)))

    def mirror(self, name: str) -> str | None:
        """Bring a small file of the copy to the bucket's state; return the ETag. A file that the
        bucket lacks stays in the copy: None."""
        found, path = self.bucket.read(name), self.root / name
        if found is None:
            return None
        if not is_regular_file(path) or path.read_bytes() != found.data:
            self._write(path, found.data)
        return found.e_tag

    def _lock(self, name: str, timeout_s: float) -> Lock:
        return Lock(self.root / REMOTE / name, timeout_s, "reading the bucket")

    def _local(self) -> Manifest | None:
        """The generation of the copy; None if it is damaged: then the bucket is read again."""
        path = self.root / MANIFEST
        if not is_regular_file(path):
            return None
        try:
            data = path.read_bytes()
            manifest = self._parsed(data)
            copied = generation_path(self.root, manifest.generation).read_bytes() == data
        except (CompatError, OSError):
            return None
        return manifest if copied else None

    def _parsed(self, data: bytes) -> Manifest:
        name = self.bucket.name(MANIFEST)
        manifest = Manifest.from_json(parse_json(data, name, error=DamagedError), name)
        if manifest_bytes(manifest) != data:
            raise self._damaged(f"{name}: not the bytes that were written; was it edited by hand?")
        return manifest

    def _advance(self, local: Manifest | None, current: Manifest) -> None:
        """Write the history up to ``current``, and then manifest.json, into the copy."""
        if local is not None and local.generation >= current.generation:
            raise self._went_back(local, f"is at another generation {current.generation}")
        files = self._missing_history(current)
        other = None if local is None else files.get(local.generation)
        if local is not None and other is not None and other != manifest_bytes(local):
            raise self._went_back(local, "has another history")
        for number in sorted(files):
            self._write(generation_path(self.root, number), files[number])
        self._write(generation_path(self.root, current.generation), manifest_bytes(current))
        write_atomic(self.root / MANIFEST, manifest_bytes(current))
        if local is not None and current.erasures is not None:
            self._forget(current, vectors=local.erasures != current.erasures)

    def _missing_history(self, current: Manifest) -> dict[int, bytes]:
        """The bytes of the generations before ``current`` that the copy lacks or has otherwise.

        One that the bucket lacks, or whose bytes are not those that the next one names, is left
        out with all before it: whoever needs it is told.
        """
        numbers = range(1, current.generation)
        absent = [n for n in numbers if not is_regular_file(generation_path(self.root, n))]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda n: self.bucket.read(generation_name(n)), absent)
            fetched = {n: file.data for n, file in zip(absent, found, strict=True) if file}
        files, expected = dict[int, bytes](), current.parent
        for number in reversed(numbers):
            path = generation_path(self.root, number)
            data = fetched.get(number) or (path.read_bytes() if is_regular_file(path) else b"")
            if sha256_bytes(data) != expected and number not in fetched:
                data = getattr(self.bucket.read(generation_name(number)), "data", b"")
                fetched[number] = data
            if sha256_bytes(data) != expected:
                break
            if number in fetched:
                files[number] = data
            name = self.bucket.name(generation_name(number))
            expected = Manifest.from_json(parse_json(data, name, error=DamagedError), name).parent
        return files

    def _forget(self, current: Manifest, *, vectors: bool) -> None:
        """Delete what may hold items that another machine erased: other galleries, as a reader may
        have fetched one again at the last moment, and where items were erased now, free vectors."""
        kept = {blob_path(self.root, *blob) for blob in current.blobs()}
        paths = [path for kind in KINDS for path in (self.root / kind).glob(f"*{KINDS[kind]}")]
        paths += (self.root / SIDE).glob("*.vectors") if vectors else ()
        paths += (self.root / BACKFILL).glob(f"*{PENDING_SUFFIX}")
        with os_errors("deleting in", self.root):
            for path in set(paths) - kept:
                path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        with os_errors("creating", path.parent):
            make_folder(path.parent)
        write_atomic(path, data)

    def _state(self) -> dict[str, Any]:
        path = self.root / REMOTE / _STATE
        try:
            raw = read_json(path, MAX_BYTES) if os.path.lexists(path) else {}
        except CompatError:
            return {}
        return raw if isinstance(raw, dict) else {}

    def _write_state(self, **changes: object) -> None:
        write_atomic(self.root / REMOTE / _STATE, canonical_json({**self._state(), **changes}))

    def _went_back(self, local: Manifest, what: str) -> DamagedError:
        return DamagedError(
            f"{self.url} {what}, and this machine has seen its generation {local.generation}",
            tip=RECREATED_TIP.format(self.root),
        )

    def _damaged(self, message: str) -> DamagedError:
        return DamagedError(
            message, tip="restore the object from a backup; compatctl check lists every problem"
        )
