"""What an untrusted ONNX file could do apart from computing, and the checks that refuse it.

A graph can name other files, call operators that are not ONNX's, allocate tensors of any size, and
be tiny in the file and huge once parsed. The arena in ``session.py`` bounds what runs; this module
bounds what is built outside it (the parsed file, inlined functions, dense copies of sparse weights,
text, folded constants). The time that a graph takes is not bounded.
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
from google.protobuf.message import DecodeError, Message

from compatctl.errors import InputError, UnsteadyError
from compatctl.files import os_errors, other_kind
from compatctl.files.npz import open_regular

MAX_FILE_BYTES = (1 << 31) - 1
"""The largest ONNX file: protobuf's own limit."""

MAX_STRUCTURE_BYTES = 64 << 20
"""The most bytes of an ONNX file that are not weights; a field costs 64 bytes and its own size."""

MAX_NODES = 200_000
"""The most operators of a graph, once local functions are inlined."""

MAX_SPARSE_BYTES = 256 << 20
"""The most bytes of all sparse weights together, as dense arrays."""

DOMAINS = {"", "ai.onnx"}
REFUSED = {"Unique"}
"""Standard operators that allocate outside the runtime's bounded memory."""

_TRAINING_MODE_SINCE = 14
"""The operator set where BatchNormalization got the attribute training_mode; earlier, more than one
output means training."""

_CHECKPOINTS = {".bin", ".ckpt", ".pt", ".pth", ".safetensors"}

_FIELD_COST = 64
_LEAF = 256
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PACKED_GROWTH = 8
_WIDEST = 16


def parse_model(path: Path, data: bytes) -> onnx.ModelProto:
    """The model in ``data``: one self-contained file of standard operators.

    Raises:
        InputError: it is not ONNX, or ``check_structure`` or ``check_model`` refuses it.
    """
    check_structure(path, memoryview(data))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise _no_onnx(path, data[:256]) from None
    if not data:
        raise InputError(f"{path} is not an ONNX file: it is empty", tip="fetch it again")
    if not model.graph.node or not model.graph.output or opset_version(model) == 0:
        raise InputError(f"{path} is not an ONNX model: it has no graph")
    check_model(path, model)
    return model


def _no_onnx(path: Path, head: bytes) -> InputError:
    """The error of a file that begins with ``head``."""
    export = "compatctl export makes an ONNX file of a checkpoint and its architecture"
    if path.suffix.lower() in _CHECKPOINTS:
        return InputError(f"{path} is not an ONNX file, but a checkpoint by its name", tip=export)
    kind, tip = other_kind(head) or ("", "fetch it again, if it was cut short on the way")
    if kind.startswith(("a zip archive", "a pickle")):
        tip = f"if it is a checkpoint of PyTorch: {export}"
    return InputError(f"{path} is not an ONNX file{kind and f': it is {kind}'}", tip=tip)


def opset_version(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses; 0: it names none."""
    return max(
        (opset.version for opset in model.opset_import if opset.domain in DOMAINS), default=0
    )


def check_structure(path: Path, data: memoryview) -> None:
    """Refuse a file that would be far larger parsed than it is.

    Raises:
        InputError: it is no protobuf message, or more than ``MAX_STRUCTURE_BYTES`` are not weights.
    """
    try:
        over = _cost(data, onnx.ModelProto.DESCRIPTOR, MAX_STRUCTURE_BYTES) < 0
    except (IndexError, RecursionError):
        raise _no_onnx(path, bytes(data[:256])) from None
    if over:
        raise InputError(
            f"{path}: more than {MAX_STRUCTURE_BYTES >> 20} MiB of it are not weights",
            tip="a graph of that size is no encoder",
        )


def _cost(data: memoryview, kind: Any, left: int) -> int:
    """``left`` minus the cost of ``data``, a message of ``kind``; negative once it is used up."""
    offset, end = 0, len(data)
    while offset < end and left >= 0:
        key, offset = _varint(data, offset)
        wire, field = key & 7, kind.fields_by_number.get(key >> 3)
        left -= _FIELD_COST
        if wire == _VARINT:
            _, offset = _varint(data, offset)
        elif wire == _BYTES:
            size, offset = _varint(data, offset)
            if offset + size > end:
                raise IndexError
            if field is None or field.message_type is None:
                left -= size // _PACKED_GROWTH if field is not None and _grows(field) else 0
            elif size < _LEAF:
                left -= size
            else:
                left = _cost(data[offset : offset + size], field.message_type, left)
            offset += size
        elif wire in {_FIXED32, _FIXED64}:
            offset += 4 if wire == _FIXED32 else 8
        else:
            raise IndexError
    return left


def _varint(data: memoryview, offset: int) -> tuple[int, int]:
    """The number at ``offset``, and the offset after it."""
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset
        if shift > 63:
            raise IndexError


@cache
def _grows(field: Any) -> bool:
    """Whether a packed field takes fewer bytes in the file than parsed: integers do."""
    fixed = {field.TYPE_BYTES, field.TYPE_STRING, field.TYPE_FLOAT, field.TYPE_DOUBLE}
    return field.type not in fixed


def check_model(path: Path, model: onnx.ModelProto) -> None:
    """Refuse what reaches outside the file or outside the bounded memory, however deeply nested.

    Raises:
        InputError: external data, operators that are not ONNX's, text, local functions that call
            themselves, functions or sparse weights that expand too far, training graphs.
        UnsteadyError: operators that are random or in training mode.
    """
    local = {(function.domain, function.name) for function in model.functions}
    false_values, opset = _false_values(model), opset_version(model)
    dense = 0
    for part in itertools.chain([model], iter_messages(model)):
        _check_text(path, part)
        if isinstance(part, onnx.TrainingInfoProto):
            raise InputError(f"{path}: it has a training graph, which no encoder needs")
        if isinstance(part, onnx.TensorProto):
            _check_tensor(path, part)
        elif isinstance(part, onnx.NodeProto):
            _check_node(path, part, local)
            _check_training(path, part, opset, false_values)
        elif isinstance(part, onnx.AttributeProto) and part.name.startswith("value_string"):
            raise InputError(f"{path}: a constant is text, which no encoder needs")
        elif isinstance(part, onnx.SparseTensorProto):
            dense += math.prod(max(side, 0) for side in part.dims) * _WIDEST
    if dense > MAX_SPARSE_BYTES:
        limit = f"{dense} bytes when dense; the limit is {MAX_SPARSE_BYTES}"
        raise InputError(f"{path}: its sparse weights may be {limit}")
    node_count(path, model)


def _check_text(path: Path, message: Message) -> None:
    """Refuse text that is not UTF-8: protobuf gives it as bytes."""
    for field, value in message.ListFields():
        texts = [value] if isinstance(value, bytes | str) else value
        if field.type == field.TYPE_STRING and any(isinstance(text, bytes) for text in texts):
            raise InputError(f"{path} is not an ONNX model: {field.name} is not UTF-8 text")


def iter_messages(message: Message) -> Iterator[Message]:
    """Every message inside ``message``, at any depth."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if isinstance(value, Message) else value:
            yield inner
            yield from iter_messages(inner)


def _check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise InputError(
            f"{path}: the weights {tensor.name!r} are in another file",
            tip="export one self-contained file (torch.onnx.export(..., external_data=False))",
        )
    if tensor.data_type == onnx.TensorProto.STRING:
        raise InputError(f"{path}: the weights {tensor.name!r} are text, which no encoder needs")


def _check_node(path: Path, node: onnx.NodeProto, local: set[tuple[str, str]]) -> None:
    if (node.domain, node.op_type) in local:
        return
    if node.domain not in DOMAINS:
        raise InputError(
            f"{path}: the operator {node.domain}.{node.op_type} is not one of ONNX itself",
            tip="export it with standard operators only",
        )
    types = [part for part in node.attribute if node.op_type == "Cast" and part.name == "to"]
    to_text = any(part.i == onnx.TensorProto.STRING or part.ref_attr_name for part in types)
    if node.op_type in REFUSED or to_text:
        name = f"{node.op_type} to text" if to_text else node.op_type
        raise InputError(f"{path}: the operator {name} is refused: its memory cannot be bounded")


def _false_values(model: onnx.ModelProto) -> set[str]:
    """Names of constants that are false, in any graph."""
    constants: list[tuple[str, onnx.TensorProto]] = []
    for part in iter_messages(model):
        if isinstance(part, onnx.GraphProto):
            constants += [(tensor.name, tensor) for tensor in part.initializer]
        elif isinstance(part, onnx.NodeProto) and part.op_type == "Constant" and part.output:
            values = [attribute.t for attribute in part.attribute if attribute.name == "value"]
            constants += [(part.output[0], value) for value in values]
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for name, tensor in constants:
        if tensor.data_type == onnx.TensorProto.BOOL:
            names[any(tensor.int32_data) or any(tensor.raw_data)].add(name)
    return names[False] - names[True]


def _check_training(path: Path, node: onnx.NodeProto, opset: int, false_values: set[str]) -> None:
    """Refuse operators that are random or in training mode."""
    if node.domain not in DOMAINS:
        return
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    batch_norm = node.op_type == "BatchNormalization" and (
        attributes.get("training_mode", 0) != 0
        or (opset < _TRAINING_MODE_SINCE and sum(map(bool, node.output)) > 1)
    )
    dropout = node.op_type == "Dropout" and (
        len(node.input) > 2 and node.input[2] != "" and node.input[2] not in false_values
    )
    random = node.op_type.startswith("Random") or node.op_type in {"Multinomial", "Bernoulli"}
    if batch_norm or dropout or random:
        state = "is random" if random else "is in training mode"
        raise UnsteadyError(
            f"{path}: the operator {node.op_type} {state}: the embedding of an image would differ "
            "from batch to batch or from call to call",
            tip="export the model in evaluation mode (model.eval(), and "
            "torch.onnx.export(..., training=TrainingMode.EVAL))",
        )


def operators(model: onnx.ModelProto) -> frozenset[str]:
    """The kinds of operators in the model, its inner graphs and its functions."""
    nodes = (part for part in iter_messages(model) if isinstance(part, onnx.NodeProto))
    return frozenset(node.op_type for node in nodes)


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
    """The number of operators in the graph and its inner graphs, local functions inlined.

    Raises:
        InputError: a function calls itself, or there are more than ``MAX_NODES``.
    """
    bodies = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(part: Message, callers: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in iter_messages(part):
            if not isinstance(node, onnx.NodeProto):
                continue
            call = (node.domain, node.op_type)
            total += 1
            if call in bodies:
                if call in callers:
                    raise InputError(f"{path}: the local function {call[1]!r} calls itself")
                if call not in counted:
                    counted[call] = count(bodies[call], (*callers, call))
                total += counted[call]
        if total > MAX_NODES:
            raise InputError(f"{path}: it has more than {MAX_NODES} operators")
        return total

    try:
        return count(model.graph, ())
    except RecursionError:
        raise InputError(f"{path}: its local functions are nested too deeply") from None
