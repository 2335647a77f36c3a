"""A store in a bucket whose rows are in a table: CI deploys, the application of a table reads."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

import pytest
from engine_kit import EngineShop, adopt
from kill_kit import killed
from postgres_kit import Table
from s3_kit import S3Server
from shop_kit import Shop

from compatctl.encoder import Encoder
from compatctl.store import Store, manifest_digest


@pytest.fixture
def both(
    s3: S3Server, shop: Shop, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> EngineShop:
    """The project with its store in a bucket and its rows in a table, and a passing report."""
    made = adopt(shop, table)
    shutil.rmtree(made.path("store"))
    table.execute("DROP TABLE compatctl_deployment")
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / "a"))
    file = made.path("compatctl.yaml")
    url = f"s3://stores/{secrets.token_hex(8)}"
    file.write_text(file.read_text().replace("store: store", f"store: {json.dumps(url)}"))
    made.done("import", table.url, "--model", made.path("old.onnx"))
    made.done("verify", made.path("new.onnx"), "--report", made.path("report.json"))
    return made


def _url(shop: EngineShop) -> str:
    lines = shop.path("compatctl.yaml").read_text().splitlines()
    return next(json.loads(line[7:]) for line in lines if line.startswith("store: "))


def _agrees(shop: EngineShop, generation: int) -> None:
    """The row is that of the bucket's generation."""
    assert shop.table is not None
    manifest = Store.open(_url(shop)).manifest  # type: ignore[arg-type]
    row = shop.table.row()
    assert row["epoch"] == manifest.generation == generation
    assert row["manifest"] == manifest_digest(manifest)
    assert row["query_model"] == manifest.query_model


def test_two_machines_share_bucket_and_row(
    both: EngineShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One machine deploys, another one with an empty cache rolls back: row and bucket agree."""
    both.done("deploy", "--report", both.path("report.json"))
    _agrees(both, 2)
    monkeypatch.setenv("COMPATCTL_CACHE", str(tmp_path / "b"))
    assert both.done("check").json["ok"]
    both.done("rollback")
    _agrees(both, 3)
    assert both.done("status").json["query_model"] == Encoder.load(both.path("old.onnx")).sha256


@pytest.mark.parametrize("point", ["before the row", "after the row"])
def test_a_deploy_to_a_bucket_that_was_killed_is_completed(both: EngineShop, point: str) -> None:
    """There manifest.json is the commit and the row follows: check says where the row is behind,
    and the next command that writes switches it."""
    words = ("deploy", *both.shop.args, "--report", both.path("report.json"))
    killed(point, *words)
    assert Store.open(_url(both)).manifest.generation == 2  # type: ignore[arg-type]
    assert both.table is not None
    if point == "before the row":
        assert both.table.row()["epoch"] == 1
        told = both.run("check")
        assert told.code == 5
        assert "cut off before the row was switched" in told.json["problems"][0]
    again = both.done("deploy", "--report", both.path("report.json")).json
    assert not again["written"]
    _agrees(both, 2)
    assert both.done("check").json["ok"]


@pytest.mark.parametrize("point", ["before the row", "after the row"])
def test_an_import_into_a_bucket_that_was_killed_is_completed(
    both: EngineShop, point: str, tmp_path: Path
) -> None:
    """The same command, run again, ends with the row of generation 1."""
    assert both.table is not None
    file = both.path("compatctl.yaml")
    old = _url(both)
    new = f"s3://stores/{secrets.token_hex(8)}"
    file.write_text(file.read_text().replace(old, new))
    both.table.execute("DROP TABLE compatctl_deployment")
    words = ("import", *both.shop.args, both.table.url, "--model", both.path("old.onnx"))
    killed(point, *words)
    both.done("import", both.table.url, "--model", both.path("old.onnx"))
    _agrees(both, 1)
    assert both.done("check").json["ok"]
