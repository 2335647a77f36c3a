"""Surgery on ONNX graphs: seal what torch exported, wrap a foreign file, fuse two encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, inliner, numpy_helper

from compatctl.data import Preprocessing
from compatctl.encoder import contract
from compatctl.encoder.contract import KEY, OUTPUT, Contract, EncoderInput
from compatctl.errors import InputError

MAX_SIDE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A foreign file's preprocessing: ``(pixels * scale - mean) / std`` in its own layout.

    ``mean`` and ``std`` are in the order of ``channels``; ``output`` names the embedding (default:
    the only output); ``normalise``: divide each row by its norm, unless the graph does already.
    """

    format: int
    height: int
    width: int
    resize: str = "bicubic"
    fit: str = "crop"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    output: str | None = None
    normalise: bool = True


def seal(raw: Path, out: Path, inputs: Sequence[EncoderInput]) -> None:
    """Write ``raw`` as one self-contained file with its preprocessing, and nothing that varies.

    Source paths, doc strings, intermediate shapes and the producer's name go; the same network
    exported twice, from any folder, has the same bytes.

    Raises:
        InputError: ``raw`` is not an ONNX model with one output (batch, D).
    """
    model = _load(raw)
    _write(model, out, Contract(dim=_dim(raw, model), inputs=tuple(inputs)))


def admit(path: Path, side: Path, out: Path) -> None:
    """Wrap a foreign encoder: layout, scaling, mean, std and norm go into the graph; then seal.

    The same two files give the same bytes.

    Raises:
        InputError: the preprocessing file or the model is not usable.
    """
    told = _side(side)
    data = path.read_bytes()
    model = compose.add_prefix(contract.parse(path, data), "model/")
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    takes = [value for value in graph.input if value.name not in weights]
    name = f"model/{told.output}" if told.output else graph.output[0].name
    gives = [value for value in graph.output if value.name == name]
    if len(takes) != 1 or len(gives) != 1 or (told.output is None and len(graph.output) > 1):
        raise InputError(
            f"{path}: expected one input and the output {told.output!r}; it has "
            f"{[one.name for one in takes]} and {[one.name for one in graph.output]}",
            tip='name the embedding in the preprocessing file: "output": "..."',
        )
    size = Preprocessing(
        height=told.height,
        width=told.width,
        resize=told.resize,  # type: ignore[arg-type]
        fit=told.fit,  # type: ignore[arg-type]
    )
    before = _before(told, takes[0].name)
    after = [_unit(name) if told.normalise else helper.make_node("Identity", [name], [OUTPUT])]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(_images("image", size))
    dim = _probe_dim(path, model, gives[0])
    graph.output.append(_embedding(dim))
    named = (EncoderInput(name="image", preprocessing=size),)
    _write(model, out, Contract(dim=dim, inputs=named))


def fuse(old: Path, new: Path, weight: float, out: Path) -> None:
    """One file whose feature is the unit of ``(1 - weight) old + weight new``.

    Inputs with the same preprocessing are shared. Both files must be sealed encoders.

    Raises:
        InputError: other dimensions, or a file that is not an encoder.
    """
    parts = []
    for prefix, path in (("old/", old), ("new/", new)):
        model = contract.parse(path, path.read_bytes())
        parts.append((prefix, contract.read(path, model), model))
    (_, one, first), (_, two, second) = parts
    if one.dim != two.dim:
        raise InputError(f"{old} ends in {one.dim} numbers, {new} in {two.dim}")
    first, second = _same_opset(first, second)
    merged = helper.make_graph([], "fused", [], [])
    names: dict[Preprocessing, str] = {}
    for prefix, told, model in (("old/", one, first), ("new/", two, second)):
        _join(merged, compose.add_prefix(model, prefix), told, prefix, names)
    for prefix, share in (("old/", 1.0 - weight), ("new/", weight)):
        merged.initializer.append(
            numpy_helper.from_array(np.array(share, np.float32), f"{prefix}weight")
        )
        merged.node.append(
            helper.make_node("Mul", [f"{prefix}{OUTPUT}", f"{prefix}weight"], [f"{prefix}share"])
        )
    merged.node.append(helper.make_node("Add", ["old/share", "new/share"], ["mixed"]))
    merged.node.append(_unit("mixed"))
    merged.output.append(_embedding(one.dim))
    for size, name in names.items():
        merged.input.append(_images(name, size))
    model = helper.make_model(merged, opset_imports=list(first.opset_import))
    model.ir_version = max(first.ir_version, second.ir_version)
    inputs = tuple(EncoderInput(name=name, preprocessing=size) for size, name in names.items())
    _write(model, out, Contract(dim=one.dim, inputs=inputs))


def _join(
    merged: onnx.GraphProto,
    model: onnx.ModelProto,
    told: Contract,
    prefix: str,
    names: dict[Preprocessing, str],
) -> None:
    """Append a prefixed encoder; its inputs become identities of the shared ones."""
    for one in told.inputs:
        shared = names.setdefault(
            one.preprocessing, "image" if not names else f"image_{len(names) + 1}"
        )
        merged.node.append(helper.make_node("Identity", [shared], [f"{prefix}{one.name}"]))
    merged.node.extend(model.graph.node)
    merged.initializer.extend(model.graph.initializer)


def _same_opset(
    first: onnx.ModelProto, second: onnx.ModelProto
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both models at the newer of their two operator sets."""
    from onnx import version_converter

    versions = [_opset(model) for model in (first, second)]
    newest = max(versions)
    converted = [
        model if version == newest else version_converter.convert_version(model, newest)
        for model, version in zip((first, second), versions, strict=True)
    ]
    return converted[0], converted[1]


def _opset(model: onnx.ModelProto) -> int:
    return max(int(one.version) for one in model.opset_import if one.domain in contract.DOMAINS)


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=True)
    except (OSError, DecodeError, ValueError) as error:
        raise InputError(f"{path} is not an ONNX file: {error}") from None
    if len(model.graph.output) != 1:
        raise InputError(f"{path} has {len(model.graph.output)} outputs, expected one embedding")
    return inliner.inline_local_functions(model) if model.functions else model


def _dim(path: Path, model: onnx.ModelProto) -> int:
    shape = model.graph.output[0].type.tensor_type.shape.dim
    if len(shape) != 2 or shape[1].dim_value < 1:
        raise InputError(f"{path}: the output must be (batch, D)")
    return int(shape[1].dim_value)


def _write(model: onnx.ModelProto, out: Path, told: Contract) -> None:
    """Strip what varies, add the metadata, serialise deterministically."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        clean.ClearField(field)
    clean.ClearField("model_version")
    del clean.metadata_props[:]
    for graph in contract.graphs(clean.graph):
        graph.ClearField("doc_string")
        del graph.value_info[:], graph.metadata_props[:]
        for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
            part.ClearField("doc_string")
            del part.metadata_props[:]
    clean.graph.name = "encoder"
    clean.metadata_props.add(key=KEY, value=told.to_json())
    out.write_bytes(clean.SerializeToString(deterministic=True))


def _before(told: Foreign, target: str) -> list[onnx.NodeProto]:
    """uint8 NHWC ``image`` to what the foreign graph takes."""
    order = [2, 1, 0] if told.channels == "BGR" else [0, 1, 2]
    constants: dict[str, NDArray[Any]] = {
        "order": np.array(order, np.int64),
        "scale": np.array(told.scale, np.float32),
        "mean": np.array(told.mean, np.float32),
        "std": np.array(told.std, np.float32),
    }
    nodes = [
        helper.make_node("Constant", [], [key], value=numpy_helper.from_array(value))
        for key, value in constants.items()
    ]
    nodes += [
        helper.make_node("Gather", ["image", "order"], ["ordered"], axis=3),
        helper.make_node("Cast", ["ordered"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["ready"]),
    ]
    if told.layout == "NCHW":
        nodes.append(helper.make_node("Transpose", ["ready"], [target], perm=[0, 3, 1, 2]))
    else:
        nodes.append(helper.make_node("Identity", ["ready"], [target]))
    return nodes


def _unit(name: str) -> onnx.NodeProto:
    return helper.make_node("LpNormalization", [name], [OUTPUT], axis=-1, p=2)


def _images(name: str, size: Preprocessing) -> onnx.ValueInfoProto:
    shape: list[str | int | None] = ["batch", size.height, size.width, 3]
    return helper.make_tensor_value_info(name, TensorProto.UINT8, shape)


def _embedding(dim: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", dim])


def _probe_dim(path: Path, model: onnx.ModelProto, output: onnx.ValueInfoProto) -> int:
    """D of a foreign model: from its output's shape."""
    shape = output.type.tensor_type.shape.dim
    if len(shape) == 2 and shape[1].dim_value > 0:
        return int(shape[1].dim_value)
    raise InputError(
        f"{path}: the output {output.name.removeprefix('model/')!r} has no fixed shape (batch, D)",
        tip="export it with a fixed embedding dimension, pooled to two axes",
    )


def _side(path: Path) -> Foreign:
    try:
        text = path.read_bytes()[: MAX_SIDE_BYTES + 1]
        raw: Any = json.loads(text)
        entries: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()
        }
        told = Foreign(**entries)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a preprocessing file: {error}") from None
    wrong = [
        name
        for name, right in (
            ("format", told.format == 1),
            ("layout", told.layout in {"NCHW", "NHWC"}),
            ("channels", told.channels in {"RGB", "BGR"}),
            ("scale", _numbers((told.scale,), 1)),
            ("mean", _numbers(told.mean, 3)),
            ("std", _numbers(told.std, 3) and all(told.std)),
            ("output", told.output is None or isinstance(told.output, str)),
            ("normalise", isinstance(told.normalise, bool)),
        )
        if not right
    ]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} has a wrong value: {getattr(told, wrong[0])!r}")
    return told


def _numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    )
