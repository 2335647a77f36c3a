"""What holds on every engine: the folder, and a table of PostgreSQL that an application owns."""

from __future__ import annotations

import numpy as np
import pytest
from engine_kit import EngineShop

from compatctl.core.nearest import exact_search
from compatctl.encoder import Encoder


def test_the_whole_gallery_of_the_engine_is_judged(deployed: EngineShop) -> None:
    """verify searches every stored row, as the engine has it."""
    report = deployed.done("verify", deployed.path("new.onnx")).json
    assert report["verdict"]["outcome"] == "pass"
    rows = deployed.gallery().manifest.index.count
    assert report["store"]["stored_vectors"] == rows > 100
    assert report["ann"]["recall_needed"] >= 0.95


def test_the_stored_rows_are_those_of_the_model(deployed: EngineShop) -> None:
    """The rows, read whole or by key, are the old model's embeddings of the items."""
    gallery = deployed.gallery()
    rows = gallery.vectors()
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    keys = gallery.catalog.keys[[5, 3, 3, 40]]
    assert np.array_equal(gallery.index.vectors(keys), rows[[5, 3, 3, 40]])
    assert np.array_equal(gallery.index.vectors(), rows)


def test_search_finds_what_exact_search_finds(deployed: EngineShop) -> None:
    """With an effort above the number of rows, keys and cosines are those of the reference; also
    where more rows are wanted than an index scan returns."""
    gallery = deployed.gallery()
    rows = gallery.vectors()
    queries = rows[:20]
    for k in (7, len(rows)):
        keys, scores = gallery.index.search(queries, k, 1000)
        exact = exact_search(queries, rows, k)
        assert np.allclose(scores, exact.scores, atol=1e-5)
        if k == 7:
            assert np.array_equal(gallery.catalog.rows_of(keys), exact.rows)
    assert keys.shape == (20, len(rows))
    assert len(np.unique(keys[0])) == len(rows)


def test_deploy_search_rollback_and_history(deployed: EngineShop) -> None:
    """The verified model answers after deploy, the old one after rollback; the index is the same
    all along, the history tells it, and check finds nothing."""
    index = deployed.done("status").json["index_sha256"]
    old, new = (Encoder.load(deployed.path(name)).sha256 for name in ("old.onnx", "new.onnx"))
    deployed.done("verify", deployed.path("new.onnx"), "--report", deployed.path("report.json"))
    deployed.done("deploy", "--report", deployed.path("report.json"))
    assert deployed.done("status").json["query_model"] == new
    image = next(deployed.shop.data().parent.rglob("*.png"))
    found = deployed.done("search", image, "-k", 3).json
    assert (found["query_model"], len(found["queries"][0]["hits"])) == (new, 3)
    again = deployed.done("deploy", "--report", deployed.path("report.json"))
    assert not again.json["written"]
    deployed.done("rollback")
    after = deployed.done("status").json
    assert (after["query_model"], after["index_sha256"]) == (old, index)
    operations = [entry["operation"] for entry in deployed.done("history").json["generations"]]
    assert operations[1:] == ["deploy", "rollback"]
    assert deployed.done("check").json["problems"] == []


def test_a_failing_model_is_not_deployed(deployed: EngineShop) -> None:
    """A candidate that is worse is refused, and what serves stays."""
    before = deployed.done("status").json
    report = ("--report", deployed.path("report.json"))
    assert deployed.run("verify", deployed.path("worse.onnx"), *report).code == 3
    assert deployed.run("deploy", *report).code == 3
    assert deployed.done("status").json["head"] == before["head"]


def test_a_model_of_another_space_is_bridged_to_the_rows(deployed: EngineShop) -> None:
    """A map is fitted against the engine's rows, and verify judges the mapped model on them."""
    out = deployed.path("bridged.onnx")
    words = (deployed.path("turned.onnx"), "-o", out, "--kind", "ridge")
    bridged = deployed.done("bridge", *words).json
    assert bridged["dim"] == deployed.gallery().manifest.index.dim
    report = ("--report", deployed.path("report.json"))
    judged = deployed.run("verify", out, *report)
    assert judged.code in {0, 3, 4}, judged.stderr
    assert judged.json["store"]["stored_vectors"] == deployed.gallery().manifest.index.count


def test_gc_keeps_what_a_rollback_needs(deployed: EngineShop) -> None:
    """check --gc --keep deletes nothing that serves, and a rollback works after it."""
    report = ("--report", deployed.path("report.json"))
    deployed.done("verify", deployed.path("new.onnx"), *report)
    deployed.done("deploy", *report)
    deployed.done("check", "--gc", "--keep", 1)
    deployed.done("rollback")
    assert deployed.done("check").json["ok"]


REFUSED = {
    "backfill": ("backfill", "--share", "0.5"),
    "lift": ("lift", "turned.onnx"),
    "promote": ("promote",),
    "remove": ("remove", "an id"),
    "re-scoring": ("verify", "new.onnx", "--rescore", "20"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_engine_cannot_do_is_refused_by_name(
    pg: EngineShop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, the reason, and neither the store nor the row changes."""
    monkeypatch.chdir(pg.shop.folder)
    assert pg.table is not None
    before, head = pg.table.row(), pg.done("status").json["head"]
    refused = pg.run(*REFUSED[name])
    assert refused.code == 2
    assert f"{name} is not for a store whose rows are in pgvector" in refused.stderr
    assert (pg.table.row(), pg.done("status").json["head"]) == (before, head)
