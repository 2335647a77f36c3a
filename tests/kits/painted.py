"""Images that carry the vectors which encoders read: what models find is chosen freely."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from shop_kit import Result, run

from compatctl.data import Preprocessing
from compatctl.encoder import Encoder, EncoderInput, seal

SIDE, DIM = 8, 32
SIZE = SIDE * SIDE * 3
Array = NDArray[Any]


def unit(rows: Array) -> Array:
    """Rows of length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def encoder(path: Path, sees: int) -> Path:
    """A sealed encoder that reads the vector which is painted in the given place."""
    matrix = np.zeros((SIZE, DIM), np.float32)
    matrix[sees * DIM : (sees + 1) * DIM] = np.eye(DIM)
    weights = {"c": np.float32(128), "m": matrix, "flat": np.array([-1, SIZE], np.int64)}
    nodes = [
        helper.make_node("Cast", ["image"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["p", "flat"], ["r"]),
        helper.make_node("Sub", ["r", "c"], ["x"]),
        helper.make_node("MatMul", ["x", "m"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "painted",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    raw = path.with_suffix(".raw")
    onnx.save(model, raw)
    size = Preprocessing(height=SIDE, width=SIDE, resize="bilinear", fit="stretch")
    seal(raw, path, (EncoderInput(name="image", preprocessing=size),))
    raw.unlink()
    return path


@dataclass
class World:
    """Items in order: ids, labels, roles, and the vectors that either model reads."""

    folder: Path
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    vectors: tuple[list[Array], list[Array]] = field(default_factory=lambda: ([], []))

    def add(self, name: str, labels: list[str], role: str, old: Array, new: Array) -> None:
        """Items ``name``0, ``name``1 ..., of these labels."""
        self.ids += [f"{name}{at}" for at in range(len(labels))]
        self.labels += labels
        self.roles += [role] * len(labels)
        self.vectors[0].extend(old)
        self.vectors[1].extend(new)

    def save(self, name: str, keep: Any = None, labels: dict[str, str] | None = None) -> Path:
        """A table of the items that ``keep`` (an id) accepts, some with another label."""
        rows = [at for at, one in enumerate(self.ids) if keep is None or keep(one)]
        pixels = np.full((len(self.ids), SIZE), 128, np.uint8)
        for sees, vectors in enumerate(self.vectors):
            given = np.array(vectors)
            scaled = given / np.abs(given).max(axis=1, keepdims=True)
            pixels[:, sees * DIM : (sees + 1) * DIM] = np.clip(np.round(128 + 120 * scaled), 1, 255)
        # No two images are alike by chance: each carries its number where no model looks.
        pixels[:, -4:] = np.arange(len(self.ids), dtype="<u4").view(np.uint8).reshape(-1, 4)
        path = self.folder / name
        named = [(labels or {}).get(self.ids[at], self.labels[at]) for at in rows]
        np.savez(
            path,
            images=pixels[rows].reshape(-1, SIDE, SIDE, 3),
            ids=np.array([self.ids[at] for at in rows]),
            labels=np.array(named),
            role=np.array([self.roles[at] for at in rows]),
            split=np.array(["test"] * len(rows)),
        )
        return path

    def begin(self, stored: Path) -> None:
        """Encoders, the new one with a record of no item, and a store of a table's gallery."""
        for sees, name in enumerate(("old", "new")):
            encoder(self.folder / f"{name}.onnx", sees)
        self.record()
        self.run("init", "--model", self.folder / "old.onnx", "--data", stored)

    def run(self, command: str, *more: object) -> Result:
        """A command on the store."""
        done = run(command, "--store", self.folder / "store", "--json", *more)
        assert done.code in {0, 3, 4}, done.stderr
        return done

    def verify(self, data: Path, *more: object) -> tuple[int, dict[str, Any]]:
        """Exit code and report."""
        models = self.folder / "old.onnx", self.folder / "new.onnx"
        report = self.folder / "report.json"
        named = ("--training", self.folder / "new.training.json")
        done = self.run("verify", *models, "--data", data, "--report", report, *named, *more)
        return done.code, json.loads(report.read_bytes())

    def record(self, *, anchors: list[str] = (), items: list[str] = (), classes: Any = ()) -> None:
        """A training record of the new model, beside it."""
        made = {
            "models": [Encoder.load(self.folder / "new.onnx").sha256],
            "items": [{"id": one, "sha256": "0" * 64} for one in items],
            "anchors": [{"id": one, "sha256": "1" * 64} for one in anchors],
            "classes": list(classes),
            "registry_sha256": None,
        }
        (self.folder / "new.training.json").write_text(json.dumps(made))


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    """The check of that name of the group that decides."""
    checks = report["verdict"]["checks"]
    (found,) = [one for one in checks if (one["name"], one["group"]) == (name, "unseen")]
    return found  # type: ignore[no-any-return]
