"""Sealing: from an exported graph to the one file that is the model, the same bytes every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compatctl.encoder.graphs import (
    all_graphs,
    check_signature,
    graph_inputs,
    inline_functions,
)
from compatctl.encoder.inputs import BATCH, EncoderInput
from compatctl.encoder.metadata import ATTACHMENT_KEY, CONTRACT_KEY, FREE, OUTPUT, Contract
from compatctl.encoder.onnx_safety import opset_version, parse_model
from compatctl.errors import InputError
from compatctl.files import write_atomic


def seal(raw: Path, out: Path, inputs: Sequence[EncoderInput]) -> None:
    """Write ``raw`` as one self-contained file with its preprocessing, and nothing that varies.

    External weights are included; source paths, doc strings, intermediate shapes and the producer's
    name are dropped: the same network exported twice, from any folder, has the same bytes.

    Raises:
        InputError: ``raw`` is not an ONNX model that takes ``inputs`` and gives ``embedding``
            (batch, D) float32, and maybe ``free`` (batch, D_free) float32.
    """
    try:
        model = onnx.load(raw, load_external_data=True)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{raw} is not an ONNX file that can be read: {error}") from None
    model = inline_functions(raw, parse_model(raw, model.SerializeToString()))
    dims = {value.name: _width(value) for value in model.graph.output}
    contract = Contract(dim=dims.get(OUTPUT, 0), inputs=tuple(inputs), free_dim=dims.get(FREE))
    check_signature(raw, model, contract)
    write_atomic(out, sealed_bytes(model, contract))


def _width(value: onnx.ValueInfoProto) -> int:
    """The second side of an output (batch, D); 0 if it has another shape."""
    axes = value.type.tensor_type.shape.dim
    return axes[1].dim_value if len(axes) == 2 else 0


def sealed_bytes(model: onnx.ModelProto, contract: Contract) -> bytes:
    """The one serialisation of a graph and its contract, without what does not compute."""
    clean = onnx.ModelProto()
    clean.ir_version = model.ir_version
    clean.opset_import.add(domain="", version=opset_version(model))
    clean.graph.CopyFrom(model.graph)
    clean.DiscardUnknownFields()
    for graph in all_graphs(clean.graph):
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
    for value in (*graph_inputs(clean.graph), *clean.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    clean.metadata_props.add(key=CONTRACT_KEY, value=contract.to_json())
    for digest, text in sorted(contract.attachments.items()):
        clean.metadata_props.add(key=ATTACHMENT_KEY + digest, value=text)
    return bytes(clean.SerializeToString(deterministic=True))
