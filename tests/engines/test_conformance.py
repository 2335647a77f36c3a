"""What holds on every engine: the folder, and a table of PostgreSQL that an application owns."""

from __future__ import annotations

import numpy as np
import pytest
from engine_kit import EngineShop
from shop_kit import turned

from compatctl.core.nearest import exact_search
from compatctl.data import load
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


def test_a_lift_and_its_rollback(deployed: EngineShop) -> None:
    """Every row is what its own lifted file returns, search agrees with exact search, and after a
    rollback the rows and answers are those of before."""
    before = deployed.gallery().vectors()
    wide = turned(deployed.shop, "wide.onnx", of="new.onnx", dim=48)
    deployed.done("lift", wide, "--kind", "ridge")
    gallery = deployed.gallery()
    rows = gallery.vectors()
    assert rows.shape == (len(before), 48)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    (model,) = {gallery.catalog.models[code] for code in set(gallery.catalog.model_of.tolist())}
    data = load(deployed.shop.data())
    items = data.take([data.row_of[item] for item in gallery.catalog.ids])
    lifted = Encoder.load(gallery.store.blob_path("models", model)).embed(items).features
    assert np.allclose(rows, lifted, atol=1e-3)
    _searches_exactly(deployed)
    deployed.done("rollback")
    assert np.array_equal(deployed.gallery().vectors(), before)
    _searches_exactly(deployed)
    assert deployed.done("check").json["ok"]


def test_backfill_in_steps_and_its_rollback(deployed: EngineShop) -> None:
    """After each share the rows that the catalogue calls the query model's are its embeddings, the
    others are as they were, and search agrees with exact search; so after a rollback. Milvus
    refuses steps: there the second share is one."""
    force = ("--force", "--reason", "drill")
    deployed.done("deploy", "--model", deployed.path("new.onnx"), *force)
    before, data = deployed.gallery().vectors(), load(deployed.shop.data())
    items = data.take([data.row_of[item] for item in deployed.gallery().catalog.ids])
    fresh = Encoder.load(deployed.path("new.onnx")).embed(items).features
    steps = () if deployed.engine == "milvus" else ("--step", "40")
    for share, *more in ((0.4,), (1.0, *steps)):
        deployed.done("backfill", "--share", share, *more, *force)
        gallery = deployed.gallery()
        own = np.array(gallery.catalog.models)[gallery.catalog.model_of] == (
            gallery.manifest.query_model
        )
        assert own.mean() == pytest.approx(share, abs=0.01)
        rows = gallery.vectors()
        assert np.allclose(rows[own], fresh[own], atol=1e-5)
        assert np.allclose(rows[~own], before[~own], rtol=0, atol=1e-6)
        _searches_exactly(deployed)
    deployed.done("rollback", "--to", 2)
    assert np.array_equal(deployed.gallery().vectors(), before)
    _searches_exactly(deployed)
    assert deployed.done("check").json["ok"]


def _searches_exactly(shop: EngineShop) -> None:
    gallery = shop.gallery()
    rows = gallery.vectors()
    keys, scores = gallery.index.search(rows[:15], 6, 1000)
    exact = exact_search(rows[:15], rows, 6)
    assert np.array_equal(gallery.catalog.rows_of(keys), exact.rows)
    assert np.allclose(scores, exact.scores, atol=1e-5)


REFUSED = {
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
