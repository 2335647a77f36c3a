"""Stored vectors that an encoder holds: the anchors that its attention takes from, row by row.

The attention is ``softmax(query @ keys) @ vectors``, where ``keys`` (K, S) and ``vectors`` (S, D)
are weights in the file: one column and one row an anchor. Without them the anchor is not attended
to; the others' shares grow. Several tables are there where encoders were fused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from compatctl.encoder import contract
from compatctl.errors import InputError

_OURS = "attention.stored"
"""How the name of a table ends that fine-tuning wrote, whatever was put before it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldVectors:
    """One table of an encoder: ``vectors`` (S, D) float32, under ``name``.

    ``ours``: fine-tuning wrote it, so that each row was a stored vector of the gallery; else it is
    a weight of the same form.
    """

    name: str
    vectors: NDArray[np.float32]
    ours: bool


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A table's weights in the graph; ``keys`` is empty where they are not of the known form."""

    vectors: onnx.TensorProto
    keys: onnx.TensorProto | None


def held_vectors(data: bytes, path: Path) -> tuple[HeldVectors, ...]:
    """The tables of an encoder in its sealed bytes; ``path``: where they were read, for errors.

    Raises:
        InputError: it is not an encoder.
    """
    found = _tables(contract.parse(path, data))
    return tuple(
        HeldVectors(
            name=one.vectors.name,
            vectors=numpy_helper.to_array(one.vectors).astype(np.float32),
            ours=one.vectors.name.endswith(_OURS),
        )
        for one in found
    )


def without_vectors(data: bytes, path: Path, drop: Mapping[str, NDArray[np.bool_]]) -> bytes:
    """The encoder without the rows that ``drop`` marks, (S,) by the name of the table.

    The same bytes and rows give the same bytes; all other weights and the metadata stay.

    Raises:
        InputError: no row of a table would stay, or its keys are not in a form that is known.
    """
    model = contract.parse(path, data)
    for one in _tables(model):
        gone = drop.get(one.vectors.name)
        if gone is None or not gone.any():
            continue
        if gone.all() or one.keys is None:
            why = "no row of it would stay" if gone.all() else "its keys are not where they were"
            raise InputError(
                f"{path.name} holds vectors in {one.vectors.name} that cannot be taken out: {why}",
                tip="fine-tune again without these items, deploy that, and remove them then",
            )
        _replace(one.vectors, numpy_helper.to_array(one.vectors)[~gone])
        _replace(one.keys, numpy_helper.to_array(one.keys)[:, ~gone])
    return bytes(model.SerializeToString(deterministic=True))


def _replace(tensor: onnx.TensorProto, values: NDArray[np.float32]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _tables(model: onnx.ModelProto) -> list[_Table]:
    """Every weight (S, D) that a softmax is multiplied with."""
    graph = model.graph
    weights = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    found = []
    for node in graph.node:
        vectors = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if vectors is None or len(vectors.dims) != 2 or vectors.data_type != TensorProto.FLOAT:
            continue
        soft = makers.get(node.input[0])
        if soft is None or soft.op_type != "Softmax":
            continue
        scores = makers.get(soft.input[0])
        keys = weights.get(scores.input[1]) if scores and scores.op_type == "MatMul" else None
        known = (
            keys is not None
            and list(keys.dims)[1:] == [vectors.dims[0]]
            and uses[keys.name] == uses[vectors.name] == 1
        )
        found.append(_Table(vectors=vectors, keys=keys if known else None))
    named = {one.vectors.name for one in found}
    found += [
        _Table(vectors=one, keys=None)
        for one in graph.initializer
        if one.name.endswith(_OURS) and one.name not in named and len(one.dims) == 2
    ]
    return found
