"""ONNX graphs: the signature of an encoder, nested graphs, local functions, prefixed names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner

from compatctl.encoder.inputs import BATCH
from compatctl.encoder.metadata import Contract, read_contract
from compatctl.encoder.onnx_safety import iter_messages, parse_model
from compatctl.errors import InputError


def parse_encoder(path: Path, data: bytes) -> tuple[onnx.ModelProto, Contract]:
    """The model and the contract in the sealed bytes of an encoder; ``path`` is for messages.

    Raises:
        InputError: it is no ONNX encoder, or its graph is not what the contract says.
    """
    model = parse_model(path, data)
    contract = read_contract(path, model)
    check_signature(path, model, contract)
    return model, contract


def check_signature(path: Path, model: onnx.ModelProto, contract: Contract) -> None:
    """The graph's inputs and outputs must be those of the contract, with a free batch axis.

    Raises:
        InputError: another name, type or size, or a fixed batch.
    """
    inputs = {value.name: _signature(value) for value in graph_inputs(model.graph)}
    expected = {source.name: source.signature for source in contract.inputs}
    if inputs != expected:
        raise InputError(
            f"{path}: its inputs are {_listed(inputs)}; an encoder with this preprocessing takes "
            f"{_listed(expected)}"
        )
    outputs = {value.name: _signature(value) for value in model.graph.output}
    expected = {name: f"float32 ({BATCH}, {dim})" for name, dim in contract.outputs.items()}
    if outputs != expected:
        raise InputError(
            f"{path}: its outputs are {_listed(outputs)}; expected {_listed(expected)}"
        )


def _signature(value: onnx.ValueInfoProto) -> str:
    """Type and shape as text; a free first axis reads ``batch``."""
    tensor = value.type.tensor_type
    kinds = {number: name for name, number in onnx.TensorProto.DataType.items()}
    name = kinds.get(tensor.elem_type, "an unknown type")
    kind = "float32" if name == "FLOAT" else name.lower()
    if not tensor.HasField("shape"):
        return f"{kind} of unknown shape"
    axes = [
        str(axis.dim_value) if axis.HasField("dim_value") else ("?" if number else BATCH)
        for number, axis in enumerate(tensor.shape.dim)
    ]
    return f"{kind} ({', '.join(axes)})"


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name!r} {kind}" for name, kind in sorted(values.items())) or "none"


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: old files list weights as inputs as well."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def all_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    return [graph, *(part for part in iter_messages(graph) if isinstance(part, onnx.GraphProto))]


def inline_functions(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions.

    Raises:
        InputError: onnx cannot inline them.
    """
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, IndexError, DecodeError) as error:
        raise InputError(f"{path}: its local functions cannot be inlined: {error}") from error


def prune(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Drop the nodes, weights and inputs that no value of ``outputs`` depends on, in place."""
    needed, kept = set(outputs), []
    for node in reversed(graph.node):  # in the order of computation, so uses come after
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
            inner = [part for part in iter_messages(node) if isinstance(part, onnx.GraphProto)]
            for nested in inner:
                needed.update(name for child in nested.node for name in child.input)
                needed.update(value.name for value in nested.output)
    for field, values in (
        ("node", kept[::-1]),
        ("input", [value for value in graph.input if value.name in needed]),
        ("initializer", [value for value in graph.initializer if value.name in needed]),
        (
            "sparse_initializer",
            [pair for pair in graph.sparse_initializer if pair.values.name in needed],
        ),
        ("output", [value for value in graph.output if value.name in outputs]),
    ):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def prefixed_graph(model: onnx.ModelProto, prefix: str) -> onnx.GraphProto:
    """The model's graph with ``prefix`` before every name of a value and of a node, nested too."""
    copy = onnx.GraphProto()
    copy.CopyFrom(model.graph)
    for graph in all_graphs(copy):
        graph.ClearField("value_info")
        graph.ClearField("quantization_annotation")
        for node in graph.node:
            node.name = prefix + node.name if node.name else ""
            for names in (node.input, node.output):
                names[:] = [prefix + name if name else "" for name in names]
        sparse = [pair.values for pair in graph.sparse_initializer]
        for value in (*graph.initializer, *graph.input, *graph.output, *sparse):
            value.name = prefix + value.name
    return copy
