"""A bridged encoder gives the adapter of another encoder's embeddings, in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import DIM, SIDE, UNIT, by_hand, metadata, projection, save

from compatctl.core.adapters import Adapter, Affine, Perceptron
from compatctl.data import Dataset, Preprocessing
from compatctl.encoder import Encoder, ImageInput, bridge, fuse, read_model_bytes, seal
from compatctl.errors import InputError


def random(seed: int, *shape: int) -> np.ndarray:
    """Normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def affine(seed: int = 0, dim: int = DIM, to: int = 5) -> Affine:
    """A random affine adapter."""
    return Affine(matrix=random(seed, dim, to), bias=random(seed + 1, to))


def perceptron(dim: int = DIM, to: int = 12) -> Perceptron:
    """A random adapter with a hidden layer."""
    return Perceptron(
        hidden=random(2, dim, 20),
        hidden_bias=random(3, 20),
        matrix=random(4, 20, to),
        bias=random(5, to),
    )


def small(exports: tuple[Path, Path], out: Path, seed: int = 0, **change: object) -> Path:
    """The small network of a seed, exported by torch and sealed with a preprocessing."""
    size = {"height": SIDE, "width": SIDE, **change}
    image = ImageInput(name="image", preprocessing=Preprocessing(**size))  # type: ignore[arg-type]
    seal(exports[0] / f"small{seed}.onnx", out, (image,))
    return out


def bridged(path: Path, adapter: Adapter) -> Encoder:
    """The encoder at ``path``, bridged through ``adapter``."""
    return Encoder.from_bytes(bridge(read_model_bytes(path), path, adapter), path)


@pytest.mark.parametrize("adapter", [affine(), affine(to=30), perceptron()])
def test_the_embedding_is_the_adapter_of_the_encoders(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset, adapter: Adapter
) -> None:
    """On real images, to fewer and to more dimensions, equal to numpy within 1e-5, with the same
    preprocessing."""
    path = small(exports, tmp_path / "new.onnx", fit="pad", resize="bilinear")
    new = Encoder.load(path)
    encoder = bridged(path, adapter)
    assert encoder.dim == adapter.layers[-1][0].shape[1]
    assert [source.preprocessing for source in encoder.inputs] == [
        source.preprocessing for source in new.inputs
    ]
    expected = adapter(new.embed(dataset).features)
    assert np.abs(encoder.embed(dataset).features - expected).max() < 1e-5


def test_fused_and_bridged_models_can_be_bridged(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset
) -> None:
    """A file with two inputs keeps both; an adapter can follow another without name collisions."""
    a = small(exports, tmp_path / "a.onnx", 0)
    b = small(exports, tmp_path / "b.onnx", 1, fit="pad")
    both = tmp_path / "both.onnx"
    fuse(a, b, 0.4, both)
    once, twice = affine(to=DIM), perceptron()
    (tmp_path / "once.onnx").write_bytes(bridge(read_model_bytes(both), both, once))
    encoder = bridged(tmp_path / "once.onnx", twice)
    assert len(encoder.inputs) == 2
    expected = twice(once(Encoder.load(both).embed(dataset).features))
    assert np.abs(encoder.embed(dataset).features - expected).max() < 1e-5


def test_imported_and_old_files_can_be_bridged(tmp_path: Path, dataset: Dataset) -> None:
    """A model with a preprocessing file, and one of an older operator set."""
    imported = tmp_path / "imported.onnx"
    pooled = helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["colour"])
    last = helper.make_node("MatMul", ["colour", "weight"], ["embedding"])
    graph = helper.make_graph(
        [pooled, flat, last],
        "graph",
        [helper.make_tensor_value_info("pixels", 1, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("embedding", 1, ["batch", DIM])],
        [onnx.numpy_helper.from_array(projection(0), "weight")],
    )
    opset = [helper.make_opsetid("", 11)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), imported)
    side = imported.with_suffix(".preprocessing.json")
    side.write_text(f'{{"format": 1, "height": {SIDE}, "width": {SIDE}}}')
    old = save(by_hand([UNIT], opset=13), tmp_path / "old.onnx")
    for path in (imported, old):
        for adapter in (affine(), perceptron()):
            expected = adapter(Encoder.load(path).embed(dataset).features)
            features = bridged(path, adapter).embed(dataset).features
            assert np.abs(features - expected).max() < 1e-5


def test_bridging_is_deterministic(exports: tuple[Path, Path], tmp_path: Path) -> None:
    """The same network, exported in two folders, and adapter give the same self-contained file."""
    models = []
    for folder, adapter in ((0, affine()), (1, affine()), (0, affine(7)), (0, perceptron())):
        path = small((exports[folder], exports[folder]), tmp_path / f"{folder}.onnx")
        models.append(bridge(read_model_bytes(path), path, adapter))
    assert models[0] == models[1]
    assert len(set(models)) == 3
    model = onnx.ModelProto.FromString(models[0])
    assert not [weight.name for weight in model.graph.initializer if weight.external_data]
    onnx.checker.check_model(model, full_check=True)


def test_files_and_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """An adapter of other dimensions, one with NaN, a file that is not an encoder."""
    path = save(by_hand([UNIT]), tmp_path / "m.onnx", metadata())
    data = read_model_bytes(path)
    with pytest.raises(InputError, match=r"has 8 dimensions; the adapter takes 9"):
        bridge(data, path, affine(dim=9))
    broken = Affine(matrix=np.full((DIM, 3), np.nan, np.float32), bias=np.zeros(3, np.float32))
    with pytest.raises(InputError, match="not finite"):
        bridge(data, path, broken)
    with pytest.raises(InputError, match="not an ONNX"):
        bridge(b"hello", path, affine())


def test_the_encoders_own_embedding_is_the_free_output(
    exports: tuple[Path, Path], tmp_path: Path, dataset: Dataset
) -> None:
    """So that a bridged encoder's answers can be re-scored by what the new model itself sees; an
    encoder that has a free output keeps that one."""
    path = small(exports, tmp_path / "new.onnx")
    own = Encoder.load(path).embed(dataset).features
    once = bridged(path, affine())
    both = once.embed(dataset, free=True)
    assert both.free is not None
    assert once.free_dim == own.shape[1]
    np.testing.assert_allclose(both.free, own, atol=1e-6)
    (tmp_path / "once.onnx").write_bytes(bridge(read_model_bytes(path), path, affine()))
    twice = bridged(tmp_path / "once.onnx", affine(dim=once.dim, to=7))
    assert (twice.dim, twice.free_dim) == (7, own.shape[1])
    np.testing.assert_allclose(twice.embed(dataset, free=True).free, own, atol=1e-6)
