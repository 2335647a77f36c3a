"""The text modality: a text becomes token ids, which the graph takes.

The tokenizer is a ``tokenizer.json`` of the library tokenizers. It is in the encoder's metadata, so
that the digest of the file covers it. A batch of texts is padded with -1: the graph makes the mask
of what is a token from that, and needs no second input.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from compatctl.data import Content, Role, is_blank
from compatctl.encoder.inputs import EncoderInput
from compatctl.errors import InputError
from compatctl.libraries import require_library

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT = "text"
"""The name of the first input of texts, and its kind in the metadata."""

PADDING = -1
"""What stands after a text that is shorter than another of its batch."""

MAX_TOKENIZER = 64 << 20
"""The most characters of a tokenizer."""

MAX_LENGTH = 1 << 17
"""The most tokens of a text that an encoder takes."""

MAX_PREFIX = 4096
"""The most characters of a prefix."""

_KEYS = {"kind", "name", "tokenizer", "max_length", "query_prefix", "document_prefix"}

_SENTENCES = (
    "A red bicycle leans against the wall of the bakery.",
    "how to reset a forgotten password",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Invoices are due within 30 days; late payment costs 1.5 % a month.",
    "the act of moving from one place to another",
    "東京は日本の首都です。",
    "x = [n ** 2 for n in range(10) if n % 2]",
    "Heavy rain is expected in the north, with winds of up to 90 km/h near the coast.",
)


@dataclass(frozen=True, kw_only=True)
class TextInput(EncoderInput):
    """Token ids (batch, length) int64, padded with -1 after each text.

    Attributes:
        tokenizer: the text of a ``tokenizer.json``, without truncation and padding.
        max_length: the most tokens of a text, those that mark its ends included; what is beyond is
            cut off.
        query_prefix: what is put before the text of a query.
        document_prefix: what is put before the text of a gallery item, or of an item of no role.
    """

    MODALITY = "text"
    ELEMENT = TensorProto.INT64

    tokenizer: str
    max_length: int
    query_prefix: str = ""
    document_prefix: str = ""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], attachments: Mapping[str, str]) -> Self:
        """The input that ``to_json`` describes, with its tokenizer from the ``attachments``.

        Raises:
            InputError: an entry is missing, unknown or out of range; or the tokenizer is missing,
                or not the one of the entry.
        """
        texts = [entry.get(key) for key in ("name", "tokenizer", "query_prefix", "document_prefix")]
        length = entry.get("max_length")
        valid = all(isinstance(text, str) and len(text) <= MAX_PREFIX for text in texts)
        if set(entry) != _KEYS or not valid or type(length) is not int:
            raise InputError(f"an input of texts in its metadata must have {sorted(_KEYS)}")
        if not 0 < length <= MAX_LENGTH:
            raise InputError(f"max_length in its metadata must lie in 1 .. {MAX_LENGTH}")
        tokenizer = attachments.get(str(entry["tokenizer"]))
        if tokenizer is None or _sha256(tokenizer) != entry["tokenizer"]:
            raise InputError("its tokenizer is missing in its metadata, or another one")
        return cls(
            name=str(entry["name"]),
            tokenizer=tokenizer,
            max_length=length,
            query_prefix=str(entry["query_prefix"]),
            document_prefix=str(entry["document_prefix"]),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": TEXT,
            "name": self.name,
            "tokenizer": _sha256(self.tokenizer),
            "max_length": self.max_length,
            "query_prefix": self.query_prefix,
            "document_prefix": self.document_prefix,
        }

    def attachments(self) -> Mapping[str, str]:
        return {_sha256(self.tokenizer): self.tokenizer}

    @property
    def by_role(self) -> bool:
        """Whether a query and a gallery item of the same text are embedded differently."""
        return self.query_prefix != self.document_prefix

    @property
    def shape(self) -> tuple[str]:
        # Axes of one name must have one size; in one model two tokenizers may give two lengths.
        return ("length" if self.name == TEXT else f"{self.name}_length",)

    @property
    def item_bytes(self) -> int:
        return 8 * self.max_length

    def prepare(self, content: Content, role: Role | None) -> tuple[NDArray[np.int64], bool]:
        if not isinstance(content, str):
            raise self.refuse_other(content)
        if is_blank(content):
            raise InputError("its text is empty")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise InputError("its text holds half a character, a lone surrogate") from None
        prefix = self.query_prefix if role == "query" else self.document_prefix
        encoding = load_tokenizer(self.tokenizer, self.max_length).encode(prefix + content)
        if not encoding.ids:
            raise InputError("its text has no token that the tokenizer knows")
        return np.array(encoding.ids, np.int64), bool(encoding.overflowing)

    def is_mostly_unknown(self, ids: NDArray[np.int64]) -> bool:
        """Whether at least half of a text's tokens, without those that mark its ends, stand for
        what the tokenizer does not know."""
        unknown = unknown_token(self.tokenizer)
        ends = load_tokenizer(self.tokenizer, self.max_length).num_special_tokens_to_add(False)
        known = len(ids) - ends - int((ids == unknown).sum())
        return unknown is not None and 2 * known <= len(ids) - ends

    def stack(self, arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        batch = np.full((len(arrays), max(map(len, arrays))), PADDING, np.int64)
        for row, ids in zip(batch, arrays, strict=True):
            row[: len(ids)] = ids
        return batch

    def samples(self, n: int) -> NDArray[np.int64]:
        """``n`` synthetic texts as token ids."""
        return self.stack([self.prepare(synthetic_text(number), None)[0] for number in range(n)])


def synthetic_text(number: int) -> str:
    """A text of some words; the first eight have nothing in common."""
    sentence = _SENTENCES[number % len(_SENTENCES)]
    return sentence if number < len(_SENTENCES) else f"{sentence} {number} {sentence[:number]}"


@functools.lru_cache(maxsize=8)
def load_tokenizer(text: str, max_length: int) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, which cuts texts off after ``max_length`` tokens.

    Raises:
        InputError: it is no tokenizer, it cannot cut at so few tokens, or the library tokenizers is
            not installed.
    """
    require_library("tokenizers", extra="text", subject="a model that takes texts")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
    except Exception as error:  # the library raises plain exceptions
        raise InputError(
            f"the tokenizer cannot be used: {error}",
            tip="it must be a tokenizer.json of the library tokenizers",
        ) from error
    return tokenizer


@functools.lru_cache(maxsize=8)
def unknown_token(text: str) -> int | None:
    """The id of the token that stands for what the tokenizer does not know; None: there is none."""
    model = json.loads(text)["model"]
    if model.get("unk_id") is not None:  # of a Unigram model
        return int(model["unk_id"])
    vocabulary = model.get("vocab")
    word = model.get("unk_token")
    return vocabulary.get(word) if isinstance(vocabulary, dict) and word is not None else None


def plain_tokenizer(text: str) -> str:
    """The text of a ``tokenizer.json`` without truncation and padding, which the input sets.

    Raises:
        InputError: it is no JSON object, or longer than ``MAX_TOKENIZER``.
    """
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict) or "model" not in content or len(text) > MAX_TOKENIZER:
        raise InputError(
            "the tokenizer is no tokenizer.json of the library tokenizers",
            tip="save it with tokenizer.save_pretrained of transformers: it writes tokenizer.json",
        )
    content |= {"truncation": None, "padding": None}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
