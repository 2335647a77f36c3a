"""The JSON schema of report.json, from the dataclasses that write it."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from compatctl.report._report import CHECKSUM, FORMAT, REFUSED, Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {str: "string", int: "integer", bool: "boolean"}


def report_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a report of ``FORMAT``, and of the entry that a refused model
    leaves in its place.

    A number that is not finite is null. Entries that an earlier version did not write are not
    required.
    """
    definitions: dict[str, Any] = {}
    _define(Report, definitions)
    root = definitions["Report"]
    root["properties"] |= {
        CHECKSUM: {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "format": {"const": FORMAT},
    }
    root["required"] = sorted([*root["required"], CHECKSUM])
    definitions["Refusal"] = _refusal()
    return {
        "$schema": DIALECT,
        "title": f"report.json of compatctl verify, format {FORMAT}",
        "oneOf": [{"$ref": "#/$defs/Report"}, {"$ref": "#/$defs/Refusal"}],
        "$defs": definitions,
    }


def _refusal() -> dict[str, Any]:
    texts = {"kind": {"type": "string"}, "message": {"type": "string"}, "tip": _or_null("string")}
    refused = {
        "type": "object",
        "properties": texts,
        "required": sorted(texts),
        "additionalProperties": False,
    }
    entries = {
        "format": {"const": FORMAT},
        REFUSED: refused,
        "exit_code": {"type": "integer"},
    }
    return {
        "type": "object",
        "description": "What replaces a report if verify refuses a model before judging it.",
        "properties": entries,
        "required": sorted(entries),
        "additionalProperties": False,
    }


def _or_null(name: str) -> dict[str, Any]:
    return {"type": [name, "null"]}


def _define(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Add a dataclass to the definitions, once; returns a reference to it."""
    reference = {"$ref": f"#/$defs/{kind.__name__}"}
    if kind.__name__ in definitions:
        return reference
    entry: dict[str, Any] = {"type": "object"}
    definitions[kind.__name__] = entry
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    if not (kind.__doc__ or "").startswith(f"{kind.__name__}("):
        entry["description"] = inspect.cleandoc(kind.__doc__ or "").replace("``", "`")
    entry |= {
        "properties": {field.name: _of(hints[field.name], definitions) for field in fields},
        "required": sorted(f.name for f in fields if not f.metadata.get("optional")),
        "additionalProperties": False,
    }
    return reference


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911
    """The schema of a type, as ``from_json`` reads it."""
    origin, members = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin in {Union, types.UnionType}:
        (inner,) = (_of(member, definitions) for member in members if member is not type(None))
        return {"anyOf": [inner, {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(members)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(members[1], definitions)}
    if origin is tuple:
        return _sequence(members, definitions)
    if dataclasses.is_dataclass(hint):
        return _define(typing.cast("type[Any]", hint), definitions)
    return _or_null("number") if hint is float else {"type": _SCALARS[hint]}


def _sequence(members: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    if len(members) == 2 and members[1] is Ellipsis:
        return {"type": "array", "items": _of(members[0], definitions)}
    return {
        "type": "array",
        "prefixItems": [_of(member, definitions) for member in members],
        "items": False,
        "minItems": len(members),
    }
