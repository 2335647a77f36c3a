"""The how-to pages, run block by block in a folder with the files that their reader has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from blocks_kit import blocks, not_run, run_page
from onnx import TensorProto, helper, numpy_helper
from pipeline_kit import ROOT
from shop_kit import DIM, SIDE, run

from compatctl.data import load
from compatctl.encoder import Encoder

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PROJECT = """\
format: 1
store: store
data: items.csv
policy: default
output: new.onnx
report: report.json
"""


@pytest.fixture
def given(begun_once: Path, emoji: Path) -> dict[str, Callable[[Path], None]]:
    """Name on a page -> what writes these files into the page's folder."""
    return {
        "data": partial(_data, emoji),
        "models": partial(_models, begun_once, emoji),
        "project": partial(_project, begun_once, emoji),
        "foreign": partial(_foreign, emoji),
        "exported": partial(_exported, begun_once, emoji),
        "vectors": _vectors,
    }


def _data(emoji: Path, folder: Path) -> None:
    """``items.csv`` and the images that it names."""
    shutil.copytree(emoji / "images", folder / "images")
    shutil.copy(emoji / "items.csv", folder)
    shutil.copy(next((folder / "images" / "twemoji").iterdir()), folder / "query.png")


def _models(begun: Path, emoji: Path, folder: Path) -> None:
    """The same, and an old model, a better one, and a worse one."""
    _data(emoji, folder)
    for name in ("old", "new", "worse"):
        shutil.copy(begun / f"{name}.onnx", folder)


def _project(begun: Path, emoji: Path, folder: Path) -> None:
    """The same, with a store of the old model, and its project file."""
    _models(begun, emoji, folder)
    shutil.copytree(begun / "store", folder / "store")
    (folder / "compatctl.yaml").write_text(PROJECT)


def _foreign(emoji: Path, folder: Path) -> None:
    """The data, and an ONNX file of another tool: pixels less 2, a product, unit length."""
    _data(emoji, folder)
    weights = np.random.default_rng(0).standard_normal((SIDE * SIDE * 3, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])],
        [
            numpy_helper.from_array(np.array([-1, SIDE * SIDE * 3], np.int64), "flat"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, folder / "theirs.onnx")


def _exported(begun: Path, emoji: Path, folder: Path) -> None:
    """The data and models, and what an engine's client exported: ids and vectors of the gallery."""
    _models(begun, emoji, folder)
    items = load(folder / "items.csv").filter(role="gallery")
    features = Encoder.load(folder / "old.onnx").embed(items).features
    np.savez(folder / "gallery.npz", ids=np.array(items.ids), vectors=features)


def _vectors(folder: Path) -> None:
    """Tables of two models behind an API, of which the old one answers no new question, and a
    store of its vectors: seven of eight questions were logged."""
    random = np.random.default_rng(0)
    topics = np.repeat(np.arange(900), 4)
    meaning = random.standard_normal((900, 64))[topics] + 0.75 * random.standard_normal((3600, 64))
    role = np.tile(["gallery", "gallery", "gallery", "query"], 900)
    ids = np.array([f"{name}{number}" for number, name in enumerate(role)])
    labels = np.array([f"topic {topic}" for topic in topics])
    logged = (role == "gallery") | (np.arange(3600) % 32 != 31)
    for name, size, noise, kept in (("ada", 96, 1.0, logged), ("e3", 128, 0.3, role != "")):
        own = np.random.default_rng(size)
        seen = meaning + noise * own.standard_normal(meaning.shape)
        vectors = (seen @ own.standard_normal((64, size))).astype(np.float32)
        np.savez(folder / f"{name}.npz", ids=ids[kept], vectors=vectors[kept])
    lines = ["id,label,role", *(",".join(row) for row in zip(ids, labels, role, strict=True))]
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    (folder / "compatctl.yaml").write_text(
        "format: 1\nstore: store\ndata: items.csv\nvectors: {ada: ada.npz, e3: e3.npz}\n"
        "policy: default\noutput: new.onnx\nreport: report.json\n"
    )
    done = run("init", "--project", folder / "compatctl.yaml", "--model", "ada")
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_how_to_page_runs(
    page: Path, tmp_path: Path, given: dict[str, Callable[[Path], None]]
) -> None:
    """The blocks run in their order in one folder, and what they show is printed."""
    run_page(page, tmp_path, given)


NOT_RUN = {"your-engine-stays.md": 1}
"""Page -> how many of its blocks only a server could run."""


def test_what_is_not_run_is_marked_with_a_reason() -> None:
    """No further block is left out without a line here; every page has blocks that run."""
    assert {name: len(reasons) for name, reasons in not_run(PAGES).items()} == NOT_RUN
    for page in PAGES:
        assert [block for block in blocks(page) if block.kind == "sh" and not block.reason], page
