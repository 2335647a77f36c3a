"""Encoders composed of others in one file: bridged through an adapter, or the mean of two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from compatctl.core.adapters import Adapter
from compatctl.core.arrays import AnyFloats
from compatctl.encoder.graphs import (
    graph_inputs,
    inline_functions,
    parse_encoder,
    prefixed_graph,
    prune,
)
from compatctl.encoder.import_onnx import read_model_bytes
from compatctl.encoder.inputs import BATCH, EncoderInput
from compatctl.encoder.metadata import FREE, OUTPUT, Contract
from compatctl.encoder.onnx_safety import opset_version
from compatctl.encoder.sealing import sealed_bytes
from compatctl.errors import InputError
from compatctl.files import write_atomic


def bridge(data: bytes, path: Path, adapter: Adapter, free: Adapter | None = None) -> bytes:
    """The sealed bytes of an encoder whose embedding is ``adapter`` of that of ``data``.

    ``free`` maps the same embedding to the output of that name. Without it, one that is there
    stays, and otherwise it is the embedding of ``data``, so that answers can be re-scored by it.

    ``data``: the sealed bytes of an encoder; ``path``: where they were read, for errors. The same
    bytes and the same adapter give the same bytes.

    Raises:
        InputError: ``data`` is not an encoder, or of other dimensions than an adapter takes; values
            of an adapter that are not finite.
    """
    model, contract = parse_encoder(path, data)
    model = inline_functions(path, model)
    dim = adapter.layers[0][0].shape[0]
    if contract.dim != dim:
        raise InputError(f"{path} has {contract.dim} dimensions; the adapter takes {dim}")
    parts = _Composition()
    parts.append("new", model, contract)
    mapped = parts.append_adapter(f"new/{OUTPUT}", adapter)
    if free is not None:
        own = parts.append_adapter(f"new/{OUTPUT}", free, "free_")
        parts.node("LpNormalization", [own], "free_unit")
        parts.free_of("free_unit", free.layers[-1][0].shape[1])
    elif contract.free_dim is None:
        parts.free_of(f"new/{OUTPUT}", contract.dim)
    else:
        parts.keep_free("new", contract)
    return parts.sealed([model], mapped, adapter.layers[-1][0].shape[1])


def fuse(old: Path, new: Path, weight: float, out: Path) -> None:
    """Write one file whose embedding is the unit of ``(1 - weight) old + weight new``.

    Inputs that take the same of an item become one. Either file may itself be fused. The
    output ``free`` of ``new`` stays, so that its answers can be re-scored.

    Raises:
        InputError: a weight outside 0 .. 1, other dimensions, or a file that is not an encoder.
    """
    if not 0.0 < weight < 1.0:
        raise InputError(f"the weight of the new embedding must lie between 0 and 1, got {weight}")
    models, contracts = [], []
    for path in (old, new):
        model, contract = parse_encoder(path, read_model_bytes(path))
        models.append(inline_functions(path, model))
        contracts.append(contract)
    dims = [contract.dim for contract in contracts]
    if dims[0] != dims[1]:
        raise InputError(f"{old} has {dims[0]} dimensions, {new} has {dims[1]}: they have no mean")
    models = _same_opset((old, new), models)
    parts = _Composition()
    for name, share, model, contract in zip(
        ("old", "new"), (1.0 - weight, weight), models, contracts, strict=True
    ):
        parts.append(name, model, contract)
        parts.weight(f"{name}_weight", np.array(share, np.float32))
        parts.node("Mul", [f"{name}/{OUTPUT}", f"{name}_weight"], f"{name}_share")
    parts.node("Add", _SHARES, "mixed")
    parts.keep_free("new", contracts[1])
    write_atomic(out, parts.sealed(models, "mixed", dims[0]))


def free_alone(data: bytes, path: Path) -> bytes:
    """The sealed bytes of an encoder whose embedding is the output ``free`` of that of ``data``.

    What only the other output needs is left out, inputs included. The same bytes give the same
    bytes; ``path``: where they were read, for errors.

    Raises:
        InputError: ``data`` is not an encoder, or has no output ``free``.
    """
    model, contract = parse_encoder(path, data)
    if contract.free_dim is None:
        raise InputError(
            f"{path} has no output 'free'", tip="compatctl finetune makes an encoder that has one"
        )
    model = inline_functions(path, model)
    graph = model.graph
    prune(graph, {FREE})
    used = {value.name for value in graph_inputs(graph)}
    inputs = tuple(source for source in contract.inputs if source.name in used)
    parts = _Composition()
    parts.append("free", model, Contract(dim=contract.free_dim, inputs=inputs))
    return parts.sealed([model], f"free/{FREE}", contract.free_dim)


_SHARES = ["old_share", "new_share"]
"""What the mean adds; composition adds prefixes."""


def is_fused(model: onnx.ModelProto) -> bool:
    """Whether an encoder is fused, or made of one that is."""
    return any(
        node.op_type == "Add" and [name.rsplit("/", 1)[-1] for name in node.input] == _SHARES
        for node in model.graph.node
    )


class _Composition:
    """The graph of a new encoder, and its input for all that take the same of an item."""

    def __init__(self) -> None:
        self.graph = onnx.GraphProto(name="encoder")
        self._inputs: dict[EncoderInput, EncoderInput] = {}
        self._free_dim: int | None = None

    def node(self, operator: str, inputs: list[str], output: str) -> None:
        self.graph.node.append(helper.make_node(operator, inputs, [output]))

    def weight(self, name: str, values: AnyFloats) -> None:
        tensor = numpy_helper.from_array(np.asarray(values, np.float32, order="C"), name)
        self.graph.initializer.append(tensor)

    def append(self, name: str, model: onnx.ModelProto, contract: Contract) -> None:
        """Append an encoder, its names prefixed by ``name/``; it copies the shared inputs."""
        graph = prefixed_graph(model, f"{name}/")
        for source in contract.inputs:
            number = len(self._inputs) + 1
            fresh = source.MODALITY if number == 1 else f"{source.MODALITY}_{number}"
            shared = self._inputs.setdefault(source.renamed(""), source.renamed(fresh))
            self._refuse_mixed()
            self.node("Identity", [shared.name], f"{name}/{source.name}")
        for node in graph.node:  # unnamed nodes must not all be called by the prefix alone
            node.ClearField("name")
        self.graph.node.extend(graph.node)
        self.graph.initializer.extend(graph.initializer)
        self.graph.sparse_initializer.extend(graph.sparse_initializer)

    def _refuse_mixed(self) -> None:
        kinds = sorted({source.MODALITY for source in self._inputs.values()})
        if len(kinds) > 1:
            raise InputError(
                f"one model takes {kinds[0]}s, the other {kinds[1]}s: no item has both",
                tip="compose models that take the same",
            )

    def append_adapter(self, value: str, adapter: Adapter, prefix: str = "") -> str:
        """Append the adapter's layers after ``value``; the name of their output, not normalised.

        ``prefix`` begins the names of what is appended.
        """
        for number, (matrix, bias) in enumerate(adapter.layers):
            if not (np.isfinite(matrix).all() and np.isfinite(bias).all()):
                raise InputError("the adapter has values that are not finite")
            weights = [f"{prefix}map_{number}", f"{prefix}bias_{number}"]
            self.weight(weights[0], matrix)
            self.weight(weights[1], bias)
            if number:
                self.node("Relu", [value], f"{prefix}hidden_{number}")
                value = f"{prefix}hidden_{number}"
            self.node("Gemm", [value, *weights], f"{prefix}mapped_{number}")
            value = f"{prefix}mapped_{number}"
        return value

    def keep_free(self, name: str, contract: Contract) -> None:
        """Give the output ``free`` of the encoder appended as ``name``, if it has one."""
        if contract.free_dim is not None:
            self.free_of(f"{name}/{FREE}", contract.free_dim)

    def free_of(self, value: str, dim: int) -> None:
        """Give ``value`` (batch, dim), of unit rows, as the output ``free``."""
        self.node("Identity", [value], FREE)
        self._free_dim = dim

    def sealed(self, models: list[onnx.ModelProto], value: str, dim: int) -> bytes:
        """The sealed bytes of an encoder that gives ``value``, normalised; ``models`` are the parts
        whose versions it needs."""
        self.node("LpNormalization", [value], OUTPUT)
        inputs = tuple(self._inputs.values())
        contract = Contract(dim=dim, inputs=inputs, free_dim=self._free_dim)
        for source in contract.inputs:
            self.graph.input.append(source.value_info())
        for name, width in contract.outputs.items():
            output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, width])
            self.graph.output.append(output)
        merged = onnx.ModelProto(
            ir_version=max(model.ir_version for model in models),
            opset_import=models[0].opset_import,
            graph=self.graph,
        )
        return sealed_bytes(merged, contract)


def _same_opset(paths: tuple[Path, Path], models: list[onnx.ModelProto]) -> list[onnx.ModelProto]:
    """Both models at the newer of their two operator sets."""
    versions = [opset_version(model) for model in models]
    newest = max(versions)
    converted = []
    for path, model, version in zip(paths, models, versions, strict=True):
        try:
            converted.append(
                model if version == newest else version_converter.convert_version(model, newest)
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{path} is of operator set {version} and does not convert to {newest}: {error}",
                tip="export both encoders with the same operator set",
            ) from error
    return converted
