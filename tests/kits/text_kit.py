"""Small text models and tokenizers, built by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = (
    "red", "green", "blue", "small", "large", "old", "new", "round", "flat", "fast", "slow",
    "car", "boat", "house", "tree", "bird", "fish", "stone", "river", "road", "door", "lamp",
    "book", "paper", "wood", "iron", "glass", "water", "fire", "snow", "rain", "wind", "query",
    "passage",
)  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = len(SPECIAL) + len(WORDS)
POSITIONS = 24
DIM = 16


def write_tokenizer(path: Path, words: Sequence[str] = WORDS) -> Path:
    """A tokenizer of whole words, between [CLS] and [SEP]."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(path))
    return path


def text_model(
    *,
    seed: int = 0,
    inputs: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
    kind: int = TensorProto.INT64,
    opset: int = 17,
    rows: int = VOCABULARY,
    positions: int = POSITIONS,
    turn: NDArray[np.float32] | None = None,
    noise: float = 0.0,
) -> onnx.ModelProto:
    """One layer of attention over words, positions and segments: ``hidden`` (batch, length, DIM)
    and ``summary`` (batch, DIM), the first token's.

    ``turn`` (DIM, DIM) is applied to the vectors of words; ``noise`` is added to them.
    """
    rng = np.random.default_rng(7)
    table = rng.standard_normal((rows, DIM)).astype(np.float32)
    table += noise * np.random.default_rng(seed).standard_normal(table.shape).astype(np.float32)
    weights = {
        "words": table if turn is None else table @ turn,
        "places": 0.1 * rng.standard_normal((positions, DIM)).astype(np.float32),
        "segments": 0.1 * rng.standard_normal((2, DIM)).astype(np.float32),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "second": np.array([1], np.int64),
        "row": np.array([0, 1, -1], np.int64),
        "far": np.array(1e4, np.float32),
        "unit": np.array(1.0, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64),
        node("Gather", ["words", "ids"], ["word"]),
        node("Shape", ["ids"], ["sides"]),
        node("Gather", ["sides", "one"], ["length"]),
        node("Range", ["zero", "length", "one"], ["range"]),
        node("Gather", ["places", "position_ids" if "position_ids" in inputs else "range"], ["at"]),
        node("Add", ["word", "at"], ["placed"]),
    ]
    last = "placed"
    if "token_type_ids" in inputs:
        nodes.append(node("Gather", ["segments", "token_type_ids"], ["segment"]))
        nodes.append(node("Add", [last, "segment"], ["whole"]))
        last = "whole"
    nodes += [
        node("Transpose", [last], ["across"], perm=[0, 2, 1]),
        node("MatMul", [last, "across"], ["scores"]),
    ]
    scores = "scores"
    if "attention_mask" in inputs:
        nodes += [
            node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
            node("Sub", ["kept", "unit"], ["lack"]),
            node("Mul", ["lack", "far"], ["penalty"]),
            node("Reshape", ["penalty", "row"], ["penalties"]),
            node("Add", ["scores", "penalties"], ["masked"]),
        ]
        scores = "masked"
    nodes += [
        node("Softmax", [scores], ["attention"], axis=-1),
        node("MatMul", ["attention", last], ["mixed"]),
        node("Add", ["mixed", last], ["hidden"]),
        node("Gather", ["hidden", "zero"], ["summary"], axis=1),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "text",
        [info(name, kind, ["batch", "length"]) for name in inputs],
        [
            info("hidden", TensorProto.FLOAT, ["batch", "length", DIM]),
            info("summary", TensorProto.FLOAT, ["batch", DIM]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write_text_model(path: Path, model: onnx.ModelProto | None = None, **entries: Any) -> Path:
    """Write a model, its tokenizer and its preprocessing file with these further entries."""
    onnx.save(model or text_model(), path)
    write_tokenizer(path.parent / "tokenizer.json")
    spec = {
        "format": 1,
        "modality": "text",
        "max_length": 16,
        "pooling": "mean",
        "output": "hidden",
    }
    path.with_suffix(".preprocessing.json").write_text(json.dumps({**spec, **entries}))
    return path


def sentences(n: int, *, seed: int = 0, most: int = 9) -> list[str]:
    """``n`` different texts of one to ``most`` words."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        found[" ".join(rng.choice(WORDS[:-2], rng.integers(1, most + 1)))] = None
    return list(found)
