"""Folders of sentence-transformers and transformers become sealed text models that equal them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shop_kit import run

from compatctl.encoder import Encoder
from compatctl.encoder.texts import TEXT, TextInput

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = [
    "a red bicycle",
    "The gallery stays as it is, and the model that answers is another one.",
    "zwei Wörter",
    " ".join(["long"] * 60),
    "x",
]


def save_folder(folder: Path, pooling: str | None, prompts: dict[str, str] | None = None) -> None:
    """A small untrained BERT with a tokenizer of letters, as sentence-transformers saves one."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    fast = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"))
    fast.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if pooling is None:
        return
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
    ]
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("mean_tokens", "cls_token")}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, **modes},
        "sentence_bert_config.json": {"max_seq_length": 40, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts or {}},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def rows_of(path: Path, texts: list[str], role: str) -> np.ndarray:
    """The sealed file's rows."""
    encoder = Encoder.load(path)
    source = encoder.inputs[0]
    assert isinstance(source, TextInput)
    tokens = [source.prepare(text, role)[0] for text in texts]  # type: ignore[arg-type]
    return encoder.run({TEXT: source.stack(tokens)})


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_a_folder_of_sentence_transformers_gives_what_the_library_gives(
    tmp_path: Path, pooling: str
) -> None:
    """Pooling, length and the prompts of queries and documents are the folder's."""
    library = pytest.importorskip("sentence_transformers")
    folder, prompts = tmp_path / "m", {"query": "find ", "document": "page "}
    save_folder(folder, pooling, prompts)
    source = f"sentence-transformers:{folder}"
    result = run("export", source, "-o", tmp_path / "old.onnx", "--json")
    assert result.code == 0, result.stderr
    assert result.json["parity"] < 1e-5
    assert result.json["preprocessing"]["max_length"] == 40
    model = library.SentenceTransformer(str(folder), device="cpu")
    for role, prompt in prompts.items():
        expected = model.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        actual = rows_of(tmp_path / "old.onnx", TEXTS, "query" if role == "query" else "gallery")
        assert np.abs(actual - expected).max() < 1e-5


def test_a_folder_of_transformers_needs_a_pooling(tmp_path: Path) -> None:
    """Without modules.json it is named by the option; what cannot be exported is refused."""
    save_folder(tmp_path / "m", None)
    (tmp_path / "m" / "1_Pooling").rmdir()
    source = f"transformers:{tmp_path / 'm'}"
    refused = run("export", source, "-o", tmp_path / "old.onnx")
    assert refused.code == 2
    assert "says no pooling" in refused.stderr
    result = run("export", source, "--pooling", "mean", "-o", tmp_path / "old.onnx", "--json")
    assert result.code == 0, result.stderr
    assert result.json["dim"] == 32
    modules = [{"type": "x.Transformer"}, {"type": "x.Pooling"}, {"type": "x.Dense"}]
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
    refused = run("export", source, "--pooling", "mean", "-o", tmp_path / "no.onnx")
    assert refused.code == 5
    assert "Dense" in refused.stderr
    assert not (tmp_path / "no.onnx").exists()
