"""What an encoder's file says about itself: its inputs and dimension, and its training record.

Both are text in the metadata of the ONNX file, so that its digest covers them. Scaling, mean, std
and the norm are inside the graph; resizing and cropping, or the tokenizer, which cannot be, are in
the contract and beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import onnx

from compatctl.encoder.images import ImageInput
from compatctl.encoder.inputs import EncoderInput
from compatctl.encoder.onnx_safety import parse_model, read_bytes
from compatctl.encoder.texts import MAX_TOKENIZER, TEXT, TextInput
from compatctl.encoder.vectors import VECTOR, VectorInput
from compatctl.errors import InputError
from compatctl.files import parse_json

OUTPUT = "embedding"
"""The name of an encoder's output, (batch, D) float32 with unit rows."""

FREE = "free"
"""The name of an encoder's second output, if it has one: (batch, D_free) float32 with unit rows, of
the same backbone, trained without regard to the gallery."""

CONTRACT_KEY = "compatctl"
RECORD_KEY = "compatctl.record"
ATTACHMENT_KEY = "compatctl.attachment."
"""Before the digest of a text that an input needs: a tokenizer."""

FORMAT = 1
MAX_CONTRACT = 1 << 16
"""The most characters of a contract."""

MAX_RECORD = 256 << 20
"""The most characters of a training record: some six million items."""

MAX_DIM = 65_536
MAX_INPUTS = 16
"""The most inputs of an encoder: one for each distinct preprocessing of those that were fused."""

_KEYS = {"format", "dim", "inputs"}
_FREE_KEY = "free_dim"


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What an encoder takes and gives: its inputs, and unit rows of ``dim`` dimensions.

    ``free_dim``: the dimension of its second output, ``free``; None if it has one output.
    """

    dim: int
    inputs: tuple[EncoderInput, ...]
    free_dim: int | None = None

    @property
    def attachments(self) -> dict[str, str]:
        """The texts that the inputs need, by their digest."""
        return {key: text for source in self.inputs for key, text in source.attachments().items()}

    @property
    def outputs(self) -> dict[str, int]:
        """The name and the dimension of each output, the embedding first."""
        free = {} if self.free_dim is None else {FREE: self.free_dim}
        return {OUTPUT: self.dim, **free}

    def to_json(self) -> str:
        """The text in the metadata; equal contracts have equal texts."""
        inputs = [source.to_json() for source in self.inputs]
        free = {} if self.free_dim is None else {_FREE_KEY: self.free_dim}
        entries = {"format": FORMAT, "dim": self.dim, "inputs": inputs, **free}
        return json.dumps(entries, sort_keys=True)


def has_contract(model: onnx.ModelProto) -> bool:
    """Whether the file says how its inputs are made."""
    return bool(_entries(model, CONTRACT_KEY))


def read_contract(path: Path, model: onnx.ModelProto) -> Contract:
    """The contract in a model's metadata.

    Raises:
        InputError: there is none, it is of a newer format, or it has an unknown or wrong entry.
    """
    texts = _entries(model, CONTRACT_KEY)
    if len(texts) != 1:
        raise InputError(
            f"{path} carries no preprocessing in its metadata: compatctl did not make it",
            tip=f"put {sidecar_path(path).name} beside it, which compatctl export "
            f"--preprocessing-template {path.name} prints",
        )
    if len(texts[0]) > MAX_CONTRACT:
        raise InputError(f"{path}: its metadata is longer than {MAX_CONTRACT} characters")
    raw = parse_json(texts[0].encode("utf-8", "surrogatepass"), path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        format_ = raw.get("format") if isinstance(raw, dict) else raw
        raise InputError(
            f"{path}: its metadata has the format {format_!r}; this version reads {FORMAT}",
            tip="use the version of compatctl that made it, or a later one",
        )
    dim, entries = raw.get("dim"), raw.get("inputs")
    if set(raw) - {_FREE_KEY} != _KEYS or not _is_dim(dim) or not isinstance(entries, list):
        raise InputError(f"{path}: its metadata must be {sorted(_KEYS)}, got {sorted(raw)}")
    free_dim = raw.get(_FREE_KEY)
    if _FREE_KEY in raw and not (_is_dim(free_dim) and free_dim <= MAX_DIM):
        raise InputError(
            f"{path}: {_FREE_KEY} in its metadata must be a whole number from 1 to {MAX_DIM}, got "
            f"{free_dim!r:.80}"
        )
    if dim > MAX_DIM or len(entries) > MAX_INPUTS:
        raise InputError(
            f"{path}: its metadata has {dim} dimensions and {len(entries)} inputs; the limits are "
            f"{MAX_DIM} and {MAX_INPUTS}"
        )
    attachments = _attachments(path, model)
    try:
        inputs = tuple(_input(entry, attachments) for entry in entries)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", tip=error.tip) from None
    if not inputs or len({source.name for source in inputs}) < len(inputs):
        raise InputError(f"{path}: its metadata names no input, or one twice")
    return Contract(dim=dim, inputs=inputs, free_dim=free_dim)


def _input(entry: object, attachments: dict[str, str]) -> EncoderInput:
    """The input that an entry of the contract describes."""
    if not isinstance(entry, dict):
        raise InputError("an input in its metadata must be an object")
    kind = entry.get("kind")
    if kind == TEXT:
        return TextInput.from_json(entry, attachments)
    if kind == VECTOR:
        return VectorInput.from_json(entry)
    if kind is not None:
        raise InputError(
            f"an input in its metadata is of the kind {kind!r:.40}; this version knows images, "
            "texts and vectors",
            tip="use the version of compatctl that made it, or a later one",
        )
    return ImageInput.from_json(entry)


def _attachments(path: Path, model: onnx.ModelProto) -> dict[str, str]:
    """The attached texts, by their digest."""
    found: dict[str, str] = {}
    for entry in model.metadata_props:
        if entry.key.startswith(ATTACHMENT_KEY):
            if len(entry.value) > MAX_TOKENIZER:
                raise InputError(f"{path}: a text in its metadata is over {MAX_TOKENIZER}")
            found[entry.key.removeprefix(ATTACHMENT_KEY)] = entry.value
    return found


def _is_dim(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def sidecar_path(path: Path) -> Path:
    """NAME.preprocessing.json beside an ONNX file that compatctl did not make."""
    return path.with_suffix(".preprocessing.json")


def with_record(data: bytes, path: Path, record: str) -> bytes:
    """The sealed bytes of an encoder with this training record, in place of an earlier one.

    ``path``: where the bytes were read, for errors. The same bytes and record give the same bytes.

    Raises:
        InputError: ``data`` is no sealed encoder, or the record is longer than ``MAX_RECORD``.
    """
    if len(record) > MAX_RECORD:
        raise InputError(f"the training record has {len(record)} characters, over {MAX_RECORD}")
    model = parse_model(path, data)
    read_contract(path, model)
    others = [entry for entry in model.metadata_props if entry.key != RECORD_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=RECORD_KEY, value=record)
    return bytes(model.SerializeToString(deterministic=True))


def read_record(path: Path) -> str | None:
    """The training record in an encoder's file; the encoder does not run.

    Raises:
        InputError: no such file, no encoder, or as ``record_in``.
    """
    return record_in(path, parse_model(path, read_bytes(path)))


def record_in(path: Path, model: onnx.ModelProto) -> str | None:
    """The training record in a model's metadata, or None.

    Raises:
        InputError: there are two, or one is longer than ``MAX_RECORD``.
    """
    records = _entries(model, RECORD_KEY)
    if len(records) > 1 or any(len(record) > MAX_RECORD for record in records):
        raise InputError(f"{path}: its training record is there twice, or too long")
    return records[0] if records else None


def _entries(model: onnx.ModelProto, key: str) -> list[str]:
    return [entry.value for entry in model.metadata_props if entry.key == key]
