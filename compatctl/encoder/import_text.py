"""Text models that compatctl did not make: wrapped with their tokenizer and pooling, and sealed.

The wrapped model takes token ids padded with -1. The graph makes of them the mask, the segments
and the positions that the model takes, and pools the vectors of tokens to one vector a text.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compatctl.encoder.graphs import graph_inputs, inline_functions, prefixed_graph
from compatctl.encoder.inputs import BATCH
from compatctl.encoder.metadata import OUTPUT, Contract
from compatctl.encoder.onnx_safety import node_count, opset_version
from compatctl.encoder.sealing import sealed_bytes
from compatctl.encoder.sentence_folder import (
    POOLINGS,
    Pooling,
    SentenceFolder,
    find_sentence_folder,
)
from compatctl.encoder.session import Session
from compatctl.encoder.texts import (
    MAX_LENGTH,
    MAX_PREFIX,
    MAX_TOKENIZER,
    TEXT,
    TextInput,
    load_tokenizer,
    plain_tokenizer,
)
from compatctl.errors import InputError
from compatctl.files import read_json
from compatctl.notices import notice

OLDEST_OPSET = 11
"""Earlier operator sets have no CumSum, and no Gather from the end."""

IDS, MASK, SEGMENTS, POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"

_PREFIX = "model/"
_WHOLE = {TensorProto.INT64, TensorProto.INT32}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
_SMALL_SHARE = 0.5
"""A tokenizer that uses less of the model's vocabulary has a notice."""

_AXES_ARE_INPUT = 18
"""The operator set since which the axes of ReduceMax are an input."""

_TEMPLATE = (
    '{"format": 1, "modality": "text", "max_length": 256, "pooling": "mean", '
    '"tokenizer": "tokenizer.json"}'
)


@dataclass(frozen=True, kw_only=True)
class TextImportSpec:
    """A preprocessing file of a text model.

    ``max_length``: the most tokens of a text; ``pooling`` of the vectors of its tokens;
    ``tokenizer``: the file tokenizer.json, from the preprocessing file's folder; the prefixes are
    put before the texts of queries and of documents; ``output`` names the vectors where there are
    several outputs; ``normalise``: divide each row by its norm, unless the graph does so already.

    Raises:
        InputError: an entry of another type or range.
    """

    format: int
    modality: str
    max_length: int
    pooling: Pooling
    tokenizer: str = "tokenizer.json"
    query_prefix: str = ""
    document_prefix: str = ""
    output: str | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        length = self.max_length
        for name, valid, expected in (
            ("format", self.format == 1, "1, the one that this version reads"),
            ("modality", self.modality == "text", "text"),
            (
                "max_length",
                type(length) is int and 0 < length <= MAX_LENGTH,
                f"a whole number from 1 to {MAX_LENGTH}",
            ),
            ("pooling", self.pooling in POOLINGS, f"one of {', '.join(get_args(Pooling))}"),
            ("tokenizer", isinstance(self.tokenizer, str) and self.tokenizer, "a file's name"),
            ("query_prefix", _is_prefix(self.query_prefix), f"at most {MAX_PREFIX} characters"),
            ("document_prefix", _is_prefix(self.document_prefix), f"at most {MAX_PREFIX} letters"),
            ("output", self.output is None or isinstance(self.output, str), "an output's name"),
            ("normalise", isinstance(self.normalise, bool), "true or false"),
        ):
            if not valid:
                raise InputError(f"{name} must be {expected}; got {getattr(self, name)!r}")

    @classmethod
    def from_json(cls, path: Path, raw: dict[str, Any]) -> TextImportSpec:
        """The spec in the object of a preprocessing file.

        Raises:
            InputError: an entry is unknown, missing or wrong.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(raw) - set(known))
        missing = [name for name in known[:4] if name not in raw]
        if unknown or missing:
            raise InputError(
                f"{path}: {'unknown' if unknown else 'missing'} entry {(unknown or missing)[0]!r}",
                tip=f"the entries of a text model are {', '.join(known)}",
            )
        try:
            return cls(**raw)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", tip=error.tip) from None


def takes_texts(model: onnx.ModelProto) -> bool:
    """Whether a model that is not sealed has the input of token ids."""
    return any(value.name == IDS for value in graph_inputs(model.graph))


def derive_spec(path: Path, model: onnx.ModelProto) -> tuple[TextImportSpec, Path]:
    """What the sentence-transformers folder around an ONNX file says, and its tokenizer's file.

    There is a notice of it.

    Raises:
        InputError: there is no such folder, or it does not say all that is needed.
    """
    root = find_sentence_folder(path)
    tip = f"write a preprocessing file beside it, such as {_TEMPLATE}"
    if root is None:
        raise InputError(
            f"{path} takes texts ({IDS}), and neither a preprocessing file nor a folder of "
            "sentence-transformers says how they become tokens and one vector",
            tip=tip,
        )
    folder = SentenceFolder.read(root, beside=path.resolve().parent)
    outputs = [value.name for value in model.graph.output]
    pooled = "sentence_embedding" in outputs
    names = ("sentence_embedding",) if pooled else ("last_hidden_state", "token_embeddings")
    output = next((name for name in names if name in outputs), None)
    pooling = "none" if pooled else folder.pooling
    if folder.other_modules and not pooled:
        raise InputError(
            f"{root}: its modules {', '.join(folder.other_modules)} are not in {path.name}, which "
            f"gives {', '.join(outputs)}",
            tip="export the whole model, with an output sentence_embedding",
        )
    if pooling is None or folder.max_length is None:
        lacking = "the pooling" if pooling is None else "the most tokens of a text"
        raise InputError(f"{root}: its files do not say {lacking}", tip=tip)
    spec = TextImportSpec(
        format=1,
        modality="text",
        max_length=folder.max_length,
        pooling=pooling,
        query_prefix=folder.query_prefix,
        document_prefix=folder.document_prefix,
        output=output,
    )
    entries = {"pooling": pooling, "max_length": folder.max_length, "output": output}
    entries |= {"query_prefix": spec.query_prefix, "document_prefix": spec.document_prefix}
    said = [f"{key} {entry!r}" for key, entry in entries.items() if entry not in {"", None}]
    result = f"to say otherwise, write {path.with_suffix('.preprocessing.json').name} beside it"
    notice("derived-preprocessing", path, f"entries from {root}", said, result)
    return spec, folder.tokenizer


def wrap_text(path: Path, model: onnx.ModelProto, spec: TextImportSpec, tokenizer: Path) -> bytes:
    """The sealed bytes of ``model`` between the nodes that ``spec`` describes, with its tokenizer.

    Raises:
        InputError: the model has other inputs, the output cannot be pooled so, the tokenizer has
            more tokens than the model, or a text of ``max_length`` tokens fails.
    """
    model = inline_functions(path, model)
    if (opset := opset_version(model)) < OLDEST_OPSET:
        raise InputError(
            f"{path}: operator set {opset} is too old; one of texts must be at least "
            f"{OLDEST_OPSET}",
            tip="export it again, or raise its operator set with onnx.version_converter",
        )
    vocabulary = _Vocabulary.read(tokenizer)
    vocabulary.check(path, tokenizer, model)
    feeds = _check_feeds(path, model)
    hidden = _hidden_output(path, model, spec)
    graph = prefixed_graph(model, _PREFIX)
    nodes = [*_feed_nodes(feeds), *graph.node, *_output_nodes(spec, hidden, opset)]
    for field in ("node", "input", "output"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    for name, value in _constants(vocabulary.pad).items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    source = _text_input(spec, vocabulary)
    load_tokenizer(source.tokenizer, source.max_length)
    graph.input.append(source.value_info())
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, None]))
    wrapped = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, graph=graph
    )
    session = Session(path, wrapped.SerializeToString(), nodes=node_count(path, wrapped))
    (dim,) = session.dims([OUTPUT], [source])
    _check_longest(path, session, source, vocabulary.largest)
    wrapped.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dim
    return sealed_bytes(wrapped, Contract(dim=dim, inputs=(source,)))


def text_input(spec: TextImportSpec, tokenizer: Path) -> TextInput:
    """The input of texts that ``spec`` describes, with the tokenizer of a ``tokenizer.json``.

    Raises:
        InputError: it cannot be read, or is no tokenizer.
    """
    return _text_input(spec, _Vocabulary.read(tokenizer))


def _text_input(spec: TextImportSpec, vocabulary: _Vocabulary) -> TextInput:
    return TextInput(
        name=TEXT,
        tokenizer=vocabulary.text,
        max_length=spec.max_length,
        query_prefix=spec.query_prefix,
        document_prefix=spec.document_prefix,
    )


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    """A tokenizer's text without truncation and padding, its largest id, and the id of padding."""

    text: str
    largest: int
    pad: int

    @classmethod
    def read(cls, path: Path) -> _Vocabulary:
        raw = read_json(path, MAX_TOKENIZER)
        try:
            with_all = path.read_text(encoding="utf-8")
            text = plain_tokenizer(with_all)
            ids = load_tokenizer(text, MAX_LENGTH).get_vocab(with_added_tokens=True)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", tip=error.tip) from None
        padding = raw.get("padding") if isinstance(raw, dict) else None
        stated = padding.get("pad_id") if isinstance(padding, dict) else None
        usual = (ids[token] for token in _PAD_TOKENS if token in ids)
        pad = stated if type(stated) is int else next(usual, 0)
        return cls(text=text, largest=max(ids.values(), default=0), pad=pad)

    def check(self, path: Path, tokenizer: Path, model: onnx.ModelProto) -> None:
        """Refuse a tokenizer with ids that the model has no row for; warn of one with few ids."""
        rows = embedding_rows(model.graph)
        if rows is None:
            return
        tip = "name the tokenizer that the model was trained with"
        if self.largest >= rows:
            raise InputError(
                f"{tokenizer} has ids up to {self.largest}; {path} has a vocabulary of {rows}: it "
                "is another model's tokenizer",
                tip=tip,
            )
        if self.largest + 1 < _SMALL_SHARE * rows:
            named = [f"{self.largest + 1} of {rows}"]
            what = f"tokens of {path.name}'s vocabulary that the tokenizer knows"
            notice("small-vocabulary", tokenizer, what, named, tip)


def embedding_rows(graph: onnx.GraphProto) -> int | None:
    """The rows of the table that token ids are looked up in; None if it is not found."""
    shapes: dict[str, list[int]] = {part.name: list(part.dims) for part in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}

    def trace(name: str, kinds: set[str]) -> str:
        """The value that ``name`` was made of by nodes of these kinds alone."""
        while name in maker and maker[name].op_type in kinds and maker[name].input:
            name = maker[name].input[0]
        return name

    for node in graph.node:
        if node.op_type != "Gather" or trace(node.input[1], {"Cast", "Identity"}) != IDS:
            continue
        table = trace(node.input[0], {"Cast", "Mul", "Identity", "DequantizeLinear"})
        if len(shapes.get(table, [])) == 2:
            return shapes[table][0]
    return None


def _check_feeds(path: Path, model: onnx.ModelProto) -> dict[str, int]:
    """The type of each input, by its name."""
    feeds = {value.name: value.type.tensor_type.elem_type for value in graph_inputs(model.graph)}
    others = [name for name in feeds if name not in {IDS, MASK, SEGMENTS, POSITIONS}]
    if others or IDS not in feeds:
        raise InputError(
            f"{path}: a text model takes {IDS}, and maybe {MASK}, {SEGMENTS} and {POSITIONS}; it "
            f"has {', '.join(feeds) or 'none'}",
            tip="export the encoder alone, with these inputs",
        )
    for name, kind in feeds.items():
        if kind not in _WHOLE:
            raise InputError(
                f"{path}: its input {name} is {TensorProto.DataType.Name(kind).lower()}, expected "
                "int64 or int32",
                tip="export it with token ids and masks as whole numbers",
            )
    return feeds


def _hidden_output(path: Path, model: onnx.ModelProto, spec: TextImportSpec) -> onnx.ValueInfoProto:
    """The output that ``spec`` names, or the only one; its axes fit the pooling."""
    outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in model.graph.output}
    name = next(iter(outputs)) if spec.output is None and len(outputs) == 1 else spec.output
    described = ", ".join(f"{key} {_axes(value)}" for key, value in outputs.items())
    if name not in outputs or outputs[name].type.tensor_type.elem_type not in _FLOATS:
        raise InputError(
            f"{path}: its outputs are {described}; the preprocessing file says {spec.output!r}",
            tip='name the vectors: write "output": "..." into the preprocessing file',
        )
    axes = len(outputs[name].type.tensor_type.shape.dim)
    expected = 2 if spec.pooling == "none" else 3
    if axes and axes != expected:
        found = "one vector a text" if axes == 2 else "a vector a token"
        raise InputError(
            f"{path}: its output {name} has {axes} axes, {found}; pooling {spec.pooling!r} takes "
            f"{expected}: {described}",
            tip='write "pooling": "none" for an output that is pooled already, or name the other '
            'output: "output": "..."',
        )
    return outputs[name]


def _axes(value: onnx.ValueInfoProto) -> str:
    sides = [axis.dim_param or str(axis.dim_value) for axis in value.type.tensor_type.shape.dim]
    return f"({', '.join(sides)})"


def _constants(pad: int) -> dict[str, Any]:
    """The constants that the nodes around the model take."""
    return {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "final": np.array(-1, np.int64),
        "position_axis": np.array(1, np.int64),
        "pooled_axes": np.array([1], np.int64),
        "pad": np.array(pad, np.int64),
        "as_row": np.array([0, 1, -1], np.int64),
        "as_column": np.array([0, -1, 1], np.int64),
        "as_counts": np.array([-1, 1], np.int64),
        "as_vector": np.array([0, -1], np.int64),
        "nothing": np.array(0, np.float32),
        "lowest": np.array(np.finfo(np.float32).min, np.float32),
    }


def _feed_nodes(feeds: dict[str, int]) -> list[onnx.NodeProto]:
    """From token ids padded with -1 to what the model takes."""
    node = helper.make_node
    nodes = [
        node("Less", [TEXT, "zero"], ["is_padding"]),
        node("Not", ["is_padding"], ["is_token"]),
        node("Cast", ["is_token"], ["mask"], to=TensorProto.INT64),
        node("CumSum", ["mask", "position_axis"], ["count"]),
        node("Where", ["is_padding", "pad", TEXT], [f"{IDS}/wide"]),
        node("Identity", ["mask"], [f"{MASK}/wide"]),
        node("Mul", ["mask", "zero"], [f"{SEGMENTS}/wide"]),
        node("Sub", ["count", "one"], [f"{POSITIONS}/wide"]),
    ]
    for name, kind in feeds.items():
        nodes.append(node("Cast", [f"{name}/wide"], [_PREFIX + name], to=kind))
    return nodes


def _output_nodes(
    spec: TextImportSpec, hidden: onnx.ValueInfoProto, opset: int
) -> list[onnx.NodeProto]:
    """From the model's output to float32 unit rows."""
    node = helper.make_node
    nodes = [node("Cast", [_PREFIX + hidden.name], ["hidden"], to=TensorProto.FLOAT)]
    nodes += _pooling_nodes(spec.pooling, opset)
    operator = "LpNormalization" if spec.normalise else "Identity"
    return [*nodes, node(operator, ["pooled"], [OUTPUT])]


def _pooling_nodes(pooling: Pooling, opset: int) -> list[onnx.NodeProto]:
    """From ``hidden``, (batch, length, D) or for none (batch, D), to ``pooled`` (batch, D)."""
    node = helper.make_node
    if pooling == "none":
        return [node("Identity", ["hidden"], ["pooled"])]
    if pooling == "cls":
        return [node("Gather", ["hidden", "zero"], ["pooled"], axis=1)]
    tokens = node("Reshape", ["is_token", "as_column"], ["is_token_column"])
    if pooling == "max":
        masked = node("Where", ["is_token_column", "hidden", "lowest"], ["tokens"])
        if opset >= _AXES_ARE_INPUT:
            return [
                tokens,
                masked,
                node("ReduceMax", ["tokens", "pooled_axes"], ["pooled"], keepdims=0),
            ]
        return [tokens, masked, node("ReduceMax", ["tokens"], ["pooled"], axes=[1], keepdims=0)]
    counted = [
        tokens,
        node("Where", ["is_token_column", "hidden", "nothing"], ["tokens"]),
        node("Gather", ["count", "final"], ["counts"], axis=1),
        node("Reshape", ["counts", "as_counts"], ["counts_column"]),
    ]
    if pooling == "mean":
        weights = [
            node("Cast", ["is_token"], ["ones"], to=TensorProto.FLOAT),
            node("Cast", ["counts_column"], ["total"], to=TensorProto.FLOAT),
            node("Div", ["ones", "total"], ["weights"]),
        ]
    else:
        weights = [
            node("Equal", ["count", "counts_column"], ["is_late"]),
            node("And", ["is_late", "is_token"], ["is_last"]),
            node("Cast", ["is_last"], ["weights"], to=TensorProto.FLOAT),
        ]
    return [
        *counted,
        *weights,
        node("Reshape", ["weights", "as_row"], ["weights_row"]),
        node("MatMul", ["weights_row", "tokens"], ["pooled_row"]),
        node("Reshape", ["pooled_row", "as_vector"], ["pooled"]),
    ]


def _check_longest(path: Path, session: Session, source: TextInput, largest: int) -> None:
    """Run one text of ``max_length`` tokens, one of them with the largest id."""
    ids = np.array(source.samples(1)[0, :1].repeat(source.max_length)[None])
    for row, what, tip in (
        (np.array([[ids[0, 0], largest]]), f"the token {largest}, the tokenizer's last, fails",
         "name the tokenizer that the model was trained with"),
        (ids, f"a text of max_length {source.max_length} tokens fails",
         "write a smaller max_length: the model may have fewer positions"),
    ):  # fmt: skip
        try:
            session.run([OUTPUT], {TEXT: row})
        except InputError as error:
            raise InputError(f"{path}: {what}: {error.message}", tip=tip) from None


def _is_prefix(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PREFIX
