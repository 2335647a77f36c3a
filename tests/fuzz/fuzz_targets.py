"""Every reader of untrusted files, as a function of bytes, and valid files to start from.

A target returns or raises a CompatError; any other exception is a defect.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import table_kit
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compatctl.core.simplex import Registry
from compatctl.data import (
    Dataset,
    Item,
    csv_rows,
    load,
    load_features,
    memory_bytes,
    read_memory,
    read_pairs,
    read_qrels,
)
from compatctl.encoder import Canary, import_onnx, onnx_safety
from compatctl.encoder.graphs import parse_encoder
from compatctl.encoder.metadata import CONTRACT_KEY
from compatctl.errors import CompatError
from compatctl.files import parse_json, read_json
from compatctl.files.npz import read_npz
from compatctl.index import HnswIndex, HnswParams, read_header
from compatctl.index.hnswlib.checks import check_layout
from compatctl.index.hnswlib.layout import StoredRows
from compatctl.manifest import Catalog, Erasures, IndexInfo, Manifest, ModelShare
from compatctl.recipe import Project, Recipe, load_policy
from compatctl.report import read_report

ROOT = Path(__file__).parent.parent.parent
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """``read`` gets the path of a file with the fuzzed bytes and this ``suffix``."""

    suffix: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]


def run(name: str, data: bytes) -> None:
    """Give ``data`` to a target, which may only raise a CompatError."""
    target = TARGETS[name]
    path = _FOLDER / f"input{target.suffix}"
    path.write_bytes(data)
    with contextlib.suppress(CompatError):
        target.read(path)


def _npz(*compressed: bool, **arrays: object) -> list[bytes]:
    files = []
    for compress in compressed or (False, True):
        buffer = io.BytesIO()
        (np.savez_compressed if compress else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
        files.append(buffer.getvalue())
    return files


def _features() -> list[bytes]:
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    words = np.array(["a", "b", "ä", "dd"])
    role = np.array(["query", "gallery"] * 2)
    similarity = np.array("dot")
    return _npz(ids=words, labels=words, features=rows, role=role, similarity=similarity)


def _images() -> list[bytes]:
    words = np.array(["a", "b"])
    return _npz(ids=words, labels=words, images=np.zeros((2, 3, 3, 3), np.uint8))


def _catalog() -> list[bytes]:
    catalog = Catalog(
        ids=("a", "b"),
        labels=("x", ""),
        keys=np.array([0, 7], np.uint64),
        model_of=np.zeros(2, np.int32),
        models=("a" * 64,),
    )
    path = _FOLDER / "catalog.npz"
    path.unlink(missing_ok=True)
    catalog.write(path)
    return [path.read_bytes()]


def _erasures() -> list[bytes]:
    path = _FOLDER / "erasures.npz"
    path.unlink(missing_ok=True)
    Erasures.empty().extended(["a", "b"]).write(path)
    return [path.read_bytes()]


def _manifest() -> list[bytes]:
    digest = "a" * 64
    params = {"engine": "hnswlib", "space": "ip", "dim": 8, "M": 16, "seed": 100}
    index = IndexInfo(**params, ef_construction=200, ef_search=64, count=1, sha256=digest)
    manifest = Manifest(
        generation=1,
        parent=None,
        operation="init",
        created_at="2024-01-01T00:00:00Z",
        query_model=digest,
        index=index,
        catalog=digest,
        models=(ModelShare(sha256=digest, dim=8, rows=1, name="m.onnx", canary="d" * 64),),
    )
    return [json.dumps(manifest.to_json()).encode()]


def _canary() -> list[bytes]:
    file = io.BytesIO()
    image = np.zeros((3, 2, 3), np.uint8)
    np.savez(file, rows=np.ones((1, 4), np.float32), runtime=np.array("x"), image_0=image)
    return [file.getvalue()]


def _memory() -> list[bytes]:
    pictures = (*_picture()[:2], np.zeros((2, 3), np.uint8))
    items = tuple(Item(id=f"i{i}", label="x", split="train") for i in range(len(pictures)))
    return [memory_bytes(Dataset(items=items, sources=pictures))]


def _index() -> list[bytes]:
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    path = _FOLDER / "seed.hnsw"
    path.unlink(missing_ok=True)
    index = HnswIndex.create(HnswParams(dim=4, M=2), len(rows))
    index.add(rows, np.arange(6, dtype=np.uint64))
    index.save(path)
    return [path.read_bytes()]


def _onnx() -> list[bytes]:
    source = {"name": "image", "height": 4, "width": 4, "resize": "bicubic", "fit": "crop"}
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["colour"], ["raw_then"])],
        "branch",
        [],
        [helper.make_tensor_value_info("raw_then", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["colour"], axes=[1, 2], keepdims=0),
        helper.make_node("If", ["yes"], ["raw"], then_branch=branch, else_branch=branch),
        helper.make_node("LpNormalization", ["raw"], ["embedding"]),
    ]
    weights = [numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(nodes, "g", [image], [out], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Identity", ["x"], ["y"])]
    local = helper.make_function("own", "Same", ["x"], ["y"], body, opsets[:1])
    model = helper.make_model(graph, opset_imports=opsets, functions=[local], ir_version=8)
    text = json.dumps({"format": 1, "dim": 3, "inputs": [source]})
    helper.set_model_props(model, {CONTRACT_KEY: text})
    return [model.SerializeToString()]


def _read_onnx(path: Path) -> None:
    parse_encoder(path, onnx_safety.read_bytes(path))


def _report() -> list[bytes]:
    from compatctl.core.policy import Policy
    from compatctl.evaluation.feature_tables import verify_features
    from compatctl.evaluation.options import VerifyOptions

    rng = np.random.default_rng(0)
    labels = np.repeat([f"c{i}" for i in range(6)], 3)
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "old.npz", Path(folder) / "new.npz"
        for path in paths:
            rows = rng.standard_normal((len(labels), 4)).astype(np.float32)
            np.savez(path, ids=np.arange(len(labels)).astype(str), labels=labels, features=rows)
        return [verify_features(*paths, Policy(), VerifyOptions(similarity="cosine")).to_bytes()]


def _picture() -> list[bytes]:
    files = []
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    for form in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        buffer = io.BytesIO()
        image.save(buffer, form)
        files.append(buffer.getvalue())
    return files


def _read_picture(path: Path) -> None:
    from compatctl.data import decode

    with path.open("rb") as file:
        decode(file, path.name)


def _checkpoints() -> list[bytes]:
    import torch
    from safetensors.torch import save

    state = {"state_dict": {"a.weight": torch.zeros(3, 2), "a.bias": torch.ones(2)}, "epoch": 1}
    files = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        files.append(buffer.getvalue())
    return [*files, save(dict(state["state_dict"]))]  # type: ignore[call-overload]


def _read_weights(path: Path) -> None:
    from compatctl.train.weights import read_tensors

    read_tensors(path)


def _read_safetensors(path: Path) -> None:
    _read_weights(path.rename(path.with_suffix(".safetensors")))


def _files(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(ROOT / name).read_bytes() for name in names]


def _texts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def _forms(*names: str) -> Callable[[], list[bytes]]:
    """Files of images in these forms of ``table_kit``."""

    def seeds() -> list[bytes]:
        return [table_kit.FORMS[name](_FOLDER / name, _ITEMS).read_bytes() for name in names]

    return seeds


def _read_stored(path: Path) -> None:
    """Load the items of a file, and read each of their images."""
    data = load(path)
    for row in range(len(data)):
        data.original(row, 1 << 20)


_ITEMS = table_kit.samples(6)
_SIDE = '{"format": 1, "height": 8, "width": 8, "mean": [127, 127, 127], "layout": "NHWC"}'
_PROJECT = "format: 1\nstore: store\ndata: items.csv\nsplit: {train: 0.5}\nslices: [vendor, b]\n"

TARGETS = {
    "npz": Target(".npz", read_npz, lambda: [*_features(), *_images()]),
    "features": Target(".npz", load_features, _features),
    "images": Target(".npz", load, _images),
    "csv": Target(
        ".csv",
        load,
        _texts('\ufeffid,path,label,split,vendor\nx,a.png,ant,test,one\ny,b/../b,"a, b",,2\n'),
    ),
    "jsonl": Target(
        ".jsonl", load, _texts('{"id": "x", "path": "a.png", "label": "ant", "year": 1}\n')
    ),
    "parquet": Target(".parquet", _read_stored, _forms("parquet", "struct", "large")),
    "arrow": Target(".arrow", _read_stored, _forms("arrow")),
    "tar": Target(".tar", _read_stored, _forms("tar")),
    "pairs": Target(".csv", read_pairs, _texts("id_a,id_b,same\na,b,1\nb,c,false\n")),
    "qrels": Target(".txt", read_qrels, _texts("q1 0 d1 1\nq1 0 d2 0\n")),
    "beir": Target(".tsv", read_qrels, _texts("query-id\tcorpus-id\tscore\nq1\td1\t2\n")),
    "judged-lines": Target(
        ".jsonl", read_qrels, _texts('{"query_id": "q1", "doc_id": "d1", "score": 2}\n')
    ),
    "items": Target(
        ".csv",
        lambda path: list(csv_rows(path, ("key", "id", "label"))),
        _texts("key,id,label\n0,a,x\n18446744073709551615,b,\n"),
    ),
    "preprocessing": Target(".json", import_onnx.read_spec, _texts(_SIDE)),
    "recipe": Target(".yaml", Recipe.load, _files("recipes/default.yaml")),
    "policy": Target(".yaml", load_policy, _files("compatctl/policies/default.yaml")),
    "project": Target(".yaml", Project.load, _texts(_PROJECT)),
    "report": Target(".json", read_report, _report),
    "registry": Target(
        ".json",
        lambda path: Registry.from_json(path.read_bytes().decode("utf-8", "replace")),
        lambda: [Registry(("a", "b"), 4).to_json().encode()],
    ),
    "json": Target(
        ".json", lambda path: read_json(path, 1 << 20), _texts('{"a": [1, 2.5e3, "x"]}')
    ),
    "manifest": Target(
        ".json",
        lambda path: Manifest.from_json(parse_json(path.read_bytes(), path), str(path)),
        _manifest,
    ),
    "catalog": Target(".npz", Catalog.read, _catalog),
    "erasures": Target(".npz", Erasures.read, _erasures),
    "memory": Target(".npz", lambda path: read_memory(path).readable(), _memory),
    "canary": Target(".npz", Canary.read, _canary),
    "header": Target(".hnsw", read_header, _index),
    "rows": Target(".hnsw", lambda path: check_layout(StoredRows.open(path)), _index),
    "onnx": Target(".onnx", _read_onnx, _onnx),
    "picture": Target(".img", _read_picture, _picture),
    "torch": Target(".pt", _read_weights, lambda: _checkpoints()[:2]),
    "safetensors": Target(".tmp", _read_safetensors, lambda: _checkpoints()[2:]),
}
"""Targets by name, for the tests and the coverage-guided runner."""
