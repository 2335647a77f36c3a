"""A model that takes batches of one size, as one that takes any number of images.

The model becomes the body of a ``Scan``: it runs once for each block of images. The last block is
filled with images from the start of the batch, and their rows are cut off again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compatctl.core.arrays import Vectors
from compatctl.encoder.images import IMAGE, ImageInput
from compatctl.encoder.inputs import BATCH
from compatctl.encoder.metadata import OUTPUT
from compatctl.errors import InputError

OLDEST_OPSET = 11
"""The first operator set with this form of ``Scan``, ``Range`` and ``Slice``."""

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Sizes of a fixed batch that are tried, after the one that the model declares."""

_BLOCK, _BLOCK_ROWS = "scan/block", "scan/block_rows"


@dataclass(frozen=True, kw_only=True)
class FixedBatch:
    """A model takes ``size`` images at once and gives ``dim`` dimensions."""

    size: int
    dim: int


def find_fixed_batch(run: Callable[[int], Vectors], declared: int) -> FixedBatch | None:
    """The batch that a model takes, or None if it takes none of ``declared`` and ``SIZES``.

    ``run`` gives the output for so many images, or raises an InputError; ``declared`` is the size
    in the model's file, 0 if it is free.
    """
    sizes = (declared, *SIZES) if 1 <= declared <= SIZES[-1] else SIZES
    for size in dict.fromkeys(sizes):
        try:
            rows = run(size)
        except InputError:
            continue
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and len(rows) == size:
            return FixedBatch(size=size, dim=int(rows.shape[1]))
    return None


def any_batch(model: onnx.ModelProto, image: ImageInput, batch: FixedBatch) -> onnx.ModelProto:
    """``model``, which takes ``batch.size`` images at once, as one that takes any number.

    It has the input ``image``, the output ``embedding`` (batch, D) and at least the operator set
    ``OLDEST_OPSET``.
    """
    constants = {
        "zero": np.array([0]),
        "none": np.array(0),
        "one": np.array(1),
        "size": np.array(batch.size),
        "rest": np.array(batch.size - 1),
        "block_shape": np.array([-1, batch.size, *image.shape]),
        "row_shape": np.array([-1, batch.dim]),
    }
    scan = _node("Scan", ["batches"], "found")
    scan.attribute.extend(
        [
            helper.make_attribute("num_scan_inputs", 1),
            helper.make_attribute("body", _body(model, image, batch)),
        ]
    )
    nodes = [
        _node("Shape", [IMAGE], "shape"),
        _node("Gather", ["shape", "none"], "count"),
        _node("Add", ["count", "rest"], "over"),
        _node("Div", ["over", "size"], "blocks"),
        _node("Mul", ["blocks", "size"], "filled"),
        _node("Range", ["none", "filled", "one"], "positions"),
        _node("Mod", ["positions", "count"], "repeated"),
        _node("Gather", [IMAGE, "repeated"], "images"),
        _node("Reshape", ["images", "block_shape"], "batches"),
        scan,
        _node("Reshape", ["found", "row_shape"], "rows"),
        _node("Gather", ["shape", "zero"], "end"),
        _node("Slice", ["rows", "zero", "end"], OUTPUT),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [image.value_info()],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, batch.dim])],
        [numpy_helper.from_array(value, _name(name)) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _body(model: onnx.ModelProto, image: ImageInput, batch: FixedBatch) -> onnx.GraphProto:
    """The model's graph from a block of images to its rows; no name is one of the outer graph's."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    for node in graph.node:
        node.input[:] = [_BLOCK if name == IMAGE else name for name in node.input]
        node.output[:] = [_BLOCK_ROWS if name == OUTPUT else name for name in node.output]
    for field in ("input", "output"):
        graph.ClearField(field)
    shape = [batch.size, *image.shape]
    graph.input.append(helper.make_tensor_value_info(_BLOCK, TensorProto.UINT8, shape))
    rows = helper.make_tensor_value_info(_BLOCK_ROWS, TensorProto.FLOAT, [batch.size, batch.dim])
    graph.output.append(rows)
    return graph


def _node(operator: str, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(operator, [*map(_name, inputs)], [_name(output)])


def _name(name: str) -> str:
    return name if name in {IMAGE, OUTPUT} else f"scan/{name}"
