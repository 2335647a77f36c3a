"""Canonical JSON to write, strict JSON to read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from compatctl.errors import CompatError, InputError
from compatctl.files._errors import os_errors
from compatctl.files._pointers import other_kind, refuse_pointer


def canonical_json(value: object) -> bytes:
    """``value`` as canonical JSON: sorted keys, ASCII, indented by 2.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, allow_nan=False, indent=2)
    return text.encode("ascii") + b"\n"


def json_safe(value: Any) -> Any:
    """``value`` as JSON values: dataclasses become dicts, tuples lists, NaN and infinity None."""
    if is_dataclass(value) and not isinstance(value, type):
        return json_safe(asdict(value))
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path, max_bytes: int, *, error: type[CompatError] = InputError) -> object:
    """Read a JSON file of at most ``max_bytes`` bytes, strictly.

    Raises:
        InputError: the file is missing, must not be read, or is a pointer to the file.
        CompatError: of the class ``error``: too large, not UTF-8, not JSON, a key twice, a NaN.
    """
    with os_errors("reading", path), path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise error(f"{path}: larger than the {max_bytes} bytes that such a file may have")
    refuse_pointer(path, data)
    return parse_json(data, path, error=error)


def parse_json(data: bytes, path: Path | str, *, error: type[CompatError] = InputError) -> object:
    """Parse JSON strictly; ``path`` begins the message of an error of the class ``error``."""
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as problem:
        try:
            refuse_pointer(Path(path), data)
        except InputError as pointer:
            raise error(pointer.message, tip=pointer.tip) from None
        kind, tip = other_kind(data) or ("", "")
        found = f"it is {kind}" if kind else problem
        tip = "save it as UTF-8 without a byte order mark" if "BOM" in str(problem) else tip
        raise error(f"{path}: not JSON that can be read: {found}", tip=tip) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
