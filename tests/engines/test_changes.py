"""Rows that the application inserts, writes again and deletes after they were adopted."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from engine_kit import EngineShop, example_of_the_page
from shop_kit import turned

from compatctl.data import load
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder

REPORT = "report.json"


@pytest.fixture
def changed(pg: EngineShop) -> EngineShop:
    """Six rows were taken out before the import: the application inserts, as new, three of them."""
    assert pg.table is not None
    gallery = pg.gallery()
    ids, vectors = gallery.catalog.ids[:6], gallery.vectors()[:6]
    table, store = pg.table, pg.path("store")
    table.execute("DELETE FROM items WHERE id = ANY(%s)", list(ids))
    table.execute("DROP TABLE compatctl_deployment")
    shutil.rmtree(store)
    pg.done("import", table.url, "--model", pg.path("old.onnx"))
    table.insert(ids[:3], vectors[:3], gallery.catalog.labels[:3])
    return pg


def test_new_rows_are_counted_named_and_left_out(changed: EngineShop) -> None:
    """status counts them, check and verify name them and go on, search answers without them."""
    assert changed.table is not None
    n = changed.gallery().manifest.index.count
    status = changed.done("status")
    assert (status.json["engine"]["rows"], status.json["engine"]["adopted"]) == (n + 3, n)
    assert f"the table has {n + 3} rows with a vector" in status.stderr
    checked = changed.done("check")
    assert [(entry["kind"], entry["count"]) for entry in checked.json["notices"]] == [
        ("new-rows", 3)
    ]
    judged = changed.done("verify", changed.path("new.onnx"))
    assert judged.json["store"]["stored_vectors"] == n
    assert ("new-rows", 3) in [(e["kind"], e["count"]) for e in judged.json["notices"]]
    keys, _ = changed.gallery().index.search(changed.gallery().vectors()[:5], n)
    assert [len(set(row)) for row in keys.tolist()] == [n] * 5


def test_add_adopts_new_rows_as_the_query_models(changed: EngineShop) -> None:
    """They are compared with the model, nothing is copied, the row moves to the next epoch; after a
    rollback of a deploy they stay."""
    assert changed.table is not None
    n = changed.gallery().manifest.index.count
    dry = changed.done("add", "--dry-run").json
    assert (dry["added"], dry["written"], changed.table.row()["epoch"]) == (3, False, 1)
    added = changed.done("add").json
    assert (added["added"], added["present"], added["rows"]) == (3, n, n + 3)
    assert added["uncompared"] == 0
    assert changed.table.row()["epoch"] == 2
    assert changed.table.execute("SELECT count(*) FROM items") == [(n + 3,)]
    assert not changed.done("add").json["written"]
    changed.done("verify", changed.path("new.onnx"), "--report", changed.path(REPORT))
    changed.done("deploy", "--report", changed.path(REPORT))
    changed.done("rollback")
    changed.done("rollback", "--to", 1)
    assert changed.gallery().manifest.index.count == n + 3, "rows are the application's"
    assert changed.done("check").json["problems"] == []


def test_rollback_never_drops_the_applications_rows(changed: EngineShop) -> None:
    """--added drop is refused across an add; without it the model goes back and the rows stay."""
    changed.done("add")
    changed.done("verify", changed.path("new.onnx"), "--report", changed.path(REPORT))
    changed.done("deploy", "--report", changed.path(REPORT))
    refused = changed.run("rollback", "--to", 1, "--added", "drop")
    assert refused.code == 2
    assert "the application owns" in refused.json["error"]["message"]
    back = changed.done("rollback", "--to", 1).json
    assert back["kept"] == 3
    assert (
        changed.done("status").json["query_model"] == Encoder.load(changed.path("old.onnx")).sha256
    )


def test_rows_of_another_model_are_not_adopted(changed: EngineShop) -> None:
    """New rows that the query model did not make are refused, and nothing changes."""
    assert changed.table is not None
    other = turned(changed.shop, "other.onnx", of="old.onnx")
    items, known = load(changed.shop.data()), set(changed.gallery().catalog.ids)
    new = [item for (item,) in changed.table.execute("SELECT id FROM items") if item not in known]
    assert len(new) == 3
    embedded = Encoder.load(other).embed(items.take([items.row_of[i] for i in new])).features
    for item, row in zip(new, embedded, strict=True):
        changed.table.execute(
            "UPDATE items SET embedding = %s::vector WHERE id = %s", str(row.tolist()), item
        )
    refused = changed.run("add")
    assert refused.code == 5
    assert "did not fill this index" in refused.json["error"]["message"]
    assert changed.table.row()["epoch"] == 1


def test_changed_and_deleted_rows_stop_what_relies_on_them(changed: EngineShop) -> None:
    """check lists both with exit code 5, verify ends with 6, add refuses; add --changed adopts the
    rows as they are, and all is well again."""
    assert changed.table is not None
    gallery = changed.gallery()
    n, ids = len(gallery.catalog), gallery.catalog.ids
    swapped, gone = (ids[10], ids[11]), ids[20]
    rows = gallery.vectors()
    noise = np.random.default_rng(0).standard_normal(rows.shape[1]) * 1e-3
    near = (rows[10] + noise).astype(np.float32)
    changed.table.execute(
        "UPDATE items SET embedding = %s::vector WHERE id = %s", str(near.tolist()), swapped[0]
    )
    changed.table.execute("UPDATE items SET label = 'another' WHERE id = %s", swapped[1])
    changed.table.execute("DELETE FROM items WHERE id = %s", gone)
    told = changed.run("check")
    assert told.code == 5
    assert (
        f"1 rows are gone: {gone}; 1 rows have another vector: {swapped[0]}"
        in (told.json["problems"][0])
    )
    judged = changed.run("verify", changed.path("new.onnx"))
    assert judged.code == 6
    assert "is not what the store adopted" in judged.json["error"]["message"]
    refused = changed.run("add")
    assert refused.code == 5
    assert "1 rows have another class" in refused.json["error"]["message"]
    added = changed.done("add", "--changed").json
    assert (added["added"], added["changed"], added["removed"], added["relabelled"]) == (
        3, [swapped[0]], [gone], [swapped[1]],
    )  # fmt: skip
    assert added["rows"] == n + 2
    assert changed.done("check").json["problems"] == []
    assert changed.done("verify", changed.path("new.onnx")).json["store"]["stored_vectors"] == n + 2
    after = changed.gallery()
    assert gone not in after.catalog.ids
    assert after.catalog.labels[after.catalog.row_of[swapped[1]]] == "another"


def test_new_rows_without_their_items_are_unproven(changed: EngineShop) -> None:
    """Where the data has none of the new items, they are adopted with a notice, and the store is
    marked until verify compares."""
    assert changed.table is not None
    row = changed.gallery().vectors()[:1]
    changed.table.execute("DELETE FROM items WHERE id = ANY(%s)", [
        item for (item,) in changed.table.execute("SELECT id FROM items")
        if item not in set(changed.gallery().catalog.ids)
    ])  # fmt: skip
    changed.table.insert(["unknown item"], row)
    added = changed.done("add")
    assert added.json["uncompared"] == 1
    assert [entry["kind"] for entry in added.json["notices"]] == ["unproven-rows"]
    assert not changed.done("status").json["proven"]


def test_a_searcher_follows_the_row(changed: EngineShop) -> None:
    """One searcher over a deploy and a rollback: each answer is of the model of its generation."""
    changed.done("verify", changed.path("new.onnx"), "--report", changed.path(REPORT))
    image = next(changed.shop.data().parent.rglob("*.png"))
    models = {name: Encoder.load(changed.path(name)).sha256 for name in ("old.onnx", "new.onnx")}
    with Searcher.open(changed.path("store")) as searcher:
        first = searcher.search([image], 3)
        assert (first.generation, first.query_model) == (1, models["old.onnx"])
        changed.done("deploy", "--report", changed.path(REPORT))
        second = searcher.search([image], 3)
        assert (second.generation, second.query_model) == (2, models["new.onnx"])
        changed.done("rollback")
        third = searcher.search([image], 3)
        assert (third.generation, third.query_model) == (3, models["old.onnx"])
        assert third.ids == first.ids


def test_the_example_of_the_page_searches_and_repeats(changed: EngineShop) -> None:
    """The code of docs/engines.md, as it stands there: it answers, and where the row is switched
    between its two statements it embeds again with the new model."""
    assert changed.table is not None
    example = example_of_the_page()
    changed.done("verify", changed.path("new.onnx"), "--report", changed.path(REPORT))
    vector = changed.gallery().vectors()[0]
    used: list[str] = []

    def encoder(name: str, switch: bool) -> object:
        def embed(_: object) -> np.ndarray:
            used.append(name)
            if switch and used == [name]:
                changed.done("deploy", "--report", changed.path(REPORT))
            return vector

        return embed

    encoders = {
        Encoder.load(changed.path(name)).sha256: encoder(name, name == "old.onnx")
        for name in ("old.onnx", "new.onnx")
    }
    with changed.table.connection() as connection:
        found = example(connection, encoders, "an image", 4)
    assert used == ["old.onnx", "new.onnx"]
    assert len(found) == 4
    assert found[0][0] == changed.gallery().catalog.ids[0]


def test_a_plan_recommends_only_what_the_engine_can_do(pg: EngineShop) -> None:
    """For a model of another space re-embedding would gain; of a table it is shown for comparison:
    what is recommended is a query model over the rows as they are, or a lift beside them."""
    planned = pg.done("plan", "--new", pg.path("turned.onnx"), "--kind", "ridge").json
    routes = {route["name"]: route["verdict"] for route in planned["routes"]}
    assert "lift" in routes
    assert planned["recommended"] not in {"lazy", "re-embed"}
    assert "lazy, re-embed are for comparison only: an application owns" in planned["reason"]
    assert not any(word in " ".join(planned["commands"]) for word in ("--rescore", "init"))
