"""A gallery that is partly in a side table: what is searched, what changes, and the way back."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import psycopg
import pytest
from engine_kit import EngineShop, example_of_the_page, expected, image
from kill_kit import killed
from postgres_kit import Table
from shop_kit import Shop, filtered_table, run, turned
from test_side_tables import contents, searched, side_tables

from compatctl.core.nearest import exact_search
from compatctl.data import load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.rewriting import replace_rows
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder
from compatctl.migration import backfill_step
from compatctl.progress import silent
from compatctl.store import Store

FORCE = ("--force", "--reason", "drill")


@pytest.fixture
def deployed(pg: EngineShop) -> EngineShop:
    """The better model over the rows of the noisy one, which are the application's."""
    pg.done("deploy", "--model", pg.path("new.onnx"), *FORCE)
    return pg


@pytest.fixture
def half(deployed: EngineShop) -> EngineShop:
    """Half of its rows are embedded anew."""
    deployed.done("backfill", "--share", 0.5, *FORCE)
    return deployed


def embedded(shop: EngineShop, name: str) -> np.ndarray:
    """Every item of the gallery as a model embeds it now, in the catalogue's order."""
    data, ids = load(shop.shop.data()), shop.gallery().catalog.ids
    items = data.take([data.row_of[item] for item in ids])
    return Encoder.load(shop.path(name)).embed(items).features


def first_half(ids: tuple[str, ...]) -> set[str]:
    """The items that a backfill takes first: by the hash of the id."""
    ordered = sorted(ids, key=lambda item: hashlib.sha256(item.encode()).hexdigest())
    return set(ordered[: -(-len(ids) // 2)])


def insert(shop: EngineShop, item: str, vector: np.ndarray) -> None:
    """A row that the application inserts."""
    assert shop.table is not None
    shop.table.execute("INSERT INTO items VALUES (%s, %s::vector, '')", item, str(vector.tolist()))


def update(shop: EngineShop, item: str, vector: np.ndarray) -> None:
    """A row that the application writes again."""
    assert shop.table is not None
    shop.table.execute(
        "UPDATE items SET embedding = %s::vector WHERE id = %s", str(vector.tolist()), item
    )


def unit(seed: int, dim: int) -> np.ndarray:
    """A random direction."""
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def again(shop: EngineShop, item: str) -> np.ndarray:
    """The item as the application's copy of the new model embeds it: nearly as the store does."""
    row = shop.gallery().catalog.row_of[item]
    vector = embedded(shop, "new.onnx")[row]
    vector = vector + 0.02 * unit(9, len(vector))
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_a_half_is_in_the_side_table_and_the_rest_in_the_applications(half: EngineShop) -> None:
    """Every row is, one by one, the new model's embedding or the application's row as it was; the
    application's table has not changed, and the statement of the row finds what exact search of
    these rows finds."""
    assert half.table is not None
    gallery = half.gallery()
    ids, before = gallery.catalog.ids, {item: text for item, text, _ in contents(half)}
    inside, fresh = first_half(ids), embedded(half, "new.onnx")
    for item, row, new in zip(ids, gallery.vectors(), fresh, strict=True):
        old = np.fromstring(before[item].strip("[]"), np.float32, sep=",")
        assert np.allclose(row, new if item in inside else old, atol=1e-5), item
    (side,) = side_tables(half)
    stored = half.table.execute(f"SELECT id FROM {side} ORDER BY id")
    assert {item for (item,) in stored} == inside
    old_rows = embedded(half, "old.onnx")
    for item, old in zip(ids, old_rows, strict=True):
        kept = np.fromstring(before[item].strip("[]"), np.float32, sep=",")
        assert np.allclose(kept, old, atol=1e-4), "the application's own rows stay"
    row, told = half.table.row(), half.done("status").json["engine"]
    assert (row["search_table"], row["side_table"]) == ("public.items", f"public.{side}")
    assert (told["side_table"], told["side_rows"]) == (f"public.{side}", len(inside))
    queries = fresh[:15]
    for query in queries:
        assert searched(half, query, 6) == expected(half, query, 6)
    keys, scores = gallery.index.search(queries, 6, 1000)
    exact = exact_search(queries, gallery.vectors(), 6)
    assert np.array_equal(gallery.catalog.rows_of(keys), exact.rows)
    assert np.allclose(scores, exact.scores, atol=1e-5)


def test_a_whole_backfill_ends_in_the_side_table_alone(half: EngineShop) -> None:
    """A larger share appends a batch; once every row is there the row names the side table, and
    doing it again does nothing."""
    assert half.table is not None
    n = len(contents(half))
    half.done("backfill", *FORCE)
    row, (side,) = half.table.row(), side_tables(half)
    assert (row["search_table"], row["side_batches"]) == (f"public.{side}", [1, 2])
    assert half.table.execute(f"SELECT count(*), count(DISTINCT id) FROM {side}") == [(n, n)]
    fresh = embedded(half, "new.onnx")
    assert np.allclose(half.gallery().vectors(), fresh, atol=1e-5)
    assert searched(half, fresh[3], 6) == expected(half, fresh[3], 6)
    assert not half.done("backfill", *FORCE).json["written"]
    shares = half.done("status").json["shares"]
    assert shares[Encoder.load(half.path("new.onnx")).sha256] == 1.0
    assert half.done("check").json["ok"]


def test_what_the_application_writes_is_followed(half: EngineShop) -> None:
    """A row that it inserts is found at once, one that it deletes no more; a row of the side table
    that it writes again is told by check, and after add --changed its own vector is searched."""
    assert half.table is not None
    gallery = half.gallery()
    dim, ids = gallery.manifest.index.dim, gallery.catalog.ids
    inside = sorted(first_half(ids))
    insert(half, "fresh", unit(1, dim))
    assert searched(half, unit(1, dim), 3)[0] == "fresh"
    gone = gallery.vectors()[gallery.catalog.row_of[inside[0]]]
    assert searched(half, gone, 3)[0] == inside[0]
    half.table.execute("DELETE FROM items WHERE id = %s", inside[0])
    assert inside[0] not in searched(half, gone, 20)
    written = again(half, inside[1])
    update(half, inside[1], written)
    told = half.run("check")
    assert told.code == 5
    assert f"have another vector: {inside[1]}" in told.json["problems"][0]
    half.done("add", "--changed")
    assert half.done("check").json["ok"]
    assert searched(half, written, 3)[0] == inside[1]
    row = half.gallery().catalog.row_of[inside[1]]
    assert np.allclose(half.gallery().vectors()[row], written, atol=1e-6)
    for query in half.gallery().vectors()[:10]:
        assert searched(half, query, 5) == expected(half, query, 5)


def test_rows_of_a_gallery_that_is_whole_beside_are_copied(half: EngineShop) -> None:
    """Once every row is in the side table, a row that the application inserts or writes again is
    searched after add, which copies it; nothing is embedded."""
    assert half.table is not None
    half.done("backfill", *FORCE)
    dim, ids = half.gallery().manifest.index.dim, half.gallery().catalog.ids
    insert(half, "fresh", unit(1, dim))
    written = again(half, ids[3])
    update(half, ids[3], written)
    assert searched(half, unit(1, dim), 3)[0] != "fresh"
    added = half.done("add", "--changed").json
    assert (added["added"], added["changed"]) == (1, [ids[3]])
    assert searched(half, unit(1, dim), 3)[0] == "fresh"
    row = half.gallery().catalog.row_of[ids[3]]
    assert np.allclose(half.gallery().vectors()[row], written, atol=1e-6)
    assert half.done("check").json["ok"]
    for query in half.gallery().vectors()[:10]:
        assert searched(half, query, 5) == expected(half, query, 5)
    assert half.table.row()["search_table"] != "public.items"


def test_the_example_of_the_page_searches_every_form(half: EngineShop) -> None:
    """The code of docs/engines.md finds what exact search finds: with half of the rows in the side
    table, with all of them, and over the application's table alone."""
    assert half.table is not None
    fresh = embedded(half, "new.onnx")[7]
    encoders = {Encoder.load(half.path("new.onnx")).sha256: lambda _: fresh}
    example, answers = example_of_the_page(), []
    with half.table.connection() as connection:
        for command in ((), ("backfill", *FORCE), ("rollback", "--to", 2)):
            if command:
                half.done(*command)
            found = [item for item, _ in example(connection, encoders, "an image", 6)]
            assert found == expected(half, fresh, 6)
            answers.append(tuple(found))
    assert len(set(answers)) > 1


def test_rollback_of_backfills_needs_the_row_alone(half: EngineShop) -> None:
    """Back to each generation, the answers are those that it gave; check finds nothing."""
    queries, answers = half.gallery().vectors()[:8], {}
    half.done("backfill", "--share", 0.8, *FORCE)

    def answered() -> list[list[str]]:
        return [searched(half, query, 6) for query in queries]

    answers[4] = answered()
    for to in (3, 2, 4, 1, 3):
        half.done("rollback", "--to", to)
        answers.setdefault(to, answered())
        assert answered() == answers[to]
        assert [expected(half, query, 6) for query in queries] == answers[to]
    assert len({str(answer) for answer in answers.values()}) > 2
    assert half.done("check").json["ok"]
    half.done("check", "--gc")
    half.done("rollback", "--to", 4)
    assert answered() == answers[4]


@pytest.mark.parametrize("point", ["before the row", "after the row"])
def test_a_killed_step_embeds_nothing_twice(deployed: EngineShop, point: str) -> None:
    """The first step is killed in its commit: what is searched is one generation or the other, the
    same command goes on, and no item passes the encoder twice; gc drops the killed batch."""
    assert deployed.table is not None
    n, query = len(contents(deployed)), deployed.gallery().vectors()[0]
    before = searched(deployed, query, 5)
    words = ("--step", "60", *FORCE)
    killed(point, "backfill", *deployed.shop.args, *words)
    (side,) = side_tables(deployed)
    assert deployed.table.execute(f"SELECT count(*) FROM {side}") == [(60,)]
    if point == "before the row":
        assert searched(deployed, query, 5) == before
    result = deployed.done("backfill", *words).json
    assert result["passed"] == n, "of both runs together"
    assert deployed.done("status").json["shares"] == {deployed.gallery().manifest.query_model: 1.0}
    deployed.done("check", "--gc")
    assert deployed.table.execute(f"SELECT count(*) FROM {side}") == [(n,)]
    assert deployed.done("check").json["ok"]
    fresh = embedded(deployed, "new.onnx")
    assert searched(deployed, fresh[5], 5) == expected(deployed, fresh[5], 5)


def test_a_row_that_is_gone_ends_a_backfill_which_goes_on(
    deployed: EngineShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application deletes an adopted row while the second step is embedded: exit code 6, the
    first step stays; after add --changed the same command embeds nothing a second time."""
    assert deployed.table is not None
    judge, gone = backfill_step.try_backfill, deployed.gallery().catalog.ids[7]
    calls: list[int] = []

    def judged(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            assert deployed.table is not None
            deployed.table.execute("DELETE FROM items WHERE id = %s", gone)
        return judge(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(backfill_step, "try_backfill", judged)
    words = ("backfill", "--step", "60", *FORCE)
    ended = deployed.run(*words)
    assert ended.code == 6, ended.stderr
    assert f"1 rows are gone: {gone}" in ended.json["error"]["message"]
    assert deployed.gallery().manifest.operation == "backfill"
    deployed.done("add", "--changed")
    result = deployed.done(*words).json
    assert (result["share"], result["resumed"]) == (1.0, True)
    assert result["passed"] <= len(contents(deployed)) + 1
    assert deployed.done("check").json["ok"]


def test_rows_that_are_added_during_a_step_are_taken_over(
    deployed: EngineShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application inserts a row and it is added between a step's batch and its commit: the step
    takes it over, and writes no second batch."""
    assert deployed.table is not None
    measure, added = backfill_step.measure_ann_recall, []
    dim = deployed.gallery().manifest.index.dim

    def measured(*arguments: object) -> object:
        if not added:
            insert(deployed, "fresh", unit(1, dim))
            added.append(deployed.done("add").json["added"])
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backfill_step, "measure_ann_recall", measured)
    result = deployed.done("backfill", "--share", 0.5, *FORCE).json
    assert added == [1]
    assert result["steps"][0]["rebased"] == 1
    assert deployed.table.row()["side_batches"] == [1]
    assert searched(deployed, unit(1, dim), 2)[0] == "fresh"
    assert deployed.done("check").json["ok"]


def test_the_application_writes_and_searches_while_steps_are_written(deployed: EngineShop) -> None:
    """Rows are inserted and deleted all along, and three readers follow the row: no search fails,
    no answer has a deleted row, and at one epoch the answer to one query never changes."""
    assert deployed.table is not None
    gallery = deployed.gallery()
    query, dim = gallery.vectors()[0], gallery.manifest.index.dim
    far = -query
    stop, errors, seen = threading.Event(), [], {}

    def read() -> None:
        assert deployed.table is not None
        with deployed.table.connection() as connection:
            cursor = psycopg.RawCursor(connection)
            while not stop.is_set():
                try:
                    epoch, statement = cursor.execute(
                        "SELECT epoch, search_sql FROM compatctl_deployment"
                    ).fetchone()
                    values = (str(query.tolist()), 5, epoch)
                    if found := cursor.execute(statement, values).fetchall():
                        seen.setdefault(epoch, set()).add(tuple(item for item, _ in found))
                except psycopg.Error as error:
                    errors.append(error)
                    return

    def write() -> None:
        for number in range(10_000):
            if stop.is_set():
                return
            vector = far + 0.1 * unit(number, dim)
            insert(deployed, f"w{number}", vector / np.linalg.norm(vector))
            if number % 2:
                assert deployed.table is not None
                deployed.table.execute("DELETE FROM items WHERE id = %s", f"w{number - 1}")

    threads = [*(threading.Thread(target=read) for _ in range(3)), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    with Searcher.open(deployed.path("store")) as searcher:
        deployed.done("backfill", "--step", "50", "--share", 0.9, *FORCE)
        answer = searcher.search([image(deployed)], 5)
        assert answer.generation == deployed.gallery().manifest.generation > 4
    deployed.done("rollback", "--to", 2)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(seen) >= 3
    assert {epoch: len(answers) for epoch, answers in seen.items()} == dict.fromkeys(seen, 1)
    deployed.done("add")
    assert deployed.done("check").json["ok"]


@pytest.fixture
def many(
    shop: Shop, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[DeployedGallery, np.ndarray]:
    """A table that is large enough for PostgreSQL to prefer an index, and its rows."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # no project file
    noise = np.random.default_rng(3).standard_normal((6000, 32)).astype(np.float32)
    vectors = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    table.create([f"row {number}" for number in range(len(vectors))], vectors)
    table.execute("ANALYZE items")
    words = ("--model", shop.path("old.onnx"), "--store", shop.path("adopted"), "--json")
    made = run("import", table.url, *words)
    assert made.code == 0, made.stderr
    return DeployedGallery.open(Store.open(shop.path("adopted"))), vectors


@pytest.mark.parametrize("share", [0.05, 0.5, 0.98, 0.995])
def test_filters_leave_no_query_without_its_rows(
    many: tuple[DeployedGallery, np.ndarray], table: Table, share: float
) -> None:
    """However many rows are embedded anew, both HNSW indexes are used, every query gets its k rows,
    and at least 95 of 100 are those of the exact search. The last one in a hundred is taken over as
    it is, and the side table alone is searched."""
    gallery, vectors = many
    store, catalog = gallery.store, gallery.catalog
    rng = np.random.default_rng(5)
    chosen = np.sort(rng.permutation(len(vectors))[: int(share * len(vectors))])
    noise = rng.standard_normal((len(chosen), 32)).astype(np.float32)
    fresh = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    built = replace_rows(
        store, catalog, chosen, rows_at=lambda positions: fresh[positions], progress=silent
    )
    mixed = gallery.vectors()
    mixed[chosen] = fresh
    assert np.allclose(built.vectors(catalog.keys[:300]), mixed[:300], atol=1e-6)
    queries = mixed[rng.permutation(len(mixed))[:40]]
    keys, scores = built.search(queries, 20, 100)
    exact = exact_search(queries, mixed, 20)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    found = [len(np.intersect1d(row, catalog.keys[best])) for row, best in
             zip(keys, exact.rows, strict=True)]  # fmt: skip
    assert np.mean(found) / 20 >= 0.95
    statement = built._search._statement  # type: ignore[attr-defined]
    values = {"q": queries[0].tolist(), "k": 20, "ef": "100", "epoch": None, "name": "items"}
    with table.connection() as connection:
        lines = connection.execute(b"EXPLAIN " + statement.as_bytes(connection), values).fetchall()
    plan = "\n".join(line for (line,) in lines)
    assert plan.count("embedding_idx") == (1 if share > 0.99 else 2), plan
    assert "Seq Scan on items" not in plan


@pytest.mark.parametrize("made", ["backfilled", "lifted"])
def test_rows_that_were_adopted_since_are_embedded_by_the_restored_model(
    pg: EngineShop, made: str
) -> None:
    """Three rows are adopted between a generation and a backfill, or a lift, after it. Back at that
    generation, each row is the old model's: the application's where it adopted it, and embedded
    beside the table where not; without the data, exit code 6; nothing is written to the table."""
    assert pg.table is not None
    ids, old = pg.gallery().catalog.ids, pg.gallery().vectors()
    pg.table.execute("DELETE FROM items WHERE id = ANY(%s)", list(ids[:3]))
    pg.done("add", "--changed")
    start = pg.gallery().manifest.generation
    pg.done("deploy", "--model", pg.path("new.onnx"), *FORCE)
    fresh = Encoder.load(pg.path("new.onnx"))
    data = load(pg.shop.data())
    rows = fresh.embed(data.take([data.row_of[item] for item in ids[:3]])).features
    for item, row in zip(ids[:3], rows, strict=True):
        insert(pg, item, row)
    pg.done("add")
    if made == "backfilled":
        pg.done("backfill", "--share", 0.5, *FORCE)
    else:
        pg.done("lift", turned(pg.shop, "wide.onnx", of="new.onnx", dim=48), "--kind", "ridge")
    before = contents(pg)
    without = filtered_table(pg.shop, lambda entry: entry["id"] not in ids[:3])
    refused = pg.run("rollback", "--to", start, "--data", without)
    assert refused.code == 6
    assert "whose query model has to embed them" in refused.json["error"]["message"]
    back = pg.done("rollback", "--to", start).json
    assert (back["re_embedded"], back["dropped"]) == (3, [])
    assert contents(pg) == before
    gallery = pg.gallery()
    assert gallery.manifest.query_model == Encoder.load(pg.path("old.onnx")).sha256
    assert sorted(gallery.catalog.ids) == sorted(ids)
    stored = gallery.vectors()[[gallery.catalog.row_of[item] for item in ids]]
    assert np.allclose(stored, old, atol=1e-4)
    (table,) = (name for name in side_tables(pg) if pg.table.row()["side_table"].endswith(name))
    beside = pg.table.execute(f"SELECT id FROM {table} WHERE batch = ANY (%s)",
                              pg.table.row()["side_batches"])  # fmt: skip
    assert {item for (item,) in beside} == set(ids[:3])
    for query in old[:8]:
        assert searched(pg, query, 6) == expected(pg, query, 6)
    assert pg.done("check").json["ok"]
