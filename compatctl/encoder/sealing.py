"""Sealing: from an exported graph to the one file that is the model, the same bytes every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, inliner

from compatctl.data import Preprocessing
from compatctl.encoder import contract, onnx_safety
from compatctl.encoder.contract import BATCH, KEY, OUTPUT, Contract, EncoderInput
from compatctl.errors import InputError
from compatctl.files import write_atomic


def seal(raw: Path, out: Path, inputs: Sequence[EncoderInput]) -> None:
    """Write ``raw`` as one self-contained file with its preprocessing, and nothing that varies.

    External weights come in; source paths, doc strings, intermediate shapes and the producer's name
    go: the same network exported twice, from any folder, has the same bytes.

    Raises:
        InputError: ``raw`` is not an ONNX model that takes ``inputs`` and gives ``embedding``
            (batch, D) float32.
    """
    try:
        model = onnx.load(raw, load_external_data=True)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{raw} is not an ONNX file that can be read: {error}") from None
    model = inlined(raw, contract.parse(raw, model.SerializeToString()))
    shape = [one for one in model.graph.output if one.name == OUTPUT]
    dims = shape[0].type.tensor_type.shape.dim if shape else []
    spec = Contract(dim=dims[1].dim_value if len(dims) == 2 else 0, inputs=tuple(inputs))
    contract.check_signature(raw, model, spec)
    write_atomic(out, sealed(model, spec))


def inlined(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions.

    Raises:
        InputError: onnx cannot put them in where they are called.
    """
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, IndexError, DecodeError) as error:
        raise InputError(f"{path}: its local functions cannot be put in: {error}") from error


def sealed(model: onnx.ModelProto, spec: Contract) -> bytes:
    """The one serialisation of a graph and its contract: what does not compute is left out."""
    clean = onnx.ModelProto()
    clean.ir_version = model.ir_version
    opset = max(one.version for one in model.opset_import if one.domain in onnx_safety.DOMAINS)
    clean.opset_import.add(domain="", version=opset)
    clean.graph.CopyFrom(model.graph)
    clean.DiscardUnknownFields()
    for graph in contract.graphs(clean.graph):
        for field in ("doc_string", "value_info", "metadata_props", "quantization_annotation"):
            graph.ClearField(field)
        sparse = [part for pair in graph.sparse_initializer for part in (pair.values, pair.indices)]
        for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, *sparse):
            part.ClearField("doc_string")
            part.ClearField("metadata_props")
        for node in graph.node:
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
    clean.graph.name = "encoder"
    for value in (*contract.graph_inputs(clean.graph), *clean.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    clean.metadata_props.add(key=KEY, value=spec.to_json())
    return bytes(clean.SerializeToString(deterministic=True))


def image_input(name: str, size: Preprocessing) -> onnx.ValueInfoProto:
    """The graph's input of images (batch, H, W, 3) uint8."""
    shape: list[str | int | None] = [BATCH, size.height, size.width, 3]
    return helper.make_tensor_value_info(name, TensorProto.UINT8, shape)


def prefixed(model: onnx.ModelProto, prefix: str) -> onnx.GraphProto:
    """The model's graph with ``prefix`` before every name of a value and of a node, nested too."""
    whole = onnx.GraphProto()
    whole.CopyFrom(model.graph)
    for graph in contract.graphs(whole):
        graph.ClearField("value_info")
        graph.ClearField("quantization_annotation")
        for node in graph.node:
            node.name = prefix + node.name if node.name else ""
            for names in (node.input, node.output):
                names[:] = [prefix + name if name else "" for name in names]
        sparse = [pair.values for pair in graph.sparse_initializer]
        for named in (*graph.initializer, *graph.input, *graph.output, *sparse):
            named.name = prefix + named.name
    return whole
