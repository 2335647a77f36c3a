"""Stored vectors that an encoder holds: the attention of a version before 0.1.0, row by row.

No encoder of this version has them; ``remove`` takes erased items out of one that does. The
attention is ``softmax(query @ keys) @ vectors``, where ``keys`` (K, S) and ``vectors`` (S, D)
are weights in the file: one column and one row an anchor. Without them, attention skips the anchor
and the shares of the others grow. Fused encoders have several tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compatctl.core.arrays import Bools, Vectors
from compatctl.encoder.onnx_safety import parse_model
from compatctl.errors import InputError

_ANCHORS = "attention.stored"
"""The end of the name of a table that fine-tuning wrote; composition adds prefixes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldVectors:
    """One table of an encoder: ``vectors`` (S, D) float32, under ``name``.

    ``from_gallery``: fine-tuning wrote it, so each row was a stored vector of the gallery;
    otherwise it is a weight of the same form.
    """

    name: str
    vectors: Vectors
    from_gallery: bool


def held_vectors(data: bytes, path: Path) -> tuple[HeldVectors, ...]:
    """The tables in the sealed bytes of an encoder; ``path``: where they were read, for errors.

    Raises:
        InputError: it is not an encoder.
    """
    return tuple(
        HeldVectors(
            name=vectors.name,
            vectors=numpy_helper.to_array(vectors).astype(np.float32),
            from_gallery=vectors.name.endswith(_ANCHORS),
        )
        for vectors, _ in _tables(parse_model(path, data))
    )


def without_vectors(data: bytes, path: Path, masks: Mapping[str, Bools]) -> bytes:
    """The encoder without the rows in the mask (S,) of each table's name.

    The same bytes and masks give the same bytes; all other weights and the metadata stay.

    Raises:
        InputError: no row of a table would stay, or its keys are not of the known form.
    """
    model = parse_model(path, data)
    for vectors, keys in _tables(model):
        drop = masks.get(vectors.name)
        if drop is None or not drop.any():
            continue
        if drop.all() or keys is None:
            why = "no row would stay" if drop.all() else "the form of its keys is unknown"
            raise InputError(
                f"{path.name}: the vectors in {vectors.name} cannot be removed: {why}",
                tip="fine-tune again without these items, deploy that, then remove them",
            )
        _replace(vectors, numpy_helper.to_array(vectors)[~drop])
        _replace(keys, numpy_helper.to_array(keys)[:, ~drop])
    return bytes(model.SerializeToString(deterministic=True))


def _replace(tensor: onnx.TensorProto, values: Vectors) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _tables(model: onnx.ModelProto) -> list[tuple[onnx.TensorProto, onnx.TensorProto | None]]:
    """Every weight (S, D) that the output of a softmax is multiplied with, and its keys.

    The keys are None where they are not of the known form.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    tables: list[tuple[onnx.TensorProto, onnx.TensorProto | None]] = []
    for node in graph.node:
        vectors = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if vectors is None or len(vectors.dims) != 2 or vectors.data_type != TensorProto.FLOAT:
            continue
        softmax = producers.get(node.input[0])
        if softmax is None or softmax.op_type != "Softmax":
            continue
        scores = producers.get(softmax.input[0])
        keys = weights.get(scores.input[1]) if scores and scores.op_type == "MatMul" else None
        known = (
            keys is not None
            and list(keys.dims)[1:] == [vectors.dims[0]]
            and uses[keys.name] == uses[vectors.name] == 1
        )
        tables.append((vectors, keys if known else None))
    names = {vectors.name for vectors, _ in tables}
    tables += [
        (tensor, None)
        for tensor in graph.initializer
        if tensor.name.endswith(_ANCHORS) and tensor.name not in names and len(tensor.dims) == 2
    ]
    return tables
