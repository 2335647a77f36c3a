"""Image models that compatctl did not make: wrapped by their preprocessing file, and sealed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compatctl.data import WHITE, CropOffset, Fit, Preprocessing, Resize
from compatctl.encoder.graphs import graph_inputs, inline_functions, prefixed_graph
from compatctl.encoder.images import IMAGE, ImageInput
from compatctl.encoder.inputs import BATCH
from compatctl.encoder.metadata import (
    OUTPUT,
    Contract,
    has_contract,
    read_contract,
    sidecar_path,
)
from compatctl.encoder.onnx_safety import node_count, opset_version, parse_model, read_bytes
from compatctl.encoder.sealing import sealed_bytes
from compatctl.encoder.session import Session
from compatctl.errors import InputError
from compatctl.files import read_json

MAX_SIDECAR_BYTES = 1 << 16
OLDEST_OPSET = 7
"""Earlier operators do not broadcast as numpy does."""

_BYTE_RANGE = 10.0
"""Scaled pixels above it are taken for 0 .. 255, others for 0 .. 1."""

_WIDEST, _NARROWEST = 600.0, 0.5
"""Limits on the width of a model's input range."""

_PREFIX = "model/"
_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8)
"""Of images that a model takes."""


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """A preprocessing file: ``(pixels * scale - mean) / std`` in the model's own layout.

    Pixels are 0 .. 255; ``mean`` and ``std`` are in the order of ``channels``; ``output`` names the
    embedding where there are several outputs; ``normalise``: divide each row by its norm, unless
    the graph does so already; ``unusual``: accept values that look like a mistake.

    Raises:
        InputError: an entry of another type or range, or values that look like a mistake.
    """

    format: int
    height: int
    width: int
    resize: Resize = "bicubic"
    fit: Fit = "crop"
    crop_share: float = 1.0
    crop_offset: CropOffset | None = None
    border: tuple[int, ...] = WHITE
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    output: str | None = None
    normalise: bool = True
    unusual: bool = False

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("format", self.format == 1, "1, the one that this version reads"),
            ("layout", self.layout in {"NCHW", "NHWC"}, "NCHW or NHWC"),
            ("channels", self.channels in {"RGB", "BGR"}, "RGB or BGR"),
            ("scale", _numbers((self.scale,), 1) and self.scale != 0, "a number, not 0"),
            ("mean", _numbers(self.mean, 3), "3 numbers"),
            ("std", _numbers(self.std, 3) and min(self.std) > 0, "3 numbers over 0"),
            ("output", self.output is None or isinstance(self.output, str), "an output's name"),
            ("normalise", isinstance(self.normalise, bool), "true or false"),
            ("unusual", isinstance(self.unusual, bool), "true or false"),
        ):
            if not valid:
                raise InputError(f"{name} must be {expected}; got {getattr(self, name)!r}")
        if not self.unusual:
            _check_range(self.scale, self.mean, self.std)

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that cannot be in the graph."""
        return Preprocessing(
            height=self.height,
            width=self.width,
            resize=self.resize,
            fit=self.fit,
            crop_share=self.crop_share,
            crop_offset=self.crop_offset,
            border=self.border,
        )


def read_model_bytes(path: Path, preprocessing: Path | None = None) -> bytes:
    """The sealed bytes of a model: the file itself, or another model wrapped by ``preprocessing``.

    The default is NAME.preprocessing.json beside the file. A sealed file needs none.

    Raises:
        InputError: no such file, not ONNX, or not sealed and without a usable preprocessing file.
    """
    data = read_bytes(path)
    model = parse_model(path, data)
    if has_contract(model):
        if preprocessing is not None:
            raise InputError(
                f"{path} carries its own preprocessing, which {preprocessing} cannot replace",
                tip="leave the preprocessing file out",
            )
        return data
    sidecar = preprocessing or sidecar_path(path)
    if preprocessing is None and not sidecar.is_file():
        read_contract(path, model)  # raises the error that says what is missing
    return wrap(path, model, read_spec(sidecar))


def read_spec(path: Path) -> ImportSpec:
    """Read a preprocessing file.

    Raises:
        InputError: it is missing or not JSON, or an entry is unknown, missing or wrong.
    """
    raw = read_json(path, MAX_SIDECAR_BYTES)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a preprocessing file is one JSON object")
    known = [field.name for field in fields(ImportSpec)]
    unknown = sorted(set(raw) - set(known))
    missing = [name for name in known[:3] if name not in raw]
    if unknown or missing:
        raise InputError(
            f"{path}: {'unknown' if unknown else 'missing'} entry {(unknown or missing)[0]!r}",
            tip=f"the entries are {', '.join(known)}",
        )
    entries: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    try:
        spec = ImportSpec(**entries)
        _ = spec.preprocessing
    except InputError as error:
        raise InputError(f"{path}: {error.message}", tip=error.tip) from None
    return spec


def wrap(path: Path, model: onnx.ModelProto, spec: ImportSpec) -> bytes:
    """The sealed bytes of ``model`` between the nodes that ``spec`` describes."""
    model = inline_functions(path, model)
    if (opset := opset_version(model)) < OLDEST_OPSET:
        raise InputError(
            f"{path}: operator set {opset} is too old; it must be at least {OLDEST_OPSET}",
            tip="export it again, or raise its operator set with onnx.version_converter",
        )
    feed, embedding = _input_and_output(path, model, spec)
    graph = prefixed_graph(model, _PREFIX)
    nodes = [
        *_preprocessing_nodes(spec, _PREFIX + feed.name, feed.type.tensor_type.elem_type),
        *graph.node,
        *_output_nodes(spec, _PREFIX + embedding.name, embedding.type.tensor_type.elem_type),
    ]
    for field in ("node", "input", "output"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    constants = {"scale": spec.scale, "mean": spec.mean, "std": spec.std}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    if spec.channels == "BGR":
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    image = ImageInput(name=IMAGE, preprocessing=spec.preprocessing)
    graph.input.append(image.value_info())
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, None]))
    wrapped = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=graph
    )
    data = wrapped.SerializeToString()
    (dim,) = Session(path, data, nodes=node_count(path, wrapped)).dims([OUTPUT], [image])
    wrapped.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dim
    return sealed_bytes(wrapped, Contract(dim=dim, inputs=(image,)))


def _input_and_output(
    path: Path, model: onnx.ModelProto, spec: ImportSpec
) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """The model's input and its embedding."""
    inputs, outputs = graph_inputs(model.graph), [value.name for value in model.graph.output]
    if not (spec.output in outputs or (spec.output is None and len(outputs) == 1)):
        raise InputError(
            f"{path}: its outputs are {', '.join(outputs)}; the preprocessing file says "
            f"{spec.output!r}",
            tip='name the embedding: write "output": "..." into the preprocessing file',
        )
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in _TYPES:
        raise InputError(
            f"{path}: expected one input, images in float32, float16, float64 or uint8; it has "
            f"{', '.join(map(_typed_name, inputs)) or 'none'}",
            tip="export the part of it that takes images, with one of these types",
        )
    untouched = (spec.scale, set(spec.mean), set(spec.std)) == (1.0, {0.0}, {1.0})
    if inputs[0].type.tensor_type.elem_type == TensorProto.UINT8 and not untouched:
        raise InputError(
            f"{path}: its input is {_typed_name(inputs[0])}, scaled pixels are no bytes",
            tip='leave "scale", "mean" and "std" out of the preprocessing file',
        )
    sides = {"C": 3, "H": spec.height, "W": spec.width}
    axes = inputs[0].type.tensor_type.shape.dim
    shape = [axis.dim_value if axis.HasField("dim_value") else None for axis in axes]
    expected = [sides.get(letter) for letter in spec.layout]
    fits = len(axes) == 4 and all(
        a in {None, b} for a, b in zip(shape[1:], expected[1:], strict=True)
    )
    if axes and not fits:
        layout = f"{spec.layout} {expected[1:]}"
        raise InputError(f"{path}: its input is {shape}; the preprocessing file says {layout}")
    return inputs[0], model.graph.output[outputs.index(spec.output or outputs[0])]


def _typed_name(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return f"{value.name} ({kind})"


def _output_nodes(spec: ImportSpec, embedding: str, kind: int) -> list[onnx.NodeProto]:
    """From the embedding of the wrapped graph, of the type ``kind``, to float32 unit rows."""
    operator = "LpNormalization" if spec.normalise else "Identity"
    if kind not in {TensorProto.FLOAT16, TensorProto.DOUBLE}:
        return [helper.make_node(operator, [embedding], [OUTPUT])]
    return [
        helper.make_node("Cast", [embedding], ["single"], to=TensorProto.FLOAT),
        helper.make_node(operator, ["single"], [OUTPUT]),
    ]


def _preprocessing_nodes(spec: ImportSpec, feed: str, kind: int) -> list[onnx.NodeProto]:
    """From uint8 NHWC RGB to ``feed``, the input of the wrapped graph, of the type ``kind``."""
    swap = spec.channels == "BGR"
    nodes = [helper.make_node("Gather", [IMAGE, "order"], ["ordered"], axis=3)] if swap else []
    nodes += [
        helper.make_node("Cast", ["ordered" if swap else IMAGE], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["ready"]),
    ]
    ready = "ready"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [ready], ["typed"], to=kind))
        ready = "typed"
    if spec.layout == "NCHW":
        return [*nodes, helper.make_node("Transpose", [ready], [feed], perm=[0, 3, 1, 2])]
    return [*nodes, helper.make_node("Identity", [ready], [feed])]


def _check_range(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse mean and std copied from a model with pixels of another range.

    A model's input is a few units wide (torchvision: -2.1 to 2.6), or as wide as bytes are; and a
    mean lies between the darkest and the brightest pixel.

    Raises:
        InputError: they do not fit ``scale``; the message proposes a correction.
    """
    brightest = 255.0 * scale
    low, high = sorted((0.0, brightest))
    widths = [abs(brightest) / deviation for deviation in std]
    as_bytes = abs(brightest) > _BYTE_RANGE
    small_mean = as_bytes and any(mean) and max(map(abs, mean)) <= 1.0
    outside = not all(low <= value <= high for value in mean)
    if not (small_mean or outside or max(widths) > _WIDEST or min(widths) < _NARROWEST):
        return
    if as_bytes and max(map(abs, (*mean, *std))) <= 1.0:
        correction = f'"scale": {1 / 255}: mean and std are those of pixels 0 .. 1'
    elif not as_bytes and max(mean) <= 255.0:
        correction = '"scale": 1: mean and std are those of pixels 0 .. 255'
    else:
        correction = "mean and std of the scaled pixels"
    raise InputError(
        f"mean {list(mean)} and std {list(std)} do not fit pixels from 0 to {brightest:g}, "
        f"which the scale {scale:g} gives: a pixel would become a value from "
        f"{min((low - m) / s for m, s in zip(mean, std, strict=True)):.4g} to "
        f"{max((high - m) / s for m, s in zip(mean, std, strict=True)):.4g}",
        tip=f'write {correction}; or "unusual": true, if the model was trained that way',
    )


def _numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(value) in {int, float} and math.isfinite(value) for value in values)
    )
