"""Vectors that a store computes beside a collection of Milvus: each time a whole collection."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_kit import EngineShop, expected, fill, image, sweep_before_the_commit
from kill_kit import killed
from milvus_kit import Collection
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException
from serve_kit import wait_for
from shop_kit import Shop, run, turned

from compatctl.core.nearest import exact_search
from compatctl.data import load
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder
from compatctl.engines import StaleEpochError
from compatctl.store import Store

F = 48
RIDGE = ("--kind", "ridge")
FORCE = ("--force", "--reason", "drill")


@pytest.fixture
def wide(mv: EngineShop) -> Path:
    """A model of another space, of 48 dimensions."""
    return turned(mv.shop, "wide.onnx", of="new.onnx", dim=F)


@pytest.fixture
def lifted(mv: EngineShop, wide: Path) -> EngineShop:
    """The project, lifted to that model."""
    mv.done("lift", wide, *RIDGE)
    return mv


def of(shop: EngineShop) -> Collection:
    """The collection of the application."""
    assert shop.collection is not None
    return shop.collection


def rows_in(shop: EngineShop, name: str = "") -> dict[str, dict[str, Any]]:
    """Every row of a collection, by its key: the application's, or another one."""
    with of(shop).client() as client:
        return _rows(client, name or of(shop).name)


def _rows(client: MilvusClient, name: str) -> dict[str, dict[str, Any]]:
    found = client.query(name, filter="id >= ''", output_fields=["*"], consistency_level="Strong")
    return {row["id"]: dict(row) for row in found}


def beside(shop: EngineShop) -> list[str]:
    """The collections that were made beside the application's."""
    with of(shop).client() as client:
        return sorted(
            name for name in client.list_collections()
            if name.startswith("compatctl_")
            and of(shop).name in client.describe_collection(name)["description"].split()
        )  # fmt: skip


def searched(shop: EngineShop, query: np.ndarray, k: int, condition: str = "") -> list[str]:
    """The ids that an application finds in the collection that the row names."""
    name = of(shop).row()["search_table"]
    with of(shop).client() as client:
        return _found(client, name, query, k, condition)


def _found(
    client: MilvusClient, name: str, query: np.ndarray, k: int, condition: str = ""
) -> list[str]:
    parameters = {"metric_type": "COSINE", "params": {"ef": 1000}}
    (hits,) = client.search(name, data=[query], anns_field="embedding", limit=k, filter=condition,
                            search_params=parameters, consistency_level="Strong")  # fmt: skip
    return [hit["id"] for hit in hits]


def embedded(shop: EngineShop, path: Path) -> dict[str, np.ndarray]:
    """Every item of the gallery as a model embeds it now."""
    data, ids = load(shop.shop.data()), shop.gallery().catalog.ids
    items = data.take([data.row_of[item] for item in ids])
    return dict(zip(ids, Encoder.load(path).embed(items).features, strict=True))


def test_a_lift_makes_a_collection_beside_the_applications(mv: EngineShop, wide: Path) -> None:
    """Every row is mapped into it as its model file says, under the key and with the class that the
    application gave; the application's collection keeps its rows; the row names the new one."""
    before = rows_in(mv)
    done = mv.done("lift", wide, *RIDGE).json
    assert rows_in(mv).keys() == before.keys()
    for item, row in rows_in(mv).items():
        assert np.array_equal(row["embedding"], before[item]["embedding"])
    row, (side,) = of(mv).row(), beside(mv)
    assert (row["search_table"], row["side_table"], row["id_column"], row["vector_column"]) == (
        side, side, "id", "embedding",
    )  # fmt: skip
    name, model, batch = side.rsplit("_", 2)
    assert row["side_batches"] == batch
    assert Encoder.load(wide).sha256.startswith(model)
    assert of(mv).name in name
    stored = rows_in(mv, side)
    assert stored.keys() == before.keys()
    assert [stored[item]["label"] for item in before] == [r["label"] for r in before.values()]
    (entry,) = done["models"]
    mapped = embedded(mv, mv.gallery().store.blob_path("models", entry["sha256"]))
    assert (done["dim"], len(mapped)) == (F, len(before))
    for item, vector in mapped.items():
        assert np.allclose(stored[item]["embedding"], vector, atol=1e-3), item


def test_a_lifted_gallery_is_searched_as_exact_search_does(lifted: EngineShop) -> None:
    """By compatctl, and by an application that follows the row, with a filter too; verify reads
    every row of the new collection."""
    gallery = lifted.gallery()
    queries = gallery.vectors()[:10]
    keys, scores = gallery.index.search(queries, 7, 1000)
    exact = exact_search(queries, gallery.vectors(), 7)
    assert np.array_equal(gallery.catalog.rows_of(keys), exact.rows)
    assert np.allclose(scores, exact.scores, atol=1e-5)
    labels = {item: row["label"] for item, row in rows_in(lifted).items()}
    wanted = labels[gallery.catalog.ids[0]]
    for query in queries:
        assert searched(lifted, query, 5) == expected(lifted, query, 5)
        every = expected(lifted, query, len(labels))
        filtered = [item for item in every if labels[item] == wanted][:3]
        assert searched(lifted, query, 3, f'label == "{wanted}"') == filtered
    assert lifted.done("search", image(lifted), "-k", 3).json["query_model"] == (
        gallery.manifest.query_model
    )
    judged = lifted.run("verify", lifted.path("wide.onnx"))
    assert judged.code in {0, 3, 4}, judged.stderr
    assert judged.json["store"]["stored_vectors"] == len(labels)
    assert lifted.done("check").json["ok"]


def test_a_rollback_of_a_lift_needs_the_row_alone(lifted: EngineShop) -> None:
    """The application's collection is searched again, with the answers of before; back to the lift,
    nothing is computed; gc drops its collection once no generation needs it, and who searches
    it still is told that the row has changed."""
    (side,), query = beside(lifted), lifted.gallery().vectors()[0]
    after, stale = searched(lifted, query, 5), lifted.gallery()
    assert len(stale.index.search(query[None], 5)[0][0]) == 5
    lifted.done("rollback")
    row = of(lifted).row()
    assert (row["search_table"], row["side_table"], row["side_batches"]) == (
        of(lifted).name, "", "",
    )  # fmt: skip
    old = lifted.gallery().vectors()[0]
    assert searched(lifted, old, 5) == expected(lifted, old, 5)
    assert lifted.done("check").json["ok"]
    lifted.done("check", "--gc")
    assert beside(lifted) == [side], "a rollback to the lift needs it"
    lifted.done("rollback", "--to", 2)
    assert searched(lifted, query, 5) == after
    lifted.done("rollback", "--to", 1)
    for name in ("new.onnx", "old.onnx"):
        lifted.done("deploy", "--model", lifted.path(name), *FORCE)
    swept = lifted.done("check", "--gc", "--keep", 1).json
    assert beside(lifted) == [], swept
    assert any(side in name for name in swept["deleted"])
    with pytest.raises(StaleEpochError):
        stale.index.search(query[None], 5)


@pytest.mark.parametrize("point", ["before the history", "before the row", "after the row"])
def test_a_killed_lift_is_run_again(mv: EngineShop, wide: Path, point: str) -> None:
    """Before the row its collection is there and is not searched; the same command ends with one
    lift, and gc drops the collection of the killed one."""
    query = mv.gallery().vectors()[0]
    before = searched(mv, query, 5)
    killed(point, "lift", *mv.shop.args, wide, *RIDGE)
    (first,) = beside(mv)
    if point != "after the row":
        assert searched(mv, query, 5) == before
        assert mv.done("check").json["ok"]
    done = mv.done("lift", wide, *RIDGE).json
    assert done["written"] == (point != "after the row")
    assert mv.gallery().manifest.operation == "lift"
    assert mv.gallery().manifest.generation == 2
    new = mv.gallery().vectors()[0]
    assert searched(mv, new, 5) == expected(mv, new, 5)
    mv.done("check", "--gc")
    (left,) = beside(mv)
    assert (left == first) == (point == "after the row")
    assert of(mv).row()["search_table"] == left
    assert searched(mv, new, 5) == expected(mv, new, 5)


def test_a_collection_that_gc_drops_meanwhile_is_not_named(
    mv: EngineShop, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc of another process runs between the writing and the commit: exit code 6, nothing is
    switched, and the same command works after it."""
    swept = sweep_before_the_commit(mv, monkeypatch)
    before = of(mv).row()
    refused = mv.run("lift", wide, *RIDGE)
    assert refused.code == 6
    assert "has 0 rows" in refused.json["error"]["message"]
    assert swept[0]
    assert of(mv).row() == before
    mv.done("lift", wide, *RIDGE)
    assert mv.done("check").json["ok"]


def test_damage_and_deletion_are_told(lifted: EngineShop) -> None:
    """A row that is missing in the new collection: check names it with exit code 5, verify ends
    with 6. A row that the application deletes: check names it, add --changed drops it there too;
    a new row is refused by name, as its vector is of the old space."""
    (side,), catalog = beside(lifted), lifted.gallery().catalog
    query, gone, damaged = lifted.gallery().vectors()[4], catalog.ids[4], catalog.ids[3]
    old = rows_in(lifted)[gone]["embedding"]
    of(lifted).delete([gone])
    told = lifted.run("check")
    assert told.code == 5
    assert f"are gone: {gone}" in told.json["problems"][0]
    lifted.done("add", "--changed")
    assert lifted.done("check").json["ok"]
    assert gone not in rows_in(lifted, side)
    assert searched(lifted, query, 3) == expected(lifted, query, 3)
    of(lifted).insert(["fresh"], np.array([old], np.float32))
    refused = lifted.run("add")
    assert refused.code == 2
    assert "is not for rows that an application wrote after a lift" in refused.stderr
    of(lifted).delete(["fresh"])
    with of(lifted).client() as client:
        client.delete(side, ids=[damaged])
    told = lifted.run("check")
    assert told.code == 5
    assert (
        f"of the side table are gone or have another vector: {damaged}"
        in (told.json["problems"][0])
    )
    assert lifted.run("verify", lifted.path("wide.onnx")).code == 6


def test_a_row_of_any_name_has_collections_beside(shop: Shop, collection: Collection) -> None:
    """Properties may be named with characters that the name of a collection may not hold."""
    fill(collection, shop)
    shop.path("store").rename(shop.path("folder"))
    shop_of = EngineShop(engine="milvus", shop=shop, table=None, collection=collection)
    shop_of.done("import", f"{collection.url}&name=shop-1.é", "--model", shop.path("old.onnx"))
    shop_of.done("lift", turned(shop, "wide.onnx", of="new.onnx", dim=F), *RIDGE)
    query = shop_of.gallery().vectors()[4]
    with collection.client() as client:
        row = client.describe_collection(collection.name)["properties"]
        table = row["shop-1.é.search_table"]
        hits = client.search(table, data=[query], anns_field="embedding", limit=3)[0]
    assert [hit["id"] for hit in hits] == expected(shop_of, query, 3)


def test_only_the_deleted_rows_are_erased_beside(mv: EngineShop, wide: Path) -> None:
    """Ids that end a quoted text, or hold an escape, name their own rows and no other."""
    hostile = ["x'] or id != '", 'q"', "back\\slash", "\\u0041", "line\nbreak", "'"]
    vectors = mv.gallery().vectors()[: len(hostile) + 1]
    of(mv).insert([*hostile, "A"], vectors)
    mv.done("add")
    mv.done("lift", wide, *RIDGE)
    (side,) = beside(mv)
    every = {*mv.gallery().catalog.ids}
    assert {*rows_in(mv, side)} == every
    with of(mv).client() as client:
        client.delete(of(mv).name, filter=f"id in {json.dumps(hostile)}")
    mv.done("add", "--changed")
    assert {*rows_in(mv, side)} == every - {*hostile}
    assert mv.done("check").json["ok"]


def test_a_divided_collection_is_refused_by_name(mv: EngineShop, wide: Path) -> None:
    """An application that searches one partition would find none in another collection."""
    with of(mv).client() as client:
        client.create_partition(of(mv).name, "winter")
        client.load_partitions(of(mv).name, ["winter"])
    refused = mv.run("lift", wide, *RIDGE)
    assert refused.code == 2
    assert "lift is not for a store whose rows are in milvus" in refused.stderr
    assert "winter" in refused.stderr
    assert beside(mv) == []
    told = run("doctor", of(mv).url, "--json")
    found = {part["name"]: part for part in told.json["findings"]}
    assert (told.code, found["side collections"]["status"]) == (0, "warning")


def test_no_answer_mixes_the_spaces(mv: EngineShop, wide: Path) -> None:
    """Applications that follow the row search while the gallery is lifted, rolled back and swept:
    the query is of the model that the row names, and no answer between two equal rows fails, is of
    another collection, or changes at one epoch."""
    vectors = {Store.open(mv.path("store")).manifest.query_model: mv.gallery().vectors()[0]}
    noise = np.random.default_rng(0).standard_normal(F)
    vectors[Encoder.load(wide).sha256] = (noise / np.linalg.norm(noise)).astype(np.float32)
    stop, errors, seen = threading.Event(), [], {}

    def read() -> None:
        with of(mv).client() as client:
            while not stop.is_set():
                row = _row(client, of(mv).name)
                try:
                    found = _found(client, row[2], vectors[row[1]], 5)
                except MilvusException as error:
                    found = [str(error)]
                if _row(client, of(mv).name) != row:
                    continue
                if len(found) == 1:
                    errors.append(found)
                seen.setdefault(row, set()).add(tuple(found))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    with Searcher.open(mv.path("store")) as searcher:
        mv.done("lift", wide, *RIDGE)
        assert searcher.search([image(mv)], 3).generation == 2
        for to in (1, 2, 1):
            mv.done("rollback", "--to", to)
        assert searcher.search([image(mv)], 3).generation == 5
    try:
        wait_for(lambda: "5" in {row[0] for row in list(seen)})
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert "1" in {row[0] for row in seen}
    assert all(len(answers) == 1 for answers in seen.values()), "one answer for each epoch"


def _row(client: MilvusClient, name: str) -> tuple[str, str, str]:
    found = client.describe_collection(name)["properties"]
    return tuple(found[f"compatctl.{part}"] for part in ("epoch", "query_model", "search_table"))
