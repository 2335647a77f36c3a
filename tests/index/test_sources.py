"""Rows of FAISS, usearch, numpy and Parquet files, against the rows that were written."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from compatctl.commands.inspect import inspect
from compatctl.core.similarity import Similarity
from compatctl.data import read_vector_batches
from compatctl.deployment.adopted_source import SourceRequest, open_adopted
from compatctl.errors import DamagedError, InputError, UsageError
from compatctl.index import ForeignRows, Form, form_of, open_source, tables_of
from compatctl.notices import collected
from compatctl.progress import silent

DIM, COUNT = 16, 600
BUILD_FAISS = """
import sys, json, faiss, numpy as np
rows, keys, path, kinds = np.load(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3], sys.argv[4:]
faiss.omp_set_num_threads(1)
for number, kind in enumerate(kinds):
    name, metric = kind.rsplit(":", 1)
    index = faiss.index_factory(rows.shape[1], name, getattr(faiss, metric))
    index.train(rows)
    try:
        index.add_with_ids(rows, keys)
    except RuntimeError:
        index.add(rows)
    faiss.write_index(index, f"{path}/{number}.faiss")
index = faiss.index_factory(rows.shape[1], "IVF8,PQ8x4fs", faiss.METRIC_L2)
index.train(rows)
index.add(rows)
faiss.write_index(index, f"{path}/packed.faiss")
binary = faiss.IndexBinaryFlat(64)
binary.add(np.zeros((3, 8), np.uint8))
faiss.write_index_binary(binary, f"{path}/binary.faiss")
"""
BUILD_USEARCH = """
import sys, numpy as np
from usearch.index import Index
rows, keys, path, kinds = np.load(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3], sys.argv[4:]
for number, kind in enumerate(kinds):
    metric, scalar = kind.split(":")
    index = Index(ndim=rows.shape[1], metric=metric, dtype=scalar, connectivity=12)
    index.add(keys, np.packbits(rows > 0, axis=1) if scalar == "b1" else rows)
    index.remove(int(keys[5]))
    index.save(f"{path}/{number}.usearch")
"""
KINDS = {
    "Flat:METRIC_L2": ("IndexFlatL2", "l2", 0.0),
    "Flat:METRIC_INNER_PRODUCT": ("IndexFlatIP", "dot", 0.0),
    "IDMap,Flat:METRIC_INNER_PRODUCT": ("IndexIDMap of IndexFlatIP", "dot", 0.0),
    "IDMap2,HNSW12:METRIC_L2": ("IndexIDMap2 of IndexHNSWFlat", "l2", 0.0),
    "HNSW12:METRIC_L2": ("IndexHNSWFlat", "l2", 0.0),
    "IVF8,Flat:METRIC_L2": ("IndexIVFFlat", "l2", 0.0),
    "IDMap,IVF8,Flat:METRIC_L2": ("IndexIDMap of IndexIVFFlat", "l2", 0.0),
    "IVF8,PQ8x4:METRIC_L2": ("IndexIVFPQ", "l2", 0.7),
    "PQ8x4,RFlat:METRIC_L2": ("IndexRefineFlat of IndexFlatL2", "l2", 0.0),
    "PQ8x4:METRIC_L2": ("IndexPQ", "l2", 0.7),
    "IVF8,RaBitQ:METRIC_L2": ("IndexIVFRaBitQ", "l2", 1.0),
    "PQ8x4fs:METRIC_L2": ("IndexPQFastScan", "l2", 0.8),
    "SQ8:METRIC_L2": ("IndexScalarQuantizer", "l2", 0.03),
    "SQfp16:METRIC_L2": ("IndexScalarQuantizer", "l2", 0.001),
    "HNSW12_SQ8:METRIC_L2": ("IndexHNSWSQ", "l2", 0.03),
    "OPQ8,IVF8,PQ8x4:METRIC_L2": ("IndexPreTransform of LinearTransform of IndexIVFPQ", "l2", 0.7),
    "PCA8,Flat:METRIC_L2": ("IndexPreTransform of PCAMatrix of IndexFlatL2", "l2", 0.9),
    "RR16,Flat:METRIC_L2": (
        "IndexPreTransform of RandomRotationMatrix of IndexFlatL2", "l2", 1e-6,
    ),
}  # fmt: skip
"""FAISS's name of an index -> kind and similarity that are read, largest relative error."""


def _rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)


def _keys() -> NDArray[np.int64]:
    """Keys in no order, above 2^53, where a float would confuse neighbours."""
    return np.random.default_rng(1).permutation(COUNT).astype(np.int64) + 2**60


@pytest.fixture(scope="module")
def faiss_files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A FAISS file of each kind, and two that are not read."""
    folder = _built(tmp_path_factory.mktemp("faiss"), BUILD_FAISS, [*KINDS])
    files = {kind: folder / f"{number}.faiss" for number, kind in enumerate(KINDS)}
    return files | {name: folder / f"{name}.faiss" for name in ("binary", "packed")}


USEARCH = ("cos:f32", "ip:f32", "l2sq:f32", "cos:f16", "l2sq:bf16", "cos:i8", "cos:f64")


@pytest.fixture(scope="module")
def usearch_files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A usearch file of each kind, from which one key was removed."""
    folder = _built(tmp_path_factory.mktemp("usearch"), BUILD_USEARCH, [*USEARCH, "hamming:b1"])
    kinds = (*USEARCH, "hamming:b1")
    return {kind: folder / f"{number}.usearch" for number, kind in enumerate(kinds)}


def _built(folder: Path, program: str, kinds: list[str]) -> Path:
    """Run a program that builds files in a process of its own, as FAISS brings its own OpenMP."""
    np.save(folder / "rows.npy", _rows())
    np.save(folder / "keys.npy", _keys())
    words = [str(folder / "rows.npy"), str(folder / "keys.npy"), str(folder), *kinds]
    subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)
    return folder


def _read(path: Path, scratch: Path, **columns: str) -> ForeignRows:
    return open_source(path, form_of(path), scratch, columns)


def _by_key(source: ForeignRows) -> dict[int, NDArray[np.float32]]:
    assert source.keys is not None
    return dict(zip(source.keys.tolist(), np.asarray(source.rows), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_faiss_index_gives_its_rows_under_its_keys(
    faiss_files: Mapping[str, Path], tmp_path: Path, kind: str
) -> None:
    """Kind, similarity and keys are the file's; rows are those that were added, and where they are
    not, the source says why."""
    source = _read(faiss_files[kind], tmp_path)
    name, similarity, error = KINDS[kind]
    assert (source.engine, source.kind, source.similarity) == ("FAISS", name, similarity)
    has_keys = "IDMap" in kind or kind.startswith(("IVF", "OPQ"))
    expected = dict(zip((_keys() if has_keys else np.arange(COUNT)).tolist(), _rows(), strict=True))
    read = _by_key(source)
    assert read.keys() == expected.keys()
    distances = [np.linalg.norm(read[key] - expected[key]) for key in expected]
    assert max(distances) <= error * np.linalg.norm(_rows(), axis=1).max()
    assert bool(source.lossy) == (error > 1e-6)
    if "HNSW" in kind:
        assert (source.M, source.ef_construction) == (12, 40)


def test_quantised_and_half_rows_say_how_they_are_kept(
    faiss_files: Mapping[str, Path], tmp_path: Path
) -> None:
    """The reason names the structure or the precision."""
    for number, (kind, words) in enumerate(
        {"IVF8,PQ8x4": "IndexIVFPQ", "SQfp16": "half", "PCA8,Flat": "8", "SQ8": "few bits"}.items()
    ):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        assert words in _read(faiss_files[f"{kind}:METRIC_L2"], scratch).lossy


@pytest.mark.parametrize("kind", USEARCH)
def test_usearch_files_give_their_rows_under_their_keys(
    usearch_files: Mapping[str, Path], tmp_path: Path, kind: str
) -> None:
    """Without the removed key; what is kept in fewer bits is close, and said to be lossy."""
    source = _read(usearch_files[kind], tmp_path)
    metric, scalar = kind.split(":")
    similarities: dict[str, Similarity] = {"cos": "cosine", "ip": "dot", "l2sq": "l2"}
    assert (source.engine, source.similarity) == ("usearch", similarities[metric])
    assert source.M == 12
    assert bool(source.lossy) == (scalar not in {"f32", "f64"})
    expected = dict(zip(_keys().tolist(), _rows(), strict=True))
    expected.pop(int(_keys()[5]))
    read = _by_key(source)
    assert read.keys() == expected.keys()
    for key, row in expected.items():
        cosine = row @ read[key] / np.linalg.norm(row) / np.linalg.norm(read[key])
        assert cosine > (0.999 if scalar == "i8" else 0.99999 if scalar == "bf16" else 0.999999)
        if scalar in {"f32", "f64"}:
            assert np.array_equal(read[key], row)


def test_inspect_names_the_engine_and_the_command_that_imports_it(
    faiss_files: Mapping[str, Path], usearch_files: Mapping[str, Path]
) -> None:
    """By the content of the file."""
    files = (faiss_files["HNSW12:METRIC_L2"], usearch_files["cos:f32"])
    for path, kind in zip(files, ("FAISS index", "usearch index"), strict=True):
        found = inspect(path)
        assert found.kind == kind
        assert found.next[0].startswith(f"compatctl import {path}")


def test_kinds_that_hold_no_vectors_are_refused_by_name(
    faiss_files: Mapping[str, Path], usearch_files: Mapping[str, Path], tmp_path: Path
) -> None:
    """Binary vectors have no cosine; of lists that are packed for fast scans, FAISS has no rows."""
    with pytest.raises(InputError, match="IndexIVFPQFastScan, whose codes are packed"):
        _read(faiss_files["packed"], tmp_path)
    with pytest.raises(InputError, match="binary vectors"):
        form_of(faiss_files["binary"])
    with pytest.raises(InputError, match="Hamming"):
        _read(usearch_files["hamming:b1"], tmp_path)


def test_a_damaged_faiss_file_is_an_error_here_and_not_a_crash(
    faiss_files: Mapping[str, Path], tmp_path: Path
) -> None:
    """Cut short at any of many places, the file is damaged by name."""
    raw = faiss_files["IVF8,Flat:METRIC_L2"].read_bytes()
    for number, size in enumerate((10, 60, len(raw) // 2, len(raw) - 3)):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        (scratch / "cut.faiss").write_bytes(raw[:size])
        with pytest.raises(DamagedError, match=r"cut\.faiss"):
            _read(scratch / "cut.faiss", scratch)


def test_a_reader_that_crashes_is_a_damaged_file(
    faiss_files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the reader's process becomes an error that names the engine."""
    folder = tmp_path / "faiss"
    folder.mkdir()
    (folder / "__init__.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DamagedError, match=f"FAISS crashed.*signal {signal.SIGSEGV.value}"):
        _read(faiss_files["Flat:METRIC_L2"], tmp_path)


def test_the_reader_loads_no_module_of_the_working_folder(
    faiss_files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with an index from a stranger may hold a faiss.py or numpy.py: none of it runs."""
    for name in ("faiss", "numpy", "compatctl", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('loaded')")
    monkeypatch.chdir(tmp_path)
    assert len(_read(faiss_files["Flat:METRIC_L2"], tmp_path)) == COUNT


def test_a_missing_library_is_named_with_its_extra(
    faiss_files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is recognised without FAISS, which is then asked for."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(InputError) as caught:
        _read(faiss_files["Flat:METRIC_L2"], tmp_path)
    assert "compatctl[faiss]" in caught.value.tip


def _parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    parquet.write_table(pa.table(dict(columns)), path, row_group_size=100)
    return path


@pytest.mark.parametrize("width", [None, DIM], ids=["lists", "fixed lists"])
@pytest.mark.parametrize("floats", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_parquet_gives_rows_ids_and_labels(
    tmp_path: Path, width: int | None, floats: pa.DataType
) -> None:
    """Lists of any width of float, in several row groups, with texts as ids."""
    rows = _rows().astype(floats.to_pandas_dtype())
    kind = pa.list_(floats, -1 if width is None else width)
    vectors = pa.array(list(rows), kind)
    ids = [f"sku {number}" for number in range(COUNT)]
    labels = [None if number % 7 == 0 else "shoe" for number in range(COUNT)]
    path = _parquet(tmp_path / "t.parquet", {"_id": ids, "embedding": vectors, "label": labels})
    source = _read(path, tmp_path)
    assert (source.ids, source.similarity, source.keys) == (tuple(ids), None, None)
    assert np.array_equal(source.rows, rows.astype(np.float32))
    assert source.labels == tuple("" if label is None else label for label in labels)


def test_one_batch_of_rows_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Also where ids and vectors of a batch share one buffer, as those of LanceDB do."""
    held: list[int] = []
    width = 256

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(20):
            vectors = pa.array(np.full((500, width), number, np.float32).tolist(),
                               pa.list_(pa.float32(), width))  # fmt: skip
            ids = pa.array(np.arange(500) + 500 * number)
            batch = pa.record_batch({"id": ids, "vector": vectors})
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            del batch, vectors
            held.append(pa.total_allocated_bytes())
            yield pa.ipc.open_stream(sink.getvalue()).read_next_batch()

    chosen = {"id": "id", "vector": "vector"}
    target = tmp_path / "rows.npy"
    found = read_vector_batches(batches(), 10_000, chosen, source=tmp_path, target=target)
    assert np.array_equal(found.rows[:, 0], np.repeat(np.arange(20), 500))
    assert isinstance(found.ids, np.ndarray)
    assert found.ids.tolist() == list(range(10_000))
    assert max(held) - held[0] < 4 * 500 * width * 4


def test_whole_numbers_are_keys_exactly(tmp_path: Path) -> None:
    """Ids above 2^53 stay apart; floats as ids are refused, as they would not."""
    keys, rows = np.uint64(2**63) + np.arange(COUNT, dtype=np.uint64), list(_rows())
    path = _parquet(tmp_path / "t.parquet", {"id": keys, "vector": rows})
    source = _read(path, tmp_path)
    assert source.keys is not None
    assert source.keys.tolist() == keys.tolist()
    path = _parquet(tmp_path / "f.parquet", {"id": keys.astype(np.float64), "vector": rows})
    with pytest.raises(InputError, match="float cannot tell"):
        _read(path, tmp_path)
    np.savez(tmp_path / "t.npz", ids=keys, embeddings=_rows())
    assert _by_key(_read(tmp_path / "t.npz", tmp_path)).keys() == set(keys.tolist())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": [1, 2], "price": [1.0, 2.0]}, "no column is known to be the vector"),
        ({"id": [1, 2], "vector": [[1.0, 2.0], [1.0]]}, "row 1 has 1 components"),
        ({"id": [1, 2], "vector": [[1.0, 2.0], None]}, "rows without one"),
        ({"id": [1, 2], "vector": ["[1,2]", "[3,4]"]}, "must hold a list of floats"),
        ({"id": [1, 1], "vector": [[1.0], [2.0]]}, "the id 1 is there twice"),
        ({"id": ["a", None], "vector": [[1.0], [2.0]]}, "are null"),
        ({"id": ["a", " "], "vector": [[1.0], [2.0]]}, "1 ids are empty"),
        ({"id": ["a", "b"], "vector": [[1.0], [2.0]], "embedding": [[1.0], [2.0]]}, "could each"),
    ],
    ids=["no vector", "uneven", "null", "text", "twice", "no id", "blank id", "two vectors"],
)
def test_parquet_that_is_no_table_of_vectors_says_what_it_is(
    tmp_path: Path, columns: dict[str, list[Any]], words: str
) -> None:
    """Each defect is named, with the columns or the row."""
    path = _parquet(tmp_path / "t.parquet", columns)
    with pytest.raises(InputError, match=words):
        _read(path, tmp_path)


def test_a_column_may_have_any_name(tmp_path: Path) -> None:
    """``columns`` decides; a name that is not there is refused with those that are."""
    path = _parquet(tmp_path / "t.parquet", {"sku": ["a", "b"], "v1": [[1.0], [2.0]]})
    source = _read(path, tmp_path, id="sku", vector="v1")
    assert source.ids == ("a", "b")
    with pytest.raises(InputError, match="no column 'v2'; its columns are sku, v1"):
        _read(path, tmp_path, vector="v2")


def test_npy_rows_have_their_numbers_as_keys(tmp_path: Path) -> None:
    """Or the ids beside them; half precision is read as it is; objects and codes are refused."""
    np.save(tmp_path / "t.npy", _rows().astype(np.float16))
    source = _read(tmp_path / "t.npy", tmp_path)
    assert source.keys is not None
    assert source.keys.tolist() == list(range(COUNT))
    assert np.array_equal(np.asarray(source.rows), _rows().astype(np.float16))
    (tmp_path / "t.ids.txt").write_text("".join(f"sku {row}\n" for row in range(COUNT)))
    named = _read(tmp_path / "t.npy", tmp_path)
    assert named.ids == tuple(f"sku {row}" for row in range(COUNT))
    (tmp_path / "t.ids.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="has 2 ids"):
        _read(tmp_path / "t.npy", tmp_path)
    np.save(tmp_path / "o.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(tmp_path / "i.npy", np.ones((4, 4), np.int8))
    for name in ("o", "i"):
        with pytest.raises(InputError):
            _read(tmp_path / f"{name}.npy", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x04\x95", "a pickle"),
        (b"SQLite format 3\0", "an SQLite database"),
        (json.dumps({"a": 1}).encode(), "a JSON text"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"<!DOCTYPE html><p>404", "an HTML page"),
        (b"nothing known", "is no FAISS file: it begins with b'nothing '"),
    ],
    ids=["pickle", "sqlite", "json", "zip", "html", "unknown"],
)
def test_a_file_that_is_named_as_faiss_and_is_not_says_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    """The first bytes decide, not the name."""
    path = tmp_path / "prod.faiss"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        form_of(path)


def test_a_form_that_the_name_does_not_say_is_noticed(tmp_path: Path) -> None:
    """A numpy file that is named as FAISS is read, and that is said."""
    np.save(tmp_path / "t.npy", _rows())
    path = (tmp_path / "t.npy").rename(tmp_path / "prod.faiss")
    with collected() as notices:
        assert form_of(path) is Form.NPY
    assert [entry["kind"] for entry in notices.entries()] == ["other-form"]


def _chroma_database(folder: Path, *collections: str) -> Path:
    """The part of a Chroma folder that says which collections there are."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database, database:
        database.execute("CREATE TABLE databases (id TEXT, name TEXT)")
        database.execute("INSERT INTO databases VALUES ('d', 'default_database'), ('p', 'prod')")
        database.execute("CREATE TABLE collections (id TEXT, name TEXT, database_id TEXT)")
        rows = [(name, "p" if name == "users" else "d") for name in collections]
        database.executemany("INSERT INTO collections VALUES ('', ?, ?)", rows)
    return folder


def test_folders_of_databases_are_known_by_their_content(tmp_path: Path) -> None:
    """Without their libraries, which the reader asks for by the extra; inspect lists the tables."""
    chroma = _chroma_database(tmp_path / "a", "items", "users")
    (tmp_path / "b" / "items.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "b" / "torn.lance").mkdir()
    cases = (
        (chroma, Form.CHROMA, ("items", "prod/users"), "chroma"),
        (tmp_path / "b", Form.LANCEDB, ("items",), "lancedb"),
        (tmp_path / "b" / "items.lance", Form.LANCEDB, ("items",), "lancedb"),
    )
    for path, form, tables, extra in cases:
        assert (form_of(path), tables_of(path, form)) == (form, tables)
        found = inspect(path)
        assert (found.kind, found.facts["names"]) == (f"{form.value} folder", [*tables])
        assert ("--table" in found.next[0]) == (len(tables) > 1)
        with pytest.raises(InputError) as caught:
            _read(path, tmp_path)
        assert f"compatctl[{extra}]" in caught.value.tip


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.png",), "without a table of LanceDB and without chroma.sqlite3"),
        (("chroma.sqlite3",), "no SQLite database"),
        (("items.lance/data/",), "items.lance has no _versions"),
        (("_versions/",), "does not end in .lance"),
    ],
    ids=["other", "no database", "torn", "no name"],
)
def test_other_folders_say_what_they_lack(
    tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    """A folder that is nearly a database says what is missing."""
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(b"nothing known")
    with pytest.raises(InputError, match=words):
        form_of(tmp_path)


def test_a_table_is_chosen_only_in_a_database(tmp_path: Path) -> None:
    """--table for a file is refused, as it would do nothing."""
    np.save(tmp_path / "t.npy", _rows())
    opened = open_adopted(SourceRequest(path=tmp_path / "t.npy", dim=DIM, table="t"), silent)
    with pytest.raises(UsageError, match="--table names a table of LanceDB"), opened:
        pass
