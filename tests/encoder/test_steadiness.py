"""Encoders whose embeddings depend on the batch or on chance are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_models import DIM, UNIT, by_hand, save, value

from compatctl.data import Dataset
from compatctl.encoder import Canary, Encoder, check_steady, read_model_bytes
from compatctl.errors import InputError, UnsteadyError

node = helper.make_node
Weights = dict[str, NDArray[np.generic]]


def _unit(last: str) -> onnx.NodeProto:
    return node("LpNormalization", [last], ["embedding"], axis=-1, p=2)


def _integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _neighbours() -> onnx.ModelProto:
    """The mean with the next image of the batch."""
    weights: Weights = {"zero": _integers(0), "one": _integers(1), "end": _integers(2**31)}
    nodes = [
        node("Slice", ["raw", "one", "end", "zero"], ["tail"]),
        node("Slice", ["raw", "zero", "one", "zero"], ["first"]),
        node("Concat", ["tail", "first"], ["next"], axis=0),
        node("Add", ["raw", "next"], ["both"]),
    ]
    return by_hand([*nodes, _unit("both")], weights)


def _attention() -> onnx.ModelProto:
    """Attention over the batch axis."""
    nodes = [
        node("Transpose", ["raw"], ["turned"], perm=[1, 0]),
        node("MatMul", ["raw", "turned"], ["scores"]),
        node("Mul", ["scores", "small"], ["cooler"]),
        node("Softmax", ["cooler"], ["shares"], axis=1),
        node("MatMul", ["shares", "raw"], ["mixed"]),
    ]
    return by_hand([*nodes, _unit("mixed")], {"small": np.float32(1e-5)})


def _centred() -> onnx.ModelProto:
    """Centred by the mean of the batch: what batch norm does in training mode, spelt out."""
    nodes = [
        node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1),
        node("Mul", ["mean", "half"], ["some"]),
        node("Sub", ["raw", "some"], ["centred"]),
    ]
    return by_hand([*nodes, _unit("centred")], {"half": np.float32(0.5)})


def _counted() -> onnx.ModelProto:
    """A term that grows with the number of images."""
    nodes = [
        node("Shape", ["raw"], ["shape"]),
        node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        node("ReduceMax", ["sizes"], ["most"], keepdims=0),
        node("Mul", ["aside", "most"], ["more"]),
        node("Add", ["raw", "more"], ["moved"]),
    ]
    aside = np.linspace(-3, 3, DIM).astype(np.float32)
    return by_hand([*nodes, _unit("moved")], {"aside": aside})


def _placed() -> onnx.ModelProto:
    """A term that depends on the position in the batch."""
    nodes = [
        node("CumSum", ["ones_like", "axis"], ["place"]),
        node("Mul", ["place", "aside"], ["more"]),
        node("Add", ["raw", "more"], ["moved"]),
    ]
    before = [node("Sub", ["raw", "raw"], ["zeros"]), node("Add", ["zeros", "1"], ["ones_like"])]
    weights: Weights = {
        "axis": np.array(0, np.int64),
        "1": np.float32(1),
        "aside": np.linspace(-3, 3, DIM).astype(np.float32),
    }
    return by_hand([*before, *nodes, _unit("moved")], weights)


def _quantised() -> onnx.ModelProto:
    """Dynamic quantisation, whose scale is taken over all images of a batch."""
    nodes = [
        node("Sub", ["raw", "level"], ["signed"]),
        node("DynamicQuantizeLinear", ["signed"], ["whole", "scale", "zero"]),
        node("DequantizeLinear", ["whole", "scale", "zero"], ["rounded"]),
    ]
    return by_hand([*nodes, _unit("rounded")], {"level": np.float32(150.0)})


@pytest.mark.parametrize(
    ("model", "tip"),
    [
        (_neighbours(), "batch axis"),
        (_attention(), "batch axis"),
        (_centred(), "batch axis"),
        (_counted(), "batch axis"),
        (_placed(), "batch axis"),
        (_quantised(), "DynamicQuantizeLinear"),
    ],
    ids=["neighbours", "attention", "centred", "counted", "placed", "quantised"],
)
def test_an_encoder_that_depends_on_the_batch_is_refused(
    tmp_path: Path, model: onnx.ModelProto, tip: str, dataset: Dataset
) -> None:
    """With and without a data set, the message says in which batch and by how much."""
    encoder = Encoder.load(save(model, tmp_path / "m.onnx"))
    for data in (None, dataset):
        with pytest.raises(
            UnsteadyError, match=r"in a batch of 64.*differ by \d.*limit is 0.001"
        ) as error:
            check_steady(encoder, data)
        assert tip in error.value.tip


def test_quantisation_with_fixed_scales_is_accepted(tmp_path: Path) -> None:
    """Dynamic quantisation is refused for its scale of the batch, not for its eight bits."""
    nodes = [
        node("QuantizeLinear", ["raw", "scale", "zero"], ["whole"]),
        node("DequantizeLinear", ["whole", "scale", "zero"], ["rounded"]),
    ]
    weights: Weights = {"scale": np.float32(4.0), "zero": np.array(0, np.uint8)}
    encoder = Encoder.load(save(by_hand([*nodes, _unit("rounded")], weights), tmp_path / "m.onnx"))
    assert check_steady(encoder) <= 1e-5


def test_embeddings_that_are_not_finite_have_their_own_message(tmp_path: Path) -> None:
    """NaN differs from itself; the message does not blame the batch."""
    model = _centred()
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32:
            weight.CopyFrom(numpy_helper.from_array(values * np.float32("nan"), weight.name))
    encoder = Encoder.load(save(model, tmp_path / "nan.onnx"))
    with pytest.raises(UnsteadyError, match="not finite"):
        check_steady(encoder)


def test_a_steady_encoder_is_accepted(tmp_path: Path, dataset: Dataset) -> None:
    """It passes with a rounding difference, whatever the data."""
    encoder = Encoder.load(save(by_hand([UNIT]), tmp_path / "m.onnx"))
    assert check_steady(encoder, dataset) <= 1e-5
    assert check_steady(encoder, dataset.take([0] * 40)) <= 1e-5
    assert check_steady(encoder, dataset.take([])) <= 1e-5


@pytest.mark.parametrize(
    ("nodes", "weights", "opset", "name"),
    [
        ([node("RandomNormalLike", ["raw"], ["noise"], scale=1e-9)], {}, 17, "RandomNormalLike"),
        ([node("RandomUniform", [], ["noise"], shape=[DIM], seed=1.0)], {}, 17, "RandomUniform"),
        ([node("Dropout", ["raw", "share", "on"], ["noise"])],
         {"share": np.float32(0.1), "on": np.array(True)}, 17, "Dropout"),
        ([node("Identity", ["off"], ["asked"]),
          node("Dropout", ["raw", "share", "asked"], ["noise"])],
         {"share": np.float32(0.1), "off": np.array(False)}, 17, "Dropout"),
        ([node("BatchNormalization", ["raw", "g", "b", "m", "v"], ["noise", "x", "y"],
               training_mode=1)], {}, 17, "BatchNormalization"),
        ([node("BatchNormalization", ["raw", "g", "b", "m", "v"], ["noise", "x", "y", "z", "w"])],
         {}, 12, "BatchNormalization"),
    ],
    ids=["normal", "seeded", "dropout", "dropout by a value", "batch norm", "older batch norm"],
)  # fmt: skip
def test_random_and_training_operators_are_refused_by_name(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: Weights, opset: int, name: str
) -> None:
    """They are refused before the model runs, however small their effect."""
    ones = {name: np.ones(DIM, np.float32) for name in "gbmv"}
    last = [*nodes, node("Add", ["raw", "noise"], ["noisy"]), _unit("noisy")]
    model = by_hand(last, {**ones, **weights}, opset=opset)
    path = save(model, tmp_path / "m.onnx")
    for read in (Encoder.load, read_model_bytes):
        with pytest.raises(
            UnsteadyError, match=rf"operator {name} is (random|in training)"
        ) as error:
            read(path)
        assert "eval()" in error.value.tip


def test_random_operators_in_branches_and_functions_are_refused(tmp_path: Path) -> None:
    """A random operator inside an If's branch, and one in a local function."""
    inner = helper.make_graph(
        [node("RandomNormal", [], ["noise"], shape=[1])], "then", [],
        [value("noise", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    branch = node("If", ["yes"], ["some"], then_branch=inner, else_branch=inner)
    nodes = [branch, node("Add", ["raw", "some"], ["noisy"]), _unit("noisy")]
    hidden = by_hand(nodes, {"yes": np.array(True)})
    called = by_hand([node("Odd", ["raw"], ["noisy"], domain="mine"), _unit("noisy")])
    body = helper.make_function(
        "mine", "Odd", ["x"], ["y"], [node("Bernoulli", ["x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    called.functions.append(body)
    called.opset_import.append(helper.make_opsetid("mine", 1))
    for model, name in ((hidden, "RandomNormal"), (called, "Bernoulli")):
        with pytest.raises(UnsteadyError, match=name):
            read_model_bytes(save(model, tmp_path / "m.onnx"))


def test_dropout_and_batch_norm_in_evaluation_mode_are_accepted(tmp_path: Path) -> None:
    """Every exporter writes them in evaluation mode."""
    ones: Weights = {name: np.ones(DIM, np.float32) for name in "gbmv"}
    off: Weights = {"share": np.float32(0.5), "off": np.array(False)}
    nodes = [
        node("Dropout", ["raw", "share", "off"], ["kept"]),
        node("Constant", [], ["never"], value=numpy_helper.from_array(np.array(False))),
        node("Dropout", ["kept", "share", "never"], ["again"]),
        node("BatchNormalization", ["again", "g", "b", "m", "v"], ["scaled"]),
    ]
    path = save(by_hand([*nodes, _unit("scaled")], {**ones, **off}), tmp_path / "m.onnx")
    assert check_steady(Encoder.load(path)) <= 1e-5


def test_a_canary_embeds_each_image_alone_too(tmp_path: Path) -> None:
    """An encoder that agrees with its canary only in a batch is refused."""
    encoder = Encoder.load(save(_centred(), tmp_path / "m.onnx"))
    canary = Canary.from_encoder(encoder)
    assert canary.difference(encoder) > 0.01
    with pytest.raises(InputError, match="canary differs"):
        canary.check_unchanged(encoder)
