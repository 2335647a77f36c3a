"""Vectors that a store computes go to a table beside the application's, a lift's all at once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import psycopg
import pytest
from engine_kit import EngineShop, expected, image, sweep_before_the_commit
from kill_kit import killed
from serve_kit import wait_for
from shop_kit import run, turned

from compatctl.core.nearest import exact_search
from compatctl.data import load
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder
from compatctl.engines import FencedSearch, Scan, StaleEpochError
from compatctl.engines.connection import connect
from compatctl.engines.location import TableLocation
from compatctl.index import EngineIndex
from compatctl.store import Store

F = 48
RIDGE = ("--kind", "ridge")


@pytest.fixture
def wide(pg: EngineShop) -> Path:
    """A model of another space, of 48 dimensions."""
    return turned(pg.shop, "wide.onnx", of="new.onnx", dim=F)


@pytest.fixture
def lifted(pg: EngineShop, wide: Path) -> EngineShop:
    """The project, lifted to that model."""
    pg.done("lift", wide, *RIDGE)
    return pg


def contents(shop: EngineShop) -> list[tuple]:
    """Every row of the application's table, as text."""
    assert shop.table is not None
    return shop.table.execute("SELECT id, embedding::text, label FROM items ORDER BY id")


def side_tables(shop: EngineShop) -> list[str]:
    """The tables beside the application's."""
    assert shop.table is not None
    found = shop.table.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ^@ 'compatctl_items'"
    )
    return [name for (name,) in found]


def searched(shop: EngineShop, query: np.ndarray, k: int, epoch: int | None = None) -> list[str]:
    """The ids that an application finds, which runs the statement of the row."""
    assert shop.table is not None
    row = shop.table.row()
    with shop.table.connection() as connection:
        values = (str(query.tolist()), k, row["epoch"] if epoch is None else epoch)
        found = psycopg.RawCursor(connection).execute(row["search_sql"], values).fetchall()
    assert [distance for _, distance in found] == sorted(distance for _, distance in found)
    return [item for item, _ in found]


def test_a_lift_leaves_the_applications_table_as_it_is(pg: EngineShop, wide: Path) -> None:
    """Every row is mapped into the side table, as its model file says; the application's table has
    the rows and columns of before, and the row names the side table."""
    assert pg.table is not None
    before = contents(pg)
    done = pg.done("lift", wide, *RIDGE).json
    assert contents(pg) == before
    row, (side,) = pg.table.row(), side_tables(pg)
    assert (row["search_table"], row["id_column"], row["vector_column"]) == (
        f"public.{side}", "id", "embedding",
    )  # fmt: skip
    assert (row["side_table"], row["side_batches"]) == (f"public.{side}", [1])
    assert Encoder.load(wide).sha256.startswith(side.rpartition("_")[2])
    gallery = pg.gallery()
    assert (done["dim"], gallery.vectors().shape) == (F, (len(before), F))
    (model,) = done["models"]
    path = gallery.store.blob_path("models", model["sha256"])
    data = load(pg.shop.data())
    ids = [item for item in data.ids if item in gallery.catalog.row_of]
    embedded = Encoder.load(path).embed(data.take([data.row_of[item] for item in ids])).features
    stored = gallery.vectors()[[gallery.catalog.row_of[item] for item in ids]]
    assert len(ids) > 50
    assert np.allclose(stored, embedded, atol=1e-3)


def test_a_lifted_gallery_is_searched_as_exact_search_does(lifted: EngineShop) -> None:
    """By compatctl, and by the statement that the application reads from the row."""
    gallery = lifted.gallery()
    queries = gallery.vectors()[:10]
    keys, scores = gallery.index.search(queries, 7, 1000)
    exact = exact_search(queries, gallery.vectors(), 7)
    assert np.array_equal(gallery.catalog.rows_of(keys), exact.rows)
    assert np.allclose(scores, exact.scores, atol=1e-5)
    for query in queries:
        assert searched(lifted, query, 5) == expected(lifted, query, 5)
    assert searched(lifted, queries[0], 5, epoch=1) == []
    assert lifted.done("search", image(lifted), "-k", 3).json["query_model"] == (
        lifted.gallery().manifest.query_model
    )


def test_a_lifted_gallery_is_judged_whole(lifted: EngineShop) -> None:
    """verify reads every row of the side table, and the recall of its index."""
    judged = lifted.run("verify", turned(lifted.shop, "other.onnx", of="worse.onnx", dim=F))
    assert judged.code in {0, 3, 4}, judged.stderr
    assert judged.json["store"]["stored_vectors"] == len(contents(lifted))
    assert judged.json["ann"]["recall_needed"] >= 0.95


def test_a_rollback_of_a_lift_needs_the_row_alone(lifted: EngineShop) -> None:
    """The old model searches the application's table again, with the answers of before; back to the
    lift and its side table, nothing is computed; gc drops the table once nothing needs it."""
    assert lifted.table is not None
    query = lifted.gallery().vectors()[0]
    after = searched(lifted, query, 5)
    lifted.done("rollback")
    row = lifted.table.row()
    assert (row["search_table"], row["side_table"], row["side_batches"]) == ("public.items", "", [])
    assert lifted.gallery().manifest.index.dim != F
    old = lifted.gallery().vectors()[0]
    assert searched(lifted, old, 5) == expected(lifted, old, 5)
    assert lifted.done("check").json["ok"]
    lifted.done("check", "--gc")
    assert len(side_tables(lifted)) == 1, "a rollback to the lift needs it"
    lifted.done("rollback", "--to", 2)
    assert searched(lifted, query, 5) == after
    assert lifted.table.row()["side_batches"] == [1]
    lifted.done("rollback", "--to", 1)
    for name in ("new.onnx", "old.onnx"):
        lifted.done("deploy", "--model", lifted.path(name), "--force", "--reason", "a drill")
    swept = lifted.done("check", "--gc", "--keep", 1).json
    assert side_tables(lifted) == []
    assert any("rows of the table compatctl_items_" in name for name in swept["deleted"])


@pytest.mark.parametrize("scan", Scan)
def test_who_searches_a_table_that_gc_dropped_is_told_of_the_epoch(
    lifted: EngineShop, scan: Scan
) -> None:
    """A reader that holds the statement of a lift learns that another generation serves, whatever
    the scan; one that follows the store answers by that generation; the connection goes on."""
    assert lifted.table is not None
    index = lifted.gallery().index
    assert isinstance(index, EngineIndex)
    query = lifted.gallery().vectors()[:70]
    with Searcher.open(lifted.path("store")) as searcher:
        lifted.done("rollback")
        for name in ("new.onnx", "old.onnx"):
            lifted.done("deploy", "--model", lifted.path(name), "--force", "--reason", "a drill")
        lifted.done("check", "--gc", "--keep", 1)
        assert side_tables(lifted) == []
        answers = searcher.search([image(lifted)], 3)
        assert answers.generation == lifted.gallery().manifest.generation > 2
    location = index.file.location.from_environment()
    file = index.file
    assert isinstance(location, TableLocation)
    search = FencedSearch(location, file.vector_type, file.operator, 2, True, file.side)
    with connect(location) as connection:
        with pytest.raises(StaleEpochError, match="is at epoch"):
            search.search(connection, query, 3, 64, scan)
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("point", ["before the history", "before the row", "after the row"])
def test_a_killed_lift_is_run_again(pg: EngineShop, wide: Path, point: str) -> None:
    """Before the row its batch is there and is not searched; the same command ends with one lift,
    and gc drops the batch of the killed one."""
    assert pg.table is not None
    query = pg.gallery().vectors()[0]
    before = searched(pg, query, 5)
    killed(point, "lift", *pg.shop.args, wide, *RIDGE)
    (side,) = side_tables(pg)
    n = len(contents(pg))
    if point != "after the row":
        assert searched(pg, query, 5) == before
        assert pg.table.execute(f"SELECT count(*) FROM {side}") == [(n,)]
        assert pg.done("check").json["ok"]
    done = pg.done("lift", wide, *RIDGE).json
    assert done["written"] == (point != "after the row")
    assert pg.gallery().manifest.operation == "lift"
    assert pg.gallery().manifest.generation == 2
    new = pg.gallery().vectors()[0]
    assert searched(pg, new, 5) == expected(pg, new, 5), "rows of the killed one are not found"
    pg.done("check", "--gc")
    assert pg.table.execute(f"SELECT count(*) FROM {side}") == [(n,)]
    assert searched(pg, new, 5) == expected(pg, new, 5)


def test_a_batch_that_gc_drops_meanwhile_is_not_named(
    pg: EngineShop, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc of another process runs between the writing and the commit: exit code 6, nothing is
    switched, and the same command works after it."""
    swept = sweep_before_the_commit(pg, monkeypatch)
    refused = pg.run("lift", wide, *RIDGE)
    assert refused.code == 6
    assert "has 0 rows" in refused.json["error"]["message"]
    assert swept[0]
    assert pg.shop.manifest()["generation"] == 1
    pg.done("lift", wide, *RIDGE)
    assert pg.done("check").json["ok"]


@pytest.mark.parametrize("change", ["DELETE FROM {} WHERE id = %s",
                                    "UPDATE {} SET embedding = (SELECT embedding FROM {} LIMIT 1 "
                                    "OFFSET 9) WHERE id = %s"])  # fmt: skip
def test_damage_of_the_side_table_is_told(lifted: EngineShop, change: str) -> None:
    """check names the row with exit code 5, and verify ends with 6."""
    assert lifted.table is not None
    (side,) = side_tables(lifted)
    item = lifted.gallery().catalog.ids[3]
    lifted.table.execute(change.format(side, side), item)
    told = lifted.run("check")
    assert told.code == 5
    assert f"of the side table are gone or have another vector: {item}" in told.json["problems"][0]
    other = turned(lifted.shop, "other.onnx", of="worse.onnx", dim=F)
    assert lifted.run("verify", other).code == 6


def test_rows_that_the_application_deletes_are_not_answered(lifted: EngineShop) -> None:
    """At once, by the statement and by compatctl; add --changed drops them from the catalogue and
    from the side table; a new row is refused by name, as its column is of the old space."""
    assert lifted.table is not None
    gallery = lifted.gallery()
    query, gone = gallery.vectors()[4], gallery.catalog.ids[4]
    assert searched(lifted, query, 3)[0] == gone
    lifted.table.execute("DELETE FROM items WHERE id = %s", gone)
    assert gone not in searched(lifted, query, 10)
    keys, _ = gallery.index.search(query[None], 3)
    assert gone not in [gallery.catalog.ids[row] for row in gallery.catalog.rows_of(keys)[0]]
    assert lifted.run("check").code == 5
    lifted.done("add", "--changed")
    assert lifted.done("check").json["ok"]
    (side,) = side_tables(lifted)
    assert lifted.table.execute(f"SELECT count(*) FROM {side} WHERE id = %s", gone) == [(0,)]
    assert searched(lifted, query, 3) == expected(lifted, query, 3)
    old = lifted.table.execute("SELECT embedding::text FROM items LIMIT 1")[0][0]
    lifted.table.execute("INSERT INTO items VALUES ('fresh', %s::vector, '')", old)
    refused = lifted.run("add")
    assert refused.code == 2
    assert "is not for rows that an application wrote after a lift" in refused.stderr


def test_what_was_computed_of_a_deleted_item_is_erased(lifted: EngineShop) -> None:
    """Also where the lift was rolled back: add --changed deletes the item's vector from the side
    table, and a rollback to the lift finds the other rows, which it still has."""
    assert lifted.table is not None
    lifted.done("rollback")
    gone, (side,) = lifted.gallery().catalog.ids[4], side_tables(lifted)
    held = f"SELECT count(*) FROM {side} WHERE id = %s"
    lifted.table.execute("DELETE FROM items WHERE id = %s", gone)
    assert lifted.table.execute(held, gone) == [(1,)]
    lifted.done("add", "--changed")
    assert lifted.table.execute(held, gone) == [(0,)]
    back = lifted.done("rollback", "--to", 2).json
    assert back["re_embedded"] == 0
    assert lifted.gallery().manifest.index.dim == F
    assert gone not in lifted.gallery().catalog.ids
    for query in lifted.gallery().vectors()[:8]:
        assert searched(lifted, query, 5) == expected(lifted, query, 5)
    assert lifted.done("check").json["ok"]


def test_an_erasure_that_fails_is_done_by_the_next_run(lifted: EngineShop) -> None:
    """Nothing is committed before what was computed of a deleted item is gone: the same command
    erases it later."""
    assert lifted.table is not None
    gone, (side,) = lifted.gallery().catalog.ids[4], side_tables(lifted)
    held = f"SELECT count(*) FROM {side} WHERE id = %s"
    lifted.table.execute("DELETE FROM items WHERE id = %s", gone)
    lifted.table.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'not now'; END $$"
    )
    lifted.table.execute(
        f"CREATE TRIGGER refuse BEFORE DELETE ON {side} FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    before = lifted.done("status").json["generation"]
    refused = lifted.run("add", "--changed")
    assert (refused.code, "not now" in refused.stderr) == (5, True)
    assert lifted.done("status").json["generation"] == before
    lifted.table.execute(f"DROP TRIGGER refuse ON {side}")
    lifted.done("add", "--changed")
    assert lifted.table.execute(held, gone) == [(0,)]
    assert lifted.done("check").json["ok"]


def test_who_may_read_the_row_may_read_the_side_table(
    pg: EngineShop, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that may read the application's table and the row runs the statement after a lift; a
    role that may create nothing cannot lift, and doctor says so."""
    assert pg.table is not None
    for role in ("reader", "clerk"):
        pg.table.execute(f"DROP ROLE IF EXISTS {role}")
        pg.table.execute(f"CREATE ROLE {role} LOGIN")
    pg.table.execute("GRANT SELECT ON items, compatctl_deployment TO reader")
    pg.table.execute("GRANT SELECT ON items TO clerk")
    pg.table.execute("GRANT SELECT, INSERT, UPDATE ON compatctl_deployment TO clerk")
    pg.done("lift", wide, *RIDGE)
    query, row = pg.gallery().vectors()[0], pg.table.row()
    url = pg.table.server.url(pg.table.database, "reader")
    with psycopg.connect(url) as connection:
        values = (str(query.tolist()), 4, row["epoch"])
        found = psycopg.RawCursor(connection).execute(row["search_sql"], values).fetchall()
    assert [item for item, _ in found] == expected(pg, query, 4)
    clerk = pg.table.url.replace("postgres@", "clerk@")
    told = run("doctor", clerk, "--json")
    found = {part["name"]: part for part in told.json["findings"]}
    assert (told.code, found["side tables"]["status"]) == (0, "warning")
    pg.done("rollback")
    monkeypatch.setenv("COMPATCTL_ENGINE_URL", clerk)
    refused = pg.run("lift", wide, *RIDGE)
    assert refused.code == 2
    assert "lift is not for a store whose rows are in pgvector" in refused.stderr
    assert "the role may not create tables in the schema public" in refused.stderr


def test_no_answer_mixes_the_spaces(pg: EngineShop, wide: Path) -> None:
    """An application that follows the row searches while the gallery is lifted and rolled back: its
    query has the dimension of the model that the row names, and no answer fails or is of another
    epoch."""
    assert pg.table is not None
    vectors = {Store.open(pg.path("store")).manifest.query_model: pg.gallery().vectors()[0]}
    rng = np.random.default_rng(0).standard_normal(F)
    vectors[Encoder.load(wide).sha256] = (rng / np.linalg.norm(rng)).astype(np.float32)
    stop, errors, seen = threading.Event(), [], {}

    def read() -> None:
        assert pg.table is not None
        with pg.table.connection() as connection:
            cursor = psycopg.RawCursor(connection)
            while not stop.is_set():
                try:
                    epoch, model, statement = cursor.execute(
                        "SELECT epoch, query_model, search_sql FROM compatctl_deployment"
                    ).fetchone()
                    query = str(vectors[model].tolist())
                    found = cursor.execute(statement, (query, 5, epoch)).fetchall()
                    if found:
                        seen.setdefault((epoch, model), set()).add(tuple(i for i, _ in found))
                except (psycopg.Error, KeyError) as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    with Searcher.open(pg.path("store")) as searcher:
        pg.done("lift", wide, *RIDGE)
        assert searcher.search([image(pg)], 3).generation == 2
        for to in (1, 2, 1):
            pg.done("rollback", "--to", to)
        assert searcher.search([image(pg)], 3).generation == 5
    try:
        wait_for(lambda: 5 in {epoch for epoch, _ in list(seen)})
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert 1 in {epoch for epoch, _ in seen}
    assert all(len(answers) == 1 for answers in seen.values()), "one answer for each epoch"
