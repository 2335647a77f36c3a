"""Running the application: uvicorn on one address, and a clean end."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from compatctl.errors import InputError, UsageError

KEEP_ALIVE_S = 5
DRAIN_S = 20
"""Seconds that running requests get at the end."""

MAX_CONNECTIONS = 1000


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    Raises:
        UsageError: the host has no address.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"--host {host}: no address of this machine: {error.strerror or error}",
            tip="127.0.0.1 serves this machine alone",
        ) from error
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0: any free one.

    Raises:
        InputError: the port is in use, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            tip="choose another one with --port; 0 takes any free port",
        ) from error


def run(app: FastAPI, listener: socket.socket, *, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests end first."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        limit_concurrency=MAX_CONNECTIONS,
        lifespan="off",
    )
    with _quiet_end():
        Server(config).run(sockets=[listener])


@contextmanager
def _quiet_end() -> Iterator[None]:
    """uvicorn ends on these signals, and then raises them again: that is no error here."""

    def ignore(number: int, frame: FrameType | None) -> None:
        return None

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
