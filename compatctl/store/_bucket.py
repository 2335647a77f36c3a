"""Objects below a prefix of a bucket: whole reads, conditional writes, bounded retries.

obstore speaks S3 and is imported when a store in a bucket is opened. Endpoint, region and
credentials are those of the environment (``AWS_ENDPOINT_URL``, ``AWS_REGION``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN`` ...); nothing of them is
written or printed.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from compatctl.errors import CompatError, ConflictError, InputError, UsageError
from compatctl.libraries import require_library
from compatctl.progress import Stage, stage

PART_BYTES = 16 << 20
"""A larger file is uploaded in parts of this size; the object appears when all are there."""
_RETRIES = 4
_RETRY_S = 30.0
_PAUSE_S = 0.1
READ_S = 30
"""Seconds without a byte after which a request is given up and tried again."""
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
DENIED_TIP = (
    "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL; docs/stores.md lists "
    "the permissions that each command needs"
)
NETWORK_TIP = "nothing was changed by this request; look at the network and run the command again"


@dataclass(frozen=True, kw_only=True)
class RemoteObject:
    """The bytes of an object and its ETag."""

    data: bytes
    e_tag: str


class Unchanged:
    """Answer to a conditional read: the object still has the ETag that the caller knows."""


class AbsentError(Exception):
    """There is no such object."""


def endpoint() -> str:
    """The endpoint that the environment names, without a slash at the end; "" is AWS itself.

    Raises:
        UsageError: it is plain http to another machine, and AWS_ALLOW_HTTP does not allow that.
    """
    address = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    parts = urlsplit(address)
    if address and parts.scheme not in {"http", "https"}:
        raise UsageError(f"AWS_ENDPOINT_URL must begin with https://, got {parts.scheme or '-'}")
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true"}
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not allowed:
        raise UsageError(
            f"AWS_ENDPOINT_URL is plain http to {parts.hostname}: models and vectors would be "
            "readable on the way",
            tip="use https, or set AWS_ALLOW_HTTP=true in a network that you trust",
        )
    return address.rstrip("/")


def open_bucket(url: str) -> Bucket:
    """The objects of ``s3://BUCKET/PREFIX``; no request is made.

    Raises:
        InputError: obstore is not installed.
        UsageError: as ``endpoint``.
    """
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _opened(url, endpoint(), settings)


@lru_cache(maxsize=8)
def _opened(url: str, address: str, _settings: tuple[tuple[str, str], ...]) -> Bucket:
    require_library("obstore.store", extra="s3", subject=url)
    from obstore.store import S3Store

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    config: dict[str, Any] = {"endpoint": address} if address else {}

    def store(retries: int) -> S3Store:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options={
                "allow_http": address.startswith("http://"),
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": timedelta(seconds=READ_S),
                "timeout": timedelta(hours=6),
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=_RETRY_S),
                "backoff": {"max_backoff": timedelta(seconds=5)},
            },
        )

    return Bucket(url, store(_RETRIES), store(0))


class Bucket:
    """The objects below one prefix; names are relative to it.

    Every method raises ``InputError`` where the server denies access and ``CompatError`` where it
    does not answer within the retries. Safe in threads.
    """

    def __init__(self, url: str, store: Any, once: Any) -> None:
        self.url = url
        self._store = store
        self._once = once
        """The same without retries: a retried conditional write can be beaten by itself."""

    def name(self, name: str) -> str:
        """The URL of an object, for messages."""
        return f"{self.url}/{name}"

    def get(self, name: str, known: str | None = None) -> RemoteObject | Unchanged | None:
        """An object; None if there is none; ``Unchanged`` if its ETag is ``known``."""
        import obstore

        with self._errors("reading", name):
            try:
                options: Any = {"if_none_match": known} if known else {}
                result = obstore.get(self._store, name, options=options)
                return RemoteObject(data=bytes(result.bytes()), e_tag=_tag(result.meta, name))
            except FileNotFoundError:
                return None
            except obstore.exceptions.NotModifiedError:
                return Unchanged()

    def read(self, name: str) -> RemoteObject | None:
        """An object, or None."""
        found = self.get(name)
        assert not isinstance(found, Unchanged), "no ETag was given"
        return found

    def stream(self, name: str, part: Stage) -> Iterator[bytes]:
        """The bytes of an object in pieces, which ``part`` counts.

        Raises:
            AbsentError: there is none.
        """
        import obstore

        with self._errors("reading", name):
            try:
                result = obstore.get(self._store, name)
            except FileNotFoundError:
                raise AbsentError from None
            part.total = int(result.meta["size"])
            for piece in result.stream(min_chunk_size=1 << 20):
                yield bytes(piece)
                part.add(len(piece))

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None if there is none."""
        import obstore

        with self._errors("reading", name):
            try:
                return int(obstore.head(self._store, name)["size"])
            except FileNotFoundError:
                return None

    def written_at(self, name: str) -> datetime | None:
        """When an object was written, by the server's clock; None if there is none."""
        import obstore

        with self._errors("reading", name):
            try:
                written: datetime = obstore.head(self._store, name)["last_modified"]
            except FileNotFoundError:
                return None
            return written

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that does not exist yet (If-None-Match: *); False if it does."""
        import obstore

        with self._errors("writing", name):
            try:
                obstore.put(self._store, name, data, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
            return True

    def swap(self, name: str, data: bytes, e_tag: str | None) -> str:
        """Replace the object of this ETag (If-Match), or create it (None); return its new ETag.

        Where the connection breaks, the object is read: the write is repeated, or has happened.

        Raises:
            ConflictError: the object has another ETag, or exists already; nothing was written.
        """
        import obstore

        beaten = (obstore.exceptions.PreconditionError, obstore.exceptions.AlreadyExistsError)
        for left in reversed(range(_RETRIES)):
            try:
                mode: Any = "create" if e_tag is None else {"e_tag": e_tag}
                result = obstore.put(self._once, name, data, mode=mode)
                return _tag(result, name)
            except (*beaten, FileNotFoundError):
                raise ConflictError(f"{self.name(name)} was written by another") from None
            except obstore.exceptions.GenericError as error:
                found = self.read(name)  # raises if the server is gone
                if found is not None and found.data == data:
                    return found.e_tag
                if (found.e_tag if found else None) != e_tag:
                    raise ConflictError(f"{self.name(name)} was written by another") from None
                if not left:
                    failed = self._failed("writing", name, error)
                    raise failed from failed.__cause__
                time.sleep(_PAUSE_S * 2 ** (_RETRIES - left))
            except obstore.exceptions.BaseError as error:
                failed = self._failed("writing", name, error)
                raise failed from failed.__cause__
        raise AssertionError("the loop returns or raises")

    def upload(self, name: str, path: Path) -> None:
        """Write a file as an object whose name is its digest; who wrote it first, wrote the same.

        A damaged object of that name is replaced.
        """
        import obstore

        size = path.stat().st_size
        with self._errors("writing", name), stage(f"copying {name}", size, "bytes") as part:
            pieces = _pieces(path, part) if size > PART_BYTES else path
            obstore.put(self._store, name, pieces, chunk_size=PART_BYTES, max_concurrency=4)

    def sizes(self) -> dict[str, int]:
        """Every object below the prefix, and its size in bytes."""
        import obstore

        with self._errors("listing", ""):
            pages = obstore.list(self._store, chunk_size=1000)
            return {entry["path"]: int(entry["size"]) for page in pages for entry in page}

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; a missing one is no error."""
        import obstore

        for name in names:
            with self._errors("deleting", name), suppress(FileNotFoundError):
                obstore.delete(self._store, name)

    @contextmanager
    def _errors(self, doing: str, name: str) -> Iterator[None]:
        import obstore

        try:
            yield
        except obstore.exceptions.BaseError as error:
            failed = self._failed(doing, name, error)
            raise failed from failed.__cause__

    def _failed(self, doing: str, name: str, error: Exception) -> CompatError:
        import obstore

        denied = (
            obstore.exceptions.PermissionDeniedError,
            obstore.exceptions.UnauthenticatedError,
        )
        where, reason = self.name(name).rstrip("/"), _reason(error)
        failed: CompatError
        if isinstance(error, denied):
            failed = InputError(f"{doing} {where}: access denied ({reason})", tip=DENIED_TIP)
            failed.__cause__ = PermissionError(errno.EACCES, reason)
        elif "NoSuchBucket" in reason:
            failed = InputError(f"{doing} {where}: {reason}", tip="create the bucket first")
            failed.__cause__ = error
        else:
            failed = CompatError(f"{doing} {where}: {reason}", tip=NETWORK_TIP)
            failed.__cause__ = error
        return failed


def _tag(meta: Any, name: str) -> str:
    if not meta["e_tag"]:
        raise InputError(
            f"the server gave no ETag for {name}: writers could not be told apart",
            tip="docs/stores.md lists servers that were tried",
        )
    return str(meta["e_tag"])


def _reason(error: Exception) -> str:
    """The server's code and message, or the first line of the error; without addresses of keys."""
    text = str(error)
    code, message = (re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    if code is not None:
        return f"{code[1]}: {message[1]}" if message else code[1]
    line = text.partition("\n")[0]
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", line)
    return status[1].strip() if status else line.rpartition(" - ")[2][:200]


def _pieces(path: Path, part: Stage) -> Iterator[bytes]:
    """The bytes of a file, which are counted while they are sent."""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece
            part.add(len(piece))
