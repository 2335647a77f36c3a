"""Running the application: uvicorn on one address, and a clean end."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from compatctl.errors import InputError, UsageError

KEEP_ALIVE_S = 5
HEADERS_S = 1
"""Seconds that a request's headers get at least."""
DRAIN_S = 20
"""Seconds that running requests get at the end."""

MAX_CONNECTIONS = 1000

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


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


def local_names(host: str, listener: socket.socket) -> frozenset[str]:
    """The names of this machine by which callers reach a service on a loopback address."""
    names = (*_LOCAL_NAMES, host, str(listener.getsockname()[0]))
    return frozenset(name.lower() for name in names)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0: any free one.

    What it accepts sends each part of an answer at once. asyncio sees to that only where a socket
    names its protocol, and otherwise the end of an answer waits for the caller's delayed
    acknowledgement, 40 ms.

    Raises:
        InputError: the port is in use, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
        return listener
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            tip="choose another one with --port; 0 takes any free port",
        ) from error


class _PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """HTTP that closes a connection whose request does not begin in ``headers_s`` seconds, or whose
    caller does not take what was answered in that time.

    Without it a caller could hold every connection, with or without the token. What becomes of a
    request after its headers is the application's to limit.
    """

    headers_s: float
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        self._forget_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def _expect_headers(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.headers_s, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._expect_reading()

    def _expect_reading(self) -> None:
        """End the connection, with what the caller has not taken, in a while: closing waits for
        the caller."""
        if self._unread is None:
            self._unread = self.loop.call_later(self.headers_s, self.transport.abort)

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def run(
    app: FastAPI,
    listener: socket.socket,
    *,
    seconds: float,
    started: Callable[[], None],
    beat: Callable[[], None],
) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; running requests end first.

    ``seconds``: in which the headers of a request must be there. ``beat`` is called several times a
    second while requests are taken.

    Raises:
        KeyboardInterrupt, SystemExit: Ctrl-C or another of the signals came before it had started.
    """
    early: list[int] = []

    class Protocol(_PatientProtocol):
        headers_s = max(HEADERS_S, seconds)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            early.extend(received)  # before uvicorn took the signals
            self.should_exit |= bool(early)
            if not self.should_exit:
                started()

        async def on_tick(self, counter: int) -> bool:
            beat()
            return await super().on_tick(counter)

    config = uvicorn.Config(
        app,
        http=Protocol,
        log_level="error",  # warnings are of what callers send
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        limit_concurrency=MAX_CONNECTIONS,
        lifespan="off",
    )
    with _quiet_end() as received, kept_from_collections():
        Server(config).run(sockets=[listener])
    if early:
        raise KeyboardInterrupt if early[0] == signal.SIGINT else SystemExit(TERMINATED)


@contextmanager
def kept_from_collections() -> Iterator[None]:
    """Keep what is loaded by now out of garbage collections, which stop every thread.

    A full one looks most of its time at modules, which stay anyway. What nothing refers to any more
    is freed all the same, as a generation is after a switch.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _quiet_end() -> Iterator[list[int]]:
    """uvicorn ends on these signals, and then raises them again: that is no error here. Yields
    those that came while uvicorn did not take them.

    SIGHUP, which a terminal sends that is closed, is as SIGTERM, unless it is ignored (``nohup``).
    """

    received: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        received.append(number)

    def end(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


TERMINATED = 128 + signal.SIGTERM
"""The exit code that a shell shows of a process that SIGTERM ended."""
