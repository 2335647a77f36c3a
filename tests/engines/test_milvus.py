"""A collection of Milvus: what is switched, what the application changes, and what it may be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_kit import EngineShop, adopt, example_of_the_page, fill
from kill_kit import environment, killed
from milvus_kit import TOKEN, Collection
from pymilvus import DataType
from shop_kit import DIM, Result, Shop, run, turned

from compatctl.core.nearest import exact_search
from compatctl.data import load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder
from compatctl.engines import DeploymentRow, deployment_of, parse_url
from compatctl.engines.milvus import rows as pages
from compatctl.errors import ConflictError
from compatctl.store import Store, manifest_digest

REPORT = "report.json"


@pytest.fixture
def verified(mv: EngineShop) -> EngineShop:
    """The project, with a report that lets the new model pass."""
    mv.done("verify", mv.path("new.onnx"), "--report", mv.path(REPORT))
    return mv


def of(shop: EngineShop) -> Collection:
    """The collection of a project."""
    assert shop.collection is not None
    return shop.collection


def deploy_words(shop: EngineShop) -> tuple[object, ...]:
    """The words of a deploy of the report."""
    return ("deploy", *shop.shop.args, "--report", shop.path(REPORT))


def test_the_properties_say_what_the_manifest_says(verified: EngineShop) -> None:
    """After import, deploy and rollback: epoch, model, manifest, collection and fields; a deploy
    that was killed before the properties changed nothing, one that was killed after them is told
    by check, refused by search, and completed by the next command that writes."""
    before = of(verified).row()
    killed("before the row", *deploy_words(verified))
    assert of(verified).row() == before
    killed("after the row", *deploy_words(verified))
    assert of(verified).row()["epoch"] == "2"
    told = verified.run("check")
    assert told.code == 5
    assert "a commit was cut off after the row was switched" in told.json["problems"][0]
    image = next(verified.shop.data().parent.rglob("*.png"))
    searched = verified.run("search", image)
    assert searched.code == 6
    assert "is at epoch 2" in searched.json["error"]["message"]
    verified.done("rollback")
    manifest = Store.open(verified.path("store")).manifest
    row = of(verified).row()
    assert manifest.generation == 3
    assert row == {
        "epoch": "3",
        "previous_epoch": "2",
        "query_model": manifest.query_model,
        "model_name": manifest.query_share.name,
        "search_table": of(verified).name,
        "id_column": "id",
        "vector_column": "embedding",
        "operator": "COSINE",
        "ef_search": "64",
        "calibration": "",
        "manifest": manifest_digest(manifest),
        "side_table": "",
        "side_batches": "",
        "switched_at": manifest.created_at,
    }
    assert verified.done("check").json["ok"]


def test_of_two_copies_of_a_store_the_later_one_is_refused(
    verified: EngineShop, tmp_path: Path
) -> None:
    """The copy whose generation the properties no longer name writes nothing, with exit code 6;
    properties that were changed by hand, or emptied, are told and refused as well; a second store
    of the collection needs a name of its own."""
    copy = EngineShop(
        engine="milvus",
        shop=Shop(tmp_path / "copy"),
        table=None,
        collection=of(verified),
    )
    shutil.copytree(verified.shop.folder, copy.shop.folder)
    verified.done("deploy", "--report", verified.path(REPORT))
    row = of(verified).row()
    refused = copy.run("rollback")
    assert refused.code == 6
    forced = ("--force", "--reason", "drill", "--model", copy.path("turned.onnx"))
    refused = copy.run("deploy", *forced)
    assert refused.code == 6
    assert "is at epoch 2" in refused.json["error"]["message"]
    assert copy.shop.manifest()["generation"] == 1
    assert of(verified).row() == row
    for entries, code in (({"ef_search": "1"}, 0), ({"epoch": "9"}, 6), ({"epoch": ""}, 6)):
        of(verified).set(**{**row, **entries})
        assert verified.run("check").code == 5
        assert verified.run("deploy", *forced, "--dry-run").code == 0
        if code:
            assert verified.run("rollback").code == code
    of(verified).set(**{**row, "epoch": "two"})
    assert "was changed by hand: a number is none" in verified.run("check").stdout
    assert verified.run("rollback").code == 6
    of(verified).set(**row)
    words = ("--model", verified.path("old.onnx"), "--store", verified.path("second"))
    other = verified.run("import", of(verified).url, *words)
    assert other.code == 6
    assert "another store switches this table" in other.json["error"]["message"]
    verified.done("import", of(verified).url + "&name=second", *words)
    assert of(verified).row() == row


def test_a_searcher_follows_and_a_stale_query_is_embedded_again(
    verified: EngineShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One searcher over a deploy between its embedding and its search, and a rollback: each answer
    is of the model of its generation."""
    image = next(verified.shop.data().parent.rglob("*.png"))
    old, new = (Encoder.load(verified.path(name)).sha256 for name in ("old.onnx", "new.onnx"))
    embed, switched = Encoder.unchecked_rows, []

    def embed_then_switch(self: Encoder, *arguments: object, **options: object) -> object:
        embedded = embed(self, *arguments, **options)  # type: ignore[arg-type]
        if armed and not switched:
            switched.append(True)
            words = [sys.executable, "-m", "compatctl", *map(str, deploy_words(verified))]
            subprocess.run(
                words, check=True, capture_output=True, cwd=verified.shop.folder, env=environment()
            )
        return embedded

    armed: list[bool] = []
    with Searcher.open(verified.path("store")) as searcher:
        first = searcher.search([image], 3)
        assert (first.generation, first.query_model) == (1, old)
        monkeypatch.setattr(Encoder, "unchecked_rows", embed_then_switch)
        armed.append(True)
        second = searcher.search([image], 3)
        assert (second.generation, second.query_model) == (2, new)
        verified.done("rollback")
        third = searcher.search([image], 3)
        assert (third.generation, third.query_model) == (3, old)
        assert third.ids == first.ids
    assert switched


def test_the_example_of_the_page_repeats_a_stale_search(verified: EngineShop) -> None:
    """The code of docs/engines.md, as it stands there, embeds again with the new model where the
    properties change between its calls."""
    example = example_of_the_page("search_milvus")
    vector, used = verified.gallery().vectors()[0], []

    def encoder(name: str) -> object:
        def embed(_: object) -> np.ndarray:
            used.append(name)
            if used == ["old.onnx"]:
                verified.done("deploy", "--report", verified.path(REPORT))
            return vector

        return embed

    encoders = {Encoder.load(verified.path(n)).sha256: encoder(n) for n in ("old.onnx", "new.onnx")}
    with of(verified).client() as client:
        found = example(client, of(verified).name, encoders, "an image", 4)
    assert used == ["old.onnx", "new.onnx"]
    assert len(found) == 4
    assert found[0] == verified.gallery().catalog.ids[0]


def test_rows_that_were_added_changed_and_deleted(mv: EngineShop) -> None:
    """status counts them, check lists them, verify and add refuse, search leaves new rows out; add
    --changed adopts the rows as they are, and a rollback leaves them."""
    gallery = mv.gallery()
    ids, rows = gallery.catalog.ids, gallery.vectors()
    n, (written, relabelled, gone) = len(ids), (ids[10], ids[11], ids[20])
    near = rows[10:11] + np.float32(1e-3)
    with of(mv).client() as client:
        (kept,) = client.get(of(mv).name, ids=[relabelled], consistency_level="Strong")
    of(mv).insert(["a new one"], rows[:1], ["x"])
    checked = mv.done("check")
    assert [(e["kind"], e["count"]) for e in checked.json["notices"]] == [("new-rows", 1)]
    assert f"the table has {n + 1} rows with a vector" in mv.done("status").stderr
    keys, _ = mv.gallery().index.search(rows[:3], n)
    assert [len(set(row)) for row in keys.tolist()] == [n] * 3
    of(mv).insert([written], near, [gallery.catalog.labels[10]], replace=True)
    of(mv).insert([relabelled], np.array([kept["embedding"]]), ["another"], replace=True)
    of(mv).delete([gone])
    told = mv.run("check")
    assert told.code == 5
    assert (
        f"1 rows are gone: {gone}; 1 rows have another vector: {written}"
        in (told.json["problems"][0])
    )
    assert mv.run("verify", mv.path("new.onnx")).code == 6
    refused = mv.run("add")
    assert refused.code == 5
    assert "1 rows have another class" in refused.json["error"]["message"]
    added = mv.done("add", "--changed").json
    assert (added["added"], added["changed"], added["removed"], added["relabelled"]) == (
        1, [written], [gone], [relabelled],
    )  # fmt: skip
    assert mv.done("check").json["problems"] == []
    assert of(mv).row()["epoch"] == "2"


QUOTED = [f"sku {n}, \"b\\c\", 'd' é {{}}" for n in range(120)]
NUMBERS = [n * 3 - 30 for n in range(120)]
SHAPES: dict[str, tuple[list[object], dict[str, object], list[str]]] = {
    "numbers by the inner product": (NUMBERS, {"metric": "IP"}, []),
    "quotes by L2 without ef": (QUOTED, {"metric": "L2", "index": "IVF_FLAT"}, ["no-ef"]),
    "classes that no schema has": (QUOTED, {"index": "FLAT", "dynamic": True}, []),
}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", SHAPES)
def test_each_metric_key_and_index_gives_cosines(
    shop: Shop, collection: Collection, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are read in many pages, ids are their texts, and the scores are the cosines."""
    monkeypatch.setattr(pages, "MAX_ROWS", 50)
    ids, options, kinds = SHAPES[name]
    noise = np.random.default_rng(0).standard_normal((len(ids), DIM)).astype(np.float32)
    rows = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    labels = [f"class {n % 3}" for n in range(len(ids))]
    collection.create(ids, rows, labels, **options)  # type: ignore[arg-type]
    monkeypatch.chdir(shop.folder.parent)
    adopted = import_alone(shop, collection.url)
    assert adopted.code == 0, adopted.stderr
    assert [entry["kind"] for entry in adopted.json.get("notices", [])] == kinds
    gallery = DeployedGallery.open(Store.open(shop.path("adopted")))
    order = [[str(item) for item in ids].index(item) for item in gallery.catalog.ids]
    assert np.allclose(gallery.vectors(), rows[order], atol=1e-6)
    assert gallery.catalog.labels == tuple(labels[row] for row in order)
    some = gallery.catalog.keys[[4, 1]]
    assert np.array_equal(gallery.index.vectors(some), gallery.vectors()[[4, 1]])
    for k in (7, 60):
        keys, scores = gallery.index.search(rows[:5], k, 500)
        exact = exact_search(rows[:5], gallery.vectors(), k)
        if not kinds:
            assert np.array_equal(gallery.catalog.rows_of(keys), exact.rows)
            assert np.allclose(scores, exact.scores, atol=1e-5)
        assert (np.diff(scores, axis=1) <= 1e-6).all()


def import_alone(shop: Shop, url: str, *words: object) -> Result:
    """Import a collection without data: only its rows are looked at."""
    store = shop.path("adopted")
    shutil.rmtree(store, ignore_errors=True)
    model = ("--model", shop.path("old.onnx"))
    return run("import", url, *model, "--store", store, "--json", *words)


def test_a_collection_that_cannot_be_a_gallery_is_refused_by_name(
    shop: Shop, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message says what is wrong; neither a store nor a property is left behind."""
    monkeypatch.chdir(shop.folder.parent)
    rows = np.eye(DIM, dtype=np.float32)[:20]
    ids = [f"item {n}" for n in range(20)]
    url = collection.url_of

    def refused(message: str, columns: str = "id=id&vector=embedding", database: str = "") -> None:
        given = url(collection.name, columns)
        result = import_alone(shop, given.replace("/default/", f"/{database or 'default'}/"))
        assert result.code == 5, result.stdout + result.stderr
        assert message in result.json["error"]["message"]
        assert not shop.path("adopted").exists()

    refused(f"there is no collection {collection.name}")
    refused(f"no collection {collection.name} in the database nowhere", database="nowhere")
    collection.create(ids, rows, index="")
    refused("the field embedding has no index")
    refused("has no field key", "id=key&vector=embedding")
    refused("has no field v", "id=id&vector=v")
    refused("has no field class", "id=id&vector=embedding&label=class")
    refused("label is not the primary key, which is id", "id=label&vector=embedding")
    refused("is of type VARCHAR, not FLOAT_VECTOR", "id=id&vector=label")
    with collection.client() as client:
        parameters = client.prepare_index_params()
        parameters.add_index("embedding", index_type="FLAT", metric_type="COSINE")
        client.create_index(collection.name, parameters)
        refused("the collection is not loaded")
        client.create_partition(collection.name, "aside")
        client.load_partitions(collection.name, ["aside"])
        refused("partitions of the collection are not loaded: _default")
        client.load_partitions(collection.name, ["_default"])
    assert import_alone(shop, collection.url, "--dry-run").code == 0
    narrow = import_alone(shop, collection.url, "--space", "l2")
    assert narrow.code == 2
    collection.insert(["nil"], np.zeros((1, DIM), np.float32))
    refused("1 rows have a zero vector, which no direction has: nil")
    collection.delete(["nil"])
    collection.insert(ids[:1], rows[:1])
    refused("a primary key was inserted more than once")
    assert collection.row() == {}


def test_vectors_of_another_kind_are_refused(
    shop: Shop, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binary vectors and another dimension, by name, before any row is read."""
    monkeypatch.chdir(shop.folder.parent)
    with collection.client() as client:
        schema = client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.BINARY_VECTOR, dim=DIM)
        client.create_collection(collection.name, schema=schema)
    refused = import_alone(shop, collection.url_of(collection.name, "id=id&vector=embedding"))
    assert refused.code == 5
    assert "is of type BINARY_VECTOR" in refused.json["error"]["message"]
    other = Collection.new(collection.server)
    other.create(["a"], np.ones((1, 8), np.float32), load=False)
    refused = import_alone(shop, other.url)
    assert refused.code == 5
    assert f"8 dimensions, the model has {DIM}" in refused.json["error"]["message"]


def test_an_alias_is_resolved_and_watched(shop: Shop, collection: Collection) -> None:
    """The collection behind it is adopted, with a notice, and searched; check tells where the alias
    leads elsewhere. doctor says the same, and shows the row."""
    fill(collection, shop)
    with collection.client() as client:
        alias = f"{collection.name}_live"
        client.create_alias(collection.name, alias)
        shutil.rmtree(shop.path("store"))
        made = EngineShop(engine="milvus", shop=shop, table=None, collection=collection)
        url = collection.url_of(alias)
        imported = made.done("import", url, "--model", shop.path("old.onnx"))
        assert [entry["kind"] for entry in imported.json["notices"]] == ["alias"]
        assert collection.row()["search_table"] == collection.name
        assert made.done("check").json["ok"]
        found = run("doctor", url, "--json")
        assert found.code == 0
        statuses = {part["name"]: part["status"] for part in found.json["findings"]}
        assert statuses["collection"] == "warning"
        assert "row 'compatctl' at epoch 1" in run("doctor", url).stdout
        client.drop_alias(alias)
    told = made.run("check")
    assert told.code == 5
    assert f"the alias {alias} is no longer one of" in told.json["problems"][0]


def test_the_token_is_written_nowhere(
    shop: Shop, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the store, the project, the properties or any output, be it in the URL or in the
    environment; a wrong one is refused."""
    secret = TOKEN.partition(":")[2]
    fill(collection, shop)
    shutil.rmtree(shop.path("store"))
    monkeypatch.delenv("MILVUS_TOKEN")
    made = EngineShop(engine="milvus", shop=shop, table=None, collection=collection)
    url = collection.url.replace("//", f"//{TOKEN}@")
    outputs = [made.done("import", url, "--model", shop.path("old.onnx"))]
    outputs.append(run("doctor", url, "--json"))
    assert outputs[-1].code == 0
    refused = made.run("check")
    assert refused.code == 5
    monkeypatch.setenv("COMPATCTL_ENGINE_URL", url)
    outputs += [made.done("check"), made.done("status"), refused]
    monkeypatch.setenv("COMPATCTL_ENGINE_URL", f"milvus://{TOKEN}@127.0.0.1:1")
    away = made.run("check")
    assert away.code == 5
    assert "cannot be reached" in away.stdout
    outputs.append(away)
    told = [output.stdout + output.stderr for output in outputs]
    told = [text.replace("Milvus 2", "").replace("of Milvus", "") for text in told]
    assert not any(TOKEN in text for text in told)
    for path in shop.folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    stored = json.dumps(collection.row()) + (shop.path("store") / "manifest.json").read_text()
    assert secret not in stored


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("milvus://h/db", "names no collection"),
        ("milvus:///db/items?id=i&vector=v", "names no host"),
        ("milvus://h/db/items?vector=v", "which field is the id"),
        ("milvus://h/db/items?id=i&vector=v&colour=red", "unknown parameter colour"),
        ("milvus://h/db/items?id=i&vector=v&secure=no", "secure that is not true"),
        ("milvus://h/db/items?id=i&vector=v&id=j", "a parameter twice"),
        ("milvus://h/a/b/c?id=i&vector=v", "has 3 parts"),
        ("milvus://h:port/db/items?id=i&vector=v", "is not one that can be read"),
    ],
)
def test_a_url_of_another_form_is_refused(
    shop: Shop, url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, and the message never shows the URL, which may hold a password."""
    monkeypatch.chdir(shop.folder.parent)
    refused = import_alone(shop, url.replace("//h", "//user:secret@h"))
    assert refused.code == 2
    assert message in refused.json["error"]["message"]
    assert "secret" not in refused.stdout + refused.stderr.replace("secure", "")


REFUSED = {
    "promote": ("promote",),
    "remove": ("remove", "an id"),
    "re-scoring": ("verify", "new.onnx", "--rescore", "20"),
}


def test_what_milvus_cannot_do_is_refused_by_name(
    shop: Shop, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 and the reason, and the row does not change."""
    mv = adopt(shop, collection)
    monkeypatch.chdir(shop.folder)
    before = collection.row()
    for name, words in REFUSED.items():
        refused = mv.run(*words)
        assert refused.code == 2
        assert f"{name} is not for a store whose rows are in milvus" in refused.stderr
    assert collection.row() == before


def test_an_import_that_was_killed_is_run_again(shop: Shop, collection: Collection) -> None:
    """Killed after the properties were written: the same command ends with one store."""
    fill(collection, shop)
    shutil.rmtree(shop.path("store"))
    made = EngineShop(engine="milvus", shop=shop, table=None, collection=collection)
    words = (collection.url, "--model", shop.path("old.onnx"))
    killed("after the row", "import", *shop.args, *words)
    assert collection.row()["epoch"] == "1"
    made.done("import", *words)
    assert collection.row()["epoch"] == "1"
    assert made.done("check").json["ok"]
    assert not made.done("import", *words).json["written"]


def test_new_rows_are_compared_and_stay_after_a_rollback(
    shop: Shop, collection: Collection
) -> None:
    """Rows that the query model did not make are refused; its own are adopted, and a rollback of
    the model leaves them in the gallery."""
    fill(collection, shop)
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    ids, rows = list(gallery.catalog.ids[:3]), gallery.vectors()[:3]
    collection.delete(ids)
    shutil.rmtree(shop.path("store"))
    mv = EngineShop(engine="milvus", shop=shop, table=None, collection=collection)
    mv.done("import", collection.url, "--model", shop.path("old.onnx"))
    n = mv.gallery().manifest.index.count
    items, other = load(shop.data()), turned(shop, "other.onnx", of="old.onnx")
    taken = items.take([items.row_of[item] for item in ids])
    collection.insert(ids, Encoder.load(other).embed(taken).features)
    refused = mv.run("add")
    assert refused.code == 5
    assert "did not fill this index" in refused.json["error"]["message"]
    assert collection.row()["epoch"] == "1"
    collection.insert(ids, rows, replace=True)
    added = mv.done("add").json
    assert (added["added"], added["present"], added["uncompared"]) == (3, n, 0)
    mv.done("deploy", "--model", shop.path("new.onnx"), "--force", "--reason", "drill")
    assert mv.done("rollback", "--to", 1).json["kept"] == 3
    assert mv.gallery().manifest.index.count == n + 3
    assert mv.done("check").json["problems"] == []


def test_the_writer_whose_row_stays_is_told_so(mv: EngineShop) -> None:
    """Eight writers replace the same row at once, ten times. Others than the last may believe that
    they won, as Milvus has no compare-and-swap; but the one whose row stays does, and whoever
    finds another row is told."""
    location = parse_url(of(mv).url)
    deployment = deployment_of(location)
    refused = 0
    for turn in range(10):
        expected = deployment.read()
        assert expected is not None
        believed: list[str] = []

        def write(name: str, before: DeploymentRow = expected, to: list[str] = believed) -> None:
            row = replace(before, epoch=before.epoch + 1, manifest=name)
            try:
                deployment_of(location).swap(row, expected=before)
            except ConflictError:
                return
            to.append(name)

        names = [f"{turn}-{number}" for number in range(8)]
        threads = [threading.Thread(target=write, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = deployment.read()
        assert last is not None
        assert last.epoch == expected.epoch + 1
        assert last.manifest in believed
        refused += len(names) - len(believed)
    assert refused > 0


def test_a_partition_that_is_released_later_is_told(mv: EngineShop) -> None:
    """Its rows are not taken for rows that are gone: check and verify name the partition, add
    --changed drops nothing, and once it is loaded again all is as before."""
    assert mv.collection is not None
    name, vector = mv.collection.name, mv.gallery().vectors()[0]
    with mv.collection.client() as client:
        client.create_partition(name, "winter")
        client.load_partitions(name, ["winter"])
        row = {"id": "cold", "embedding": vector, "label": "snow"}
        client.insert(name, [row], partition_name="winter")
        mv.done("add")
        client.release_partitions(name, ["winter"])
        told = mv.run("check")
        assert told.code == 5
        assert "partitions of the collection are not loaded: winter" in told.json["problems"][0]
        assert mv.run("verify", mv.path("new.onnx")).code == 5
        assert mv.run("add", "--changed").code == 5
        assert "cold" in mv.gallery().catalog.ids
        client.load_partitions(name, ["winter"])
    assert mv.done("check").json["ok"]
