"""Bridging: an encoder whose feature goes through a map to another model's space, in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compatctl.core.adapters import Adapter
from compatctl.data import Preprocessing
from compatctl.encoder import contract
from compatctl.encoder.contract import OUTPUT, Contract, EncoderInput
from compatctl.encoder.fusing import assembled, join
from compatctl.encoder.sealing import inlined, prefixed, sealed
from compatctl.errors import InputError


def bridge(data: bytes, path: Path, adapter: Adapter) -> bytes:
    """The sealed bytes of an encoder whose feature is ``adapter`` of the one of ``data``.

    ``data``: the sealed bytes of a model (F numbers); ``path``: where they were read, for errors.
    The same bytes and the same map give the same bytes.

    Raises:
        InputError: ``data`` is not an encoder, or its F is not the map's; numbers of the map that
            are not finite.
    """
    model = contract.parse(path, data)
    spec = contract.read(path, model)
    contract.check_signature(path, model, spec)
    model = inlined(path, model)
    takes = adapter.layers[0][0].shape[0]
    if spec.dim != takes:
        raise InputError(f"{path} ends in {spec.dim} numbers; the map takes {takes}")
    merged = onnx.GraphProto(name="encoder")
    names: dict[Preprocessing, str] = {}
    join(merged, "new", prefixed(model, "new/"), spec, names)
    last = _append(merged, f"new/{OUTPUT}", adapter)
    merged.node.append(helper.make_node("LpNormalization", [last], [OUTPUT]))
    made = Contract(
        dim=adapter.layers[-1][0].shape[1],
        inputs=tuple(EncoderInput(name=name, preprocessing=size) for size, name in names.items()),
    )
    return sealed(assembled(merged, [model], made), made)


def _append(merged: onnx.GraphProto, value: str, adapter: Adapter) -> str:
    """Add the map's layers behind ``value``; the name of what comes out, not yet a unit row."""
    for at, (matrix, bias) in enumerate(adapter.layers):
        if not (np.isfinite(matrix).all() and np.isfinite(bias).all()):
            raise InputError("the map has numbers that are not finite")
        for name, numbers in ((f"map_{at}", matrix), (f"bias_{at}", bias)):
            whole = np.ascontiguousarray(numbers, np.float32)
            merged.initializer.append(numpy_helper.from_array(whole, name))
        if at:
            merged.node.append(helper.make_node("Relu", [value], [f"hidden_{at}"]))
            value = f"hidden_{at}"
        node = helper.make_node("Gemm", [value, f"map_{at}", f"bias_{at}"], [f"mapped_{at}"])
        merged.node.append(node)
        value = f"mapped_{at}"
    return value
