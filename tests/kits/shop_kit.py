"""The command line in this process, a project to run it in, and encoders of known quality."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from messages_kit import OPTIONS, foreign_flags
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from compatctl import encoder as onnx_files
from compatctl.cli.app import app
from compatctl.core.adapters import Affine
from compatctl.data import Preprocessing, load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, ImageInput, seal
from compatctl.recipe import Project
from compatctl.store import Store

SIDE = 16
DIM = 32


@dataclass(frozen=True)
class Result:
    """The exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.stdout)


def run(*arguments: object) -> Result:
    """Run the command line in this process; an unexpected exception is raised.

    A flag that a printed tip names alone must be one of the command.
    """
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if arguments and str(arguments[0]) in OPTIONS:
        assert not foreign_flags(str(arguments[0]), result.stderr), result.stderr
    return Result(code=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def write_encoder(
    path: Path, *, noise: float, seed: int = 0, turned: bool = False, recorded: bool = True
) -> Path:
    """Write a sealed encoder: ``P x + noise sin(R x)`` of pixels x, scaled to unit length.

    P and R are fixed by the seed. ``noise`` differs from image to image: less is better.
    ``turned``: rotate the result, so that it is not comparable with another model's.
    ``recorded``: include an empty training record.
    """
    rng = np.random.default_rng(seed)
    size = SIDE * SIDE * 3
    project = rng.standard_normal((size, DIM)).astype(np.float32) / np.sqrt(size)
    if turned:
        project = project @ np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
    spoil = rng.standard_normal((size, DIM)).astype(np.float32)
    weights = {
        "mean": np.float32(200.0),
        "scale": np.float32(100.0),
        "project": project.astype(np.float32),
        "spoil": spoil,
        "noise": np.float32(noise),
        "flat": np.array([-1, size], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["row"]),
        helper.make_node("Sub", ["row", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["x"]),
        helper.make_node("MatMul", ["x", "project"], ["signal"]),
        helper.make_node("MatMul", ["x", "spoil"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["wave"]),
        helper.make_node("Mul", ["wave", "noise"], ["spoilt"]),
        helper.make_node("Add", ["signal", "spoilt"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=-1, p=2),
    ]
    write_graph(path, nodes, weights, side=SIDE, dim=DIM)
    if recorded:
        carry(path, TrainingRecord())
    return path


def write_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    *,
    side: int,
    dim: int,
) -> None:
    """Write a sealed encoder of these nodes and weights, from square images to ``dim`` numbers."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    raw = path.with_suffix(".raw")
    onnx.save(model, raw)
    preprocessing = Preprocessing(height=side, width=side, resize="bilinear", fit="stretch")
    path.unlink(missing_ok=True)
    seal(raw, path, (ImageInput(name="image", preprocessing=preprocessing),))
    raw.unlink()


def carry(path: Path, record: TrainingRecord) -> None:
    """Put a training record into an encoder's file."""
    path.write_bytes(onnx_files.with_record(path.read_bytes(), path, record.to_text()))


def filtered_table(shop: Shop, keep: Callable[[dict[str, str]], bool]) -> Path:
    """The project's table with the rows that ``keep`` says, beside the data."""
    source = shop.data()
    with source.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or ()), [row for row in reader if keep(row)]
    path = source.parent / f"{shop.folder.parent.name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def slow_hit_rate(shop: Shop, models: Sequence[Encoder], gallery: NDArray[np.float32]) -> float:
    """hit@1 of held-out queries, by the models' mean, on the catalogue's rows, one by one."""
    labels, right, matched = Store.open(shop.path("store")).catalog().labels, 0, 0
    queries = load(shop.data()).filter(split="test", role="query")
    features = np.sum([model.embed(queries).features for model in models], axis=0)
    for label, feature in zip(queries.labels, features, strict=True):
        if label in labels:
            matched += 1
            right += labels[int(np.argmax(gallery @ feature))] == label
    return right / matched


def store_files(shop: Shop) -> dict[str, bytes]:
    """The bytes of every file of the store, by name, without its lock."""
    root = shop.path("store")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def stored_rows(shop: Shop, ids: list[str]) -> NDArray[np.float32]:
    """The vectors (n, D) of items in the store's index."""
    gallery = DeployedGallery.open(Store.open(shop.path("store")))
    row_of = {item: row for row, item in enumerate(gallery.catalog.ids)}
    return gallery.index.vectors(gallery.catalog.keys[[row_of[item] for item in ids]])


@dataclass(frozen=True)
class Shop:
    """A project folder; ``args`` are the options that name its file."""

    folder: Path

    @property
    def args(self) -> tuple[str, str]:
        """The options ``--project FILE``."""
        return ("--project", str(self.folder / "compatctl.yaml"))

    def run(self, command: str, *arguments: object) -> Result:
        """Run a command in the project with ``--json``."""
        return run(command, *self.args, "--json", *arguments)

    def path(self, name: str) -> Path:
        """The path of a file of the project."""
        return self.folder / name

    def data(self) -> Path:
        """The path of the project's table."""
        return Project.load(self.path("compatctl.yaml")).data or Path()

    def manifest(self) -> dict[str, Any]:
        """The manifest of the store's current generation."""
        read: dict[str, Any] = json.loads(self.path("store/manifest.json").read_bytes())
        return read


def turned(shop: Shop, name: str, *, of: str, dim: int = DIM, recorded: bool = True) -> Path:
    """Write an encoder with a random (semi-)orthogonal map to ``dim`` dimensions behind it."""
    rng = np.random.default_rng(7)
    largest = max(DIM, dim)
    matrix = np.linalg.qr(rng.standard_normal((largest, largest)))[0][:DIM, :dim]
    adapter = Affine(matrix=matrix.astype(np.float32), bias=np.zeros(dim, np.float32))
    path = shop.path(of)
    shop.path(name).write_bytes(onnx_files.bridge(path.read_bytes(), path, adapter))
    if recorded:
        carry(shop.path(name), TrainingRecord())
    return shop.path(name)
