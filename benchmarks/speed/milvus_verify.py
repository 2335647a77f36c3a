"""A collection of Milvus: ``verify`` of every row against the same on a store's own file; searches
with the fence against searches without.

    python -m benchmarks.speed.milvus_verify [--rows 100000] [--dim 128] [--ef 64] [--profile]

It starts a standalone server on loopback ports (`make engines-test` installs it) and fills one
collection. Searches are of k 10 by one client, with the same calls but for the properties that are
read after each, in turns. A store's index is the third side: it checks the queries and maps ids to
rows, one query a call or all in one. The read is every row in the catalogue's order, from the
collection and from an hnswlib file of the same rows; both are checked by their checksums or digest.
The last comparison is ``verify`` of another model on both, with 1,000 items of known images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
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

TURNS = 7
QUERIES = 100
K = 10
_INSERTED = 10_000
"""Rows of one call."""


def searching(collection: Any, folder: Path, queries: np.ndarray, ef: int) -> None:
    """Print the searches a second of each side, and the ratios."""
    with collection.client() as client:

        def asked(fenced: bool) -> Callable[[], None]:
            def ask() -> None:
                for query in queries:
                    found = client.search(
                        collection.name, data=[query], anns_field="embedding", limit=K,
                        search_params={"metric_type": "COSINE", "params": {"ef": ef}},
                        consistency_level="Bounded",
                    )  # fmt: skip
                    assert len(found[0]) == K
                    if fenced:
                        properties = client.describe_collection(collection.name)["properties"]
                        assert properties["compatctl.epoch"] == "1"

            return ask

        store = folder / "collection-store"
        comparing_searches(asked, store, queries, k=K, ef=ef, turns=TURNS)


def _fill(collection: Any, ids: list[str], vectors: np.ndarray) -> None:
    collection.create(ids[:_INSERTED], vectors[:_INSERTED])
    for start in range(_INSERTED, len(ids), _INSERTED):
        part = slice(start, start + _INSERTED)
        collection.insert(ids[part], vectors[part])
    with collection.client() as client:
        client.flush(collection.name)
        while client.describe_index(collection.name, "embedding")["indexed_rows"] < len(ids):
            time.sleep(0.2)


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--ef", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="print where verify spends its time")
    given = parser.parse_args()
    servers = kit("milvus_kit")
    os.environ["MILVUS_TOKEN"] = servers.TOKEN
    near = clusters(np.random.default_rng(0), given.dim)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with servers.milvus_server(folder / "milvus") as server:
            collection = servers.Collection.new(server)
            vectors = near(given.rows)
            ids = write_items(folder, vectors)
            print(f"filling: {seconds(lambda: _fill(collection, ids, vectors)):.0f} s")
            url = collection.url.replace("&label=label", "")
            import_both(folder, "collection", url, given.ef)
            searching(collection, folder, near(QUERIES), given.ef)
            reading(folder, "collection")
            verifying(folder, "collection", profiled=given.profile)


if __name__ == "__main__":
    main()
