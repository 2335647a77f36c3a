"""The training record inside an encoder's file: it goes where the file goes, under its digest."""

from __future__ import annotations

from pathlib import Path

import onnx

from compatctl.encoder import contract, onnx_safety
from compatctl.errors import InputError

RECORD_KEY = "compatctl.record"
MAX_RECORD = 256 << 20
"""The longest record, in characters: some six million items."""


def with_record(data: bytes, path: Path, record: str) -> bytes:
    """The sealed bytes of an encoder that carries ``record`` besides, in place of what it carried.

    ``path``: where the bytes were read, for errors. The same bytes and record give the same bytes.

    Raises:
        InputError: ``data`` is no sealed encoder, or the record is longer than ``MAX_RECORD``.
    """
    if len(record) > MAX_RECORD:
        raise InputError(f"the training record has {len(record)} characters, over {MAX_RECORD}")
    model = contract.parse(path, data)
    contract.read(path, model)
    kept = [one for one in model.metadata_props if one.key != RECORD_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=RECORD_KEY, value=record)
    return bytes(model.SerializeToString(deterministic=True))


def read_record(path: Path) -> str | None:
    """The record that the sealed encoder in a file carries; it is not run.

    Raises:
        InputError: no such file, no encoder, or as ``record_in``.
    """
    return carried_record(path, contract.parse(path, onnx_safety.read_bytes(path)))


def carried_record(path: Path, model: onnx.ModelProto) -> str | None:
    """The record that a model carries; None: it carries none.

    Raises:
        InputError: two of them, or one that is longer than ``MAX_RECORD``.
    """
    found = [one.value for one in model.metadata_props if one.key == RECORD_KEY]
    if len(found) > 1 or any(len(one) > MAX_RECORD for one in found):
        raise InputError(f"{path}: its training record is there twice, or too long")
    return found[0] if found else None
