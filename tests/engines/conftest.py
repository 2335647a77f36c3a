"""Servers that the tests of engines run against: real ones, whose absence is a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from engine_kit import EngineShop, adopt
from milvus_kit import TOKEN, Collection, MilvusServer, milvus_server
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


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """Milvus 2.3, for the whole session and every worker of it; it asks for a token."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with milvus_server(shared / "milvus") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILVUS_TOKEN", TOKEN)
        yield server


@pytest.fixture
def collection(milvus: MilvusServer) -> Collection:
    """A name for a collection that is not there yet."""
    return Collection.new(milvus)


@pytest.fixture
def mv(shop: Shop, collection: Collection) -> EngineShop:
    """The project, imported from a collection of Milvus."""
    return adopt(shop, collection)


@pytest.fixture(params=["folder", "pgvector", "milvus"])
def deployed(request: pytest.FixtureRequest, shop: Shop) -> EngineShop:
    """The same project on each engine."""
    if request.param == "folder":
        return EngineShop(engine="folder", shop=shop, table=None)
    of = {"pgvector": "table", "milvus": "collection"}
    return adopt(shop, request.getfixturevalue(of[request.param]))
