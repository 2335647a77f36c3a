"""A service whose rows are in an engine, or whose store is in a bucket."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest
from engine_kit import EngineShop
from load_kit import Clients, Expected, judge, query_files
from s3_kit import S3Server
from serve_kit import Server, wait_for
from shop_kit import Shop, run

FORCE = ("--force", "--reason", "drill")


def test_no_answer_fails_or_is_mixed_during_switches(deployed: EngineShop) -> None:
    """Eight clients ask through ten deploys and rollbacks; each answer is that of its model."""
    shop = deployed.shop
    paths = query_files(shop, 4)
    expected = Expected(shop, paths)
    expected.learn()
    with Server(shop.folder) as server:
        clients = Clients([server, server], [path.read_bytes() for path in paths])
        with clients.asking(8):
            for number in range(10):
                if number % 2:
                    deployed.done("rollback")
                else:
                    deployed.done("deploy", "--model", shop.path("new.onnx"), *FORCE)
                wanted = expected.learn()
                wait_for(lambda n=wanted: server.status()["generation"] == n)
    seen = judge(clients, expected)
    assert len(seen) >= 10


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
