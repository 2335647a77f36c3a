"""Folders of sentence-transformers and transformers: what they say of how a text is embedded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compatctl.encoder.texts import MAX_TOKENIZER
from compatctl.errors import InputError
from compatctl.files import read_json

Pooling = Literal["mean", "cls", "max", "last", "none"]
"""How the vectors of a text's tokens become one; ``none``: the model gives one vector a text."""

POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max", "last", "none")

MAX_CONFIG = 4 << 20
"""The most bytes of a configuration file."""

_MARKS = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_MODULES = {"Transformer", "Pooling", "Normalize"}
_QUERY = ("query",)
_DOCUMENT = ("document", "passage", "corpus")
_NO_LENGTH = 1 << 20
"""A model_max_length above it stands for none: transformers writes 1e30."""


@dataclass(frozen=True, kw_only=True)
class SentenceFolder:
    """What the files of a model's folder say; None where they say nothing.

    Attributes:
        tokenizer: the file ``tokenizer.json``.
        max_length: the most tokens of a text.
        pooling: how tokens become one vector.
        query_prefix: the prompt of queries.
        document_prefix: the prompt of documents.
        other_modules: modules after the transformer that are neither pooling nor a norm.
    """

    folder: Path
    tokenizer: Path
    max_length: int | None
    pooling: Pooling | None
    query_prefix: str
    document_prefix: str
    other_modules: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, *, beside: Path | None = None) -> SentenceFolder:
        """Read the files of ``folder``; the tokenizer may also lie in the folder ``beside``.

        Raises:
            InputError: there is no tokenizer.json; a file is not JSON of the expected form; or it
                names a pooling that compatctl does not know.
        """
        places = [place / "tokenizer.json" for place in (folder, beside) if place is not None]
        tokenizer = next((file for file in places if file.is_file()), None)
        if tokenizer is None:
            raise InputError(
                f"{folder}: there is no tokenizer.json in it",
                tip="save the tokenizer there: tokenizer.save_pretrained of transformers, with a "
                "fast tokenizer",
            )
        sentence = _entries(folder / "sentence_bert_config.json")
        if sentence.get("do_lower_case"):
            raise InputError(
                f"{folder / 'sentence_bert_config.json'}: do_lower_case lowers texts outside the "
                "tokenizer",
                tip="put the normalizer Lowercase into tokenizer.json, and false there",
            )
        query, document = _prompts(folder / "config_sentence_transformers.json")
        return cls(
            folder=folder,
            tokenizer=tokenizer,
            max_length=_max_length(folder, sentence, tokenizer),
            pooling=_pooling(folder),
            query_prefix=query,
            document_prefix=document,
            other_modules=_other_modules(folder / "modules.json"),
        )


def find_sentence_folder(path: Path) -> Path | None:
    """The folder of sentence-transformers that an ONNX file lies in, or one below; or None."""
    for folder in (path.resolve().parent, path.resolve().parent.parent):
        if any((folder / mark).is_file() for mark in _MARKS):
            return folder
    return None


def _entries(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    content = read_json(path, MAX_TOKENIZER if path.name == "tokenizer.json" else MAX_CONFIG)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, got {str(content)[:80]!r}")
    return content


def _max_length(folder: Path, sentence: Mapping[str, Any], tokenizer: Path) -> int | None:
    """The smallest length that the first file says that says any."""
    truncation = _entries(tokenizer).get("truncation")
    stated = (
        sentence.get("max_seq_length"),
        _entries(folder / "tokenizer_config.json").get("model_max_length"),
        truncation.get("max_length") if isinstance(truncation, dict) else None,
        _entries(folder / "config.json").get("max_position_embeddings"),
    )
    lengths = [value for value in stated if type(value) is int and 0 < value < _NO_LENGTH]
    return lengths[0] if lengths else None


def _pooling(folder: Path) -> Pooling | None:
    path = folder / "1_Pooling" / "config.json"
    entries = _entries(path)
    if not entries:
        return None
    modes = [key for key, on in entries.items() if key.startswith("pooling_mode_") and on is True]
    stated = entries.get("pooling_mode")
    if isinstance(stated, str) and not modes:
        modes = [{"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}.get(
            stated, f"pooling_mode_{stated}"
        )]  # fmt: skip
    if len(modes) != 1 or modes[0] not in _MODES:
        raise InputError(
            f"{path}: expected one of {', '.join(_MODES)}; got {', '.join(modes) or 'none'}",
            tip="export the model with its pooling, and write a preprocessing file with "
            '"pooling": "none"',
        )
    if entries.get("include_prompt") is False:
        raise InputError(
            f"{path}: include_prompt is false: the tokens of a prompt are left out of the mean",
            tip="export the model with its pooling, and write a preprocessing file with "
            '"pooling": "none"',
        )
    return _MODES[modes[0]]


def _prompts(path: Path) -> tuple[str, str]:
    """The prompt of queries, and that of documents."""
    entries = _entries(path)
    prompts = entries.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise InputError(f"{path}: prompts must be texts, got {str(prompts)[:80]}")
    default = str(prompts.get(str(entries.get("default_prompt_name")), ""))
    query, document = (
        next((prompts[name] for name in names if name in prompts), default)
        for names in (_QUERY, _DOCUMENT)
    )
    return query, document


def _other_modules(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    content = read_json(path, MAX_CONFIG)
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InputError(f"{path}: expected a list of modules")
    kinds = [str(part.get("type", "")).rpartition(".")[2] for part in content]
    return tuple(kind for kind in kinds if kind not in _MODULES)
