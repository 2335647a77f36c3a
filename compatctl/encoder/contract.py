"""What an encoder's file must be: its metadata, and what is refused at admission.

Inputs are uint8 images NHWC, one for each distinct preprocessing; the output ``embedding`` is
(batch, D) float32 with unit rows. Scaling, mean, std and the norm are inside the graph; resizing
and cropping, which cannot be, are JSON in the file's metadata, so that the digest covers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from compatctl.data import Preprocessing
from compatctl.errors import InputError

KEY = "compatctl"
FORMAT = 1
OUTPUT = "embedding"
DOMAINS = {"", "ai.onnx"}


@dataclass(frozen=True, kw_only=True)
class EncoderInput:
    """A named input and the pixels that it takes."""

    name: str
    preprocessing: Preprocessing


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the metadata says: D and the inputs."""

    dim: int
    inputs: tuple[EncoderInput, ...]

    def to_json(self) -> str:
        """The metadata's text."""
        inputs = [{"name": one.name, **asdict(one.preprocessing)} for one in self.inputs]
        return json.dumps({"format": FORMAT, "dim": self.dim, "inputs": inputs}, sort_keys=True)


def parse(path: Path, data: bytes) -> onnx.ModelProto:
    """The model in ``data``, refused where it is not one self-contained file of standard operators.

    Raises:
        InputError: not ONNX, external data, custom operators.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InputError(f"{path} is not an ONNX file") from None
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} is not an ONNX model: it has no graph")
    for tensor in tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(
                f"{path}: the weights of {tensor.name!r} lie in another file: no digest covers it",
                tip="export one self-contained file (torch.onnx.export(..., external_data=False))",
            )
    functions = {function.domain for function in model.functions}
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.domain not in DOMAINS and node.domain not in functions:
                raise InputError(
                    f"{path}: the operator {node.domain}.{node.op_type} is not a standard one"
                )
    return model


def read(path: Path, model: onnx.ModelProto) -> Contract:
    """The contract in a model's metadata.

    Raises:
        InputError: there is none, or it is of a newer format, or not what it should be.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    if not texts:
        raise InputError(
            f"{path} carries no preprocessing in its metadata: it was not made by compatctl",
            tip="give a preprocessing file: --preprocessing FILE, or "
            f"{path.with_suffix('.preprocessing.json').name} beside it",
        )
    try:
        raw = json.loads(texts[0])
        if raw["format"] != FORMAT:
            raise InputError(f"{path}: metadata format {raw['format']!r}; this reads {FORMAT}")
        if set(raw) != {"format", "dim", "inputs"}:
            raise InputError(f"{path}: unknown metadata {sorted(set(raw) - {'format', 'dim'})}")
        inputs = tuple(_input(entry) for entry in raw["inputs"])
        return Contract(dim=int(raw["dim"]), inputs=inputs)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its metadata cannot be read: {error}") from None


def _input(entry: dict[str, Any]) -> EncoderInput:
    rest = {key: value for key, value in entry.items() if key != "name"}
    return EncoderInput(name=str(entry["name"]), preprocessing=Preprocessing(**rest))


def check_signature(path: Path, contract: Contract, inputs: Sequence[Any], outputs: Any) -> None:
    """The runtime's own view of inputs and outputs must be the metadata's.

    Raises:
        InputError: another name, type or size.
    """
    found = {one.name: (one.type, list(one.shape)[1:]) for one in inputs}
    wanted = {
        one.name: ("tensor(uint8)", [one.preprocessing.height, one.preprocessing.width, 3])
        for one in contract.inputs
    }
    if found != wanted:
        raise InputError(f"{path}: inputs are {found}; its metadata says {wanted}")
    results = [(one.name, one.type, list(one.shape)[1:]) for one in outputs]
    if results != [(OUTPUT, "tensor(float)", [contract.dim])]:
        raise InputError(
            f"{path}: outputs are {results}; expected {OUTPUT!r} (batch, {contract.dim}) float32"
        )


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from graphs(inner)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph: initializers, sparse ones, and those in attributes."""
    for part in graphs(graph):
        yield from part.initializer
        for sparse in part.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in part.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
