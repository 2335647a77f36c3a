"""A real standalone Milvus on random loopback ports, and collections in it."""

from __future__ import annotations

import fcntl
import importlib.util
import lzma
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient

TOKEN = "root:Milvus"
"""Of the server's first user."""
_ADVERTISED = ("proxy", "rootCoord", "queryCoord", "queryNode", "indexNode", "dataCoord",
               "dataNode")  # fmt: skip
_START_S = 120
_numbers = count()


@dataclass(frozen=True)
class MilvusServer:
    """A running server, which asks for ``TOKEN``; ``folder`` holds its data and log."""

    port: int
    folder: Path

    def client(self, database: str = "default") -> MilvusClient:
        """A client of the application."""
        uri = f"http://127.0.0.1:{self.port}"
        return MilvusClient(uri=uri, token=TOKEN, db_name=database, dedicated=True, timeout=30)


@contextmanager
def milvus_server(folder: Path) -> Iterator[MilvusServer]:
    """A server for the block, shared by the processes that name this folder: the first one starts
    it, and the last one ends it by its process id.

    The etcd inside it has a port that cannot be chosen, so that a machine runs one such server at a
    time: the server holds a lock of the machine while it runs, and another one waits for it.
    """
    folder.mkdir(exist_ok=True)
    data = folder / "data"
    with _users(folder) as users:
        if users == 0:
            data.mkdir()
            _start(data)
    try:
        yield MilvusServer(port=int((data / "port").read_text()), folder=data)
    finally:
        with _users(folder, leaving=True) as users:
            if users == 0:
                os.kill(int((data / "pid").read_text()), signal.SIGKILL)
                shutil.rmtree(data, ignore_errors=True)


@contextmanager
def _users(folder: Path, leaving: bool = False) -> Iterator[int]:
    """How many other processes use the server, while none of them comes or goes."""
    counter = folder / "users"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        users = int(counter.read_text()) if counter.exists() else 0
        yield users - 1 if leaving else users
        counter.write_text(str(users - 1 if leaving else users + 1))


def _start(folder: Path) -> None:
    proxy, metrics = _configured(folder)
    settings = {"DEPLOY_MODE": "STANDALONE", "METRICS_PORT": str(metrics)}
    settings["LD_LIBRARY_PATH"] = str(folder / "bin")
    machine = Path(tempfile.gettempdir()) / "compatctl-milvus.lock"
    with (folder / "log").open("wb") as log, machine.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the server inherits it
        process = subprocess.Popen(
            [folder / "bin" / "milvus", "run", "standalone"], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, **settings}, pass_fds=[lock.fileno()], start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, f"http://127.0.0.1:{metrics}/healthz", folder)
    except BaseException:
        process.kill()
        raise
    (folder / "port").write_text(str(proxy))
    (folder / "pid").write_text(str(process.pid))


def _configured(folder: Path) -> tuple[int, int]:
    """Unpack the programs and write the settings; the ports of the proxy and of /healthz."""
    spec = importlib.util.find_spec("milvus")
    assert spec is not None, "pip install milvus==2.3.5: these tests need the server"
    import milvus

    assert spec.submodule_search_locations
    (folder / "bin").mkdir()
    for packed in (Path(spec.submodule_search_locations[0]) / "data" / "bin").glob("*.lzma"):
        target = folder / "bin" / packed.stem
        with lzma.open(packed) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
        target.chmod(0o755)
    config = milvus.MilvusServerConfig(data_dir=str(folder))
    names = [name for name in config.configurable_items if name.endswith("_port")]
    *ports, metrics = _free_ports(len(names) + 1)
    chosen = dict(zip(names, ports, strict=True))
    config.update(**chosen)
    for name in _ADVERTISED:
        config.set(f"{name}.ip", "127.0.0.1")
    config.set("authorization_enabled", True)
    config.set("queryCoord.checkInterval", "100")
    config.set("queryCoord.distPullInterval", "100")
    config.set("proxy.timeTickInterval", "50")
    config.resolve()
    return chosen["proxy_port"], metrics


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _wait(process: subprocess.Popen[bytes], url: str, folder: Path) -> None:
    for _ in range(_START_S * 10):
        assert process.poll() is None, (folder / "log").read_text()[-4000:]
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if b"OK" in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError((folder / "log").read_text()[-4000:])


@dataclass(frozen=True)
class Collection:
    """A collection of an application."""

    server: MilvusServer
    name: str
    engine: str = "milvus"

    @classmethod
    def new(cls, server: MilvusServer) -> Collection:
        """A name that no collection has yet."""
        return cls(server=server, name=f"items_{os.getpid()}_{next(_numbers)}")

    @property
    def url(self) -> str:
        """The URL for import."""
        return self.url_of(self.name)

    def url_of(self, name: str, columns: str = "id=id&vector=embedding&label=label") -> str:
        """The URL of a collection or an alias."""
        return f"milvus://127.0.0.1:{self.server.port}/default/{name}?{columns}"

    def create(  # noqa: PLR0917
        self,
        ids: Sequence[object],
        vectors: NDArray[np.float32],
        labels: Sequence[str] | None = None,
        index: str = "HNSW",
        metric: str = "COSINE",
        load: bool = True,
        dynamic: bool = False,
    ) -> None:
        """Create the collection with these rows (N, D) and, unless it is "", an index."""
        whole = isinstance(ids[0], int)
        with self.client() as client:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=dynamic)
            kind = DataType.INT64 if whole else DataType.VARCHAR
            schema.add_field("id", kind, is_primary=True, **({} if whole else {"max_length": 300}))
            schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
            if not dynamic:
                schema.add_field("label", DataType.VARCHAR, max_length=300)
            client.create_collection(self.name, schema=schema)
            if index:
                parameters = client.prepare_index_params()
                chosen = {"M": 16, "efConstruction": 64} if index == "HNSW" else {"nlist": 8}
                chosen = {} if index in {"FLAT", "AUTOINDEX"} else chosen
                parameters.add_index(
                    "embedding", index_type=index, metric_type=metric, params=chosen
                )
                client.create_index(self.name, parameters)
        self.insert(ids, vectors, labels)
        if index and load:
            with self.client() as client:
                client.load_collection(self.name)

    def insert(
        self,
        ids: Sequence[object],
        vectors: NDArray[np.float32],
        labels: Sequence[str] | None = None,
        replace: bool = False,
    ) -> None:
        """Insert rows as the application would, or write them again."""
        names = labels if labels is not None else [""] * len(ids)
        rows = [
            {"id": item, "embedding": vector, "label": label}
            for item, vector, label in zip(ids, vectors, names, strict=True)
        ]
        with self.client() as client:
            (client.upsert if replace else client.insert)(self.name, rows)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows as the application would."""
        with self.client() as client:
            client.delete(self.name, ids=list(ids))

    def set(self, **entries: str) -> None:
        """Write properties by hand."""
        with self.client() as client:
            client.alter_collection_properties(
                self.name, {f"compatctl.{name}": value for name, value in entries.items()}
            )

    def row(self) -> dict[str, str]:
        """The row that the application reads."""
        with self.client() as client:
            found: dict[str, Any] = client.describe_collection(self.name)["properties"]
        prefix = "compatctl."
        return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

    @contextmanager
    def client(self) -> Iterator[MilvusClient]:
        """A client of the application."""
        client = self.server.client()
        try:
            yield client
        finally:
            client.close()
