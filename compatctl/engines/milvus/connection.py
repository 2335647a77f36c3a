"""Clients of Milvus, and pymilvus's errors as this program's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from compatctl.engines.milvus.location import TOKEN_VARIABLE, CollectionLocation
from compatctl.engines.url import URL_VARIABLE
from compatctl.errors import CompatError, InputError
from compatctl.libraries import require_library

T = TypeVar("T")
Client = Any
"""A MilvusClient with a channel of its own."""

CALL_S = 10.0
"""Seconds for a call that reads or changes what a collection is."""
DATA_S = 120.0
"""Seconds for a call that reads rows or searches."""
_UNREACHABLE = 2
"""pymilvus's code of a server that does not answer."""


def require_pymilvus() -> None:
    """Refuse to go on without pymilvus.

    Raises:
        InputError: it is not installed, or does not load.
    """
    require_library("pymilvus", extra="milvus", subject="a collection of Milvus")


@contextmanager
def connect_milvus(location: CollectionLocation) -> Iterator[Client]:
    """A client for the block; every error of pymilvus in it becomes an InputError.

    Raises:
        InputError: pymilvus is not installed, or the server refuses.
        CompatError: the server cannot be reached.
    """
    with milvus_errors(location):
        client = open_client(location)
        try:
            yield client
        finally:
            client.close()


def open_client(location: CollectionLocation) -> Client:
    """A client that the caller closes; errors as ``connect_milvus``."""
    require_pymilvus()
    from pymilvus import MilvusClient

    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs each error that it raises
    with milvus_errors(location):
        return MilvusClient(dedicated=True, timeout=CALL_S, **location.connection_parameters())


@contextmanager
def milvus_errors(location: CollectionLocation) -> Iterator[None]:
    """pymilvus's errors as InputError, with the collection's URL and the server's own reason."""
    require_pymilvus()
    from grpc import RpcError
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, RpcError) as error:
        reason = " ".join(str(getattr(error, "message", "") or error).split())
        if isinstance(error, RpcError) or error.code == _UNREACHABLE:
            raise CompatError(
                f"{location.url}: the server cannot be reached, or broke off: {reason}",
                tip="compatctl doctor URL says what is missing; a token comes from "
                f"{TOKEN_VARIABLE} or {URL_VARIABLE}",
            ) from None
        raise InputError(
            f"{location.url}: {reason}", tip="compatctl doctor URL says what is missing"
        ) from None


class ClientPool:
    """One client of a server, for any number of threads; its channel connects again by itself."""

    def __init__(self, location: CollectionLocation) -> None:
        self._location = location
        self._client: Client = None
        self._lock = threading.Lock()

    def run(self, action: Callable[[Client], T]) -> T:
        """What ``action`` returns of the client.

        Raises:
            InputError, CompatError: as ``connect_milvus``.
        """
        with milvus_errors(self._location):
            with self._lock:
                if self._client is None:
                    self._client = open_client(self._location)
                client = self._client
            return action(client)

    def close(self) -> None:
        """Close the client; a later call opens a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def __del__(self) -> None:
        self.close()
