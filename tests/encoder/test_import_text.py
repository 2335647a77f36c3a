"""Imported text models compute what they did with their own tokenizer and pooling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from text_kit import (
    DIM,
    VOCABULARY,
    WORDS,
    sentences,
    text_model,
    write_text_model,
    write_tokenizer,
)
from tokenizers import Tokenizer

from compatctl.data import Dataset, Item, Role
from compatctl.encoder import Encoder, check_steady
from compatctl.errors import InputError
from compatctl.notices import DataWarning

TEXTS = [*sentences(20), "car", "unknown words here"]


def data_of(texts: Sequence[str], role: Role | None = None) -> Dataset:
    """Texts as items."""
    items = tuple(Item(id=f"t{i}", label="", split="test", role=role) for i in range(len(texts)))
    return Dataset(items=items, sources=tuple(texts))


def by_hand(path: Path, texts: Sequence[str], pooling: str, output: str) -> NDArray[np.float64]:
    """Unit rows of the original graph, one text at a time, pooled in numpy."""
    session = ort.InferenceSession(path)
    tokenizer = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    rows = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids])
        whole = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
        }
        feeds = {
            value.name: whole[value.name].astype("i4" if "int32" in value.type else "i8")
            for value in session.get_inputs()
        }
        hidden = session.run([output], feeds)[0][0].astype(np.float64)
        pooled = {
            "mean": lambda tokens: tokens.mean(0),
            "cls": lambda tokens: tokens[0],
            "max": lambda tokens: tokens.max(0),
            "last": lambda tokens: tokens[-1],
            "none": lambda vector: vector,
        }[pooling](hidden)
        rows.append(pooled / np.linalg.norm(pooled))
    return np.array(rows)


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last", "none"])
def test_every_pooling_gives_the_rows_of_the_original(
    tmp_path: Path, pooling: str, opset: int
) -> None:
    """Batches of texts of many lengths give the rows of each text alone, pooled in numpy."""
    output = "summary" if pooling == "none" else "hidden"
    path = write_text_model(
        tmp_path / "m.onnx", text_model(opset=opset), pooling=pooling, output=output
    )
    encoder = Encoder.load(path)
    found = encoder.embed(data_of(TEXTS)).features
    assert np.abs(found - by_hand(path, TEXTS, pooling, output)).max() < 1e-5
    assert check_steady(encoder) < 1e-5


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize(
    "inputs",
    [
        ("input_ids", "attention_mask"),
        ("attention_mask", "input_ids", "token_type_ids", "position_ids"),
    ],
    ids=["two", "four"],
)
def test_masks_segments_and_positions_are_made_of_the_ids(
    tmp_path: Path, inputs: tuple[str, ...], kind: int
) -> None:
    """Whatever subset of inputs a model takes, in whichever type, gets what it had."""
    path = write_text_model(tmp_path / "m.onnx", text_model(inputs=inputs, kind=kind))
    found = Encoder.load(path).embed(data_of(TEXTS)).features
    assert np.abs(found - by_hand(path, TEXTS, "mean", "hidden")).max() < 1e-5


def test_a_prefix_is_put_before_texts_by_their_role(tmp_path: Path) -> None:
    """A query has the query's prefix; a gallery item, and one of no role, the document's."""
    path = write_text_model(tmp_path / "m.onnx", query_prefix="query ", document_prefix="passage ")
    encoder = Encoder.load(path)
    assert encoder.embeds_by_role
    for role, prefix in (("query", "query "), ("gallery", "passage "), (None, "passage ")):
        expected = by_hand(path, [prefix + text for text in TEXTS], "mean", "hidden")
        found = encoder.embed(data_of(TEXTS, role)).features  # type: ignore[arg-type]
        assert np.abs(found - expected).max() < 1e-5


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    """Of a text with more tokens than max_length the beginning is embedded, with a notice."""
    path = write_text_model(tmp_path / "m.onnx", max_length=6)
    long = "red car old boat small house"
    with pytest.warns(DataWarning, match="longer than its 6 tokens: 1") as record:
        found = Encoder.load(path).embed(data_of([long, "red car"])).features
    assert [warning.message.kind for warning in record] == ["long-text"]  # type: ignore[union-attr]
    expected = by_hand(path, ["red car old boat"], "mean", "hidden")
    assert np.abs(found[:1] - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("entries", "model", "message"),
    [
        ({"pooling": "median"}, {}, "pooling must be one of mean, cls, max, last, none"),
        ({"max_length": 25}, {}, "a text of max_length 25 tokens fails"),
        ({"max_length": 0}, {}, "max_length must be a whole number"),
        ({"output": "summary"}, {}, "summary has 2 axes"),
        ({"pooling": "none"}, {}, "hidden has 3 axes"),
        ({"output": None}, {}, "its outputs are hidden .*, summary .*says None"),
        ({"query_prefix": 3}, {}, "query_prefix must be"),
        ({"pool": "mean"}, {}, "unknown entry 'pool'"),
        ({"tokenizer": "other.json"}, {}, "other.json"),
        ({"modality": "sound"}, {}, "modality must be image or text"),
        ({}, {"inputs": ("input_ids", "extra")}, "text model takes .* it has input_ids, extra"),
        ({}, {"kind": TensorProto.FLOAT}, "its input input_ids is float, expected int64"),
        ({}, {"rows": VOCABULARY - 3}, f"ids up to {VOCABULARY - 1}; .*of {VOCABULARY - 3}"),
        ({}, {"opset": 10}, "operator set 10 is too old"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, entries: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    """Pooling, length, output, tokenizer, inputs and types that do not fit are each named."""
    path = write_text_model(tmp_path / "m.onnx", text_model(**model), **entries)
    with pytest.raises(InputError, match=message):
        Encoder.load(path)


def test_a_vocabulary_that_no_weight_shows_is_tried(tmp_path: Path) -> None:
    """Where the table of words is computed, the tokenizer's largest id is run instead."""
    model = text_model(rows=VOCABULARY - 3)
    gather = next(node for node in model.graph.node if node.output[0] == "word")
    gather.input[0] = "computed"
    node = onnx.helper.make_node("Abs", ["words"], ["computed"])
    model.graph.node.insert(0, node)
    path = write_text_model(tmp_path / "m.onnx", model)
    with pytest.raises(InputError, match=f"the token {VOCABULARY - 1}, the tokenizer's last"):
        Encoder.load(path)


def test_a_tokenizer_of_few_of_the_models_tokens_has_a_notice(tmp_path: Path) -> None:
    """A tokenizer that knows less than half of the vocabulary may be another model's."""
    path = write_text_model(tmp_path / "m.onnx")
    write_tokenizer(tmp_path / "tokenizer.json", WORDS[:8])
    with pytest.warns(DataWarning, match=f"12 of {VOCABULARY}") as record:
        Encoder.load(path)
    assert record[0].message.kind == "small-vocabulary"  # type: ignore[union-attr]


def test_texts_without_a_token_are_refused_by_name(tmp_path: Path) -> None:
    """Blanks are no text; the message has the item's id."""
    encoder = Encoder.load(write_text_model(tmp_path / "m.onnx"))
    with pytest.raises(InputError, match="'t1': its text is empty"):
        encoder.embed(data_of(["red", " \n"]))


def sentence_folder(folder: Path, **changed: object) -> Path:
    """A sentence-transformers folder with onnx/model.onnx; a file named None is left out."""
    (folder / "onnx").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    model = text_model()
    for node in model.graph.node:
        node.output[:] = ["last_hidden_state" if n == "hidden" else n for n in node.output]
        node.input[:] = ["last_hidden_state" if n == "hidden" else n for n in node.input]
    model.graph.output[0].name = "last_hidden_state"
    onnx.save(model, folder / "onnx" / "model.onnx")
    write_tokenizer(folder / "tokenizer.json")
    kinds = ("Transformer", "Pooling", "Normalize")
    files: dict[str, object] = {
        "modules.json": [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds],
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "word_embedding_dimension": DIM},
        "sentence_bert_config.json": {"max_seq_length": 12},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query ", "passage": "passage "},
            "default_prompt_name": None,
        },
    }
    for name, content in {**files, **changed}.items():
        (folder / name).write_text(json.dumps(content))
    return folder / "onnx" / "model.onnx"


def test_a_sentence_transformers_folder_needs_no_preprocessing_file(tmp_path: Path) -> None:
    """Pooling, length and prompts come from the folder, with a notice that has each of them."""
    path = sentence_folder(tmp_path / "m")
    with pytest.warns(DataWarning, match="pooling 'cls', max_length 12") as record:
        encoder = Encoder.load(path)
    assert [w.message.kind for w in record] == ["derived-preprocessing"]  # type: ignore[union-attr]
    (tmp_path / "m" / "onnx" / "tokenizer.json").write_bytes(
        (tmp_path / "m" / "tokenizer.json").read_bytes()
    )
    expected = by_hand(path, ["query " + text for text in TEXTS], "cls", "last_hidden_state")
    found = encoder.embed(data_of(TEXTS, "query")).features
    assert np.abs(found - expected).max() < 1e-5
    assert encoder.inputs[0].to_json()["document_prefix"] == "passage "


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_mean_sqrt_len_tokens": True}}, "mean_sqrt_len"),
        ({"1_Pooling/config.json": {}}, "do not say the pooling"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "its modules Dense"),
        ({"sentence_bert_config.json": {}}, "do not say the most tokens"),
        ({"sentence_bert_config.json": {"do_lower_case": True}}, "do_lower_case"),
        ({"sentence_bert_config.json": []}, "expected a JSON object"),
        ({"config_sentence_transformers.json": {"prompts": {"query": 1}}}, "prompts must be texts"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_folder_that_says_too_little_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    """What cannot be derived is named, with the file to write."""
    with pytest.raises(InputError, match=message):
        Encoder.load(sentence_folder(tmp_path / "m", **changed))


def test_a_text_model_alone_says_what_to_write(tmp_path: Path) -> None:
    """Without any file beside it, the error has a preprocessing file to copy."""
    onnx.save(text_model(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"takes texts \(input_ids\)") as caught:
        Encoder.load(tmp_path / "m.onnx")
    template = (caught.value.tip or "").partition("such as ")[2]
    (tmp_path / "m.preprocessing.json").write_text(
        json.dumps({**json.loads(template), "output": "hidden", "max_length": 20})
    )
    write_tokenizer(tmp_path / "tokenizer.json")
    assert Encoder.load(tmp_path / "m.onnx").dim == DIM


def test_a_preprocessing_file_of_images_is_no_text_models(tmp_path: Path) -> None:
    """The file without modality is that of images, and says so."""
    path = write_text_model(tmp_path / "m.onnx")
    path.with_suffix(".preprocessing.json").write_text('{"format": 1, "height": 8, "width": 8}')
    with pytest.raises(InputError, match=r"describes images, and .* takes texts"):
        Encoder.load(path)
