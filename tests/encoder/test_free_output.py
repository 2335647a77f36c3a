"""An encoder's second output, ``free``: checked like the first one, and kept by composition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import DIM, SMALL, UNIT, by_hand, metadata, projection, save, value

from compatctl.core.adapters import Affine
from compatctl.data import Dataset
from compatctl.encoder import (
    Canary,
    Encoder,
    bridge,
    check_steady,
    embed_together,
    free_alone,
    fuse,
    seal,
)
from compatctl.errors import InputError, UnsteadyError

FREE_DIM = 5
TEXT = metadata(free_dim=FREE_DIM)


def two_outputs(*before: onnx.NodeProto, unit: bool = True) -> onnx.ModelProto:
    """Mean colour -> ``embedding`` (batch, DIM) and ``free`` (batch, FREE_DIM), by two maps."""
    last = helper.make_node(
        "LpNormalization" if unit else "Identity",
        ["free_mixed" if before else "free_raw"],
        ["free"],
    )
    nodes = [UNIT, helper.make_node("MatMul", ["colour", "free_weight"], ["free_raw"]), *before]
    both = [
        value("embedding", TensorProto.FLOAT, ["batch", DIM]),
        value("free", TensorProto.FLOAT, ["batch", FREE_DIM]),
    ]
    return by_hand([*nodes, last], {"free_weight": projection(7, dim=FREE_DIM)}, outputs=both)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sealed encoder with both outputs."""
    raw = tmp_path / "raw.onnx"
    onnx.save(two_outputs(), raw)
    seal(raw, tmp_path / "both.onnx", (SMALL,))
    return tmp_path / "both.onnx"


def expected_free(dataset: Dataset) -> np.ndarray:
    """The free vectors of the images, by numpy, from the pixels."""
    from compatctl.data import prepare

    rows = []
    for row in range(len(dataset)):
        pixels = prepare(dataset.read(row), SMALL.preprocessing).astype(np.float32)
        rows.append(pixels.mean(axis=(0, 1)) @ projection(7, dim=FREE_DIM))
    free = np.array(rows)
    return free / np.linalg.norm(free, axis=1, keepdims=True)


def test_one_pass_gives_both(path: Path, dataset: Dataset) -> None:
    """The free vectors equal numpy's, and the embedding is the same with and without them."""
    encoder = Encoder.load(path)
    assert (encoder.dim, encoder.free_dim, encoder.has_free) == (DIM, FREE_DIM, True)
    both = encoder.embed(dataset, free=True)
    assert both.free is not None
    assert np.abs(both.free - expected_free(dataset)).max() < 1e-5
    alone = encoder.embed(dataset)
    assert alone.free is None
    np.testing.assert_array_equal(alone.features, both.features)


def test_an_encoder_with_one_output_is_as_before(tmp_path: Path, dataset: Dataset) -> None:
    """Its metadata do not name the second one; free vectors cannot be requested of it."""
    encoder = Encoder.load(save(by_hand([UNIT]), tmp_path / "one.onnx"))
    assert encoder.free_dim is None
    assert Canary.from_encoder(encoder).free is None
    with pytest.raises(InputError, match="has no output 'free'"):
        encoder.embed(dataset, free=True)
    rows = np.arange(len(dataset))
    (embedded,) = embed_together([encoder], dataset, [rows], free=True, progress=[lambda *_: None])
    assert embedded.free is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (metadata(), "its outputs are .*'free'"),
        (metadata(free_dim=6), "its outputs are"),
        (metadata(free_dim=0), "free_dim in its metadata must be"),
        (metadata(free_dim=None), "free_dim in its metadata must be"),
        (metadata(free_dim=10**9), "free_dim in its metadata must be"),
    ],
)
def test_the_metadata_must_say_what_the_graph_gives(
    tmp_path: Path, text: str, message: str
) -> None:
    """A second output that the metadata do not name, or of another dimension, is refused."""
    with pytest.raises(InputError, match=message):
        Encoder.load(save(two_outputs(), tmp_path / "a.onnx", text))


def test_free_vectors_must_be_unit_rows(tmp_path: Path, dataset: Dataset) -> None:
    """The message names the item and which of the two outputs it is."""
    encoder = Encoder.load(save(two_outputs(unit=False), tmp_path / "a.onnx", TEXT))
    with pytest.raises(InputError, match=r"the free vector of item .* has the norm"):
        encoder.embed(dataset, free=True)


def test_a_free_output_that_depends_on_the_batch_is_refused(tmp_path: Path) -> None:
    """The embedding alone is steady; the free vectors are mixed with the batch's mean."""
    mean = helper.make_node("ReduceMean", ["free_raw"], ["of_batch"], axes=[0], keepdims=1)
    swing = helper.make_node("Mul", ["of_batch", "of_batch"], ["square"])
    mixed = helper.make_node("Add", ["free_raw", "square"], ["free_mixed"])
    model = two_outputs(mean, swing, mixed)
    encoder = Encoder.load(save(model, tmp_path / "a.onnx", TEXT))
    with pytest.raises(UnsteadyError, match="in several ways"):
        check_steady(encoder)


def test_the_canary_covers_free_vectors(path: Path, tmp_path: Path) -> None:
    """Kept in its file; a changed free row alone is found; an encoder without them is refused."""
    encoder = Encoder.load(path)
    assert check_steady(encoder) < 1e-5
    Canary.from_encoder(encoder).write(tmp_path / "c.npz")
    canary = Canary.read(tmp_path / "c.npz")
    assert canary.free is not None
    assert canary.difference(encoder) < 1e-6
    turned = replace(canary, free=canary.free[:, ::-1].copy())
    assert turned.difference(encoder) > 0.01
    with pytest.raises(InputError, match="free vectors of 5 dimensions; its canary has None"):
        replace(canary, free=None).difference(encoder)


def test_a_fused_encoder_keeps_the_new_ones_free_output(
    path: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """Equal to the new encoder's, whatever the weight; the old encoder's is dropped."""
    one = save(by_hand([UNIT], {"weight": projection(3)}), tmp_path / "one.onnx")
    fuse(one, path, 0.4, tmp_path / "fused.onnx")
    fused = Encoder.load(tmp_path / "fused.onnx")
    free = fused.embed(dataset, free=True).free
    assert free is not None
    assert np.abs(free - expected_free(dataset)).max() < 1e-5
    fuse(path, one, 0.4, tmp_path / "again.onnx")
    assert Encoder.load(tmp_path / "again.onnx").free_dim is None


def test_the_free_head_alone_is_an_encoder(path: Path, tmp_path: Path, dataset: Dataset) -> None:
    """One output, equal to the free vectors; what only the embedding needs is gone, a whole model
    included. The same file gives the same bytes."""
    alone = Encoder.from_bytes(free_alone(path.read_bytes(), path), path)
    assert (alone.dim, alone.free_dim) == (FREE_DIM, None)
    assert np.abs(alone.embed(dataset).features - expected_free(dataset)).max() < 1e-5
    assert check_steady(alone) < 1e-5
    one = save(by_hand([UNIT]), tmp_path / "one.onnx")
    assert free_alone(path.read_bytes(), path) == free_alone(path.read_bytes(), path)
    fuse(one, path, 0.4, tmp_path / "fused.onnx")
    fused = (tmp_path / "fused.onnx").read_bytes()
    data = free_alone(fused, path)
    names = {weight.name for weight in onnx.load_from_string(data).graph.initializer}
    assert not any("old/" in name for name in names)
    assert len(data) < len(fused)
    again = Encoder.from_bytes(data, path).embed(dataset).features
    assert np.abs(again - expected_free(dataset)).max() < 1e-5
    with pytest.raises(InputError, match="has no output 'free'"):
        free_alone(one.read_bytes(), one)


def test_a_bridged_encoder_keeps_its_free_output(path: Path, dataset: Dataset) -> None:
    """The adapter maps the embedding alone."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((DIM, 4)).astype(np.float32)
    adapter = Affine(matrix=matrix, bias=np.zeros(4, np.float32))
    encoder = Encoder.from_bytes(bridge(path.read_bytes(), path, adapter), path)
    free = encoder.embed(dataset, free=True).free
    assert encoder.dim == 4
    assert free is not None
    assert np.abs(free - expected_free(dataset)).max() < 1e-5
