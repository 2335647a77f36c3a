"""The encoder of a space: vectors in, the same vectors out, divided by their lengths."""

from __future__ import annotations

from onnx import TensorProto, helper

from compatctl.encoder.inputs import BATCH
from compatctl.encoder.metadata import OUTPUT, Contract
from compatctl.encoder.sealing import sealed_bytes
from compatctl.encoder.vectors import VECTOR, VectorInput

_OPSET, _IR_VERSION = 17, 8


def space_encoder(space: str, dim: int) -> bytes:
    """The sealed bytes of the encoder that stands for a model behind an API.

    Equal names and dimensions give equal bytes: the store knows the model by them.

    Args:
        space: the name of what the model gives.
        dim: D.
    """
    source = VectorInput(name=VECTOR, space=space, dim=dim)
    graph = helper.make_graph(
        [helper.make_node("LpNormalization", [VECTOR], [OUTPUT])],
        "encoder",
        [source.value_info()],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, dim])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    return sealed_bytes(model, Contract(dim=dim, inputs=(source,)))
