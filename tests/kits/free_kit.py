"""Encoders with two outputs, made of two files: one embeds, the other gives the free vectors."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper
from shop_kit import Shop, carry

from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder.graphs import parse_encoder, prefixed_graph
from compatctl.encoder.metadata import FREE, OUTPUT, Contract
from compatctl.encoder.sealing import sealed_bytes


def with_free(path: Path, first: Path, free: Path) -> Path:
    """Write an encoder with the embedding of ``first`` and that of ``free`` as free vectors.

    Both must take one input with the same preprocessing.
    """
    (model, contract), (other, other_contract) = (
        parse_encoder(source, source.read_bytes()) for source in (first, free)
    )
    assert contract.inputs == other_contract.inputs
    graph = onnx.GraphProto(name="both")
    image = contract.inputs[0].name
    for name, part in (("first", model), ("second", other)):
        graph.node.append(helper.make_node("Identity", [image], [f"{name}/{image}"]))
        prefixed = prefixed_graph(part, f"{name}/")
        graph.node.extend(prefixed.node)
        graph.initializer.extend(prefixed.initializer)
    graph.input.append(contract.inputs[0].value_info())
    dims = {OUTPUT: contract.dim, FREE: other_contract.dim}
    for output, part, dim in zip(dims, ("first", "second"), dims.values(), strict=True):
        graph.node.append(helper.make_node("Identity", [f"{part}/{OUTPUT}"], [output]))
        shape = ["batch", dim]
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
    both = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=graph
    )
    contract = Contract(dim=contract.dim, inputs=contract.inputs, free_dim=other_contract.dim)
    path.write_bytes(sealed_bytes(both, contract))
    carry(path, TrainingRecord())
    return path


def serve_rescored(shop: Shop, k: int, *more: object, force: bool = False) -> None:
    """Verify and deploy both.onnx with re-scoring of ``k`` answers; ``force``: even if it fails."""
    flags = ("--report", shop.path("report.json"), "--rescore", k, *more)
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("both.onnx"), *flags)
    assert verified.code in ({0, 3, 4} if force else {0}), verified.stderr
    reason = ("--force", "--reason", "a test") if force else ()
    deployed = shop.run("deploy", *flags, *reason)
    assert deployed.code == 0, deployed.stderr
