"""Encoders with two outputs, made of two files: one embeds, the other gives the free vectors; and
re-scoring by a loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from shop_kit import Shop, carry

from compatctl.data import load
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
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


def order_by_loop(
    shop: Shop,
    rule: Mapping[str, float],
    k: int,
    known: Callable[[list[str]], Collection[str]],
    backfilled: Collection[str] = (),
    *,
    split: str = "test",
) -> tuple[list[list[int]], list[str], list[str]]:
    """Gallery rows of each query of the split by both.onnx, re-scored by a loop; labels of gallery
    and queries.

    ``known`` says which of a query's ``k`` nearest items, in their order, have a free vector. The
    first stage has both.onnx's vectors of the ``backfilled`` items, old.onnx's of the others.
    """
    data = load(shop.data())
    gallery = [i for i, item in enumerate(data.items) if item.role == "gallery"]
    queries = [
        i for i, item in enumerate(data.items) if (item.split, item.role) == (split, "query")
    ]
    stored = Encoder.load(shop.path("old.onnx")).embed(data.take(gallery)).features
    both = Encoder.load(shop.path("both.onnx"))
    new, items = (both.embed(data.take(rows), free=True) for rows in (queries, gallery))
    assert new.free is not None
    assert items.free is not None
    written = np.array([data.ids[row] in backfilled for row in gallery], bool)
    stored[written] = items.features[written]
    orders = []
    for feature, free in zip(new.features, new.free, strict=True):
        cosines = stored @ feature
        first = np.argsort(-cosines, kind="stable")
        nearest = {data.ids[gallery[row]]: row for row in first[:k].tolist()}
        there = known([*nearest])
        scores = [
            float(free @ items.free[row]) + rule["weight"] * cosines[row]
            if item in there
            else rule["intercept"] + rule["slope"] * cosines[row]
            for item, row in nearest.items()
        ]
        head = first[:k][np.argsort(-np.array(scores), kind="stable")]
        orders.append([*head.tolist(), *first[k:].tolist()])
    labels = [data.labels[row] for row in gallery], [data.labels[row] for row in queries]
    return orders, *labels
