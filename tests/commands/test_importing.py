"""Indexes of other engines become stores: FAISS, usearch, tables, and hnswlib with norms."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import hnswlib
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet
from shop_kit import DIM, Result, Shop, run, stored_rows
from text_shop_kit import TextShop

from compatctl.data import Dataset, from_files, load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.store import Store

FAISS = """
import sys, faiss, numpy as np
rows, keys = np.load(sys.argv[1]), np.load(sys.argv[2])
index = faiss.index_factory(rows.shape[1], sys.argv[4], faiss.METRIC_INNER_PRODUCT)
index.train(rows)
index.add_with_ids(rows, keys)
faiss.write_index(index, sys.argv[3])
"""


@pytest.fixture
def gallery(shop: Shop) -> Dataset:
    """The items that an index in production holds."""
    return load(shop.data()).filter(role="gallery")


@pytest.fixture
def rows(shop: Shop, gallery: Dataset) -> NDArray[np.float32]:
    """Their vectors by the old model."""
    return Encoder.load(shop.path("old.onnx")).embed(gallery).features


def _keys(count: int) -> NDArray[np.int64]:
    """Keys in no order, none of them a row number, above 2^53."""
    return 2**60 + 3 * np.random.default_rng(5).permutation(count).astype(np.int64)


def _faiss(shop: Shop, rows: NDArray[np.float32], kind: str) -> Path:
    np.save(shop.path("rows.npy"), rows)
    np.save(shop.path("keys.npy"), _keys(len(rows)))
    path = shop.path("prod.faiss")
    words = [str(shop.path(name)) for name in ("rows.npy", "keys.npy", "prod.faiss")]
    subprocess.run([sys.executable, "-c", FAISS, *words, kind], check=True, capture_output=True)
    return path


def _hnsw(path: Path, rows: NDArray[np.float32], space: str, deleted: tuple[int, ...] = ()) -> Path:
    index = hnswlib.Index(space=space, dim=rows.shape[1])
    index.init_index(len(rows) + 3, M=8)
    index.add_items(rows, _keys(len(rows)))
    for row in deleted:
        index.mark_deleted(int(_keys(len(rows))[row]))
    index.save_index(str(path))
    return path


def _items(shop: Shop, gallery: Dataset) -> Path:
    """A JSON object from key to id and label."""
    path = shop.path("keys.json")
    entries = zip(_keys(len(gallery)).tolist(), gallery.ids, gallery.labels, strict=True)
    path.write_text(json.dumps({str(key): {"id": i, "label": label} for key, i, label in entries}))
    return path


def _adopt(shop: Shop, index: Path, *more: object, model: str = "old.onnx") -> Result:
    return run("import", index, "--model", shop.path(model), "--store", shop.path("adopted"),
               "--json", *more)  # fmt: skip


def test_a_faiss_index_is_imported_verified_deployed_and_searched(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """The journey: its rows and ids are the store's, its vectors are proven by images, and the gate
    passes the better model as it does on a store that compatctl made."""
    index, items = _faiss(shop, rows, "IVF8,Flat"), _items(shop, gallery)
    result = _adopt(shop, index, "--items", items, "--data", shop.data())
    assert result.code == 0, result.stderr
    answer = result.json
    assert (answer["engine"], answer["kind"], answer["rebuilt"]) == ("FAISS", "IndexIVFFlat", True)
    assert (answer["proven"], answer["rows"], answer["lossy"]) == (True, len(rows), None)
    catalog = Store.open(shop.path("adopted")).catalog()
    assert dict(zip(catalog.ids, catalog.keys.tolist(), strict=True)) == dict(
        zip(gallery.ids, _keys(len(rows)).tolist(), strict=True)
    )
    store = ("--store", shop.path("adopted"), "--report", shop.path("r.json"))
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), *store)
    assert verified.code == 0, verified.stderr
    direct = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"),
                      "--report", shop.path("direct.json"))  # fmt: skip
    assert verified.json["verdict"]["outcome"] == direct.json["verdict"]["outcome"]
    assert shop.run("deploy", *store).code == 0
    image = next((shop.data().parent / "images" / "twemoji").iterdir())
    found = shop.run("search", image, "--store", shop.path("adopted"))
    assert found.json["queries"][0]["hits"][0]["id"] in set(gallery.ids)
    assert run("check", "--store", shop.path("adopted")).code == 0


def test_norms_do_not_replace_the_rows_that_they_are_of(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """The file of norms is a new one: exit 2, and the table is as it was."""
    table = shop.path("gallery.npz")
    scaled = rows * np.linspace(1, 2, len(rows), dtype=np.float32)[:, None]
    np.savez(table, ids=gallery.ids, labels=gallery.labels, vectors=scaled)
    before = table.read_bytes()
    result = _adopt(shop, table, "--space", "ip", "--norms", table)
    assert (result.code, table.read_bytes() == before) == (2, True), result.stderr


@pytest.mark.parametrize("replaced", [0, 1])
def test_a_fused_model_does_not_replace_one_of_its_parts(shop: Shop, replaced: int) -> None:
    """Neither the deployed model's file nor the new one's; the message says so before the work."""
    models = [shop.path("old.onnx"), shop.path("new.onnx")]
    before = [path.read_bytes() for path in models]
    result = shop.run("fuse", *models, "--output", models[replaced], "--weight", 0.5)
    assert result.code == 2
    assert "would be replaced" in result.stderr
    assert [path.read_bytes() for path in models] == before


def test_labels_of_the_data_that_differ_from_the_index_are_named(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """The class of such an item is unknown to verify, so import says it, and which labels."""
    index, items = _hnsw(shop.path("prod.hnsw"), rows, "cosine"), _items(shop, gallery)
    entries = json.loads(items.read_text())
    (wrong,) = [entry for entry in entries.values() if entry["id"] == gallery.ids[3]]
    wrong["label"] = "another"
    items.write_text(json.dumps(entries))
    result = _adopt(shop, index, "--items", items, "--data", shop.data())
    assert result.code == 0, result.stderr
    (entry,) = [one for one in result.json["notices"] if one["kind"] == "label-differs"]
    assert entry["names"] == [f"{gallery.ids[3]!r}: {gallery.labels[3]!r} and 'another'"]


def test_the_rows_of_a_faiss_index_are_unchanged(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """Each id's stored vector is the one that was added; a second import has nothing to do."""
    index, items = _faiss(shop, rows, "IDMap,HNSW16"), _items(shop, gallery)
    assert _adopt(shop, index, "--items", items).code == 0
    again = _adopt(shop, index, "--items", items)
    assert (again.code, again.json["written"]) == (0, False)
    shop.path("store").rename(shop.path("other"))
    shop.path("adopted").rename(shop.path("store"))
    stored = stored_rows(shop, list(gallery.ids))
    assert np.abs(stored - rows).max() < 1e-6


def test_reconstructions_are_said_to_be_so_and_are_proven_by_their_neighbours(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """Rows of product quantisation differ from the model's: a notice and the result say so, images
    still prove the model, --strict refuses, and another model is refused."""
    index, items = _faiss(shop, rows, "IVF4,PQ16x6"), _items(shop, gallery)
    flags = ("--items", items, "--data", shop.data())
    strict = _adopt(shop, index, *flags, "--strict")
    assert strict.code == 5
    assert not shop.path("adopted").exists()
    wrong = _adopt(shop, index, *flags, model="turned.onnx")
    assert wrong.code == 5
    assert "did not fill this index" in wrong.stderr
    result = _adopt(shop, index, *flags)
    assert result.code == 0, result.stderr
    assert "reconstructions" in result.json["lossy"]
    assert [entry["kind"] for entry in result.json["notices"]] == ["lossy-rows"]
    assert result.json["notices"][0]["count"] == len(rows)
    assert "norms from" in result.json["warnings"][0]
    assert result.json["proven"]
    assert 0.5 < result.json["agreement"] < 0.999


@pytest.mark.parametrize("space", ["ip", "l2"])
def test_norms_that_are_part_of_the_ranking_are_kept_in_a_file(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32], space: str
) -> None:
    """Without --norms the index is refused with what the cosine would change; with it the
    directions are the store's, and cosine and norm together give the score of before."""
    norms = np.random.default_rng(2).uniform(0.5, 3.0, len(rows))
    scaled = (rows * norms[:, None]).astype(np.float32)
    index, items = _hnsw(shop.path("raw.hnsw"), scaled, space), _items(shop, gallery)
    flags = ("--items", items, "--space", space, "--data", shop.data())
    refused = _adopt(shop, index, *flags)
    assert refused.code == 5
    assert f"{_kept(scaled, space):.1%} of the first 10" in refused.stderr
    assert "--norms" in refused.json["error"]["tip"]
    target = shop.path("norms.npz")
    result = _adopt(shop, index, *flags, "--norms", target)
    assert result.code == 0, result.stderr
    assert "not part of the ranking" in result.json["warnings"][0]
    assert (result.json["rebuilt"], result.json["norms"]) == (True, str(target))
    with np.load(target) as kept:
        by_id = dict(zip(kept["ids"].tolist(), kept["norms"].tolist(), strict=True))
    shop.path("store").rename(shop.path("other"))
    shop.path("adopted").rename(shop.path("store"))
    cosines = stored_rows(shop, list(gallery.ids)) @ rows[0]
    before = scaled @ rows[0]
    assert np.abs(cosines * np.array([by_id[item] for item in gallery.ids]) - before).max() < 1e-5


@pytest.mark.parametrize("space", ["ip", "l2"])
def test_search_with_kept_norms_answers_as_the_index_before(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32], space: str
) -> None:
    """Ids, order and scores of hnswlib on the index that was imported; by cosine they differ. An
    item without a norm and a file without the norms are refused."""
    norms = np.random.default_rng(2).uniform(0.3, 4.0, len(rows))
    index = _hnsw(shop.path("raw.hnsw"), (rows * norms[:, None]).astype(np.float32), space)
    flags = ("--items", _items(shop, gallery), "--space", space, "--norms", shop.path("n.npz"))
    assert _adopt(shop, index, *flags).code == 0
    images = sorted((shop.data().parent / "images" / "twemoji").iterdir())[:7]
    queries = Encoder.load(shop.path("old.onnx")).embed(from_files(images)).features
    engine = hnswlib.Index(space=space, dim=DIM)
    engine.load_index(str(index))
    engine.set_ef(len(rows))
    keys, distances = engine.knn_query(queries, k=20)
    id_of = dict(zip(_keys(len(rows)).tolist(), gallery.ids, strict=True))
    words = ("search", *images, "-k", 20, "--store", shop.path("adopted"), "--json")
    answer = run(*words, "--norms", shop.path("n.npz")).json
    assert answer["similarity"] == {"ip": "dot", "l2": "l2"}[space]
    found = [query["hits"] for query in answer["queries"]]
    assert [[hit["id"] for hit in hits] for hits in found] == [
        [id_of[key] for key in row] for row in keys.tolist()
    ]
    scores = np.array([[hit["score"] for hit in hits] for hits in found])
    assert np.abs(scores - (1.0 - distances if space == "ip" else distances)).max() < 1e-4
    by_cosine = run(*words).json["queries"]
    assert [hit["id"] for hit in by_cosine[0]["hits"]] != [hit["id"] for hit in found[0]]
    with np.load(shop.path("n.npz")) as kept:
        np.savez(
            shop.path("few.npz"), **{**kept, "ids": kept["ids"][1:], "norms": kept["norms"][1:]}
        )
        np.savez(shop.path("none.npz"), ids=kept["ids"])
    for name, text in (("few", "1 items of the store have no norm"), ("none", "no array norms")):
        refused = run(*words, "--norms", shop.path(f"{name}.npz"))
        assert (refused.code, text in refused.stderr) == (5, True), refused.stderr


def _kept(rows: NDArray[np.float32], space: str) -> float:
    """The share of each row's first ten (and itself) that the cosine keeps, one query at a time."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(200, len(rows))).astype(int))
    shares = []
    for query in rows[chosen]:
        exact = rows @ query if space == "ip" else -((rows - query) ** 2).sum(axis=1)
        cosine = rows @ query / np.linalg.norm(rows, axis=1)
        first = [set(np.argsort(-score, kind="stable")[:11].tolist()) for score in (exact, cosine)]
        shares.append(len(first[0] & first[1]) / 11)
    return float(np.mean(shares))


def test_rows_of_one_norm_keep_their_ranking(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """All of length 2.5: nothing is lost, and no file of norms is required, whatever is deleted."""
    index = _hnsw(shop.path("raw.hnsw"), 2.5 * rows, "l2", deleted=(0, 4))
    flags = ("--items", _items(shop, gallery), "--space", "l2", "--data", shop.data())
    assert _adopt(shop, index, *flags).code == 5
    result = _adopt(shop, index, *flags, "--drop-deleted")
    assert result.code == 0, result.stderr
    assert (result.json["dropped"], result.json["rows"]) == (2, len(rows) - 2)
    assert (result.json["proven"], result.json["warnings"]) == (True, [])


def test_options_that_would_do_nothing_are_refused(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """--norms for unit rows, --drop-deleted for FAISS, --items-table without --items, and a --space
    that the file contradicts."""
    unit, items = _hnsw(shop.path("unit.hnsw"), rows, "ip"), _items(shop, gallery)
    index = _faiss(shop, rows, "IDMap,Flat")
    for words, code in [
        ((unit, "--norms", shop.path("n.npz")), 2),
        ((index, "--norms", shop.path("n.npz")), 2),
        ((index, "--norms", shop.path("n.csv")), 2),
        ((index, "--drop-deleted"), 2),
        ((unit, "--items-table", "t"), 2),
        ((unit, "--items", items, "--items-table", "t"), 5),
        ((unit, "--items-column", "price=x"), 2),
        ((unit, "--items-column", "key=x"), 2),
        ((unit, "--items-column", "id=x"), 2),
        ((index, "--items", items, "--items-column", "vector=x"), 2),
        ((index, "--space", "l2"), 5),
        ((index, "--space", "hamming"), 5),
    ]:
        result = _adopt(shop, *words)
        assert result.code == code, (words, result.stderr)
        assert not shop.path("adopted").exists()


def test_rows_without_a_direction_are_refused_by_key(shop: Shop, rows: NDArray[np.float32]) -> None:
    """A zero row and one that is not finite are counted, and the first is named."""
    for value in (0.0, np.nan):
        bad = rows.copy()
        bad[[2, 7]] = value
        np.save(shop.path("rows.npy"), bad)
        result = _adopt(shop, shop.path("rows.npy"))
        assert result.code == 5
        assert "2 rows are zero or not finite, the first has the key 2" in result.stderr


def test_tables_of_vectors_name_their_items(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """Parquet and .npz with ids and labels need no --items, and refuse one."""
    columns = {"sku": list(gallery.ids), "emb": list(rows), "label": list(gallery.labels)}
    parquet.write_table(pa.table(columns), shop.path("t.parquet"))
    np.savez(shop.path("t.npz"), ids=np.array(gallery.ids), vectors=rows,
             labels=np.array(gallery.labels))  # fmt: skip
    named = ("--items-column", "id=sku", "--items-column", "vector=emb")
    for index, flags in ((shop.path("t.parquet"), named), (shop.path("t.npz"), ())):
        result = _adopt(shop, index, *flags, "--data", shop.data(), "--dry-run")
        assert result.code == 0, result.stderr
        assert result.json["proven"]
    refused = _adopt(shop, shop.path("t.npz"), "--items", _items(shop, gallery))
    assert refused.code == 5
    assert "names its items by texts" in refused.stderr
    assert _adopt(shop, shop.path("t.npz")).code == 0
    catalog = Store.open(shop.path("adopted")).catalog()
    assert (catalog.ids, catalog.labels) == (gallery.ids, gallery.labels)


def test_import_with_data_writes_the_first_project_file(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As init does, so that verify and deploy find store and data; a file that is there stays."""
    np.savez(shop.path("t.npz"), ids=np.array(gallery.ids), vectors=rows)
    data, project = ("--data", shop.data()), shop.path("new/compatctl.yaml")
    project.parent.mkdir()
    monkeypatch.chdir(project.parent)
    words = ("import", shop.path("t.npz"), "--model", shop.path("old.onnx"))
    assert run(*words).code == 0
    assert not project.exists()
    assert run(*words, *data).code == 0
    assert "data:" in project.read_text()
    (project.parent / "new.onnx").write_bytes(shop.path("new.onnx").read_bytes())
    assert run("verify", shop.path("old.onnx"), "new.onnx").code == 0
    assert run("deploy").code == 0
    project.write_text("format: 1\n")
    assert run(*words, *data, "--store", "other").code == 0
    assert project.read_text() == "format: 1\n"


def test_norms_of_a_table_need_its_space(shop: Shop, rows: NDArray[np.float32]) -> None:
    """A table does not say what it is searched by: --space cosine adopts it, as norms change no
    cosine; without it the command cannot know."""
    np.save(shop.path("t.npy"), rows * np.linspace(1, 2, len(rows), dtype=np.float32)[:, None])
    unknown = _adopt(shop, shop.path("t.npy"))
    assert unknown.code == 5
    assert "--space" in unknown.json["error"]["tip"]
    result = _adopt(shop, shop.path("t.npy"), "--space", "cosine")
    assert (result.code, result.json["kind"]) == (0, "npy"), result.stderr


def test_a_key_that_the_index_lacks_is_named(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """A table with a line too many says which."""
    items = _items(shop, gallery)
    items.write_text(json.dumps(json.loads(items.read_text()) | {"7": "nowhere"}))
    result = _adopt(shop, _hnsw(shop.path("prod.hnsw"), rows, "cosine"), "--items", items)
    assert result.code == 5
    assert "it has no 7" in result.stderr


def test_keys_in_a_database_name_the_items(
    shop: Shop, gallery: Dataset, rows: NDArray[np.float32]
) -> None:
    """SQLite as production has it: the key is a column of another name."""
    with closing(sqlite3.connect(shop.path("prod.db"))) as database:
        database.execute("CREATE TABLE products (vector_id INTEGER, sku TEXT, category TEXT)")
        entries = zip(_keys(len(rows)).tolist(), gallery.ids, gallery.labels, strict=True)
        database.executemany("INSERT INTO products VALUES (?, ?, ?)", entries)
        database.commit()
    index = _hnsw(shop.path("unit.hnsw"), rows, "cosine")
    columns = [word for pair in ("key=vector_id", "id=sku", "label=category")
               for word in ("--items-column", pair)]  # fmt: skip
    result = _adopt(shop, index, "--items", shop.path("prod.db"), *columns, "--data", shop.data())
    assert result.code == 0, result.stderr
    assert (result.json["proven"], result.json["rebuilt"]) == (True, False)
    labels = dict(zip(gallery.ids, gallery.labels, strict=True))
    catalog = Store.open(shop.path("adopted")).catalog()
    assert dict(zip(catalog.ids, catalog.labels, strict=True)) == labels


def test_another_dimension_is_refused_before_anything_is_built(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both numbers, whatever the form; for FAISS before a process reads its rows."""
    np.save(shop.path("t.npy"), np.eye(DIM + 1, dtype=np.float32))
    result = _adopt(shop, shop.path("t.npy"))
    assert result.code == 5
    assert f"has {DIM + 1} dimensions, the model has {DIM}" in result.stderr
    index = _faiss(shop, np.eye(DIM - 1, dtype=np.float32), "IDMap,Flat")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    result = _adopt(shop, index)
    assert result.code == 5
    assert f"has {DIM - 1} dimensions, the model has {DIM}" in result.stderr


@pytest.mark.parametrize(
    "prefixes",
    [{}, {"query_prefix": "query: ", "document_prefix": "passage: "}],
    ids=["plain", "prefixes"],
)
def test_an_index_of_texts_is_proven_by_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefixes: dict[str, object]
) -> None:
    """Documents are embedded again as documents, whatever goes before a query; a model of another
    space is refused."""
    shop = TextShop(tmp_path, **prefixes)
    shop.done("init", "--model", shop.models["old"])
    deployed = DeployedGallery.open(Store.open(tmp_path / "store"))
    rows, ids = deployed.index.vectors(deployed.catalog.keys), np.array(deployed.catalog.ids)
    np.savez(tmp_path / "t.npz", ids=ids, vectors=rows)
    (tmp_path / "store").rename(tmp_path / "before")
    wrong = shop.run("import", tmp_path / "t.npz", "--model", shop.models["turned"])
    assert wrong.code == 5
    assert "did not fill this index" in wrong.stderr
    result = shop.run("import", tmp_path / "t.npz", "--model", shop.models["old"], "--json")
    assert result.code == 0, result.stderr
    assert result.json["proven"]
    assert result.json["agreement"] > 0.99999
    monkeypatch.chdir(tmp_path)
    verified = shop.run("verify", shop.models["old"], shop.models["better"])
    assert verified.code in {0, 3, 4}, verified.stderr
