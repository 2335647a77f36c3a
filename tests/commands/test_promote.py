"""Promotion: a store that re-scores becomes one of free vectors, searched by the free head."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from free_kit import serve_rescored, with_free
from numpy.typing import NDArray
from PIL import Image
from shop_kit import Shop, store_files, stored_rows, turned, write_encoder

from compatctl.core.nearest import Piece
from compatctl.data import Dataset, load
from compatctl.encoder import Encoder
from compatctl.migration.promotion import FreeRows
from compatctl.store import Store

K, WIDTH = 6, 48

FORCE = ("--force", "--reason", "drill")


@pytest.fixture(scope="module")
def begun(begun: Path) -> Path:
    """The project, deployed with re-scoring of six answers by free vectors of 48 dimensions."""
    shop = Shop(begun)
    weak = write_encoder(begun / "weak.onnx", noise=0.5)
    write_encoder(begun / "best.onnx", noise=0.02)
    free = turned(shop, "free.onnx", of="best.onnx", dim=WIDTH)
    with_free(begun / "both.onnx", weak, free)
    serve_rescored(shop, K)
    return begun


@pytest.fixture
def data(shop: Shop) -> Dataset:
    """The project's data."""
    return load(shop.data())


def rows_of(data: Dataset, role: str) -> list[int]:
    """Rows of the gallery, or of the test queries."""
    split = {"query": "test"}
    return [
        i
        for i, item in enumerate(data.items)
        if item.role == role and item.split == split.get(role, item.split)
    ]


def free_vectors(shop: Shop, data: Dataset, rows: list[int]) -> NDArray[np.float32]:
    """The free vectors of rows of the data, embedded here."""
    embedded = Encoder.load(shop.path("both.onnx")).embed(data.take(rows), free=True)
    assert embedded.free is not None
    return embedded.free


def hits(shop: Shop, data: Dataset, rows: list[int], k: int = 5) -> list[list[str]]:
    """The ids that search finds for each query."""
    found = shop.run("search", "-k", k, *(data.sources[row] for row in rows))
    assert found.code == 0, found.stderr
    return [[hit["id"] for hit in query["hits"]] for query in found.json["queries"]]


def test_the_index_becomes_the_free_vectors(shop: Shop, data: Dataset) -> None:
    """Every row is the free vector of its item, queries are embedded by the free head alone, and
    search finds what an exact search over free vectors does."""
    before = shop.manifest()
    shop.run("search", *(data.sources[row] for row in rows_of(data, "query")[:40:8]))
    kept = shop.run("status").json["free_vectors"]["count"]
    result = shop.run("promote")
    assert result.code == 0, result.stderr
    promoted, after = result.json, shop.manifest()
    assert (promoted["kept"], promoted["embedded"]) == (kept, after["index"]["count"] - kept)
    assert promoted["gallery_pass"]["share"] == 1.0
    assert "choose thresholds again" in result.stderr
    assert (after["operation"], after["index"]["dim"]) == ("promote", WIDTH)
    assert [model["rows"] for model in after["models"]] == [before["index"]["count"]]
    gallery = rows_of(data, "gallery")
    vectors = free_vectors(shop, data, gallery)
    stored = stored_rows(shop, [data.ids[row] for row in gallery])
    assert np.linalg.norm(stored - vectors, axis=1).max() < 1e-3
    store = Store.open(shop.path("store"))
    alone = Encoder.load(store.blob_path("models", after["query_model"]))
    assert (alone.dim, alone.free_dim) == (WIDTH, None)
    queries = rows_of(data, "query")[:60:5]
    own = free_vectors(shop, data, queries)
    assert np.allclose(alone.embed(data.take(queries)).features, own, atol=1e-5)
    nearest = np.argsort(-(own @ stored.T), axis=1, kind="stable")[:, 0]
    found = hits(shop, data, queries)
    assert [first[0] for first in found] == [data.ids[gallery[row]] for row in nearest]
    assert shop.run("check").code == 0
    assert shop.run("promote").json["outcome"] == "nothing to do"
    assert shop.manifest() == after


def test_a_rollback_brings_the_rescored_store_back(shop: Shop, data: Dataset) -> None:
    """The index is the earlier one, byte for byte, and the kept vectors answer without a pass; only
    a reason promotes again, and that embeds nothing."""
    queries = rows_of(data, "query")[:20:5]
    before, answers = shop.manifest(), hits(shop, data, queries)
    assert shop.run("promote").code == 0
    promoted = shop.manifest()
    assert shop.run("rollback").code == 0
    restored = shop.manifest()
    for name in ("index", "catalog", "query_model", "models", "rescoring", "report"):
        assert restored[name] == before[name]
    found = shop.run("search", *(data.sources[row] for row in queries)).json
    assert found["rescoring"]["passed"] == 0
    assert [[hit["id"] for hit in query["hits"]] for query in found["queries"]] == answers
    assert shop.run("check").code == 0
    refused = shop.run("promote")
    assert (refused.code, "rolled the model" in refused.stderr) == (3, True)
    assert shop.manifest() == restored
    again = shop.run("promote", *FORCE).json
    assert (again["embedded"], again["query_model"]) == (0, promoted["query_model"])
    assert again["index_sha256"] == promoted["index"]["sha256"]


def test_today_is_what_a_loop_serves(shop: Shop, data: Dataset) -> None:
    """The hit rate that the promotion is compared with is that of the re-scored answers."""
    result = shop.run("promote").json["measured"]
    store = Store.open(shop.path("store"))
    settings = store.generation(2).rescoring
    assert settings is not None
    gallery, queries = rows_of(data, "gallery"), rows_of(data, "query")
    stored = Encoder.load(shop.path("old.onnx")).embed(data.take(gallery)).features
    both = Encoder.load(shop.path("both.onnx"))
    first, own = both.embed(data.take(queries)).features, free_vectors(shop, data, queries)
    free = free_vectors(shop, data, gallery)
    right = {"today": 0, "promoted": 0}
    for feature, vector, row in zip(first, own, queries, strict=True):
        cosines = stored @ feature
        candidates = np.argsort(-cosines, kind="stable")[:K]
        scores = free[candidates] @ vector + settings.weight * cosines[candidates]
        label = data.labels[row]
        right["today"] += data.labels[gallery[candidates[np.argmax(scores)]]] == label
        right["promoted"] += data.labels[gallery[np.argmax(free @ vector)]] == label
    assert result["hit_rate_today"] == pytest.approx(right["today"] / len(queries), abs=2e-3)
    assert result["hit_rate"] == pytest.approx(right["promoted"] / len(queries), abs=2e-3)


def test_the_verdict_does_not_depend_on_what_was_kept(shop: Shop, data: Dataset) -> None:
    """A run that was interrupted judges as one that was not: against re-scoring with every free
    vector, however few a query may pass."""
    assert shop.run("rollback").code == 0
    serve_rescored(shop, K, "--passes", 0, "--report", shop.path("report.json"), force=True)
    first = shop.run("promote").json
    assert (first["kept"], shop.run("rollback").code) == (0, 0)
    again = shop.run("promote", *FORCE).json
    assert again["embedded"] == 0
    assert again["measured"] == first["measured"]


def test_held_out_queries_read_the_side_file_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One search gives the hit rate, without rows that a query ignores, and the nearest of all rows
    that test the index."""
    project = shop.path("compatctl.yaml")
    project.write_text(project.read_text() + "ignore_same: [camera]\n")
    lines = shop.data().read_text().splitlines()
    cameras = ["camera", *("ab"[row % 2] for row in range(len(lines) - 1))]
    table = shop.data().parent / "cameras.csv"
    table.write_text("\n".join(map(",".join, zip(lines, cameras, strict=True))))
    pieces, reads = FreeRows.pieces, []

    def counted(self: FreeRows) -> Iterator[Piece]:
        reads.append(len(self.catalog))
        return pieces(self)

    monkeypatch.setattr(FreeRows, "pieces", counted)
    result = shop.run("promote", "--data", table, *FORCE)
    assert result.code == 0, result.stderr
    assert 0 < result.json["measured"]["n_queries"] < len(rows_of(load(table), "query"))
    assert result.json["ann"]["recall_needed"] == 1.0
    assert len(reads) == 1


def test_a_dry_run_embeds_nothing_of_the_gallery(shop: Shop, tmp_path: Path, data: Dataset) -> None:
    """It says how many rows are to be embedded; where none is, it measures. Nothing is written."""
    before = store_files(shop)
    planned = shop.run("promote", "--dry-run")
    assert planned.code == 0, planned.stderr
    assert planned.json["to_embed"] == planned.json["rows"]
    assert (planned.json["outcome"], planned.json["measured"]) == ("not measured", None)
    assert store_files(shop) == before
    log = tmp_path / "log.txt"
    log.write_text("\n".join(data.ids[row] for row in rows_of(data, "gallery")))
    assert shop.run("warm", log).code == 0
    before = store_files(shop)
    measured = shop.run("promote", "--dry-run").json
    assert (measured["outcome"], measured["written"]) == ("pass", False)
    assert measured["to_embed"] == 0
    assert store_files(shop) == before


def test_a_free_head_that_loses_is_refused(begun_once: Path, tmp_path: Path) -> None:
    """The index stays, the free vectors are kept, and a reason overrules the gate."""
    folder = tmp_path / "shop"
    shutil.copytree(begun_once, folder)
    shop = Shop(folder)
    good = write_encoder(folder / "good.onnx", noise=0.05)
    with_free(folder / "both.onnx", good, write_encoder(folder / "bad.onnx", noise=1.2))
    serve_rescored(shop, K, force=True)
    before = shop.manifest()
    refused = shop.run("promote")
    assert refused.code == 3, refused.stdout
    assert refused.json["measured"]["check"]["outcome"] == "fail"
    assert shop.manifest() == before
    assert shop.run("status").json["free_vectors"]["share"] == 1.0
    forced = shop.run("promote", "--force", "--reason", "the old head goes")
    assert (forced.code, forced.json["embedded"]) == (0, 0)
    assert shop.manifest()["forced_reason"] == "the old head goes"


def test_a_limited_project_is_refused(shop: Shop) -> None:
    """A promotion passes every row, so that the project must allow all."""
    project = shop.path("compatctl.yaml")
    text = project.read_text().replace("max_gallery_pass: 1.0", "max_gallery_pass: 0.9")
    project.write_text(text)
    before = store_files(shop)
    refused = shop.run("promote")
    assert refused.code == 2
    assert "max_gallery_pass: 1" in refused.stderr
    assert store_files(shop) == before


def test_rows_without_their_image_are_named(shop: Shop, data: Dataset, tmp_path: Path) -> None:
    """A missing or changed image leaves a row without a free vector: nothing is embedded for an
    index that would mix two spaces."""
    gallery = rows_of(data, "gallery")
    changed = tmp_path / "changed.png"
    Image.new("RGB", (20, 20), (200, 10, 10)).save(changed)
    lines = ["id,path,label,split,role"]
    for row, item in enumerate(data.items):
        path = changed if row == gallery[3] else data.sources[row]
        if row != gallery[5]:
            lines.append(f"{item.id},{path},{item.label},{item.split},{item.role or ''}")
    table = tmp_path / "items.csv"
    table.write_text("\n".join(lines))
    root = data.sources[0].parents[3]
    before = shop.manifest()
    missing = shop.run("promote", "--data", table, "--data-root", root)
    assert missing.code == 5
    assert data.ids[gallery[5]] in missing.stderr
    assert shop.manifest() == before


def test_a_store_that_does_not_rescore_has_nothing_to_promote(begun_once: Path) -> None:
    """It is a usage error, and says how a store comes to re-score."""
    shop = Shop(begun_once)
    refused = shop.run("promote", "--dry-run")
    assert refused.code == 2
    assert "are not re-scored" in refused.stderr


def test_a_promoted_store_lives_on(shop: Shop, data: Dataset) -> None:
    """Items are removed and added, and a rollback across the promotion re-embeds or lists those
    added since; keep is refused, because the rows are of another space."""
    assert shop.run("promote").code == 0
    item = data.ids[rows_of(data, "gallery")[0]]
    assert shop.run("rollback", "--added", "keep", "--dry-run").code in {0, 2}
    assert shop.run("remove", item).code == 0
    added = shop.run("add")
    assert added.code == 0, added.stderr
    assert shop.run("check").code == 0
    refused = shop.run("rollback")
    assert refused.code == 2
    assert "promoted in between" in refused.stderr
    assert "cannot search" in refused.stderr
