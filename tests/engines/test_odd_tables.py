"""Tables, roles and servers that are legal and rare: names, rights, settings, changed columns."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import quote

import numpy as np
import psycopg
import pytest
from engine_kit import EngineShop, expected, fill, image
from postgres_kit import Table
from shop_kit import Shop, run, turned

from compatctl.engines import parse_url, snapshot_of
from compatctl.engines.connection import connect
from compatctl.engines.location import TableLocation
from compatctl.engines.queue import BlockQueue

FORCE = ("--force", "--reason", "drill")
ODD = {"schema": "50% {of} \\a", "table": 'All %s "it{0}ems"', "id": "%(id)s", "vector": "v%%{x}"}
"""Names with all that PostgreSQL quotes, and with what psycopg and format take for their own."""
READER = 're%ad{er} "x"'


def quoted(*names: str) -> str:
    """A name as SQL writes it."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def do(table: Table, *statements: str) -> None:
    """Statements of the application, without parameters."""
    with table.connection() as connection:
        for statement in statements:
            connection.execute(statement.encode())


def with_options(table: Table, setting: str) -> str:
    """The table's URL, with a setting for each connection."""
    return f"{table.url}&options={quote('-c ' + setting)}"


def findings(url: str) -> dict[str, dict[str, str]]:
    """What doctor says, by the name of the check."""
    return {part["name"]: part for part in run("doctor", url, "--json").json["findings"]}


@pytest.fixture
def reader(table: Table) -> Iterator[str]:
    """A role whose name must be quoted."""
    do(table, f"CREATE ROLE {quoted(READER)} LOGIN")
    yield READER
    do(table, f"DROP OWNED BY {quoted(READER)}", f"DROP ROLE {quoted(READER)}")


@pytest.fixture
def odd(shop: Shop, table: Table, reader: str) -> EngineShop:
    """The project, over a table whose every name is odd; the role may read it and its row."""
    fill(table, shop)
    where = quoted(ODD["schema"], ODD["table"])
    do(
        table,
        f"CREATE SCHEMA {quoted(ODD['schema'])}",
        f"ALTER TABLE items RENAME id TO {quoted(ODD['id'])}",
        f"ALTER TABLE items RENAME embedding TO {quoted(ODD['vector'])}",
        f"ALTER TABLE items RENAME TO {quoted(ODD['table'])}",
        f"ALTER TABLE {quoted(ODD['table'])} SET SCHEMA {quoted(ODD['schema'])}",
        f"GRANT USAGE ON SCHEMA {quoted(ODD['schema'])} TO {quoted(reader)}",
        f"GRANT SELECT ON {where} TO {quoted(reader)}",
    )
    names = {name: quote(value, safe="") for name, value in ODD.items()}
    url = (
        f"{table.server.url(table.database)}/{names['schema']}.{names['table']}"
        f"?id={names['id']}&vector={names['vector']}&label=label"
    )
    made = EngineShop(engine="pgvector", shop=shop, table=table)
    shop.path("store").rename(shop.path("folder"))
    made.done("import", url, "--model", shop.path("old.onnx"))
    row = quoted(ODD["schema"], "compatctl_deployment")
    do(table, f"GRANT SELECT ON {row} TO {quoted(reader)}")
    return made


def search_as_application(shop: EngineShop, role: str, query: np.ndarray) -> list[str]:
    """Four ids, by the statement of the row."""
    assert shop.table is not None
    table = shop.table
    url = table.server.url(table.database, quote(role, safe=""))
    with psycopg.connect(url) as connection:
        text = "SELECT search_sql, epoch FROM " + quoted(ODD["schema"], "compatctl_deployment")
        sql, epoch = connection.execute(text.encode()).fetchall()[0]
        found = psycopg.RawCursor(connection).execute(sql, (str(query.tolist()), 4, epoch))
        return [item for item, _ in found.fetchall()]


def test_names_with_percent_signs_and_braces(odd: EngineShop) -> None:
    """Every command works on such names, in the application's table and beside it, and so does the
    statement that the application runs."""
    shop = odd
    query = shop.gallery().vectors()[7]
    assert search_as_application(shop, READER, query) == expected(shop, query, 4)
    shop.done("lift", turned(shop.shop, "wide.onnx", of="new.onnx", dim=48), "--kind", "ridge")
    query = shop.gallery().vectors()[7]
    assert search_as_application(shop, READER, query) == expected(shop, query, 4)
    assert shop.done("check").json["ok"]
    shop.done("search", image(shop))
    shop.done("rollback")
    shop.done("deploy", "--model", shop.path("new.onnx"), *FORCE)
    shop.done("backfill", "--share", "0.5", *FORCE)
    query = shop.gallery().vectors()[7]
    assert search_as_application(shop, READER, query) == expected(shop, query, 4)
    assert shop.done("check", "--gc").json["ok"]


def test_a_table_named_as_a_word_of_sql_is_quoted(shop: Shop, table: Table) -> None:
    """What the row calls ``search_table`` can be put into a statement as it stands."""
    fill(table, shop)
    do(table, 'ALTER TABLE items RENAME TO "order"')
    shop.path("store").rename(shop.path("folder"))
    url = table.url.replace("/items?", "/order?")
    assert shop.run("import", url, "--model", shop.path("old.onnx")).code == 0
    ((name,),) = table.execute("SELECT search_table FROM compatctl_deployment")
    assert table.execute(f"SELECT count(*) > 0 FROM {name}") == [(True,)]


def test_a_url_may_have_the_parameters_of_hosted_servers(shop: Shop, table: Table) -> None:
    """What providers put into their URLs is taken by every connection; the name of the application
    is compatctl, unless the URL says another."""
    fill(table, shop)
    location = parse_url(table.url)
    url = f"{table.url}&channel_binding=prefer&sslmode=prefer&application_name=nightly"
    named = parse_url(url)
    for place, expected_name in ((location, "compatctl"), (named, "nightly")):
        assert isinstance(place, TableLocation)
        with connect(place) as connection:
            assert connection.execute("SHOW application_name").fetchone() == (expected_name,)
    shop.path("store").rename(shop.path("folder"))
    assert shop.run("import", url, "--model", shop.path("old.onnx")).code == 0
    assert shop.run("check").code == 0


def test_a_dot_of_a_name_is_written_as_an_escape(shop: Shop, table: Table) -> None:
    """A dot in the URL parts schema and table; names with dots are there and back the same."""
    fill(table, shop)
    do(table, 'CREATE SCHEMA "shop.eu"', 'ALTER TABLE items RENAME TO "items.v1"',
       'ALTER TABLE "items.v1" SET SCHEMA "shop.eu"')  # fmt: skip
    url = table.url.replace("/items?", "/shop%2Eeu.items%2Ev1?")
    shop.path("store").rename(shop.path("folder"))
    assert shop.run("import", url, "--model", shop.path("old.onnx")).code == 0
    assert shop.run("check").code == 0
    location = parse_url(url)
    assert isinstance(location, TableLocation)
    assert (location.schema, location.table) == ("shop.eu", "items.v1")
    assert parse_url(location.url) == location


def test_rows_that_a_policy_hides_are_told(shop: Shop, table: Table, reader: str) -> None:
    """Row-level security hides rows without a word: doctor and import say that it is active."""
    fill(table, shop)
    do(
        table,
        "ALTER TABLE items ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY visible ON items USING (id < (SELECT 'noto/1'))",
        f"GRANT SELECT ON items TO {quoted(reader)}",
        f"GRANT CREATE ON SCHEMA public TO {quoted(reader)}",
    )
    url = table.url.replace("postgres@", quote(reader, safe="") + "@")
    found = findings(url)["row security"]
    assert (found["status"], reader in found["problem"]) == ("warning", True)
    shop.path("store").rename(shop.path("folder"))
    adopted = shop.run("import", url, "--model", shop.path("old.onnx"))
    assert "row-security" in [told["kind"] for told in adopted.json["notices"]]
    assert "row security" not in findings(table.url)


def test_pgvector_beside_the_search_path_is_refused(shop: Shop, table: Table) -> None:
    """doctor and import name the schema of the extension; on the search path it is found."""
    fill(table, shop)
    do(table, "CREATE SCHEMA extensions", "ALTER EXTENSION vector SET SCHEMA extensions")
    assert findings(table.url)["pgvector"]["status"] == "error"
    shop.path("store").rename(shop.path("folder"))
    refused = shop.run("import", table.url, "--model", shop.path("old.onnx"))
    assert refused.code == 5
    assert "vector is in the schema extensions, which is not on the search path" in refused.stderr
    url = with_options(table, "search_path=public,extensions")
    assert shop.run("import", url, "--model", shop.path("old.onnx")).code == 0
    assert shop.run("search", next(shop.data().parent.rglob("*.png"))).code == 0


def test_a_server_that_is_read_only_is_refused(shop: Shop, table: Table) -> None:
    """doctor and import say so, as on a standby, before a row is read."""
    fill(table, shop)
    url = with_options(table, "default_transaction_read_only=on")
    assert findings(url)["server"]["status"] == "error"
    shop.path("store").rename(shop.path("folder"))
    refused = shop.run("import", url, "--model", shop.path("old.onnx"))
    assert refused.code == 5
    assert "transactions are read-only there" in refused.stderr
    assert not shop.path("store").exists()


def test_a_statement_that_is_too_slow_for_the_role_is_told(
    pg: EngineShop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is of the timeout, not of a server that cannot be reached, and the driver prints
    nothing of its own; the setting that the tip names helps."""
    assert pg.table is not None
    database = pg.table.database
    do(pg.table, "CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql AS "
                 "$$ SELECT pg_sleep(0.01) IS NOT NULL $$",
       "ALTER TABLE items RENAME TO rows",
       "CREATE VIEW items AS SELECT * FROM rows WHERE slow()",
       f"ALTER DATABASE {database} SET statement_timeout = 300")  # fmt: skip
    with caplog.at_level(logging.WARNING):
        ended = pg.run("verify", pg.path("new.onnx"))
    assert ended.code == 5
    assert "the server ended a statement" in ended.stderr
    assert "cannot be reached" not in ended.stderr
    assert not caplog.records
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=0")
    assert pg.done("check").json["ok"]


def test_a_role_that_may_not_idle_in_a_transaction_reads_and_embeds(
    pg: EngineShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that is read, and a block that is locked while it is embedded, take as long as
    they take."""
    assert pg.table is not None
    monkeypatch.setenv("PGOPTIONS", "-c idle_in_transaction_session_timeout=100")
    location = parse_url(pg.table.url.replace("/items?", "/public.items?"))
    assert isinstance(location, TableLocation)
    with connect(location) as connection:
        queue = BlockQueue(connection, location, "model")
        assert queue.begin()
        with queue.claimed():
            time.sleep(0.4)
        queue.clear()
        with snapshot_of(connection, location):
            time.sleep(0.4)
            connection.execute("SELECT 1")


def test_tables_of_one_name_in_two_schemas_have_queues_of_their_own(table: Table) -> None:
    """A backfill of one does not keep the workers of the other away."""
    do(table, "CREATE SCHEMA north", "CREATE SCHEMA south")
    with ExitStack() as stack:
        begun = []
        for schema in ("north", "south", "south"):
            location = parse_url(table.url.replace("/items?", f"/{schema}.items?"))
            assert isinstance(location, TableLocation)
            connection = stack.enter_context(connect(location))
            begun.append(BlockQueue(connection, location, "model").begin())
        assert begun == [True, True, False]


def test_another_table_of_the_name_of_ours_is_left_alone(shop: Shop, table: Table) -> None:
    """A table ``compatctl_deployment`` with other columns is refused by name, and not changed."""
    fill(table, shop)
    do(table, "CREATE TABLE compatctl_deployment (name text, epoch bigint)")
    shop.path("store").rename(shop.path("folder"))
    refused = shop.run("import", table.url, "--model", shop.path("old.onnx"))
    assert refused.code == 5
    assert "compatctl_deployment is there and is none of compatctl" in refused.stderr
    assert run("doctor", table.url, "--json").code == 5
    columns = "SELECT count(*) FROM pg_attribute WHERE attnum > 0 AND attrelid = %s::regclass"
    assert table.execute(columns, "compatctl_deployment") == [(2,)]


def test_a_name_that_is_too_long_names_no_table(shop: Shop, table: Table) -> None:
    """PostgreSQL cuts a name after 63 bytes: what it would then find is another table."""
    fill(table, shop)
    longest = "t" * 63
    do(table, f"ALTER TABLE items RENAME TO {longest}")
    shop.path("store").rename(shop.path("folder"))
    refused = shop.run("import", table.url.replace("/items?", f"/{longest}s?"),
                       "--model", shop.path("old.onnx"))  # fmt: skip
    assert refused.code == 5
    assert f"there is no table {longest}s" in refused.stderr
    named = table.url.replace("/items?", f"/{longest}?")
    assert shop.run("import", named, "--model", shop.path("old.onnx")).code == 0


def test_a_column_of_classes_that_is_empty_is_told(shop: Shop, table: Table) -> None:
    """No row has a class: a notice says so, and names the column."""
    fill(table, shop)
    do(table, "UPDATE items SET label = NULL")
    shop.path("store").rename(shop.path("folder"))
    adopted = shop.run("import", table.url, "--model", shop.path("old.onnx"))
    told = {entry["kind"]: entry["names"] for entry in adopted.json["notices"]}
    assert told["no-labels"] == ["label"]


def test_an_empty_id_is_refused_by_name(pg: EngineShop) -> None:
    """The message names the table and says what to do."""
    assert pg.table is not None
    do(pg.table, "INSERT INTO items SELECT '', embedding, label FROM items LIMIT 1")
    refused = pg.run("add")
    assert refused.code == 5
    assert "a row has an empty id" in refused.stderr
    assert pg.table.database in refused.stderr
    do(pg.table, "DELETE FROM compatctl_deployment")
    pg.path("store").rename(pg.path("before"))
    refused = pg.run("import", pg.table.url, "--model", pg.path("old.onnx"))
    assert refused.code == 5
    assert "a row has an empty id" in refused.stderr


@pytest.mark.parametrize("kind", ["halfvec(32)", "halfvec(64)"])
def test_a_column_of_another_type_than_before_is_told(pg: EngineShop, kind: str) -> None:
    """The message says what became of the column: never dimensions that no vector has, and never
    numbers that are read as others, where as many bytes are."""
    assert pg.table is not None
    twice = "((embedding::text || embedding::text)::text)"
    joined = f"replace({twice}, '][', ',')::halfvec(64)"
    cast = "embedding::halfvec(32)" if kind == "halfvec(32)" else joined
    do(pg.table, "DROP INDEX items_embedding_idx",
       f"ALTER TABLE items ALTER embedding TYPE {kind} USING {cast}")  # fmt: skip
    told = pg.run("check")
    assert told.code == 5
    expected_of = {
        "halfvec(32)": "the column embedding is no longer of the type vector",
        "halfvec(64)": "rows have vectors of 64 dimensions, not 32",
    }
    assert expected_of[kind] in told.json["problems"][0]
