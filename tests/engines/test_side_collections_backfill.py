"""A backfill beside a collection of Milvus: its vectors, and the way back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_kit import EngineShop, example_of_the_page, expected
from kill_kit import killed
from milvus_kit import Collection
from pymilvus import DataType
from shop_kit import Shop, run
from test_side_collections import FORCE, beside, embedded, of, rows_in, searched

from compatctl.core.nearest import exact_search
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.rewriting import replace_rows
from compatctl.encoder import Encoder
from compatctl.engines import erase_beside, open_connection_to, side_of, side_table_name
from compatctl.engines.milvus.side_rows import side_collections
from compatctl.index import BuiltTable
from compatctl.migration import backfill_step
from compatctl.progress import silent
from compatctl.store import Store

N, DIM = 2500, 32


@pytest.fixture
def half(mv: EngineShop) -> EngineShop:
    """The better model, and half of the rows embedded by it."""
    mv.done("deploy", "--model", mv.path("new.onnx"), *FORCE)
    mv.done("backfill", "--share", 0.5, *FORCE)
    return mv


def first_half(ids: tuple[str, ...]) -> set[str]:
    """The items that a backfill takes first: by the hash of the id."""
    ordered = sorted(ids, key=lambda item: hashlib.sha256(item.encode()).hexdigest())
    return set(ordered[: -(-len(ids) // 2)])


def test_half_of_the_rows_are_embedded_anew(half: EngineShop) -> None:
    """The collection that the row names has every row: one by one the new model's embedding, or the
    application's vector; a larger share makes another one from it; doing it again does nothing."""
    mine, (side,) = rows_in(half), beside(half)
    inside, fresh = first_half(half.gallery().catalog.ids), embedded(half, half.path("new.onnx"))
    stored = rows_in(half, side)
    assert stored.keys() == mine.keys()
    for item, row in stored.items():
        own = np.array(mine[item]["embedding"])
        assert np.allclose(
            row["embedding"],
            fresh[item] if item in inside else own / np.linalg.norm(own),
            atol=1e-5,
        ), item
    for query in [*fresh.values()][:10]:
        assert searched(half, query, 6) == expected(half, query, 6)
    half.done("backfill", *FORCE)
    last = of(half).row()["search_table"]
    assert sorted(beside(half)) == sorted({side, last})
    assert side != last
    for item, row in rows_in(half, last).items():
        assert np.allclose(row["embedding"], fresh[item], atol=1e-5), item
    assert not half.done("backfill", *FORCE).json["written"]
    assert half.done("check").json["ok"]
    half.done("rollback", "--to", 3)
    assert of(half).row()["search_table"] == side
    query = next(iter(fresh.values()))
    assert searched(half, query, 6) == expected(half, query, 6)
    half.done("rollback", "--to", 1)
    assert of(half).row()["search_table"] == of(half).name
    assert half.done("check").json["ok"]


@pytest.mark.parametrize("point", ["before the row", "after the row"])
def test_a_killed_backfill_is_run_again(mv: EngineShop, point: str) -> None:
    """What is searched is one generation or the other, the same command ends with one backfill, and
    gc drops the collection of the killed one."""
    mv.done("deploy", "--model", mv.path("new.onnx"), *FORCE)
    query = mv.gallery().vectors()[0]
    before = searched(mv, query, 5)
    killed(point, "backfill", *mv.shop.args, "--share", "0.5", *FORCE)
    if point == "before the row":
        assert searched(mv, query, 5) == before
    mv.done("backfill", "--share", 0.5, *FORCE)
    assert mv.gallery().manifest.generation == 3
    mv.done("check", "--gc")
    assert beside(mv) == [of(mv).row()["search_table"]]
    assert mv.done("check").json["ok"]
    assert searched(mv, query, 5) == expected(mv, query, 5)


def test_rows_that_are_added_meanwhile_are_in_the_collection(
    mv: EngineShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application inserts a row and it is added between a backfill's collection and its commit:
    another collection is made, which has the row; gc drops the first one."""
    mv.done("deploy", "--model", mv.path("new.onnx"), *FORCE)
    vector, measure, added = mv.gallery().vectors()[:1], backfill_step.measure_ann_recall, []
    vector = vector + 0.05 * np.roll(vector, 1)

    def measured(*arguments: object) -> object:
        if not added:
            of(mv).insert(["fresh"], vector)
            added.append(mv.done("add").json["added"])
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backfill_step, "measure_ann_recall", measured)
    mv.done("backfill", "--share", 0.5, *FORCE)
    assert added == [1]
    assert [entry.operation for entry in Store.open(mv.path("store")).history()] == [
        "import", "deploy", "add", "backfill",
    ]  # fmt: skip
    name = of(mv).row()["search_table"]
    assert rows_in(mv, name).keys() == rows_in(mv).keys()
    assert searched(mv, vector[0], 1) == ["fresh"]
    assert len(beside(mv)) == 2
    mv.done("check", "--gc")
    assert beside(mv) == [name]


def test_a_rollback_across_adopted_rows_is_refused_by_name(half: EngineShop) -> None:
    """Back to before the backfill, a row is added: the collection of the backfill is without it, so
    a rollback to it is refused with exit code 2, and a new backfill makes one that has it."""
    vector = half.gallery().vectors()[:1]
    half.done("rollback", "--to", 2)
    of(half).insert(["fresh"], vector + 0.05 * np.roll(vector, 1))
    half.done("add")
    before = of(half).row()
    refused = half.run("rollback", "--to", 3)
    assert refused.code == 2
    assert "the collection that it searches in milvus is without them" in refused.stderr
    assert of(half).row() == before
    half.done("backfill", "--share", 0.5, *FORCE)
    assert rows_in(half, of(half).row()["search_table"]).keys() == rows_in(half).keys()


def test_the_example_of_the_page_follows_the_row(half: EngineShop) -> None:
    """The code of docs/engines.md finds what exact search finds, in the new collection and, after a
    rollback, in the application's."""
    fresh = next(iter(embedded(half, half.path("new.onnx")).values()))
    encoders = {Encoder.load(half.path("new.onnx")).sha256: lambda _: fresh}
    example, answers = example_of_the_page("search_milvus"), []
    with of(half).client() as client:
        for command in ((), ("rollback", "--to", 2)):
            if command:
                half.done(*command)
            found = example(client, of(half).name, encoders, "an image", 6)
            assert found == expected(half, fresh, 6)
            answers.append(tuple(found))
    assert len(set(answers)) == 2


def test_what_a_whole_collection_cannot_do_is_refused_by_name(half: EngineShop) -> None:
    """Steps, each of which would write every row; and rows that the application wrote since."""
    for words in (("--step", "10"), ("--budget", "10"), ("--until-gain",)):
        refused = half.run("backfill", *words)
        assert refused.code == 2
        assert "each step would make another collection of every row" in refused.stderr
    vector = half.gallery().vectors()[:1]
    of(half).insert(["fresh"], vector)
    refused = half.run("add")
    assert refused.code == 2
    assert "wrote after a backfill in milvus" in refused.stderr
    of(half).delete(["fresh"])
    assert half.done("check").json["ok"]


@pytest.fixture
def many(
    shop: Shop, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[DeployedGallery, np.ndarray]:
    """A collection with numbers as keys, and further fields of each kind; and its rows."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # no project file
    vectors = _unit(3, N)
    with collection.client() as client:
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("price", DataType.DOUBLE)
        schema.add_field("sold", DataType.BOOL)
        schema.add_field("facts", DataType.JSON)
        schema.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4,
                         max_length=20)  # fmt: skip
        client.create_collection(collection.name, schema=schema)
        parameters = client.prepare_index_params()
        parameters.add_index("embedding", index_type="HNSW", metric_type="COSINE",
                             params={"M": 16, "efConstruction": 64})  # fmt: skip
        client.create_index(collection.name, parameters)
        client.insert(collection.name, [_entry(n, vector) for n, vector in enumerate(vectors)])
        client.load_collection(collection.name)
    words = ("--model", shop.path("old.onnx"), "--store", shop.path("adopted"), "--json")
    url = collection.url_of(collection.name, "id=id&vector=embedding&label=kind")
    made = run("import", url, *words)
    assert made.code == 0, made.stderr
    return DeployedGallery.open(Store.open(shop.path("adopted"))), vectors


def _unit(seed: int, n: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def _entry(number: int, vector: np.ndarray) -> dict[str, Any]:
    """A row of the application; every third one has no class."""
    entry = {"id": number - 7, "embedding": vector, "price": number / 7, "sold": number % 2 == 0,
             "facts": {"n": number, "of": ["a", None]}, "tags": ["t"] * (number % 4)}  # fmt: skip
    return {**entry, "kind": f"k{number % 5}"} if number % 3 else entry


def test_every_field_is_copied_and_the_index_finds_the_rows(
    many: tuple[DeployedGallery, np.ndarray], collection: Collection
) -> None:
    """Of 2,500 rows under numbers as keys, with 700 new vectors: the new collection has each row's
    vector and every other field as the application has it, its HNSW index finds at least 95 of 100
    nearest rows, and rows can be erased from it."""
    gallery, before = many
    catalog = gallery.catalog
    chosen = np.sort(np.random.default_rng(5).permutation(N)[:700])
    fresh = _unit(6, len(chosen))
    built = replace_rows(
        gallery.store, catalog, chosen, rows_at=lambda at: fresh[at], progress=silent
    )
    assert isinstance(built, BuiltTable)
    rows = np.array([before[int(item) + 7] for item in catalog.ids])
    rows[chosen] = fresh
    assert np.allclose(built.vectors(), rows, atol=1e-6)
    name = side_table_name(built.file)
    with collection.client() as client:
        ask = {"filter": "id >= -100", "output_fields": ["*"], "consistency_level": "Strong"}
        mine, copied = ({row["id"]: dict(row) for row in client.query(where, **ask)}
                        for where in (collection.name, name))  # fmt: skip
        assert client.describe_index(name, "embedding")["index_type"] == "HNSW"
    assert len(copied) == N
    for key, row in mine.items():
        assert {**row, "embedding": 0} == {**copied[key], "embedding": 0}
    queries = rows[np.random.default_rng(8).permutation(N)[:40]]
    keys, scores = built.search(queries, 20, 200)
    exact = exact_search(queries, rows, 20)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    found = [len(np.intersect1d(row, catalog.keys[best])) for row, best in
             zip(keys, exact.rows, strict=True)]  # fmt: skip
    assert np.mean(found) / 20 >= 0.95
    with open_connection_to(built.file.location.from_environment()) as connection:
        side = side_of(built.file)
        location = built.file.location
        erase_beside(connection, location, built.file.id_type, catalog.ids[:3])
        assert side.count(connection, built.file.side.batches[-1]) == N - 3  # type: ignore[union-attr]
        side.rehearse(connection, fresh[:50], m=8)
        assert side_collections(connection, location) == (name,)
