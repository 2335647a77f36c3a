"""What a stranger's ONNX file could do besides computing, and how each of it is refused.

A graph can name files outside itself, call operators that are not ONNX's, ask for tensors of any
size, and be tiny in the file and huge once parsed. What runs is bounded by the arena of
``session.py``; what is built outside that arena (the parsed file, inlined functions, sparse weights
made dense, text, folded constants) is bounded here. The time that a graph takes is not bounded.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Message

from compatctl.errors import InputError, UnsteadyError
from compatctl.files import os_errors
from compatctl.files.npz import open_regular

MAX_FILE_BYTES = (1 << 31) - 1
"""The largest ONNX file: protobuf's own limit."""

MAX_STRUCTURE_BYTES = 64 << 20
"""The most bytes of an ONNX file that are not weights; each field counts 64 bytes and its own."""

MAX_NODES = 200_000
"""The most operators of a graph, once local functions are put in where they are called."""

MAX_SPARSE_BYTES = 256 << 20
"""The most bytes of all sparse weights together, once they are dense."""

DOMAINS = {"", "ai.onnx"}
REFUSED = {"Unique"}
"""Standard operators that keep what they find outside the runtime's bounded memory."""

RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
"""Standard operators that give something else at every call."""

_TRAINING_MODE_SINCE = 14
"""The operator set in which BatchNormalization got the attribute training_mode; before, more than
one output said so."""

_FIELD_COST = 64
_LEAF = 256
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PACKED_GROWTH = 8
_WIDEST = 16


def check_structure(path: Path, data: memoryview) -> None:
    """Refuse a file that would be far larger parsed than it is.

    Raises:
        InputError: it is no protobuf message, or more than ``MAX_STRUCTURE_BYTES`` are no weights.
    """
    try:
        over = _cost(data, onnx.ModelProto.DESCRIPTOR, MAX_STRUCTURE_BYTES) < 0
    except (IndexError, RecursionError):
        raise InputError(f"{path} is not an ONNX file") from None
    if over:
        raise InputError(
            f"{path}: more than {MAX_STRUCTURE_BYTES >> 20} MiB of it are no weights",
            tip="a graph of that size is no encoder",
        )


def _cost(data: memoryview, kind: Any, left: int) -> int:
    """``left`` less what ``data``, a message of ``kind``, costs; negative once it is used up."""
    at, end = 0, len(data)
    while at < end and left >= 0:
        key, at = _varint(data, at)
        wire, field = key & 7, kind.fields_by_number.get(key >> 3)
        left -= _FIELD_COST
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _BYTES:
            size, at = _varint(data, at)
            if at + size > end:
                raise IndexError
            part = data[at : at + size]
            if field is None or field.message_type is None:
                left -= size // _PACKED_GROWTH if field is not None and _grows(field) else 0
            elif size < _LEAF:
                left -= size
            else:
                left = _cost(part, field.message_type, left)
            at += size
        elif wire in {_FIXED32, _FIXED64}:
            at += 4 if wire == _FIXED32 else 8
        else:
            raise IndexError
    return left


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError


@cache
def _grows(field: Any) -> bool:
    """Whether a packed field takes fewer bytes in the file than parsed: whole numbers do."""
    return field.type not in {
        field.TYPE_BYTES,
        field.TYPE_STRING,
        field.TYPE_FLOAT,
        field.TYPE_DOUBLE,
    }


def check(path: Path, model: onnx.ModelProto) -> None:
    """Refuse what reaches outside the file or outside the bounded memory, wherever it is nested.

    Raises:
        InputError: external data, operators that are not ONNX's, text, local functions that call
            themselves or unfold into too much, sparse weights that do, training graphs.
        UnsteadyError: operators that are random or in training mode.
    """
    calls = {(one.domain, one.name) for one in model.functions}
    off = _false_values(model)
    opset = max((one.version for one in model.opset_import if one.domain in DOMAINS), default=0)
    dense = 0
    for part in itertools.chain([model], messages(model)):
        _check_text(path, part)
        if isinstance(part, onnx.TrainingInfoProto):
            raise InputError(f"{path}: has a training graph, which an encoder has not")
        if isinstance(part, onnx.TensorProto):
            _check_tensor(path, part)
        elif isinstance(part, onnx.NodeProto):
            _check_node(path, part, calls)
            _check_training(path, part, opset, off)
        elif isinstance(part, onnx.AttributeProto):
            _check_attribute(path, part)
        elif isinstance(part, onnx.SparseTensorProto):
            dense += math.prod(max(side, 0) for side in part.dims) * _WIDEST
    if dense > MAX_SPARSE_BYTES:
        raise InputError(
            f"{path}: its sparse weights may be {dense} bytes when dense; at most "
            f"{MAX_SPARSE_BYTES} are taken"
        )
    node_count(path, model)


def _check_text(path: Path, message: Message) -> None:
    """Text that is no UTF-8 comes as bytes, which no message or name can be made of."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and any(
            isinstance(one, bytes) for one in ([value] if isinstance(value, bytes | str) else value)
        ):
            raise InputError(f"{path} is not an ONNX model: {field.name} is not UTF-8 text")


def messages(message: Message) -> Iterator[Message]:
    """Every message inside ``message``, at any depth; weights' numbers are not looked at."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for one in [value] if isinstance(value, Message) else value:
            yield one
            yield from messages(one)


def _check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise InputError(
            f"{path}: the weights {tensor.name!r} lie in another file",
            tip="export one self-contained file (torch.onnx.export(..., external_data=False))",
        )
    if tensor.data_type == onnx.TensorProto.STRING:
        raise InputError(f"{path}: the weights {tensor.name!r} are text, which no encoder needs")


def _check_node(path: Path, node: onnx.NodeProto, calls: set[tuple[str, str]]) -> None:
    if (node.domain, node.op_type) in calls:
        return
    if node.domain not in DOMAINS:
        raise InputError(
            f"{path}: the operator {node.domain}.{node.op_type} is not one of ONNX itself",
            tip="export it with standard operators only",
        )
    to = [one for one in node.attribute if node.op_type == "Cast" and one.name == "to"]
    if node.op_type in REFUSED or any(
        one.i == onnx.TensorProto.STRING or one.ref_attr_name for one in to
    ):
        raise InputError(
            f"{path}: the operator {node.op_type} (to text) is not taken: the memory that it needs "
            "cannot be bounded"
        )


def _false_values(model: onnx.ModelProto) -> set[str]:
    """Names of constants that are false, wherever they are."""
    named = [
        (tensor.name, tensor)
        for graph in messages(model)
        if isinstance(graph, onnx.GraphProto)
        for tensor in graph.initializer
    ]
    named += [
        (node.output[0], one.t)
        for node in messages(model)
        if isinstance(node, onnx.NodeProto) and node.op_type == "Constant" and node.output
        for one in node.attribute
        if one.name == "value"
    ]
    false: set[str] = set()
    true: set[str] = set()
    for name, tensor in named:
        if tensor.data_type == onnx.TensorProto.BOOL:
            is_true = any(tensor.int32_data) or any(tensor.raw_data)
            (true if is_true else false).add(name)
    return false - true


def _check_training(path: Path, node: onnx.NodeProto, opset: int, off: set[str]) -> None:
    """Refuse what is random, or in training mode, where the vector of an image is not its own."""
    if node.domain not in DOMAINS:
        return
    mode = {one.name: one.i for one in node.attribute}
    of_batch = node.op_type == "BatchNormalization" and (
        mode.get("training_mode", 0) != 0
        or (opset < _TRAINING_MODE_SINCE and len([one for one in node.output if one]) > 1)
    )
    dropping = node.op_type == "Dropout" and (
        len(node.input) > 2 and node.input[2] != "" and node.input[2] not in off
    )
    if of_batch or dropping or node.op_type in RANDOM:
        how = "is random" if node.op_type in RANDOM else "is in training mode"
        raise UnsteadyError(
            f"{path}: the operator {node.op_type} {how}: the vector of an image would differ from "
            "batch to batch or from call to call",
            tip="export the model in evaluation mode (model.eval(), and "
            "torch.onnx.export(..., training=TrainingMode.EVAL))",
        )


def operators(model: onnx.ModelProto) -> frozenset[str]:
    """The kinds of operators that are somewhere in the model, inner graphs and functions too."""
    return frozenset(one.op_type for one in messages(model) if isinstance(one, onnx.NodeProto))


def _check_attribute(path: Path, attribute: onnx.AttributeProto) -> None:
    if attribute.name in {"value_string", "value_strings"}:
        raise InputError(f"{path}: a constant is text, which no encoder needs")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that may be an ONNX model.

    Raises:
        InputError: missing, no regular file, or larger than ``MAX_FILE_BYTES``.
    """
    with os_errors("reading", path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {size} bytes; an ONNX file has at most {MAX_FILE_BYTES}")
        return file.read(MAX_FILE_BYTES)


def node_count(path: Path, model: onnx.ModelProto) -> int:
    """Operators of the graph and its inner graphs, local functions put in where they are called.

    Raises:
        InputError: a function calls itself, or there are more than ``MAX_NODES``.
    """
    bodies = {(one.domain, one.name): one for one in model.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(part: Message, inside: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in messages(part):
            if not isinstance(node, onnx.NodeProto):
                continue
            call = (node.domain, node.op_type)
            total += 1
            if call in bodies:
                if call in inside:
                    raise InputError(f"{path}: the local function {call[1]!r} calls itself")
                if call not in counted:
                    counted[call] = count(bodies[call], (*inside, call))
                total += counted[call]
        if total > MAX_NODES:
            raise InputError(f"{path}: has more than {MAX_NODES} operators")
        return total

    try:
        return count(model.graph, ())
    except RecursionError:
        raise InputError(f"{path}: its local functions are nested too deeply") from None
