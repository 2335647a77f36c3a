"""Bridging: one file whose feature is a map of an encoder's feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import DIM, SIDE, UNIT, by_hand, metadata, projection, save

from compatctl.core.adapters import Adapter, Affine, Perceptron
from compatctl.data import Dataset, Preprocessing
from compatctl.encoder import Encoder, EncoderInput, bridge, fuse, read_model_bytes, seal
from compatctl.errors import InputError


def random(seed: int, *shape: int) -> np.ndarray:
    """float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def affine(seed: int = 0, takes: int = DIM, gives: int = 5) -> Affine:
    """A random affine map."""
    return Affine(matrix=random(seed, takes, gives), bias=random(seed + 1, gives))


def perceptron(takes: int = DIM, gives: int = 12) -> Perceptron:
    """A random map with a hidden layer."""
    return Perceptron(
        hidden=random(2, takes, 20),
        hidden_bias=random(3, 20),
        matrix=random(4, 20, gives),
        bias=random(5, gives),
    )


def small(exports: tuple[Path, Path], out: Path, seed: int = 0, **change: object) -> Path:
    """The small network of a seed, exported by torch, sealed with a preprocessing."""
    size = {"height": SIDE, "width": SIDE, **change}
    wanted = EncoderInput(name="image", preprocessing=Preprocessing(**size))  # type: ignore[arg-type]
    seal(exports[0] / f"small{seed}.onnx", out, (wanted,))
    return out


def bridged(path: Path, adapter: Adapter) -> Encoder:
    """The encoder at ``path`` with the map behind it."""
    return Encoder.from_bytes(bridge(read_model_bytes(path), path, adapter), path)


@pytest.mark.parametrize("adapter", [affine(), affine(gives=30), perceptron()])
def test_the_feature_is_the_map_of_the_encoders(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset, adapter: Adapter
) -> None:
    """On real images, to fewer and to more numbers, equal to numpy's within 1e-5; the preprocessing
    is kept."""
    path = small(exports, tmp_path / "new.onnx", fit="pad", resize="bilinear")
    new = Encoder.load(path)
    found = bridged(path, adapter)
    assert found.dim == adapter.layers[-1][0].shape[1]
    assert [one.preprocessing for one in found.inputs] == [one.preprocessing for one in new.inputs]
    expected = adapter(new.embed(dataset).features)
    assert np.abs(found.embed(dataset).features - expected).max() < 1e-5


def test_fused_and_bridged_models_are_bridged(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset
) -> None:
    """A file with two inputs keeps both, and a map behind a map is a map; inner names that are
    those of our own nodes do no harm."""
    a = small(exports, tmp_path / "a.onnx", 0)
    b = small(exports, tmp_path / "b.onnx", 1, fit="pad")
    both = tmp_path / "both.onnx"
    fuse(a, b, 0.4, both)
    once, twice = affine(gives=DIM), perceptron()
    (tmp_path / "once.onnx").write_bytes(bridge(read_model_bytes(both), both, once))
    found = bridged(tmp_path / "once.onnx", twice)
    assert len(found.inputs) == 2
    expected = twice(once(Encoder.load(both).embed(dataset).features))
    assert np.abs(found.embed(dataset).features - expected).max() < 1e-5


def test_foreign_and_old_files_are_bridged(tmp_path: Path, dataset: Dataset) -> None:
    """A foreign file goes in by its preprocessing file; so does an older operator set."""
    foreign = tmp_path / "foreign.onnx"
    pooled = helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["colour"])
    last = helper.make_node("MatMul", ["colour", "weight"], ["embedding"])
    graph = helper.make_graph(
        [pooled, flat, last],
        "made",
        [helper.make_tensor_value_info("pixels", 1, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("embedding", 1, ["batch", DIM])],
        [onnx.numpy_helper.from_array(projection(0), "weight")],
    )
    opset = [helper.make_opsetid("", 11)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), foreign)
    side = foreign.with_suffix(".preprocessing.json")
    side.write_text(f'{{"format": 1, "height": {SIDE}, "width": {SIDE}}}')
    old = save(by_hand([UNIT], opset=13), tmp_path / "old.onnx")
    for path in (foreign, old):
        for adapter in (affine(), perceptron()):
            expected = adapter(Encoder.load(path).embed(dataset).features)
            found = bridged(path, adapter).embed(dataset).features
            assert np.abs(found - expected).max() < 1e-5


def test_bridging_is_deterministic(exports: tuple[Path, Path], tmp_path: Path) -> None:
    """The same file, exported in two folders, with the same map is one model; another map another;
    nothing outside the file is needed."""
    made = []
    for folder, adapter in ((0, affine()), (1, affine()), (0, affine(7)), (0, perceptron())):
        path = small((exports[folder], exports[folder]), tmp_path / f"{folder}.onnx")
        made.append(bridge(read_model_bytes(path), path, adapter))
    assert made[0] == made[1]
    assert len(set(made)) == 3
    model = onnx.ModelProto.FromString(made[0])
    assert not [one.name for one in model.graph.initializer if one.external_data]
    onnx.checker.check_model(model, full_check=True)


def test_what_cannot_be_bridged_is_refused(tmp_path: Path) -> None:
    """A map of other numbers, a map with NaN, a file that is no encoder."""
    path = save(by_hand([UNIT]), tmp_path / "m.onnx", metadata())
    data = read_model_bytes(path)
    with pytest.raises(InputError, match=r"has 8 dimensions; the adapter takes 9"):
        bridge(data, path, affine(takes=9))
    broken = Affine(matrix=np.full((DIM, 3), np.nan, np.float32), bias=np.zeros(3, np.float32))
    with pytest.raises(InputError, match="not finite"):
        bridge(data, path, broken)
    with pytest.raises(InputError, match="not an ONNX"):
        bridge(b"hello", path, affine())
