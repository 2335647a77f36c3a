"""ONNX models built by hand, and images to run them on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compatctl.data import Preprocessing
from compatctl.encoder import ImageInput

SIDE = 16
DIM = 8
SMALL = ImageInput(name="image", preprocessing=Preprocessing(height=SIDE, width=SIDE))


def draw(seed: int, side: int = 40) -> Image.Image:
    """A deterministic image with coloured boxes, so that embeddings differ."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    for _ in range(4):
        left, top, width, height = rng.integers(2, side // 2, 4).tolist()
        colour = tuple(rng.integers(0, 256, 3).tolist())
        image.paste(colour, (left, top, left + width, top + height))
    return image


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    *,
    given: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    weights: dict[str, NDArray[np.generic]] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of these nodes; by default uint8 images in, ``embedding`` (batch, DIM) out."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        list(given) or [value("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        list(outputs) or [value("embedding", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def value(name: str, kind: int, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    """A named and typed value of a graph."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def projection(seed: int, width: int = 3, dim: int = DIM) -> NDArray[np.float32]:
    """A (width, dim) matrix with positive entries."""
    return np.random.default_rng(seed).uniform(0.1, 1.0, (width, dim)).astype(np.float32)


def by_hand(
    last: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[np.generic]] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """Images -> mean colour -> ``raw`` (batch, DIM) -> the nodes ``last``, which give embedding."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["colour"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["colour", "weight"], ["raw"]),
        *last,
    ]
    return graph_model(nodes, weights={"weight": projection(0), **(weights or {})}, **more)


UNIT = helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=-1, p=2)


def metadata(dim: int = DIM, **change: object) -> str:
    """The text under the metadata key of a by-hand model."""
    size = {"height": SIDE, "width": SIDE, "resize": "bicubic", "fit": "crop"}
    contract = {"format": 1, "dim": dim, "inputs": [{"name": "image", **size}], **change}
    return json.dumps(contract)


def save(model: onnx.ModelProto, path: Path, text: str | None = None) -> Path:
    """Write a model as it is, with this text under the metadata key."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.metadata_props.add(key="compatctl", value=metadata() if text is None else text)
    path.write_bytes(copy.SerializeToString())
    return path
