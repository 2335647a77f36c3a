"""Images that contain their own embeddings, so that a test chooses what each model finds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from shop_kit import Result, run, write_graph

from compatctl.encoder import Encoder

SIDE, DIM = 8, 32
SIZE = SIDE * SIDE * 3
Array = NDArray[Any]


def unit(rows: Array) -> Array:
    """Rows scaled to unit length, float32."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def encoder(path: Path, place: int) -> Path:
    """Write a sealed encoder that reads the vector at the given place of an image."""
    matrix = np.zeros((SIZE, DIM), np.float32)
    matrix[place * DIM : (place + 1) * DIM] = np.eye(DIM)
    weights = {"c": np.float32(128), "m": matrix, "flat": np.array([-1, SIZE], np.int64)}
    nodes = [
        helper.make_node("Cast", ["image"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["p", "flat"], ["r"]),
        helper.make_node("Sub", ["r", "c"], ["x"]),
        helper.make_node("MatMul", ["x", "m"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=-1, p=2),
    ]
    write_graph(path, nodes, weights, side=SIDE, dim=DIM)
    return path


@dataclass
class World:
    """Items in order: ids, labels, roles, and the vectors that the old and the new model read."""

    folder: Path
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    vectors: tuple[list[Array], list[Array]] = field(default_factory=lambda: ([], []))

    def add(self, name: str, labels: list[str], role: str, old: Array, new: Array) -> None:
        """Add items ``name``0, ``name``1 ... with these labels."""
        self.ids += [f"{name}{i}" for i in range(len(labels))]
        self.labels += labels
        self.roles += [role] * len(labels)
        self.vectors[0].extend(old)
        self.vectors[1].extend(new)

    def save(self, name: str, keep: Any = None, labels: dict[str, str] | None = None) -> Path:
        """Write the items whose id ``keep`` accepts; ``labels`` replaces some labels."""
        rows = [row for row, item in enumerate(self.ids) if keep is None or keep(item)]
        pixels = np.full((len(self.ids), SIZE), 128, np.uint8)
        for place, vectors in enumerate(self.vectors):
            values = np.array(vectors)
            scaled = values / np.abs(values).max(axis=1, keepdims=True)
            pixels[:, place * DIM : (place + 1) * DIM] = np.clip(
                np.round(128 + 120 * scaled), 1, 255
            )
        # Each image has its number where no model reads, so that no two are alike.
        pixels[:, -4:] = np.arange(len(self.ids), dtype="<u4").view(np.uint8).reshape(-1, 4)
        path = self.folder / name
        row_labels = [(labels or {}).get(self.ids[row], self.labels[row]) for row in rows]
        np.savez(
            path,
            images=pixels[rows].reshape(-1, SIDE, SIDE, 3),
            ids=np.array([self.ids[row] for row in rows]),
            labels=np.array(row_labels),
            role=np.array([self.roles[row] for row in rows]),
            split=np.array(["test"] * len(rows)),
        )
        return path

    def begin(self, stored: Path) -> None:
        """Write both encoders and an empty training record, and create a store of a table."""
        for place, name in enumerate(("old", "new")):
            encoder(self.folder / f"{name}.onnx", place)
        self.record()
        self.run("init", "--model", self.folder / "old.onnx", "--data", stored)

    def run(self, command: str, *more: object) -> Result:
        """Run a command on the store."""
        result = run(command, "--store", self.folder / "store", "--json", *more)
        assert result.code in {0, 3, 4}, result.stderr
        return result

    def verify(self, data: Path, *more: object) -> tuple[int, dict[str, Any]]:
        """Run verify; return its exit code and report."""
        models = self.folder / "old.onnx", self.folder / "new.onnx"
        report = self.folder / "report.json"
        training = ("--training", self.folder / "new.training.json")
        result = self.run("verify", *models, "--data", data, "--report", report, *training, *more)
        return result.code, json.loads(report.read_bytes())

    def record(
        self, *, unlabelled: list[str] = (), items: list[str] = (), classes: Any = ()
    ) -> None:
        """Write a training record of the new model next to it."""
        entries = {
            "models": [Encoder.load(self.folder / "new.onnx").sha256],
            "items": [{"id": item, "sha256": "0" * 64} for item in items],
            "unlabelled": [{"id": item, "sha256": "1" * 64} for item in unlabelled],
            "classes": list(classes),
            "registry_sha256": None,
        }
        (self.folder / "new.training.json").write_text(json.dumps(entries))


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    """The check of that name in the group of unseen classes."""
    checks = report["verdict"]["checks"]
    key = (name, "unseen")
    return next(entry for entry in checks if (entry["name"], entry["group"]) == key)
