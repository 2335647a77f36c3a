"""ONNX files that would reach outside themselves, or take the machine's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import DIM, SIDE, UNIT, by_hand, metadata, save

from compatctl.encoder import Encoder, onnx_safety
from compatctl.encoder.metadata import CONTRACT_KEY, MAX_CONTRACT
from compatctl.encoder.onnx_safety import parse_model
from compatctl.errors import InputError


def refused(model: onnx.ModelProto, path: Path, word: str) -> None:
    """Parsing raises an InputError with this word and the name of the file."""
    with pytest.raises(InputError, match=word) as caught:
        parse_model(path, model.SerializeToString())
    assert str(path) in caught.value.message


def elsewhere() -> onnx.TensorProto:
    """A tensor whose values are in another file."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def _sparse() -> onnx.SparseTensorProto:
    index = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    return helper.make_sparse_tensor(elsewhere(), index, [3])


def _branch(node: onnx.NodeProto) -> onnx.AttributeProto:
    return helper.make_attribute("then_branch", helper.make_graph([node], "inner", [], []))


def _function(node: onnx.NodeProto | None = None, **more: object) -> onnx.FunctionProto:
    nodes = [node or helper.make_node("Identity", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 17)]
    return helper.make_function("own", "Local", ["x"], ["y"], nodes, opset, **more)


def _constant() -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=elsewhere())


HIDDEN: dict[str, Callable[[onnx.ModelProto], object]] = {
    "a weight": lambda model: model.graph.initializer.append(elsewhere()),
    "a sparse weight": lambda model: model.graph.sparse_initializer.append(_sparse()),
    "an attribute": lambda model: model.graph.node.append(_constant()),
    "a sparse attribute": lambda model: model.graph.node.append(
        helper.make_node("Constant", [], ["c"], sparse_value=_sparse())
    ),
    "a branch": lambda model: model.graph.node[0].attribute.append(_branch(_constant())),
    "a function": lambda model: model.functions.append(_function(_constant())),
    "a function's branch": lambda model: model.functions.append(
        _function(helper.make_node("If", ["x"], ["y"], then_branch=_branch(_constant()).g))
    ),
    "a function's default": lambda model: model.functions.append(
        _function(attribute_protos=[helper.make_attribute("a", elsewhere())])
    ),
    "a branch of a function's default": lambda model: model.functions.append(
        _function(attribute_protos=[_branch(_constant())])
    ),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_external_data_is_refused_at_any_depth(tmp_path: Path, place: str) -> None:
    """Weights in another file are refused at any depth."""
    model = by_hand([UNIT])
    HIDDEN[place](model)
    refused(model, tmp_path / "m.onnx", "are in another file")


def test_a_local_function_does_not_allow_its_domain(tmp_path: Path) -> None:
    """Only the function itself is known; other operators of its domain are refused."""
    local = _function()
    local.domain = "com.microsoft"
    custom = helper.make_node("QMoE", ["x"], ["y"], domain="com.microsoft")
    for place in (
        lambda model: model.graph.node.append(custom),
        lambda model: model.graph.node[0].attribute.append(_branch(custom)),
        lambda model: model.functions.append(_function(custom)),
    ):
        model = by_hand([UNIT])
        model.functions.append(local)
        place(model)
        refused(model, tmp_path / "m.onnx", "com.microsoft.QMoE is not one of ONNX")
    model = by_hand([UNIT])
    model.functions.append(local)
    model.graph.node.append(helper.make_node("Local", ["raw"], ["more"], domain="com.microsoft"))
    parse_model(tmp_path / "m.onnx", model.SerializeToString())


def test_functions_that_expand_without_end_are_refused(tmp_path: Path) -> None:
    """Thirty functions that each call the previous one ten times, or that call themselves."""

    def function(number: int, calls: list[int]) -> onnx.FunctionProto:
        names = [f"v{i}" for i in range(len(calls) + 1)]
        nodes = [
            helper.make_node(f"F{call}", [names[i]], [names[i + 1]], domain="own")
            for i, call in enumerate(calls)
        ] or [helper.make_node("Identity", ["v0"], ["v0"])]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        return helper.make_function("own", f"F{number}", ["v0"], [names[-1]], nodes, opsets)

    for functions, word in (
        ([function(i, [i - 1] * 10 if i else []) for i in range(30)], "operators"),
        ([function(29, [29])], "calls itself"),
        ([function(29, [28]), function(28, [29])], "calls itself"),
    ):
        model = by_hand([UNIT])
        model.functions.extend(functions)
        model.graph.node.append(helper.make_node("F29", ["raw"], ["more"], domain="own"))
        refused(model, tmp_path / "m.onnx", word)


def test_operators_outside_the_bounded_memory_are_refused(tmp_path: Path) -> None:
    """Text tensors and the table of Unique are not in the runtime's bounded memory."""
    words = helper.make_tensor("t", TensorProto.STRING, [1], [b"x"])
    for word, node in (
        ("text", helper.make_node("Constant", [], ["c"], value_string=b"x")),
        ("text", helper.make_node("Constant", [], ["c"], value=words)),
        ("Cast", helper.make_node("Cast", ["raw"], ["c"], to=TensorProto.STRING)),
        ("Unique", helper.make_node("Unique", ["raw"], ["c"])),
    ):  # fmt: skip
        model = by_hand([UNIT])
        model.graph.node.append(node)
        refused(model, tmp_path / "m.onnx", word)


def test_sparse_weights_that_are_huge_when_dense_are_refused(tmp_path: Path) -> None:
    """ONNX Runtime would allocate 400 million values for one that is stored."""
    model = by_hand([UNIT])
    value = numpy_helper.from_array(np.ones(1, np.float32), "s")
    index = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(value, index, [400_000_000]))
    refused(model, tmp_path / "m.onnx", "when dense")


def test_a_small_file_that_parses_to_gigabytes_is_refused(tmp_path: Path) -> None:
    """Two bytes in the file are an empty operator of a hundred bytes in memory."""
    nodes = b"\x0a\x00" * (onnx_safety.MAX_STRUCTURE_BYTES // 64 + 1)
    size, length = len(nodes), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    data = b"\x3a" + length + bytes([size]) + nodes
    with pytest.raises(InputError, match="are not weights"):
        parse_model(tmp_path / "m.onnx", data)


def test_files_over_the_limit_and_pipes_are_not_read(tmp_path: Path) -> None:
    """The limit is protobuf's 2 GiB; a named pipe does not block."""
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(onnx_safety.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match="at most"):
        Encoder.load(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="regular"):
        Encoder.load(path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dim": 10**9}, "the limits are"),
        ({"inputs": [{}] * 17}, "the limits are"),
        ({"height": 10**6}, "1 .. 4096"),
        ({"padding": "x" * MAX_CONTRACT}, "longer than"),
    ],
)
def test_metadata_over_its_limits_is_refused(
    tmp_path: Path, change: dict[str, object], word: str
) -> None:
    """Dimensions, inputs, image sides and the text itself have limits."""
    path = save(by_hand([UNIT]), tmp_path / "m.onnx")
    model = onnx.load(path)
    contract = json.loads(
        next(entry.value for entry in model.metadata_props if entry.key == CONTRACT_KEY)
    )
    if "height" in change:
        contract["inputs"][0] |= change
    else:
        contract |= change
    del model.metadata_props[:]
    helper.set_model_props(model, {CONTRACT_KEY: json.dumps(contract)})
    onnx.save(model, path)
    with pytest.raises(InputError, match=word):
        Encoder.load(path)


def _ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def bomb(kind: str) -> onnx.ModelProto:
    """An encoder whose graph makes an intermediate tensor of some 160 GB."""
    sizes = _ints("huge", 20_000, 2_000_000)
    last = {
        "Expand": [helper.make_node("Expand", ["least", "huge"], ["big"])],
        "ConstantOfShape": [helper.make_node("ConstantOfShape", ["huge"], ["big"])],
        "Tile": [
            helper.make_node("Reshape", ["least", "square"], ["one"]),
            helper.make_node("Tile", ["one", "huge"], ["big"]),
        ],
        "Resize": [
            helper.make_node("Reshape", ["least", "square"], ["one"]),
            helper.make_node("Resize", ["one", "", "", "huge"], ["big"], mode="nearest"),
        ],
        "Loop": [
            helper.make_node("Loop", ["trips", ""], ["big"], body=_body()),
        ],
    }[kind]
    nodes = [
        helper.make_node("ReduceMin", ["raw"], ["least"], keepdims=0),
        *last,
        helper.make_node("ReduceMin", ["big"], ["small"], keepdims=0),
        helper.make_node("Add", ["raw", "small"], ["sum"]),
        helper.make_node("LpNormalization", ["sum"], ["embedding"]),
    ]
    model = by_hand(nodes)
    model.graph.initializer.extend(
        [sizes, _ints("square", 1, 1), _ints("trips", 1600), _ints("part", 25_000_000)]
    )
    model.graph.initializer[-2].ClearField("dims")
    return model


def _body() -> onnx.GraphProto:
    def value(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, None if kind == 1 else [])

    return helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Expand", ["least", "part"], ["row"]),
        ],
        "body",
        [value("at", TensorProto.INT64), value("go", TensorProto.BOOL)],
        [value("on", TensorProto.BOOL), value("row", TensorProto.FLOAT)],
    )


@pytest.mark.parametrize("kind", ["Expand", "ConstantOfShape", "Tile", "Resize", "Loop"])
def test_a_memory_bomb_ends_in_an_error(tmp_path: Path, kind: str) -> None:
    """A graph that needs more than its share of the memory is an InputError, not a kill."""
    model = bomb(kind)
    helper.set_model_props(model, {CONTRACT_KEY: metadata()})
    onnx.save(model, tmp_path / "m.onnx")
    code = (
        "import re, sys; from pathlib import Path\n"
        "from compatctl.encoder import Encoder, session; from compatctl.errors import InputError\n"
        "session.MEMORY_SHARE = (1 << 30) / session.usable_memory()\n"
        "try:\n    Encoder.load(Path(sys.argv[1]))\n"
        "except InputError as error:\n    print(error.message)\n"
        "status = Path('/proc/self/status').read_text()\n"  # ru_maxrss has the parent's from before
        "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) >> 10)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.onnx"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    message, peak = process.stdout.rsplit("\n", 2)[:2]
    assert "m.onnx" in message
    assert "ONNX Runtime" in message
    assert int(peak) < 1500


def test_large_inputs_make_small_batches(tmp_path: Path) -> None:
    """The pixels of a batch are bounded in bytes, whatever input size the metadata names."""
    encoder = Encoder.load(save(by_hand([UNIT]), tmp_path / "m.onnx"))
    assert encoder.largest_batch == (1 << 28) // (3 * SIDE * SIDE)
    assert encoder.dim == DIM
