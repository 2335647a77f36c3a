"""Folders that LanceDB and Chroma wrote themselves, against the rows that were written."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shop_kit import Result, Shop, run

from compatctl.commands.inspect import inspect
from compatctl.data import load
from compatctl.encoder import Encoder
from compatctl.errors import DamagedError, InputError, UsageError
from compatctl.index import ForeignRows, Form, form_of, open_source, tables_of
from compatctl.store import Store

lancedb = pytest.importorskip("lancedb")
pytest.importorskip("chromadb")
pa = pytest.importorskip("pyarrow")

DIM, COUNT = 16, 600
BUILD_CHROMA = """
import sys, json, chromadb, numpy as np
from chromadb import EmbeddingFunction
from chromadb.utils.embedding_functions import register_embedding_function

@register_embedding_function
class Own(EmbeddingFunction):
    def __init__(self): pass
    def __call__(self, input): return [np.zeros(3, np.float32) for _ in input]
    @staticmethod
    def name(): return "own"
    @staticmethod
    def build_from_config(config): return Own()
    def get_config(self): return {}

client = chromadb.PersistentClient(sys.argv[1])
rows = np.load(sys.argv[2])
ids = [f"sku {number}" for number in range(len(rows))]
labels = [f"class {number % 5}" for number in range(len(rows))]
for name, options in json.loads(sys.argv[3]).items():
    made = client.create_collection(name, embedding_function=Own(), **options)
    for start in range(0, len(rows), 250):
        part = slice(start, start + 250)
        made.add(ids=ids[part], embeddings=rows[part],
                 metadatas=[{"class": label, "row": n} for n, label in enumerate(labels[part])])
    made.delete(ids=ids[3:5])
    made.upsert(ids=[ids[7]], embeddings=[-rows[7]])
client.create_collection("empty")
admin = chromadb.AdminClient(client.get_settings())
admin.create_database("prod")
client.set_database("prod")
client.create_collection("items", embedding_function=None).add(ids=["a"], embeddings=[[3.0, 4.0]])
"""
SPACES: Mapping[str, Mapping[str, Any]] = {
    "with-ip": {
        "configuration": {
            "hnsw": {
                "space": "ip", "max_neighbors": 12, "ef_construction": 40, "sync_threshold": 200,
                "batch_size": 100,
            }
        }
    },
    "with-cosine": {"metadata": {"hnsw:space": "cosine"}},
    "with-l2": {},
}  # fmt: skip
"""A collection -> how it is created: by both ways in which Chroma is told a space, and by none."""


def _rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)


def _ids() -> list[str]:
    return [f"sku {number}" for number in range(COUNT)]


def _labels() -> list[str]:
    return [f"class {number % 5}" for number in range(COUNT)]


def _table(**columns: Any) -> Any:
    """An Arrow table of ids and vectors as lists of one length, or of these columns."""
    vectors = pa.array(_rows().tolist(), pa.list_(pa.float32(), DIM))
    return pa.table({"id": _ids(), "vector": vectors, **columns})


def _lance(folder: Path, **tables: Any) -> Any:
    """A LanceDB folder with these tables."""
    opened = lancedb.connect(str(folder))
    for name, table in tables.items():
        opened.create_table(name, table, on_bad_vectors="null")
    return opened


def _chroma(folder: Path, collections: Mapping[str, Mapping[str, Any]] = SPACES) -> Path:
    """A Chroma folder, written by a process that has ended."""
    np.save(folder.parent / "rows.npy", _rows())
    words = [str(folder), str(folder.parent / "rows.npy"), json.dumps(dict(collections))]
    command = [sys.executable, "-c", BUILD_CHROMA, *words]
    subprocess.run(command, check=True, capture_output=True, cwd=folder.parent)
    return folder


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Chroma folder with a collection of each space, and an empty one."""
    return _chroma(tmp_path_factory.mktemp("chroma") / "db")


def _read(path: Path, scratch: Path, table: str | None = None, **columns: str) -> ForeignRows:
    scratch.mkdir(exist_ok=True)
    return open_source(path, form_of(path), scratch, columns, table)


def _bytes(folder: Path) -> dict[str, str]:
    """The digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    before = _bytes(folder)
    yield
    assert _bytes(folder) == before


def _by_id(source: ForeignRows) -> dict[str, NDArray[np.float32]]:
    assert source.ids is not None
    return dict(zip(source.ids, np.asarray(source.rows), strict=True))


@pytest.mark.parametrize("floats", ["float16", "float32", "float64"])
def test_a_lance_table_gives_the_rows_of_its_newest_version(tmp_path: Path, floats: str) -> None:
    """Ids, labels and rows are what was written last: without deleted rows, with updated and added
    ones. The folder stays byte for byte."""
    kind = pa.list_(getattr(pa, floats)(), DIM)
    rows = _rows().astype(floats)
    folder = tmp_path / "db"
    labels = [None, *_labels()[1:]]
    vectors = pa.array(list(rows), kind)
    table = pa.table({"_id": _ids(), "embedding": vectors, "label": labels})
    opened = _lance(folder, items=table).open_table("items")
    opened.delete("_id in ('sku 3', 'sku 4')")
    opened.update(where="_id = 'sku 5'", values={"label": "other"})
    opened.add(pa.table({"_id": ["new"], "embedding": pa.array([rows[3]], kind), "label": ["n"]}))
    with _unchanged(folder):
        source = _read(folder, tmp_path / "scratch")
    assert (source.engine, source.kind, source.similarity) == ("LanceDB", "table items", None)
    expected = dict(zip(_ids(), rows.astype(np.float32), strict=True)) | {
        "new": rows[3].astype(np.float32)
    }
    read = _by_id(source)
    assert read.keys() == expected.keys() - {"sku 3", "sku 4"}
    assert all(np.array_equal(row, expected[name]) for name, row in read.items())
    assert source.labels is not None
    found = dict(zip(read, source.labels, strict=True))
    assert (found["sku 0"], found["sku 5"], found["sku 6"]) == ("", "other", "class 1")


@pytest.mark.parametrize("distance", ["cosine", "dot", "l2"])
def test_an_index_of_lance_says_what_the_table_ranks_by(tmp_path: Path, distance: str) -> None:
    """The rows are the table's and not the index's; whole numbers are keys, exactly."""
    keys = 2**60 + np.random.default_rng(1).permutation(COUNT).astype(np.int64)
    table = _lance(tmp_path / "db", items=_table(id=keys)).open_table("items")
    config = lancedb.index.IvfPq(distance_type=distance, num_partitions=2, num_sub_vectors=4)
    table.create_index("vector", config=config)
    source = _read(tmp_path / "db", tmp_path / "scratch")
    assert (source.kind, source.similarity) == ("table items (IVF_PQ)", distance)
    assert (source.lossy, source.ids) == ("", None)
    assert source.keys is not None
    order = np.argsort(keys)
    place = np.argsort(source.keys)
    assert np.array_equal(np.asarray(source.rows)[place], _rows()[order])
    assert np.array_equal(source.keys[place], keys[order].astype(np.uint64))


def test_one_table_of_several_is_named(tmp_path: Path) -> None:
    """By --table, or by its own folder; else the message lists them."""
    folder = tmp_path / "db"
    other = pa.table({"pk": ["a"], "emb": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    _lance(folder, items=_table(), others=other)
    with pytest.raises(InputError, match="2 tables: items, others") as caught:
        _read(folder, tmp_path / "scratch")
    assert "--table items" in caught.value.tip
    with pytest.raises(InputError, match="no table 'thing'; its tables are items, others"):
        _read(folder, tmp_path / "scratch", "thing")
    assert len(_read(folder, tmp_path / "a", "others", vector="emb")) == 1
    assert len(_read(folder / "items.lance", tmp_path / "b")) == COUNT
    assert tables_of(folder, Form.LANCEDB) == ("items", "others")
    found = inspect(folder)
    assert (found.kind, found.facts["names"]) == ("LanceDB folder", ["items", "others"])


def _lists(*vectors: list[float] | None, width: int = 2) -> Any:
    """A column of vectors; ``width`` -1: each may have its own length."""
    return pa.array(vectors, pa.list_(pa.float32(), width))


BAD = {
    "no vector": ({"id": ["a"], "price": [1.0]}, "no column is known to be the vector"),
    "no id": ({"sku": ["a"], "vector": _lists([1.0, 2.0])}, "no column is known to be the id"),
    "uneven": (
        {"id": ["a", "b"], "features": _lists([1.0, 2.0], [1.0], width=-1)},
        "row 1 has 1 components",
    ),
    "null vector": ({"id": ["a", "b"], "vector": _lists([1.0, 2.0], None)}, "1 rows without one"),
    "null id": ({"id": ["a", None], "vector": _lists([1.0, 2.0], [2.0, 1.0])}, "1 ids near row 0"),
    "twice": ({"id": [1, 1], "vector": _lists([1.0, 2.0], [2.0, 1.0])}, "the id 1 is there twice"),
    "float ids": ({"id": [1.0, 2.0], "vector": _lists([1.0, 2.0], [2.0, 1.0])}, "float cannot"),
    "two vectors": (
        {"id": ["a"], "vector": _lists([1.0, 2.0]), "embedding": _lists([1.0, 2.0])},
        "could each be the vector",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_lance_table_that_is_no_table_of_vectors_says_what_it_is(
    tmp_path: Path, name: str
) -> None:
    """Each defect is named, with the columns or the row."""
    columns, words = BAD[name]
    _lance(tmp_path / "db", items=pa.table(columns))
    with pytest.raises(InputError, match=words):
        _read(tmp_path / "db", tmp_path / "scratch")


def test_a_lance_table_without_rows_is_refused(tmp_path: Path) -> None:
    """There is nothing to import."""
    _lance(tmp_path / "db", items=_table().slice(0, 0))
    with pytest.raises(InputError, match="no rows"):
        _read(tmp_path / "db", tmp_path / "scratch")


def _of_newer_format(manifest: Path) -> None:
    """Set a feature flag that no reader knows: field 9 of the message in a Lance manifest."""
    raw = manifest.read_bytes()
    (start,) = struct.unpack("<Q", raw[-16:-8])
    (size,) = struct.unpack("<I", raw[start : start + 4])
    end = start + 4 + size
    flags = bytes([9 << 3, *[0x80] * 5, 0x20])
    content = raw[start + 4 : end] + flags
    manifest.write_bytes(raw[:start] + struct.pack("<I", len(content)) + content + raw[end:])


def test_a_lance_table_of_a_newer_format_asks_for_a_newer_library(tmp_path: Path) -> None:
    """It is told apart from a damaged one."""
    _lance(tmp_path / "db", items=_table())
    (manifest,) = (tmp_path / "db" / "items.lance" / "_versions").glob("*.manifest")
    _of_newer_format(manifest)
    with pytest.raises(InputError, match="of a newer format than LanceDB") as caught:
        _read(tmp_path / "db", tmp_path / "scratch")
    assert "-U lancedb" in caught.value.tip


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_damaged_lance_table_is_damaged_by_name(tmp_path: Path, part: str) -> None:
    """Files cut to their half."""
    _lance(tmp_path / "db", items=_table())
    for path in (tmp_path / "db" / "items.lance" / part).iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedError, match="cannot be read"):
        _read(tmp_path / "db", tmp_path / "scratch")


@pytest.mark.parametrize("space", ["ip", "cosine", "l2"])
def test_a_chroma_collection_gives_its_rows_under_its_ids(
    chroma: Path, tmp_path: Path, space: str
) -> None:
    """Without deleted records, with updated ones, of an embedding function that is not known here;
    space and graph settings are the collection's, and the folder stays byte for byte."""
    with _unchanged(chroma):
        source = _read(chroma, tmp_path / "scratch", f"with-{space}", label="class")
    similarity = {"ip": "dot"}.get(space, space)
    expected_m = (12, 40) if space == "ip" else (16, 100)
    assert (source.engine, source.kind) == ("Chroma", f"collection with-{space}")
    assert (source.similarity, source.M, source.ef_construction) == (similarity, *expected_m)
    expected = dict(zip(_ids(), _rows(), strict=True))
    expected["sku 7"] = -expected["sku 7"]
    read = _by_id(source)
    assert read.keys() == expected.keys() - {"sku 3", "sku 4"}
    for name, row in read.items():
        scale = np.linalg.norm(row) / np.linalg.norm(expected[name]) if space == "cosine" else 1.0
        assert np.abs(row - scale * expected[name]).max() < 1e-6
    assert source.labels is not None
    labels = dict(zip(_ids(), _labels(), strict=True))
    assert source.labels == tuple(labels[name] for name in read)
    assert not (tmp_path / "scratch" / "copy").exists()


def test_a_folder_of_an_older_chroma_does_not_count_as_l2(tmp_path: Path) -> None:
    """Chroma 0.5 wrote the default, L2, among the settings of a collection that ranks by the cosine
    by its metadata. Newer ones report L2, and rank by it where no index was written yet: nothing is
    taken for certain then, and --space is asked for where it matters."""
    folder = _chroma(tmp_path / "db", {"with-cosine": SPACES["with-cosine"]})
    older = {"hnsw_configuration": {"space": "l2", "M": 16, "_type": "HNSWConfigurationInternal"},
             "_type": "CollectionConfigurationInternal"}  # fmt: skip
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database, database:
        change = "UPDATE collections SET config_json_str = ?, schema_str = NULL"
        database.execute(change, (json.dumps(older),))
    assert _read(folder, tmp_path / "scratch", "with-cosine").similarity is None


def test_one_collection_of_several_is_named(chroma: Path, tmp_path: Path) -> None:
    """A wrong name is refused with the list, an empty collection as such, and a missing key of the
    metadata with the keys that are there; inspect lists them and leaves the folder as it is."""
    cases = (
        (None, {}, "5 collections"),
        ("thing", {}, "no collection 'thing'"),
        ("empty", {}, "no records"),
        ("with-ip", {"label": "klass"}, "no record has the key 'klass'; their keys are class, row"),
    )
    for name, columns, words in cases:
        with pytest.raises(InputError, match=words):
            _read(chroma, tmp_path / words.replace(" ", ""), name, **columns)
    with _unchanged(chroma):
        found = inspect(chroma)
    assert (found.kind, set(found.facts["names"])) == (
        "Chroma folder",
        {*SPACES, "empty", "prod/items"},
    )
    other = _read(chroma, tmp_path / "other", "prod/items")
    assert (other.ids, np.asarray(other.rows).tolist()) == (("a",), [[3.0, 4.0]])


def test_settings_in_the_working_folder_are_not_chromas(
    chroma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma takes a file .env of the working folder for its own settings."""
    (tmp_path / ".env").write_text("chroma_server_thread_pool_size=many\n")
    monkeypatch.chdir(tmp_path)
    assert len(_read(chroma, tmp_path / "scratch", "with-l2")) == COUNT - 2


@pytest.mark.parametrize("defect", ["cut database", "cut index", "no index"])
def test_a_damaged_chroma_folder_is_damaged_by_name(tmp_path: Path, defect: str) -> None:
    """Its database or its index is cut, or the index is missing."""
    folder = _chroma(tmp_path / "db", {"with-ip": SPACES["with-ip"]})
    database = folder / "chroma.sqlite3"
    if defect == "cut database":
        database.write_bytes(database.read_bytes()[:30_000])
    for path in folder.glob("*-*/*"):
        if defect == "no index":
            path.unlink()
        elif defect == "cut index":
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DamagedError, match="db: "):
        _read(folder, tmp_path / "scratch", "with-ip")


def test_a_chroma_folder_that_is_written_meanwhile_is_refused(tmp_path: Path) -> None:
    """A copy of files that change would be of no single moment."""
    folder = _chroma(tmp_path / "db", {"with-l2": {}})
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.0005):
            with (folder / "journal").open("ab") as file:
                file.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(InputError, match="changed while they were copied"):
            _read(folder, tmp_path / "scratch", "with-l2")
    finally:
        ended.set()
        writer.join()


@pytest.mark.parametrize("engine", ["LanceDB", "Chroma"])
def test_the_exports_of_the_docs_give_the_same_rows(tmp_path: Path, engine: str) -> None:
    """The lines of docs/indexes.md are run as they stand there."""
    page = (Path(__file__).parents[2] / "docs" / "indexes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", page, re.MULTILINE)
    first = "import lancedb, " if engine == "LanceDB" else "import chromadb, "
    (lines,) = [textwrap.dedent(block) for block in blocks if first in block]
    if engine == "LanceDB":
        _lance(folder := tmp_path / "folder", items=_table())
    else:
        folder = _chroma(tmp_path / "copy", {"items": {}})
    expected = _by_id(_read(folder, tmp_path / "scratch", "items"))
    subprocess.run([sys.executable, "-c", lines], check=True, cwd=tmp_path, capture_output=True)
    found = _by_id(_read(tmp_path / "gallery.parquet", tmp_path / "scratch"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(row, expected[name]) for name, row in found.items())


def _adopt(shop: Shop, *arguments: object) -> Result:
    return run("import", *arguments, "--model", shop.path("old.onnx"), "--store",
               shop.path("adopted"), "--json")  # fmt: skip


@pytest.mark.parametrize("engine", ["LanceDB", "Chroma"])
def test_a_database_folder_is_imported_verified_deployed_and_searched(
    shop: Shop, engine: str
) -> None:
    """The journey from a folder in production; a second import has nothing to do."""
    gallery = load(shop.data()).filter(role="gallery")
    rows = Encoder.load(shop.path("old.onnx")).embed(gallery).features
    folder = shop.path("db")
    if engine == "LanceDB":
        vectors = pa.array(rows.tolist(), pa.list_(pa.float32(), rows.shape[1]))
        _lance(folder, items=pa.table({"id": list(gallery.ids), "vector": vectors}))
    else:
        client = "import sys, json, chromadb, numpy as np\n" \
            "made = chromadb.PersistentClient(sys.argv[1]).create_collection('items')\n" \
            "made.add(ids=json.loads(sys.argv[3]), embeddings=np.load(sys.argv[2]))"  # fmt: skip
        np.save(shop.path("rows.npy"), rows)
        words = [str(folder), str(shop.path("rows.npy")), json.dumps(gallery.ids)]
        subprocess.run([sys.executable, "-c", client, *words], check=True, capture_output=True)
    result = _adopt(shop, folder, "--data", shop.data())
    assert result.code == 0, result.stderr
    answer = result.json
    assert (answer["engine"], answer["proven"], answer["rows"]) == (engine, True, len(rows))
    assert Store.open(shop.path("adopted")).catalog().ids == tuple(gallery.ids)
    again = _adopt(shop, folder, "--data", shop.data())
    assert (again.code, again.json["written"]) == (0, False)
    store = ("--store", shop.path("adopted"), "--report", shop.path("r.json"))
    assert shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"), *store).code == 0
    assert shop.run("deploy", *store).code == 0
    image = next((shop.data().parent / "images" / "twemoji").iterdir())
    found = shop.run("search", image, "--store", shop.path("adopted"))
    assert found.json["queries"][0]["hits"][0]["id"] in set(gallery.ids)


def test_options_that_a_database_folder_has_no_use_for_are_refused(
    shop: Shop, chroma: Path
) -> None:
    """Chroma names ids and vectors itself, and only a database has tables."""
    for arguments, words in (
        ((chroma, "--items-column", "vector=emb"), "only label, a key of the metadata"),
        ((shop.path("old.onnx"), "--table", "items"), "--table names a table of LanceDB"),
        ((chroma, "--drop-deleted"), "--drop-deleted is for hnswlib files"),
    ):
        result = _adopt(shop, *arguments)
        assert (result.code, words in " ".join(result.stderr.split())) == (
            UsageError.exit_code,
            True,
        ), result.stderr
