"""What an ONNX file says of itself, read without running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from compatctl.data import WHITE
from compatctl.encoder.graphs import graph_inputs
from compatctl.encoder.import_onnx import IMAGE_TYPES
from compatctl.encoder.metadata import Contract, has_contract, read_contract, record_in
from compatctl.encoder.onnx_safety import node_count, opset_version, parse_model, read_bytes
from compatctl.files import sha256_bytes

SIDE = 224
"""Height and width in a template where the model does not say them."""

_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """An input or an output: its type, and its shape, None for a free axis.

    ``shape`` is None where the file does not declare one.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """An ONNX file.

    Attributes:
        sha256: digest of the file.
        contract: what a sealed file takes and gives; None for a file of another tool.
        recorded: whether it carries a training record.
        fixed_batch: the length of the first axis of the input, if it is fixed.
        quantised: whether weights or activations are integers.
        modality: what it seems to take.
        layout: where a model of images has the channels, by its shape; None if that does not say.
    """

    sha256: str
    opset: int
    producer: str
    operators: int
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    contract: Contract | None
    recorded: bool
    quantised: bool
    fixed_batch: int | None
    modality: Literal["image", "text", "vector"] | None
    layout: Literal["NCHW", "NHWC"] | None


def describe_onnx(path: Path) -> OnnxFacts:
    """Read a file's inputs, outputs and metadata; nothing runs.

    Raises:
        InputError: no such file, not ONNX, or it reaches outside the file.
    """
    data = read_bytes(path)
    model = parse_model(path, data)
    contract = read_contract(path, model) if has_contract(model) else None
    inputs = tuple(map(_tensor, graph_inputs(model.graph)))
    first = inputs[0].shape if inputs else None
    kinds = {node.op_type for node in model.graph.node}
    return OnnxFacts(
        sha256=sha256_bytes(data),
        opset=opset_version(model),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        operators=node_count(path, model),
        inputs=inputs,
        outputs=tuple(map(_tensor, model.graph.output)),
        contract=contract,
        recorded=record_in(path, model) is not None,
        quantised=any("Quant" in kind or "Integer" in kind for kind in kinds),
        fixed_batch=first[0] if first else None,
        modality=contract.inputs[0].MODALITY if contract else _modality(inputs),
        layout=_layout(inputs),
    )


def preprocessing_template(facts: OnnxFacts | None) -> dict[str, Any]:
    """Every entry of a preprocessing file, with what a model of images says of itself.

    Size, layout and output are the model's; ``scale`` is 1 for one that takes bytes. ``mean`` and
    ``std`` change nothing: no ONNX file says them.
    """
    image = facts.inputs[0] if facts and facts.inputs else None
    layout = facts.layout if facts else None
    sides = image.shape[1:] if image and image.shape and len(image.shape) == 4 else (None,) * 3
    height, width = sides[:2] if layout == "NHWC" else sides[1:]
    several = facts is not None and len(facts.outputs) > 1
    return {
        "format": 1,
        "height": height or SIDE,
        "width": width or SIDE,
        "resize": "bicubic",
        "fit": "crop",
        "crop_share": 1.0,
        "crop_offset": None,
        "border": list(WHITE),
        "layout": layout or "NCHW",
        "channels": "RGB",
        "scale": 1.0 if image and image.dtype == "uint8" else 1 / 255,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "output": _embedding(facts.outputs) if facts and several else None,
        "normalise": True,
        "unusual": False,
    }


def _embedding(outputs: tuple[TensorFacts, ...]) -> str:
    """The first output with one vector an item, else the first."""
    flat = [value.name for value in outputs if value.shape is not None and len(value.shape) == 2]
    return (flat or [outputs[0].name])[0]


def _tensor(value: onnx.ValueInfoProto) -> TensorFacts:
    tensor = value.type.tensor_type
    kinds = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    dtype = kinds.get(tensor.elem_type, "unknown")
    axes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    return TensorFacts(
        name=value.name,
        dtype={"float": "float32", "double": "float64"}.get(dtype, dtype),
        shape=tuple(axes) if tensor.HasField("shape") else None,
    )


def _modality(inputs: tuple[TensorFacts, ...]) -> Literal["image", "text", "vector"] | None:
    if {value.name for value in inputs} & _TEXT_INPUTS:
        return "text"
    if len(inputs) != 1 or inputs[0].dtype not in IMAGE_TYPES or inputs[0].shape is None:
        return None
    return {4: "image", 2: "vector"}.get(len(inputs[0].shape))  # type: ignore[return-value]


def _layout(inputs: tuple[TensorFacts, ...]) -> Literal["NCHW", "NHWC"] | None:
    shape = inputs[0].shape if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or (shape[1] == 3) == (shape[3] == 3):
        return None
    return "NCHW" if shape[1] == 3 else "NHWC"
