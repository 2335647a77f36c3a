"""A real ``compatctl serve`` in a process of its own, and a client for it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import compatctl

ROOT = Path(compatctl.__file__).parent.parent
START_S = 180.0
"""Seconds that several processes may take to start on a machine that does other work."""


@dataclass(frozen=True)
class Reply:
    """The status, headers and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Server:
    """``compatctl serve`` of a project folder; a context manager that stops it.

    ``program``: what Python runs; ``start_new_session``: in a process group of its own.
    """

    def __init__(
        self,
        folder: Path,
        *options: object,
        program: Sequence[str] = ("-m", "compatctl"),
        start_new_session: bool = False,
        **environment: str,
    ) -> None:
        self.folder = folder
        command = [sys.executable, *program, "serve", "--port", "0", "--json"]
        kept = {key: value for key, value in os.environ.items() if key != "COMPATCTL_TOKEN"}
        self.errors = (folder / "serve.err").open("w+")
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=start_new_session,
            env={**kept, "PYTHONPATH": str(ROOT), **environment},
        )
        self.port = 0

    def __enter__(self) -> Self:
        try:
            wait_for(lambda: self._find_port() or self.process.poll() is not None, START_S)
            assert self.port, self.said
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    @property
    def said(self) -> str:
        """What it wrote to stderr so far."""
        return (self.folder / "serve.err").read_text()

    def _find_port(self) -> bool:
        _, sign, rest = self.said.partition("is served on http://")
        if sign:
            self.port = int(rest.split()[0].rpartition(":")[2])
        return bool(sign)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, Any]:
        """Stop it; the exit code and what it printed at the end."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, json.loads(out) if out else None

    def ask(
        self,
        path: str = "/v1/search",
        body: bytes | str | Mapping[str, Any] | None = None,
        **headers: str,
    ) -> Reply:
        """Send a request on a connection of its own: POST with a body, else GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            return request(connection, path, body, headers)
        finally:
            connection.close()

    def status(self) -> Any:
        """``/v1/status``."""
        return self.ask("/v1/status").json


def request(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes | str | Mapping[str, Any] | None,
    headers: Mapping[str, str],
) -> Reply:
    """Send a request on a connection."""
    kind = "application/octet-stream"
    if isinstance(body, Mapping):
        kind, body = "application/json", json.dumps(body)
    elif isinstance(body, str):
        kind = "text/plain"
    data = body.encode() if isinstance(body, str) else body
    given = {"Content-Type": kind} | {name.replace("_", "-"): v for name, v in headers.items()}
    connection.request("GET" if data is None else "POST", path, data, given)
    answer = connection.getresponse()
    return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait until something holds; the seconds that it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "it took too long"
        time.sleep(0.01)
    return time.monotonic() - began
