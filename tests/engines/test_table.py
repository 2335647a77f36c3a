"""What a table may be: adopted as it is, adopted with a notice, or refused by name."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from numpy.typing import NDArray
from postgres_kit import Server, Table, running_server
from shop_kit import DIM, Result, Shop, run

from compatctl.core.nearest import exact_search
from compatctl.deployment.gallery import DeployedGallery
from compatctl.engines import FencedSearch
from compatctl.store import Store


@dataclass(frozen=True)
class Rows:
    """The rows that the old model made, and how to import a table of them."""

    shop: Shop
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    vectors: NDArray[np.float32]

    def adopt(self, url: str, *words: object) -> Result:
        """Import a table without data: only its rows are looked at."""
        store = self.shop.path("adopted")
        shutil.rmtree(store, ignore_errors=True)
        return run("import", url, "--model", self.shop.path("old.onnx"), "--store", store,
                   "--json", *words)  # fmt: skip

    def gallery(self) -> DeployedGallery:
        """The adopted gallery."""
        return DeployedGallery.open(Store.open(self.shop.path("adopted")))


@pytest.fixture
def rows(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """The rows of the project's store, in a folder without a project file."""
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    monkeypatch.chdir(empty)
    catalog = gallery.catalog
    return Rows(shop=shop, ids=catalog.ids, labels=catalog.labels, vectors=gallery.vectors())


def kinds(result: Result) -> dict[str, int]:
    """Kind of a notice -> its count."""
    return {entry["kind"]: entry["count"] for entry in result.json.get("notices", [])}


def _view(table: Table, rows: Rows) -> str:
    table.create(rows.ids, rows.vectors, rows.labels)
    table.execute("CREATE VIEW seen AS SELECT * FROM items")
    return table.url.replace("/items?", "/seen?")


def _column(**names: str) -> Callable[[Table, Rows], str]:
    def make(table: Table, rows: Rows) -> str:
        table.create(rows.ids, rows.vectors, rows.labels)
        columns = {"id": "id", "vector": "embedding", "label": "label", **names}
        return f"{table.url.partition('?')[0]}?{urlencode(columns)}"

    return make


def _altered(*statements: str, **options: object) -> Callable[[Table, Rows], str]:
    def make(table: Table, rows: Rows) -> str:
        table.create(rows.ids, rows.vectors, rows.labels, **options)  # type: ignore[arg-type]
        for statement in statements:
            table.execute(statement)
        return table.url

    return make


def _numbers(table: Table, rows: Rows) -> str:
    numbers = np.arange(len(rows.ids)) / 2
    table.create(numbers.tolist(), rows.vectors, rows.labels, id_type="double precision")
    return table.url


def _twice(table: Table, rows: Rows) -> str:
    table.create((*rows.ids, rows.ids[3]), np.vstack([rows.vectors, rows.vectors[:1]]),
                 primary=False)  # fmt: skip
    return table.url


def _long(table: Table, rows: Rows) -> str:
    table.create(rows.ids, rows.vectors, index="", space="ip")
    table.execute("UPDATE items SET embedding = (embedding::real[])::vector * "
                  f"(SELECT array_fill(2.0::real, ARRAY[{DIM}])::vector)")  # fmt: skip
    table.execute("CREATE INDEX ON items USING hnsw (embedding vector_ip_ops)")
    return table.url


def _other_dimension(table: Table, rows: Rows) -> str:
    table.create(rows.ids, rows.vectors[:, :8])
    return table.url


REFUSED: dict[str, tuple[Callable[[Table, Rows], str], int, str]] = {
    "no table": (lambda table, _: table.url, 5, "there is no table items"),
    "a view": (_view, 5, "seen is a view"),
    "no id column": (_column(id="key"), 5, "the table has no column key"),
    "no vector column": (_column(vector="v"), 5, "the table has no column v"),
    "no label column": (_column(label="class"), 5, "the table has no column class"),
    "ids that are no ids": (_numbers, 5, "of type double precision"),
    "arrays": (
        _altered("ALTER TABLE items ALTER embedding TYPE real[]", index=""), 5,
        "of type real[], not vector or halfvec",
    ),
    "sparse vectors": (
        _altered(f"ALTER TABLE items ALTER embedding TYPE sparsevec({DIM})", index=""), 5,
        "of type sparsevec",
    ),
    "another dimension": (_other_dimension, 5, f"8 dimensions, the model has {DIM}"),
    "rows of another dimension": (
        _altered(
            "ALTER TABLE items ALTER embedding TYPE vector",
            "INSERT INTO items VALUES ('odd', '[1,0,0]')",
            index="",
        ), 5, f"vectors of 3 dimensions, not {DIM}: odd",
    ),
    "an id twice": (_twice, 5, "1 ids are there twice"),
    "a null id": (
        _altered("ALTER TABLE items ALTER id DROP NOT NULL",
                 "UPDATE items SET id = NULL WHERE ctid = '(0,3)'", primary=False), 5,
        "a row has a vector and no id",
    ),
    "a zero vector": (
        _altered(f"INSERT INTO items VALUES ('nil', array_fill(0::real, ARRAY[{DIM}])::vector)"),
        5, "1 rows have a zero vector, which no direction has: nil",
    ),
    "norms that rank": (_long, 5, "norms from 2 to 2 and are ranked by inner product"),
    "no rows": (_altered("DELETE FROM items"), 5, "no row has a vector"),
    "an old pgvector": (
        _altered("UPDATE pg_extension SET extversion = '0.4.4' WHERE extname = 'vector'"), 5,
        "pgvector 0.4.4 has no hnsw",
    ),
    "two rankings": (
        _altered("CREATE INDEX ON items USING hnsw (embedding vector_l2_ops)"), 2,
        "indexes that rank by cosine and by l2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_a_gallery_is_refused_by_name(
    rows: Rows, table: Table, name: str
) -> None:
    """The message says what is wrong; neither a store nor a row is left behind."""
    make, code, message = REFUSED[name]
    refused = rows.adopt(make(table, rows))
    assert refused.code == code, refused.stderr
    assert message in refused.json["error"]["message"]
    assert not rows.shop.path("adopted").exists()
    assert table.execute("SELECT to_regclass('compatctl_deployment')") == [(None,)]


def test_a_database_without_pgvector_is_refused(rows: Rows, postgres: Server) -> None:
    """The message names the extension, and the tip how to create it."""
    name = postgres.database()
    table = Table(server=postgres, database=name)
    table.execute("DROP EXTENSION vector")
    table.execute("CREATE TABLE items (id text, embedding real[], label text)")
    refused = rows.adopt(table.url)
    assert refused.code == 5
    assert "the extension vector is not in this database" in refused.json["error"]["message"]
    assert refused.json["error"]["tip"] == "CREATE EXTENSION vector"


def test_a_role_that_may_not_switch_is_refused(rows: Rows, table: Table) -> None:
    """Reading alone is not enough; with the rights that the tip names it is."""
    table.create(rows.ids, rows.vectors, rows.labels)
    table.execute("CREATE ROLE reader LOGIN")
    table.execute("GRANT SELECT ON items TO reader")
    url = table.url.replace("postgres@", "reader@")
    refused = rows.adopt(url)
    assert refused.code == 5
    assert "may not write compatctl_deployment" in refused.json["error"]["message"]
    table.execute("GRANT CREATE ON SCHEMA public TO reader")
    assert rows.adopt(url).code == 0
    table.execute("REASSIGN OWNED BY reader TO postgres")
    table.execute("DROP OWNED BY reader")
    table.execute("DROP ROLE reader")


NOTICED: dict[str, tuple[Callable[[Table, Rows], str], str]] = {
    "rows without a vector": (
        _altered("INSERT INTO items VALUES ('later', NULL), ('too', NULL)"), "null-vectors",
    ),
    "no index": (_altered(index=""), "no-index"),
    "an index of an expression": (
        _altered(f"CREATE INDEX ON items USING hnsw ((embedding::halfvec({DIM})) "
                 "halfvec_cosine_ops)", index=""), "no-index",
    ),
    "an index of some rows": (
        _altered("CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops) "
                 "WHERE label <> ''", index=""), "no-index",
    ),
    "ivfflat": (_altered(index="ivfflat"), "ivfflat"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTICED)
def test_what_is_not_used_is_told(rows: Rows, table: Table, name: str) -> None:
    """The table is adopted with one notice, and search is exact all the same."""
    make, kind = NOTICED[name]
    adopted = rows.adopt(make(table, rows))
    assert adopted.code == 0, adopted.stderr
    assert list(kinds(adopted)) == [kind]
    _searches_exactly(rows)


def _searches_exactly(rows: Rows, tolerance: float = 1e-5) -> None:
    gallery = rows.gallery()
    assert sorted(gallery.catalog.ids) == sorted(rows.ids)
    row_of = {item: row for row, item in enumerate(rows.ids)}
    order = [row_of[item] for item in gallery.catalog.ids]
    stored = gallery.vectors()
    assert np.allclose(stored, rows.vectors[order], atol=tolerance)
    queries = rows.vectors[::9]
    keys, scores = gallery.index.search(queries, 5, 1000)
    exact = exact_search(queries, stored, 5)
    assert np.allclose(scores, exact.scores, atol=tolerance)
    assert (keys[:, 0] == gallery.catalog.keys[exact.rows[:, 0]]).all()


@pytest.mark.parametrize("space", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_each_type_and_ranking_gives_cosines(
    rows: Rows, table: Table, kind: str, space: str
) -> None:
    """vector and halfvec, by each operator: the scores are the cosines of the stored rows."""
    table.create(rows.ids, rows.vectors, rows.labels, kind=kind, space=space)
    adopted = rows.adopt(table.url)
    assert adopted.code == 0, adopted.stderr
    assert not kinds(adopted)
    _searches_exactly(rows, tolerance=2e-3 if kind == "halfvec" else 1e-5)
    assert rows.gallery().manifest.index.space == space


@pytest.mark.parametrize("kind", ["bigint", "integer", "uuid", "character varying"])
def test_ids_of_each_type_name_the_items(rows: Rows, table: Table, kind: str) -> None:
    """The item's id is the text of the column; look-ups go by the column's own type."""
    n = len(rows.ids)
    made: dict[str, list[object]] = {
        "uuid": [str(uuid.UUID(int=number * 7919)) for number in range(n)],
        "character varying": [f"sku {number}, 'quoted' {{}}" for number in range(n)],
    }
    ids = made.get(kind, [number * 3 - 30 for number in range(n)])
    table.create(ids, rows.vectors, rows.labels, id_type=kind)
    assert rows.adopt(table.url).code == 0
    gallery = rows.gallery()
    row_of = {str(item): row for row, item in enumerate(ids)}
    order = [row_of[item] for item in gallery.catalog.ids]
    assert np.array_equal(gallery.index.vectors(gallery.catalog.keys[[4, 1]]),
                          gallery.vectors()[[4, 1]])  # fmt: skip
    assert np.allclose(gallery.vectors(), rows.vectors[order], atol=1e-6)
    assert [gallery.catalog.labels[row] for row in range(n)] == [rows.labels[row] for row in order]


def test_rows_of_any_length_are_adopted_by_their_direction(rows: Rows, table: Table) -> None:
    """Under the cosine norms do not rank: the stored rows are the unit directions."""
    lengths = np.linspace(0.5, 20, len(rows.ids), dtype=np.float32)[:, None]
    table.create(rows.ids, rows.vectors * lengths, rows.labels)
    assert rows.adopt(table.url).code == 0
    _searches_exactly(rows)


def test_names_that_need_quotes_and_another_schema(rows: Rows, table: Table) -> None:
    """Schema, table and columns are quoted wherever they are used."""
    table.create(rows.ids, rows.vectors, rows.labels)
    table.execute('CREATE SCHEMA "My shop"')
    table.execute('ALTER TABLE items RENAME id TO "Item id"')
    table.execute('ALTER TABLE items RENAME TO "All; items"')
    table.execute('ALTER TABLE "All; items" SET SCHEMA "My shop"')
    url = (
        f"{table.server.url(table.database)}/My%20shop.All%3B%20items?id=Item%20id&vector=embedding"
    )
    adopted = rows.adopt(url)
    assert adopted.code == 0, adopted.stderr
    _searches_exactly(rows)
    found = table.execute('SELECT search_table, epoch FROM "My shop".compatctl_deployment')
    assert found == [('"My shop"."All; items"', 1)]


@pytest.fixture
def many(rows: Rows, table: Table) -> Rows:
    """A table that is large enough for PostgreSQL to prefer the index."""
    noise = np.random.default_rng(3).standard_normal((6000, DIM)).astype(np.float32)
    vectors = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    table.create([f"row {number}" for number in range(len(vectors))], vectors)
    table.execute("ANALYZE items")
    return Rows(shop=rows.shop, ids=(), labels=(), vectors=vectors)


@pytest.mark.parametrize("version", ["0.8.5", "0.7.4"])
def test_more_rows_than_an_index_scan_returns(many: Rows, table: Table, version: str) -> None:
    """pgvector 0.8 goes on, an older one stops at ef: either way every query gets k different
    rows, the nearest of all."""
    statement = f"UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'vector'"
    table.execute(statement)
    assert many.adopt(table.url).code == 0
    gallery = many.gallery()
    assert gallery.index.file.iterative_scan == (version == "0.8.5")  # type: ignore[attr-defined]
    k = 1500
    keys, scores = gallery.index.search(many.vectors[:3], k)
    assert [len(set(row)) for row in keys.tolist()] == [k] * 3
    exact = exact_search(many.vectors[:3], gallery.vectors(), k)
    shares = [
        len(np.intersect1d(row, gallery.catalog.keys[best])) / k
        for row, best in zip(keys, exact.rows, strict=True)
    ]
    assert min(shares) > 0.95
    assert (np.diff(scores, axis=1) <= 1e-6).all()


@pytest.mark.parametrize("ef", [1, 7, 40, 200])
def test_the_effort_of_a_search_is_what_was_asked(many: Rows, table: Table, ef: int) -> None:
    """One plain scan returns as many rows as its ef_search, and leaves the setting as it was."""
    assert many.adopt(table.url).code == 0
    file = many.gallery().index.file  # type: ignore[attr-defined]
    search = FencedSearch(file.location, file.vector_type, file.operator, 1, iterative_scan=True)
    with table.connection() as connection:
        found = search.search(connection, many.vectors[:5], 1, ef)
        assert [len(answer) for answer in found] == [1] * 5
        cursor = connection.cursor(binary=True)
        query = many.vectors[0].tolist()
        values = {"q": query, "k": 1000, "ef": str(ef), "epoch": 1, "name": "items"}
        assert len(cursor.execute(search._statement, values).fetchall()) == ef
        assert connection.execute("SHOW hnsw.ef_search").fetchone() == ("40",)


def test_the_index_is_used(many: Rows, table: Table) -> None:
    """A fenced search scans the HNSW index, once for each query."""
    assert many.adopt(table.url).code == 0
    gallery = many.gallery()

    def scans() -> int:
        (found,) = table.execute(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'items_embedding_idx'"
        )
        return int(found[0])

    before = scans()
    gallery.index.search(many.vectors[:10], 5)
    del gallery  # its connection ends, and with it the statistics are written
    for _ in range(100):
        if scans() >= before + 10:
            return
        time.sleep(0.1)
    raise AssertionError(f"{scans() - before} scans of the index for 10 queries")


def test_any_number_of_threads_may_search(many: Rows, table: Table) -> None:
    """Eight threads over one index get the answers of one, each over a connection of its own."""
    assert many.adopt(table.url).code == 0
    index = many.gallery().index
    queries = [many.vectors[start : start + 5] for start in range(0, 400, 5)]
    alone = [index.search(query, 4)[0] for query in queries]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: index.search(query, 4)[0], queries))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    (connections,) = table.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'compatctl' "
        "AND datname = current_database()"
    )
    assert 1 <= connections[0] <= 8


def test_an_older_postgresql_is_searched_too(rows: Rows) -> None:
    """Of PostgreSQL 16: doctor, import, search and check."""
    with running_server("pginstall") as old:
        table = Table(server=old, database=old.database())
        table.create(rows.ids, rows.vectors, rows.labels)
        found = run("doctor", table.url, "--json").json["findings"][0]["found"]
        assert found.startswith("PostgreSQL 16.")
        assert rows.adopt(table.url).code == 0
        _searches_exactly(rows)
        assert run("check", "--store", rows.shop.path("adopted")).code == 0


def test_a_broken_connection_is_opened_again(rows: Rows, table: Table) -> None:
    """A server that ended the connection between two searches is no error of the second."""
    table.create(rows.ids, rows.vectors, rows.labels)
    assert rows.adopt(table.url).code == 0
    gallery = rows.gallery()
    first = gallery.index.search(rows.vectors[:2], 3)
    ended = table.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'compatctl' AND datname = current_database()"
    )
    assert ended
    again = gallery.index.search(rows.vectors[:2], 3)
    assert np.array_equal(first[0], again[0])


def test_doctor_says_what_import_would_refuse(rows: Rows, table: Table) -> None:
    """Exit code 5 with each error, 0 with warnings only; after an import it shows the row."""
    nothing = run("doctor", table.url, "--json")
    assert nothing.code == 5
    statuses = {part["name"]: part["status"] for part in nothing.json["findings"]}
    assert statuses == {"server": "ok", "pgvector": "ok", "table": "error"}
    table.create(rows.ids, rows.vectors, rows.labels, index="", primary=False)
    warned = run("doctor", table.url, "--json")
    assert warned.code == 0
    found = {part["name"]: part for part in warned.json["findings"]}
    assert found["column id"]["status"] == found["index"]["status"] == "warning"
    assert found["rows"]["found"] == f"{len(rows.ids)} with a vector"
    assert rows.adopt(table.url).code == 0
    shown = run("doctor", table.url)
    assert shown.code == 0
    assert "row 'items' at epoch 1" in shown.stdout
    assert "can be adopted" in shown.stdout
    assert run("doctor", "items.csv").code == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://h/db", "names no table"),
        ("postgresql://h/db/items?vector=v", "which column is the id"),
        ("postgresql://h/db/items?id=i&vector=v&colour=red", "unknown parameter colour"),
        ("postgresql://h/db/items?id=i&vector=v&id=j", "a parameter twice"),
        ("postgresql://h/a/b/c?id=i&vector=v", "has 3 parts"),
        ("postgresql://h:port/db/items?id=i&vector=v", "cannot be read"),
    ],
)
def test_a_url_of_another_form_is_refused(rows: Rows, url: str, message: str) -> None:
    """Exit code 2, and the message never shows the URL, which may hold a password."""
    refused = rows.adopt(url.replace("//h", "//user:secret@h"))
    assert refused.code == 2
    assert message in refused.json["error"]["message"].replace(
        "is not one that can be read", "cannot be read"
    )
    assert "secret" not in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    "words", [("--items", "x.csv"), ("--table", "t"), ("--norms", "n.npz"), ("--drop-deleted",)]
)
def test_options_of_files_are_refused(rows: Rows, table: Table, words: tuple[str, ...]) -> None:
    """An option that would do nothing for a table is a usage error."""
    refused = rows.adopt(table.url, *words)
    assert refused.code == 2
    assert f"{words[0]} is for files" in refused.json["error"]["message"]
