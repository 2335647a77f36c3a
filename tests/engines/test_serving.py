"""A service whose rows are in an engine, or whose store is in a bucket."""

from __future__ import annotations

import secrets
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from engine_kit import EngineShop, image
from load_kit import SECONDS, Clients, Expected, judge, kill_and_replace, query_files
from s3_kit import S3Server
from serve_kit import Server, wait_for
from shop_kit import Shop, run

FORCE = ("--force", "--reason", "drill")


@pytest.mark.parametrize("deployed", ["pgvector", "milvus"], indirect=True)
def test_no_answer_fails_or_is_mixed_whatever_happens(deployed: EngineShop) -> None:
    """16 clients and two services; 20 deploys and rollbacks, five adds of rows that the application
    inserted, a backfill of a third, a damaged candidate, and a service that is killed."""
    shop = deployed.shop
    paths = query_files(shop, 4)
    expected = Expected(shop, paths)
    expected.learn()
    began = time.monotonic()
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(shop.folder)) for _ in range(2)]
        clients = Clients(servers, [path.read_bytes() for path in paths])
        with clients.asking(16):
            for number in range(20):
                if number % 2:
                    deployed.done("rollback")
                else:
                    deployed.done("deploy", "--model", shop.path("new.onnx"), *FORCE)
                _follow(servers, expected)
                if number % 4 == 1:
                    _insert(deployed, f"fresh-{number}")
                    deployed.done("add")
                    _follow(servers, expected)
            deployed.done("deploy", "--model", shop.path("new.onnx"), *FORCE)
            _follow(servers, expected)
            deployed.done("backfill", "--share", "0.34", *FORCE)
            _follow(servers, expected)
            _refuse_damaged(deployed)
            kill_and_replace(servers, stack)
            wait_for(lambda: time.monotonic() - began >= SECONDS, SECONDS + 60)
    seen = judge(clients, expected)
    assert len(seen) >= 25
    assert clients.moved > 0


def _follow(servers: list[Server], expected: Expected) -> None:
    wanted = expected.learn()
    wait_for(lambda: all(server.status()["generation"] == wanted for server in servers))


def _insert(deployed: EngineShop, item: str) -> None:
    """A row of the application: between two rows of the query model."""
    rows = deployed.gallery().vectors()[:2].sum(axis=0, keepdims=True)
    holder = deployed.table or deployed.collection
    assert holder is not None
    holder.insert([item], rows / np.linalg.norm(rows), ["fresh"])


def _refuse_damaged(deployed: EngineShop) -> None:
    """A candidate with a changed byte changes neither the store nor what the engine says."""
    whole = deployed.path("worse.onnx").read_bytes()
    bad = deployed.path("damaged.onnx")
    bad.write_bytes(whole[:2000] + b"\xff" * 40 + whole[2040:])
    before = deployed.done("status").json["head"]
    assert deployed.run("deploy", "--model", bad, *FORCE).code == 5
    assert deployed.done("status").json["head"] == before


def _unavailable(deployed: EngineShop) -> None:
    """Make the rows unreadable, as an administrator would."""
    if deployed.table is not None:
        deployed.table.execute("ALTER TABLE items RENAME TO elsewhere")
    else:
        assert deployed.collection is not None
        with deployed.collection.client() as client:
            client.release_collection(deployed.collection.name)


@pytest.mark.parametrize("deployed", ["pgvector", "milvus"], indirect=True)
def test_what_a_database_refuses_is_no_fault_of_the_query(deployed: EngineShop) -> None:
    """The answer is an internal error, which says nothing of the database; the log does. Rows that
    the application inserts refuse no query either, with --strict too."""
    body, first = image(deployed).read_bytes(), deployed.gallery().vectors()[:5]
    with Server(deployed.shop.folder, "--strict") as server:
        holder = deployed.table or deployed.collection
        assert holder is not None
        holder.insert([f"fresh-{number}" for number in range(5)], first)
        answer = server.ask("/v1/search?k=150", body)
        assert (answer.status, len(answer.json["hits"])) == (200, 150)
        assert not any(hit["id"].startswith("fresh") for hit in answer.json["hits"])
        _unavailable(deployed)
        refused = server.ask("/v1/search", body)
        assert (refused.status, refused.json["error"]) == (500, "internal")
        assert "127.0.0.1" not in refused.body.decode()
        assert "127.0.0.1" in server.said.partition("is served on")[2].partition("\n")[2]


def test_a_service_follows_a_store_in_a_bucket(
    s3: S3Server, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy and a rollback of one machine reach the service of another within two seconds; only
    what is new is fetched."""
    shop = Shop(tmp_path / "shop")
    shutil.copytree(begun, shop.folder, ignore=shutil.ignore_patterns("store"))
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / "ci"))
    store = ("--store", f"s3://stores/{secrets.token_hex(8)}")
    begin = shop.run("init", "--model", shop.path("old.onnx"), *store)
    assert begin.code == 0, begin.stderr
    query = query_files(shop, 1)[0].read_bytes()
    with Server(shop.folder, *store, COMPATCTL_CACHE=str(tmp_path / "serving")) as server:
        first = server.ask("/v1/search", query).json
        for arguments in (("deploy", "--model", shop.path("new.onnx"), *FORCE), ("rollback",)):
            done = run(*arguments, *shop.args, "--json", *store)
            assert done.code == 0, done.stderr
            wanted = done.json["generation"]
            took = wait_for(
                lambda n=wanted: server.ask("/v1/search", query).json["generation"] == n
            )
            assert took < 2.0
        last = server.ask("/v1/search", query).json
    assert (last["generation"], last["query_model"]) == (3, first["query_model"])
    assert [hit["id"] for hit in last["hits"]] == [hit["id"] for hit in first["hits"]]
    assert len(list((tmp_path / "serving").rglob("*.hnsw"))) == 1
