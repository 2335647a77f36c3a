"""Pages that are made ahead, and the columns of a page."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from milvus_kit import Collection
from pymilvus import DataType

from compatctl.engines import open_connection_to, parse_url, rows_of
from compatctl.engines.milvus import answers
from compatctl.engines.milvus import rows as pages
from compatctl.engines.reading_ahead import read_ahead
from compatctl.errors import InputError

DIM = 12


def test_one_item_is_made_ahead_and_none_twice() -> None:
    """Items come in their order; one is made while one is used, never more, all in one thread that
    is not the caller's and ends with them."""
    made: list[int] = []
    threads: set[int] = set()

    def items() -> Generator[int, None, None]:
        for number in range(5):
            made.append(number)
            threads.add(threading.get_ident())
            yield number

    for number in (used := read_ahead(items())):
        assert len(made) <= number + 2
        assert made == [*range(len(made))]
    assert made == [0, 1, 2, 3, 4]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert next(used, None) is None
    assert not _left()


def test_an_error_comes_where_its_item_would_have_come() -> None:
    """The item before the error is given; then the error itself is raised, and no thread stays."""

    def items() -> Generator[int, None, None]:
        yield 1
        raise InputError("page two")

    found = read_ahead(items())
    assert next(found) == 1
    with pytest.raises(InputError, match="page two"):
        next(found)
    assert not _left()


def test_an_iteration_that_ends_early_is_closed() -> None:
    """Closed after the first item: the one being made is waited for, and the source is closed."""
    closed = threading.Event()
    started, go_on = threading.Event(), threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield 1
            started.set()
            assert go_on.wait(10)
            yield 2
        finally:
            closed.set()

    found = read_ahead(items())
    assert next(found) == 1
    assert started.wait(10)
    threading.Timer(0.1, go_on.set).start()
    found.close()
    assert go_on.is_set()
    assert closed.is_set()
    assert not _left()


@pytest.fixture
def filled(collection: Collection) -> Collection:
    """A collection of 25 rows with a declared text, a declared JSON and a dynamic field."""
    with collection.client() as client:
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("label", DataType.VARCHAR, max_length=300)
        schema.add_field("facts", DataType.JSON)
        client.create_collection(collection.name, schema=schema)
        parameters = client.prepare_index_params()
        parameters.add_index("embedding", index_type="FLAT", metric_type="COSINE")
        client.create_index(collection.name, parameters)
        rows: list[dict[str, Any]] = [
            {"id": number, "embedding": vector, "label": f"l{number}", "facts": {"n": number},
             **({"kind": f"k{number}"} if number % 2 else {})}
            for number, vector in enumerate(_vectors())
        ]  # fmt: skip
        client.insert(collection.name, rows)
        client.load_collection(collection.name)
    return collection


def test_columns_are_what_the_rows_say(filled: Collection) -> None:
    """Keys, vectors and fields of an answer, taken from the server's message, are those of its
    rows looked at one by one; so are they where there is no message, as in other versions."""
    names = ["id", "embedding", "label", "facts", "kind"]
    with filled.client() as client:

        def ask(**options: bool) -> Any:
            return client.query(filled.name, filter="id >= 0", output_fields=names,
                                consistency_level="Strong", **options)  # fmt: skip

        slow = [dict(row) for row in ask()]
        packed = ask(strict_float32=True)
        assert answers._packed(packed, "embedding", 25 * DIM) is not None
        for answer in (packed, slow):
            assert answers.keys_of(answer, "id") == [row["id"] for row in slow]
            vectors = answers.vectors_of(answer, "embedding", DIM)
            assert vectors.dtype == np.float32
            assert np.array_equal(vectors, np.array([row["embedding"] for row in slow], "f4"))
            for name in ("label", "facts", "kind"):
                assert answers.values_of(answer, name) == [row.get(name) for row in slow], name
    assert {row["id"]: row.get("kind") for row in slow} == {
        number: f"k{number}" if number % 2 else None for number in range(25)
    }


def test_pages_of_a_collection_end_cleanly(
    filled: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read in pages of 10 gives every row once; one that is closed early, and one whose
    collection is dropped meanwhile, leave no thread, and the second raises the server's reason."""
    monkeypatch.setattr(pages, "MAX_ROWS", 10)
    location = parse_url(filled.url_of(filled.name, "id=id&vector=embedding&label=label"))
    location = location.from_environment()
    rows = rows_of(location, id_type="int64", vector_type="FLOAT_VECTOR", dim=DIM)
    with open_connection_to(location) as connection:
        blocks = [*rows.blocks(connection)]
        assert [len(block.ids) for block in blocks] == [10, 10, 5]
        assert [item for block in blocks for item in block.ids] == [str(n) for n in range(25)]
        assert np.array_equal(np.concatenate([block.vectors for block in blocks]), _vectors())
        assert blocks[0].labels == tuple(f"l{number}" for number in range(10))
        with closing(rows.blocks(connection)) as early:
            assert next(early).ids[0] == "0"
        assert not _left()

    def read_while_it_is_dropped() -> None:
        with open_connection_to(location) as connection:
            for block in rows.blocks(connection):
                if block.ids[0] == "0":
                    with filled.client() as client:
                        client.drop_collection(filled.name)

    with pytest.raises(InputError):
        read_while_it_is_dropped()
    assert not _left()


def _vectors() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((25, DIM)).astype(np.float32)


def _left() -> list[str]:
    """Threads of a read that are there still."""
    return [item.name for item in threading.enumerate() if item.name.startswith("compatctl-read")]
