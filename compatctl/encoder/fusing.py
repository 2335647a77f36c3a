"""Fusing: two encoders in one file, whose feature is the weighted mean of theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from compatctl.data import Preprocessing
from compatctl.encoder import contract, onnx_safety
from compatctl.encoder.contract import BATCH, OUTPUT, Contract, EncoderInput
from compatctl.encoder.import_onnx import IMAGE, read_model_bytes
from compatctl.encoder.sealing import image_input, inlined, prefixed, sealed
from compatctl.errors import InputError
from compatctl.files import write_atomic


def fuse(old: Path, new: Path, weight: float, out: Path) -> None:
    """One file whose feature is the unit of ``(1 - weight) old + weight new``.

    Inputs with the same preprocessing are one input. Either file may itself be fused.

    Raises:
        InputError: a weight outside 0 .. 1, other dimensions, or a file that is not an encoder.
    """
    if not 0.0 < weight < 1.0:
        raise InputError(f"the weight of the new feature must lie between 0 and 1, got {weight}")
    models, spec = [], []
    for path in (old, new):
        model = contract.parse(path, read_model_bytes(path))
        spec.append(contract.read(path, model))
        contract.check_signature(path, model, spec[-1])
        models.append(inlined(path, model))
    if spec[0].dim != spec[1].dim:
        raise InputError(
            f"{old} ends in {spec[0].dim} numbers, {new} in {spec[1].dim}: they have no mean"
        )
    models = _same_opset((old, new), models)
    merged = onnx.GraphProto(name="encoder")
    names: dict[Preprocessing, str] = {}
    for which, share, model, one in zip(
        ("old", "new"), (1.0 - weight, weight), models, spec, strict=True
    ):
        join(merged, which, prefixed(model, f"{which}/"), one, names)
        factor = numpy_helper.from_array(np.array(share, np.float32), f"{which}_weight")
        merged.initializer.append(factor)
        feature = [f"{which}/{OUTPUT}", f"{which}_weight"]
        merged.node.append(helper.make_node("Mul", feature, [f"{which}_share"]))
    merged.node.append(helper.make_node("Add", ["old_share", "new_share"], ["mixed"]))
    merged.node.append(helper.make_node("LpNormalization", ["mixed"], [OUTPUT]))
    both = Contract(
        dim=spec[0].dim,
        inputs=tuple(EncoderInput(name=name, preprocessing=size) for size, name in names.items()),
    )
    write_atomic(out, sealed(assembled(merged, models, both), both))


def assembled(
    merged: onnx.GraphProto, models: list[onnx.ModelProto], spec: Contract
) -> onnx.ModelProto:
    """A model of the graph, with inputs and output as ``spec`` says; versions are the models'."""
    for one in spec.inputs:
        merged.input.append(image_input(one.name, one.preprocessing))
    feature = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, spec.dim])
    merged.output.append(feature)
    made = onnx.ModelProto(
        ir_version=max(model.ir_version for model in models),
        opset_import=models[0].opset_import,
    )
    made.graph.CopyFrom(merged)
    return made


def join(
    merged: onnx.GraphProto,
    which: str,
    graph: onnx.GraphProto,
    spec: Contract,
    names: dict[Preprocessing, str],
) -> None:
    """Append an encoder's prefixed graph; its inputs become copies of the shared ones."""
    for one in spec.inputs:
        fresh = IMAGE if not names else f"{IMAGE}_{len(names) + 1}"
        shared = names.setdefault(one.preprocessing, fresh)
        merged.node.append(helper.make_node("Identity", [shared], [f"{which}/{one.name}"]))
    for node in graph.node:  # unnamed nodes must not all be called by the prefix alone
        node.ClearField("name")
    merged.node.extend(graph.node)
    merged.initializer.extend(graph.initializer)
    merged.sparse_initializer.extend(graph.sparse_initializer)


def _same_opset(paths: tuple[Path, Path], models: list[onnx.ModelProto]) -> list[onnx.ModelProto]:
    """Both models at the newer of their two operator sets."""
    versions = [
        max(one.version for one in model.opset_import if one.domain in onnx_safety.DOMAINS)
        for model in models
    ]
    newest = max(versions)
    made = []
    for path, model, version in zip(paths, models, versions, strict=True):
        try:
            made.append(
                model if version == newest else version_converter.convert_version(model, newest)
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{path} is of operator set {version} and does not convert to {newest}: {error}",
                tip="export both encoders with the same operator set",
            ) from error
    return made
