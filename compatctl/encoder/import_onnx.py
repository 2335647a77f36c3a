"""Image models that compatctl did not make: wrapped by their preprocessing file, and sealed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compatctl.data import WHITE, CropOffset, Fit, Preprocessing, Resize
from compatctl.encoder.fixed_batch import OLDEST_OPSET as SCAN_OPSET
from compatctl.encoder.fixed_batch import any_batch, find_fixed_batch
from compatctl.encoder.foreign_entries import entries_tip
from compatctl.encoder.graphs import graph_inputs, inline_functions, prefixed_graph
from compatctl.encoder.images import IMAGE, ImageInput
from compatctl.encoder.import_text import TextImportSpec, derive_spec, takes_texts, wrap_text
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
from compatctl.notices import notice

MAX_SIDECAR_BYTES = 1 << 16
OLDEST_OPSET = 7
"""Earlier operators do not broadcast as numpy does."""

_BYTE_RANGE = 10.0
"""Scaled pixels above it are taken for 0 .. 255, others for 0 .. 1."""

_WIDEST, _NARROWEST = 600.0, 0.5
"""Limits on the width of a model's input range."""

IMAGE_TYPES = {"float32", "float16", "float64", "uint8"}
"""Types of the pixels that a model of another tool may take."""

_REFUSED_TIP = (
    "compatctl inspect shows its inputs; height, width and layout (NCHW or NHWC) of the "
    "preprocessing file must be those that it was exported for"
)
_PREFIX = "model/"
_OUTPUT_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UNDEFINED}
_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8)
"""Of images that a model takes."""


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """A preprocessing file: ``(pixels * scale - mean) / std`` in the model's own layout.

    Pixels are 0 .. 255; ``layout`` is where the model's input has the three channels, by default
    where its shape has a 3; ``mean`` and ``std`` are in the order of ``channels``; ``output`` names
    the embedding where there are several outputs; ``normalise``: divide each row by its norm,
    unless the graph does so already; ``unusual``: accept values that look like a mistake.

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
    layout: Literal["NCHW", "NHWC"] | None = None
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
            ("layout", self.layout in {None, "NCHW", "NHWC"}, "NCHW or NHWC"),
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
        return Preprocessing.of(self)


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
        if takes_texts(model):
            return wrap_text(path, model, *derive_spec(path, model))
        read_contract(path, model)  # raises the error that says what is missing
    raw = _read_object(sidecar)
    if raw.get("modality") == "text":
        spec = TextImportSpec.from_json(sidecar, raw)
        return wrap_text(path, model, spec, sidecar.parent / spec.tokenizer)
    if takes_texts(model) and raw.get("modality", "image") == "image":
        raise InputError(
            f"{sidecar} describes images, and {path} takes texts",
            tip='write "modality": "text" into it, with max_length and pooling',
        )
    return wrap(path, model, _image_spec(sidecar, raw))


def read_spec(path: Path) -> ImportSpec:
    """Read a preprocessing file.

    Raises:
        InputError: it is missing or not JSON, or an entry is unknown, missing or wrong.
    """
    return _image_spec(path, _read_object(path))


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a preprocessing file."""
    raw = read_json(path, MAX_SIDECAR_BYTES)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a preprocessing file is one JSON object")
    return raw


def _image_spec(path: Path, raw: dict[str, Any]) -> ImportSpec:
    """What the object of a preprocessing file of images says."""
    if (modality := raw.pop("modality", "image")) != "image":
        raise InputError(f"{path}: modality must be image or text; got {modality!r}")
    known = [field.name for field in fields(ImportSpec)]
    unknown = sorted(set(raw) - set(known))
    missing = [name for name in known[:3] if name not in raw]
    if unknown or missing:
        raise InputError(
            f"{path}: {'unknown' if unknown else 'missing'} entry "
            f"{', '.join(map(repr, unknown or missing))}",
            tip=entries_tip(unknown, known),
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
    feed = _image_input(path, model)
    embedding = _embedding_output(path, model, spec)
    spec = replace(spec, layout=_layout(path, feed, spec))
    _check_feed(path, feed, spec)
    image = ImageInput(name=IMAGE, preprocessing=spec.preprocessing)
    declared = _sides(feed)[0] if _sides(feed) else None
    wrapped = _between_nodes(model, spec, feed, embedding, image, flatten=False)
    if len(_sides(embedding)) != 2 and _gives_maps(path, model, wrapped, image, declared):
        wrapped = _between_nodes(model, spec, feed, embedding, image, flatten=True)
    wrapped = _for_any_batch(path, wrapped, image, declared)
    dim = wrapped.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return sealed_bytes(wrapped, Contract(dim=dim, inputs=(image,)))


def _between_nodes(
    model: onnx.ModelProto,
    spec: ImportSpec,
    feed: onnx.ValueInfoProto,
    embedding: onnx.ValueInfoProto,
    image: ImageInput,
    *,
    flatten: bool,
) -> onnx.ModelProto:
    """``model`` between the nodes that prepare its input and those that make unit rows."""
    graph = prefixed_graph(model, _PREFIX)
    nodes = [
        *_preprocessing_nodes(spec, _PREFIX + feed.name, feed.type.tensor_type.elem_type),
        *graph.node,
        *_output_nodes(spec, embedding, flatten=flatten),
    ]
    for field in ("node", "input", "output"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    constants = {"scale": spec.scale, "mean": spec.mean, "std": spec.std}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    if spec.channels == "BGR":
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    graph.input.append(image.value_info())
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, None]))
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=graph
    )


def _gives_maps(
    path: Path,
    model: onnx.ModelProto,
    wrapped: onnx.ModelProto,
    image: ImageInput,
    declared: int | None,
) -> bool:
    """Whether its output has more than two axes, and one vector an image all the same: some run
    shows it, as a declared shape may have free axes, or be missing.

    Raises:
        InputError: there are several vectors an image.
    """
    session = Session(path, wrapped.SerializeToString(), nodes=node_count(path, wrapped))
    for size in dict.fromkeys((2, declared or 1, 1)):
        try:
            (out,) = session.run([OUTPUT], {image.name: image.samples(size)})
        except InputError:
            continue
        if np.ndim(out) > 2 and not _is_flat(out.shape):
            raise _many_vectors(path, model, f"of {list(out.shape)}")
        return np.ndim(out) > 2
    return False


def _for_any_batch(
    path: Path, wrapped: onnx.ModelProto, image: ImageInput, declared: int | None
) -> onnx.ModelProto:
    """The model with the dimension of its output, for any number of images.

    One that takes batches of one size runs once for each block of so many, with a notice.

    Raises:
        InputError: it runs on no batch, or gives something else than a vector an image.
    """
    try:
        session = Session(path, wrapped.SerializeToString(), nodes=node_count(path, wrapped))
    except InputError as error:
        raise InputError(error.message, tip=error.tip or _REFUSED_TIP) from error
    try:
        (dim,) = session.dims([OUTPUT], [image])
    except InputError:
        fixed = find_fixed_batch(
            lambda size: session.run([OUTPUT], {image.name: image.samples(size)})[0],
            declared=declared or 0,
        )
        if fixed is None or opset_version(wrapped) < SCAN_OPSET:
            raise
        what = "models that take a fixed number of images at once, which run block by block"
        notice("fixed-batch", path, what, [f"{path.name}: {fixed.size}"])
        return any_batch(wrapped, image, fixed)
    wrapped.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dim
    return wrapped


def _image_input(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input of a model of images."""
    inputs = graph_inputs(model.graph)
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in _TYPES:
        raise InputError(
            f"{path}: expected one input, images in float32, float16, float64 or uint8; it has "
            f"{', '.join(map(_typed_name, inputs)) or 'none'}",
            tip="export the part of it that takes images, with one of these types",
        )
    return inputs[0]


def _embedding_output(path: Path, model: onnx.ModelProto, spec: ImportSpec) -> onnx.ValueInfoProto:
    """The output that ``spec`` names, or the only one."""
    outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in model.graph.output}
    name = next(iter(outputs)) if spec.output is None and len(outputs) == 1 else spec.output
    if name not in outputs:
        raise InputError(
            f"{path}: its outputs are {', '.join(map(_shaped_name, outputs.values()))}; the "
            f"preprocessing file says {spec.output!r}",
            tip='name the embedding: write "output": "..." into the preprocessing file',
        )
    kind = outputs[name].type.tensor_type.elem_type
    if kind not in _OUTPUT_TYPES:
        raise InputError(
            f"{path}: its output {_typed_name(outputs[name])} has no floating point numbers",
            tip="name another output, or export the model up to its embedding",
        )
    if len(_sides(outputs[name])) > 2 and not _may_be_flat(outputs[name]):
        raise _many_vectors(path, model, _shaped_name(outputs[name]))
    return outputs[name]


def _sides(value: onnx.ValueInfoProto) -> list[int | None]:
    """The declared length of each axis, None for a free one; none for an undeclared shape."""
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in axes]


def _many_vectors(path: Path, model: onnx.ModelProto, output: str) -> InputError:
    """The error of an output that is no vector an image, as (n, D, 7, 7) or (n, T, D)."""
    flat = [value.name for value in model.graph.output if len(_sides(value)) == 2]
    named = f'name another output, as in "output": "{flat[0]}"; or ' if flat else ""
    return InputError(
        f"{path}: its output {output} has more than one vector an image",
        tip=f"{named}export it with pooling, so that the output has two axes: images, dimensions",
    )


def _may_be_flat(value: onnx.ValueInfoProto) -> bool:
    """Whether a map may have one place, by what is declared, so that it is a vector: (n, D, 1, 1),
    (n, 1, D), or free axes."""
    return sum(side not in {1, None} for side in _sides(value)[1:]) <= 1


def _is_flat(shape: Sequence[int]) -> bool:
    """Whether so many numbers an image, the sides after the first, are one vector."""
    return sum(side != 1 for side in shape[1:]) <= 1


def _layout(path: Path, feed: onnx.ValueInfoProto, spec: ImportSpec) -> Literal["NCHW", "NHWC"]:
    """The layout that ``spec`` says, or the one whose channels are 3 in the declared shape."""
    if spec.layout is not None:
        return spec.layout
    sides = _sides(feed)
    if len(sides) == 4 and sides[3] == 3 and sides[1] != 3:
        what = "inputs read as NHWC, by their shape"
        notice("layout", path, what, [_shaped_name(feed)], 'to say so, write "layout": "NHWC"')
        return "NHWC"
    return "NCHW"


def _check_feed(path: Path, feed: onnx.ValueInfoProto, spec: ImportSpec) -> None:
    """Refuse an input of another shape than ``spec`` says, or scaled pixels for bytes."""
    untouched = (spec.scale, set(spec.mean), set(spec.std)) == (1.0, {0.0}, {1.0})
    if feed.type.tensor_type.elem_type == TensorProto.UINT8 and not untouched:
        raise InputError(
            f"{path}: its input is {_typed_name(feed)}, scaled pixels are no bytes",
            tip='leave "scale", "mean" and "std" out of the preprocessing file',
        )
    lengths = {"C": 3, "H": spec.height, "W": spec.width}
    expected = [lengths.get(letter) for letter in spec.layout or ""]
    sides = _sides(feed)
    fits = len(sides) == 4 and all(
        side in {None, length} for side, length in zip(sides[1:], expected[1:], strict=True)
    )
    if sides and not fits:
        layout = f"{spec.layout} {expected[1:]}"
        raise InputError(
            f"{path}: its input is {sides}; the preprocessing file says {layout}",
            tip=_feed_tip(sides),
        )


def _feed_tip(sides: Sequence[int | None]) -> str:
    """What to do about an input of another shape than the preprocessing file says."""
    if len(sides) != 4:
        return "export it with four axes: images, channels, height and width"
    if 3 not in {sides[1], sides[3]}:
        return "only models of images with three channels are read"
    first = 2 if sides[1] == 3 else 1
    height, width = (side or "..." for side in sides[first : first + 2])
    return f'write "height": {height}, "width": {width} into it'


def _shaped_name(value: onnx.ValueInfoProto) -> str:
    sides = ", ".join("?" if side is None else str(side) for side in _sides(value))
    return f"{value.name} ({sides})"


def _typed_name(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return f"{value.name} ({kind})"


def _output_nodes(
    spec: ImportSpec, embedding: onnx.ValueInfoProto, *, flatten: bool
) -> list[onnx.NodeProto]:
    """From the embedding of the wrapped graph to float32 unit rows."""
    nodes, last = [], _PREFIX + embedding.name
    if flatten:
        nodes.append(helper.make_node("Flatten", [last], ["flat"], axis=1))
        last = "flat"
    if embedding.type.tensor_type.elem_type in {TensorProto.FLOAT16, TensorProto.DOUBLE}:
        nodes.append(helper.make_node("Cast", [last], ["single"], to=TensorProto.FLOAT))
        last = "single"
    operator = "LpNormalization" if spec.normalise else "Identity"
    return [*nodes, helper.make_node(operator, [last], [OUTPUT])]


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
