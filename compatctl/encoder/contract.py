"""What an encoder's file must be: its metadata, and what is refused at admission.

Inputs are uint8 images NHWC, one for each distinct preprocessing; the output ``embedding`` is
(batch, D) float32 with unit rows. Scaling, mean, std and the norm are inside the graph; resizing
and cropping, which cannot be, are JSON in the file's metadata, so that the digest covers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compatctl.data import Preprocessing
from compatctl.encoder import onnx_safety
from compatctl.encoder.onnx_safety import DOMAINS
from compatctl.errors import InputError
from compatctl.files import parse_json

KEY = "compatctl"
FORMAT = 1
OUTPUT = "embedding"
BATCH = "batch"
MAX_METADATA = 1 << 16
"""The longest metadata, in characters."""

MAX_DIM = 65_536
"""The most numbers of an embedding."""

MAX_INPUTS = 16
"""The most inputs of an encoder: one for each preprocessing of those that were fused."""

_KEYS = {"format", "dim", "inputs"}
_INPUT_KEYS = {"name", "height", "width", "resize", "fit"}


@dataclass(frozen=True, kw_only=True)
class EncoderInput:
    """A named input of the graph and the preprocessing that makes its pixels."""

    name: str
    preprocessing: Preprocessing


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the metadata says: D and the inputs."""

    dim: int
    inputs: tuple[EncoderInput, ...]

    def to_json(self) -> str:
        """The metadata's text, of which there is one for each contract."""
        inputs = [{"name": one.name, **asdict(one.preprocessing)} for one in self.inputs]
        return json.dumps({"format": FORMAT, "dim": self.dim, "inputs": inputs}, sort_keys=True)


def parse(path: Path, data: bytes) -> onnx.ModelProto:
    """The model in ``data``, refused where it is not one self-contained file of standard operators.

    Raises:
        InputError: not ONNX, or something that ``onnx_safety`` refuses: external data
            anywhere in it, custom operators, text, more structure than an encoder has.
    """
    onnx_safety.check_structure(path, memoryview(data))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InputError(f"{path} is not an ONNX file") from None
    standard = [one for one in model.opset_import if one.domain in DOMAINS]
    if not model.graph.node or not model.graph.output or not standard:
        raise InputError(f"{path} is not an ONNX model: it has no graph")
    onnx_safety.check(path, model)
    return model


def carries_metadata(model: onnx.ModelProto) -> bool:
    """Whether the file says itself how its inputs are made."""
    return any(entry.key == KEY for entry in model.metadata_props)


def read(path: Path, model: onnx.ModelProto) -> Contract:
    """The contract in a model's metadata.

    Raises:
        InputError: there is none, it is of a newer format, or it has an unknown or wrong entry.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    if len(texts) != 1:
        raise InputError(
            f"{path} carries no preprocessing in its metadata: compatctl did not make it",
            tip=f"pass --preprocessing FILE, or put {sidecar_path(path).name} beside it",
        )
    if len(texts[0]) > MAX_METADATA:
        raise InputError(f"{path}: its metadata is longer than {MAX_METADATA} characters")
    raw = parse_json(texts[0].encode("utf-8", "surrogatepass"), path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        got = raw.get("format") if isinstance(raw, dict) else raw
        raise InputError(
            f"{path}: its metadata has the format {got!r}; this version reads {FORMAT}",
            tip="use the version of compatctl that made it, or a later one",
        )
    dim, inputs = raw.get("dim"), raw.get("inputs")
    if set(raw) != _KEYS or type(dim) is not int or dim < 1 or not isinstance(inputs, list):
        raise InputError(f"{path}: its metadata must be {sorted(_KEYS)}, got {sorted(raw)}")
    if dim > MAX_DIM or len(inputs) > MAX_INPUTS:
        raise InputError(
            f"{path}: its metadata asks for {dim} numbers from {len(inputs)} inputs; at most "
            f"{MAX_DIM} from {MAX_INPUTS} are taken"
        )
    found = tuple(_input(path, entry) for entry in inputs)
    if not found or len({one.name for one in found}) < len(found):
        raise InputError(f"{path}: its metadata names no input, or one twice")
    return Contract(dim=dim, inputs=found)


def sidecar_path(path: Path) -> Path:
    """Where a foreign file's preprocessing is looked for: NAME.preprocessing.json beside it."""
    return path.with_suffix(".preprocessing.json")


def _input(path: Path, entry: object) -> EncoderInput:
    if not isinstance(entry, dict) or set(entry) != _INPUT_KEYS or type(entry["name"]) is not str:
        raise InputError(f"{path}: an input in its metadata must have {sorted(_INPUT_KEYS)}")
    rest = {key: value for key, value in entry.items() if key != "name"}
    try:
        return EncoderInput(name=entry["name"], preprocessing=Preprocessing(**rest))
    except InputError as error:
        raise InputError(f"{path}: {error.message}") from None


def check_signature(path: Path, model: onnx.ModelProto, spec: Contract) -> None:
    """The graph's inputs and output must be what ``spec`` says, the batch free.

    Raises:
        InputError: another name, type or size, or a fixed batch.
    """
    found = {one.name: _kind(one) for one in graph_inputs(model.graph)}
    wanted = {
        one.name: f"uint8 (batch, {one.preprocessing.height}, {one.preprocessing.width}, 3)"
        for one in spec.inputs
    }
    if found != wanted:
        raise InputError(
            f"{path}: its inputs are {_listed(found)}; an encoder with this preprocessing takes "
            f"{_listed(wanted)}"
        )
    results = {one.name: _kind(one) for one in model.graph.output}
    expected = {OUTPUT: f"float32 (batch, {spec.dim})"}
    if results != expected:
        raise InputError(
            f"{path}: its outputs are {_listed(results)}; expected {_listed(expected)}"
        )


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: old files list weights as inputs as well."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _kind(value: onnx.ValueInfoProto) -> str:
    """Type and shape as text; a free first axis reads ``batch``."""
    tensor = value.type.tensor_type
    kinds = {number: name for name, number in onnx.TensorProto.DataType.items()}
    name = kinds.get(tensor.elem_type, "an unknown type")
    kind = "float32" if name == "FLOAT" else name.lower()
    if not tensor.HasField("shape"):
        return f"{kind} of unknown shape"
    axes = [
        str(axis.dim_value) if axis.HasField("dim_value") else ("?" if at else BATCH)
        for at, axis in enumerate(tensor.shape.dim)
    ]
    return f"{kind} ({', '.join(axes)})"


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name!r} {kind}" for name, kind in sorted(values.items())) or "none"


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    yield graph
    yield from _inner(graph.node)


def _inner(parts: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in parts:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)
