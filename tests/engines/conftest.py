"""Servers that the tests of engines run against: real ones, whose absence is a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_kit import EngineShop, adopt
from postgres_kit import Server, Table, running_server
from s3_kit import S3Server, s3_server
from shop_kit import Shop


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that speaks S3, for the whole session."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """PostgreSQL 18 with pgvector, for the whole session."""
    with running_server() as server:
        yield server


@pytest.fixture
def table(postgres: Server) -> Table:
    """A database without a table yet."""
    return Table(server=postgres, database=postgres.database())


@pytest.fixture
def pg(shop: Shop, table: Table) -> EngineShop:
    """The project, imported from a table of PostgreSQL."""
    return adopt(shop, table)


@pytest.fixture(params=["folder", "pgvector"])
def deployed(request: pytest.FixtureRequest, shop: Shop) -> EngineShop:
    """The same project on each engine."""
    if request.param == "folder":
        return EngineShop(engine="folder", shop=shop, table=None)
    return adopt(shop, request.getfixturevalue("table"))
