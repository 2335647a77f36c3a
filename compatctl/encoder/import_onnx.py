"""Foreign ONNX files: wrapped by what their preprocessing file says, then sealed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compatctl.data import Fit, Preprocessing, Resize
from compatctl.encoder import contract, onnx_safety
from compatctl.encoder.contract import BATCH, OUTPUT, Contract, EncoderInput
from compatctl.encoder.sealing import image_input, inlined, prefixed, sealed
from compatctl.encoder.session import Session
from compatctl.errors import InputError
from compatctl.files import read_json

IMAGE = "image"
MAX_SIDE_BYTES = 1 << 16
OLDEST_OPSET = 7
"""Before it, operators did not broadcast as numpy does."""

_OF_BYTES = 10.0
"""Pixels that reach beyond it are taken for 0 .. 255, others for 0 .. 1."""

_WIDEST, _NARROWEST = 600.0, 0.5
"""How wide the range of a model's input may be."""

_PREFIX = "model/"


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """A preprocessing file: ``(pixels * scale - mean) / std`` in the model's own layout.

    Pixels are 0 .. 255; ``mean`` and ``std`` are in the order of ``channels``; ``output`` names the
    embedding where there are several outputs; ``normalise``: divide each row by its norm, unless
    the graph does so already; ``unusual``: numbers that look like a mistake are meant.

    Raises:
        InputError: an entry of another type or range, or numbers that look like a mistake.
    """

    format: int
    height: int
    width: int
    resize: Resize = "bicubic"
    fit: Fit = "crop"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    output: str | None = None
    normalise: bool = True
    unusual: bool = False

    def __post_init__(self) -> None:
        for name, right, expected in (
            ("format", self.format == 1, "1, the one that this version reads"),
            ("layout", self.layout in {"NCHW", "NHWC"}, "NCHW or NHWC"),
            ("channels", self.channels in {"RGB", "BGR"}, "RGB or BGR"),
            ("scale", _numbers((self.scale,), 1) and self.scale != 0, "a number, not 0"),
            ("mean", _numbers(self.mean, 3), "3 numbers"),
            ("std", _numbers(self.std, 3) and all(one > 0 for one in self.std), "3 numbers over 0"),
            ("output", self.output is None or isinstance(self.output, str), "an output's name"),
            ("normalise", isinstance(self.normalise, bool), "true or false"),
            ("unusual", isinstance(self.unusual, bool), "true or false"),
        ):
            if not right:
                raise InputError(f"{name} must be {expected}; got {getattr(self, name)!r}")
        if not self.unusual:
            _refuse_mistakes(self.scale, self.mean, self.std)

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that stays outside the graph."""
        return Preprocessing(height=self.height, width=self.width, resize=self.resize, fit=self.fit)


def read_model_bytes(path: Path, preprocessing: Path | None = None) -> bytes:
    """The bytes that are the model: the file's own, or those of the wrapped foreign file.

    ``preprocessing`` describes a foreign file; where it is not given, NAME.preprocessing.json
    beside the model is taken if it is there. A sealed file needs none.

    Raises:
        InputError: no such file, not ONNX, or foreign without a usable preprocessing file.
    """
    data = onnx_safety.read_bytes(path)
    model = contract.parse(path, data)
    if contract.carries_metadata(model):
        if preprocessing is not None:
            raise InputError(
                f"{path} carries its own preprocessing, which {preprocessing} cannot replace",
                tip="leave the preprocessing file out",
            )
        return data
    side = preprocessing or contract.sidecar_path(path)
    if preprocessing is None and not side.is_file():
        contract.read(path, model)  # says what is missing
    return wrap(path, model, read_spec(side))


def read_spec(path: Path) -> ImportSpec:
    """A preprocessing file.

    Raises:
        InputError: missing, not JSON, an unknown, missing or wrong entry.
    """
    raw = read_json(path, MAX_SIDE_BYTES)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a preprocessing file is one JSON object")
    known = [one.name for one in fields(ImportSpec)]
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
    """The sealed bytes of a foreign model between the nodes that ``spec`` asks for."""
    model = inlined(path, model)
    opset = max(one.version for one in model.opset_import if one.domain in onnx_safety.DOMAINS)
    if opset < OLDEST_OPSET:
        raise InputError(
            f"{path}: operator set {opset} is too old, the oldest that can be wrapped is "
            f"{OLDEST_OPSET}",
            tip="export it again, or raise its operator set with onnx.version_converter",
        )
    target, gives = _ends(path, model, spec)
    graph = prefixed(model, _PREFIX)
    last = helper.make_node("LpNormalization" if spec.normalise else "Identity", [gives], [OUTPUT])
    nodes = [*_before(spec, target), *graph.node, last]
    for field in ("node", "input", "output"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(_constants(spec))
    size = spec.preprocessing
    graph.input.append(image_input(IMAGE, size))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, None]))
    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    made.graph.CopyFrom(graph)
    inputs = (EncoderInput(name=IMAGE, preprocessing=size),)
    data = made.SerializeToString()
    dim = Session(path, data, nodes=onnx_safety.node_count(path, made)).dim(inputs)
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dim
    return sealed(made, Contract(dim=dim, inputs=inputs))


def _ends(path: Path, model: onnx.ModelProto, spec: ImportSpec) -> tuple[str, str]:
    """The prefixed names of the value to feed and of the embedding."""
    takes, gives = contract.graph_inputs(model.graph), [one.name for one in model.graph.output]
    if spec.output is None and len(gives) == 1:
        output = gives[0]
    elif spec.output in gives:
        output = cast("str", spec.output)
    else:
        raise InputError(
            f"{path}: its outputs are {', '.join(gives)}; the preprocessing file says "
            f"{spec.output!r}",
            tip='name the embedding in the preprocessing file: "output": "..."',
        )
    if len(takes) != 1 or takes[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise InputError(
            f"{path}: expected one input, images in float32; it has "
            f"{', '.join(one.name for one in takes) or 'none'}"
        )
    sides = {"C": 3, "H": spec.height, "W": spec.width}
    axes = takes[0].type.tensor_type.shape.dim
    fixed = [axis.dim_value if axis.HasField("dim_value") else None for axis in axes]
    wanted = [sides.get(letter) for letter in spec.layout]
    if axes and (
        len(axes) != 4
        or any(a not in {None, b} for a, b in zip(fixed[1:], wanted[1:], strict=True))
    ):
        raise InputError(
            f"{path}: its input is {fixed}; the preprocessing file says {spec.layout} {wanted[1:]}"
        )
    return _PREFIX + takes[0].name, _PREFIX + output


def _constants(spec: ImportSpec) -> list[onnx.TensorProto]:
    values = {
        "scale": np.array(spec.scale, np.float32),
        "mean": np.array(spec.mean, np.float32),
        "std": np.array(spec.std, np.float32),
    }
    if spec.channels == "BGR":
        values["order"] = np.array([2, 1, 0], np.int64)
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def _before(spec: ImportSpec, target: str) -> list[onnx.NodeProto]:
    """From uint8 NHWC RGB to what the foreign graph takes."""
    swap = spec.channels == "BGR"
    nodes = [helper.make_node("Gather", [IMAGE, "order"], ["ordered"], axis=3)] if swap else []
    nodes += [
        helper.make_node("Cast", ["ordered" if swap else IMAGE], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["ready"]),
    ]
    if spec.layout == "NCHW":
        return [*nodes, helper.make_node("Transpose", ["ready"], [target], perm=[0, 3, 1, 2])]
    return [*nodes, helper.make_node("Identity", ["ready"], [target])]


def _refuse_mistakes(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse mean and std that were made for pixels of another range: everybody copies them.

    What a model takes is a few units wide (torchvision: -2.1 to 2.6), or as wide as bytes are; and
    a mean lies between the darkest and the brightest pixel.

    Raises:
        InputError: they do not go with ``scale``; the message says what may be meant.
    """
    brightest = 255.0 * scale
    low, high = sorted((0.0, brightest))
    widths = [abs(brightest) / one for one in std]
    whole = abs(brightest) > _OF_BYTES
    small_mean = whole and any(mean) and all(abs(one) <= 1.0 for one in mean)
    outside = not all(low <= one <= high for one in mean)
    if not (small_mean or outside or max(widths) > _WIDEST or min(widths) < _NARROWEST):
        return
    if whole and all(abs(one) <= 1.0 for one in (*mean, *std)):
        instead = f'"scale": {1 / 255}: the numbers are those of pixels 0 .. 1'
    elif not whole and all(one <= 255.0 for one in mean):
        instead = '"scale": 1: the numbers are those of pixels 0 .. 255'
    else:
        instead = "mean and std of the scaled pixels"
    raise InputError(
        f"mean {list(mean)} and std {list(std)} do not go with pixels from 0 to {brightest:g}, "
        f"which the scale {scale:g} gives: a pixel would become a number from "
        f"{min((low - m) / s for m, s in zip(mean, std, strict=True)):.4g} to "
        f"{max((high - m) / s for m, s in zip(mean, std, strict=True)):.4g}",
        tip=f'write {instead}; or "unusual": true, if the model was trained so',
    )


def _numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(one) in {int, float} and math.isfinite(one) for one in values)
    )
